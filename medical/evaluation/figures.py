"""Box plot of an evaluation: Dice, HD95 and NSD of each structure, with a point for each case.

Drawn by matplotlib without a display.
"""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import ResourceError
from medical.evaluation.engine import METRICS, Evaluation
from medical.structures import PALETTE

_SPREAD = 0.16
"""Points lie at most so far from the middle of their box, which is 1 from the next."""


def score_plot(evaluation: Evaluation) -> bytes | None:
    """PNG with one panel a metric and one box a structure; None where no case was scored.

    Boxes span the quartiles, with the median; whiskers reach to the last case within 1.5 times their length.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    if not evaluation.scored or not evaluation.targets:
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ResourceError("The figure of a report needs matplotlib.", hint="Install it: pip install matplotlib") from error
    names = [textwrap.fill(target.name, 22) for target in evaluation.targets]
    figure = Figure(figsize=(10.5, 1.4 + 0.52 * max(2, len(names))), dpi=130, layout="constrained")
    chosen = evaluation.plan.conventions
    labels = {"dice": "Dice", "hd95": f"HD95 ({chosen.unit})", "nsd": f"NSD ({chosen.tolerance:g} {chosen.unit})"}
    panels = figure.subplots(1, len(METRICS), sharey=True)
    for axes, metric in zip(panels, METRICS, strict=True):
        _panel(axes, evaluation.table(metric))
        axes.set_xlabel(labels[metric])
    panels[0].set_yticks(range(len(names)), names)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    figure.suptitle(textwrap.fill(f"{evaluation.plan.title}, {len(evaluation.scored)} cases", 110), fontsize=10)
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _panel(axes: Any, table: NDArray[np.float64]) -> None:
    """Level boxes, so that long names can be read; the points are spread by a fixed seed to be told apart."""
    columns = [column[np.isfinite(column)] for column in table.T]
    shown = [place for place, column in enumerate(columns) if column.size]
    if shown:
        look = {"color": "black", "linewidth": 1}
        axes.boxplot(
            [columns[place] for place in shown],
            positions=shown,
            orientation="horizontal",
            widths=0.6,
            showfliers=False,
            manage_ticks=False,
            **{f"{part}props": look for part in ("box", "whisker", "cap")},
            medianprops={"color": "black", "linewidth": 2},
        )
    generator = np.random.default_rng(0)
    for place in shown:
        spread = generator.uniform(-_SPREAD, _SPREAD, columns[place].size)
        colour = np.array(PALETTE[place % len(PALETTE)]) / 255
        axes.scatter(columns[place], place + spread, s=12, color=[colour], edgecolors="black", linewidths=0.3, zorder=3)
    for place, column in enumerate(columns):
        if not column.size:
            axes.text(0.5, place, "none", transform=axes.get_yaxis_transform(), ha="center", va="center", fontsize=8)
    axes.grid(axis="x", alpha=0.3)
