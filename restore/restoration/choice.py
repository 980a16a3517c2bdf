"""`--model auto`: the best network whose weights are here, for a device and a size of picture."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from hybrid.errors import RequestError, WeightsError
from hybrid.weights.catalogue import Catalogue, Entry
from hybrid.weights.find import Store
from restore.restoration.final_size import suitable_scales

AUTO = "auto"
"""In place of a model's name."""

PATIENCE = 120.0
"""Seconds that a person is taken to wait for one picture."""

JUDGE = "set14"
"""The set whose PSNR ranks the networks: reported for all of them, and less of a chance result than Set5's five pictures."""

PASSES = {"cpu": 1.6e10, "mps": 2e11, "cuda": 1e12}
"""Parameters times input pixels that a device works off in a second. A CPU core's is measured (hat-compact, 0.86 million
parameters, 6 megapixels in 157 s on two cores); those of GPUs are cautious estimates."""


@dataclass(frozen=True)
class Choice:
    """A network and the reason for it.

    Attributes:
        name: The catalogue's name.
        reason: One line for people.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class _Candidate:
    entry: Entry
    psnr: float
    seconds: float


def choose_model(known: Catalogue, store: Store, *, wanted: float, pixels: int, device: str) -> Choice:
    """The network of the highest reported PSNR that is expected to be done within two minutes a picture.

    Where none is, the quickest one is chosen. Only weights that are shipped or in the cache count: nothing is downloaded.
    Networks of other tasks, and those without a reported PSNR, such as GANs for damaged photographs, are never chosen.

    Args:
        known: The models that have names.
        store: The cache.
        wanted: Factor of enlargement. Where no network has it, the next larger one is shrunk, or the largest enlarged.
        pixels: Pixels of the largest input picture.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Raises:
        RequestError: No network is here.
    """
    rate = PASSES[device.split(":")[0]]
    if device == "cpu":
        rate *= _cores()
    known = Catalogue({entry.name: entry for entry in known if entry.task == "super-resolution"}, known.package)
    present: list[_Candidate] = []
    for scale in suitable_scales(wanted, {scale for entry in known for scale in entry.files}):
        present = present or list(_present(known, store, scale, pixels, rate))
    if not present:
        raise RequestError(
            f"No super-resolution network for scale {wanted:g} is on this computer.",
            hint="`restore models list` shows what can be had, `restore models pull NAME` gets it.",
        )
    quick = [candidate for candidate in present if candidate.seconds <= PATIENCE]
    chosen = max(quick, key=lambda c: c.psnr) if quick else min(present, key=lambda c: c.seconds)
    better = [c for c in present if c.psnr > chosen.psnr]
    why = f"the best of {len(present)} that are here" if not better else _slower(min(better, key=lambda c: c.seconds), device)
    return Choice(chosen.entry.name, f"Model: {chosen.entry.name}, {why} ({chosen.psnr:.2f} dB on Set14).")


def _slower(candidate: _Candidate, device: str) -> str:
    minutes = max(2, round(candidate.seconds / 60))
    return f"as {candidate.entry.name} would take about {minutes} minutes for a picture of this size on {device}"


def _present(known: Catalogue, store: Store, scale: int, pixels: int, rate: float) -> Iterator[_Candidate]:
    for entry in known:
        file = entry.files.get(scale)
        psnr = file.published.get(JUDGE, {}).get("psnr") if file else None
        if file is None or psnr is None or file.parameters is None:
            continue
        try:
            here = known.shipped_path(entry, scale) or store.find(entry, scale)
        except WeightsError:
            continue  # damaged: `restore models verify` says so
        if here:
            yield _Candidate(entry, psnr, file.parameters * pixels / rate)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
