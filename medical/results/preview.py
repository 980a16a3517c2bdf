"""A picture of a segmentation to look at: three slices through the structures, and a row of axial ones.

Axes: everything is drawn from the scan turned to (left, posterior, inferior), so that a slice's picture has the patient's
right on its left (the radiological convention), the front or the head at its top, and x and y run right and down in mm
from the picture's top left corner.
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.records import versions, write_bytes
from medical.notice import RESEARCH_USE
from medical.results.statistics import StructureFigures, ml_text, structure_statistics
from medical.structures import Structure
from medical.volumes.geometry import Grid, Reorientation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ORIENTATION = "LPI"
AXES = {"axial": 2, "coronal": 1, "sagittal": 0}
"""The axis of the turned scan that a slice lies across."""
EDGES = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
"""What lies at the left, right, top and bottom of a picture."""
LISTED = 14
"""Structures that the legend names; the most voluminous ones."""
NOTHING = "Nothing found"
DPI = 120

_ROW = 6  # axial slices in the lower row
_CT = (-160.0, 240.0)  # soft tissue, HU
_WIDTH, _MARGIN, _GAP, _LEGEND = 13.0, 0.15, 0.1, 2.75  # inches
_MAIN = (_WIDTH - 2 * _MARGIN - _LEGEND - 3 * _GAP) / 3
_SMALL = (_WIDTH - 2 * _MARGIN - (_ROW - 1) * _GAP) / _ROW
_HEAD, _CAPTION, _FOOT = 0.5, 0.26, 0.52
OUTSIDE = "#303030"  # not black, so that one sees where the scan ends
ALARM = "#a00000"

Part = tuple[float, float, float, float]


@dataclass(frozen=True)
class Slice:
    """One slice of the turned scan, and the part of it that is shown.

    Attributes:
        plane: ``axial``, ``coronal`` or ``sagittal``.
        index: Voxel along the axis that it lies across.
        place: Its place along the patient's nearest axis in RAS+ mm.
        part: Left, right, top and bottom in mm; None shows all.
    """

    plane: str
    index: int
    place: float
    part: Part | None = None


@dataclass(frozen=True, eq=False)
class _Scene:
    """The scan and its labels, turned; views, of which only slices are read."""

    values: np.ndarray | None
    labels: np.ndarray
    grid: Grid
    rgb: dict[int, tuple[int, int, int]]
    window: tuple[float, float]


def write_preview(
    path: Path,
    values: np.ndarray | None,
    labels: np.ndarray,
    grid: Grid,
    structures: Sequence[Structure],
    *,
    figures: Sequence[StructureFigures] | None = None,
    title: str = "",
) -> Path:
    """Draw a segmentation, (i, j, k) values and labels, and write it as PNG, whole or not at all. See `preview_png`.

    Raises:
        OutputError: The folder does not take the file.
    """
    write_bytes(path, preview_png(values, labels, grid, structures, figures=figures, title=title))
    return path


def preview_png(
    values: np.ndarray | None,
    labels: np.ndarray,
    grid: Grid,
    structures: Sequence[Structure],
    *,
    figures: Sequence[StructureFigures] | None = None,
    title: str = "",
) -> bytes:
    """Draw a segmentation as PNG: slices through the most voluminous structure, axial slices, outlines, legend, scale bars.

    Args:
        values: (i, j, k) scan; None draws the structures on black.
        labels: (i, j, k) whole numbers on the same grid.
        grid: Where both lie. Slices follow its axes; the nearest directions of the patient are written at their edges.
        structures: What the numbers mean.
        figures: From `structure_statistics`, which is called without them.
        title: A heading that names no patient, such as the name of the file.

    Returns:
        The file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    rows = structure_statistics(labels, grid, None, structures) if figures is None else figures
    figure = draw(values, labels, grid, rows, title)
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    description = json.dumps({"note": RESEARCH_USE, "versions": versions()}, ensure_ascii=False)
    figure.savefig(data, format="png", dpi=DPI, metadata={"Description": description})
    return data.getvalue()


