"""Orthonormal Haar wavelets on channels-last grids of one, two or three dimensions (Haar 1910; Mallat, IEEE TPAMI 1989).

Along one axis the approximation is a[i] = (x[2i] + x[2i+1]) / sqrt 2 and the detail d[i] = (x[2i] - x[2i+1]) / sqrt 2.
Sub-bands are named by one letter for each axis that is halved, in the order of the axes: aa, ad, da, dd for two. They
lie outside the channels: all channels of the first band, then all channels of the second.
Axis letters: B batch, C channels, K sub-bands, 2 to the number of halved axes. Grids are (B, *spatial, C).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor


def haar(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """One level of the transform, with all its sub-bands.

    Args:
        x: (B, *spatial, C). A side that is odd is extended by its last value, as PyWavelets does (mode `symmetric`).
        axes: The spatial axes to halve, 0 the first; None for all.

    Returns:
        (B, *halved, K * C). Its first C channels are the approximation, which grows by sqrt 2 with each axis.

    >>> haar(torch.tensor([[[[1.0], [3.0]], [[5.0], [5.0]]]])).tolist()  # aa, ad, da, dd
    [[[[7.0, -1.0, -3.0, -1.0]]]]
    """
    axes = _spatial(x, axes)
    y = x.unsqueeze(-2)
    for axis in axes:
        if y.shape[axis] % 2:
            y = torch.cat([y, y.narrow(axis, y.shape[axis] - 1, 1)], axis)
        even, odd = y.unflatten(axis, (-1, 2)).unbind(axis + 1)
        # The newest letter is the fastest of the bands'.
        y = torch.stack([even + odd, even - odd], dim=-2).flatten(-3, -2)
    return (y * 2 ** (-len(axes) / 2)).flatten(-2)


def inverse_haar(bands: Tensor, axes: Sequence[int] | None = None, sides: Sequence[int] | None = None) -> Tensor:
    """The grid of which `haar` gave these sub-bands.

    Args:
        bands: (B, *halved, K * C).
        axes: The spatial axes that were halved, 0 the first; None for all.
        sides: Of the whole grid, where a halved one was odd; None for twice the halved ones.

    Returns:
        (B, *spatial, C).

    >>> inverse_haar(haar(torch.tensor([[[1.0], [2.0], [4.0]]])), sides=[3]).flatten().round().tolist()
    [1.0, 2.0, 4.0]
    """
    axes = _spatial(bands, axes)
    y = bands.unflatten(-1, (2 ** len(axes), -1))
    for axis in reversed(axes):
        approximation, detail = y.unflatten(-2, (-1, 2)).unbind(-2)
        pairs = torch.stack([approximation + detail, approximation - detail], dim=axis + 1)
        y = pairs.flatten(axis, axis + 1)
    y = (y * 2 ** (-len(axes) / 2)).squeeze(-2)
    whole: Tensor = y if sides is None else y[(slice(None), *map(slice, sides))]
    return whole


def mirrored_signs(axes: Sequence[int], mirrored: Sequence[int]) -> list[int]:
    """What the sub-bands of a mirrored grid are, in multiples of the mirrored sub-bands of the grid: 1 or -1 for each band.

    A detail changes its sign along an axis that is mirrored.

    >>> mirrored_signs(axes=[0, 1], mirrored=[1])
    [1, -1, 1, -1]
    """
    letters = [(1, -1) if axis in mirrored else (1, 1) for axis in axes]
    return [prod(band) for band in product(*letters)]


def _spatial(x: Tensor, axes: Sequence[int] | None) -> list[int]:
    """The tensor's axes in ascending order, so that bands are named in the order of the axes."""
    dims = x.ndim - 2
    chosen = sorted(range(dims) if axes is None else axes)
    if len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(dims)):
        raise ValueError(f"a grid of {dims} spatial axes cannot be halved along {chosen}")
    return [axis + 1 for axis in chosen]
