"""`--precision auto`: whether a network may compute in bfloat16 here, found by running one small tile both ways.

It may where the tile comes out near enough to float32 and truly sooner. What is found is kept in the cache folder for machine,
weights and version, so that later runs decide as the first one did. `HYBRID_AUTO_PRECISION=float32` or `bf16` in the environment
decides without a check.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from hybrid.devices import cpu_name, instruction_sets
from hybrid.errors import RequestError
from hybrid.records import replacing, versions

if TYPE_CHECKING:
    from hybrid.families import Network

log = logging.getLogger(__name__)

FORMAT = 1
"""Of the kept verdicts; another one is measured anew."""
TRUE_GAIN = 0.9
"""Part of float32's time that bf16 may take at most: less than that is chance as often as gain."""
ROUNDS, PATIENCE = 5, 1.0
"""Timed pairs at most, and seconds after which there are no further ones."""
LEAST_TILES = 16
"""Tiles of work from which a check can pay: it runs about a dozen, and saves half of the work at best."""
FOLDER = "precision"
"""Of the verdicts, in the cache folder."""
ENVIRONMENT = "HYBRID_AUTO_PRECISION"

_CHOICES: tuple[Literal["float32", "bf16"], ...] = ("float32", "bf16")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Agreement:
    """How near a result in low precision is to that in float32.

    Attributes:
        near: Whether it is near enough.
        words: How near, for people.
        figures: How near, by name.
    """

    near: bool
    words: str
    figures: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class Trial:
    """One small tile.

    Attributes:
        x: What the network is given, (1, C, *spatial).
        run: The network's result.
        agree: Compares the results of float32 and of low precision.
    """

    x: Tensor
    run: Callable[[Tensor], Tensor]
    agree: Callable[[Tensor, Tensor], Agreement]

    @property
    def pixels(self) -> int:
        """Pixels or voxels of the tile."""
        return self.x[0, 0].numel()


@dataclass(frozen=True)
class Verdict:
    """What `auto` came to.

    Attributes:
        precision: To compute in.
        why: The reason, as the end of a sentence.
        figures: What was measured; empty without a check.
    """

    precision: Literal["float32", "bf16"]
    why: str
    figures: Mapping[str, float] = field(default_factory=dict)

    @property
    def sentence(self) -> str:
        """For people."""
        return f"Computes in {self.precision}: {self.why}."

    @property
    def worth_telling(self) -> bool:
        """Whether something was measured, or is not as usual."""
        return bool(self.figures) or self.precision != "float32"


def settle(
    network: Network,
    *,
    work: int | None = None,
    cache: Path | None = None,
    clock: Clock | None = None,
) -> Verdict:
    """Decide between float32 and bf16 for a network that allows both, on the device where it is, and set it so.

    Args:
        network: In eval mode.
        work: Pixels or voxels that it will be run on; None where that is much or not known.
        cache: Folder of the cache; None for no memory.
        clock: Tells seconds; None for processor time on a CPU, which other work disturbs less, and elapsed time elsewhere.

    Returns:
        The verdict, which the network keeps as `precision_verdict`.

    Raises:
        RequestError: `HYBRID_AUTO_PRECISION` is neither float32 nor bf16.
    """
    verdict = _told() or _settled(network, work, cache, clock)
    network.precision, network.precision_verdict = verdict.precision, verdict
    return verdict


def verdict_facts(network: Network) -> dict[str, Any]:
    """For a record: the verdict and what was measured; empty where nothing was to be decided."""
    found = network.precision_verdict
    return {} if found is None else {"precision": found.precision, "why": found.why, **found.figures}


def _told() -> Verdict | None:
    told = os.environ.get(ENVIRONMENT, "").strip()
    for precision in _CHOICES:
        if told == precision:
            return Verdict(precision, f"{ENVIRONMENT} says so")
    if told:
        raise RequestError(f"{ENVIRONMENT} is {told!r}.", hint="Set it to float32 or bf16, or unset it.")
    return None


def _settled(network: Network, work: int | None, cache: Path | None, clock: Clock | None) -> Verdict:
    trial = network.trial()
    if trial is None:
        return Verdict("float32", "this kind of network has no check for less")
    if work is not None and work < LEAST_TILES * trial.pixels:
        return Verdict("float32", "a check of bf16 would take longer than it could save")
    key = _key(network, trial)
    file = None if cache is None or network.source is None else cache / FOLDER / f"{_digest(key)}.json"
    known = None if file is None else _read(file, key)
    if known is not None:
        return known
    verdict = measure(network, trial, clock or (time.process_time if trial.x.device.type == "cpu" else time.perf_counter))
    if file is not None:
        _keep(file, key, verdict)
    return verdict


@torch.inference_mode()
def measure(network: Network, trial: Trial, clock: Clock) -> Verdict:
    """Run the tile in float32 and in bf16. Where the results are not near, no time is taken."""

    def run(precision: str) -> Tensor:
        network.precision = precision
        return trial.run(trial.x).cpu()

    agreement = trial.agree(run("float32"), run("bf16"))  # which warms both up
    if not agreement.near:
        return Verdict("float32", f"in bf16 a tile comes out too different ({agreement.words})", dict(agreement.figures))
    best = {"float32": float("inf"), "bf16": float("inf")}
    started = clock()
    for _ in range(ROUNDS):
        for precision in best:
            before = clock()
            run(precision)
            best[precision] = min(best[precision], clock() - before)
        if clock() - started > PATIENCE:
            break
    figures = dict(agreement.figures) | {f"seconds_{name}": round(value, 5) for name, value in best.items()}
    ratio = best["float32"] / max(best["bf16"], 1e-9)
    if best["bf16"] > TRUE_GAIN * best["float32"]:
        took = f"a tile takes {best['bf16'] * 1e3:.0f} ms, in float32 {best['float32'] * 1e3:.0f} ms"
        return Verdict("float32", f"bf16 saves too little time here ({took})", figures)
    return Verdict("bf16", f"{ratio:.1f} times as fast here, and near float32 ({agreement.words})", figures)


def _key(network: Network, trial: Trial) -> dict[str, Any]:
    """All that a verdict depends on, as JSON values."""
    device = trial.x.device
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    source = network.source
    return {
        "format": FORMAT,
        "chip": chip,
        "device": device.type,
        "instruction_sets": list(instruction_sets()),
        "versions": versions(),
        "weights_sha256": source.sha256 if source else "",
        "card": repr(network.card),  # what options make of the same weights
        "tile": list(trial.x.shape),
        "bounds": [TRUE_GAIN],
    }


def _digest(key: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]


def _read(file: Path, key: Mapping[str, Any]) -> Verdict | None:
    """A kept verdict; None where there is none, or none that can be read."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        if kept["key"] != key:
            return None
        precision, why, figures = (kept["verdict"][name] for name in ("precision", "why", "figures"))
        numbers = {str(name): float(value) for name, value in figures.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return Verdict(precision, str(why), numbers) if precision in ("float32", "bf16") else None


def _keep(file: Path, key: Mapping[str, Any], verdict: Verdict) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_text(json.dumps({"key": key, "verdict": asdict(verdict)}, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        log.info("The verdict on precision could not be kept: %s.", error.strerror)
