"""Between stored values and [0, 1], and what to put below transparent pixels."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_FULL = {"uint8": 255, "uint16": 65535}


def to_unit(array: np.ndarray) -> np.ndarray:
    """Stored values of any shape to float32: integers from their whole range to [0, 1], floats untouched.

    >>> to_unit(np.array([0, 51, 255], dtype=np.uint8)).tolist()
    [0.0, 0.20000000298023224, 1.0]
    """
    values = array.astype(np.float32)
    full = _FULL.get(array.dtype.name)
    return values if full is None else values / np.float32(full)


def from_unit(array: np.ndarray, dtype: str | np.dtype) -> np.ndarray:
    """Finite float values to a stored type: integers clipped to [0, 1] and rounded half up, float32 untouched.

    Args:
        array: Floats, nominally in [0, 1], of any shape.
        dtype: "uint8", "uint16" or "float32".

    >>> from_unit(np.array([-1.0, 0.5, 2.0]), "uint8").tolist()
    [0, 128, 255]
    """
    name = np.dtype(dtype).name
    full = _FULL.get(name)
    if full is None:
        return array.astype(np.float32)
    values: np.ndarray = np.floor(np.clip(array, 0, 1) * array.dtype.type(full) + array.dtype.type(0.5)).astype(name)
    return values


def fill_transparent(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colour in which each fully transparent pixel takes the colour of the nearest pixel that shows.

    What lies below full transparency is arbitrary (often black); a network would smear it into the visible edge.

    Args:
        colour: (H, W, C) of any dtype.
        alpha: (H, W), 0 where fully transparent.

    Returns:
        (H, W, C), the input itself if no pixel is transparent or none shows.
    """
    hidden = alpha == 0
    if not hidden.any() or hidden.all():
        return colour
    nearest = ndimage.distance_transform_edt(hidden, return_distances=False, return_indices=True)
    filled = colour.copy()
    filled[hidden] = colour[nearest[0][hidden], nearest[1][hidden]]
    return filled
