"""Mixing against plain numpy and SciPy, its chances against what the distributions say, and the sheet of pictures."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from scipy import ndimage, stats

from hybrid.training.loop import Sample
from medical.structures import Structure
from medical.training.mixing import CropMix, CutMix, Mixed, Mixing, MixUp, blend, border_box, enlarge, inner_box, paste
from medical.training.mixing_sheet import KINDS, mixing_sheet, tinted

SIZES = [(24, 18), (12, 10, 8)]
VALUES = (1, 2, 4)


def sample(size: tuple[int, ...], seed: int = 0) -> Sample:
    """Two channels of noise, and shares of four classes that are 0 or 1."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, size)
    return rng.normal(size=(2, *size)).astype(np.float32), np.stack([labels == c for c in range(4)]).astype(np.float32)


def mixing(**given: Any) -> Any:
    return TypeAdapter(Mixing).validate_python(given)


class Drawn:
    """Draws values that all are the number of the draw, beginning with 1, and a random label map."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self.size, self.count = size, 0

    def __call__(self, rng: np.random.Generator) -> Sample:
        self.count += 1
        return np.full((2, *self.size), self.count, np.float32), rng.choice([0, *VALUES], (1, *self.size)).astype(np.float32)


# The parts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_blend_is_a_weighted_mean_of_values_and_shares(size: tuple[int, ...]) -> None:
    first, second = sample(size, 0), sample(size, 1)
    mixed = blend(first, second, 0.3)
    for found, a, b in zip(mixed, first, second, strict=True):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, 0.3 * a + 0.7 * b, atol=1e-6)
    np.testing.assert_allclose(mixed[1].sum(0), 1, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_paste_takes_the_box_from_the_second_and_leaves_both_unchanged(size: tuple[int, ...]) -> None:
    first, second = sample(size, 0), sample(size, 1)
    kept = [side.copy() for side in (*first, *second)]
    box = tuple(slice(2 + axis, 7) for axis in range(len(size)))
    inside = np.zeros(size, bool)
    inside[box] = True
    for found, a, b in zip(paste(first, second, box), first, second, strict=True):
        np.testing.assert_array_equal(found, np.where(inside, b, a))
    for side, before in zip((*first, *second), kept, strict=True):
        np.testing.assert_array_equal(side, before)


@pytest.mark.parametrize("size", SIZES)
def test_enlarged_parts_are_scipys_linear_interpolation(size: tuple[int, ...]) -> None:
    values, shares = sample(size)
    box = tuple(slice(1, 1 + n // 2 + axis) for axis, n in enumerate(size))
    sides = [part.stop - part.start for part in box]
    places = np.meshgrid(*((np.arange(n) + 0.5) * side / n - 0.5 for n, side in zip(size, sides, strict=True)), indexing="ij")
    found = enlarge((values, shares), box)
    for side, source in zip(found, (values, shares), strict=True):
        assert side.shape == source.shape and side.dtype == np.float32
        judge = [ndimage.map_coordinates(channel[box], places, order=1, mode="nearest") for channel in source]
        np.testing.assert_allclose(side, judge, atol=1e-5)
    np.testing.assert_allclose(found[1].sum(0), 1, atol=1e-5)
    whole = enlarge((values, shares), tuple(slice(0, n) for n in size))
    np.testing.assert_allclose(whole[0], values, atol=1e-6)


# Chances ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_the_weights_of_mixup_follow_the_beta_distribution(alpha: float) -> None:
    zeros, ones = (np.full((1, 2, 2), value, np.float32) for value in (0, 1))
    kind = MixUp(alpha=alpha)
    drawn = [float(kind.mix((ones, ones), (zeros, zeros), np.random.default_rng([1, n]))[0][0, 0, 0]) for n in range(2000)]
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 0.01


@pytest.mark.parametrize("size", [(200, 150), (60, 50, 40)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_boxes_around_any_point_have_the_share_that_the_border_leaves(size: tuple[int, ...], share: float) -> None:
    """Along an axis, an edge of r around a uniform point keeps r - r²/4 on the mean."""
    boxes = [border_box(size, share, np.random.default_rng([2, n])) for n in range(1500)]
    sides = np.array([[part.stop - part.start for part in box] for box in boxes]) / size
    edge = share ** (1 / len(size))
    assert sides.prod(1).mean() == pytest.approx((edge - edge**2 / 4) ** len(size), rel=0.04)
    assert sides.max() == pytest.approx(edge, abs=0.02)
    assert all(0 <= part.start <= part.stop <= n for box in boxes for part, n in zip(box, size, strict=True))
    middle = np.array([[(part.start + part.stop) / 2 for part in box] for box in boxes]) / size
    np.testing.assert_allclose(middle.mean(0), 0.5, atol=0.03)


@pytest.mark.parametrize("size", SIZES)
def test_the_share_of_pasted_labels_is_that_of_pasted_voxels(size: tuple[int, ...]) -> None:
    ones, zeros = (np.full((1, *size), value, np.float32) for value in (1, 0))
    first, second = (zeros, np.concatenate([ones, zeros])), (ones, np.concatenate([zeros, ones]))
    found = [CutMix().mix(first, second, np.random.default_rng([3, n])) for n in range(1500)]
    shares = [float(values.mean()) for values, _ in found]
    assert [float(targets[1].mean()) for _, targets in found] == pytest.approx(shares)
    cut = np.linspace(0, 1, 2001)[:, None] ** (1 / len(size))  # uniform shares for alpha 1
    assert np.mean(shares) == pytest.approx(((cut - cut**2 / 4) ** len(size)).mean(), abs=0.015)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share", [1e-4, 0.25, 0.6, 1.0])
def test_inner_boxes_lie_inside_and_everywhere(size: tuple[int, ...], share: float) -> None:
    boxes = [inner_box(size, share, np.random.default_rng([4, n])) for n in range(400)]
    edge = share ** (1 / len(size))
    for axis, n in enumerate(size):
        starts, stops = ({getattr(box[axis], end) for box in boxes} for end in ("start", "stop"))
        side = max(1, round(n * edge))
        assert starts == set(range(n - side + 1)) and stops == {start + side for start in starts}


def test_cropmix_shows_one_part_of_each_band_of_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def spied(shape: tuple[int, ...], share: float, rng: np.random.Generator) -> tuple[slice, ...]:
        seen.append(share)
        return inner_box(shape, share, rng)

    monkeypatch.setattr("medical.training.mixing.inner_box", spied)
    first = sample((12, 10, 8))
    orders = set()
    for seed in range(200):
        seen.clear()
        CropMix(crops=3, scale=(0.1, 1.0)).mix(first, first, np.random.default_rng(seed))
        bands = np.floor((np.array(seen) - 0.1) / 0.3).astype(int)
        assert sorted(bands) == [0, 1, 2]
        orders.add(tuple(bands))
    assert len(orders) == 6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("by", ["mixup", "cutmix"])
def test_cropmix_by_hand(by: str, size: tuple[int, ...]) -> None:
    """With the same draws in the same order, in plain steps."""
    first = sample(size)
    found = mixing(kind="cropmix", scale=(0.2, 1.0), alpha=2.0, by=by).mix(first, first, np.random.default_rng(9))
    rng = np.random.default_rng(9)
    parts = rng.permutation([rng.uniform(0.2, 0.6), rng.uniform(0.6, 1.0)])
    one, two = (enlarge(first, inner_box(size, share, rng)) for share in parts)
    weight = np.full(size, 1 - rng.beta(2.0, 2.0))  # of the second
    if by == "cutmix":
        box = border_box(size, weight.flat[0], rng)
        weight[:] = 0
        weight[box] = 1
        assert 0 < weight.mean() < 1
    for side, a, b in zip(found, one, two, strict=True):
        np.testing.assert_allclose(side, (1 - weight) * a + weight * b, atol=1e-6)


# Samples ---------------------------------------------------------------------------------------------------------

EVERY: list[dict[str, Any]] = [
    {"kind": "mixup"},
    {"kind": "mixup", "slices": 1},
    {"kind": "cutmix"},
    {"kind": "cutmix", "slices": 2},
    {"kind": "cropmix"},
    {"kind": "cropmix", "by": "cutmix", "crops": 3},
    {"kind": "cropmix", "slices": 0},
]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("given", EVERY)
def test_samples_are_a_function_of_the_generator(given: dict[str, Any], size: tuple[int, ...]) -> None:
    if len(size) == 2:
        given = {key: value for key, value in given.items() if key != "slices"}

    def draw(rng: np.random.Generator) -> Sample:
        return rng.normal(size=(1, *size)).astype(np.float32), rng.integers(0, 3, (1, *size)).astype(np.float32)

    mixed = Mixed(draw, mixing(probability=1, **given), (1, 2))
    once, twice, other = (mixed(np.random.default_rng([0, 7, place])) for place in (3, 3, 4))
    for a, b, c in zip(once, twice, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    values, shares = once
    assert values.shape == (1, *size) and shares.shape == (3, *size)
    assert values.dtype == shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-5)
    assert shares.min() >= 0


def test_the_share_of_samples_that_are_mixed() -> None:
    counts = []
    for number in range(600):
        draw = Drawn((4, 4, 4))
        Mixed(draw, mixing(kind="mixup", probability=0.3), VALUES)(np.random.default_rng(number))
        counts.append(draw.count)
    assert set(counts) == {1, 2}  # a second sample is drawn where it is needed
    assert 0.25 < counts.count(2) / 600 < 0.35


def test_samples_that_are_not_mixed_have_labels_as_shares() -> None:
    labels = np.array([[[0, 1, 2], [4, 4, 0]]], np.float32)
    mixed = Mixed(lambda rng: (labels * 2, labels), mixing(kind="cutmix", probability=0), VALUES)
    values, shares = mixed(np.random.default_rng(0))
    np.testing.assert_array_equal(values, labels * 2)
    np.testing.assert_array_equal(shares, [labels[0] == value for value in (0, 1, 2, 4)])


def test_cropmix_needs_one_sample_alone() -> None:
    draw = Drawn((6, 6, 6))
    values, _ = Mixed(draw, mixing(kind="cropmix", probability=1), VALUES)(np.random.default_rng(0))
    assert draw.count == 1
    np.testing.assert_allclose(values, 1, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slices_are_mixed_each_by_itself(axis: int) -> None:
    mixed = Mixed(Drawn((6, 7, 8)), mixing(kind="mixup", probability=1, alpha=1, slices=axis), VALUES)
    values, _ = mixed(np.random.default_rng(0))
    rows = np.moveaxis(values, 1 + axis, 0).reshape((6, 7, 8)[axis], -1)
    np.testing.assert_allclose(rows, np.repeat(rows[:, :1], rows.shape[1], 1))  # one weight within a slice
    assert len(np.unique(rows[:, 0])) == len(rows)  # and another for each
    cut = Mixed(Drawn((16, 16, 16)), mixing(kind="cutmix", probability=1, slices=axis), VALUES)
    values, _ = cut(np.random.default_rng(0))
    areas = {int((plane == 2).sum()) for plane in np.moveaxis(values[0], axis, 0)}
    assert len(areas) > 4


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "none"},
        {"kind": "mixup", "alpha": 0},
        {"kind": "mixup", "probability": 1.1},
        {"kind": "cutmix", "slices": 3},
        {"kind": "cropmix", "crops": 1},
        {"kind": "cropmix", "scale": [0.8, 0.2]},
        {"kind": "cropmix", "scale": [0.0, 0.2]},
        {"kind": "cropmix", "by": "snapmix"},
    ],
)
def test_kinds_that_make_no_sense_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        mixing(**given)


# The sheet -------------------------------------------------------------------------------------------------------


def test_planes_are_tinted_by_the_shares_of_their_structures() -> None:
    structures = (Structure(value=1, name="a", colour=(255, 0, 0)), Structure(value=2, name="b", colour=(0, 0, 255)))
    values = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    shares = np.zeros((2, 4, 5), np.float32)
    plain = tinted(values, shares, structures)
    assert plain.shape == (4, 5, 3) and plain.min() == 0 and plain.max() == 1
    assert (np.ptp(plain, axis=-1) == 0).all()  # gray
    shares[0, 1], shares[:, 2] = 1, 0.5
    found = tinted(values, shares, structures)
    np.testing.assert_array_equal(found[[0, 3]], plain[[0, 3]])
    assert (found[1, :, 0] > found[1, :, 2]).all()
    np.testing.assert_allclose(found[2, :, 0], found[2, :, 2])
    assert (found[2, :, 1] < found[2, :, 0]).all()


def test_the_sheet_shows_two_samples_and_each_kind_in_a_row() -> None:
    samples = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        labels = np.zeros((1, 8, 12, 10), np.float32)
        labels[0, 2:6, 3:8, 2:7] = 1
        samples.append((rng.normal(size=(1, 8, 12, 10)).astype(np.float32), labels))
    figure = mixing_sheet(samples, (Structure(value=1, name="kernel"),), seed=1)
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 3 * (2 + len(KINDS))
    titles = [axes.get_title() for axes in panels if axes.get_title()]
    assert titles == ["first", "second", *(name for name, _ in KINDS)]
    pictures = [np.asarray(axes.images[0].get_array()) for axes in panels]
    assert len({picture.tobytes() for picture in pictures}) > 3 * len(KINDS)
    plane = tinted(samples[0][0][0, 2], samples[0][1][:, 2], (Structure(value=1, name="kernel"),))
    np.testing.assert_array_equal(pictures[0], plane.swapaxes(0, 1))
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=50)
        with Image.open(file) as picture:
            assert picture.width > 2 * picture.height
