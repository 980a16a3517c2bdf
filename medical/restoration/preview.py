"""A picture of a restored scan to look at: before, after and what was taken away, in three planes.

Axes: as in `medical.results.preview`, slices of the scan turned to (left, posterior, inferior).
"""

from __future__ import annotations

import io
import json
import textwrap
from typing import TYPE_CHECKING

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
    Slice,
    choose_window,
    cut_slice,
    edge_letters,
    scale_bar,
)
from medical.volumes.geometry import Grid, Reorientation

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DETAILS = "Small details may be invented or removed"
COLUMNS = ("before", "after", "taken away (before - after)")

_WIDTH, _MARGIN, _GAP, _HEAD, _FOOT = 10.0, 0.15, 0.1, 0.75, 0.75  # inches
_SIDE = (_WIDTH - 2 * _MARGIN - 2 * _GAP) / 3
_LEAST = 0.25  # height of a panel over its width
_SPREAD = 4.0  # standard deviations of what was taken away that its window reaches to either side


def preview_png(before: np.ndarray, after: np.ndarray, grid: Grid, *, title: str = "") -> bytes:
    """Draw a restored scan as PNG.

    Args:
        before, after: (i, j, k) on one grid, in the same units.
        grid: Where both lie.
        title: A heading that names no patient.

    Returns:
        The file's bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = draw(before, after, grid, title)
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    description = json.dumps({"note": f"{RESEARCH_USE}. {DETAILS}.", "versions": versions()}, ensure_ascii=False)
    figure.savefig(data, format="png", dpi=DPI, metadata={"Description": description})
    return data.getvalue()


def draw(before: np.ndarray, after: np.ndarray, grid: Grid, title: str) -> Figure:
    """The sheet: a row for each plane through the middle of the scan, (i, j, k) before and after."""
    from matplotlib.figure import Figure

    turn = Reorientation.between(grid, ORIENTATION)
    middle = [(n - 1) // 2 for n in turn.grid.shape]
    planes = [Slice(plane, middle[axis], float(turn.grid.to_world(np.array(middle))[axis])) for plane, axis in AXES.items()]
    pairs = [[cut_slice(turn.apply(each), plane).astype(np.float32) for each in (before, after)] for plane in planes]
    low, high, words = choose_window([pair[0] for pair in pairs])
    spread = _SPREAD * float(np.std(np.concatenate([(one - other).ravel() for one, other in pairs])))
    contrast = f"contrast x {(high - low) / (2 * spread):.3g}" if spread else "nothing"
    titles = (*COLUMNS[:2], f"{COLUMNS[2]}, {contrast}")
    spread = spread or 1.0
    tall = [_SIDE * min(1.0, max(_LEAST, _ratio(plane, turn.grid))) for plane in planes]
    height = _HEAD + sum(tall) + 3 * _GAP + _FOOT
    figure = Figure(figsize=(_WIDTH, height), dpi=DPI, facecolor="white")
    for row, (plane, (one, other)) in enumerate(zip(planes, pairs, strict=True)):
        shown = ((one, low, high), (other, low, high), (one - other, -spread, spread))
        for column, (picture, dark, bright) in enumerate(shown):
            left, bottom = _MARGIN + column * (_SIDE + _GAP), _HEAD + sum(tall[: row + 1]) + row * _GAP
            axes = figure.add_axes((left / _WIDTH, 1 - bottom / height, _SIDE / _WIDTH, tall[row] / height))
            _panel(axes, picture, plane, turn.grid, (dark, bright), tall[row])
            if row == 0:
                axes.set_title(titles[column], fontsize=10, pad=4)
    _texts(figure, title, [f"Scan: {words}. Taken away: from {-spread:.3g} to {spread:.3g}, grey is 0."])
    return figure


def _ratio(plane: Slice, grid: Grid) -> float:
    """Height of a slice's picture over its width."""
    across, down = (grid.spacing[axis] * grid.shape[axis] for axis in range(3) if axis != AXES[plane.plane])
    return down / across


def _panel(axes: Axes, picture: np.ndarray, plane: Slice, grid: Grid, window: tuple[float, float], tall: float) -> None:
    """A slice in the middle of a panel that is so tall, in true proportions, with letters and scale bar."""
    across, down = (grid.spacing[axis] for axis in range(3) if axis != AXES[plane.plane])
    extent = (0.0, picture.shape[1] * across, picture.shape[0] * down, 0.0)
    axes.imshow(picture, cmap="gray", vmin=window[0], vmax=window[1], extent=extent, interpolation="nearest")
    inch = max(extent[1] / _SIDE, extent[2] / tall)  # in mm
    wide, high = inch * _SIDE, inch * tall
    x, y = (extent[1] - wide) / 2, (extent[2] - high) / 2
    axes.set(xlim=(x, x + wide), ylim=(y + high, y), xticks=[], yticks=[], facecolor=OUTSIDE, aspect="equal")
    edge_letters(axes, EDGES[plane.plane], 9)
    scale_bar(axes, wide, 8)


def _texts(figure: Figure, title: str, words: list[str]) -> None:
    height = figure.get_size_inches()[1]
    left, right = _MARGIN / _WIDTH, 1 - _MARGIN / _WIDTH
    heading = textwrap.shorten(title, 60, placeholder="...") if title else "Restoration"
    figure.text(left, 1 - 0.14 / height, heading, va="top", fontsize=12, weight="bold", parse_math=False)
    figure.text(right, 1 - 0.14 / height, RESEARCH_USE, va="top", ha="right", fontsize=11, weight="bold", color=ALARM)
    how = "What was taken away should be noise alone: where it shows the shape of something, detail went with the noise."
    foot = "\n".join([f"{DETAILS}. {how}", *words, "The patient's right is on the left of axial and coronal pictures."])
    figure.text(left, 0.1 / height, foot, va="bottom", fontsize=8.5, linespacing=1.4)
