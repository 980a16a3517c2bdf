"""Uncertainty: maps against plain numpy, members against the road itself, figures by hand."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import ndimage, special, stats
from torch import Tensor

from hybrid.errors import RequestError
from medical.segmentation.run import SegmentSettings, segment
from medical.structures import Structure
from medical.uncertainty.ensemble import Member, UncertainSegmentation, segment_with_uncertainty
from medical.uncertainty.figures import AWAY, BORDER, borders, slices_to_see, structure_uncertainty, uncertainty_figures
from medical.uncertainty.overlay import _draw, overlay_png
from medical.volumes.geometry import Grid
from tests.medical.stubs import Stub, convolution, protocol, smooth, volume
from tests.medical.test_segmentation import OBLIQUE, SHEARED

MIRRORED = SegmentSettings(mirror=True)
EVERY_WAY = [(), (0,), (2,), (0, 2)]
REGIONS = [{"channel": channel, "value": value} for channel, value in ((0, 1), (1, 2), (3, 3))]


def seen(values: np.ndarray, network: Stub, axes: tuple[int, ...]) -> np.ndarray:
    """Logits (classes, i, j, k) of the whole z-scored scan, mirrored by numpy."""
    turned = tuple(1 + axis for axis in axes)
    x = np.flip(((values - values.mean()) / values.std())[None], turned).astype(np.float32).copy()
    y = network.function(torch.from_numpy(x)[None])[0].numpy()
    return np.flip(y, turned)


def decided(seed: int, classes: int = 3) -> Stub:
    """A network whose classes take turns at being sure, and whose mirror images contradict it."""
    layers = convolution(classes, seed=seed).function

    def function(x: Tensor) -> Tensor:
        y = layers(x)
        return 15 * (y - y.mean((2, 3, 4), keepdim=True)) / y.std((2, 3, 4), keepdim=True)

    return Stub(function, classes=classes)


def bits(shares: np.ndarray) -> np.ndarray:
    """Binary entropy, written out."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.nan_to_num(shares * np.log2(shares)) - np.nan_to_num((1 - shares) * np.log2(1 - shares))


def test_maps_are_what_numpy_makes_of_the_members() -> None:
    values = smooth(8, 10, 12, seed=1)
    network = decided(2)
    asked = protocol(mirror=(0, 2))
    result = segment_with_uncertainty(volume(values), [network], MIRRORED, protocol=asked)
    assert [member.mirror for member in result.members] == EVERY_WAY
    shares = np.stack([special.softmax(seen(values, network, axes), axis=0) for axes in EVERY_WAY])
    mean = shares.mean(0)
    entropy = stats.entropy(mean, axis=0) / np.log(3)
    information = entropy - (stats.entropy(shares, axis=1) / np.log(3)).mean(0)
    votes = shares.argmax(1)
    np.testing.assert_allclose(result.probabilities, mean, atol=1e-5)
    np.testing.assert_array_equal(result.labels, mean.argmax(0))
    np.testing.assert_allclose(result.entropy, entropy, atol=1e-5)
    np.testing.assert_allclose(result.mutual_information, information, atol=1e-5)
    np.testing.assert_allclose(result.disagreement, (votes != mean.argmax(0)).mean(0), atol=1e-6)
    assert information.max() > 0.1 and result.disagreement.max() >= 0.5 and len(np.unique(result.labels)) == 3
    for a, b in combinations(range(4), 2):
        for number, value in enumerate((1, 2)):
            assert result.shared[number, a, b] == np.count_nonzero((votes[a] == value) & (votes[b] == value))


def test_regions_have_an_entropy_each() -> None:
    values = smooth(8, 10, 12, seed=3)
    network = decided(4, 4)
    asked = protocol(4, mirror=(1,), regions=REGIONS)
    result = segment_with_uncertainty(volume(values), [network], MIRRORED, protocol=asked)
    shares = np.stack([special.expit(seen(values, network, axes)) for axes in ((), (1,))])
    mean = shares.mean(0)
    used = [0, 1, 3]  # of the four outputs, the others are of no region
    painted = np.zeros(values.shape, int)
    for value, channel in enumerate(used, 1):
        painted[mean[channel] > 0.5] = value
    np.testing.assert_allclose(result.probabilities, mean, atol=1e-5)
    np.testing.assert_array_equal(result.labels, painted)
    np.testing.assert_allclose(result.entropy, bits(mean)[used].mean(0), atol=1e-5)
    expected = bits(mean)[used].mean(0) - bits(shares)[:, used].mean((0, 1))
    np.testing.assert_allclose(result.mutual_information, expected, atol=1e-5)
    assert result.torn == pytest.approx(1 / 3)