def draw(values: np.ndarray | None, labels: np.ndarray, grid: Grid, figures: Sequence[StructureFigures], title: str) -> Figure:
    """The sheet of (i, j, k) values and labels: three slices and the legend above, axial slices below."""
    from matplotlib.figure import Figure

    turn = Reorientation.between(grid, ORIENTATION)
    turned = turn.apply(values) if values is not None else None
    main, row = choose_slices(figures, grid, turn.grid)
    low, high, words = choose_window([cut_slice(turned, each) for each in main] if turned is not None else [])
    scene = _Scene(turned, turn.apply(labels), turn.grid, {each.value: each.rgb for each in figures}, (low, high))
    height = _HEAD + _MAIN + _CAPTION + (_SMALL + _CAPTION if row else 0) + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")

    def place(left: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / _WIDTH, 1 - (top + tall) / height, width / _WIDTH, tall / height))

    for number, each in enumerate(main):
        _panel(place(_MARGIN + number * (_MAIN + _GAP), _HEAD, _MAIN, _MAIN), scene, each, large=True)
    for number, each in enumerate(row):
        top = _HEAD + _MAIN + _CAPTION
        _panel(place(_MARGIN + number * (_SMALL + _GAP), top, _SMALL, _SMALL), scene, each, large=False)
    _legend(place(_WIDTH - _MARGIN - _LEGEND, _HEAD, _LEGEND, _MAIN), figures)
    heading = textwrap.shorten(title, 90, placeholder="...") if title else "Segmentation"
    look: dict[str, Any] = {"parse_math": False}
    figure.text(_MARGIN / _WIDTH, 1 - 0.18 / height, heading, va="top", fontsize=12, weight="bold", **look)
    right = 1 - _MARGIN / _WIDTH
    figure.text(right, 1 - 0.18 / height, RESEARCH_USE, va="top", ha="right", fontsize=11, weight="bold", color=ALARM)
    foot = "\n".join(_notes(grid, turn.grid, words))
    figure.text(_MARGIN / _WIDTH, 0.12 / height, foot, va="bottom", fontsize=8.5, linespacing=1.4)
    return figure


def choose_slices(figures: Sequence[StructureFigures], grid: Grid, turned: Grid) -> tuple[list[Slice], list[Slice]]:
    """Three slices through the middle of the most voluminous structure, and axial ones through the extent of all.

    Without structures the three go through the middle of the scan, and there are no others; nor are there if all lie in
    one axial slice.

    Args:
        figures: Of all structures, with boxes in voxels of `grid`.
        grid: The grid of the label map.
        turned: The same voxels in the order of `ORIENTATION`.

    Returns:
        The axial, coronal and sagittal slice; the row of axial slices from head to foot.
    """
    found = [each for each in figures if each.box is not None]
    bounds = [_bounds(each, grid, turned) for each in found]
    middle = (np.array(turned.shape) - 1) // 2
    if found:
        first = max(range(len(found)), key=lambda number: found[number].voxels)
        # Rounded twice, so that noise in the last digits cannot tip a half either way.
        centroid = np.round(voxels_at(turned, np.array(found[first].centroid)), 3)
        middle = np.clip(np.floor(centroid + 0.5).astype(int), *bounds[first])

    def across(plane: str, index: int, part: Part | None = None) -> Slice:
        point = middle.copy()
        point[AXES[plane]] = index
        # The turned axes run along the patient's x, y and z, if the other way.
        return Slice(plane, index, float(turned.to_world(point)[AXES[plane]]), part)

    main = [across(plane, int(middle[axis])) for plane, axis in AXES.items()]
    low, high = (np.min([each[0] for each in bounds], 0), np.max([each[1] for each in bounds], 0)) if bounds else (middle, middle)
    if low[2] == high[2]:
        return main, []
    indices = np.arange(low[2], high[2] + 1)
    if len(indices) > _ROW:
        indices = np.rint(np.linspace(low[2], high[2], _ROW + 2)[1:-1]).astype(int)
    part = _part(low, high, turned)
    return main, [across("axial", int(index), part) for index in indices]


def choose_window(pictures: Sequence[np.ndarray]) -> tuple[float, float, str]:
    """Darkest and brightest value to draw, and words for them: soft tissue for CT, else percentiles 1 and 99. Any shapes."""
    values = np.concatenate([picture.ravel() for picture in pictures]) if pictures else np.zeros(0)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return 0.0, 1.0, "no scan was given"
    least, low, high = (float(value) for value in np.percentile(values, (0.5, 1, 99)))
    if least <= -500 and low >= -5000 and high <= 5000:  # air; no other common scan has such values
        return *_CT, f"window {_CT[0]:g} to {_CT[1]:g} (CT, soft tissue)"
    if low == high:
        low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1, f"window {low:.4g} to {high:.4g} (percentiles 1 and 99 of these slices)"


