"""Frontal faces by the cascade that comes with scikit-image: boxes alone, and nothing to load.

Ahonen, Hadid, Pietikäinen, "Face description with local binary patterns", TPAMI 2006, gives the features; Viola and Jones,
CVPR 2001, the cascade.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from restore.images.interpolation import resize

LONGEST = 640
"""Side to which a larger picture is brought before."""
LEAST = 24
"""Edge in pixels of the smallest faces, which is what the cascade was trained on."""


def find_by_cascade(picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """Boxes x0, y0, x1, y1 and a score of 1 as (N, 5), the largest first; the picture's corner is at 0, 0.

    Args:
        picture: (H, W, 3) float32 RGB in [0, 1].
    """
    from skimage.data import lbp_frontal_face_cascade_filename
    from skimage.feature import Cascade

    height, width = picture.shape[:2]
    ratio = max(1.0, max(height, width) / LONGEST)
    small = resize(picture, (max(1, round(height / ratio)), max(1, round(width / ratio))), "bilinear", antialias=True)
    if min(small.shape[:2]) < LEAST:
        return np.empty((0, 5))
    found = Cascade(lbp_frontal_face_cascade_filename()).detect_multi_scale(
        img=np.clip(small, 0, 1).astype(np.float64),
        scale_factor=1.15,
        step_ratio=1,
        min_size=(LEAST, LEAST),
        max_size=(min(small.shape[:2]),) * 2,
    )
    rows = [(box["c"], box["r"], box["c"] + box["width"], box["r"] + box["height"], 1 / ratio) for box in found]
    boxes = np.asarray(rows, np.float64).reshape(-1, 5) * ratio
    ordered: NDArray[np.float64] = boxes[np.argsort(-(boxes[:, 2] - boxes[:, 0]), kind="stable")]
    return ordered