@pytest.mark.parametrize("affine", [np.eye(4), OBLIQUE, SHEARED], ids=["plain", "oblique", "sheared"])
@pytest.mark.parametrize("spacing", [None, (1.4, 1.0, 1.7)])
def test_an_ensemble_is_the_mean_of_what_the_road_gives_for_each(affine: np.ndarray, spacing: tuple[float, ...] | None) -> None:
    """Through turning, windows, resampling and back; the third network has windows of its own."""
    scan = volume(smooth(17, 21, 13, seed=5), affine)
    networks = [convolution(seed=seed) for seed in (6, 7, 8)]
    for network in networks:
        network.protocol = protocol(orientation="LPS", spacing=spacing)
    networks[2].protocol = protocol(orientation="LPS", spacing=spacing, patch=(10, 8, 8), overlap=0.25)
    result = segment_with_uncertainty(scan, networks)
    alone = [segment(scan, network, SegmentSettings(probabilities=True)) for network in networks]
    mean = np.mean([each.probabilities for each in alone], axis=0)
    np.testing.assert_allclose(result.probabilities, mean, atol=2e-6)
    np.testing.assert_array_equal(result.labels, result.probabilities.argmax(0))
    np.testing.assert_allclose(result.entropy, stats.entropy(mean, axis=0) / np.log(3), atol=1e-5)
    outvoted = np.mean([each.labels != result.labels for each in alone], axis=0)
    np.testing.assert_allclose(result.disagreement, outvoted, atol=1e-6)
    sizes = [[np.count_nonzero(each.labels == value) for each in alone] for value in (1, 2)]
    np.testing.assert_array_equal(np.diagonal(result.shared, axis1=1, axis2=2), sizes)


def test_outside_the_part_nothing_is_unsure() -> None:
    scan = volume(smooth(16, 20, 18, seed=9), OBLIQUE)
    settings = SegmentSettings(mirror=True, roi="2:12,5:15,3:15")
    result = segment_with_uncertainty(scan, [convolution(seed=1)], settings, protocol=protocol(mirror=(0,), orientation="PIR"))
    inside = np.zeros(scan.grid.shape, bool)
    inside[2:12, 5:15, 3:15] = True
    for array in (result.entropy, result.mutual_information, result.disagreement, result.labels):
        assert array.shape == scan.grid.shape and not array[~inside].any() and array[inside].any()
    assert (result.probabilities[0][~inside] == 1).all()


def test_members_that_agree_leave_no_information() -> None:
    network = Stub(lambda x: torch.cat([torch.zeros_like(x), x, -x], 1))
    result = segment_with_uncertainty(volume(smooth(8, 10, 12)), [network], MIRRORED, protocol=protocol(mirror=(0, 1, 2)))
    assert len(result.members) == 8 and result.entropy.max() > 0.5
    assert result.mutual_information.max() < 1e-5 and not result.disagreement.any()
    figures = structure_uncertainty(result, Grid((8, 10, 12), np.eye(4)))
    assert all(row.dice_mean == row.dice_least == 1 and row.ml_variation == 0 for row in figures)


def test_progress_counts_the_windows_of_all_members() -> None:
    told: list[tuple[int, int]] = []
    networks = [convolution(seed=seed) for seed in (1, 2)]
    for network in networks:
        network.protocol = protocol(mirror=(0,))
    settings = SegmentSettings(mirror=True)
    result = segment_with_uncertainty(volume(smooth(9, 11, 13)), networks, settings, on_progress=lambda *now: told.append(now))
    count = 4 * result.plan.tiles.count
    assert told == [(done, count) for done in range(1, count + 1)]


def test_what_is_held_does_not_grow_with_the_members() -> None:
    scan = volume(smooth(40, 20, 24))
    peaks = []
    for mirror in ((0,), (0, 1, 2)):
        network = Stub(lambda x: torch.cat([x * n for n in range(6)], 1), classes=6)
        asked = protocol(6, mirror=mirror, patch=(20, 20, 24), overlap=0)
        tracemalloc.start()
        segment_with_uncertainty(scan, [network], MIRRORED, protocol=asked)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 60_000  # six more members of 19200 voxels would be 115 kB of labels alone


