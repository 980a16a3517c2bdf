"""DICOM series read as scans; the judges are highdicom's volumes, the stored pixels, and plain arithmetic."""

from __future__ import annotations

import logging
import shutil
import warnings
import zipfile
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from hybrid.errors import InputError, RequestError
from medical.dicom.volume import is_dicom, list_series, read_dicom
from medical.volumes.geometry import Reorientation
from medical.volumes.volume import read_volume
from tests.medical.dicom_stubs import enhanced, pixels, private, save, series, slices_of

OBLIQUE = (0.9659258, 0.2588190, 0.0, -0.2500000, 0.9330127, 0.2588190)
OBLIQUE_NORMAL = np.cross(OBLIQUE[:3], OBLIQUE[3:])


def test_a_series_is_what_highdicom_makes_of_it(tmp_path: Path) -> None:
    """Values and places, over slices whose files are shuffled and whose numbers run backwards."""
    values = pixels()

    def backwards(k: int, one: Dataset) -> None:
        one.InstanceNumber, one.SliceLocation = 5 - k, -k

    files = slices_of(values, orientation=OBLIQUE, step=2.5 * OBLIQUE_NORMAL, change=backwards)
    volume = read_dicom(save(tmp_path / "scan", files))
    judge = highdicom.get_volume_from_series(files)
    # highdicom puts slices first and may run through them backwards; brought to one orientation both must agree.
    ras = judge.to_patient_orientation("RAH")
    way = Reorientation.between(volume.grid, "RAS")
    np.testing.assert_array_equal(way.apply(volume.values[0]), ras.array)
    np.testing.assert_allclose(np.diag((-1, -1, 1, 1)) @ way.grid.affine, ras.affine, atol=1e-4)
    np.testing.assert_array_equal(volume.values[0], values.T)
    assert volume.values.shape == (1, 6, 8, 5) and volume.values.dtype == np.int16
    assert volume.name == "scan" and not volume.warnings


def test_a_gantry_tilt_stays_in_the_affine(tmp_path: Path) -> None:
    volume = read_dicom(series(tmp_path / "scan", step=(0, 0.5, 2.5)))
    np.testing.assert_allclose(
        volume.grid.affine, [[-0.7, 0, 0, 10], [0, -0.8, -0.5, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]], atol=1e-9
    )
    assert not volume.grid.orthogonal and "11.3 degrees" in volume.warnings[0]


@pytest.mark.parametrize("packed", ["folder", "zip"])
def test_folders_and_zips_are_searched_and_other_files_left_alone(tmp_path: Path, packed: str) -> None:
    folder = tmp_path / "case.01"
    series(folder / "a" / "b")
    (folder / "readme.txt").write_text("no DICOM")
    (folder / "._I0001").write_bytes(b"\0" * 128 + b"DICM" + b"junk")
    path = Path(shutil.make_archive(str(tmp_path / "case.01"), "zip", folder)) if packed == "zip" else folder
    volume = read_dicom(path)
    assert is_dicom(path) and volume.name == "case.01"
    np.testing.assert_array_equal(volume.values[0], pixels().T)


def test_members_that_point_outside_of_a_zip_are_read_and_written_nowhere(tmp_path: Path) -> None:
    folder = series(tmp_path / "inner")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as archive:
        for file in folder.iterdir():
            archive.write(file, f"../../{file.name}")
    shutil.rmtree(folder)
    assert read_dicom(tmp_path / "scan.zip").values.shape == (1, 6, 8, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["scan.zip"]


def test_zips_that_are_no_honest_scans_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = series(tmp_path / "inner")
    whole = Path(shutil.make_archive(str(tmp_path / "scan"), "zip", folder))
    monkeypatch.setattr("medical.dicom.files.MAX_UNPACKED", 1000)
    with pytest.raises(InputError, match="claims to hold more"):
        list_series(whole)
    monkeypatch.undo()
    content = bytearray(whole.read_bytes())
    content[200:260] = bytes(60)  # in the first member's data
    (tmp_path / "damaged.zip").write_bytes(content)
    with pytest.raises(InputError, match="damaged zip"):
        read_dicom(tmp_path / "damaged.zip")
    with zipfile.ZipFile(tmp_path / "odd.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.write(next(folder.iterdir()), "I1")
    with pytest.raises(InputError, match="unusual method"):
        list_series(tmp_path / "odd.zip")


@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4), (4, 3, 2, 1, 0), (2, 0, 4, 1, 3)])
def test_a_multi_frame_file_is_the_same_scan_whatever_the_order_of_its_frames(tmp_path: Path, order: tuple[int, ...]) -> None:
    def scaled(k: int, one: Dataset) -> None:
        one.RescaleSlope, one.RescaleIntercept = 1 + k / 2, -7

    values = pixels()
    slices = slices_of(values, orientation=OBLIQUE, step=2.5 * OBLIQUE_NORMAL, change=scaled)
    one = enhanced(slices, order=order)
    save(tmp_path, [one], ending=".dcm")
    volume, (found,) = read_dicom(tmp_path / "I0000.dcm"), list_series(tmp_path)
    wanted = values * (1 + np.arange(5) / 2)[:, None, None] - 7
    np.testing.assert_allclose(volume.values[0], wanted.T, rtol=1e-6)
    assert volume.values.dtype == np.float32 and found.slices == 5
    judge = highdicom.get_volume_from_series(slices).to_patient_orientation("RAH")
    way = Reorientation.between(volume.grid, "RAS")
    np.testing.assert_allclose(np.diag((-1, -1, 1, 1)) @ way.grid.affine, judge.affine, atol=1e-4)


