"""Scores of detection over many scans: FROC, average precision over lesions, AUROC over scans; bootstrap intervals.

Every score is a function of how often each scan counts, so that a bootstrap sample is a set of weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medical.detection.lesions import Detections
from medical.evaluation.aggregation import RESAMPLES, SEED, interval

RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives a scan at which FROC is read (A. Setio et al., Medical Image Analysis 42, 2017)."""

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class Figure:
    """A score, and the 95 % percentile bootstrap interval over scans. NaN where it cannot be had."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class DetectionScores:
    """Scores of a set of scans.

    Attributes:
        sensitivity: At each of `RATES`: the share of all lesions that are hit, at the lowest confidence that gives at most
            so many false positives a scan; scans without lesions count among the scans.
        mean_sensitivity: Mean over `RATES`.
        average_precision: Sum over falling confidences of precision times the gain in sensitivity. Sensitivity is a share
            of all lesions, so those that no candidate hits add nothing. NaN without lesions.
        auroc: Area under the ROC curve of the scans' confidences, ties counting half, between scans with and without
            lesions. NaN where one kind is absent.
        ranking: Mean of `auroc` and `average_precision`, by which PI-CAI ranks.
    """

    sensitivity: tuple[Figure, ...]
    mean_sensitivity: Figure
    average_precision: Figure
    auroc: Figure
    ranking: Figure


@dataclass(frozen=True, eq=False)
class Curve:
    """Points of a curve, in the order of falling confidence.

    Attributes:
        confidence: The lowest confidence that counts as found.
        x, y: What the curve shows there.
    """

    confidence: Numbers
    x: Numbers
    y: Numbers


@dataclass(frozen=True, eq=False)
class Marks:
    """All candidates that count and all scans, as arrays; build it with `of`.

    Attributes:
        confidence: (candidates,) falling.
        hit: (candidates,) whether it is a hit; else it is a false positive.
        scan: (candidates,) number of its scan.
        lesions: (scans,) number of lesions.
        scan_confidence: (scans,) that there is a lesion.
    """

    confidence: Numbers
    hit: NDArray[np.bool_]
    scan: NDArray[np.int64]
    lesions: NDArray[np.int64]
    scan_confidence: Numbers

    @classmethod
    def of(cls, scans: Sequence[Detections]) -> Marks:
        """The marks of scans."""
        counted = [(n, each) for n, scan in enumerate(scans) for each in scan.candidates if each.outcome != "not counted"]
        counted.sort(key=lambda mark: -mark[1].confidence)
        return cls(
            np.array([each.confidence for _, each in counted], np.float64),
            np.array([each.outcome == "hit" for _, each in counted], np.bool_),
            np.array([n for n, _ in counted], np.int64),
            np.array([len(scan.lesions) for scan in scans], np.int64),
            np.array([scan.confidence for scan in scans], np.float64),
        )

    def froc(self, weights: Numbers | None = None) -> Curve:
        """Sensitivity (y) over false positives a scan (x); `weights` of the shape of `lesions`."""
        ends, hits, false, weights = self._counts(weights)
        with np.errstate(invalid="ignore"):
            return Curve(self.confidence[ends], false / weights.sum(), hits / (weights @ self.lesions))

    def precision_recall(self, weights: Numbers | None = None) -> Curve:
        """Precision (y) over sensitivity (x); `weights` of the shape of `lesions`."""
        ends, hits, false, weights = self._counts(weights)
        with np.errstate(invalid="ignore"):
            precision = hits / (hits + false)
            return Curve(self.confidence[ends], hits / (weights @ self.lesions), precision)

    def roc(self, weights: Numbers | None = None) -> Curve:
        """Share of the scans with lesions (y) over that of the scans without (x); `weights` of the shape of `lesions`."""
        weights = np.ones(len(self.lesions)) if weights is None else weights
        values, place = np.unique(-self.scan_confidence, return_inverse=True)
        shares = []
        for chosen in (self.lesions == 0, self.lesions > 0):
            counts = np.bincount(place, weights * chosen, len(values)).cumsum()
            with np.errstate(invalid="ignore"):
                shares.append(counts / (weights @ chosen))
        return Curve(-values, *shares)

    def _counts(self, weights: Numbers | None) -> tuple[NDArray[np.int64], Numbers, Numbers, Numbers]:
        """Places of the last of equal confidences, hits and false positives up to there, and the weights of scans."""
        weights = np.ones(len(self.lesions)) if weights is None else weights
        ends = np.flatnonzero(np.diff(self.confidence, append=-np.inf))
        each = weights[self.scan]
        return ends, (each * self.hit).cumsum()[ends], (each * ~self.hit).cumsum()[ends], weights


def sensitivities(curve: Curve, rates: Sequence[float] = RATES) -> Numbers:
    """Sensitivity of a FROC curve at n rates of false positives a scan, (n,); 0 where no confidence gives so few.

    >>> curve = Curve(np.array([0.9, 0.8, 0.7]), np.array([0.0, 0.5, 0.5]), np.array([0.25, 0.25, 0.75]))
    >>> sensitivities(curve, (0.25, 0.5)).tolist()
    [0.25, 0.75]
    """
    reached = np.concatenate([[0.0], curve.y])  # both rise along the curve
    if np.isnan(curve.y).any():
        return np.full(len(rates), np.nan)
    return reached[np.searchsorted(curve.x, rates, side="right")]


def average_precision(curve: Curve) -> float:
    """Area under a curve of precision over sensitivity, by steps."""
    gains = np.diff(curve.x, prepend=0.0)
    return float(np.sum(np.where(gains == 0, 0, gains * curve.y)))  # nothing found yet: no precision, and no gain


def area(curve: Curve) -> float:
    """Area under an ROC curve, by trapezoids, which count ties half."""
    x, y = (np.concatenate([[0.0], each]) for each in (curve.x, curve.y))
    return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))


def score_scans(scans: Sequence[Detections], *, resamples: int = RESAMPLES, seed: int = SEED) -> DetectionScores:
    """Scores of scans; intervals by drawing scans with replacement.

    Samples that lack lesions, or scans of one kind, are left out of the intervals of scores that need them.
    """
    marks = Marks.of(scans)
    values = _scores(marks, np.ones(len(scans)))
    generator = np.random.default_rng(seed)
    drawn = np.full((resamples, len(values)), np.nan)
    for row in drawn if scans else ():
        draw = generator.integers(0, len(scans), len(scans))
        row[:] = _scores(marks, np.bincount(draw, minlength=len(scans)).astype(np.float64))
    figures = [Figure(float(value), *interval(column)) for value, column in zip(values, drawn.T, strict=True)]
    return DetectionScores(tuple(figures[: len(RATES)]), *figures[len(RATES) :])


def _scores(marks: Marks, weights: Numbers) -> Numbers:
    """Sensitivity at each rate, their mean, average precision, AUROC, and the mean of the last two."""
    there = bool(weights @ marks.lesions)
    found = sensitivities(marks.froc(weights)) if there else np.full(len(RATES), np.nan)
    precision = average_precision(marks.precision_recall(weights)) if there else np.nan
    auroc = area(marks.roc(weights)) if len(weights) else np.nan
    return np.array([*found, found.mean(), precision, auroc, (precision + auroc) / 2])
