"""The road in memory: every grid there and back, regions, tidying, parts of scans, and what is refused."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nibabel.orientations import axcodes2ornt, ornt_transform
from pydantic import ValidationError
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation
from torch import Tensor

from hybrid.errors import HybridError, InputError, OutputError, RequestError, ResourceError
from medical.protocol import Protocol
from medical.segmentation.preparation import prepare
from medical.segmentation.roi import roi_box
from medical.segmentation.run import Segmentation, SegmentSettings, segment
from medical.segmentation.slabs import LabelPainter, RowInterpolator
from medical.segmentation.sliding import stream_order
from medical.structures import Structure
from medical.volumes.label_maps import write_labels
from medical.volumes.volume import Volume
from tests.medical.stubs import Stub, convolution, protocol, smooth, volume

SHEARED = np.array([[1.0, 0, 0, 5.0], [0, 1.1, 0.8, 1.0], [0, 0, 2.0, -3.0], [0, 0, 0, 1.0]])
OBLIQUE = np.eye(4)
OBLIQUE[:3, :3] = Rotation.from_rotvec([0.1, -0.15, 0.2]).as_matrix() @ np.diag([1.2, 0.9, 2.1])
OBLIQUE[:3, 3] = 7, -20, 4
ORIENTATIONS = [
    "".join(axis[side] for axis, side in zip(axes, sides, strict=True))
    for axes in permutations(("RL", "AP", "SI"))
    for sides in product((0, 1), repeat=3)
]


def run(scan: Volume, network: Stub, asked: Protocol, **choices: object) -> Segmentation:
    return segment(scan, network, SegmentSettings(**choices), protocol=asked)  # type: ignore[arg-type]


def thresholds() -> Stub:
    """Background, then what is above -0.5, then what is above 0.5 standard deviations: a function of the value alone."""
    return Stub(lambda x: torch.cat([torch.zeros_like(x), x + 0.5, 2 * x], 1))


def expected_thresholds(values: np.ndarray) -> np.ndarray:
    z = (values - values.mean()) / values.std()
    return np.stack([np.zeros_like(z), z + 0.5, 2 * z]).argmax(0)


@pytest.mark.parametrize("spacing", [None, (1.4, 1.0, 1.7)])
def test_all_48_orientations_give_the_same_segmentation_in_the_patient(spacing: tuple[float, ...] | None) -> None:
    values, affine = smooth(17, 21, 13, seed=3), OBLIQUE
    image, network = nib.Nifti1Image(values, affine), convolution(seed=4)
    asked = protocol(orientation="LPS", spacing=spacing)
    wanted = run(volume(values, affine), network, asked).labels
    assert len(set(np.unique(wanted))) == 3
    start = nib.orientations.io_orientation(affine)
    for codes in ORIENTATIONS:
        stored = image.as_reoriented(ornt_transform(start, axcodes2ornt(codes)))
        labels = run(volume(np.asarray(stored.dataobj), stored.affine), network, asked).labels
        assert labels.shape == stored.shape and nib.aff2axcodes(stored.affine) == tuple(codes)
        back = nib.Nifti1Image(labels, stored.affine)
        back = back.as_reoriented(ornt_transform(axcodes2ornt(codes), start))
        np.testing.assert_allclose(back.affine, affine, atol=1e-9)
        differing = np.count_nonzero(np.asarray(back.dataobj) != wanted)
        assert differing <= (0 if spacing is None else 1), codes  # resampled values differ in their last digit


def test_a_network_that_tells_left_from_right_sees_the_protocols_axes() -> None:
    """Its output is the first index of its window's axis: so the label must grow towards the protocol's direction."""

    def place(x: Tensor) -> Tensor:
        far = torch.arange(x.shape[2]).view(-1, 1, 1).expand(x.shape[2:]) >= x.shape[2] // 2
        return torch.stack([~far, far, torch.zeros_like(far)]).float()[None]

    values = smooth(10, 12, 14)
    for codes, low, high in (("RAS", 0, 1), ("LAS", 1, 0)):
        asked = protocol(orientation=codes, patch=(10, 12, 14))
        labels = run(volume(values, np.diag([2, 2, 2, 1.0])), Stub(place), asked).labels
        assert (labels[:5] == low).all() and (labels[5:] == high).all()


@pytest.mark.parametrize("affine", [np.eye(4), OBLIQUE, SHEARED], ids=["plain", "oblique", "sheared"])
@pytest.mark.parametrize("spacing", [None, (0.8, 0.7, 1.1), (2.0, 2.5, 3.0)])
def test_labels_lie_where_the_values_do(affine: np.ndarray, spacing: tuple[float, ...] | None) -> None:
    """A ball of bright voxels, found by a threshold on any grid, must come back to its place."""
    grid = volume(np.zeros((40, 36, 30)) + 1.0, affine).grid
    points = grid.to_world(np.stack(np.meshgrid(*map(np.arange, grid.shape), indexing="ij"), -1))
    middle = grid.to_world(np.array([18, 16, 14]))
    radius = np.linalg.norm(points - middle, axis=-1)
    values = (100 * np.exp(-((radius / 9) ** 4))).astype(np.float32)
    network = Stub(lambda x: torch.cat([torch.zeros_like(x), x - 0.5], 1), classes=2)
    asked = protocol(2, orientation="LPS", spacing=spacing, intensity={"kind": "window", "low": 0, "high": 100})
    found = run(volume(values, affine), network, asked).labels
    expected = values > 50
    overlap = 2 * np.count_nonzero(found.astype(bool) & expected) / (found.sum() + expected.sum())
    resampled = spacing is not None or affine is SHEARED
    assert overlap == 1 if not resampled else overlap > (0.9 if affine is SHEARED else 0.96)
    shift = np.abs(np.argwhere(found).mean(0) - np.argwhere(expected).mean(0)).max()
    assert shift <= (0 if not resampled else 0.15 if affine is SHEARED else 0.05)  # sheared grids bring finished labels back


@pytest.mark.parametrize(
    ("affine", "spacing", "same"),
    [
        (OBLIQUE, (1.0, 1.5, 2.5), False),
        (OBLIQUE, None, True),
        (SHEARED, None, False),
        (np.diag([-1, 2, 3, 1.0]), (3.0, 2.0, 1.0005), True),  # in the order of the protocol's axes, and close enough
    ],
)
def test_the_network_sees_the_scan_where_it_lies(affine: np.ndarray, spacing: tuple[float, ...] | None, same: bool) -> None:
    scan, asked = volume(smooth(12, 14, 16), affine), protocol(orientation="SAR", spacing=spacing)
    way = prepare(scan, asked)
    assert way.resampled is not same and way.model.codes == "SAR" and way.model.orthogonal
    if spacing is not None:
        np.testing.assert_allclose(way.model.spacing, spacing, rtol=0.1)
    points = way.model.to_world(np.stack(np.meshgrid(*map(np.arange, way.model.shape), indexing="ij"), -1))
    voxels = (points - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
    found = map_coordinates(scan.values[0], np.moveaxis(voxels, -1, 0), order=1, mode="nearest")
    expected = (found - found.mean()) / found.std()
    np.testing.assert_allclose(way.apply(scan, asked)[0], expected, atol=2e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("new", [(30, 17, 9), (5, 31, 12), (1, 40, 1)])
def test_rows_are_interpolated_as_scipy_does(axis: int, new: tuple[int, int, int]) -> None:
    old = (9, 12, 7)
    logits = torch.from_numpy(smooth(4, *old))
    positions = [np.linspace(-0.7, n - 0.2, m) for n, m in zip(old, new, strict=True)]
    places = np.stack(np.meshgrid(*(np.clip(p, 0, n - 1) for p, n in zip(positions, old, strict=True)), indexing="ij"))
    expected = np.stack([map_coordinates(channel, places, order=1) for channel in logits.numpy()])
    found = np.zeros((4, *stream_order(new, axis)), np.float32)
    order = stream_order(range(3), axis)
    rows: list[int] = []

    def keep(row: int, plane: Tensor) -> None:
        rows.append(row)
        found[:, row] = plane[:, 0].numpy()

    back = RowInterpolator([positions[i] for i in order], stream_order(old, axis), keep)
    moved = logits.movedim(1 + axis, 1)
    start = 0
    for size in (1, 3, 1, 20):
        block = moved[:, start : start + size].clone()
        if block.shape[1]:
            back(start, block)
            block.fill_(torch.nan)  # a buffer that is used again
        start += size
    assert rows == list(range(new[axis]))
    np.testing.assert_allclose(np.moveaxis(found, 1, 1 + axis), expected, atol=1e-5)


def test_ties_go_to_the_lower_label_and_regions_paint_in_order() -> None:
    labels = np.zeros((1, 1, 3), np.uint8)
    LabelPainter(labels, protocol())(0, torch.tensor([[1.0, 0.0, 0.0], [1.0, 2.0, 0.0], [1.0, 2.0, 3.0]]).view(3, 1, 1, 3))
    assert labels.tolist() == [[[0, 1, 2]]]
    regions = [{"channel": 1, "value": 2}, {"channel": 0, "value": 1}, {"channel": 2, "value": 4}]
    structures = [{"value": value, "name": f"part {value}"} for value in (1, 2, 4)]
    asked = protocol(regions=regions, structures=structures)
    logits = torch.tensor([[-1.0, 1, 1, -1], [1.0, 1, 1, 0], [-1.0, -1, 5, -2]]).view(3, 1, 1, 4)
    labels, shares = np.zeros((1, 1, 4), np.uint8), np.zeros((3, 1, 1, 4), np.float32)
    LabelPainter(labels, asked, shares)(0, logits)
    assert labels.tolist() == [[[2, 1, 4, 0]]]
    np.testing.assert_allclose(shares, 1 / (1 + np.exp(-logits.numpy())), rtol=1e-6)


def test_probabilities_lie_on_the_scans_grid() -> None:
    scan, asked = volume(smooth(14, 15, 16), OBLIQUE), protocol(orientation="ILA", spacing=(1.3, 1.1, 1.2))
    result = run(scan, convolution(), asked, probabilities=True)
    assert result.probabilities is not None and result.probabilities.shape == (3, 14, 15, 16)
    np.testing.assert_allclose(result.probabilities.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(result.probabilities.argmax(0), result.labels)
    part = run(scan, convolution(), asked, probabilities=True, roi="3:12,:,2:9")
    assert part.probabilities is not None
    assert (part.probabilities[0, :3] == 1).all() and (part.probabilities[1:, :, :, 9:] == 0).all()


def test_part_of_a_scan_is_segmented_as_if_it_were_cut_out(tmp_path: Path) -> None:
    values, asked, network = smooth(24, 26, 28), protocol(orientation="SPL"), convolution()
    scan = volume(values, OBLIQUE)
    whole = np.zeros(values.shape, np.uint8)
    cut = OBLIQUE.copy()
    cut[:3, 3] = scan.grid.to_world(np.array([4, 0, 10]))
    whole[4:20, :, 10:] = run(volume(values[4:20, :, 10:], cut), network, asked).labels
    result = run(scan, network, asked, roi="4:20,:,10:")
    np.testing.assert_array_equal(result.labels, whole)
    assert "cut to 4:20, 0:26, 10:28" in result.way
    mask = np.zeros(values.shape, np.uint8)
    mask[22, 24, 3], mask[2, 2, 27] = 1, 2
    path = write_labels(tmp_path / "mask.nii.gz", mask, scan, [Structure(value=1, name="Left"), Structure(value=2, name="far")])
    step = [int(np.ceil(20 / s)) for s in scan.grid.spacing]
    assert roi_box(f"{path}:left", scan.grid) == tuple(
        slice(max(0, at - s), min(n, at + s + 1)) for at, s, n in zip((22, 24, 3), step, values.shape, strict=True)
    )
    assert roi_box(str(path), scan.grid) == tuple(slice(0, n) for n in values.shape)
    assert roi_box(f"{path}:2", scan.grid)[2].stop == 28
    with pytest.raises(RequestError, match="no structure 'liver'.*Left, far"):
        roi_box(f"{path}:liver", scan.grid)
    with pytest.raises(InputError, match="another grid"):
        roi_box(str(path), volume(values, np.eye(4)).grid)
    for text in ("1:2,3", "a:b,:,:", "5:5,:,:", "30:,:,:", "missing.nii.gz"):
        with pytest.raises(RequestError, match="--roi"):
            roi_box(text, scan.grid)


def test_tidying_and_notes() -> None:
    values = np.zeros((12, 12, 12), np.float32)
    values[2:7, 2:7, 2:7] = 1
    values[4, 4, 4] = 0
    values[10, 10, 10] = 1
    network = Stub(lambda x: torch.cat([torch.zeros_like(x), x - 0.5], 1), classes=2)
    asked = protocol(2, intensity={"kind": "window", "low": 0, "high": 1})
    result = run(volume(values), network, asked, largest_component=True, fill_holes=True)
    expected = np.zeros(values.shape, np.uint8)
    expected[2:7, 2:7, 2:7] = 1
    np.testing.assert_array_equal(result.labels, expected)
    assert any("1 voxels off" in note for note in result.notes) and any("inside a structure" in note for note in result.notes)
    nothing = run(volume(smooth(12, 12, 12)), Stub(lambda x: torch.cat([x * 0, x * 0 - 1], 1), classes=2), asked)
    assert not nothing.labels.any() and "No structure was found" in nothing.notes[-1]


def test_inputs_stay_as_they_are_and_types_are_small() -> None:
    for dtype in (np.uint8, np.int16, np.float32):
        values = (smooth(12, 13, 14) * 20 + 60).astype(dtype)
        scan = volume(values.copy())
        result = run(scan, thresholds(), protocol())
        np.testing.assert_array_equal(scan.values[0], values)
        assert result.labels.dtype == np.uint8 and result.labels.flags.c_contiguous
        np.testing.assert_array_equal(result.labels, expected_thresholds(values.astype(np.float64)))
    structures = [{"value": 300, "name": "far"}]
    asked = protocol(structures=structures, regions=[{"channel": 0, "value": 300}])
    wide = run(scan, Stub(lambda x: x, classes=1), asked)
    assert wide.labels.dtype == np.uint16 and set(np.unique(wide.labels)) == {0, 300}


@pytest.mark.parametrize(
    ("values", "changes", "text"),
    [
        (smooth(2, 10, 10, 10), {}, "has 2 channels, and this network takes 1: T1w.*--volume"),
        (smooth(10, 10, 10), {"channels": ("FLAIR", "T1w")}, "has 1 channel, and this network takes 2: FLAIR, T1w"),
        (smooth(10, 10, 1), {}, "10 x 10 x 1 voxels: it is no volume"),
        (np.full((10, 10, 10), 7.0, np.float32), {}, "the value 7 everywhere"),
        (np.where(np.arange(1000).reshape(10, 10, 10) == 3, np.nan, 1).astype(np.float32), {}, "1 voxel .*not finite.*Replace"),
        (np.where(np.arange(1000).reshape(10, 10, 10) < 3, np.inf, 1).astype(np.float32), {}, "3 voxels .*not finite"),
    ],
)
def test_scans_that_cannot_be_segmented(values: np.ndarray, changes: dict, text: str) -> None:
    channels = len(changes.get("channels", ("T1w",)))
    network = Stub(lambda x: x, channels=channels)
    with pytest.raises(InputError, match=text):
        run(volume(values), network, protocol(**changes))
    assert network.calls == 0


def test_networks_that_cannot_segment() -> None:
    scan = volume(smooth(10, 10, 10))
    refused: list[tuple[Stub, Protocol | None, type[HybridError], str]] = [
        (thresholds(), None, RequestError, "do not say what scans.*--protocol FILE"),
        (thresholds(), protocol(4), RequestError, "1 channels in and 4 out; the network has 1 and 3"),
        (Stub(lambda x: x, spatial_dims=2), protocol(), RequestError, "network for slices"),
        (Stub(lambda x: torch.cat([x, x, x * torch.nan], 1)), protocol(), OutputError, "not finite"),
        (Stub(lambda x: x[..., :-1].repeat(1, 3, 1, 1, 1)), protocol(), OutputError, "shape"),
    ]
    for network, asked, kind, text in refused:
        with pytest.raises(kind, match=text):
            segment(scan, network, protocol=asked)
    with pytest.raises(ResourceError, match="Give --memory"):
        run(scan, thresholds(), protocol(), memory=10**6)


def test_other_modalities_are_warned_of() -> None:
    ct = protocol(modality="CT", intensity={"kind": "window", "low": -175, "high": 250})
    notes = run(volume(smooth(10, 12, 14)), thresholds(), ct).notes
    assert any("trained on CT in HU" in note for note in notes)
    notes = run(volume(smooth(10, 12, 14) * 300 - 900), thresholds(), protocol()).notes
    assert any("look like CT" in note for note in notes)
    notes = run(volume(smooth(10, 12, 14), SHEARED), thresholds(), protocol()).notes
    assert any("sheared" in note for note in notes)
    assert run(volume(smooth(10, 12, 14)), thresholds(), protocol()).notes == ()


def test_a_grid_out_of_all_proportion_is_refused_before_memory_is_taken() -> None:
    scan = volume(smooth(30, 30, 30))
    network = convolution()
    with pytest.raises(ResourceError, match=r"would have 30000 x 30000 x 30000 voxels .* of memory needed"):
        segment(scan, network, protocol=protocol(spacing=(0.001, 0.001, 0.001)))
    assert network.calls == 0


def test_a_part_that_holds_nothing_is_refused() -> None:
    values = smooth(12, 12, 12)
    values[:6] = 5
    for roi in ("0:4,0:4,0:4", "7:8,:,:"):
        with pytest.raises(InputError, match="nothing to segment"):
            segment(volume(values), convolution(), SegmentSettings(roi=roi), protocol=protocol())


def test_voxels_far_coarser_than_those_of_the_training_are_told() -> None:
    asked = protocol(spacing=(1, 1, 1))
    for step, told in ((2.5, False), (10.0, True)):
        result = segment(volume(smooth(20, 20, 8), np.diag([1, 1, step, 1])), convolution(), protocol=asked)
        assert any("far coarser" in note for note in result.notes) is told


@pytest.mark.parametrize(
    "change",
    [
        {"intensity": {"kind": "window", "low": 5, "high": 5}}, {"intensity": {"kind": "window", "low": float("nan"), "high": 5}},
        {"spacing": (1, float("inf"), 1)},
    ],
)  # fmt: skip
def test_protocols_of_no_sense_are_refused(change: dict) -> None:
    with pytest.raises(ValidationError):
        protocol(**change)