def outlines(mask: np.ndarray) -> np.ndarray:
    """The edges between pixels in and out of a mask, border included.

    Args:
        mask: (rows, columns) boolean.

    Returns:
        (n, 2, 2) ends of the edges as (x, y); pixel (row 0, column 0) reaches from (0, 0) to (1, 1).
    """
    padded = np.pad(mask, 1)
    row, column = np.nonzero(padded[1:] != padded[:-1])
    level = np.stack([np.stack([column - 1, row], -1), np.stack([column, row], -1)], 1)
    row, column = np.nonzero(padded[:, 1:] != padded[:, :-1])
    upright = np.stack([np.stack([column, row - 1], -1), np.stack([column, row], -1)], 1)
    return np.concatenate([level, upright])


def legend_lines(figures: Sequence[StructureFigures]) -> list[tuple[tuple[int, int, int] | None, str, str]]:
    """Colour, name and volume of the most voluminous structures, and lines for the others that are there and are not."""
    found = sorted((each for each in figures if each.voxels), key=lambda each: -each.voxels)
    absent = [each for each in figures if not each.voxels]
    lines: list[tuple[tuple[int, int, int] | None, str, str]] = []
    if not found:
        lines.append((None, NOTHING, ""))
    lines += [(each.rgb, each.name, f"{ml_text(each.ml)} ml") for each in found[:LISTED]]
    if rest := found[LISTED:]:
        lines.append((None, f"{len(rest)} more", f"{ml_text(sum(each.ml for each in rest))} ml"))
    if len(absent) <= 3:
        lines += [(None, each.name, "not found") for each in absent]
    else:
        lines.append((None, f"{len(absent)} structures", "not found"))
    return lines


