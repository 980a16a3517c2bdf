"""Grids, orientations and resampling, judged by nibabel, SciPy and ramps in the patient's coordinates."""

from __future__ import annotations

import tracemalloc
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from hybrid.errors import InputError, RequestError
from medical.volumes import geometry
from medical.volumes.geometry import Grid, Reorientation, orthogonalised, resample, resample_labels, resampled

ORIENTATIONS = [
    "".join(pair[side] for pair, side in zip(order, sides, strict=True))
    for order in permutations(("LR", "PA", "IS"))
    for sides in product((0, 1), repeat=3)
]


def made(codes: str = "RAS", shape: tuple[int, ...] = (5, 6, 7), turn: tuple[float, ...] = (0, 0, 0), shear: float = 0.0) -> Grid:
    """A grid of an orientation, turned by degrees about x, y and z, and sheared."""
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(codes), (1, 1, 1))[:3, :3]
    slant = np.eye(3)
    slant[1, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ slant @ np.linalg.inv(axes) * (0.7, 1.1, 3.0)
    affine[:3, 3] = (-20.5, 31.0, 7.25)
    return Grid(shape, affine)  # type: ignore[arg-type]


def places(grid: Grid) -> np.ndarray:
    """(3, i, j, k): where each voxel lies, by the plain formula."""
    indices = np.stack([*np.indices(grid.shape), np.ones(grid.shape)])
    return np.einsum("ab,bijk->aijk", grid.affine, indices)[:3]


angles = st.floats(-40, 40)
edges = st.integers(1, 6)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS), st.sampled_from(ORIENTATIONS), st.tuples(edges, edges, edges),
    st.tuples(angles, angles, angles), st.floats(-0.3, 0.3),
)  # fmt: skip
def test_reorientation_keeps_every_voxel_in_its_place_and_comes_back(
    codes: str, wanted: str, shape: tuple[int, ...], turn: tuple[float, ...], shear: float
) -> None:
    grid = made(codes, shape, turn, shear)
    way = Reorientation.between(grid, wanted)
    there = way.apply(places(grid))
    assert there.shape[1:] == way.grid.shape
    np.testing.assert_allclose(there, places(way.grid), atol=1e-9)
    assert way.grid.codes == wanted
    array = np.arange(np.prod(shape)).reshape(1, *shape)
    assert np.array_equal(way.undo(way.apply(array)), array) and np.shares_memory(way.undo(way.apply(array)), array)
    assert np.array_equal(way.undo(way.apply(array[0])), array[0])


@pytest.mark.parametrize("turn", [(0, 0, 0), (20, -15, 10)])
def test_a_scan_stored_in_48_orientations_is_one_scan(turn: tuple[float, ...]) -> None:
    grid = made("RAS", (4, 5, 6), turn)
    values = np.random.default_rng(0).normal(size=grid.shape)
    assert len(set(ORIENTATIONS)) == 48
    for codes in ORIENTATIONS:
        stored = nib.orientations.ornt_transform(nib.io_orientation(grid.affine), nib.orientations.axcodes2ornt(codes))
        image = nib.Nifti1Image(values, grid.affine).as_reoriented(stored)
        here = Grid(image.shape, image.affine)
        assert here.codes == codes
        way = Reorientation.between(here, "RAS")
        judge = nib.as_closest_canonical(image)
        assert np.array_equal(way.apply(image.get_fdata()), values)
        assert np.array_equal(way.apply(image.get_fdata()), judge.get_fdata())
        np.testing.assert_allclose(way.grid.affine, judge.affine, atol=1e-12)
        np.testing.assert_allclose(way.grid.affine, grid.affine, atol=1e-12)


@pytest.mark.parametrize("wrong", ["RAX", "RA", "RLS", "", "RASL"])
def test_what_is_no_orientation_is_refused(wrong: str) -> None:
    with pytest.raises(RequestError, match="no orientation"):
        Reorientation.between(made(), wrong)


