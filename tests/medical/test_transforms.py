"""Intensities against SciPy and plain numpy; random changes move scan and labels together and depend on their seed alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy import ndimage, stats

from medical.protocol import Protocol, Standardise, Window, ZScore
from medical.segmentation.normalisation import normalise, training_grid
from medical.structures import Structure
from medical.training.transforms import Augment, Augmentation
from medical.volumes.geometry import Grid


def scan(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).gamma(2.0, 50.0, shape)


# Intensity -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1.6e4])
def test_z_score_is_scipys_for_each_channel(scale: float) -> None:
    values = scan(2, 5, 6, 7) * scale + np.array([0.0, 1000.0]).reshape(2, 1, 1, 1) * scale
    found = normalise(values, ZScore())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, stats.zscore(values.reshape(2, -1), axis=1).reshape(values.shape), atol=2e-5)


@pytest.mark.parametrize("kind", [np.int16, np.int32, np.float32, np.float64])
def test_ct_is_clipped_and_standardised_by_constants_of_the_data_set(kind: type) -> None:
    values = np.array([[-3024, -962, -500, 0, 80, 319, 3071]] * 2, kind).reshape(2, 7, 1, 1)
    before = values.copy()
    found = normalise(values, Standardise(low=-962, high=319, mean=80.926, std=140.948))
    expected = [(v - 80.926) / 140.948 for v in (-962, -962, -500, 0, 80, 319, 319)]
    np.testing.assert_allclose(found[1].ravel(), expected, atol=1e-6)
    assert found.dtype == np.float32 and found.shape == values.shape
    np.testing.assert_array_equal(values, before)


@pytest.mark.parametrize("wrong", [{"low": 319}, {"std": 0}, {"std": -1}, {"mean": float("nan")}, {"nonzero": True}])
def test_constants_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Standardise.model_validate({"low": -962, "high": 319, "mean": 80.926, "std": 140.948} | wrong)


def test_z_score_of_what_is_not_0() -> None:
    values = scan(2, 5, 6, 7)
    values[:, :2] = 0
    found = normalise(values, ZScore(nonzero=True))
    assert (found[:, :2] == 0).all()
    np.testing.assert_allclose(found[1, 2:].ravel(), stats.zscore(values[1, 2:].ravel()), atol=1e-5)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.int64])
def test_integers_as_stored_are_taken_and_not_changed(dtype: type) -> None:
    values = np.minimum(scan(1, 4, 5, 6), 250).astype(dtype)[:, ::-1].swapaxes(1, 3)  # a view, as reorientation gives
    before = values.copy()
    for intensity in (ZScore(), ZScore(nonzero=True), Window(low=20, high=90)):
        result = normalise(values, intensity)
        assert result.dtype == np.float32 and result.shape == values.shape and np.isfinite(result).all()
    np.testing.assert_array_equal(values, before)
    np.testing.assert_allclose(normalise(values, ZScore()).ravel(), stats.zscore(values.astype(float).ravel()), atol=1e-5)


@pytest.mark.parametrize("nonzero", [False, True])
@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_a_constant_channel_becomes_0(value: float, nonzero: bool) -> None:
    result = normalise(np.full((1, 4, 4, 4), value, np.float32), ZScore(nonzero=nonzero))
    np.testing.assert_allclose(result, 0, atol=1e-6)


def test_window_clips_to_0_and_1() -> None:
    found = normalise(np.array([[-1024, -175, 37.5, 250, 3000]]), Window(low=-175, high=250))
    np.testing.assert_allclose(found, [[0, 0, 0.5, 1, 1]])


# Grids -----------------------------------------------------------------------------------------------------------


def protocol(spacing: tuple[float, float, float] | None) -> Protocol:
    return Protocol(
        modality="MR", channels=("T1w",), spacing=spacing, intensity=ZScore(), patch=(8, 8, 8),
        structures=(Structure(value=1, name="ball"),),
    )  # fmt: skip


def test_a_grid_that_fits_is_kept_as_it_is() -> None:
    grid = Grid((4, 5, 6), np.diag([1.0, 1.0, 1.0004, 1]))
    assert training_grid(grid, protocol(None)) is grid
    assert training_grid(grid, protocol((1, 1, 1))) is grid


def test_another_spacing_and_a_sheared_grid_are_resampled() -> None:
    target = training_grid(Grid((40, 50, 20), np.diag([1.0, 1.0, 3.0, 1])), protocol((2, 2, 1.5)))
    assert target.shape == (20, 25, 40) and target.spacing == pytest.approx((2, 2, 1.5))
    sheared = np.eye(4)
    sheared[0, 2] = 0.3
    assert training_grid(Grid((10, 10, 10), sheared), protocol(None)).orthogonal


# Random changes --------------------------------------------------------------------------------------------------

EVERYTHING = Augmentation(
    spatial=1, rotation=20, scaling=0.2, intensity=1, noise=0.1, blur=1, brightness=0.2, contrast=1.5, low_resolution=2
)


def ball(side: int = 24) -> np.ndarray:
    """(1, side, side, side) labels: an egg off the centre."""
    i, j, k = np.indices((side,) * 3) - np.array([10, 12, 13]).reshape(3, 1, 1, 1)
    return ((i / 6) ** 2 + (j / 8) ** 2 + (k / 5) ** 2 < 1).astype(np.uint8)[None]


def changed(
    augmentation: Augmentation, mirror: tuple[int, ...] = (), seed: int = 0, **given: Any
) -> tuple[np.ndarray, np.ndarray]:
    labels = given.get("labels", ball())
    return Augment(augmentation, mirror)(given.get("values", labels.astype(np.float32)), labels, np.random.default_rng(seed))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_without_changes_a_sample_stays() -> None:
    values = scan(2, 6, 7, 8).astype(np.float32)
    labels = (values[:1] > 90).astype(np.uint8)
    found = changed(Augmentation(), values=values, labels=labels)
    assert all(array.dtype == np.float32 and array.flags.c_contiguous for array in found)
    np.testing.assert_array_equal(found[0], values)
    np.testing.assert_array_equal(found[1], labels)


def test_rotation_and_scaling_move_scan_and_labels_together() -> None:
    shares = []
    for seed in range(6):
        values, labels = changed(Augmentation(spatial=1, rotation=25, scaling=0.2), seed=seed)
        assert set(np.unique(labels)) == {0, 1} and values.shape == labels.shape == (1, 24, 24, 24)
        assert overlap(values > 0.5, labels > 0) > 0.97
        shares.append(overlap(ball() > 0, labels > 0))
    assert max(shares) < 0.98 and min(shares) > 0.4


def test_mirroring_is_along_the_axes_that_are_named() -> None:
    seen = {changed(Augmentation(), (0, 2), seed)[1].tobytes() for seed in range(30)}
    whole = ball().astype(np.float32)
    assert seen == {np.ascontiguousarray(a).tobytes() for a in (whole, whole[:, ::-1], whole[..., ::-1], whole[:, ::-1, :, ::-1])}


def test_intensities_change_and_labels_do_not() -> None:
    only = EVERYTHING.model_copy(update={"spatial": 0.0})
    values, labels = changed(only, values=scan(1, 24, 24, 24).astype(np.float32))
    np.testing.assert_array_equal(labels, ball())
    assert np.isfinite(values).all() and not np.allclose(values, scan(1, 24, 24, 24))


@pytest.mark.parametrize("field", ["noise", "blur", "brightness", "contrast", "low_resolution"])
def test_each_change_does_something_on_its_own(field: str) -> None:
    values = normalise(ndimage.gaussian_filter(scan(1, 16, 16, 16), (0, 1.5, 1.5, 1.5)), ZScore())
    chosen = Augmentation(intensity=1, **{field: getattr(EVERYTHING, field)})
    found, _ = changed(chosen, values=values, labels=np.zeros((1, 16, 16, 16), np.uint8))
    assert np.abs(found - values).max() > 1e-3
    correlation = np.corrcoef(found.ravel(), values.ravel())[0, 1]
    assert correlation > 0.9
    if field == "contrast":  # mean and spread stay
        assert found.mean() == pytest.approx(0, abs=1e-3) and found.std() == pytest.approx(1, abs=1e-3)


def test_all_chance_comes_from_the_generator_given() -> None:
    """So that a resumed training sees the same data, whatever else draws numbers."""
    values, labels = scan(1, 24, 24, 24).astype(np.float32), ball()
    first = Augment(EVERYTHING, (0,))(values, labels, np.random.default_rng(5))
    np.random.seed(1)
    torch.manual_seed(1)
    used = Augment(EVERYTHING, (0,))
    used(values, labels, np.random.default_rng(9))
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # type: ignore[index,union-attr]
    again = used(values, labels, np.random.default_rng(5))
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.random.get_state()[1], before[0])  # type: ignore[index]
    assert torch.equal(torch.get_rng_state(), before[1])
    other = used(values, labels, np.random.default_rng(6))
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("wrong", [{"spatial": 2}, {"scaling": 1}, {"contrast": 0.5}, {"rotate": 3}, {"noise": -1}])
def test_augmentations_that_cannot_be_meant_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        Augmentation(**wrong)  # type: ignore[arg-type]