def voxels_at(grid: Grid, places: np.ndarray) -> np.ndarray:
    """(..., 3) RAS+ mm to (..., 3) voxel indices."""
    indices: np.ndarray = (places - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T
    return indices


def _bounds(figures: StructureFigures, grid: Grid, turned: Grid) -> tuple[np.ndarray, np.ndarray]:
    """First and last voxel of a structure's box in the turned scan."""
    assert figures.box is not None
    ends = np.rint(voxels_at(turned, grid.to_world(np.array([figures.box.first, figures.box.last])))).astype(int)
    return ends.min(0), ends.max(0)


def _part(low: np.ndarray, high: np.ndarray, turned: Grid) -> Part:
    """The structures' extent across an axial slice with a fifth around it, at least 5 mm, in mm."""
    sides = []
    for axis in (0, 1):
        start, stop = low[axis] * turned.spacing[axis], (high[axis] + 1) * turned.spacing[axis]
        around = max(5.0, (stop - start) / 5)
        sides += [max(0.0, start - around), min(turned.shape[axis] * turned.spacing[axis], stop + around)]
    left, right, top, bottom = (float(side) for side in sides)
    return left, right, top, bottom


def cut_slice(array: np.ndarray, each: Slice) -> np.ndarray:
    """(rows, columns) picture of a slice: its two axes in their order, the second one down."""
    index: list[Any] = [slice(None)] * 3
    index[AXES[each.plane]] = each.index
    plane: np.ndarray = array[tuple(index)].T
    return plane


def _panel(axes: Axes, scene: _Scene, each: Slice, *, large: bool) -> None:
    """A slice in the middle of a square, in true proportions, with outlines, letters and scale bar."""
    from matplotlib.collections import LineCollection

    across, down = (scene.grid.spacing[axis] for axis in range(3) if axis != AXES[each.plane])
    labels = cut_slice(scene.labels, each)
    extent = (0.0, labels.shape[1] * across, labels.shape[0] * down, 0.0)
    low, high = scene.window
    picture = np.full(labels.shape, low) if scene.values is None else cut_slice(scene.values, each).astype(np.float32)
    axes.imshow(np.ma.masked_invalid(picture), cmap="gray", vmin=low, vmax=high, extent=extent)
    shade = np.zeros((*labels.shape, 4), dtype=np.uint8)
    for value in (int(value) for value in np.unique(labels)):
        if value == 0:
            continue
        mask = labels == value
        rgb = scene.rgb[value]
        shade[mask] = (*rgb, 64)
        edges = list(outlines(mask) * (across, down))
        axes.add_collection(LineCollection(edges, colors=[_colour(rgb)], linewidths=1.2 if large else 0.9))
    axes.imshow(shade, extent=extent, interpolation="nearest")
    left, right, top, bottom = each.part or (0.0, extent[1], 0.0, extent[2])
    side = max(right - left, bottom - top)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    axes.set(xlim=(x, x + side), ylim=(y + side, y), xticks=[], yticks=[], facecolor=OUTSIDE, aspect="equal")
    edge_letters(axes, EDGES[each.plane], 11 if large else 8)
    scale_bar(axes, side, 9 if large else 7)
    caption = f"{each.plane}, {'xyz'[AXES[each.plane]]} {each.place:.1f} mm"
    axes.text(0.5, -0.015, caption, transform=axes.transAxes, ha="center", va="top", fontsize=9 if large else 8)


def edge_letters(axes: Axes, letters: str, size: float) -> None:
    """Write what lies at the left, right, top and bottom of a panel."""
    for letter, (x, y) in zip(letters, ((0.03, 0.5), (0.97, 0.5), (0.5, 0.965), (0.5, 0.035)), strict=True):
        axes.text(x, y, letter, ha="center", va="center", fontsize=size, **_white(axes))


def scale_bar(axes: Axes, side: float, size: float) -> None:
    """A bar of 1, 2 or 5 times a power of ten mm, at most a quarter of the square."""
    length = bar_length(side)
    axes.plot((0.04, 0.04 + length / side), (0.045, 0.045), linewidth=2, **_white(axes))
    axes.text(0.04, 0.06, f"{length:g} mm", va="bottom", fontsize=size, **_white(axes))


def bar_length(side: float) -> float:
    """The longest of 1, 2 and 5 times a power of ten mm that is at most a quarter of a side in mm.

    >>> bar_length(100.0), bar_length(35.0), bar_length(2.0)
    (20.0, 5.0, 0.5)
    """
    power = 10.0 ** float(np.floor(np.log10(side / 4)))
    longest: float = max(step * power for step in (1, 2, 5) if step * power <= side / 4 * (1 + 1e-9))
    return longest


def _white(axes: Axes) -> dict[str, Any]:
    """White in places from 0 to 1 across the panel, with a dark rim that keeps it readable on bright tissue."""
    from matplotlib.patheffects import withStroke

    return {"transform": axes.transAxes, "color": "white", "path_effects": [withStroke(linewidth=2, foreground="black")]}


def _colour(rgb: tuple[int, int, int]) -> tuple[float, float, float]:
    return rgb[0] / 255, rgb[1] / 255, rgb[2] / 255


def _legend(axes: Axes, figures: Sequence[StructureFigures]) -> None:
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, _LEGEND), ylim=(_MAIN, 0))
    axes.set_axis_off()
    for number, (rgb, name, size) in enumerate(legend_lines(figures)):
        y = 0.1 + number * 0.185
        if rgb is not None:
            axes.add_patch(Rectangle((0.05, y - 0.06), 0.13, 0.12, facecolor=_colour(rgb), edgecolor="#555555", linewidth=0.5))
        look: dict[str, Any] = {"va": "center", "fontsize": 9, "color": "black" if rgb is not None else "#555555"}
        if name == NOTHING:
            look |= {"color": ALARM, "weight": "bold"}
        axes.text(0.26, y, name if len(name) <= 26 else f"{name[:13]}...{name[-10:]}", parse_math=False, **look)
        axes.text(_LEGEND, y, size, ha="right", **look)


def _notes(grid: Grid, turned: Grid, window: str) -> list[str]:
    """How to read the sheet."""
    cosine = -np.diag(turned.affine[:3, :3] / np.array(turned.spacing)).max()  # the turned axes run against x, y and z
    angle = float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    shape = " x ".join(str(n) for n in grid.shape)
    spacing = " x ".join(f"{length:.4g}" for length in grid.spacing)
    second = f"{shape} voxels of {spacing} mm, stored {grid.codes}; {window}."
    if angle > 1:
        second += f" Slices follow the scan's axes, up to {angle:.0f} degrees off the patient's; letters: the nearest directions."
    if not grid.orthogonal:
        second += " The axes are not at right angles; they are drawn as if they were."
    return ["Radiological view: the patient's right is on the left of axial and coronal pictures. Coordinates: RAS+ mm.", second]
