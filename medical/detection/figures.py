"""Curves of a detection: FROC and precision over lesions, ROC over scans. Drawn by matplotlib without a display."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np

from hybrid.errors import ResourceError
from medical.detection.evaluation import DetectionEvaluation
from medical.detection.scores import RATES, Curve, Figure, Marks
from medical.structures import PALETTE

_LOWEST = RATES[0] / 2
_LINE = {"color": tuple(part / 255 for part in PALETTE[4]), "linewidth": 1.8}
_POINTS = {"color": tuple(part / 255 for part in PALETTE[5]), "fmt": "o", "markersize": 4, "capsize": 3, "linewidth": 1}


def curve_plot(evaluation: DetectionEvaluation) -> bytes | None:
    """PNG with the three curves; None where no case has a lesion, which all of them need.

    Raises:
        ResourceError: matplotlib is not installed.
    """
    marks, scores = Marks.of(evaluation.scans), evaluation.scores
    if not marks.lesions.any():
        return None
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas
    except ImportError as error:
        raise ResourceError("The figure of a report needs matplotlib.", hint="Install it: pip install matplotlib") from error
    figure = Canvas(figsize=(12, 4.4), dpi=130, layout="constrained")
    froc, precision, roc = figure.subplots(1, 3)
    _froc(froc, marks.froc(), scores.sensitivity)
    _precision(precision, marks.precision_recall(), scores.average_precision)
    _roc(roc, marks, scores.auroc)
    for axes in (froc, precision, roc):
        axes.set_ylim(-0.02, 1.02)
        axes.grid(alpha=0.3)
    count = f"{len(marks.lesions)} scans, {marks.lesions.sum()} lesions in {(marks.lesions > 0).sum()}"
    figure.suptitle(textwrap.fill(f"{evaluation.plan.cases.title}: {count}", 120), fontsize=10)
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _froc(axes: Any, curve: Curve, read: tuple[Figure, ...]) -> None:
    """Sensitivity over false positives a scan, which runs by the logarithm and so begins above 0."""
    x = np.concatenate([[0.0], curve.x, [2 * RATES[-1]]])
    y = np.concatenate([[0.0], curve.y])
    y = np.append(y, y[-1])
    axes.plot(np.maximum(x, _LOWEST), y, drawstyle="steps-post", **_LINE)
    values = np.array([(each.value, each.low, each.high) for each in read]).T
    axes.errorbar(RATES, values[0], np.abs(values[1:] - values[0]), **_POINTS)
    axes.set_xscale("log", base=2)
    axes.set_xlim(_LOWEST, 1.2 * RATES[-1])
    axes.set_xticks(RATES, ["1/8", "1/4", "1/2", "1", "2", "4", "8"])
    axes.set(xlabel="false positives a scan", ylabel="sensitivity", title="FROC, with 95 % intervals")


def _precision(axes: Any, curve: Curve, area: Figure) -> None:
    if curve.x.size:
        axes.plot(np.concatenate([[0.0], curve.x]), np.concatenate([curve.y[:1], curve.y]), drawstyle="steps-pre", **_LINE)
    else:
        axes.text(0.5, 0.5, "no candidates", ha="center", fontsize=9)
    axes.set(xlabel="sensitivity (all lesions)", ylabel="precision", title=f"Lesions: AP {_text(area)}", xlim=(-0.02, 1.02))


def _roc(axes: Any, marks: Marks, area: Figure) -> None:
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1)
    if (marks.lesions == 0).any():
        curve = marks.roc()
        axes.plot(np.concatenate([[0.0], curve.x]), np.concatenate([[0.0], curve.y]), **_LINE)
    else:
        axes.text(0.65, 0.2, "every scan has a lesion", ha="center", fontsize=9)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", title=f"Scans: AUROC {_text(area)}", xlim=(-0.02, 1.02))


def _text(figure: Figure) -> str:
    return "none" if np.isnan(figure.value) else f"{figure.value:.3f} [{figure.low:.3f}, {figure.high:.3f}]"
