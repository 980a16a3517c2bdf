"""Figures of a benchmark: a sheet of excerpts for each set, and PSNR against parameters and against time.

Drawn by matplotlib without a display. A legend beside the axes names the methods, so that no two labels can cover
each other.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import ResourceError
from hybrid.records import write_bytes
from restore.evaluation.engine import Benchmark, ImageScore, Row, TestSet, as_rgb
from restore.evaluation.metrics import rgb_to_y
from restore.images import read_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_PICTURES = 5
EXCERPT = 96  # pixels of the reference along each side of a panel
_MARKERS = "os^Dv<>Ph*"


def write_figures(benchmark: Benchmark, output: Path) -> tuple[Path, ...]:
    """Write the sheet of each set and the two plots, as far as there is something to show; return their paths.

    Args:
        benchmark: The result.
        output: The folder that holds the result pictures of this benchmark.

    Raises:
        ResourceError: matplotlib is not installed.
        OutputError: The folder does not take a file.
    """
    drawn: list[tuple[str, Figure]] = []
    for test_set in benchmark.plan.sets:
        if (figure := draw_sheet(benchmark, test_set, output)) is not None:
            drawn.append((f"{test_set.folder}.png", figure))
    plots = {
        "psnr_parameters.png": ("parameters", "", lambda row: row.method.parameters),
        "psnr_seconds.png": ("time per picture", "s", lambda row: row.seconds),
    }
    for name, (label, unit, value) in plots.items():
        if (figure := draw_plot(benchmark, label, unit, value)) is not None:
            drawn.append((name, figure))
    for name, figure in drawn:
        _save(figure, output / name)
    return tuple(output / name for name, _ in drawn)


def draw_sheet(benchmark: Benchmark, test_set: TestSet, output: Path) -> Figure | None:
    """Excerpts of up to five pictures, evenly spaced over the set: degraded, each method, reference; None if nothing ran.

    The excerpt is the part of the reference with the strongest contrast. The number is the PSNR of the whole picture.
    """
    rows = [row for row in benchmark.rows if row.test_set is test_set and _on_sheet(row)]
    usable = [k for k in range(len(test_set.names)) if _readable(benchmark, test_set, k)]
    if not usable:
        return None
    chosen = [usable[k] for k in np.unique(np.linspace(0, len(usable) - 1, SHEET_PICTURES).round().astype(int))]
    titles = [textwrap.fill(title, 26) for title in (test_set.base, *(row.method.name for row in rows), *_last(test_set))]
    figure, grid = _sheet_axes(titles, len(chosen))
    for axes, index in zip(grid, chosen, strict=True):
        for ax, (picture, caption) in zip(axes, _sheet_row(benchmark, test_set, rows, index, output), strict=True):
            _panel(ax, picture, caption)
        axes[0].set_ylabel(textwrap.shorten(test_set.names[index], 24, placeholder="..."), fontsize=8)
    return figure


def draw_plot(benchmark: Benchmark, label: str, unit: str, value: Callable[[Row], float | None]) -> Figure | None:
    """Mean PSNR of each method against a value on a logarithmic axis, one panel a set; None without any point.

    Methods without that value (bicubic has no parameters) are drawn as a level line.
    """
    rows = [row for row in benchmark.rows if row.psnr is not None and math.isfinite(row.psnr)]
    if not any(value(row) for row in rows):
        return None
    names = list(dict.fromkeys(row.method.name for row in rows))
    sets = [each for each in benchmark.plan.sets if any(row.test_set is each for row in rows)]
    figure = _figure(4.2 * len(sets) + 2.6, 3.8)
    handles: dict[str, Any] = {}
    for ax, test_set in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        for row in (row for row in rows if row.test_set is test_set):
            number = names.index(row.method.name)
            look = {"color": f"C{number % 10}", "label": row.method.name}
            x = value(row)
            if x:
                handles[row.method.name] = ax.plot([x], [row.psnr], _MARKERS[number % len(_MARKERS)], ms=8, **look)[0]
            else:
                handles.setdefault(row.method.name, ax.axhline(row.psnr, ls="--", lw=1, **look))
        ax.set(title=test_set.title, xlabel=label, ylabel="PSNR (dB)")
        _log_axis(ax, unit)
    labels = [textwrap.fill(name, 26) for name in names]
    figure.legend([handles[name] for name in names], labels, loc="outside right center", fontsize=8, frameon=False)
    return figure


def _sheet_row(
    benchmark: Benchmark, test_set: TestSet, rows: list[Row], index: int, output: Path
) -> list[tuple[NDArray[np.uint8] | None, str]]:
    """Excerpt and caption of each panel of one picture."""
    case = test_set.read(index)
    reference, base = test_set.shown(case)
    part = _excerpt(reference)
    base_row = next((row for row in benchmark.rows if row.test_set is test_set and row.method.name == test_set.base_method), None)
    panels: list[tuple[NDArray[np.uint8] | None, str]] = [
        (base[part], "" if base_row is None else _caption(base_row.scores[index]))
    ]
    for row in rows:
        score = row.scores[index]
        path = test_set.path(output, row.method.name, test_set.names[index])
        shown = None if score.error is not None else as_rgb(read_picture(path).colour)[part]
        panels.append((shown, _caption(score)))
    return [*panels, *((reference[part], "PSNR of the whole picture") for _ in _last(test_set))]


def _last(test_set: TestSet) -> tuple[str, ...]:
    """The title of the last column, the reference, if there is one."""
    return ("reference",) if test_set.scored else ()


def _on_sheet(row: Row) -> bool:
    """Methods that ran on the degraded picture and kept results; the degraded one is drawn for every sheet anyway."""
    shown = row.method.takes != "luma" and not row.derived
    return bool(row.scores) and shown and row.method.name != row.test_set.base_method


def _readable(benchmark: Benchmark, test_set: TestSet, index: int) -> bool:
    """True if some method was scored on the picture, so that its files are sound."""
    return any(row.test_set is test_set and row.scores and row.scores[index].error is None for row in benchmark.rows)


def _excerpt(reference: NDArray[np.uint8]) -> tuple[slice, slice]:
    """The window with the largest standard deviation of luma, on a grid of half windows."""
    luma = rgb_to_y(reference)
    height, width = (min(EXCERPT, side) for side in luma.shape)
    windows = [
        (slice(top, top + height), slice(left, left + width))
        for top in range(0, luma.shape[0] - height + 1, max(1, height // 2))
        for left in range(0, luma.shape[1] - width + 1, max(1, width // 2))
    ]
    return max(windows, key=lambda window: float(luma[window].std()))


def _sheet_axes(titles: list[str], rows: int) -> tuple[Figure, list[list[Any]]]:
    """Square axes at fixed places, titles above the first row; all lengths in inches."""
    side, gap, caption, margin = 1.85, 0.12, 0.3, 0.3
    head = 0.16 * max(title.count("\n") + 1 for title in titles) + 0.1
    width = margin + len(titles) * (side + gap)
    height = head + rows * (side + caption)
    figure = _figure(width, height, constrained=False)
    grid = []
    for row in range(rows):
        bottom = (height - head - row * (side + caption) - side) / height
        lefts = [(margin + column * (side + gap)) / width for column in range(len(titles))]
        grid.append([figure.add_axes((left, bottom, side / width, side / height)) for left in lefts])
    for ax, title in zip(grid[0], titles, strict=True):
        ax.set_title(title, fontsize=8)
    return figure, grid


def _panel(ax: Any, picture: NDArray[np.uint8] | None, caption: str) -> None:
    if picture is not None:
        ax.imshow(picture, interpolation="nearest")
    ax.set_xlabel(caption, fontsize=8)
    ax.set(xticks=[], yticks=[])


def _log_axis(ax: Any, unit: str) -> None:
    """A logarithmic x axis with few ticks (20 ms, 1 M), which stay apart whatever the range."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    ax.margins(0.15)
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high / low < 300 else (1,)))
    ax.xaxis.set_major_formatter(EngFormatter(unit))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.yaxis.set_major_locator(MaxNLocator(6))
    ax.grid(alpha=0.3)


def _caption(score: ImageScore) -> str:
    if score.psnr is None:
        return "failed" if score.error is not None else ""
    return _decibel(score.psnr)


def _decibel(value: float) -> str:
    return f"{value:.2f} dB"


def _figure(width: float, height: float, constrained: bool = True) -> Figure:
    """An empty figure, sizes in inches; made without pyplot, which would keep global state."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError("The figures of a report need matplotlib.", hint="Install it: pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=130, layout="constrained" if constrained else None)


def _save(figure: Figure, path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_bytes(path, data.getvalue())