def test_a_single_answer_is_refused() -> None:
    scan, network = volume(smooth(8, 10, 12)), convolution()
    with pytest.raises(RequestError, match="not trained on mirrored scans") as caught:
        segment_with_uncertainty(scan, [network], MIRRORED, protocol=protocol())
    assert "--ensemble" in str(caught.value.hint)
    with pytest.raises(RequestError, match="alone, without mirror images"):
        segment_with_uncertainty(scan, [network], SegmentSettings(), protocol=protocol(mirror=(0,)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"spacing": (1.0, 1.0, 2.0)}, "spacing 1, 1, 2 against none"),
        ({"structures": [{"value": 1, "name": "part 1"}, {"value": 2, "name": "other"}]}, "structures 1 part 1, 2 other against"),
        ({"intensity": {"kind": "window", "low": 0, "high": 9}}, "intensity 0 to 9 to .0, 1., clipped against z-score"),
        ({"orientation": "LPS"}, "orientation LPS against RAS"),
    ],
)
def test_an_ensemble_for_two_tasks_is_refused_by_name(change: dict[str, object], words: str) -> None:
    first, second = convolution(seed=1), convolution(seed=2)
    first.protocol, second.protocol = protocol(), protocol(**change)
    with pytest.raises(RequestError, match=f"has another protocol.*{words}"):
        segment_with_uncertainty(volume(smooth(8, 10, 12)), [first, second])


def planted(labels: np.ndarray, entropy: np.ndarray, disagreement: np.ndarray | None = None) -> UncertainSegmentation:
    """A result made by hand, of two structures."""
    names = tuple(Structure(value=value, name=f"part {value}") for value in (1, 2))
    shared = np.array([[[8, 6, 0], [6, 10, 0], [0, 0, 0]], np.zeros((3, 3))], np.int64)
    network = convolution()
    none = np.zeros(labels.shape, np.float32)
    plan = segment(volume(smooth(8, 10, 12)), network, protocol=protocol()).plan
    return UncertainSegmentation(
        labels, names, None, plan, "", (), entropy, entropy / 2, none if disagreement is None else disagreement, shared,
        tuple(Member(network) for _ in range(3)), float(np.log(2) / np.log(3)),
    )  # fmt: skip


def test_borders_are_dilation_less_erosion() -> None:
    mask = smooth(12, 11, 10, seed=4) > 0
    inner = mask & ~ndimage.binary_erosion(mask, border_value=1)
    outer = ndimage.binary_dilation(mask) & ~mask
    np.testing.assert_array_equal(borders(mask), inner | outer)
    parts = ndimage.label(mask)[0]
    faces = ndimage.generate_binary_structure(3, 1)
    high, low = ndimage.maximum_filter(parts, footprint=faces), ndimage.minimum_filter(parts, footprint=faces)
    np.testing.assert_array_equal(borders(parts), high != low)


def test_figures_of_structures_by_hand() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1:4, 1:4, 1:4] = 1
    entropy = np.random.default_rng(0).random(labels.shape).astype(np.float32)
    first, second = structure_uncertainty(planted(labels, entropy), Grid((6, 6, 6), np.diag([2, 2, 2, 1.0])))
    mask = labels == 1
    assert first.voxels == 27 and first.entropy_inside == pytest.approx(entropy[mask].mean(), abs=1e-6)
    shell = (mask & ~ndimage.binary_erosion(mask)) | (ndimage.binary_dilation(mask) & ~mask)
    assert first.entropy_border == pytest.approx(entropy[shell].mean(), abs=1e-6)
    assert first.information_border == pytest.approx(entropy[shell].mean() / 2, abs=1e-6)
    # 8, 10 and 0 voxels of 8 mm3; 6 shared by the first two: Dice 12/18, 0, 0
    assert first.dice_mean == pytest.approx(12 / 18 / 3) and first.dice_least == 0
    volumes = np.array([8, 10, 0]) * 0.008
    assert (first.ml_mean, first.ml_least, first.ml_most) == pytest.approx((volumes.mean(), 0, 0.08))
    assert first.ml_variation == pytest.approx(stats.variation(volumes, ddof=1))
    assert second.voxels == 0 and second.entropy_inside is None and second.dice_mean is None and second.ml_variation is None


