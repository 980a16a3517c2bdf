"""Means, bootstrap intervals and paired tests, judged by SciPy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from medical.evaluation.aggregation import paired, summarise


def scores(cases: int, structures: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).beta(8, 2, (cases, structures))


def test_means_over_cases_then_structures() -> None:
    table = np.array([[0.9, np.nan], [0.7, 0.2], [0.8, 0.4]])
    (first, second), overall = summarise(table)
    assert (first.mean, first.n, first.left_out) == (pytest.approx(0.8), 3, 0)
    assert (second.mean, second.n, second.left_out) == (pytest.approx(0.3), 2, 1)
    assert overall.mean == pytest.approx((0.8 + 0.3) / 2)  # and neither the mean of all numbers, 0.6, nor of the cases
    assert first.sd == pytest.approx(np.std([0.9, 0.7, 0.8], ddof=1))


def test_intervals_are_scipys() -> None:
    table = scores(40, 2)
    each, _ = summarise(table)
    for column, summary in zip(table.T, each, strict=True):
        theirs = stats.bootstrap((column,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
        assert (summary.low, summary.high) == pytest.approx(tuple(theirs), abs=0.005)
        assert summary.low < summary.mean < summary.high


def test_intervals_are_repeatable_and_keep_cases_together() -> None:
    table = scores(25, 2)
    assert summarise(table) == summarise(table)
    assert summarise(table)[0][0].low != summarise(table, seed=1)[0][0].low
    opposed = np.stack([table[:, 0], 1 - table[:, 0]], axis=1)  # every case has the mean 0.5, so has every resample
    _, overall = summarise(opposed)
    assert (overall.low, overall.high) == (pytest.approx(0.5), pytest.approx(0.5))


def test_scores_that_are_not_there() -> None:
    (gone, single), overall = summarise([[np.nan, 0.5], [np.nan, np.nan]])
    assert np.isnan([gone.mean, gone.sd, gone.low, gone.high]).all() and (gone.n, gone.left_out) == (0, 2)
    assert single.mean == 0.5 and np.isnan(single.sd)
    assert overall.mean == 0.5 and (overall.n, overall.left_out) == (1, 1)
    (nothing,), _ = summarise(np.empty((0, 1)))
    assert np.isnan(nothing.mean) and nothing.n == 0


def test_paired_test_is_scipys() -> None:
    a, b = scores(30, 1)[:, 0], scores(30, 1, seed=1)[:, 0]
    test = paired(a, b)
    assert test.p == pytest.approx(stats.wilcoxon(a, b).pvalue) and test.difference == pytest.approx((a - b).mean())
    holes = a.copy()
    holes[:10] = np.nan
    assert paired(holes, b).n == 20 and paired(holes, b).p == pytest.approx(stats.wilcoxon(a[10:], b[10:]).pvalue)
    assert paired(a, a).difference == 0 and np.isnan(paired(a, a).p)
    assert paired([np.nan], [1.0]).n == 0
