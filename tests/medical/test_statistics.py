"""Figures of structures against scikit-image, known solids, and themselves in every orientation; and `medical stats`."""

from __future__ import annotations

import csv
import itertools
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import typer
from skimage.measure import label, regionprops
from typer.testing import CliRunner

from hybrid.errors import InputError, OutputError
from medical.cli import stats as cli_stats
from medical.notice import RESEARCH_USE
from medical.results.statistics import check_same_grid, structure_statistics, write_statistics
from medical.structures import Structure
from medical.volumes.geometry import Grid, Reorientation

NAMES = tuple(Structure(value=value, name=name) for value, name in enumerate(("ball", "box", "specks"), 1))
OBLIQUE = np.array([[1.9, -0.3, 0.2, -31.0], [0.4, 0.8, -0.6, 12.5], [0.1, 0.25, 2.8, 77.0], [0, 0, 0, 1]])  # sheared too
ORIENTATIONS = [
    "".join("RL"[f] if a == 0 else "AP"[f] if a == 1 else "SI"[f] for a, f in zip(axes, flips, strict=True))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((0, 1), repeat=3)
]


def plain(shape: tuple[int, int, int], spacing: tuple[float, float, float] = (1, 1, 1)) -> Grid:
    return Grid(shape, np.diag([*spacing, 1.0]))