def test_a_legacy_converted_file_of_highdicom(tmp_path: Path) -> None:
    """A multi-frame file by another hand."""
    slices = slices_of(pixels())
    one = highdicom.legacy.LegacyConvertedEnhancedMRImage(
        slices, series_instance_uid=highdicom.UID(), series_number=5, sop_instance_uid=highdicom.UID(), instance_number=1
    )
    one.save_as(tmp_path / "all.dcm")
    volume = read_dicom(tmp_path / "all.dcm")
    np.testing.assert_array_equal(volume.values[0], pixels().T)
    np.testing.assert_allclose(volume.grid.affine, np.array([[-0.7, 0, 0, 10], [0, -0.8, 0, -20], [0, 0, 2.5, 5], [0, 0, 0, 1]]))


def test_several_series_are_told_apart_listed_and_chosen(tmp_path: Path) -> None:
    def second(k: int, one: Dataset) -> None:
        one.SeriesNumber, one.SeriesDescription = 7, "CT body"

    series(tmp_path / "all", pixels(4))
    series(tmp_path / "all" / "ct", pixels(6, seed=3), modality="CT", change=second)
    first, other = list_series(tmp_path / "all")
    assert (first.number, first.modality, first.description, first.slices) == (1, "MR", "T1 axial", 4)
    assert (other.number, other.modality, other.description, other.size) == (2, "CT", "CT body", (6, 8))
    assert other.spacing == pytest.approx((0.7, 0.8, 2.5))
    with pytest.raises(RequestError, match="mixed series: 2") as caught:
        read_dicom(tmp_path / "all")
    assert str(first) in str(caught.value.hint) and str(other) in str(caught.value.hint)
    for choice in ("2", other.uid, other.uid[-9:]):
        np.testing.assert_array_equal(read_dicom(tmp_path / "all", series=choice).values[0], pixels(6, seed=3).T)
    for wrong in ("3", "0", "nothing", "", other.uid + "1"):
        with pytest.raises(RequestError, match="no such series"):
            read_dicom(tmp_path / "all", series=wrong)


def test_patients_of_one_series_uid_are_never_mixed(tmp_path: Path) -> None:
    def other(k: int, one: Dataset) -> None:
        if k > 2:
            one.PatientID = "SOMEBODY-ELSE"

    with pytest.raises(RequestError, match="mixed series"):
        read_dicom(series(tmp_path / "scan", pixels(6), change=other))


def test_localizers_odd_slices_and_other_objects_are_left_out_and_counted(tmp_path: Path) -> None:
    files = slices_of(pixels(7))
    files[5].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    files[6].ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    folder = save(tmp_path / "scan", files)
    report = Dataset()
    report.file_meta = files[0].file_meta
    report.SOPClassUID, report.SOPInstanceUID, report.Modality = pydicom.uid.UID("1.2.840.10008.5.1.4.1.1.88.11"), "1.2.3", "SR"
    report.save_as(folder / "report", enforce_file_format=True)
    (folder / "broken").write_bytes(b"\0" * 128 + b"DICM" + b"\x02\x00\x10\x00UI\xff\xff junk")
    volume = read_dicom(folder)
    np.testing.assert_array_equal(volume.values[0], pixels(7)[:5].T)
    told = " ".join(volume.warnings)
    assert "localizer: 1 image" in told and "direction than most of the series: 1 image" in told and "damaged: 1 image" in told