@pytest.mark.parametrize(
    ("shape", "affine"),
    [
        ((4, 4, 4), np.zeros((4, 4))),
        ((4, 4, 4), np.diag([1.0, 0, 1, 1])),
        ((4, 4, 4), np.diag([1.0, np.nan, 1, 1])),
        ((4, 4, 4), np.array([[1.0, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])),
        ((4, 0, 4), np.eye(4)),
        ((4, 4), np.eye(4)),
    ],
)
def test_a_grid_that_is_no_volume_is_refused(shape: tuple[int, int, int], affine: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"Export the scan again"):
        Grid(shape, affine)


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS), st.tuples(edges, edges, edges), st.tuples(angles, angles, angles), st.floats(-0.3, 0.3),
    st.tuples(*[st.floats(0.3, 5)] * 3),
)  # fmt: skip
def test_resampling_keeps_the_field_of_view(
    codes: str, shape: tuple[int, ...], turn: tuple[float, ...], shear: float, spacing: tuple[float, float, float]
) -> None:
    grid = made(codes, shape, turn, shear)
    new = resampled(grid, spacing)
    for corner in product((0, 1), repeat=3):
        old_edge = np.array(corner) * grid.shape - 0.5
        new_edge = np.array(corner) * new.shape - 0.5
        np.testing.assert_allclose(new.to_world(new_edge), grid.to_world(old_edge), atol=1e-9)
    for n, old, asked, m in zip(grid.shape, grid.spacing, spacing, new.shape, strict=True):
        assert m >= 1 and (m == 1 or abs(m - n * old / asked) <= 0.5 + 1e-6)
    assert new.codes == grid.codes


def test_noise_in_an_affine_does_not_tip_a_half() -> None:
    for noise in (-1e-9, 0.0, 1e-9):
        assert resampled(Grid((5, 5, 5), np.diag([1 + noise] * 3 + [1.0])), (2.0, 2.0, 2.0)).shape == (2, 2, 2)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "AIL"])
@pytest.mark.parametrize("turn", [(0, 0, 0), (25, -10, 5)])
@pytest.mark.parametrize("order", [1, 3])
def test_a_ramp_in_the_patient_stays_that_ramp(codes: str, turn: tuple[float, ...], order: int) -> None:
    source = made("RAS", (24, 22, 20))
    target = resampled(made(codes, (9, 8, 3), turn), (1.3, 0.9, 1.7))
    middle = source.to_world((np.array(source.shape) - 1) / 2)
    shift = np.eye(4)
    shift[:3, 3] = middle - target.to_world((np.array(target.shape) - 1) / 2)
    target = Grid(target.shape, shift @ target.affine)
    slope = np.array([2.0, -3.0, 0.5])
    ramp = np.einsum("a,aijk->ijk", slope, places(source))
    inside = np.einsum(
        "ab,bijk->aijk", np.linalg.inv(source.affine[:3, :3]), places(target) - source.affine[:3, 3, None, None, None]
    )
    # The ends of cubic splines are not straight: only the inner part is judged there.
    margin = 0 if order == 1 else 5
    judged = ((inside >= margin) & (inside <= np.array(source.shape)[:, None, None, None] - 1 - margin)).all(axis=0)
    assert judged.sum() > 20
    found = resample(ramp, source, target, order=order)
    assert found.dtype == np.float32 and found.shape == target.shape
    np.testing.assert_allclose(
        found[judged], np.einsum("a,aijk->ijk", slope, places(target))[judged], atol=2e-2 if order == 3 else 1e-4
    )


