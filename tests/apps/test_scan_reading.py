"""What users send: scans of every kind, and what is none; nothing is written outside of the folder given."""

from __future__ import annotations

import gzip
import zipfile
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from apps.scans.reading import ALL_VOLUMES, modality_words, read, receive, safe_name
from apps.scans.tables import scan_html
from hybrid.errors import HybridError, InputError, RequestError
from tests.medical.dicom_stubs import private, series, slices_of

ROOM = 1 << 30


def nifti(path: Path, shape: tuple[int, ...] = (6, 7, 8)) -> Path:
    values = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, np.diag((-1.0, 2.0, 3.0, 1.0))), path)
    return path


def zipped(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, f"study/{file.name}")
    return path


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "session" / "sent"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["scan.nii", "scan.nii.gz"])
def test_nifti_is_read_and_described(tmp_path: Path, place: Path, name: str) -> None:
    received = receive([nifti(tmp_path / name)], place, unpacked=ROOM)
    scan = read(received)
    assert received.source == place / name and not received.choices
    wanted = np.asarray(nib.load(tmp_path / name).dataobj)
    np.testing.assert_array_equal(scan.volume.values[0], wanted)
    text = scan_html(scan)
    assert "1 x 2 x 3 mm" in text and "LAS" in text and "6 x 7 x 8" in text and "do not look like CT" in modality_words(scan)


def test_oblique_scans_say_so(tmp_path: Path, place: Path) -> None:
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    nib.save(nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), affine), tmp_path / "turned.nii")
    assert "oblique: its axes are up to 11.5 degrees" in scan_html(read(receive([tmp_path / "turned.nii"], place, unpacked=ROOM)))


@pytest.mark.parametrize("way", ["zip", "files"])
def test_a_dicom_series_is_read_without_the_patient(tmp_path: Path, place: Path, way: str) -> None:
    folder = series(tmp_path / "study", modality="CT")
    files = [zipped(tmp_path / "study.zip", folder)] if way == "zip" else sorted(folder.iterdir())
    received = receive(files, place, unpacked=ROOM)
    scan = read(received)
    assert received.dicom and scan.modality == "CT" and scan.volume.values.shape == (1, 6, 8, 5)
    assert scan.windows[0].name == "soft tissue"
    assert not private(scan_html(scan) + scan.volume.name)


def test_several_series_are_to_be_chosen_from(tmp_path: Path, place: Path) -> None:
    series(tmp_path / "study", np.full((4, 8, 6), 7) + np.arange(4)[:, None, None])
    second = slices_of(np.full((3, 5, 9), 90) + np.arange(3)[:, None, None])
    for number, one in enumerate(second):
        one.SeriesNumber = 8
        one.file_meta.MediaStorageSOPInstanceUID, one.file_meta.MediaStorageSOPClassUID = one.SOPInstanceUID, one.SOPClassUID
        one.save_as(tmp_path / "study" / f"second{number}", enforce_file_format=True)
    received = receive([zipped(tmp_path / "two.zip", tmp_path / "study")], place, unpacked=ROOM)
    assert [choice.key for choice in received.choices] == ["1", "2"]
    assert read(received, "1").volume.values.shape == (1, 6, 8, 4)
    assert read(received, "2").volume.values.shape == (1, 9, 5, 3)
    for wrong in (None, "3", "../1"):
        with pytest.raises(RequestError, match="Choose one from the list"):
            read(received, wrong)


def test_a_volume_of_a_4d_file_is_chosen(tmp_path: Path, place: Path) -> None:
    path = nifti(tmp_path / "four.nii.gz", (5, 6, 7, 3))
    received = receive([path], place, unpacked=ROOM)
    assert [choice.key for choice in received.choices] == ["0", "1", "2", ALL_VOLUMES]
    with pytest.raises(RequestError, match="Choose one from the list"):
        read(received)
    wanted = np.asarray(nib.load(path).dataobj)
    np.testing.assert_array_equal(read(received, "2").volume.values[0], wanted[..., 2])
    assert read(received, ALL_VOLUMES).volume.values.shape == (3, 5, 6, 7)


