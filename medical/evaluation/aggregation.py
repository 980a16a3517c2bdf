"""From the scores of cases to what a table reports: means, spread, bootstrap intervals, and tests between two models.

Scores come as arrays (cases, structures); NaN is a score that the conventions leave out. The mean of a set is the mean
over the structures of their means over the cases; voxels are never pooled over cases.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import wilcoxon

RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Summary:
    """Mean of a score over cases. Numbers that cannot be had are NaN.

    Attributes:
        mean: Mean over the cases that count.
        sd: Sample standard deviation over them; NaN for the mean over structures.
        low, high: 95 % percentile bootstrap interval of the mean, over cases.
        n: Cases that count.
        left_out: Cases without a score.
    """

    mean: float
    sd: float
    low: float
    high: float
    n: int
    left_out: int


@dataclass(frozen=True)
class Paired:
    """Two-sided Wilcoxon signed-rank test of two models on the same cases.

    Attributes:
        n: Cases that both have a score for.
        difference: Mean of the first less the second.
        p: NaN where all differences are 0 or there are none.
    """

    n: int
    difference: float
    p: float


def summarise(scores: ArrayLike, *, resamples: int = RESAMPLES, seed: int = SEED) -> tuple[tuple[Summary, ...], Summary]:
    """Summaries of each structure, and of the mean over the structures.

    Intervals come from drawing cases with replacement, whole cases, so that structures of one case stay together.

    Args:
        scores: (cases, structures).
        resamples: Number of bootstrap samples.
        seed: Their seed.

    >>> each, overall = summarise([[0.8, 0.6], [0.9, np.nan]])
    >>> round(each[0].mean, 3), each[1].n, each[1].left_out, round(overall.mean, 3)
    (0.85, 1, 1, 0.725)
    """
    values = np.asarray(scores, np.float64)
    draws = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values))) if len(values) else None
    drawn = np.stack([_mean(values[draw]) for draw in draws]) if draws is not None else np.empty((0, values.shape[1]))
    means, counted = _mean(values), np.isfinite(values).sum(axis=0)
    structures = tuple(
        Summary(float(means[k]), _sd(values[:, k]), *interval(drawn[:, k]), int(counted[k]), int(len(values) - counted[k]))
        for k in range(values.shape[1])
    )
    some = int(np.isfinite(values).any(axis=1).sum())
    return structures, Summary(float(_mean(means)), np.nan, *interval(_mean(drawn.T)), some, len(values) - some)


def paired(first: ArrayLike, second: ArrayLike) -> Paired:
    """Compare two models on the same cases.

    >>> paired([0.9, 0.8, 0.7, 0.9, 0.8], [0.8, 0.7, 0.6, 0.7, 0.5]).p
    0.0625
    """
    differences = np.round(np.asarray(first, np.float64) - np.asarray(second, np.float64), 12)  # ties that rounding hides
    differences = differences[np.isfinite(differences)]
    mean = float(differences.mean()) if differences.size else np.nan
    p = float(wilcoxon(differences).pvalue) if differences.any() else np.nan
    return Paired(differences.size, mean, p)


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean along the first axis of what is a number; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        means: NDArray[np.float64] = np.where(known, values, 0).sum(axis=0) / known.sum(axis=0)
        return means


def _sd(values: NDArray[np.float64]) -> float:
    known = values[np.isfinite(values)]
    return float(known.std(ddof=1)) if known.size > 1 else np.nan


def interval(means: NDArray[np.float64]) -> tuple[float, float]:
    """95 % percentile interval of the means (or other figures) of bootstrap samples; those that are NaN are left out."""
    known = means[np.isfinite(means)]
    return (float(np.percentile(known, 2.5)), float(np.percentile(known, 97.5))) if known.size else (np.nan, np.nan)
