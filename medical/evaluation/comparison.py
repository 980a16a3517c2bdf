"""Two models on the same cases: the scores of one evaluation against the `scores.csv` of an earlier one."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.errors import InputError
from medical.evaluation.aggregation import Paired, paired
from medical.evaluation.engine import METRICS, Evaluation, Metric

_COLUMNS: dict[Metric, str] = {"dice": "dice", "hd95": "hd95_mm", "nsd": "nsd"}
_MEAN = "mean of each case"


@dataclass(frozen=True)
class Comparison:
    """Paired Wilcoxon signed-rank tests over the cases that both evaluations have scored.

    Attributes:
        name: What the earlier evaluation is called.
        rows: Test of each metric for each structure, and for the mean over the structures of each case.
    """

    name: str
    rows: Mapping[str, Mapping[Metric, Paired]]

    @property
    def title(self) -> str:
        """Heading of the table."""
        return f"Against {self.name}"

    header = ("structure", "cases", "Dice", "p", "HD95", "p", "NSD", "p")

    def table_rows(self) -> list[tuple[str, ...]]:
        """One row of text for each structure: the mean difference (this less the earlier one) and p of each metric."""
        return [
            (name, str(row["dice"].n), *(cell for metric in METRICS for cell in _cells(metric, row[metric])))
            for name, row in self.rows.items()
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: the tests of each structure and metric."""
        tests = {name: {metric: asdict(test) for metric, test in row.items()} for name, row in self.rows.items()}
        return {"against": self.name, "test": "Wilcoxon signed-rank, two-sided, paired over cases", "structures": tests}


@dataclass(frozen=True)
class EarlierScores:
    """Scores by case and structure, and the name of the folder that they lay in."""

    name: str
    known: Mapping[tuple[str, str], Mapping[Metric, float]]


def read_scores(path: Path) -> EarlierScores:
    """Read the ``scores.csv`` of an evaluation, or of an evaluation's folder.

    Raises:
        InputError: It is missing, or no such table.
    """
    path = path / "scores.csv" if path.is_dir() else path
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [row for row in csv.DictReader(stream) if not row["error"]]
        known = {
            (row["case"], row["structure"]): {
                metric: float(row["hd95_px" if column == "hd95_mm" and "hd95_px" in row else column] or "nan")
                for metric, column in _COLUMNS.items()
            }
            for row in rows
        }
    except (OSError, UnicodeDecodeError, KeyError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is no table of scores: {error}.", hint="Name the scores.csv of an evaluation.") from error
    return EarlierScores(path.resolve().parent.name, known)


def compare(evaluation: Evaluation, earlier: EarlierScores) -> Comparison:
    """Test whether an evaluation differs from an earlier one.

    Raises:
        InputError: They share no case or structure.
    """
    known = earlier.known
    cases = [result.name for result in evaluation.scored]
    names = [target.name for target in evaluation.targets if any((case, target.name) in known for case in cases)]
    if not names:
        raise InputError(
            f"The scores in {earlier.name} share no case and structure with this evaluation.",
            hint="Evaluate both on the same split.",
        )
    rows: dict[str, dict[Metric, Paired]] = {name: {} for name in (*names, _MEAN)}
    kept = [k for k, target in enumerate(evaluation.targets) if target.name in names]
    for metric in METRICS:
        ours = evaluation.table(metric)[:, kept]
        theirs = np.array([[known.get((case, name), {}).get(metric, np.nan) for name in names] for case in cases])
        for column, name in enumerate(names):
            rows[name][metric] = paired(ours[:, column], theirs[:, column])
        both = np.isfinite(ours) & np.isfinite(theirs)
        rows[_MEAN][metric] = paired(_row_means(ours, both), _row_means(theirs, both))
    return Comparison(earlier.name, rows)


def _row_means(values: np.ndarray, both: np.ndarray) -> np.ndarray:
    """Mean of each case over the structures that both evaluations have a score of."""
    with np.errstate(invalid="ignore"):
        means: np.ndarray = np.where(both, values, 0).sum(axis=1) / both.sum(axis=1)
        return means


def _cells(metric: Metric, test: Paired) -> tuple[str, str]:
    difference = "" if math.isnan(test.difference) else f"{test.difference:+.{2 if metric == 'hd95' else 4}f}"
    return difference, "" if math.isnan(test.p) else f"{test.p:.3g}"