def bomb(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("I0001", "w", force_zip64=True) as member:
        block = bytes(1 << 20)
        for _ in range(64):
            member.write(block)
    return path


def lying(path: Path) -> Path:
    """A zip whose directory claims 60 GB of one small file."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("I0001", bytes(1000))
    data = bytearray(path.read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    path.write_bytes(bytes(data))
    return path


def leading_out(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../../I0001", bytes(128) + b"DICM")
    return path


def web_page(path: Path) -> Path:
    path.write_text("<html><script>alert(1)</script></html>")
    return path


def huge_header(path: Path) -> Path:
    """A NIfTI file of few bytes whose header claims 30000 voxels along each edge."""
    header = nib.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header.set_data_dtype(np.int16)
    header.set_sform(np.eye(4), 1)
    header["vox_offset"] = 352
    with gzip.open(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(4) + bytes(1000))
    return path


def too_large(path: Path) -> Path:
    """An honest file of little on disk and much in memory."""
    nib.save(nib.Nifti1Image(np.zeros((300, 300, 200), np.uint8), np.eye(4)), path)
    return path


def small_picture(path: Path) -> Path:
    Image.new("L", (20, 20)).save(path)
    return path


def written(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("bomb.zip", bomb, "would take"),
        ("lying.zip", lying, "would take|more than a scan|damaged"),
        ("out.zip", leading_out, "lead out of it"),
        ("page.nii", web_page, "page.nii"),
        ("page.nii.gz", web_page, "page.nii.gz"),
        ("page.zip", web_page, "damaged zip, or none"),
        ("page.dcm", web_page, "holds no DICOM"),
        ("huge.nii.gz", huge_header, "promises 54,000"),
        ("large.nii.gz", too_large, "would take"),
        ("picture.png", small_picture, "is a picture, not a volume"),
        ("empty.nii.gz", written(b""), "empty.nii.gz"),
        ("cut.nii.gz", written(gzip.compress(bytes(100))), "cut.nii.gz"),
        ("noise.bin", written(bytes(range(256)) * 10), "holds no DICOM"),
    ],
)
def test_what_is_no_scan_is_refused_in_words_and_not_kept(
    tmp_path: Path, place: Path, name: str, make: Callable[[Path], Path], words: str
) -> None:
    path = make(tmp_path / name)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(HybridError, match=words) as refusal:
        receive([path], place, unpacked=32 << 20)
    assert str(tmp_path) not in str(refusal.value) and "<script>" not in str(refusal.value)
    assert sorted(tmp_path.rglob("*")) == [each for each in before if each != place], (
        "nothing of it stays, and nothing is unpacked"
    )


def test_volumes_and_zips_come_alone(tmp_path: Path, place: Path) -> None:
    files = [nifti(tmp_path / "one.nii"), nifti(tmp_path / "two.nii")]
    with pytest.raises(InputError, match="one scan at a time"):
        receive(files, place, unpacked=ROOM)
    with pytest.raises(InputError, match="No file came"):
        receive([], place, unpacked=ROOM)


def test_names_cannot_lead_anywhere(tmp_path: Path, place: Path) -> None:
    assert safe_name("..\\..\\boot.ini") == "boot.ini"
    assert safe_name("/etc/passwd") == "passwd"
    assert "/" not in safe_name("a/../b;rm -rf $HOME.nii") and len(safe_name("x" * 500)) <= 80
    odd = nifti(tmp_path / "my scan; $(touch x) 'é'.nii.gz")
    received = receive([odd], place, unpacked=ROOM)
    assert received.source.parent == place and received.source.name.endswith(".nii.gz") and " " not in received.source.name
    read(received)


def test_files_of_one_name_are_all_kept(tmp_path: Path, place: Path) -> None:
    folder = series(tmp_path / "study")
    files = []
    for number, file in enumerate(sorted(folder.iterdir())):
        (tmp_path / str(number)).mkdir()
        files.append(file.rename(tmp_path / str(number) / "IMG.dcm"))
    assert read(receive(files, place, unpacked=ROOM)).volume.values.shape == (1, 6, 8, 5)
