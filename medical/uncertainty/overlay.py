"""A picture of where a segmentation is unsure: the slices that want a look most, with and without their entropy in colour.

Axes: everything is drawn from the scan turned to (left, posterior, inferior), as in `medical.results.preview`.
"""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.records import versions
from medical.notice import RESEARCH_USE
from medical.results.preview import (
    ALARM,
    AXES,
    DPI,
    EDGES,
    ORIENTATION,
    OUTSIDE,
    Part,
    Slice,
    choose_window,
    cut_slice,
    edge_letters,
    outlines,
    scale_bar,
    voxels_at,
)  # fmt: skip
from medical.structures import Structure
from medical.uncertainty.ensemble import UncertainSegmentation, members_words
from medical.uncertainty.figures import SliceToSee
from medical.volumes.geometry import Grid, Reorientation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHOWN = 3
"""Slices in the picture."""

_MEASURED = (
    "Colours: entropy of the members' mean probabilities, a number without unit from 0 (sure) to 1 (nothing is ruled out, all "
    "is equally likely)."
)
_COLOURS = "plasma"
_COVER = 0.85  # how much of the scan the colours hide
_FAINT = 0.1  # of the scale: below it nothing is coloured, so that the anatomy stays to be seen
_WIDTH, _MARGIN, _GAP, _SIDEBAR = 12.6, 0.15, 0.1, 1.6  # inches
_SIDE = (_WIDTH - 2 * _MARGIN - SHOWN * _GAP - _SIDEBAR) / SHOWN
_HEAD, _CAPTION, _FOOT = 0.7, 0.5, 0.7
_LISTED = 10  # structures in the legend


@dataclass(frozen=True, eq=False)
class _Scene:
    """Scan, labels and entropy, turned; views, of which only slices are read."""

    values: np.ndarray
    labels: np.ndarray
    entropy: np.ndarray
    grid: Grid
    rgb: dict[int, tuple[int, int, int]]
    window: tuple[float, float]


@dataclass(frozen=True)
class _Cut:
    """A slice of the turned scan, and the part of it in mm (left, right, top, bottom) that is shown."""

    plane: str
    index: int
    part: Part
    caption: str


