"""How much each of several overlapping tiles counts, along one axis. Tiles are given as (start, stop) in input pixels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

SIGMA = 0.125  # standard deviation of a window's Gaussian weights, in window sides

Span = tuple[int, int]


def blend_weights(spans: Sequence[Span], scale: int, exact: bool = False) -> list[NDArray[np.float64]]:
    """Weight of each output pixel of each tile along one axis; over the tiles that cover a pixel they sum to 1.

    Within an overlap of length L the weight of the later tile is 0 over the first quarter, rises linearly over the
    two central quarters and is 1 over the last; the earlier tile is its mirror image. With `exact` it steps from 0 to 1
    in the middle.

    >>> blend_weights([(0, 8), (4, 12)], scale=2)[1].tolist()
    [0.0, 0.0, 0.125, 0.375, 0.625, 0.875, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    weights = [np.ones((stop - start) * scale) for start, stop in spans]
    for before, after in pairwise(range(len(spans))):
        length = (spans[before][1] - spans[after][0]) * scale
        if length == 0:
            continue
        margin = length // 4
        steps = np.arange(length) - margin + 0.5
        rising = np.clip(steps / (length - 2 * margin), 0.0, 1.0) if not exact else np.arange(length) >= length // 2
        weights[before][-length:] *= 1.0 - rising
        weights[after][:length] *= rising
    total = np.zeros(spans[-1][1] * scale)  # is 1 except where three tiles meet on one axis
    for (start, stop), weight in zip(spans, weights, strict=True):
        total[start * scale : stop * scale] += weight
    return [w / total[start * scale : stop * scale] for (start, stop), w in zip(spans, weights, strict=True)]


def gaussian_weights(spans: Sequence[Span]) -> list[NDArray[np.float64]]:
    """Weight of each voxel of each window along one axis; over the windows that cover a voxel they sum to 1.

    A Gaussian around the window's centre, of standard deviation `SIGMA` window sides; the product over the axes is the
    weight of a voxel (Isensee et al., "nnU-Net", Nature Methods 2021). MONAI raises products below 0.001 to it.

    >>> [weight.round(3).tolist() for weight in gaussian_weights([(0, 4), (2, 6)])]
    [[1.0, 1.0, 0.982, 0.018], [0.018, 0.982, 1.0, 1.0]]
    """
    total = np.zeros(spans[-1][1])
    weights = []
    for start, stop in spans:
        offsets = (np.arange(start, stop) - (start + stop - 1) / 2) / (SIGMA * (stop - start))
        weights.append(np.exp(-(offsets**2) / 2))
        total[start:stop] += weights[-1]
    return [weight / total[start:stop] for (start, stop), weight in zip(spans, weights, strict=True)]


def supports(spans: Sequence[Span], scale: int, exact: bool) -> tuple[Span, ...]:
    """For each tile along one axis the output pixels (start, stop) where `blend_weights` gives it weight."""
    lengths = [(before[1] - after[0]) * scale for before, after in pairwise(spans)]
    left = [length // (2 if exact else 4) for length in lengths]
    right = [length - length // 2 if exact else length // 4 for length in lengths]
    return tuple(
        (start * scale + cut_left, stop * scale - cut_right)
        for (start, stop), cut_left, cut_right in zip(spans, [0, *left], [*right, 0], strict=True)
    )
