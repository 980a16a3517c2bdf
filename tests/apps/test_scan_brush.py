"""The brush, the comparison and the surfaces, judged by plain numpy."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from apps.scans.brush import UNDO_STEPS, Correction, Stroke
from apps.scans.compare import agreements, difference
from apps.scans.surface import surfaces
from apps.scans.view import AGREED, OTHERWISE, OURS, THEIRS
from hybrid.errors import RequestError
from medical.results.preview import AXES
from medical.structures import Structure
from medical.volumes.geometry import Grid

STRUCTURES = (Structure(value=1, name="one"), Structure(value=2, name="two"))


def grid_of(orientation: str, shape: tuple[int, int, int], spacing: tuple[float, float, float]) -> Grid:
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(orientation), (1, 1, 1))
    affine = turn @ np.diag((*spacing, 1.0))
    affine[:3, 3] = (3.0, -8.0, 21.0)
    return Grid(shape, affine)


def to_canonical(labels: np.ndarray, grid: Grid) -> np.ndarray:
    return np.asarray(nib.as_closest_canonical(nib.Nifti1Image(labels, grid.affine)).dataobj)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SLP"])
@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_a_disc_lies_where_it_was_painted(orientation: str, plane: str) -> None:
    grid = grid_of(orientation, (9, 10, 11), (1.0, 1.5, 2.0))
    labels = np.zeros(grid.shape, np.uint8)
    correction = Correction(labels, grid, frozenset({1, 2}))
    start, end, radius = np.array((3, 4, 5)), np.array((3, 4, 5)), 2.6
    end[(AXES[plane] + 1) % 3] += 2
    changed = correction.paint(Stroke(plane, (tuple(start), tuple(end)), radius, 2))  # type: ignore[arg-type]
    found = to_canonical(labels, grid)
    zooms = np.array(nib.as_closest_canonical(nib.Nifti1Image(labels, grid.affine)).header.get_zooms())
    last = np.array(found.shape) - 1
    wanted = np.zeros(found.shape, np.uint8)
    first, second = (last - start) * zooms, (last - end) * zooms
    axis = AXES[plane]
    for index in np.ndindex(found.shape):
        if index[axis] != last[axis] - start[axis]:
            continue
        steps = np.linspace(first, second, 400)
        if np.linalg.norm(steps - np.array(index) * zooms, axis=1).min() <= radius + 1e-4:
            wanted[index] = 2
    np.testing.assert_array_equal(found, wanted)
    assert changed == np.count_nonzero(wanted) > 5


def test_undo_brings_everything_back_step_by_step() -> None:
    grid = grid_of("LAS", (8, 8, 8), (1, 1, 1))
    labels = np.random.default_rng(1).integers(0, 3, grid.shape).astype(np.uint8)
    correction = Correction(labels, grid, frozenset({1, 2}))
    states = [labels.copy()]
    for number in range(6):
        correction.paint(Stroke("axial", ((2, 3, number),), 1.5, number % 3))
        states.append(labels.copy())
    for state in reversed(states[:-1]):
        assert correction.undo()
        np.testing.assert_array_equal(labels, state)
    assert not correction.undo() and correction.strokes == 0


def test_steps_are_bounded_and_a_stroke_without_change_is_none() -> None:
    grid = grid_of("RAS", (4, 4, 100), (1, 1, 1))
    correction = Correction(np.zeros(grid.shape, np.uint8), grid, frozenset({1}))
    for k in range(UNDO_STEPS + 10):
        assert correction.paint(Stroke("axial", ((1, 1, k),), 0, 1)) == 1
    assert correction.paint(Stroke("axial", ((1, 1, 0),), 0, 1)) == 0
    assert len(correction.steps) == UNDO_STEPS and correction.strokes == UNDO_STEPS + 10


@pytest.mark.parametrize(
    ("stroke", "words"),
    [
        (Stroke("axial", ((1, 1, 1),), 1, 7), "does not know"),
        (Stroke("axial", ((9, 1, 1),), 1, 1), "left the slice"),
        (Stroke("axial", ((1, 1, 1), (1, 1, 2)), 1, 1), "left the slice"),
        (Stroke("axial", ((-1, 1, 1),), 1, 1), "left the slice"),
        (Stroke("axial", (), 1, 1), "a place"),
        (Stroke("axial", ((1, 1, 1),), 1e9, 1), "radius"),
    ],
)
def test_wrong_strokes_are_refused_and_change_nothing(stroke: Stroke, words: str) -> None:
    grid = grid_of("RAS", (4, 4, 4), (1, 1, 1))
    correction = Correction(np.zeros(grid.shape, np.uint8), grid, frozenset({1}))
    with pytest.raises(RequestError, match=words):
        correction.paint(stroke)
    assert not correction.labels.any() and not correction.steps


def test_differences_by_plain_rules() -> None:
    rng = np.random.default_rng(2)
    ours, theirs = (rng.integers(0, 3, (5, 6, 7)).astype(np.uint8) for _ in range(2))
    found = difference(ours, theirs)
    for index in np.ndindex(found.shape):
        a, b = ours[index], theirs[index]
        wanted = 0 if not a and not b else AGREED if a == b else OURS if not b else THEIRS if not a else OTHERWISE
        assert found[index] == wanted


def test_agreement_of_shifted_cubes() -> None:
    grid = Grid((20, 20, 20), np.diag((2.0, 1.0, 1.0, 1.0)))
    ours, theirs = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.uint8)
    ours[5:10, 5:10, 5:10], theirs[6:11, 5:10, 5:10] = 1, 1
    theirs[0, 0, 0] = 9
    one, two, stray = agreements(ours, theirs, grid, STRUCTURES)
    assert one.dice == pytest.approx(0.8) and one.hd95 == pytest.approx(2.0)
    assert one.ours_ml == one.theirs_ml == pytest.approx(0.25)
    assert (two.dice, two.hd95, two.ours_ml) == (None, None, 0)
    assert stray.name == "label 9" and stray.theirs_ml == pytest.approx(0.002)


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "SLP"])
def test_surface_of_an_ellipsoid(orientation: str) -> None:
    """Its points lie on the ellipsoid in the patient, its normals point outwards, and the volume inside is its voxels'."""
    grid = grid_of(orientation, (40, 30, 24), (1.0, 1.5, 2.0))
    middle = (np.array(grid.shape) - 1) / 2
    away = (np.stack(np.meshgrid(*(np.arange(n) for n in grid.shape), indexing="ij"), -1) - middle) * grid.spacing
    labels = (np.linalg.norm(away, axis=-1) <= 12).astype(np.uint8) * 2
    (found,) = surfaces(labels, grid, STRUCTURES)
    assert found.structure.name == "two"
    centre = grid.to_world(middle)
    radii = np.linalg.norm(found.points - centre, axis=1)
    assert np.abs(radii - 12).max() < 1.2
    outwards = (found.points - centre) / radii[:, None]
    assert (found.normals * outwards).sum(1).min() > 0.8
    corners = found.points[found.faces].astype(np.float64) - centre
    volume = np.einsum("ni,ni->n", corners[:, 0], np.cross(corners[:, 1], corners[:, 2])).sum() / 6
    assert volume == pytest.approx(np.count_nonzero(labels) * grid.voxel_ml * 1000, rel=0.08), "positive: faces turn outwards"


def test_a_single_voxel_has_a_surface_and_an_absent_structure_none() -> None:
    grid = Grid((5, 5, 5), np.eye(4))
    labels = np.zeros(grid.shape, np.uint8)
    labels[2, 2, 2] = 1
    (found,) = surfaces(labels, grid, STRUCTURES)
    assert len(found.faces) and np.abs(found.points - 2).max() < 1.5
    assert not list(surfaces(np.zeros(grid.shape, np.uint8), grid, STRUCTURES))
