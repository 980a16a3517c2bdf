"""The reliability plot: how often voxels are of a structure, against the probability that they were given.

Drawn by matplotlib without a display.
"""

from __future__ import annotations

import io
import math
import textwrap
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from medical.evaluation.calibration import Reliability, edges
from medical.structures import PALETTE

FEW = 50
"""Voxels below which a bin says nothing: a grey cross."""

_HOW_TO_READ = (
    "Dashed: probabilities are what they say. A flatter curve: the network is surer than it is right. Bars: 95 % over the scans. "
    f"Grey crosses: fewer than {FEW} voxels."
)
_COLUMNS, _SIDE = 4, 2.9  # panels side by side, inches


def reliability_plot(results: Sequence[Reliability], title: str) -> bytes:
    """PNG with one panel a target: frequency over probability above, how many voxels each bin holds below, on a log scale.

    Bars: 95 % bootstrap interval over the scans; bins of fewer than `FEW` voxels are grey crosses, off the line.
    On the dashed line probabilities are what they say; below it the network is
    too sure that the structure is there, above it not sure enough.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(_COLUMNS, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(_SIDE * max(columns, 2) + 0.4, rows * (_SIDE + 1.2) + 0.8), dpi=130, layout="constrained")
    grid = figure.add_gridspec(2 * rows, columns, height_ratios=[3, 1] * rows)
    for number, each in enumerate(results):
        row, column = divmod(number, columns)
        _panel(figure, grid[2 * row, column], grid[2 * row + 1, column], each, number)
    figure.suptitle(textwrap.fill(title, 40 * max(columns, 2)), fontsize=10)
    figure.supxlabel(textwrap.fill(_HOW_TO_READ, 60 * max(columns, 2) - 40), fontsize=8)
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _panel(figure: Any, above: Any, below: Any, each: Reliability, number: int) -> None:
    pooled, drawn = each.pooled, each.resampled()
    limits = edges(len(pooled.counts))
    colour = np.array(PALETTE[number % len(PALETTE)]) / 255
    axes = figure.add_subplot(above)
    there = pooled.counts > 0
    firm = pooled.counts >= FEW
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # bins without a voxel
        low, high = np.nanpercentile(drawn.frequency, (2.5, 97.5), axis=0)
    p, found = pooled.probability, pooled.frequency
    axes.plot((0, 1), (0, 1), linestyle="--", color="gray", linewidth=1)
    axes.vlines(p[firm], low[firm], high[firm], color="black", linewidth=1)
    axes.plot(p[firm], found[firm], color="black", linewidth=1)
    axes.scatter(p[firm], found[firm], s=22, color=[colour], edgecolors="black", linewidths=0.5, zorder=3)
    axes.scatter(p[there & ~firm], found[there & ~firm], s=16, marker="x", color="gray", linewidths=1)
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", ylabel="frequency")
    axes.set_title(textwrap.fill(each.name, 30), fontsize=9)
    words = f"ECE {pooled.ece(1):.3f}\nBrier {pooled.brier(1):.3f}" + (f"\nof p > {limits[1]:.3f}" if pooled.counts[0] else "")
    axes.text(0.04, 0.96, words, transform=axes.transAxes, va="top", fontsize=8)
    axes.grid(alpha=0.3)
    bars = figure.add_subplot(below)
    bars.bar(
        limits[:-1],
        np.maximum(pooled.counts, 0.5),
        width=np.diff(limits),
        align="edge",
        color=[colour],
        edgecolor="black",
        linewidth=0.4,
    )
    bars.set(xlim=(0, 1), yscale="log", xlabel="probability", ylabel="voxels")
    bars.set_ylim(bottom=0.8)
