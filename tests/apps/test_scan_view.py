"""Slices as pictures: what is drawn where, judged by nibabel's canonical order and by plain numpy."""

from __future__ import annotations

import io
import itertools

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from apps.scans.view import AGREED, OTHERWISE, OURS, PLANES, THEIRS, Look, Scene, caption, draw, frame_of, obliquity
from apps.scans.window import to_gray, windows_of
from medical.volumes.geometry import Grid

SPACING = (1.0, 3.0, 2.0)
ORIENTATIONS = ["".join(letters) for pairs in itertools.permutations(("RL", "AP", "SI")) for letters in itertools.product(*pairs)]


def scan(orientation: str, tilt: float = 0.0) -> tuple[np.ndarray, Grid]:
    """Random values whose axes run as the orientation says, or nearly so."""
    values = np.random.default_rng(3).integers(0, 256, (4, 5, 6)).astype(np.uint8)
    turn = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(orientation), (1, 1, 1))
    affine = turn @ np.diag((*SPACING, 1))
    affine[:3, :3] = Rotation.from_euler("xyz", (tilt, -tilt / 2, tilt / 3), degrees=True).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = (-40.0, 12.5, 7.0)
    return values, Grid(values.shape, affine)


def picture(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def at_voxels(found: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """A picture's pixels in the middle of each voxel."""
    height, width = found.shape[:2]
    return found[
        np.ix_(((np.arange(rows) + 0.5) * height / rows).astype(int), ((np.arange(columns) + 0.5) * width / columns).astype(int))
    ]


def canonical(values: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """(x, y, z) values that run to right, front and head, and their spacing, by nibabel."""
    image = nib.as_closest_canonical(nib.Nifti1Image(values, grid.affine))
    return np.asarray(image.dataobj), np.array(image.header.get_zooms())


@pytest.mark.parametrize("tilt", [0.0, 20.0])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_sides_are_where_they_are_said_to_be(orientation: str, tilt: float) -> None:
    values, grid = scan(orientation, tilt)
    scene = Scene(values, grid)
    xyz, zooms = canonical(values, grid)
    at = (1, 2, 1)
    x, y, z = (n - 1 - place for n, place in zip(xyz.shape, at, strict=True))  # turned axes run to left, back and foot
    # Rows run down: to the back, to the foot. Columns of the radiological picture begin at the patient's right.
    wanted = {"axial": xyz[::-1, ::-1, z].T, "coronal": xyz[::-1, y, ::-1].T, "sagittal": xyz[x, ::-1, ::-1].T}
    letters = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}
    for plane in PLANES:
        rows, columns = wanted[plane].shape
        steps = {"axial": zooms[[0, 1]], "coronal": zooms[[0, 2]], "sagittal": zooms[[1, 2]]}[plane]
        size = round(columns * steps[0] * 9), round(rows * steps[1] * 9)
        frame, data = draw(scene, plane, Look(at, (0, 255), overlay="none", size=size))
        found = picture(data)
        assert found.shape == size[::-1], "its sides are as long as the patient's"
        if not np.any(steps % 2 == 0):  # else a voxel's middle falls between two pixels
            np.testing.assert_array_equal(at_voxels(found, columns, rows), wanted[plane])
        else:
            assert np.abs(at_voxels(found, columns, rows).astype(int) - wanted[plane]).max() <= 20
        assert frame.letters == letters[plane]


@pytest.mark.parametrize("orientation", ["RAS", "LPS", "PIR", "SLA"])
def test_neurological_mirrors_axial_and_coronal_alone(orientation: str) -> None:
    values, grid = scan(orientation)
    scene, letters = Scene(values, grid), {}
    for plane in PLANES:
        looks = [Look((1, 2, 3), (0, 255), convention, "none") for convention in ("radiological", "neurological")]
        (one, first), (other, second) = (draw(scene, plane, look) for look in looks)
        mirrored = picture(first) if plane == "sagittal" else picture(first)[:, ::-1]
        np.testing.assert_array_equal(picture(second), mirrored)
        letters[plane] = one.letters, other.letters
    assert letters == {"axial": ("RLAP", "LRAP"), "coronal": ("RLSI", "LRSI"), "sagittal": ("APSI", "APSI")}


@pytest.mark.parametrize("convention", ["radiological", "neurological"])
@pytest.mark.parametrize("zoom", [1.0, 2.5])
def test_a_click_finds_the_voxel_that_is_drawn_there(convention: str, zoom: float) -> None:
    values, grid = scan("PIR", 15)
    scene = Scene(values, grid)
    for at in itertools.product(*(range(n) for n in scene.shape)):
        for plane in PLANES:
            frame = frame_of(scene, plane, Look(at, (0, 255), convention, zoom=zoom))  # type: ignore[arg-type]
            place = frame.place(at)
            assert frame.voxel(*place) == at
            assert 0 <= place[0] <= 1 and 0 <= place[1] <= 1, "the crosshair stays in view"
    assert frame.voxel(-0.5, 1.5)[frame_axis(frame.plane)] == frame.index, "a click beside it stays in its slice"


def frame_axis(plane: str) -> int:
    return {"axial": 2, "coronal": 1, "sagittal": 0}[plane]


def test_zoom_shows_a_part_as_the_whole_shows_it() -> None:
    values, grid = scan("RAS")
    look = Look((2, 2, 3), (0, 255), overlay="none", zoom=2.0, size=(400, 400))
    frame, data = draw(Scene(values, grid), "axial", look)
    assert frame.millimetres < 4 * SPACING[0] * 2 and picture(data).shape[1] == frame.size[0]
    column, row = frame.place(look.at)
    height, width = picture(data).shape
    x, y, _ = (n - 1 - place for n, place in zip(values.shape, look.at, strict=True))
    assert abs(int(picture(data)[int(row * height), int(column * width)]) - int(values[x, y, 6 - 1 - 3])) <= 3


def test_labels_have_their_colours_and_go_when_hidden() -> None:
    values, grid = scan("LPS")
    labels = np.zeros(values.shape, np.uint8)
    labels[0], labels[1] = 1, 5
    scene = Scene(values, grid, labels, {1: (200, 10, 30), 5: (0, 255, 7)})
    bare = picture(draw(scene, "axial", Look((0, 0, 0), (0, 255), overlay="none"))[1])
    full = picture(draw(scene, "axial", Look((0, 0, 0), (0, 255), opacity=1.0))[1])
    seen = at_voxels(full, 4, 5)
    assert (seen[:, 0] == (200, 10, 30)).all() and (seen[:, 1] == (0, 255, 7)).all()
    np.testing.assert_array_equal(seen[:, 2:], np.repeat(at_voxels(bare, 4, 5)[:, 2:, None], 3, -1))
    one = picture(draw(scene, "axial", Look((0, 0, 0), (0, 255), opacity=1.0, hidden=frozenset({5})))[1])
    np.testing.assert_array_equal(at_voxels(one, 4, 5)[:, 1:], np.repeat(at_voxels(bare, 4, 5)[:, 1:, None], 3, -1))
    half = at_voxels(picture(draw(scene, "axial", Look((0, 0, 0), (0, 255), opacity=0.5, outlines=False))[1]), 4, 5)
    wanted = (at_voxels(bare, 4, 5)[:, 0, None] + np.array((200, 10, 30))) / 2
    assert np.abs(half[:, 0] - wanted).max() <= 2


def test_differences_have_a_colour_each() -> None:
    values, grid = scan("RAS")
    between = np.zeros(values.shape, np.uint8)
    for x, kind in enumerate((AGREED, OURS, THEIRS, OTHERWISE)):
        between[x] = kind
    look = Look((0, 0, 0), (0, 255), overlay="difference", opacity=1.0)
    seen = at_voxels(picture(draw(Scene(values, grid, difference=between), "axial", look)[1]), 4, 5)
    assert len({tuple(colour) for colour in seen[0].tolist()}) == 4


def test_uncertainty_is_clear_where_it_is_sure() -> None:
    values, grid = scan("RAS")
    maps = np.zeros(values.shape, np.float32)
    maps[0] = 1.0  # to the patient's left, the picture's right
    look = Look((0, 0, 0), (0, 255), overlay="uncertainty", opacity=1.0)
    seen = at_voxels(picture(draw(Scene(values, grid, uncertainty=maps), "axial", look)[1]), 4, 5)
    assert (seen[:, 3, 0] > seen[:, 3, 2] + 100).all(), "yellow"
    assert (np.ptp(seen[:, 0].astype(int), axis=-1) == 0).all(), "gray"


@pytest.mark.parametrize("angle", [0.0, 7.5, 30.0])
def test_obliquity_is_the_angle(angle: float) -> None:
    turn = Rotation.from_euler("z", angle, degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag((-1.0, 2.0, -3.0))
    assert obliquity(Grid((2, 2, 2), affine)) == pytest.approx(angle, abs=1e-3)


def test_captions_name_place_and_number() -> None:
    values, grid = scan("RAS")
    scene = Scene(values, grid)
    look = Look((0, 0, 0), (0, 255))
    assert caption(scene, frame_of(scene, "axial", look)) == "axial 1 of 6, z = 17.0 mm"  # the first from the head: 7 + 5 x 2
    assert caption(scene, frame_of(scene, "sagittal", look)) == "sagittal 1 of 4, x = -37.0 mm"


def test_windows_of_ct_and_others() -> None:
    rng = np.random.default_rng(0)
    ct = rng.normal(-200, 500, (20, 20, 20)).clip(-1024, 3000)
    assert [each.name for each in windows_of(ct)][:3] == ["soft tissue", "lung", "bone"]
    assert (windows_of(ct)[0].level, windows_of(ct)[0].width) == (40, 400)
    mr = rng.gamma(2, 100, (20, 20, 20))
    automatic = windows_of(mr)[0]
    assert (automatic.low, automatic.high) == pytest.approx(tuple(np.percentile(mr, (1, 99))))
    assert windows_of(mr, modality="CT")[0].name == "soft tissue", "what the header says goes before the values"
    assert windows_of(ct, modality="MR")[0].name.startswith("automatic")
    flat = windows_of(np.zeros((3, 3, 3)))
    assert all(each.low < each.high for each in flat)


def test_gray_is_linear_between_the_ends() -> None:
    values = np.linspace(-500, 1500, 101)
    wanted = np.interp(values, (-100, 900), (0, 255))
    assert np.abs(to_gray(values, -100, 900) - wanted).max() <= 0.51
