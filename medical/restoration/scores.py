"""How near a restored scan comes to the original: PSNR and SSIM over the whole volume.

Both take as the peak the level that strengths of noise refer to, the original's 99th percentile: maxima of MR are single
bright voxels, often several times as bright as all tissue, and would add so many dB to every figure.
"""

from __future__ import annotations

import math

import numpy as np

from medical.restoration.degradations import reference_level
from restore.evaluation import metrics


def psnr(restored: np.ndarray, original: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(P^2 / mean squared error), P the original's 99th percentile.

    Args:
        restored, original: (i, j, k) in the same units.

    >>> original = np.full((4, 4, 4), 10.0)
    >>> round(psnr(original + 1, original), 3)
    20.0
    """
    error = float(np.mean(np.square(restored.astype(np.float64) - original)))
    return math.inf if error == 0 else 10 * math.log10(reference_level(original, "p99") ** 2 / error)


def ssim(restored: np.ndarray, original: np.ndarray, axis: int = 2) -> float:
    """Structural similarity of Wang et al. (2004), the mean over the slices across an axis.

    Windows are those of `restore.evaluation.metrics.ssim`: 11 x 11, Gaussian, wholly inside the slice.

    Args:
        restored, original: (i, j, k) in the same units.
        axis: Across which slices lie.

    Raises:
        RequestError: Slices of less than 11 x 11 voxels.
    """
    scale = metrics.PEAK / reference_level(original, "p99")
    pairs = zip(*(np.moveaxis(each.astype(np.float64) * scale, axis, 0) for each in (restored, original)), strict=True)
    return float(np.mean([metrics.ssim(one, other) for one, other in pairs]))
