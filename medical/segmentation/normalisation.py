"""What is done to the values and the grid of a scan before a network sees them.

Arrays are (C, i, j, k) in the protocol's orientation.
"""

from __future__ import annotations

import numpy as np

from medical.protocol import Intensity, Protocol, Window, ZScore
from medical.volumes.geometry import Grid, orthogonalised, resampled

FLOOR = 1e-8
"""Smallest standard deviation to divide by, for channels of one value."""


def normalise(values: np.ndarray, intensity: Intensity) -> np.ndarray:
    """Scale a scan's values as a protocol asks.

    Args:
        values: (C, i, j, k), any real type; not changed.
        intensity: `Protocol.intensity`.

    Returns:
        float32, the same shape. z-score: each channel by its own mean and population standard deviation.

    >>> normalise(np.array([[0, 0, 3, 5]]), ZScore(nonzero=True))
    array([[ 0.,  0., -1.,  1.]], dtype=float32)
    >>> normalise(np.array([[-2000, 0, 200]]), Window(low=-100, high=100))
    array([[0. , 0.5, 1. ]], dtype=float32)
    >>> from medical.protocol import Standardise
    >>> normalise(np.array([[-2000, 50, 200]]), Standardise(low=-100, high=150, mean=50, std=100))
    array([[-1.5,  0. ,  1. ]], dtype=float32)
    """
    out = np.empty(values.shape, np.float32)
    if isinstance(intensity, ZScore):
        for channel, scaled in zip(values, out, strict=True):
            _z_score(channel, intensity.nonzero, scaled)
    elif isinstance(intensity, Window):
        np.subtract(values, intensity.low, out=out, casting="same_kind")
        out /= intensity.high - intensity.low
        np.clip(out, 0, 1, out=out)
    else:
        np.clip(values, intensity.low, intensity.high, out=out, casting="same_kind")
        out -= intensity.mean
        out /= intensity.std
    return out


def _z_score(channel: np.ndarray, nonzero: bool, out: np.ndarray) -> None:
    counted = channel != 0 if nonzero else np.full((1,) * channel.ndim, True)
    mean = channel.mean(dtype=np.float64, where=counted) if counted.any() else 0.0
    np.subtract(channel, mean, out=out, casting="same_kind")  # in float64, piece by piece
    variance = np.square(out).mean(dtype=np.float64, where=counted) if counted.any() else 0.0
    out /= max(float(np.sqrt(variance)), FLOOR)
    if nonzero:
        out[~counted] = 0


def training_grid(grid: Grid, protocol: Protocol) -> Grid:
    """The grid of a turned scan at the spacing of the protocol; the same object where nothing is to be resampled."""
    straight = grid if grid.orthogonal else orthogonalised(grid)
    if protocol.spacing is None or np.allclose(straight.spacing[: protocol.spatial_dims], protocol.spacing, rtol=1e-3):
        return straight
    i, j, *k = protocol.spacing
    return resampled(straight, (i, j, k[0] if k else straight.spacing[2]))  # slices stay where they are
