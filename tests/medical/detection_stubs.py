"""Lesions and maps of confidences on one small grid."""

from __future__ import annotations

import numpy as np

from medical.volumes.geometry import Grid

GRID = Grid((20, 20, 10), np.diag([0.5, 0.5, 3.0, 1.0]))
BOX = tuple[slice, slice, slice]


def box(i: int, j: int, k: int, *size: int) -> BOX:
    """Voxels from a corner on; 2 x 2 x 2 of them where no size is given."""
    di, dj, dk = size or (2, 2, 2)
    return slice(i, i + di), slice(j, j + dj), slice(k, k + dk)


def mask(*boxes: BOX) -> np.ndarray:
    found = np.zeros(GRID.shape, bool)
    for each in boxes:
        found[each] = True
    return found


def confidences(*parts: tuple[BOX, float]) -> np.ndarray:
    values = np.zeros(GRID.shape, np.float32)
    for where, value in parts:
        values[where] = value
    return values
