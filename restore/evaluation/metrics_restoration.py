"""Scores that restoration papers use beside PSNR and SSIM: SSIM with colour as a third axis, and PSNR-B, which sees blocks.

Pictures as in `restore.evaluation.metrics`: uint8, or float on the scale 0..255, ``(H, W)`` or ``(H, W, C)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from hybrid.errors import RequestError
from restore.evaluation.metrics import PEAK, SSIM_SIGMA, SSIM_WINDOW

BLOCK = 8
"""Pixels along each side of a JPEG block."""


def ssim_3d(restored: np.ndarray, reference: np.ndarray, *, border: int = 0) -> float:
    """SSIM over the volume of rows, columns and colours, as MATLAB's ``ssim`` treats an RGB array and as NAFNet's code does.

    The Gaussian window is 11 x 11 x 11 with sigma 1.5, edges are repeated, and the mean is over all positions. With three
    colours it reads higher than the usual SSIM of each (GoPro: 0.967 against 0.948), so the two must not be compared.

    Args:
        restored: ``(H, W, C)``, 0..255.
        reference: The same shape.
        border: Pixels to leave out on each side, before the windows.

    Raises:
        RequestError: Shapes differ or are no colour pictures, or nothing is left inside the border.
    """
    if restored.shape != reference.shape or restored.ndim != 3:
        raise RequestError(
            f"SSIM over colours compares (H, W, C) arrays of one shape, not {restored.shape} and {reference.shape}.",
            hint="Crop the reference to the size of the restored picture first.",
        )
    if border < 0 or min(restored.shape[:2]) <= 2 * border:
        raise RequestError(f"A border of {border} pixels leaves nothing of {restored.shape}.", hint="Use a smaller border.")
    inner = np.s_[border : restored.shape[0] - border, border : restored.shape[1] - border]
    a, b = restored[inner].astype(np.float64), reference[inner].astype(np.float64)
    return float(np.mean(similarity_map(a, b)))


def similarity_map(a: NDArray[np.float64], b: NDArray[np.float64], axes: Sequence[int] = (0, 1, 2)) -> NDArray[np.float64]:
    """SSIM at every place of two arrays of one shape, 0..255: the Gaussian window runs along `axes`, edges are repeated."""
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_a, mean_b = _smoothed(a, axes), _smoothed(b, axes)
    variances = _smoothed(a * a, axes) - mean_a**2 + _smoothed(b * b, axes) - mean_b**2
    covariance = _smoothed(a * b, axes) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def psnr_b(restored: np.ndarray, reference: np.ndarray) -> float:
    """PSNR-B in dB: the mean squared error is raised by the blocking effect factor of the restored picture.

    The factor is log2(8) / log2(min(H, W)) times what the mean squared step across borders of 8 x 8 blocks has above that
    between other neighbours, and 0 where it has nothing above. Of colour pictures both the error and the factor are means over
    the channels, so that PSNR-B is never above PSNR in RGB. A block begins in the upper left corner. Steps that the reference
    itself has there count too.

    Source: C. Yim and A. C. Bovik, "Quality assessment of deblocked images", IEEE TIP 20(1), 2011, equations 7 to 14.

    Args:
        restored: ``(H, W)`` or ``(H, W, C)``, 0..255.
        reference: The same shape.

    Raises:
        RequestError: Shapes differ, or the picture has no border of blocks.
    """
    if restored.shape != reference.shape or restored.ndim not in (2, 3) or min(restored.shape[:2]) <= BLOCK:
        raise RequestError(
            f"PSNR-B compares pictures of one shape, larger than a block of {BLOCK} x {BLOCK}, not "
            f"{restored.shape} and {reference.shape}.",
            hint="Crop the reference to the size of the restored picture first.",
        )
    a, b = (each.reshape(*each.shape[:2], -1).astype(np.float64) for each in (restored, reference))
    factor = float(np.mean([_blocking(a[..., k]) for k in range(a.shape[2])]))
    error = float(np.mean((a - b) ** 2)) + factor
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def _blocking(plane: NDArray[np.float64]) -> float:
    """The blocking effect factor of one channel."""
    across, other = [], []
    for turned in (plane, plane.T):
        steps = np.diff(turned, axis=1) ** 2
        at_border = np.arange(1, turned.shape[1]) % BLOCK == 0
        across.append(steps[:, at_border])
        other.append(steps[:, ~at_border])
    border, inside = (np.concatenate([each.ravel() for each in steps]).mean() for steps in (across, other))
    return math.log2(BLOCK) / math.log2(min(plane.shape)) * max(0.0, float(border - inside))


def _smoothed(values: NDArray[np.float64], axes: Sequence[int]) -> NDArray[np.float64]:
    reach = SSIM_WINDOW // 2
    window = np.exp(-((np.arange(SSIM_WINDOW) - reach) ** 2) / (2 * SSIM_SIGMA**2))
    window /= window.sum()
    for axis in axes:
        values = correlate1d(values, window, axis=axis, mode="nearest")
    return values