def overlay_png(
    values: np.ndarray, result: UncertainSegmentation, grid: Grid, slices: Sequence[SliceToSee], *, title: str = ""
) -> bytes:
    """Draw the first slices as PNG: above the scan with the outlines of the structures, below the same with the entropy.

    The colours' scale is the same for every scan of a network: it ends where two classes are equally likely and the others
    ruled out, and what is above has the last colour. Fewer slices than `SHOWN` are filled up with those through the middle
    of all that was found.

    Args:
        values: (i, j, k) scan.
        result: On its grid.
        grid: Where both lie.
        slices: From `medical.uncertainty.figures.slices_to_see`.
        title: A heading that names no patient.

    Returns:
        The file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = _draw(values, result, grid, slices, title)
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    description = json.dumps({"note": RESEARCH_USE, "versions": versions()}, ensure_ascii=False)
    figure.savefig(data, format="png", dpi=DPI, metadata={"Description": description})
    return data.getvalue()


def _draw(values: np.ndarray, result: UncertainSegmentation, grid: Grid, slices: Sequence[SliceToSee], title: str) -> Figure:
    from matplotlib.figure import Figure

    turn = Reorientation.between(grid, ORIENTATION)
    turned, labels, entropy = (turn.apply(array) for array in (values, result.labels, result.entropy))
    cuts = _cuts(slices, grid, turn.grid, (labels > 0) | (entropy > _FAINT * result.torn))
    low, high, words = choose_window([_across(turned, cut) for cut in cuts])
    scene = _Scene(turned, labels, entropy, turn.grid, {each.value: each.rgb for each in result.structures}, (low, high))
    height = _HEAD + 2 * _SIDE + _GAP + _CAPTION + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")

    def place(left: float, top: float, width: float, tall: float) -> Axes:
        return figure.add_axes((left / _WIDTH, 1 - (top + tall) / height, width / _WIDTH, tall / height))

    for number, cut in enumerate(cuts):
        left = _MARGIN + number * (_SIDE + _GAP)
        _panel(place(left, _HEAD, _SIDE, _SIDE), scene, cut)
        below = place(left, _HEAD + _SIDE + _GAP, _SIDE, _SIDE)
        _panel(below, scene, cut, full=result.torn)
        below.text(0.5, -0.02, cut.caption, transform=below.transAxes, ha="center", va="top", fontsize=8.5, linespacing=1.4)
    left = _MARGIN + SHOWN * (_SIDE + _GAP)
    shown = {int(value) for cut in cuts for value in np.unique(_across(labels, cut)) if value}
    _legend(place(left, _HEAD, _SIDEBAR, _SIDE), [each for each in result.structures if each.value in shown])
    _colour_bar(place(left, _HEAD + _SIDE + _GAP + 0.35, 0.18, _SIDE - 0.35), result.torn)
    look: dict[str, Any] = {"parse_math": False}
    heading = textwrap.shorten(f"{title}: uncertainty of the segmentation" if title else "Uncertainty", 80, placeholder="...")
    figure.text(_MARGIN / _WIDTH, 1 - 0.18 / height, heading, va="top", fontsize=12, weight="bold", **look)
    figure.text(_MARGIN / _WIDTH, 1 - 0.47 / height, _MEASURED, va="top", fontsize=9, **look)
    right = 1 - _MARGIN / _WIDTH
    figure.text(right, 1 - 0.18 / height, RESEARCH_USE, va="top", ha="right", fontsize=11, weight="bold", color=ALARM)
    foot = _notes(result, words, len(slices))
    figure.text(_MARGIN / _WIDTH, 0.12 / height, foot, va="bottom", fontsize=8.5, linespacing=1.4, **look)
    return figure


def _cuts(slices: Sequence[SliceToSee], grid: Grid, turned: Grid, shown: np.ndarray) -> list[_Cut]:
    """The slices to draw: those that want a look, then through the middle of what is `shown`, plane by plane."""
    chosen = []
    for each in slices[:SHOWN]:
        point = (np.array(grid.shape) - 1) / 2
        point["ijk".index(each.axis)] = each.index
        index = int(np.rint(voxels_at(turned, grid.to_world(point))[AXES[each.plane]]))
        reason = f"{each.reason}: {each.area:.3g} mm² (usual: {each.usual:.3g})"
        chosen.append((each.plane, index, f"{each.rank}. {_named(each.plane, each.axis, each.index, each.place)}\n{reason}"))
    for plane, axis in AXES.items():
        sides = [n for other, n in enumerate(turned.shape) if other != axis]
        if len(chosen) < SHOWN and min(sides) > 1 and plane not in [each[0] for each in chosen]:
            rows = np.flatnonzero(shown.any(tuple(other for other in range(3) if other != axis)))
            index = int(rows[len(rows) // 2]) if len(rows) else turned.shape[axis] // 2
            chosen.append((plane, index, f"{plane}, through the middle"))
    return [_Cut(plane, index, _part(shown, turned, plane, index), caption) for plane, index, caption in chosen]


def _named(plane: str, axis: str, index: int, place: float) -> str:
    return f"{plane}, {axis} = {index}, {'xyz'[AXES[plane]]} {place:.1f} mm"


def _part(shown: np.ndarray, turned: Grid, plane: str, index: int) -> Part:
    """Where a slice shows anything, with a fifth around it, at least 5 mm; in mm."""
    mask = np.take(shown, index, AXES[plane])
    ends = []
    for axis, other in enumerate(axis for axis in range(3) if axis != AXES[plane]):
        step, side = turned.spacing[other], turned.shape[other] * turned.spacing[other]
        rows = np.flatnonzero(mask.any(1 - axis))
        low, high = (rows[0] * step, (rows[-1] + 1) * step) if len(rows) else (0.0, side)
        around = max(5.0, (high - low) / 5)
        ends += [max(0.0, float(low) - around), min(side, float(high) + around)]
    left, right, top, bottom = ends
    return left, right, top, bottom


def _across(array: np.ndarray, cut: _Cut) -> np.ndarray:
    return cut_slice(array, Slice(cut.plane, cut.index, 0.0))


def _panel(axes: Axes, scene: _Scene, cut: _Cut, *, full: float | None = None) -> None:
    """A slice in the middle of a square with the outlines; with `full`, its entropy up to that over it."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection

    across, down = (scene.grid.spacing[axis] for axis in range(3) if axis != AXES[cut.plane])
    labels = _across(scene.labels, cut)
    extent = (0.0, labels.shape[1] * across, labels.shape[0] * down, 0.0)
    low, high = scene.window
    picture = np.ma.masked_invalid(_across(scene.values, cut).astype(np.float32))
    axes.imshow(picture, cmap="gray", vmin=low, vmax=high, extent=extent, interpolation="nearest")
    if full is not None:
        entropy = _across(scene.entropy, cut) / full
        heat = colormaps[_COLOURS](np.clip(entropy, 0, 1))
        heat[..., 3] = _COVER * (entropy >= _FAINT)
        axes.imshow(heat, extent=extent, interpolation="nearest")
    for value in (int(value) for value in np.unique(labels) if value):
        edges = list(outlines(labels == value) * (across, down))
        colour = np.array(scene.rgb[value]) / 255 if full is None else "white"
        axes.add_collection(LineCollection(edges, colors=[colour], linewidths=1.4 if full is None else 0.7))
    left, right, top, bottom = cut.part
    side = max(right - left, bottom - top)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    axes.set(xlim=(x, x + side), ylim=(y + side, y), xticks=[], yticks=[], facecolor=OUTSIDE, aspect="equal")
    edge_letters(axes, EDGES[cut.plane], 10)
    scale_bar(axes, side, 8)