def test_the_slice_with_the_blurred_border_comes_first() -> None:
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[5:15, 6:18, 7:21] = 1
    entropy = 0.1 * borders(labels).astype(np.float32)
    entropy[5:15, 12, 7:21] = 0.5  # a plane within
    labels[:, :12][labels[:, :12] > 0] = 2
    affine = np.diag([-1.0, 2.0, 1.0, 1.0])
    affine[:3, 3] = 30, -50, 10
    found = slices_to_see(planted(labels, entropy), Grid((20, 24, 28), affine))
    first = found[0]
    assert (first.rank, first.axis, first.index, first.plane, first.reason) == (1, "j", 12, "coronal", BORDER)
    assert first.place == pytest.approx(-50 + 2 * 12)
    assert first.area == pytest.approx(entropy[:, 12].sum(), rel=1e-5)  # pixels of 1 mm x 1 mm
    assert [each.rank for each in found] == list(range(1, len(found) + 1))
    for axis in "ijk":
        indices = [each.index for each in found if each.axis == axis]
        step = 2.0 if axis == "j" else 1.0
        assert len(indices) <= 3 and all(abs(a - b) * step >= 4 for a, b in combinations(indices, 2))


def test_what_is_unsure_far_from_every_border_is_said_so() -> None:
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[3:9, 3:9, 3:9] = 1
    entropy = 0.05 * borders(labels).astype(np.float32)
    entropy[13:17, 14:20, 20:22] = 0.6  # perhaps a structure that was missed
    found = slices_to_see(planted(labels, entropy), Grid((20, 24, 28), np.eye(4)))
    assert found[0].reason == AWAY and found[0].axis == "k" and found[0].index in (20, 21)
    assert {each.reason for each in found[:3]} == {AWAY}


def test_where_all_is_sure_nothing_is_listed_and_the_picture_is_drawn() -> None:
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[5:15, 6:18, 7:21] = 1
    result, grid = planted(labels, np.zeros(labels.shape, np.float32)), Grid((20, 24, 28), np.eye(4))
    figures = uncertainty_figures(result, grid)
    assert figures.slices == () and "no slice stands out" in figures.describe()
    picture = overlay_png(smooth(*labels.shape), result, grid, figures.slices, title="case")
    assert picture.startswith(b"\x89PNG")


def test_colours_lie_where_the_entropy_does() -> None:
    """The picture of the slice through a plane of full entropy has the last colour of the scale, the others hardly any."""
    from io import BytesIO

    from matplotlib import colormaps
    from PIL import Image

    labels = np.zeros((20, 24, 28), np.uint8)
    labels[5:15, 6:18, 7:21] = 1
    shares = []
    for full in (0.0, 0.7):
        entropy = np.zeros(labels.shape, np.float32)
        entropy[5:15, 12, 7:21] = full
        result = planted(labels, entropy)
        grid = Grid((20, 24, 28), np.eye(4))
        picture = overlay_png(np.zeros(labels.shape), result, grid, slices_to_see(result, grid))
        pixels = np.asarray(Image.open(BytesIO(picture)).convert("RGB")).astype(float)
        last = 0.85 * 255 * np.array(colormaps["plasma"](1.0)[:3])  # over black
        shares.append((np.abs(pixels - last).max(-1) < 12).mean())
    assert shares[0] < 1e-3 < 0.02 < shares[1]


def test_tidying_leaves_the_maps_alone() -> None:
    values = smooth(16, 20, 24, seed=11)
    network = convolution(seed=12)
    asked = protocol(mirror=(0,))
    plain = segment_with_uncertainty(volume(values), [network], MIRRORED, protocol=asked)
    tidy = segment_with_uncertainty(volume(values), [network], replace(MIRRORED, largest_component=True), protocol=asked)
    assert np.count_nonzero(tidy.labels) < np.count_nonzero(plain.labels)
    for name in ("entropy", "mutual_information", "disagreement", "shared"):
        np.testing.assert_array_equal(getattr(tidy, name), getattr(plain, name))


def test_members_do_not_change_the_network() -> None:
    def odd(x: Tensor) -> Tensor:
        return torch.cat([x, x.cumsum(2), x.cumsum(3)], 1)

    network = Stub(odd)
    segment_with_uncertainty(volume(smooth(8, 10, 12)), [network], MIRRORED, protocol=protocol(mirror=(1,)))
    assert network.calls == 2 and network.protocol is None


def test_the_picture_says_what_its_colours_measure() -> None:
    labels = np.zeros((20, 24, 28), np.uint8)
    labels[5:15, 6:18, 7:21] = 1
    result, grid = planted(labels, np.zeros(labels.shape, np.float32)), Grid((20, 24, 28), np.eye(4))
    figure = _draw(np.zeros(labels.shape), result, grid, (), "case")
    said = "\n".join(text.get_text() for text in figure.texts)
    assert "case: uncertainty of the segmentation" in said
    assert "entropy of the members' mean probabilities, a number without unit from 0 (sure) to 1" in said
