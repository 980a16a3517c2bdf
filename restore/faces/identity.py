"""How far a restored face is from the one before: two measures that need no weights, and ArcFace's where its weights are here.

Those two do not recognise a person. `structure` is the angle between histograms of gradient directions (Dalal and Triggs, CVPR
2005) of the inner face: 0 where edges run the same way in the same places, 90 where they have nothing in common; sharpening moves
it little, another nose or another gaze more. `landmarks` is how far eyes, nose and mouth corners moved, as the detector
sees them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import WeightsError
from restore.faces.alignment import template
from restore.faces.detection import landmarks_in
from restore.faces.metrics import arcface_distance
from restore.images import from_unit
from restore.images.interpolation import resize

MEASURE = (
    "structure: angle in degrees between histograms of gradient directions of the inner face before and after, 0 to 90. "
    "landmarks: mean shift of five landmarks in percent of the distance of the eyes. Neither recognises a person. "
    "arcface: angle in degrees between features of a network for recognition, where its weights are here."
)
"""The measures in words, for records."""
INVENTED = "Details of restored faces are invented: they are plausible, not evidence of what a person looked like."
"""What every result is told with."""
SIDE = 128
INNER = slice(SIDE // 5, SIDE - SIDE // 8), slice(SIDE // 5, SIDE - SIDE // 5)
"""Rows and columns of the inner face, from brows to chin, at that side."""


@dataclass(frozen=True)
class Distance:
    """How far two aligned faces are from one another.

    Attributes:
        structure: Degrees, 0 to 90.
        landmarks: Per cent of the distance of the eyes; None where the detector does not see both.
        arcface: Degrees; None without the weights `arcface-resnet18`.
    """

    structure: float
    landmarks: float | None
    arcface: float | None = None

    def to_dict(self) -> Mapping[str, float | None]:
        """Rounded, for records."""
        values = {"structure": self.structure, "landmarks": self.landmarks, "arcface": self.arcface}
        return {name: None if value is None else round(value, 1) for name, value in values.items()}

    def __str__(self) -> str:
        parts = [f"structure {self.structure:.0f}°"]
        parts += [] if self.landmarks is None else [f"landmarks {self.landmarks:.1f} %"]
        return ", ".join(parts + ([] if self.arcface is None else [f"ArcFace {self.arcface:.0f}°"]))


def identity_distance(before: NDArray[np.float32], after: NDArray[np.float32], device: str = "cpu") -> Distance:
    """The distance of two aligned faces (S, S, 3) float32 in [0, 1]."""
    first, second = (_descriptor(each) for each in (before, after))
    lengths = float(np.linalg.norm(first) * np.linalg.norm(second))
    cosine = float(first @ second) / lengths if lengths > 0 else 1.0
    structure = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return Distance(structure, _moved(before, after, device), _recognised(before, after, device))


def _descriptor(face: NDArray[np.float32]) -> NDArray[np.float64]:
    from skimage.feature import hog

    small = resize(np.clip(face, 0, 1), (SIDE, SIDE), "bilinear", antialias=True).mean(axis=2)
    return np.asarray(hog(small[INNER].astype(np.float64), orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2)))


def _moved(before: NDArray[np.float32], after: NDArray[np.float32], device: str) -> float | None:
    size = len(before)
    box = (0.24 * size, 0.19 * size, 0.76 * size, 0.91 * size)  # where a face lies once it is aligned
    found = [landmarks_in(np.clip(each, 0, 1), box, device) for each in (before, after)]
    points = [face.landmarks for face in found if face is not None and face.landmarks is not None]
    if len(points) < 2:
        return None
    eyes = np.linalg.norm(template(size)[1] - template(size)[0])
    return float(np.linalg.norm(points[1] - points[0], axis=1).mean() / eyes * 100)


def _recognised(before: NDArray[np.float32], after: NDArray[np.float32], device: str) -> float | None:
    try:
        return float(np.degrees(arcface_distance(from_unit(before, "uint8"), from_unit(after, "uint8"), device)))
    except WeightsError:
        return None
