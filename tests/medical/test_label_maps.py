"""Label and probability maps: judged by nibabel, on the grids of scans of every kind."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.nifti1 import Nifti1Extension
from scipy.spatial.transform import Rotation

from hybrid.errors import InputError, OutputError, RequestError
from medical.structures import Code, Structure
from medical.volumes import nifti_writing
from medical.volumes.geometry import Grid
from medical.volumes.label_maps import names_path, read_labels, write_labels, write_probabilities
from medical.volumes.volume import Volume, read_volume

SHAPE = (6, 5, 4)
STRUCTURES = (
    Structure(value=1, name="Anterior", colour=(1, 2, 3), code=Code(value="5366008", meaning="Hippocampus")),
    Structure(value=2, name="Später"),
)
GEOMETRY = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "qoffset_x", "qoffset_y", "qoffset_z")
GEOMETRY += ("quatern_b", "quatern_c", "quatern_d")


def affine_of(shear: float = 0.0, turn: tuple[float, ...] = (0, 0, 180.0)) -> np.ndarray:
    slant = np.eye(3)
    slant[1, 2] = shear
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", turn, degrees=True).as_matrix() @ slant * (0.7, 0.8, 2.5)
    affine[:3, 3] = (31.7, -120.3, 48.9)
    return affine


def scan(
    path: Path, sform: Any = None, qform: Any = None, unit: str = "mm", kind: Any = nib.Nifti1Image, codes: Any = (2, 1)
) -> Volume:
    values = np.random.default_rng(0).integers(0, 100, SHAPE).astype(np.int16)
    image = kind(values, None)
    image.header.set_zooms((0.7, 0.8, 2.5))
    image.header.set_xyzt_units(unit)
    image.header["descrip"] = b"DOE^JANE"
    image.header["aux_file"] = b"DOE^JANE"
    if kind is nib.Nifti1Image:
        image.header["db_name"] = b"DOE^JANE"
    image.header.extensions.append(Nifti1Extension("comment", b"DOE^JANE"))
    image.set_sform(sform, codes[0] if sform is not None else 0)
    image.set_qform(qform, codes[1] if qform is not None else 0)
    nib.save(image, path)
    return read_volume(path)


def labels_of(top: int = 2) -> np.ndarray:
    values = np.random.default_rng(1).integers(0, 3, SHAPE)
    values[0, 0, 0] = top
    return values


half_turn = affine_of(turn=(11.0, 177.0, 178.0))
CASES: dict[str, dict[str, Any]] = {
    "both": {"sform": affine_of(), "qform": affine_of()},
    "sform": {"sform": affine_of(turn=(10, 20, 30))},
    "sheared": {"sform": affine_of(0.3), "codes": (4, 0)},
    "qform": {"qform": affine_of(turn=(10, 20, 30)), "codes": (0, 3)},
    "half turn": {"qform": half_turn},
    "neither": {},
    "differing": {"sform": affine_of(turn=(10, 20, 30)), "qform": affine_of(turn=(10, 20, 33))},
    "metres": {"sform": np.diag([1e-3, 1e-3, 1e-3, 1]) @ affine_of(), "unit": "meter"},
    "microns": {"qform": np.diag([1e3, 1e3, 1e3, 1]) @ affine_of(), "unit": "micron"},
    "unknown": {"sform": affine_of(), "unit": "unknown"},
    "NIfTI-2": {"sform": affine_of(), "qform": affine_of(), "kind": nib.Nifti2Image},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_geometry_is_kept_to_the_last_bit(case: str, ending: str, tmp_path: Path) -> None:
    volume = scan(tmp_path / "scan.nii.gz", **CASES[case])
    labels = labels_of()
    path = write_labels(tmp_path / f"labels{ending}", labels, volume, STRUCTURES)
    was, now = nib.load(tmp_path / "scan.nii.gz"), nib.load(path)
    assert type(now) is type(was) and now.shape == was.shape
    for field in GEOMETRY:
        assert now.header[field] == pytest.approx(was.header[field], abs=0), field
    assert np.array_equal(now.header["pixdim"][:4], was.header["pixdim"][:4])
    assert now.header.get_xyzt_units()[0] == was.header.get_xyzt_units()[0]
    assert np.array_equal(now.affine, was.affine)
    assert now.header.get_data_dtype() == np.uint8 and (now.dataobj.slope, now.dataobj.inter) == (1, 0)
    assert now.header["descrip"].item() == b"Research use, not a medical device"
    assert np.array_equal(now.get_fdata(), labels)
    found, grid, structures = read_labels(path)
    assert np.array_equal(found, labels) and found.dtype == np.uint8 and structures == STRUCTURES
    assert np.array_equal(grid.affine, volume.grid.affine) and grid.shape == volume.grid.shape
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, "labels.labels.json", "scan.nii.gz"])


def test_quaternion_of_a_half_turn_is_kept(tmp_path: Path) -> None:
    # b, c and d whose squares sum to more than 1 in float32: worked out anew from their matrix they turn otherwise.
    scan(tmp_path / "scan.nii", qform=half_turn)
    content = bytearray((tmp_path / "scan.nii").read_bytes())
    header = np.frombuffer(content, dtype=nib.Nifti1Header.template_dtype, count=1)
    header["quatern_b"], header["quatern_c"], header["quatern_d"] = 0.6, 0.8000001, 0.0
    (tmp_path / "scan.nii").write_bytes(content)
    volume = read_volume(tmp_path / "scan.nii")
    path = write_labels(tmp_path / "labels.nii", labels_of(), volume, STRUCTURES)
    was, now = nib.load(tmp_path / "scan.nii").header, nib.load(path).header
    assert all(was[f"quatern_{letter}"] == now[f"quatern_{letter}"] for letter in "bcd")
    assert np.array_equal(was.get_qform(), now.get_qform())


def test_nothing_that_may_name_a_patient_travels_on(tmp_path: Path) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["both"])
    assert b"DOE" in (tmp_path / "scan.nii").read_bytes()
    write_labels(tmp_path / "labels.nii", labels_of(), volume, STRUCTURES)
    write_probabilities(tmp_path / "probabilities.nii", np.zeros((2, *SHAPE), np.float32), volume)
    for name in ("labels.nii", "probabilities.nii", "labels.labels.json"):
        assert b"DOE" not in (tmp_path / name).read_bytes()


class FromDicom:
    """Stands for an origin that is no NIfTI file."""


@pytest.mark.parametrize(("shear", "code"), [(0.0, 1), (5e-4, 0), (0.3, 0)])
def test_a_scan_from_dicom_gets_both_affines_unless_sheared(shear: float, code: int, tmp_path: Path) -> None:
    grid = Grid((60, 50, 40), affine_of(shear))
    origin: Any = FromDicom()
    volume = Volume(np.zeros((1, *grid.shape), np.int16), grid, "scan", origin)
    image = nib.load(write_labels(tmp_path / "labels.nii.gz", np.ones(grid.shape, bool), volume, STRUCTURES))
    np.testing.assert_allclose(image.affine, grid.affine, atol=1e-4)
    assert (image.header["sform_code"], image.header["qform_code"]) == (1, code) and image.header.get_xyzt_units()[0] == "mm"
    if code:
        np.testing.assert_allclose(image.get_qform(), grid.affine, atol=1e-4)
    assert read_labels(tmp_path / "labels.nii.gz")[1].matches(grid)


@pytest.mark.parametrize(("top", "dtype"), [(255, np.uint8), (256, np.uint16), (65535, np.uint16)])
def test_the_type_holds_the_labels(top: int, dtype: type, tmp_path: Path) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["both"])
    path = write_labels(tmp_path / "labels.nii.gz", labels_of(top), volume, STRUCTURES)
    found, _, structures = read_labels(path)
    assert nib.load(path).header.get_data_dtype() == dtype == found.dtype and np.array_equal(found, labels_of(top))
    assert structures == (*STRUCTURES, Structure(value=top, name=f"label {top}"))


def test_the_same_labels_are_the_same_bytes(tmp_path: Path) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["both"])
    for name in ("a.nii.gz", "b.nii.gz"):
        write_labels(tmp_path / name, np.asfortranarray(labels_of())[:, :, :], volume, STRUCTURES)
    first = (tmp_path / "a.nii.gz").read_bytes()
    assert first == (tmp_path / "b.nii.gz").read_bytes()
    assert first[3:8] == bytes(5)  # RFC 1952: no name of a file, no time


def test_what_cannot_be_written_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["both"])
    (tmp_path / "labels.nii").write_bytes(b"old")
    for wrong, match in (
        (np.zeros((6, 5, 3), int), "do not fit the scan"),
        (np.zeros(SHAPE, np.float32), "do not fit the scan"),
        (labels_of(-1), "-1 to"),
        (labels_of(65536), "65536"),
    ):
        with pytest.raises(OutputError, match=match):
            write_labels(tmp_path / "labels.nii", wrong, volume, STRUCTURES)
    for name in ("labels.nrrd", "labels.img", "labels.gz"):
        with pytest.raises(RequestError, match=r"\.nii"):
            write_labels(tmp_path / name, labels_of(), volume, STRUCTURES)
    with pytest.raises(OutputError, match="could not be written"):
        write_labels(tmp_path / "absent" / "labels.nii", labels_of(), volume, STRUCTURES)
    assert (tmp_path / "labels.nii").read_bytes() == b"old"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["labels.nii", "scan.nii"]


@pytest.mark.parametrize("changed", ["voxel", "affine", "code", "shape", "slope"])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_file_that_reads_back_otherwise_is_not_kept(
    changed: str, ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["both"])
    true = nifti_writing._write_volumes

    def falsified(stream: Any, header: Any, blocks: Any, count: int) -> None:
        header = header.copy()
        if changed == "affine":
            header["srow_x"][3] += 0.01
        elif changed == "code":
            header["qform_code"] = 2
        elif changed == "shape":
            header["dim"][1:4] = (5, 6, 4)
        elif changed == "slope":
            header["scl_slope"] = 2

        def other(number: int) -> np.ndarray:
            block = blocks(number).copy()
            block[3, 2, 1] += changed == "voxel"
            return block

        true(stream, header, other, count)

    monkeypatch.setattr(nifti_writing, "_write_volumes", falsified)
    with pytest.raises(OutputError, match="read back with another"):
        write_labels(tmp_path / f"labels{ending}", labels_of(), volume, STRUCTURES)
    with pytest.raises(OutputError, match="read back with another"):
        write_probabilities(tmp_path / f"p{ending}", np.full((2, *SHAPE), 0.5, np.float32), volume)
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["both"])

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(nifti_writing, "_compare", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_labels(tmp_path / "labels.nii.gz", labels_of(), volume, STRUCTURES)
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii"]


def test_names_lie_beside_the_file_and_in_it(tmp_path: Path) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["both"])
    path = write_labels(tmp_path / "labels.nii.gz", labels_of(), volume, STRUCTURES)
    beside = json.loads(names_path(path).read_text(encoding="utf-8"))
    within = json.loads(nib.load(path).header.extensions[0].content)
    assert within == beside and beside["notice"] == "Research use, not a medical device" and beside["background"] == 0
    assert [(entry["value"], entry["name"]) for entry in beside["structures"]] == [(1, "Anterior"), (2, "Später")]
    names_path(path).unlink()
    assert read_labels(path)[2] == STRUCTURES
    image = nib.load(path)
    image.header.extensions.clear()
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), image.affine), tmp_path / "bare.nii.gz")
    assert [s.name for s in read_labels(tmp_path / "bare.nii.gz")[2]] == ["label 1", "label 2"]
    names_path(tmp_path / "bare.nii.gz").write_text(json.dumps(beside), encoding="utf-8")
    assert read_labels(tmp_path / "bare.nii.gz")[2] == STRUCTURES


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"structures": [{"value": 0, "name": "x"}]}', '{"structures": 3}', "[" * 5000, "\xff"]
)
def test_foreign_texts_beside_a_map_are_passed_over(text: str, tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(labels_of().astype(np.uint8), np.eye(4)), tmp_path / "a.nii")
    names_path(tmp_path / "a.nii").write_text(text, encoding="latin-1")
    assert [s.name for s in read_labels(tmp_path / "a.nii")[2]] == ["label 1", "label 2"]


def test_label_tables_of_other_programs(tmp_path: Path) -> None:
    table = (
        '<?xml version="1.0" encoding="UTF-8"?><CaretExtension><VolumeInformation Index="0"><LabelTable>'
        '<Label Key="0" Red="0" Green="0" Blue="0" Alpha="1"><![CDATA[nothing]]></Label>'
        '<Label Key="2" Red="0.0" Green="1.0" Blue="0.5" Alpha="1"><![CDATA[spleen]]></Label>'
        "</LabelTable></VolumeInformation></CaretExtension>"
    )
    image = nib.Nifti1Image(labels_of().astype(np.uint8), np.eye(4))
    image.header.extensions.append(Nifti1Extension(0, table.encode()))
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_labels(tmp_path / "a.nii.gz")[2] == (
        Structure(value=1, name="label 1"),
        Structure(value=2, name="spleen", colour=(0, 255, 128)),
    )


def test_floats_near_integers_are_labels(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(labels_of(300).astype(np.float64) + 5e-4, np.eye(4)), tmp_path / "a.nii")
    found = read_labels(tmp_path / "a.nii")[0]
    assert found.dtype == np.uint16 and np.array_equal(found, labels_of(300))


def test_what_is_no_label_map_is_refused(tmp_path: Path) -> None:
    def refused(values: np.ndarray, match: str) -> None:
        nib.save(nib.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
        with pytest.raises(InputError, match=match):
            read_labels(tmp_path / "a.nii")

    refused(labels_of().astype(np.float32) + 2e-3, "between the integers")
    refused(np.linspace(0, 1, 120, dtype=np.float32).reshape(SHAPE), "between the integers")
    refused(labels_of(70000).astype(np.int32), "70000, which is no label")
    refused(np.zeros((*SHAPE, 2), np.uint8), "2 volumes")
    bad = labels_of().astype(np.float32)
    bad[1, 1, 1] = np.nan
    refused(bad, "1 NaN")


def test_stray_negative_voxels_become_background(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nib.save(nib.Nifti1Image(labels_of(-1).astype(np.int16), np.eye(4)), tmp_path / "a.nii")
    found = read_labels(tmp_path / "a.nii")[0]
    assert found.dtype == np.uint8 and found[0, 0, 0] == 0 and np.array_equal(found.ravel()[1:], labels_of().ravel()[1:])
    assert "a.nii has 1 voxel with negative labels" in caplog.text


def test_an_empty_map_is_one(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.uint8), np.eye(4)), tmp_path / "a.nii")
    found, _, structures = read_labels(tmp_path / "a.nii")
    assert not found.any() and structures == ()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("classes", [1, 3])
def test_probabilities_come_back(dtype: type, classes: int, tmp_path: Path) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["differing"])
    array = np.random.default_rng(2).random((classes, *SHAPE)).astype(dtype)
    array[0, 0, 0, :2] = (0, 1)
    kept = array.copy()
    path = write_probabilities(tmp_path / "p.nii.gz", array, volume)
    image = nib.load(path)
    assert image.shape == (*SHAPE, classes) and image.header.get_data_dtype() == np.uint16
    assert np.array_equal(image.affine, nib.load(tmp_path / "scan.nii").affine)
    np.testing.assert_allclose(np.moveaxis(image.get_fdata(), -1, 0), array, atol=0.51 / 65535)
    assert np.array_equal(array, kept)
    again = read_volume(path, channels=classes) if classes > 1 else read_volume(path)
    np.testing.assert_allclose(again.values, array, atol=1e-5)


def test_what_is_no_probability_is_refused(tmp_path: Path) -> None:
    volume = scan(tmp_path / "scan.nii", **CASES["both"])
    for wrong in (-0.1, 1.1, np.nan, np.inf):
        array = np.zeros((2, *SHAPE), np.float32)
        array[1, 2, 3, 1] = wrong
        with pytest.raises(OutputError, match="no probabilities"):
            write_probabilities(tmp_path / "p.nii.gz", array, volume)
    with pytest.raises(OutputError, match="do not fit"):
        write_probabilities(tmp_path / "p.nii.gz", np.zeros((2, 5, 6, 4), np.float32), volume)
    assert [file.name for file in tmp_path.iterdir()] == ["scan.nii"]


def test_pieces_join_and_memory_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti_writing, "_PLANES", 1 << 14)
    origin: Any = FromDicom()
    grid = Grid((128, 100, 90), affine_of())
    volume = Volume(np.zeros((1, 1, 1, 1)), grid, "scan", origin)
    labels = np.zeros(grid.shape, np.uint8)
    labels[40:80, 30:60, 20:70] = 9
    tracemalloc.start()
    path = write_labels(tmp_path / "labels.nii.gz", labels, volume, ())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20
    with gzip.open(path) as stream:
        stream.seek(nib.load(path).dataobj.offset)
        assert np.array_equal(np.frombuffer(stream.read(), np.uint8).reshape(grid.shape, order="F"), labels)
    assert np.array_equal(read_labels(path)[0], labels)


def test_a_real_map_with_41_structures(shared: Path, tmp_path: Path) -> None:
    samples = shared / "data" / "medical_samples"
    labels, grid, structures = read_labels(samples / "ct_small_seg.nii.gz")
    volume = read_volume(samples / "ct_small.nii.gz")
    assert grid.matches(volume.grid) and "spleen" in {structure.name for structure in structures}
    path = write_labels(tmp_path / "labels.nii.gz", labels, volume, structures)
    again = read_labels(path)
    assert np.array_equal(again[0], np.asarray(nib.load(samples / "ct_small_seg.nii.gz").dataobj)) and again[2] == structures


def test_real_labels_of_the_training_set(shared: Path) -> None:
    for path in sorted((shared / "data" / "hippocampus" / "labelsTr").glob("[!.]*.nii.gz"))[:20]:
        labels, grid, _ = read_labels(path)
        assert labels.dtype == np.uint8 and set(np.unique(labels)) <= {0, 1, 2}
        assert grid.matches(read_volume(path.parent.parent / "imagesTr" / path.name).grid)
