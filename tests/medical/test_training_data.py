"""Data of a training: folders, cases, patches; the loss and the score that they go into."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid.errors import InputError
from medical.models.base import SegmentationCard, SegmentationNetwork
from medical.training.cases import Case, Folder, Patches, cut, make_case
from medical.training.run import HeldOut, LossPart, predict
from medical.training.transforms import Augment, Augmentation
from medical.volumes.geometry import Grid
from medical.volumes.volume import read_volume
from tests.medical.training_stubs import PARTS, REGIONS, egg, protocol, write_case

# Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"holds no dataset\.json.*--data"),
        ("{", r"lists no cases under splits"),
        ('{"splits": {"train": ["a"]}}', r"lists no cases under splits.*Add"),
        ('{"splits": {"train": ["a"], "val": []}}', "no case in one of the splits"),
        ('{"splits": {"train": ["a", "b"], "val": ["b"]}}', "b is in both splits"),
    ],
)
def test_folders_that_are_no_data_set_say_why(text: str | None, match: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=match):
        Folder.read(tmp_path)


def test_a_case_is_brought_to_the_protocol_however_it_is_stored(tmp_path: Path) -> None:
    values, labels = egg(1)
    write_case(tmp_path, "plain", values, labels)
    stored = [np.ascontiguousarray(a.transpose(2, 0, 1)[::-1, ::-1]) for a in (values, labels)]  # I L A, as one finds them
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = -1, -1, 1, 1
    write_case(tmp_path, "turned", *stored, affine)
    cases = Folder(tmp_path, (), (), "").cases(["plain", "turned"], protocol())
    for case in cases:
        np.testing.assert_array_equal(case.labels, labels)
        np.testing.assert_allclose(case.values[0], (values - values.mean()) / values.std(), atol=1e-4)
        assert case.grid.codes == "RAS" and case.values.dtype == np.float32 and case.labels.dtype == np.uint8


def test_another_spacing_resamples_scan_and_labels_alike(tmp_path: Path) -> None:
    values, labels = egg(0)
    write_case(tmp_path, "a", values, labels, np.diag([2.0, 1, 1, 1]))
    (case,) = Folder(tmp_path, (), (), "").cases(["a"], protocol())
    assert case.labels.shape == case.values.shape[1:] == (28, 18, 12) and case.grid.spacing == pytest.approx((1, 1, 1))
    assert case.labels.sum() == pytest.approx(2 * labels.sum(), rel=0.05)
    assert set(np.unique(case.labels)) == {0, 1, 2}
    inside = case.values[0][case.labels > 0].mean(), case.values[0][case.labels == 0].mean()
    assert inside[0] > 1 > 0 > inside[1]


def test_values_of_no_structure_become_background_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values, labels = egg(2)
    strange = labels.astype(np.int16)
    strange[0, 0, 0], strange[1, 0, :2] = -3, 7
    write_case(tmp_path, "a", values, strange)
    with caplog.at_level(logging.WARNING):
        (case,) = Folder(tmp_path, (), (), "").cases(["a"], protocol())
    np.testing.assert_array_equal(case.labels, labels)
    assert case.warnings == ("3 voxels with values of no structure (-3, 7) are taken as background",)
    assert "a: 3 voxels" in caplog.text


def test_cases_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    values, labels = egg(0)
    write_case(tmp_path, "good", values, labels)
    write_case(tmp_path, "shifted", values, labels, np.diag([1.0, 1, 1.5, 1]))
    write_case(tmp_path, "soft", values, labels * 0.5)
    scan, far, soft = (
        read_volume(tmp_path / place) for place in ("imagesTr/good.nii.gz", "labelsTr/shifted.nii.gz", "labelsTr/soft.nii.gz")
    )
    with pytest.raises(InputError, match="label map of good does not lie on the grid"):
        make_case("good", scan, far, protocol())
    with pytest.raises(InputError, match="between whole numbers"):
        make_case("soft", scan, soft, protocol())
    with pytest.raises(InputError, match="no scan and label map of absent"):
        Folder(tmp_path, (), (), "").cases(["absent"], protocol())


# Patches ---------------------------------------------------------------------------------------------------------


def case_of(shape: tuple[int, int, int], seed: int = 0) -> Case:
    """A case whose values tell the place of each voxel, with two small structures."""
    values = (np.arange(np.prod(shape), dtype=np.float32) + 1).reshape(1, *shape)
    labels = np.zeros(shape, np.uint8)
    labels[-2:, -3:, -1:], labels[1, 1, 1] = 1, 2
    return Case(f"case {seed}", values, labels, Grid(shape, np.eye(4)))


def drawn(shape: tuple[int, int, int], patch: tuple[int, int, int], foreground: float, count: int = 60) -> list:
    patches = Patches([case_of(shape)], patch, foreground, Augment(Augmentation(), ()))
    return [patches(np.random.default_rng([3, number])) for number in range(count)]


@pytest.mark.parametrize("foreground", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("patch", [(4, 4, 4), (12, 4, 4), (12, 12, 14)])
def test_patches_are_parts_of_the_scan_with_zeros_around(patch: tuple[int, int, int], foreground: float) -> None:
    shape = (10, 11, 12)
    case = case_of(shape)
    starts = set()
    for values, labels in drawn(shape, patch, foreground):
        assert values.shape == labels.shape == (1, *patch)
        inside = values[0] > 0
        assert inside.sum() == np.prod(np.minimum(shape, patch))  # never more outside than must be
        index = np.unravel_index(values[0][inside].astype(int) - 1, shape)
        np.testing.assert_array_equal(labels[0][inside], case.labels[index])
        assert (labels[0][~inside] == 0).all()
        first = tuple(int(i[0]) for i in np.nonzero(inside))
        starts.add((first, tuple(int(i[0]) for i in index)))
        # All of it is one box, moved as a whole.
        moved = np.argwhere(inside) - np.array(first) + [i[0] for i in index]
        np.testing.assert_array_equal(moved, np.stack(index, -1))
    assert len(starts) >= 3


def test_the_share_of_patches_on_structures() -> None:
    def share(foreground: float) -> tuple[float, float]:
        found = drawn((30, 30, 30), (4, 4, 4), foreground, 200)
        return tuple(float(np.mean([(y == value).any() for _, y in found])) for value in (1, 2))  # type: ignore[return-value]

    assert max(share(0.0)) < 0.1
    assert all(0.4 < part < 0.6 for part in share(1.0))  # in equal parts, though one is six times as large
    assert all(0.12 < part < 0.4 for part in share(0.5))


def test_a_case_without_structures_is_drawn_from_too() -> None:
    case = case_of((10, 11, 12))
    empty = Case("empty", case.values, np.zeros_like(case.labels), case.grid)
    values, labels = Patches([empty], (4, 4, 4), 1.0, Augment(Augmentation(), ()))(np.random.default_rng(0))
    assert (values > 0).all() and not labels.any()


def test_a_patch_that_lies_partly_outside() -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    padded = np.pad(array, [(0, 0), (2, 9), (2, 9), (2, 9)])
    for start in [(0, 0, 0), (-2, 1, -1), (2, -1, 3)]:
        i, j, k = (first + 2 for first in start)
        np.testing.assert_array_equal(cut(array, np.array(start), (3, 5, 4)), padded[:, i : i + 3, j : j + 5, k : k + 4])


# Loss and validation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_the_loss_is_dice_and_cross_entropy(batch: bool, background: bool) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 4, 5, 6)), rng.integers(0, 3, (2, 1, 4, 5, 6))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.stack([labels[:, 0] == value for value in range(3)], 1)
    entropy = -np.log(p[truth.nonzero()]).mean()
    axes = (0, 2, 3, 4) if batch else (2, 3, 4)
    overlap = 2 * (p * truth).sum(axes) / (p.sum(axes) + truth.sum(axes))
    expected = 1 - (overlap if background else overlap[..., 1:]).mean() + entropy
    loss = LossPart(batch=batch, background=background).function(protocol())
    found = loss(torch.from_numpy(logits).float(), torch.from_numpy(labels).float())
    assert float(found) == pytest.approx(expected, abs=1e-4)


class Threshold(SegmentationNetwork):
    """Finds structure 1 where values are above 0.5, structure 2 where they are above 1.5."""

    card = SegmentationCard("none", "Threshold", "", "", 3, 1, 3, 1, 1)

    def segment(self, x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x, 0.5), x.clamp(max=1), 2 * x - 2], 1)


def test_prediction_and_mean_dice_over_the_cases() -> None:
    values = np.zeros((1, 20, 18, 9), np.float32)
    values[0, 3:15, 2:7, 2:5], values[0, 12:18, 9:13, 3:8] = 1, 2
    shown = np.rint(values[0]).astype(np.uint8)
    chosen = protocol(patch=(8, 8, 8))
    np.testing.assert_array_equal(predict(Threshold(), values, chosen), shown)
    part = shown.copy()
    part[:9] = 0
    cases = [Case("a", values, shown, Grid(shown.shape, np.eye(4))), Case("b", values, part, Grid(shown.shape, np.eye(4)))]
    none = np.where(values == 2, 0, values).astype(np.float32)
    cases.append(Case("c", none, (none[0] > 0).astype(np.uint8), cases[0].grid))  # no structure 2: left out of its mean
    n, m = (shown == 1).sum(), (part == 1).sum()
    front = (1 + 2 * m / (n + m) + 1) / 3
    expected = {"dice": (front + 1) / 2, "dice_front_of_egg": front, "dice_back": 1.0}
    assert HeldOut(cases, chosen)(Threshold()) == pytest.approx(expected)


class Nested(SegmentationNetwork):
    """Finds the yolk, channel 0, where values are above 1.5, and the whole egg, channel 1, where they are above 0.5."""

    card = SegmentationCard("none", "Nested", "", "", 3, 1, 2, 1, 1)

    def segment(self, x: Tensor) -> Tensor:
        return torch.cat([x - 1.5, x - 0.5], 1)


def test_regions_are_painted_and_scored_as_unions_of_labels() -> None:
    values = np.zeros((1, 20, 18, 9), np.float32)
    values[0, 3:15, 2:12, 2:8], values[0, 6:10, 4:9, 3:6] = 1, 2
    chosen = protocol(patch=(8, 8, 8), structures=PARTS, regions=REGIONS)
    labels = np.select([values[0] == 1, values[0] == 2], [1, 4]).astype(np.uint8)
    np.testing.assert_array_equal(predict(Nested(), values, chosen), labels)
    raw = labels.copy()
    raw[labels == 4] = 1  # all white: the yolk is a false alarm, the whole egg is right
    cases = [Case("a", values, labels, Grid(labels.shape, np.eye(4))), Case("b", values, raw, Grid(labels.shape, np.eye(4)))]
    assert HeldOut(cases, chosen)(Nested()) == pytest.approx({"dice": 0.75, "dice_whole_egg": 1.0, "dice_yolk": 0.5})
