"""Weights between two checkpoints of one configuration: (1 - t) A + t B, tensor by tensor.

Between a network trained for fidelity and the same one trained further for looks lies a range of compromises.
Source: Wang et al., "ESRGAN", ECCV Workshops 2018, section 3.4, network interpolation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hybrid.errors import OutputError, RequestError, WeightsError
from hybrid.weights.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from hybrid.weights.containers import few


def interpolate_files(first: Path, second: Path, target: Path, share: float, *, overwrite: bool = False) -> None:
    """Write the weights between two checkpoint files; the header of the result says what it is.

    Args:
        first, second: Checkpoints whose tensors have the same names and shapes.
        target: A safetensors file.
        share: Of the second, 0 to 1: 0 gives the first.
        overwrite: Whether a file that is there may be replaced.

    Raises:
        RequestError: The share is not within 0 to 1, or the target is one of the files or no safetensors.
        WeightsError: A file cannot be read, or they are of two configurations.
        OutputError: The target is there already, or cannot be written.
    """
    if not (math.isfinite(share) and 0 <= share <= 1):
        raise RequestError(f"--weight {share:g} is not within 0 to 1.", hint="Give the second file's share, such as 0.3.")
    if target.suffix.lower() != ".safetensors":
        raise RequestError(f"{target} is not named as safetensors.", hint=f"Name it {target.stem}.safetensors.")
    if any(target.resolve() == source.resolve() for source in (first, second)):
        raise RequestError(
            f"The output {target} is one of the inputs.", hint="Inputs are never changed: choose another --output."
        )
    if target.exists() and not overwrite:
        raise OutputError(f"{target} is there already.", hint="Pass --overwrite or choose another --output.")
    a, b = read_checkpoint(first), read_checkpoint(second)
    state = interpolate(a.state, b.state, share, names=(first.name, second.name))
    write_checkpoint(target, state, _metadata(a, b, share))


def interpolate(
    first: Mapping[str, Tensor], second: Mapping[str, Tensor], share: float, *, names: tuple[str, str] = ("A", "B")
) -> dict[str, Tensor]:
    """(1 - share) first + share second, in the wider of the two types; what is no float must be equal.

    Raises:
        WeightsError: Names or shapes differ, or tables such as index tables do.
    """
    if odd := sorted(set(first) ^ set(second)):
        raise _differ(names, f"only one has {few(odd)}")
    if odd := [name for name in first if first[name].shape != second[name].shape]:
        raise _differ(names, f"the shapes of {few(odd)} differ")
    state = {}
    for name, a in first.items():
        b = second[name]
        if a.is_floating_point() and b.is_floating_point():
            mixed = torch.lerp(a.double(), b.double(), share)
            state[name] = mixed.to(torch.promote_types(a.dtype, b.dtype))
        elif torch.equal(a, b):
            state[name] = a
        else:
            raise _differ(names, f"their tables {name} differ")
    return state


def _differ(names: tuple[str, str], how: str) -> WeightsError:
    return WeightsError(
        f"{names[0]} and {names[1]} are not of one configuration: {how}.", hint="Give two trainings of the same network."
    )


def _metadata(a: Checkpoint, b: Checkpoint, share: float) -> dict[str, str]:
    return {
        "made_by": "restore models interpolate",
        "formula": f"{1 - share:g} x first + {share:g} x second",
        "weight": repr(share),
        "first": a.path.name,
        "first_sha256": a.sha256,
        "second": b.path.name,
        "second_sha256": b.sha256,
    }
