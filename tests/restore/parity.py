"""Recorded cases of published networks: what a checkpoint with given keys and shapes makes of a given input.

A case is a folder with `case.json` (the keys, shapes and kinds of the published state dict, and how it was run) and
`case.npz` (input and outputs). The weights are not stored: each tensor is drawn from a generator that is seeded by
its key, by the recipe that came with the cases.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

SMALL_CASES = Path(__file__).resolve().parent.parent / "data" / "parity"
"""The cases that are kept in the repository: `<system>/<case>`."""


@dataclass(frozen=True)
class Case:
    """One recorded run.

    Attributes:
        system: Name of the network. name: Name of the case.
        given: Options that a checkpoint cannot tell, for `load_model`.
        seed: Seed of the weights. entries: Key, shape and kind of each entry of the published state dict.
        parameters: How many numbers the network learns.
        tolerance: Largest allowed difference that the case states.
        thinned: Only every n-th value along some axes of the outputs is recorded.
        input, outputs: float32 arrays.
    """

    system: str
    name: str
    given: dict[str, Any]
    seed: int
    entries: tuple[dict[str, Any], ...]
    parameters: int
    tolerance: float
    thinned: bool
    input: np.ndarray
    outputs: tuple[np.ndarray, ...]

    def __str__(self) -> str:
        return f"{self.system}-{self.name}"


def load_case(folder: Path) -> Case:
    """Read a case; its outputs come in the order of their numbers."""
    facts = json.loads((folder / "case.json").read_text(encoding="utf-8"))
    with np.load(folder / "case.npz") as arrays:
        names = sorted((n for n in arrays.files if n.startswith("output")), key=lambda n: (len(n), n))
        given, outputs = arrays["input"], tuple(arrays[n] for n in names)
    return Case(
        system=facts["system"],
        name=facts["case"],
        given=facts.get("given", {}),
        seed=facts["seed"],
        entries=tuple(facts["state"]),
        parameters=facts["parameters"],
        tolerance=facts["tolerance"],
        thinned="::" in facts["forward"],
        input=given,
        outputs=outputs,
    )


def fill(case: Case) -> dict[str, Tensor]:
    """The weights under their published keys; entries that the network derives itself are left out."""
    state = {e["key"]: draw(e["key"], e["shape"], case.seed) for e in case.entries if e["kind"] == "float"}
    copies = {e["key"]: state[e["alias_of"]] for e in case.entries if e.get("alias_of") in state}
    return state | copies


def draw(key: str, shape: list[int], seed: int) -> Tensor:
    """Normal noise, scaled so that activations stay near one."""
    digest = hashlib.sha256(f"{seed}/{key}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8], "little")))
    noise = generator.standard_normal(tuple(shape))
    last = key.split(".")[-1]
    if last == "running_var":
        values = np.abs(noise) + 0.5
    elif len(shape) == 1 and last == "weight":
        values = 1 + 0.1 * noise
    elif len(shape) <= 1 or last == "running_mean":
        values = 0.1 * noise
    else:
        values = noise / sqrt(max(1, prod(shape[1:])))
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def write_checkpoint(case: Case, folder: Path) -> Path:
    """A checkpoint file as publishers write it, with the weights under `params_ema`."""
    path = folder / f"{case}.pth"
    torch.save({"params_ema": fill(case)}, path)
    return path


def largest_difference(outputs: Tensor | list[Tensor] | tuple[Tensor, ...], case: Case) -> float:
    """Of all recorded outputs. The shapes must agree."""
    found = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    worst = 0.0
    for output, recorded in zip(found, case.outputs, strict=True):
        if case.thinned:
            output = output[tuple(slice(None, None, -(-n // m)) for n, m in zip(output.shape, recorded.shape, strict=True))]
        assert output.shape == recorded.shape, (tuple(output.shape), recorded.shape)
        worst = max(worst, float(np.abs(output.float().numpy() - recorded).max()))
    return worst