def test_a_single_image_beside_a_volume_is_left_out_with_a_word(tmp_path: Path) -> None:
    series(tmp_path / "all" / "a")
    series(tmp_path / "all" / "b", pixels(1))
    volume = read_dicom(tmp_path / "all")
    assert volume.values.shape[-1] == 5 and "Left out, since no volumes" in volume.warnings[-1]


@pytest.mark.parametrize(
    ("keyword", "values", "part"),
    [
        ("EchoTime", [4.6, 9.2], "echo time 4.6"),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]], "kind ORIGINAL\\PRIMARY\\M"),
        ("TemporalPositionIdentifier", [1, 2], "time point 1"),
        ("DiffusionBValue", [0.0, 1000.0], "b-value 0.0"),
        ("ContentTime", ["101500", "101630"], "time 101500"),
        ("AcquisitionNumber", [1, 2], "acquisition 1"),
    ],
)
def test_slices_at_one_place_are_told_apart_by_a_tag(tmp_path: Path, keyword: str, values: list, part: str) -> None:
    def alter(k: int, one: Dataset) -> None:
        one.ImagePositionPatient = [0, 0, 2.0 * (k // 2)]
        setattr(one, keyword, values[k % 2])

    folder = series(tmp_path / "scan", pixels(8), change=alter)
    first, second = list_series(folder)
    assert first.part == part and first.uid == second.uid
    with pytest.raises(RequestError, match="mixed series"):
        read_dicom(folder)
    with pytest.raises(RequestError, match="2 series whose UID ends so"):
        read_dicom(folder, series=first.uid)
    np.testing.assert_array_equal(read_dicom(folder, series="1").values[0], pixels(8)[0::2].T)
    np.testing.assert_array_equal(read_dicom(folder, series="2").values[0], pixels(8)[1::2].T)


def test_echoes_of_one_multi_frame_file_are_told_apart(tmp_path: Path) -> None:
    def alter(k: int, one: Dataset) -> None:
        one.ImagePositionPatient = [0, 0, 2.0 * (k // 2)]

    values = pixels(6)
    one = enhanced(slices_of(values, change=alter), order=range(6), echoes=[3.0, 8.0] * 3)
    save(tmp_path, [one])
    assert [found.part for found in list_series(tmp_path)] == ["echo time 3.0", "echo time 8.0"]
    np.testing.assert_array_equal(read_dicom(tmp_path, series="2").values[0], values[1::2].T)


def test_copies_of_a_slice_are_refused(tmp_path: Path) -> None:
    """A time that differs from slice to slice does not make two volumes of them."""

    def timed(k: int, one: Dataset) -> None:
        one.ContentTime = f"10150{k}"

    folder = series(tmp_path / "scan", change=timed)
    shutil.copy(folder / "I0003", folder / "copy")
    with pytest.raises(InputError, match="Several slices lie at one place"):
        read_dicom(folder)


def test_slices_sent_twice_are_no_second_time_point(tmp_path: Path) -> None:
    """Two slices at each time, and two of them again later: no time has a whole volume."""

    def timed(k: int, one: Dataset) -> None:
        one.ContentTime = f"10150{k // 2}"
        one.ImagePositionPatient = [0, 0, 2.0 * (k % 4)]

    with pytest.raises(InputError, match="Several slices lie at one place"):
        read_dicom(series(tmp_path, pixels(6), change=timed))


def test_missing_slices_single_slices_and_flat_pictures_are_refused(tmp_path: Path) -> None:
    files = slices_of(pixels(6))
    with pytest.raises(InputError, match=r"gap: 1 slice is missing, at 12\.50 mm"):
        read_dicom(save(tmp_path / "gap", [*files[:3], *files[4:]]))
    save(tmp_path / "one", files[:1])
    with pytest.raises(InputError, match="single slice") as caught:
        read_dicom(tmp_path / "one" / "I0000")
    assert "folder" in str(caught.value.hint)

    def placeless(k: int, one: Dataset) -> None:
        del one.ImagePositionPatient

    with pytest.raises(InputError, match="do not say where they lie"):
        read_dicom(series(tmp_path / "flat", change=placeless))

    def red(k: int, one: Dataset) -> None:
        one.SamplesPerPixel, one.PhotometricInterpretation = 3, "RGB"

    with pytest.raises(InputError, match="colour"):
        read_dicom(series(tmp_path / "red", change=red))


def test_folders_without_a_scan_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.dcm").write_text("not DICOM at all")
    assert not is_dicom(tmp_path / "text") and not is_dicom(tmp_path / "absent")
    with pytest.raises(InputError, match="holds no DICOM file"):
        list_series(tmp_path / "text")
    with pytest.raises(InputError, match="There is no absent"):
        list_series(tmp_path / "absent")

    def scout(k: int, one: Dataset) -> None:
        one.ImageType = ["DERIVED", "SECONDARY", "LOCALIZER"]

    with pytest.raises(InputError, match="only localizers"):
        list_series(series(tmp_path / "scouts", change=scout))


def test_a_file_without_preamble_and_meta_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for k, one in enumerate(slices_of(pixels())):
        del one.file_meta
        pydicom.dcmwrite(folder / str(k), one, implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert is_dicom(folder / "0")
    np.testing.assert_array_equal(read_dicom(folder).values[0], pixels().T)


def test_nothing_of_the_patient_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Descriptions that name the patient are left out, and damaged tags are not quoted."""
    told = []

    def careless(k: int, one: Dataset) -> None:
        one.SeriesDescription = "T1 Quixote 88231605"
        one.PatientBirthDate = "Alonso"
        one.PatientName = "Quixote^Alonso^" + "x" * 80

    with warnings.catch_warnings(record=True) as raised, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        files = slices_of(pixels(6), change=careless)
        save(tmp_path / "scan", [*files[:3], *files[4:]])
        save(tmp_path / "sound", files)
        raised.clear()  # what pydicom said in writing the files
        caplog.clear()
        (found,) = list_series(tmp_path / "scan")
        assert found.description is None
        with pytest.raises(InputError) as caught:
            read_dicom(tmp_path / "scan")
        told += [str(found), repr(found), str(caught.value), *(str(one.message) for one in raised), caplog.text]
        volume = read_dicom(tmp_path / "sound")
        told += [repr(volume.origin), volume.name, *volume.warnings, *(str(one.message) for one in raised), caplog.text]
    assert not private(" ".join(told))


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("T1 MPRAGE sag", True), ("Alonso head", False), ("lamancha-1605", False), ("Name^First", False),
        ("born 1547-09-29", False), ("CT 3.0 B30f", True), ("scan 20200101", False), ("", False),
    ],
)  # fmt: skip
def test_descriptions_are_shown_where_they_name_nobody(tmp_path: Path, said: str, kept: bool) -> None:
    def describe(k: int, one: Dataset) -> None:
        one.SeriesDescription = said

    (found,) = list_series(series(tmp_path, change=describe))
    assert found.description == (said if kept else None)


@pytest.mark.parametrize("study", ["study1", "study2", "study3"])
def test_hippocampus_studies(shared: Path, study: str) -> None:
    folder = shared / "data" / "medical_samples" / "hippocampus_dicom" / study
    volume = read_dicom(folder)
    judge = highdicom.get_volume_from_series([pydicom.dcmread(file) for file in folder.glob("*.dcm")])
    ras = judge.to_patient_orientation("RAH")
    way = Reorientation.between(volume.grid, "RAS")
    np.testing.assert_array_equal(way.apply(volume.values[0]), ras.array)
    np.testing.assert_allclose(np.diag((-1, -1, 1, 1)) @ way.grid.affine, ras.affine)
    assert volume.grid.spacing == pytest.approx((1, 1, 1)) and volume.name == study


def test_badly_de_identified_jpeg_2000_ct(shared: Path) -> None:
    volume = read_dicom(shared / "data" / "medical_samples" / "ct_dicom")
    assert volume.values.shape == (1, 512, 512, 20) and volume.values.dtype == np.int16
    assert volume.values.min() == -1024 and volume.grid.spacing == pytest.approx((0.9765625, 0.9765625, 2))
    assert "SOPClassUID" in volume.warnings[0]


def test_names_do_not_decide(shared: Path) -> None:
    samples = shared / "data" / "medical_samples"
    assert is_dicom(samples / "ct_dicom") and not is_dicom(samples / "mr_small.nii.gz")
    assert read_volume(samples / "mr_small.nii.gz").name == "mr_small"