def _legend(axes: Axes, structures: Sequence[Structure]) -> None:
    """Colours and names of the structures in the pictures above."""
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, _SIDEBAR), ylim=(_SIDE, 0))
    axes.set_axis_off()
    y = 0.1
    for each in structures[:_LISTED]:
        lines = textwrap.wrap(each.name, 19, max_lines=2, placeholder="...")
        axes.add_patch(Rectangle((0, y - 0.06), 0.13, 0.12, facecolor=np.array(each.rgb) / 255))
        axes.text(0.22, y - 0.07, "\n".join(lines), va="top", fontsize=8.5, parse_math=False)
        y += 0.08 + 0.15 * len(lines)
    if len(structures) > _LISTED:
        axes.text(0.22, y - 0.07, f"{len(structures) - _LISTED} more", va="top", fontsize=8.5)


def _colour_bar(axes: Axes, full: float) -> None:
    """Colours and what they mean; those below `_FAINT` are not drawn in the pictures, and white here."""
    from matplotlib import colormaps

    ramp = np.linspace(0, 1, 256)
    colours = colormaps[_COLOURS](ramp)
    colours[ramp < _FAINT] = 1
    axes.imshow(colours[:, None], origin="lower", extent=(0, 1, 0, full), aspect="auto")
    ticks = [0, _FAINT * full, full / 2, full]
    names = ["0", f"{ticks[1]:.2g}: drawn from here", f"{full / 2:.2g}", f"{full:.2g} or more: two\nequally likely answers"]
    axes.set(xticks=[])
    axes.set_yticks(ticks, names, fontsize=8)
    axes.yaxis.tick_right()
    axes.set_title("entropy", fontsize=9, loc="left", pad=14)


def _notes(result: UncertainSegmentation, window: str, listed: int) -> str:
    """How to read the sheet."""
    first = f"Members: {members_words(result.members)}. Above: the scan and the label map; below: entropy of the members' mean."
    if not listed:
        first += " No slice is more unsure than the others."
    second = "Members that err alike are sure and wrong: what is not coloured is not thereby right. "
    second += "Areas: entropy, or share of members outvoted, times the area of the pixels."
    third = f"Radiological view: the patient's right is on the left of axial and coronal pictures; {window}."
    return "\n".join((first, second, third))
