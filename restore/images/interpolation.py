"""Resizing to any size by area, bilinear and bicubic interpolation, as image programs do it.

`restore.images.resize` is the bicubic of the benchmark protocol; this is the rest of what happens to pictures on their way.
One axis of length n becomes one of length m by a sparse m x n matrix; both grids share their outer edges, and the edge
pixel is repeated beyond the picture.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Method = Literal["area", "bilinear", "bicubic"]
METHODS: tuple[Method, ...] = ("area", "bilinear", "bicubic")


def resize(image: NDArray[np.float32], size: tuple[int, int], method: Method, antialias: bool = False) -> NDArray[np.float32]:
    """Resize (H, W, C) float32 to `size`, rows and columns; bicubic overshoots, and nothing is clipped.

    Args:
        image: (H, W, C) float32.
        size: Height and width of the result, each at least 1.
        method: ``area`` takes the mean of all pixels that an output pixel touches. ``bilinear`` and ``bicubic`` are
            the triangle and Keys' cubic.
        antialias: Widen these two kernels when shrinking, as MATLAB and Pillow do; the cubic then has MATLAB's a = -0.5.
            Without it they read the nearest two or four pixels however far the picture shrinks, so that fine texture
            aliases, and the cubic has a = -0.75: OpenCV's and torch's habit, and that of the real-world recipes.

    >>> resize(np.arange(4, dtype=np.float32).reshape(1, 4, 1), (1, 2), "area").ravel().tolist()
    [0.5, 2.5]
    """
    height, width, channels = image.shape
    rows = resize_matrix(height, size[0], method, antialias) @ image.reshape(height, width * channels)
    turned = rows.reshape(size[0], width, channels).transpose(1, 0, 2).reshape(width, -1)
    columns = resize_matrix(width, size[1], method, antialias) @ turned
    return np.ascontiguousarray(columns.reshape(size[1], size[0], channels).transpose(1, 0, 2))


@lru_cache(maxsize=256)
def resize_matrix(length: int, outputs: int, method: Method, antialias: bool) -> csr_array:
    """The (outputs, length) matrix of one axis, float32, with sorted indices; each row sums to 1."""
    taps, values = _area(length, outputs) if method == "area" else _interpolation(length, outputs, method, antialias)
    values = values / values.sum(axis=1, keepdims=True)
    used = values != 0
    places = np.nonzero(used)[0], np.clip(taps[used], 0, length - 1)
    matrix = csr_array((values[used].astype(np.float32), places), shape=(outputs, length))
    matrix.sum_duplicates()  # taps beyond the edge, that fall on the edge pixel
    return matrix


def _area(length: int, outputs: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    k = np.arange(outputs)
    first, end = k * length // outputs, -(-(k + 1) * length // outputs)
    taps = first[:, None] + np.arange((end - first).max())
    return taps, (taps < end[:, None]).astype(np.float64)


def _interpolation(length: int, outputs: int, method: Method, antialias: bool) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    ratio = length / outputs
    stretch = max(1.0, ratio) if antialias else 1.0
    radius = stretch * (1 if method == "bilinear" else 2)
    centres = (np.arange(outputs) + 0.5) * ratio - 0.5
    first = np.floor(centres - radius).astype(np.int64) + 1
    taps = first[:, None] + np.arange(math.ceil(2 * radius))
    t = np.abs(centres[:, None] - taps) / stretch
    if method == "bilinear":
        return taps, np.clip(1 - t, 0, None)
    return taps, _cubic(t, -0.5 if antialias else -0.75)


def _cubic(t: NDArray[np.float64], a: float) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel of the distance t >= 0 (Keys 1981, with his a = -1/2 left open)."""
    near = ((a + 2) * t - (a + 3)) * t * t + 1
    far = a * (((t - 5) * t + 8) * t - 4)
    return np.where(t <= 1, near, np.where(t <= 2, far, 0.0))
