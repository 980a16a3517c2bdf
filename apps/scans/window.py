"""Window and level: which values of a scan are drawn black and which white."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SAMPLES = 1 << 20
"""Voxels that a window is chosen from; a scan has far more, and its percentiles do not need them."""


@dataclass(frozen=True)
class Window:
    """A range of values, drawn from black to white.

    Attributes:
        name: What people call it.
        low, high: Values of the scan, in its own unit; ``low < high``.
    """

    name: str
    low: float
    high: float

    @property
    def level(self) -> float:
        """Its middle."""
        return (self.low + self.high) / 2

    @property
    def width(self) -> float:
        """Its extent."""
        return self.high - self.low


def _centred(name: str, level: float, width: float) -> Window:
    return Window(name, level - width / 2, level + width / 2)


CT_WINDOWS = (
    _centred("soft tissue", 40, 400),
    _centred("lung", -600, 1500),
    _centred("bone", 400, 1800),
    _centred("brain", 40, 80),
    _centred("liver", 60, 160),
    _centred("vessels", 300, 600),
)
"""In Hounsfield units, as radiology departments set them."""


def windows_of(values: np.ndarray, *, modality: str = "") -> tuple[Window, ...]:
    """The windows that a scan can be seen in, the first one to begin with.

    CT has presets, and then its own percentiles; anything else the percentiles 1 and 99, 5 and 95, and the full range.

    Args:
        values: (i, j, k).
        modality: Such as ``CT`` or ``MR``; where it is not known, values below -500 in the air tell a CT.
    """
    found = _sample(values)
    least, dark, low, high, most = (float(value) for value in np.percentile(found, (0, 0.5, 1, 99, 100)))
    automatic = _apart("automatic (1 to 99 %)", low, high, least, most)
    full = _apart("full range", least, most, least, most)
    if modality == "CT" or (not modality and dark <= -500 and least >= -5000 and most <= 35000):
        return (*CT_WINDOWS, automatic, full)
    fifth, last = (float(value) for value in np.percentile(found, (5, 95)))
    return automatic, _apart("strong contrast (percentiles 5 and 95)", fifth, last, least, most), full


def to_gray(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Values as uint8: black up to `low`, white from `high` on.

    >>> to_gray(np.array([-10, 0, 50, 100, 500]), 0, 100).tolist()
    [0, 0, 128, 255, 255]
    """
    scale = 255 / max(high - low, 1e-12)
    gray = (values.astype(np.float32) - np.float32(low)) * np.float32(scale) + np.float32(0.5)
    shown: np.ndarray = np.clip(gray, 0, 255).astype(np.uint8)
    return shown


def _sample(values: np.ndarray) -> np.ndarray:
    """Voxels spread evenly over the scan: whole ones, since no percentile of means is one of voxels."""
    step = max(1, int(np.ceil((values.size / SAMPLES) ** (1 / 3))))
    return values[::step, ::step, ::step].ravel()


def _apart(name: str, low: float, high: float, least: float, most: float) -> Window:
    """A window of some width, also where most of a scan is one value."""
    if not low < high:
        low, high = least, most
    return Window(name, low, high if low < high else low + 1)
