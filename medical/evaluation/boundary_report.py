"""The boundary measures of an evaluation on pictures: their means as a table, and each picture's as CSV."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import asdict
from typing import Any

import numpy as np

from medical.evaluation.aggregation import Summary, summarise
from medical.evaluation.engine import Evaluation

BOUNDARIES = "boundaries.csv"
TITLE = "Boundaries"
HEADER = ("measure", "cases", "mean", "left out")


def boundary_means(evaluation: Evaluation) -> dict[str, Summary]:
    """Summary of each measure over the pictures; none where nothing was asked for."""
    scored = [result.boundaries for result in evaluation.scored]
    names = list(dict.fromkeys(name for figures in scored for name in figures))
    if not names:
        return {}
    each, _ = summarise(np.array([[figures.get(name, np.nan) for name in names] for figures in scored]))
    return dict(zip(names, each, strict=True))


def boundary_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """One row of text for each measure: mean ± standard deviation [95 % interval]."""
    return [(name, str(row.n), _cell(row), str(row.left_out or "")) for name, row in boundary_means(evaluation).items()]


def boundary_facts(evaluation: Evaluation) -> list[str]:
    """The choices behind them, one sentence each."""
    chosen, facts = evaluation.plan.conventions, []
    if any(result.boundaries for result in evaluation.scored) and chosen.boundary is not None:
        facts.append(f"Boundary F1: boundary pixels within {chosen.boundary:g} px of the other boundary.")
    if any(result.boundaries for result in evaluation.scored) and chosen.partition:
        facts.append(
            "Adapted Rand error and variation of information (VI, bits) of the cells between the structures: pixels that hang "
            "together across an edge, over the pixels of the reference's cells, predicted cells grown until they meet."
        )
    return facts


def boundary_csv(evaluation: Evaluation) -> str | None:
    """One line for each picture and measure; None where there is none."""
    rows = [(result.name, name, value) for result in evaluation.scored for name, value in result.boundaries.items()]
    if not rows:
        return None
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("case", "measure", "value"))
    writer.writerows((case, name, "" if math.isnan(value) else repr(value)) for case, name, value in rows)
    return text.getvalue()


def boundary_facts_json(evaluation: Evaluation) -> dict[str, Any]:
    """Means as plain numbers; NaN where one cannot be had."""
    return {name: asdict(row) for name, row in boundary_means(evaluation).items()}


def _cell(row: Summary) -> str:
    if math.isnan(row.mean):
        return "none"
    spread = "" if math.isnan(row.sd) else f" ± {row.sd:.4f}"
    return f"{row.mean:.4f}{spread} [{row.low:.4f}, {row.high:.4f}]"
