"""Bicubic resizing as MATLAB's ``imresize`` does it, on which the published super-resolution scores rest.

Axes: H height, W width, C channels. One axis of length n is resized by an m x n matrix of weights. At most a few
of its entries per row differ from zero, so it is kept sparse; the same matrices come again and again (training
crops, data sets) and are cached.

Source: Keys, "Cubic convolution interpolation for digital image processing", 1981, with a = -0.5; the antialiasing,
the edge rule and the rounding follow the behaviour of MATLAB's ``imresize``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from hybrid.errors import RequestError

Mode = Literal["double", "uint8", "uint8-legacy"]
MODES: tuple[Mode, ...] = ("double", "uint8", "uint8-legacy")

_KERNEL_SUPPORT = 4.0
_BLOCK_VALUES = 2**21  # float64 values that a pass holds at once: 16 MiB, whatever the size of the picture


def imresize(image: np.ndarray, scale: float, mode: Mode = "double", antialias: bool = True) -> np.ndarray:
    """Resize by one factor along both axes, height first.

    Args:
        image: ``(H, W)`` or ``(H, W, C)``. The two uint8 modes need uint8; ``double`` takes any real values.
        scale: Output pixels per input pixel. The output has ceil(H * scale) x ceil(W * scale) pixels.
        mode: ``double`` keeps float64 throughout and neither clips nor rounds (cubic kernels overshoot).
            ``uint8`` is today's MATLAB on a uint8 array: rounded (halves up) and clipped after each of the two
            passes, edges reflected. ``uint8-legacy`` is the same with the edge pixel repeated, as older releases did;
            only pixels near the border differ.
        antialias: Widen the kernel when shrinking.

    Returns:
        float64 in mode ``double``, else uint8; as many axes as the input.

    Raises:
        RequestError: An unknown mode, a scale that is not a positive number, a wrong type or shape.

    >>> imresize(np.full((8, 12, 3), 7, np.uint8), 1 / 4, "uint8").shape
    (2, 3, 3)
    >>> float(imresize(np.array([[0.0, 1.0]]), 2).max()) > 1
    True
    """
    _check(image, scale, mode)
    edge = "repeat" if mode == "uint8-legacy" else "reflect"
    for axis in (0, 1):
        weights = _weights(image.shape[axis], float(scale), antialias, edge)
        image = _resize_axis(image, weights, axis, to_uint8=mode != "double")
    return image


def downscale(image: NDArray[np.uint8], factor: int, mode: Mode = "uint8") -> np.ndarray:
    """The low-resolution image of the super-resolution protocol: ``imresize(image, 1 / factor)``.

    Args:
        image: ``(H, W)`` or ``(H, W, C)`` uint8; crop it first with `mod_crop`.
        factor: Input pixels per output pixel, an integer of at least 1.
        mode: See `imresize`.

    Raises:
        RequestError: The factor is no whole number, or the picture or mode is none that `imresize` takes.
    """
    if factor < 1 or factor != int(factor):
        raise RequestError(f"Cannot shrink by the factor {factor}.", hint="Give a whole number of at least 1.")
    return imresize(image, 1 / factor, mode)


def mod_crop(image: np.ndarray, multiple: int) -> np.ndarray:
    """Cut bottom and right so that height and width are multiples of `multiple`; a view of the input.

    Raises:
        RequestError: The picture is smaller than `multiple`.

    >>> mod_crop(np.zeros((9, 14, 3)), 4).shape
    (8, 12, 3)
    """
    height, width = (side - side % multiple for side in image.shape[:2])
    if not height or not width:
        raise RequestError(
            f"A picture of {image.shape[1]} x {image.shape[0]} pixels is smaller than the scale {multiple}.",
            hint="Leave it out, or choose a smaller scale.",
        )
    return image[:height, :width]


def round_to_uint8(values: np.ndarray) -> NDArray[np.uint8]:
    """Values of any shape to the nearest integer, halves up as MATLAB does (NumPy rounds them to even), clipped to 0..255."""
    return np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8)


def _check(image: np.ndarray, scale: float, mode: str) -> None:
    if mode not in MODES:
        raise RequestError(f"Unknown resize mode {mode!r}.", hint=f"Choose one of {', '.join(MODES)}.")
    if not (math.isfinite(scale) and scale > 0):
        raise RequestError(f"Cannot resize by {scale}.", hint="Give a positive number, such as 2 or 0.25.")
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise RequestError(f"Cannot resize an array of shape {image.shape}.", hint="Give (H, W) or (H, W, C), none of them 0.")
    if mode != "double" and image.dtype != np.uint8:
        raise RequestError(f"Resize mode {mode} needs uint8, not {image.dtype}.", hint="Use mode 'double' for other types.")
    if np.iscomplexobj(image):
        raise RequestError("Cannot resize complex values.", hint="Resize real and imaginary part apart.")


@lru_cache(maxsize=256)
def _weights(length: int, scale: float, antialias: bool, edge: str) -> csr_array:
    """The m x n matrix of one axis, m = ceil(n * scale); each row sums to 1."""
    shrink = scale if antialias and scale < 1 else 1.0
    support = _KERNEL_SUPPORT / shrink
    outputs = math.ceil(length * scale)
    # 0-based throughout: pixel i has its centre at i, and the two grids share their outer edges.
    centres = (np.arange(outputs) + 0.5) / scale - 0.5
    first = np.floor(centres - support / 2).astype(np.int64)
    taps = first[:, None] + np.arange(math.ceil(support) + 2)
    values = _cubic(shrink * (centres[:, None] - taps))
    values /= values.sum(axis=1, keepdims=True)

    used = values != 0
    rows = np.nonzero(used)[0]
    matrix = csr_array((values[used], (rows, _inside(taps[used], length, edge))), shape=(outputs, length))
    matrix.sum_duplicates()  # taps that fold back onto the same pixel
    return matrix


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -0.5."""
    t = np.abs(x)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t <= 1, near, np.where(t <= 2, far, 0.0))


def _inside(taps: NDArray[np.int64], length: int, edge: str) -> NDArray[np.int64]:
    """Fold taps beyond the picture back: reflected with the edge pixel twice, or clamped to the edge pixel."""
    if edge == "repeat":
        return np.clip(taps, 0, length - 1)
    folded = taps % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def _resize_axis(image: np.ndarray, weights: csr_array, axis: int, *, to_uint8: bool) -> np.ndarray:
    """One pass along `axis`, in blocks of columns so that only a block is float64 at a time."""
    moved = np.moveaxis(image, axis, 0)
    columns = moved.reshape(moved.shape[0], -1)
    outputs = weights.shape[0]
    result = np.empty((outputs, columns.shape[1]), np.uint8 if to_uint8 else np.float64)
    step = max(1, _BLOCK_VALUES // max(columns.shape[0], outputs))
    for start in range(0, columns.shape[1], step):
        block = weights @ columns[:, start : start + step].astype(np.float64)
        result[:, start : start + step] = round_to_uint8(block) if to_uint8 else block
    return np.ascontiguousarray(np.moveaxis(result.reshape(outputs, *moved.shape[1:]), 0, axis))