@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize("slab", [1, 1 << 26])
@pytest.mark.parametrize("spacing", [(1.4, 0.6, 2.1), (0.35, 3.0, 3.0), (0.7, 1.1, 1.7)])
@pytest.mark.parametrize("layout", ["C", "F", "flipped"])
def test_parallel_grids_against_scipy(
    order: int, slab: int, spacing: tuple[float, float, float], layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(geometry, "_SLAB_BYTES", slab)
    source = made("PSL", (13, 9, 11), (10, 5, -20))
    array = np.random.default_rng(1).normal(size=(2, *source.shape)).astype(np.float32)
    array = {"C": array, "F": np.asfortranarray(array), "flipped": array[:, ::-1, :, ::-1]}[layout]
    # Shifted off the half, where the nearest of two voxels would be a matter of rounding.
    target = Reorientation.between(resampled(source, spacing), "RAS").grid
    target = Grid(target.shape, target.affine + np.pad(np.full((3, 1), 0.013), ((0, 1), (3, 0))))
    found = resample(array, source, target, order=order)
    steps = np.linalg.inv(source.affine) @ target.affine
    for channel, judged in zip(found, array, strict=True):
        judge = ndimage.affine_transform(
            judged.astype(np.float64), steps[:3, :3], steps[:3, 3], target.shape, order=order, mode="nearest"
        )
        np.testing.assert_allclose(channel, judge, atol=1e-5)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_crossing_grids_against_scipy(order: int) -> None:
    source, target = made("RAS", (9, 10, 11)), made("LAS", (8, 7, 6), (12, 20, 30), 0.2)
    target = Grid(target.shape, np.block([[target.affine[:3, :3], source.to_world(np.array([4, 5, 5]))[:, None]], [0, 0, 0, 1]]))
    array = np.random.default_rng(2).integers(0, 1000, source.shape).astype(np.int16)
    where = np.linalg.inv(source.affine) @ np.stack([*places(target).reshape(3, -1), np.ones(np.prod(target.shape))])
    judge = ndimage.map_coordinates(array.astype(np.float64), where[:3], order=order, mode="nearest").reshape(target.shape)
    found = resample(array, source, target, order=order)
    assert (np.abs(found - judge) > 1e-2).mean() < (0.01 if order == 0 else 1e-9)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_its_own_grid_in_another_order_changes_no_value(order: int) -> None:
    source = made("SLP", (4, 5, 6), (30, 10, 5))
    array = np.random.default_rng(3).normal(size=source.shape).astype(np.float32) * 1e6
    way = Reorientation.between(source, "RAS")
    assert np.array_equal(resample(array, source, source, order=order), array)
    np.testing.assert_allclose(resample(array, source, way.grid, order=order), way.apply(array), rtol=1e-6, atol=0.5)


def test_outside_of_the_scan_its_edge_goes_on() -> None:
    source = Grid((3, 1, 1), np.eye(4))
    wide = Grid((7, 3, 3), np.array([[1.0, 0, 0, -2], [0, 1, 0, -1], [0, 0, 1, -1], [0, 0, 0, 1]]))
    for order in (0, 1):
        found = resample(np.array([5.0, 6.0, 9.0]).reshape(3, 1, 1), source, wide, order=order)
        assert found[:, 2, 0].tolist() == [5, 5, 5, 6, 9, 9, 9]


def test_an_array_of_another_grid_or_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order 1"):
        resample(np.zeros((2, 2, 2)), made(), made(), order=1)
    with pytest.raises(ValueError, match="order 2"):
        resample(np.zeros((5, 6, 7)), made(), made(), order=2)


def test_memory_is_little_more_than_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(geometry, "_SLAB_BYTES", 1 << 20)
    source = Grid((128, 128, 100), np.diag([1.0, 1.0, 2.5, 1.0]))
    target = resampled(source, (1.5, 1.5, 2.0))
    array = np.zeros(source.shape, dtype=np.int16, order="F")
    for order in (1, 3):
        tracemalloc.start()
        result = resample(array, source, target, order=order)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < result.nbytes * 1.25 + (10 << 20)


def slow_labels(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    steps = np.linalg.inv(source.affine) @ target.affine
    values = np.unique(labels)
    shares = [
        ndimage.affine_transform(
            (labels == v).astype(np.float64), steps[:3, :3], steps[:3, 3], target.shape, order=1, mode="nearest"
        )
        for v in values
    ]
    return values[np.argmax(np.round(shares, 5), axis=0)]


@pytest.mark.parametrize("turn", [(0, 0, 0), (15, 5, 40)])
def test_labels_go_to_the_largest_share(turn: tuple[float, ...]) -> None:
    source = made("RAS", (12, 10, 9))
    labels = np.random.default_rng(4).choice(np.array([0, 1, 2, 7, 300], dtype=np.uint16), source.shape)
    target = resampled(made("RAS", (12, 10, 9), turn), (1.5, 0.9, 2.2))
    found = resample_labels(labels, source, target)
    assert found.dtype == labels.dtype and found.shape == target.shape
    assert (found != slow_labels(labels, source, target)).mean() < 0.002


def test_of_equal_shares_the_lower_label_wins() -> None:
    source, target = Grid((2, 1, 1), np.eye(4)), resampled(Grid((2, 1, 1), np.eye(4)), (2.0, 1.0, 1.0))
    for pair, winner in (((3, 5), 3), ((5, 3), 3), ((0, 4), 0)):
        assert resample_labels(np.array(pair).reshape(2, 1, 1), source, target).ravel().tolist() == [winner]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(ORIENTATIONS), st.tuples(edges, edges, edges), st.tuples(angles, angles, angles),
    st.floats(0.02, 0.4), st.booleans(),
)  # fmt: skip
def test_an_orthogonal_grid_covers_a_sheared_one(
    codes: str, shape: tuple[int, ...], turn: tuple[float, ...], shear: float, negative: bool
) -> None:
    grid = made(codes, shape, turn, -shear if negative else shear)
    assert not grid.orthogonal
    new = orthogonalised(grid)
    assert new.orthogonal
    assert (np.einsum("ai,ai->i", new.affine[:3, :3], grid.affine[:3, :3]) > 0).all()
    corners = np.stack(np.meshgrid(*([-0.5, n - 0.5] for n in grid.shape), indexing="ij"), -1).reshape(-1, 3)
    inside = np.linalg.solve(new.affine[:3, :3], (grid.to_world(corners) - new.affine[:3, 3]).T).T
    assert (inside >= -0.5 - 1e-6).all() and (inside <= np.array(new.shape) - 0.5 + 1e-6).all()
    # No plane of voxels lies wholly outside.
    assert (inside.min(axis=0) < 0.5 + 1e-6).all() and (inside.max(axis=0) > np.array(new.shape) - 1.5 - 1e-6).all()


@pytest.mark.parametrize("codes", ["LPS", "SLP", "PSL"])
def test_slices_of_a_tilted_gantry_stay_slices(codes: str) -> None:
    tilted = np.array([[0.8, 0, 0, 0], [0, 0.8, 3 * np.sin(0.3), 0], [0, 0, 3 * np.cos(0.3), 0], [0, 0, 0, 1]])
    way = Reorientation.between(Grid((20, 24, 9), tilted), codes)
    new = orthogonalised(way.grid)
    slices = codes.index("S")
    assert new.shape[slices] == 9 and new.spacing[slices] == pytest.approx(3 * np.cos(0.3))
    assert new.shape[codes.replace("R", "L").index("L")] == 20
    heights = places(new)[2]
    np.testing.assert_allclose(np.unique(np.round(heights, 6)), np.arange(9) * 3 * np.cos(0.3), atol=1e-5)
    grid = made()
    assert orthogonalised(grid) is grid


def test_volume_of_a_voxel_is_right_when_sheared() -> None:
    assert made(shear=0.3).voxel_ml == pytest.approx(0.7 * 1.1 * 3.0 / 1000)
    assert made().matches(made()) and not made().matches(made("LAS")) and not made().matches(made(shape=(5, 6, 8)))
