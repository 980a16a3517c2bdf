"""Figures of the structures in a label map of a picture: how many pixels, how large, and where.

Axes: label maps are (rows, columns, 1). Places are (x, y) in pixels from the middle of the picture's first pixel, x to the
right and y down.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from hybrid.records import write_bytes
from medical.notice import RESEARCH_USE
from medical.structures import Structure

HEADER = (
    "value", "name", "colour", "pixels", "share", "mm2", "centroid_x", "centroid_y", "left", "top", "right", "bottom", "pieces",
    "note",
)  # fmt: skip


@dataclass(frozen=True)
class PictureFigures:
    """What was measured of one structure.

    Attributes:
        value, name: Its number in the label map, and its name.
        rgb: Colour that it is drawn in, sRGB.
        pixels: How many bear its value.
        share: Their share of all pixels of the picture.
        mm2: Their area; None where the picture does not say how large its pixels are.
        centroid: Mean (x, y) of its pixels; None if there is none.
        box: Outermost pixels (left, top, right, bottom), all part of it; None if there is none.
        pieces: Pieces that do not even share a corner.
    """

    value: int
    name: str
    rgb: tuple[int, int, int]
    pixels: int = 0
    share: float = 0.0
    mm2: float | None = None
    centroid: tuple[float, float] | None = None
    box: tuple[int, int, int, int] | None = None
    pieces: int = 0

    @property
    def amount(self) -> str:
        """How much of it there is, for people."""
        if not self.pixels:
            return "not found"
        area = f", {self.mm2:.3g} mm²" if self.mm2 is not None else ""
        return f"{self.pixels} pixels ({100 * self.share:.1f} %{area})"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is undefined is None."""
        return {
            "value": self.value,
            "name": self.name,
            "rgb": list(self.rgb),
            "pixels": self.pixels,
            "share": self.share,
            "mm2": self.mm2,
            "centroid": None if self.centroid is None else list(self.centroid),
            "box": None if self.box is None else list(self.box),
            "pieces": self.pieces,
        }


def picture_statistics(
    labels: np.ndarray, structures: Sequence[Structure], pixel_mm: tuple[float, float] | None
) -> list[PictureFigures]:
    """Figures of each structure.

    Args:
        labels: (rows, columns, 1) of whole numbers.
        structures: What they mean.
        pixel_mm: Distance of neighbouring rows and columns of pixels; None where it is not known.
    """
    plane = labels[..., 0]
    boxes = ndimage.find_objects(plane, max_label=max((each.value for each in structures), default=0))
    return [_figures(plane, each, boxes[each.value - 1], pixel_mm) for each in structures]


def write_picture_statistics(path: Path, figures: Sequence[PictureFigures]) -> Path:
    """Write one line for each structure as CSV, whole or not at all; undefined figures are empty cells.

    Raises:
        OutputError: The folder does not take the file.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    for row in figures:
        name = row.name if row.name[:1] not in "=+-@\t" else f"'{row.name}"  # spreadsheets would compute it
        size = "" if row.mm2 is None else row.mm2
        place = (*(row.centroid or ("", "")), *(row.box or ("",) * 4))
        colour = "#{:02x}{:02x}{:02x}".format(*row.rgb)
        writer.writerow([row.value, name, colour, row.pixels, row.share, size, *place, row.pieces, RESEARCH_USE])
    write_bytes(path, text.getvalue().encode())
    return path


def _figures(
    plane: np.ndarray, structure: Structure, box: tuple[slice, slice] | None, pixel_mm: tuple[float, float] | None
) -> PictureFigures:
    if box is None:
        return PictureFigures(structure.value, structure.name, structure.rgb, mm2=None if pixel_mm is None else 0.0)
    rows, columns = box
    mask = plane[box] == structure.value
    pixels = int(np.count_nonzero(mask))
    # Sums along the axes: a list of all places would take many times the memory of the mask.
    y = float(mask.sum(1) @ np.arange(rows.start, rows.stop)) / pixels
    x = float(mask.sum(0) @ np.arange(columns.start, columns.stop)) / pixels
    return PictureFigures(
        structure.value, structure.name, structure.rgb, pixels, pixels / plane.size,
        None if pixel_mm is None else pixels * pixel_mm[0] * pixel_mm[1],
        (x, y), (columns.start, rows.start, columns.stop - 1, rows.stop - 1), int(ndimage.label(mask, np.ones((3, 3)))[1]),
    )  # fmt: skip
