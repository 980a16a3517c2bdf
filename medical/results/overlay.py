"""A picture with the structures found in it drawn over it: a tint in each one's colour, and its outline.

Axes: pictures are (C, rows, columns, 1), label maps (rows, columns, 1), as `medical.pictures.reading` reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hybrid.errors import OutputError
from medical.pictures.reading import PictureOrigin
from medical.structures import Structure

TINT = 0.3
"""How much of a structure's colour lies over its pixels; its outline is all colour."""
_ROWS = 256  # at a time
_SAMPLE = 1 << 20  # pixels among which the range of values is looked for


def overlay(values: np.ndarray, labels: np.ndarray, structures: Sequence[Structure], origin: PictureOrigin) -> np.ndarray:
    """(rows, columns, 3) uint8 sRGB, as large as the picture.

    Args:
        values: The picture. Bytes are shown as they are, other values from their 0.5th to their 99.5th percentile.
        labels: The label map.
        structures: What it means, with colours.
        origin: Whether values are to be shown inverted.
    """
    channels = values[..., 0] if len(values) == 3 else values[:1, ..., 0]
    low, high = _range(channels)
    plane = labels[..., 0]
    highest = max((each.value for each in structures), default=0)
    colours = np.zeros((max(highest, int(plane.max(initial=0))) + 1, 3), np.float32)
    for each in structures:
        colours[each.value] = each.rgb
    result = np.empty((*plane.shape, 3), np.uint8)
    for top in range(0, len(plane), _ROWS):
        rows = slice(top, min(top + _ROWS, len(plane)))
        shown = np.clip((channels[:, rows].astype(np.float32) - low) / (high - low), 0, 1) * 255
        shown = np.broadcast_to(np.moveaxis(255 - shown if origin.inverted else shown, 0, -1), (*shown.shape[1:], 3))
        found = plane[rows]
        weight = np.where(_outline(plane, rows), np.float32(1), np.float32(TINT)) * (found > 0)
        result[rows] = np.rint(shown + (colours[found] - shown) * weight[..., None])
    return result


def write_overlay(path: Path, drawn: np.ndarray) -> Path:
    """Write the overlay as PNG, whole or not at all.

    Raises:
        OutputError: The folder does not take the file, or what was read back is not what was written.
    """
    from restore.images import Picture, read_picture, write_picture

    write_picture(path, Picture(drawn))
    if not np.array_equal(read_picture(path, max_pixels=drawn.size).colour, drawn):
        path.unlink(missing_ok=True)
        raise OutputError(f"{path.name} was read back otherwise than it was written.", hint="Check the disk.")
    return path


def _range(channels: np.ndarray) -> tuple[float, float]:
    if channels.dtype == np.uint8:
        return 0.0, 255.0
    step = max(1, round((channels[0].size / _SAMPLE) ** 0.5))
    low, high = np.percentile(channels[:, ::step, ::step], (0.5, 99.5))
    return float(low), float(max(high, low + np.finfo(np.float32).eps * max(1.0, abs(low))))


def _outline(plane: np.ndarray, rows: slice) -> np.ndarray:
    """Pixels of these rows with another label beside, above or below them."""
    part = plane[max(rows.start - 1, 0) : rows.stop + 1]
    edge = np.zeros(part.shape, bool)
    edge[1:] |= part[1:] != part[:-1]
    edge[:-1] |= part[1:] != part[:-1]
    edge[:, 1:] |= part[:, 1:] != part[:, :-1]
    edge[:, :-1] |= part[:, 1:] != part[:, :-1]
    first = rows.start - max(rows.start - 1, 0)
    return edge[first : first + rows.stop - rows.start]
