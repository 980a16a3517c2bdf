"""Weights in a byte each: every row of a matrix or kernel as int8, with a scale of its own.

A row is what makes one output channel. Its largest value becomes 127, so that rounding moves no value by more than 1/254 of
it. Half the size of float16, at a price that has to be measured for each network: segmentation hardly feels it, pictures
of 8 bits and more do. B. Jacob et al., "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference", CVPR 2018, with symmetric ranges by channel. Networks still compute in floating point.

    python -m hybrid.weights.packing large.safetensors small.safetensors
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

MARK = ("packing", "int8 rows")
"""The entry in the header of a safetensors file that says so."""
SCALE = "#scale"
"""Put behind a tensor's name for its scales."""
LEAST = 4096
"""Tensors of fewer values, such as norms and biases, stay as they are: they weigh nothing and count much."""


def pack_rows(state: Mapping[str, Tensor], least: int = LEAST) -> dict[str, Tensor]:
    """Large floating-point tensors (rows, ...) as int8 of the same shape, each with float32 scales (rows,) beside it.

    >>> packed = pack_rows({"w": torch.tensor([[32.0, -63.5], [0.0, 0.0]]), "b": torch.ones(2)}, least=4)
    >>> packed["w"].tolist(), packed["w#scale"].tolist()
    ([[64, -127], [0, 0]], [0.5, 1.0])
    """
    packed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or tensor.ndim < 2 or tensor.numel() < least:
            packed[name] = tensor
            continue
        rows = tensor.detach().float().flatten(1)
        scale = rows.abs().amax(1) / 127
        scale[scale == 0] = 1
        packed[name] = (rows / scale[:, None]).round().to(torch.int8).view(tensor.shape)
        packed[name + SCALE] = scale
    return packed


def unpack_rows(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors that `pack_rows` was given, float32, within half a scale. Tensors without scales stay as they are.

    Raises:
        ValueError: Scales that do not fit their tensor.
    """
    state = {}
    for name, tensor in packed.items():
        if name.endswith(SCALE):
            continue
        scale = packed.get(name + SCALE)
        if scale is not None and scale.shape != tensor.shape[:1]:
            raise ValueError(f"the scales of {name} are {tuple(scale.shape)}, for a tensor of {tuple(tensor.shape)}")
        state[name] = tensor if scale is None else tensor * scale.view(-1, *[1] * (tensor.ndim - 1))
    return state


def is_packed(metadata: Mapping[str, str]) -> bool:
    """Whether the header of a file says that its tensors are packed."""
    key, packing = MARK
    return metadata.get(key) == packing


def _main(source: str, target: str) -> None:
    from hybrid.weights.containers import read_container, write_checkpoint

    state, metadata = read_container(Path(source))
    assert isinstance(state, dict)
    write_checkpoint(target, pack_rows(state), metadata | dict([MARK]))


if __name__ == "__main__":
    _main(*sys.argv[1:])
