"""The sheet of a comparison: one labelled panel a method; small pictures are enlarged by a whole number, large ones shrunk.

Lengths are in pixels of the sheet; x runs right and y down from the top left corner.
"""

from __future__ import annotations

import io
import json
import math
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybrid.records import versions
from restore.evaluation.compare import Comparison, Result, Skipped, rgb8
from restore.images import from_unit, to_unit
from restore.images.interpolation import resize

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
PANEL = 480
"""The longer side of a panel is at most this; smaller pictures are enlarged by a whole number to come near it."""
NARROWEST = 200  # so that a label has room
MARGIN, GAP, LABEL, LINE = 16, 12, 44, 18
WIDEST = 2080


@dataclass(frozen=True)
class Panel:
    """One picture (H, W, 3) uint8 of the sheet, its name and a line below that."""

    picture: NDArray[np.uint8]
    title: str
    caption: str = ""


def sheet(comparison: Comparison, name: str) -> bytes:
    """The sheet of a comparison as PNG: each result, and the reference last. Its text chunk ``Description`` is JSON.

    Args:
        comparison: What came out.
        name: File name of the input.
    """
    case = comparison.case
    panels = [Panel(rgb8(each.picture), each.name, caption(each)) for each in comparison.results]
    if case.reference is not None:
        panels.append(Panel(rgb8(case.reference), "reference"))
    part = case.region
    heading = f"{name}  x{case.scale}, {part.width} x {part.height} pixels at {part.x}, {part.y}"
    return encode(draw(panels, comparison.skipped, heading), json.dumps(facts(comparison, name), ensure_ascii=False))


def facts(comparison: Comparison, name: str) -> dict[str, object]:
    """What ran on what, as plain values."""
    case = comparison.case
    return {
        "task": "compare",
        "input": name,
        "scale": case.scale,
        "region": asdict(case.region),
        "results": [
            {key: getattr(each, key) for key in ("name", "psnr", "ssim", "seconds", "weights", "sha256")}
            for each in comparison.results
        ],
        "skipped": [each.name for each in comparison.skipped],
        "versions": versions(),
    }


def caption(result: Result) -> str:
    """Scores and time of a result in one line."""
    scores = [f"{result.psnr:.2f} dB"] if result.psnr is not None else []
    scores += [f"SSIM {result.ssim:.4f}"] if result.ssim is not None else []
    return ", ".join([*scores, f"{result.seconds:.2f} s"])


def draw(panels: Sequence[Panel], skipped: Sequence[Skipped], heading: str) -> Figure:
    """The sheet; all panels have one size. Skipped models are named at its foot.

    Args:
        panels: At least one; their pictures have one shape.
        skipped: Models that did not run.
        heading: The first line.
    """
    from matplotlib.figure import Figure

    pictures = [fit(panel.picture) for panel in panels]
    height, width = pictures[0].shape[:2]
    cell = max(width, NARROWEST)
    fitting = max(1, (WIDEST - 2 * MARGIN + GAP) // (cell + GAP))
    rows = math.ceil(len(panels) / fitting)
    columns = math.ceil(len(panels) / rows)
    sheet_width = 2 * MARGIN + columns * (cell + GAP) - GAP
    head, foot = (_lines(text, sheet_width) for text in (heading, _foot(skipped)))
    top = MARGIN + LINE * len(head)
    sheet_height = top + rows * (height + LABEL + GAP) + LINE * len(foot) + MARGIN
    figure = Figure(figsize=(sheet_width / DPI, sheet_height / DPI), dpi=DPI, facecolor="white")

    def write(x: float, y: float, text: str, **look: Any) -> None:
        figure.text(x / sheet_width, 1 - y / sheet_height, text, va="top", parse_math=False, **look)

    for number, line in enumerate(head):
        write(MARGIN, MARGIN + LINE * number - 4, line, fontsize=9)
    for place, (panel, picture) in enumerate(zip(panels, pictures, strict=True)):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * (cell + GAP), top + row * (height + LABEL + GAP)
        # figimage and not axes: no resampling, so that a pixel of the result is a pixel of the sheet.
        figure.figimage(picture, xo=x, yo=sheet_height - y - LABEL - height, origin="upper")
        write(x, y + 4, textwrap.shorten(panel.title, cell // 8, placeholder="..."), fontsize=10, weight="bold")
        write(x, y + 23, panel.caption, fontsize=8)
    for number, line in enumerate(foot):
        write(MARGIN, sheet_height - MARGIN - LINE * (len(foot) - number) + 4, line, fontsize=8)
    return figure


def fit(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 repeated a whole number of times towards `PANEL`, or shrunk to it by the mean of the pixels."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    if longest <= PANEL:
        times = PANEL // longest
        return picture.repeat(times, 0).repeat(times, 1)
    size = max(1, round(height * PANEL / longest)), max(1, round(width * PANEL / longest))
    return from_unit(resize(to_unit(picture), size, "area"), "uint8")


def encode(figure: Figure, description: str) -> bytes:
    """The sheet as PNG, with `description` in its text chunk of that name."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=DPI, metadata={"Description": description})
    return data.getvalue()


def _foot(skipped: Sequence[Skipped]) -> str:
    return "Skipped: " + ", ".join(each.name for each in skipped) if skipped else ""


def _lines(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, max(20, (width - 2 * MARGIN) // 8))