def scene(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A label map of a ball, a box at the border and loose specks, and a scan."""
    labels = np.zeros((23, 31, 18), np.int16)
    i, j, k = np.indices(labels.shape)
    labels[(i - 9) ** 2 + (j - 12) ** 2 + (k - 8) ** 2 < 36] = 1
    labels[17:, 20:28, 11:15] = 2
    labels[2, 25, 3] = labels[5, 29, 4] = labels[3, 26, 4] = 3
    return labels, rng.normal(40, 300, labels.shape).astype(np.float32)


def test_agrees_with_scikit_image() -> None:
    labels, values = scene(np.random.default_rng(3))
    grid = Grid(labels.shape, OBLIQUE)
    rows = structure_statistics(labels, grid, values, NAMES)
    judges = regionprops(labels, values.astype(np.float64))
    assert [row.value for row in rows] == [judge.label for judge in judges] == [1, 2, 3]
    for row, judge in zip(rows, judges, strict=True):
        assert row.voxels == judge.num_pixels
        assert (row.mean, row.sd) == pytest.approx((judge.intensity_mean, judge.intensity_std), rel=1e-9)
        assert row.median == judge.intensity_median
        assert row.box is not None and (*row.box.first, *(end + 1 for end in row.box.last)) == judge.bbox
        assert row.centroid == pytest.approx((OBLIQUE @ [*judge.centroid, 1])[:3], abs=1e-9)
        pieces = label(labels == row.value, connectivity=3)
        assert row.components == pieces.max()
        assert row.largest_share == np.bincount(pieces[pieces > 0]).max() / judge.num_pixels


def test_millilitres_of_a_ball_on_an_anisotropic_grid() -> None:
    spacing = (0.5, 0.8, 1.2)
    i, j, k = np.indices((90, 60, 44))
    ball = ((i - 45) * 0.5) ** 2 + ((j - 30) * 0.8) ** 2 + ((k - 22) * 1.2) ** 2 <= 20**2
    (row,) = structure_statistics(ball, plain(ball.shape, spacing), None, NAMES[:1])
    assert row.ml == pytest.approx(4 / 3 * math.pi * 20**3 / 1000, rel=2e-3)
    assert row.centroid == pytest.approx((22.5, 24.0, 26.4))
    assert row.flags == () and (row.mean, row.sd, row.median) == (None, None, None)


def test_sheared_voxels_have_the_volume_of_their_parallelepiped() -> None:
    sheared = np.array([[2.0, 0, 0.9, 0], [0, 1, 0.3, 0], [0, 0, 3.0, 0], [0, 0, 0, 1]])
    (row,) = structure_statistics(np.ones((4, 5, 6), np.uint8), Grid((4, 5, 6), sheared), None, NAMES[:1])
    assert row.ml == pytest.approx(120 * 6.0 / 1000)  # and not 120 times the product of the edges


def test_box_in_millimetres_reaches_to_the_outer_edges_of_the_voxels() -> None:
    labels = np.zeros((10, 10, 10), np.uint8)
    labels[2:5, 3, 6:8] = 1
    (row,) = structure_statistics(labels, Grid((10, 10, 10), np.diag([-2, 1, 3.0, 1])), None, NAMES[:1])
    assert row.box is not None
    assert (row.box.first, row.box.last) == ((2, 3, 6), (4, 3, 7))
    assert (row.box.low, row.box.high) == ((-9, 2.5, 16.5), (-3, 3.5, 22.5))


@pytest.mark.parametrize("affine", [np.diag([1.5, 0.7, 3.0, 1]), OBLIQUE], ids=["anisotropic", "oblique"])
def test_all_orientations_of_a_scan_have_the_same_figures(affine: np.ndarray) -> None:
    labels, values = scene(np.random.default_rng(4))
    grid = Grid(labels.shape, affine)
    expected = structure_statistics(labels, grid, values, NAMES)
    assert len(set(ORIENTATIONS)) == 48
    for orientation in ORIENTATIONS:
        turn = Reorientation.between(grid, orientation)
        found = structure_statistics(turn.apply(labels), turn.grid, turn.apply(values), NAMES)
        for a, b in zip(found, expected, strict=True):
            assert (a.voxels, a.components, a.border, a.median) == (b.voxels, b.components, b.border, b.median)
            assert (a.ml, a.mean, a.sd) == pytest.approx((b.ml, b.mean, b.sd))
            assert a.centroid == pytest.approx(b.centroid, abs=1e-9)
            assert a.box is not None and b.box is not None
            assert (*a.box.low, *a.box.high) == pytest.approx((*b.box.low, *b.box.high), abs=1e-9)


def test_a_structure_at_the_border_keeps_its_figures_and_says_where_it_ends() -> None:
    labels = np.zeros((6, 7, 8), np.uint8)
    labels[4:, 1:3, :2] = 1
    grid = Grid(labels.shape, np.diag([-1, -1, 2.0, 1]))  # LPS: the high end of i is the left
    (row,) = structure_statistics(labels, grid, np.full(labels.shape, 7), NAMES[:1])
    assert (row.voxels, row.ml, row.mean, row.sd, row.median) == (8, 0.016, 7, 0, 7)
    assert row.border == ("left", "inferior") and row.flags == ("touches border",)
    assert row.remarks == ("Reaches the left and inferior border of the scan: the figures are of the part inside.",)


def test_a_single_slice_touches_both_of_its_faces() -> None:
    labels = np.zeros((5, 5, 1), np.uint8)
    labels[2, 2] = 1
    assert structure_statistics(labels, plain(labels.shape), None, NAMES[:1])[0].border == ("superior", "inferior")


def test_what_is_absent_is_named_and_undefined() -> None:
    row = structure_statistics(np.zeros((3, 3, 3), np.uint8), plain((3, 3, 3)), np.ones((3, 3, 3)), NAMES)[1]
    assert (row.name, row.voxels, row.ml, row.mean, row.box, row.centroid, row.components) == ("box", 0, 0, None, None, None, 0)
    assert row.flags == ("empty",)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_values_without_a_name_have_rows_of_their_own(dtype: type) -> None:
    labels: np.ndarray = np.zeros((4, 4, 4), dtype)
    labels[0, 0, 0], labels[1], labels[2, 2, 2] = -3, 1, 99
    rows = structure_statistics(labels, plain((4, 4, 4)), None, NAMES[:1])
    assert [(row.value, row.name, row.named, row.voxels) for row in rows] == [
        (1, "ball", True, 16), (-3, "label -3", False, 1), (99, "label 99", False, 1),
    ]  # fmt: skip
    assert "unnamed" in rows[2].flags and "unnamed" not in rows[0].flags


def test_large_and_scattered_values() -> None:
    labels = np.zeros((5, 5, 5), np.int64)
    labels[1, 1, 1], labels[3, 3, 3:] = 614_454_277, -(10**12)
    rows = structure_statistics(labels, plain((5, 5, 5)), None, ())
    assert [(row.value, row.voxels, row.centroid) for row in rows] == [(-(10**12), 2, (3, 3, 3.5)), (614_454_277, 1, (1, 1, 1))]


def test_pieces_that_share_a_corner_are_one() -> None:
    labels = np.zeros((6, 6, 6), np.uint8)
    labels[1, 1, 1] = labels[2, 2, 2] = labels[4, 4, 4] = 1
    (row,) = structure_statistics(labels, plain((6, 6, 6)), None, NAMES[:1])
    assert (row.components, row.flags) == (2, ("fragmented",)) and row.largest_share == pytest.approx(2 / 3)
    assert row.remarks == ("In 2 pieces; the largest holds 66.7 % of its voxels.",)


def test_voxels_without_a_finite_intensity_are_counted_and_left_out() -> None:
    values = np.array([1, np.nan, 5, np.inf], np.float32).reshape(1, 2, 2)
    (row,) = structure_statistics(np.ones((1, 2, 2), np.uint8), plain((1, 2, 2)), values, NAMES[:1])
    assert (row.mean, row.sd, row.median, row.unmeasured) == (3, 2, 3, 2) and "unmeasured voxels" in row.flags


def test_moments_do_not_overflow_the_type_of_the_scan() -> None:
    values = np.array([200, 250, 255, 240], np.uint8).reshape(1, 2, 2)
    (row,) = structure_statistics(np.ones((1, 2, 2), np.uint8), plain((1, 2, 2)), values, NAMES[:1])
    wide = values.astype(float)
    assert (row.mean, row.sd, row.median) == pytest.approx((wide.mean(), wide.std(), np.median(wide)))


def test_blocks_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, values = scene(np.random.default_rng(5))
    whole = structure_statistics(labels, plain(labels.shape), values, NAMES)
    monkeypatch.setattr("medical.results.statistics._BLOCK", 50)
    for array in (labels, np.asfortranarray(labels)):
        parts = structure_statistics(array, plain(labels.shape), values, NAMES)
        for a, b in zip(parts, whole, strict=True):
            assert asdict(a) | {"mean": 0, "sd": 0} == asdict(b) | {"mean": 0, "sd": 0}
            assert (a.mean, a.sd) == pytest.approx((b.mean, b.sd))


def test_inputs_stay_as_they_are_and_wrong_ones_are_refused() -> None:
    labels, values = scene(np.random.default_rng(6))
    labels.flags.writeable = values.flags.writeable = False
    structure_statistics(labels, plain(labels.shape), values, NAMES)
    with pytest.raises(InputError, match="float64 and no whole numbers"):
        structure_statistics(labels.astype(float), plain(labels.shape), None, NAMES)
    with pytest.raises(InputError, match="The scan has the shape 1 x 23 x 31 x 18, and its grid 23 x 31 x 18"):
        structure_statistics(labels, plain(labels.shape), values[None], NAMES)


def test_csv_and_json_say_the_same_and_have_no_nan(tmp_path: Path) -> None:
    labels, values = scene(np.random.default_rng(7))
    structures = (*NAMES, Structure(value=8, name='=HYPERLINK("x"), absent'))
    rows = structure_statistics(labels, plain(labels.shape), values, structures)
    paths = write_statistics(tmp_path / "new", rows, inputs=[("a.nii.gz", "0" * 64)])
    assert paths == (tmp_path / "new" / "statistics.csv", tmp_path / "new" / "statistics.json")
    told = json.loads(paths[1].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert told["note"] == RESEARCH_USE and told["inputs"] == [{"file": "a.nii.gz", "sha256": "0" * 64}]
    lines = list(csv.DictReader(paths[0].read_text().splitlines()))
    for row, entry, line in zip(rows, told["structures"], lines, strict=True):
        assert entry["voxels"] == int(line["voxels"]) == row.voxels
        assert float(line["ml"]) == entry["ml"] == row.ml
        assert entry["flags"] == [flag for flag in line["flags"].split("; ") if flag] == list(row.flags)
        assert line["note"] == RESEARCH_USE
    assert [float(lines[0][f"centroid_{axis}_mm"]) for axis in "xyz"] == told["structures"][0]["centroid"]
    assert told["structures"][3]["mean"] is None and told["structures"][3]["box"] is None
    assert lines[3]["mean"] == lines[3]["first_i"] == "" and lines[3]["name"].startswith("'=")
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["statistics.csv", "statistics.json"]


def test_a_named_file_takes_both_forms_and_a_bad_place_is_told(tmp_path: Path) -> None:
    rows = structure_statistics(np.ones((2, 2, 2), np.uint8), plain((2, 2, 2)), None, NAMES)
    assert [path.name for path in write_statistics(tmp_path / "a.b_stats.csv", rows)] == ["a.b_stats.csv", "a.b_stats.json"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_statistics(tmp_path / "file" / "x.csv", rows)


@pytest.mark.parametrize(
    ("shape", "affine", "words"),
    [
        ((4, 5, 7), np.eye(4), "shape 4 x 5 x 7 against 4 x 5 x 6"),
        ((4, 5, 6), np.diag([1, 1, 2.5, 1]), "spacing 1 x 1 x 2.5 against 1 x 1 x 1 mm"),
        ((4, 5, 6), np.array([[1, 0, 0, 3], [0, 1, 0, 4], [0, 0, 1, 0], [0, 0, 0, 1.0]]), "first voxels 5 mm apart"),
        ((4, 5, 6), np.diag([-1, 1, 1.0, 1]), "axes stored as LAS against RAS"),
        ((4, 5, 6), np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), "axes turned by 36.87 degrees"),
    ],
)
def test_a_mask_of_another_grid_is_refused_saying_how(shape: tuple[int, int, int], affine: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=f"another grid than the scan: .*{words}.*Give the scan that the mask was drawn on"):
        check_same_grid(Grid(shape, affine), plain((4, 5, 6)))
    check_same_grid(plain((4, 5, 6)), plain((4, 5, 6)))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A mask and the scan it was drawn on."""
    import nibabel as nib

    labels, values = scene(np.random.default_rng(8))
    for name, array in (("mask.nii.gz", labels), ("scan.nii.gz", values)):
        nib.save(nib.Nifti1Image(array, OBLIQUE), tmp_path / name)
    return tmp_path / "mask.nii.gz", tmp_path / "scan.nii.gz"


def stats(*arguments: str | Path) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(cli_stats.stats)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_command_prints_and_writes(files: tuple[Path, Path], tmp_path: Path) -> None:
    labels, values = scene(np.random.default_rng(8))
    told = json.loads(stats(*files, "--json"))
    assert [each["voxels"] for each in told["structures"]] == [int((labels == value).sum()) for value in (1, 2, 3)]
    assert told["structures"][0]["mean"] == pytest.approx(float(values[labels == 1].mean()), rel=1e-5)
    assert [entry["file"] for entry in told["inputs"]] == ["mask.nii.gz", "scan.nii.gz"]
    text = stats(*files, "-o", tmp_path / "out")
    assert RESEARCH_USE in text and "touches border" in text
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {f"mask_{name}" for name in ("statistics.csv", "statistics.json", "preview.png", "report.html")}
    with pytest.raises(OutputError, match="is there already"):
        stats(*files, "-o", tmp_path / "out")
    stats(files[0], "-o", tmp_path / "out", "--overwrite")
    assert json.loads((tmp_path / "out" / "mask_statistics.json").read_text())["structures"][0]["mean"] is None


def test_command_refuses_another_grid_and_writes_nothing(files: tuple[Path, Path], tmp_path: Path) -> None:
    import nibabel as nib

    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.random.default_rng(0).random((23, 31, 19), np.float32), OBLIQUE), other)
    with pytest.raises(InputError, match="shape 23 x 31 x 18 against 23 x 31 x 19"):
        stats(files[0], other, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_says_what_a_mask_must_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no NIfTI file.*Convert a DICOM SEG"):
        stats(tmp_path)


@pytest.mark.parametrize(("voxels", "stray", "edge", "flagged"), [
    (1000, 1, 1, False), (1000, 9, 1, False), (1000, 11, 1, True), (8000, 3, 10, True), (8000, 1, 9, False),
])  # fmt: skip
def test_a_voxel_or_two_astray_make_no_fragments(voxels: int, stray: int, edge: int, flagged: bool) -> None:
    """More than 1 % or 1 ml off the largest piece counts."""
    labels = np.zeros((24, 24, 30), np.uint8)
    side = round(voxels ** (1 / 3))
    labels[1 : 1 + side, 1 : 1 + side, 1 : 1 + side] = 1
    labels[22, 22, 25 - stray : 25] = 1
    grid = Grid(labels.shape, np.diag([edge, edge, edge, 1.0]))
    (row,) = structure_statistics(labels, grid, None, [Structure(value=1, name="a")])
    assert row.components == 2 and ("fragmented" in row.flags) is flagged


def test_command_tells_of_negative_labels(tmp_path: Path) -> None:
    import nibabel as nib

    labels = np.ones((5, 6, 7), np.int16)
    labels[0, 0, :2] = -1
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "mask.nii.gz")
    said = stats(tmp_path / "mask.nii.gz", "-o", tmp_path / "out")
    assert "note: mask.nii.gz has 2 voxels with negative labels" in said
    told = json.loads((tmp_path / "out" / "mask_statistics.json").read_text(encoding="utf-8"))
    assert told["notes"] == ["mask.nii.gz has 2 voxels with negative labels: taken as background."]
    assert "negative labels" in (tmp_path / "out" / "mask_report.html").read_text(encoding="utf-8")


def test_command_leaves_nothing_when_a_file_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.ones((5, 6, 7), np.int16), np.eye(4)), tmp_path / "mask.nii.gz")

    def full(*_: object, **__: object) -> None:
        raise OutputError("no space")

    monkeypatch.setattr("medical.results.report.write_report", full)
    with pytest.raises(OutputError, match="no space"):
        stats(tmp_path / "mask.nii.gz", "-o", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mask.nii.gz"]
