"""Instance norm on channels-last grids, fast on a CPU and exact for few voxels.

Axis letters: B batch, C channels, V voxels of one grid, r neighbouring voxels that are worked on as one row.
torch's own instance norm wants channels first, and its group norm takes the variance as a difference of large numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hybrid.blocks import exportable

EPSILON = 1e-5
CHUNK_VALUES = 2**17
"""Values that are worked on at a time on a CPU: a few such chunks stay in a core's own cache."""
ROW_VALUES = 2048
"""Values of a row: broadcasting the numbers of C channels over voxel after voxel would cost more than the arithmetic."""


@dataclass(frozen=True)
class Affine:
    """What brings each channel of each grid to mean 0 and variance 1: x * scale + offset; both (B, C) float32."""

    scale: Tensor
    offset: Tensor


def instance_norm(x: Tensor) -> Tensor:
    """(x - mean) / sqrt(variance + 1e-5) of each channel of each grid (B, *spatial, C), as a new tensor.

    The statistics are those of the grid itself, in training and after it (Ulyanov et al., arXiv 1607.08022).
    """
    if torch.compiler.is_exporting():
        return exportable.instance_norm(x, EPSILON)
    y: Tensor = _InstanceNorm.apply(x)  # type: ignore[no-untyped-call]
    return y


def moments(x: Tensor) -> Affine:
    """The statistics of (B, *spatial, C), as what the norm does with them."""
    mean, variance = mean_and_variance(x)
    scale = (variance + EPSILON).rsqrt()
    return Affine(scale, -mean * scale)


def mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel of each grid (B, *spatial, C), both (B, C): read once, chunk by chunk, then joined (Chan, Golub &
    LeVeque, 1979). No gradients pass."""
    channels, found = x.shape[-1], []
    for grid in x.detach():
        chunks = _rows(grid)
        means, squares = [], []
        for chunk in chunks:
            values = chunk.float()
            mean = _sum(values, channels) / (values.numel() // channels)
            means.append(mean)
            squares.append(_sum((values - _tiled(mean, values)).square_(), channels))
        share = torch.tensor([chunk.numel() for chunk in chunks], device=x.device)[:, None] / grid.numel()
        each, voxels = torch.stack(means), grid.numel() // channels
        mean = (each * share).sum(0)
        found.append((mean, torch.stack(squares).sum(0) / voxels + ((each - mean).square() * share).sum(0)))
    every_mean, every_variance = zip(*found, strict=True)
    return torch.stack(every_mean), torch.stack(every_variance)


def apply_affine(
    x: Tensor, affine: Affine, *, out: Tensor, plus: Tensor | None = None, activation: Callable[[Tensor], object] | None = None
) -> Tensor:
    """activation(x * scale + offset + plus) into `out`, which may be `x`. Not for gradients.

    Args:
        x: (B, *spatial, C) in contiguous memory.
        affine: Of each channel of each grid.
        out: Like `x`, perhaps of another type.
        plus: Like `x`; None for nothing.
        activation: Works in the place of what it is given, which is float32; None for none.
    """
    for b, grid in enumerate(x):
        rows, results = _rows(grid), _rows(out[b])
        scale, offset = _tiled(affine.scale[b], rows[0]), _tiled(affine.offset[b], rows[0])
        terms = [None] * len(rows) if plus is None else _rows(plus[b])
        for row, result, term in zip(rows, results, terms, strict=True):
            exact = result.dtype == row.dtype == torch.float32
            y = torch.addcmul(offset, row.float(), scale, out=result if exact else None)
            if term is not None:
                y += term
            if activation is not None:
                activation(y)
            if not exact:
                result.copy_(y)
    return out


class _InstanceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        affine = moments(x)
        ctx.save_for_backward(x, affine.scale, affine.offset)
        return apply_affine(x, affine, out=torch.empty_like(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """scale * (g - mean(g) - y * mean(g * y)), with y the output, as a sum of x, g and a constant."""
        x, scales, offsets = ctx.saved_tensors
        gradient, result, channels = gradient.contiguous(), torch.empty_like(x), x.shape[-1]
        for grid, of_grid, into, scale, offset in zip(x, gradient, result, scales, offsets, strict=True):
            rows, gradients, results = _rows(grid), _rows(of_grid), _rows(into)
            voxels, total, product = grid.numel() // channels, torch.zeros_like(scale), torch.zeros_like(scale)
            for row, g in zip(rows, gradients, strict=True):
                total += _sum(g.float(), channels)
                product += _sum(g.float() * row, channels)
            slant = -scale.square() * (product * scale + total * offset) / voxels
            constant = slant * offset / scale - scale * total / voxels
            wide_slant, wide_constant, wide_scale = (_tiled(v, rows[0]) for v in (slant, constant, scale))
            for row, g, to in zip(rows, gradients, results, strict=True):
                to.copy_(torch.addcmul(wide_constant, row.float(), wide_slant).addcmul_(g.float(), wide_scale))
        return result


def _rows(grid: Tensor) -> tuple[Tensor, ...]:
    """Views (n, r * C) of one grid (*spatial, C): chunks on a CPU, elsewhere the whole."""
    channels = grid.shape[-1]
    voxels = grid.numel() // channels
    r = gcd(voxels, 1 << max(0, (ROW_VALUES // channels).bit_length() - 1))
    rows = grid.view(voxels // r, r * channels)
    return rows.split(max(1, CHUNK_VALUES // (r * channels))) if grid.device.type == "cpu" else (rows,)


def _sum(rows: Tensor, channels: int) -> Tensor:
    """(n, r * C) to the sums (C,)."""
    return rows.sum(0).view(-1, channels).sum(0)


def _tiled(values: Tensor, rows: Tensor) -> Tensor:
    """(C,) to (r * C,)."""
    return values.repeat(rows.shape[1] // len(values))
