"""Brings a result onto its reference before it is scored, as RealBlur asks, whose two cameras do not see quite the same.

J. Rim et al., "Real-world blur dataset for learning and benchmarking deblurring algorithms", ECCV 2020; the alignment is
G. Evangelidis and E. Psarakis, "Parametric image alignment using enhanced correlation coefficient maximization", TPAMI 2008,
of OpenCV. Values are 0..255.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import OutputError, ResourceError
from restore.evaluation.metrics import PEAK, SSIM_WINDOW
from restore.evaluation.metrics_restoration import similarity_map

ITERATIONS = 100
SMOOTHING = 5
"""Pixels of the Gaussian filter in front of the correlation."""


def align(restored: np.ndarray, reference: np.ndarray) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Scale a result's brightness to the reference by least squares, and warp it onto it by a homography.

    Args:
        restored: ``(H, W, 3)``, 0..255.
        reference: The same shape.

    Returns:
        Result and reference ``(H, W, 3)``, 0..255, both 0 where the warped result does not reach, and the mask ``(H, W)`` of
        0 and 1.

    Raises:
        ResourceError: OpenCV is not installed.
        OutputError: The two have too little in common.
    """
    cv2 = require_opencv("RealBlur")
    z, x = (np.asarray(each, np.float32) / np.float32(255) for each in (restored, reference))
    energy = float((z * z).sum())
    z = z * np.float32(float((x * z).sum()) / energy if energy else 1.0)
    stop = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 0)
    grays = [cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (x, z)]
    start = np.eye(3, dtype=np.float32)
    try:
        _, matrix = cv2.findTransformECC(*grays, start, cv2.MOTION_HOMOGRAPHY, stop, None, SMOOTHING)
    except cv2.error as error:
        raise OutputError("The result has too little in common with the reference to be aligned.") from error
    size = x.shape[1], x.shape[0]
    cubic = cv2.INTER_CUBIC + cv2.WARP_INVERSE_MAP
    warped = cv2.warpPerspective(z, matrix, size, flags=cubic, borderMode=cv2.BORDER_REFLECT)
    whole = np.ones(x.shape[:2], np.float32)
    nearest = cv2.INTER_NEAREST + cv2.WARP_INVERSE_MAP
    mask = cv2.warpPerspective(whole, matrix, size, flags=nearest, borderMode=cv2.BORDER_CONSTANT, borderValue=0)
    return warped * mask[..., None] * 255, x * mask[..., None] * 255, mask


def masked_scores(restored: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """PSNR and SSIM where the mask is 1; SSIM of each channel, half a window from the edges away.

    Args:
        restored, reference: ``(H, W, 3)``, 0..255, from `align`.
        mask: ``(H, W)`` of 0 and 1.
    """
    a, b = (each.astype(np.float64) for each in (restored, reference))
    error = float(((a - b) ** 2).sum() / (mask.sum() * a.shape[2]))
    reach = SSIM_WINDOW // 2
    inner = np.s_[reach:-reach, reach:-reach]
    likeness = float((similarity_map(a, b, (0, 1))[inner] * mask[inner][..., None]).sum() / (mask[inner].sum() * a.shape[2]))
    return (math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)), likeness


def require_opencv(what: str) -> Any:
    """OpenCV, which the package does not bring.

    Raises:
        ResourceError: It is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ResourceError(
            f"The protocol of {what} aligns results with OpenCV.", hint="Install it: pip install opencv-python-headless"
        ) from error
    return cv2
