"""PSNR and SSIM by the protocol of the super-resolution papers.

Pictures are compared as stored: uint8, or float on the scale 0..255, ``(H, W)`` or ``(H, W, C)`` in RGB order.
Papers score the Y channel (BT.601 studio swing, 16..235, unrounded) after cutting `border` pixels from each side;
older MATLAB scripts round Y to integers first (`rgb_to_y` with ``rounded=True``) and come out 0.02 to 0.09 dB lower.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from hybrid.errors import RequestError
from restore.images.resize import round_to_uint8

Channel = Literal["y", "rgb"]

PEAK = 255.0
SSIM_WINDOW = 11
SSIM_SIGMA = 1.5

_Y_WEIGHTS = np.array([65.481, 128.553, 24.966]) / 255


def rgb_to_y(image: np.ndarray, *, rounded: bool = False) -> np.ndarray:
    """Luma of BT.601 in studio swing, 16 (black) to 235 (white).

    Args:
        image: ``(H, W, 3)`` RGB on the scale 0..255.
        rounded: Round to integers, as MATLAB's ``rgb2ycbcr`` does with uint8.

    Returns:
        ``(H, W)`` float64, or uint8 if `rounded`.

    Raises:
        RequestError: The picture has other axes, or no three channels.

    >>> rgb_to_y(np.full((1, 1, 3), 255, np.uint8), rounded=True)
    array([[235]], dtype=uint8)
    """
    if image.ndim != 3 or image.shape[2] != 3:
        raise RequestError(f"Y is made from (H, W, 3) RGB, not from {image.shape}.", hint="A grey picture needs no conversion.")
    luma = 16 + image.astype(np.float64) @ _Y_WEIGHTS
    return round_to_uint8(luma) if rounded else luma


def psnr(restored: np.ndarray, reference: np.ndarray, *, border: int = 0, channel: Channel = "y") -> float:
    """Peak signal-to-noise ratio in dB, infinite for equal pictures: 10 log10(255^2 / MSE).

    Args:
        restored: ``(H, W)`` or ``(H, W, 1 or 3)``, 0..255.
        reference: The same shape.
        border: Pixels to leave out on each side; the papers take the scale.
        channel: ``y`` scores luma (one channel is taken as it is), ``rgb`` all channels together.

    Raises:
        RequestError: Shapes differ, or nothing is left inside the border.
    """
    a, b = _planes(restored, reference, border, channel)
    error = float(np.mean((a - b) ** 2))
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def ssim(restored: np.ndarray, reference: np.ndarray, *, border: int = 0, channel: Channel = "y") -> float:
    """Structural similarity, at most 1; the mean over the channels.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004, with its
    11 x 11 Gaussian window (sigma 1.5), only where the window lies inside the picture.

    Args:
        restored: ``(H, W)`` or ``(H, W, 1 or 3)``, 0..255.
        reference: The same shape.
        border: Pixels to leave out on each side; the papers take the scale.
        channel: ``y`` scores luma (one channel is taken as it is), ``rgb`` the mean of the channels' values.

    Raises:
        RequestError: Shapes differ, or fewer than 11 x 11 pixels are left inside the border.
    """
    a, b = _planes(restored, reference, border, channel)
    if min(a.shape[:2]) < SSIM_WINDOW:
        raise RequestError(
            f"SSIM needs {SSIM_WINDOW} x {SSIM_WINDOW} pixels inside the border; {a.shape[1]} x {a.shape[0]} are left.",
            hint="Use larger pictures or a smaller border.",
        )
    return float(np.mean([_ssim_plane(a[..., k], b[..., k]) for k in range(a.shape[2])]))


def _ssim_plane(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    c1, c2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
    mean_a, mean_b = _window_mean(a), _window_mean(b)
    variances = _window_mean(a * a) - mean_a**2 + _window_mean(b * b) - mean_b**2
    covariance = _window_mean(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (variances + c2)
    return float(np.mean(luminance * structure))


def _window_mean(plane: NDArray[np.float64]) -> NDArray[np.float64]:
    """Gaussian mean over the window, one axis after the other, where the window lies inside the plane."""
    reach = SSIM_WINDOW // 2
    window = np.exp(-((np.arange(SSIM_WINDOW) - reach) ** 2) / (2 * SSIM_SIGMA**2))
    window /= window.sum()
    rows = correlate1d(plane, window, axis=0)[reach:-reach]
    means: NDArray[np.float64] = correlate1d(rows, window, axis=1)[:, reach:-reach]
    return means


def _planes(
    restored: np.ndarray, reference: np.ndarray, border: int, channel: Channel
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both pictures cropped and converted to ``(H, W, C)`` float64."""
    if restored.shape != reference.shape:
        raise RequestError(
            f"Cannot compare pictures of shapes {restored.shape} and {reference.shape}.",
            hint="Crop the reference to the size of the restored picture first.",
        )
    if restored.ndim not in (2, 3) or (restored.ndim == 3 and restored.shape[2] not in (1, 3)):
        raise RequestError(f"Cannot score an array of shape {restored.shape}.", hint="Give (H, W), (H, W, 1) or (H, W, 3).")
    if channel not in ("y", "rgb"):
        raise RequestError(f"Unknown channel {channel!r}.", hint="Choose y or rgb.")
    if border < 0 or min(restored.shape[:2]) <= 2 * border:
        raise RequestError(
            f"A border of {border} pixels leaves nothing of {restored.shape[1]} x {restored.shape[0]} pixels.",
            hint="Use larger pictures or a smaller border.",
        )
    return _plane(restored, border, channel), _plane(reference, border, channel)


def _plane(image: np.ndarray, border: int, channel: Channel) -> NDArray[np.float64]:
    inner = image[border : image.shape[0] - border, border : image.shape[1] - border]
    if channel == "y" and inner.ndim == 3 and inner.shape[2] == 3:
        inner = rgb_to_y(inner)
    return inner.reshape(*inner.shape[:2], -1).astype(np.float64)
