"""DICOM SEG: read back by highdicom, whose volumes and references are the judge, and by dciodvfy where it is installed."""

from __future__ import annotations

import hashlib
import logging
import shutil
import subprocess
import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from hybrid.errors import OutputError, RequestError
from medical.dicom.seg import check_seg, obstacle, write_seg
from medical.dicom.volume import read_dicom
from medical.structures import Code, Structure
from medical.volumes.geometry import Grid, Reorientation
from medical.volumes.volume import NiftiOrigin, Volume
from tests.medical.dicom_stubs import IDENTITY, NAME, enhanced, pixels, private, save, series, slices_of

STRUCTURES = (
    Structure(value=7, name="Ösophagus", code=Code(value="32849002", meaning="Esophagus"), colour=(255, 0, 0)),
    Structure(value=2, name="liver"),
    Structure(value=300, name="part that nobody has coded"),
)
ANATOMICAL = pydicom.sr.coding.Code("123037004", "SCT", "Anatomical structure")


def labels_of(volume: Volume, *, seed: int = 0) -> np.ndarray:
    """Random voxels of each structure; no slice is like another, and some are empty."""
    labels = np.random.default_rng(seed).choice([0, 2, 7, 300], volume.grid.shape, p=[0.6, 0.2, 0.15, 0.05]).astype(np.uint16)
    labels[..., 1] = 0
    return labels


def write(folder: Path, labels: np.ndarray, volume: Volume, structures: tuple[Structure, ...] = STRUCTURES) -> Path:
    return write_seg(folder / "seg.dcm", labels, volume, structures, algorithm="swin_unetr", version="0a1b2c")


def frames_by_place(path: Path) -> dict[tuple[int, tuple[float, ...]], np.ndarray]:
    """(segment, position) -> pixels, by pydicom alone."""
    one = pydicom.dcmread(path)
    shared = one.SharedFunctionalGroupsSequence[0]
    found = {}
    for item, plane in zip(one.PerFrameFunctionalGroupsSequence, np.atleast_3d(one.pixel_array), strict=True):
        owner = item if "SegmentIdentificationSequence" in item else shared
        place = tuple(float(x) for x in item.PlanePositionSequence[0].ImagePositionPatient)
        found[int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber), place] = plane
    return found


@pytest.mark.parametrize("step", [(0, 0, 2.5), (0, 0, -2.5)])
def test_voxels_lie_where_the_label_map_has_them(tmp_path: Path, step: tuple[float, ...]) -> None:
    volume = read_dicom(series(tmp_path / "scan", pixels(6), step=step))
    labels = labels_of(volume)
    seg = highdicom.seg.segread(write(tmp_path, labels, volume))
    whole = seg.get_volume(combine_segments=True)
    # The map on highdicom's slices: it begins with the first that is not empty and may run backwards.
    lps = np.diag((-1.0, -1, 1, 1)) @ whole.affine
    way = Reorientation.between(Grid(whole.array.shape, lps), volume.grid.codes)
    indices = np.stack(np.nonzero(np.ones(way.grid.shape)), -1)
    world = np.c_[way.grid.to_world(indices), np.ones(len(indices))]
    places = np.rint(np.linalg.inv(volume.grid.affine)[:3] @ world.T).astype(int)
    numbers = {0: 0, 1: 2, 2: 7, 3: 300}
    read = np.vectorize(numbers.get)(way.apply(whole.array))
    np.testing.assert_array_equal(read[tuple(indices.T)], labels[tuple(places)])
    assert np.count_nonzero(read) == np.count_nonzero(labels) > 0


def test_what_the_segments_say(tmp_path: Path) -> None:
    volume = read_dicom(series(tmp_path / "scan"))
    seg = highdicom.seg.segread(write(tmp_path, labels_of(volume), volume))
    first, second, third = (seg.get_segment_description(at) for at in (1, 2, 3))
    assert [one.segment_label for one in (first, second, third)] == ["liver", "Ösophagus", "part that nobody has coded"]
    assert first.segmented_property_type == pydicom.sr.codedict.codes.SCT.Liver  # the standard's own list knows the name
    assert second.segmented_property_type == pydicom.sr.codedict.codes.SCT.Esophagus
    assert third.segmented_property_type == third.segmented_property_category == ANATOMICAL
    assert second.algorithm_type == highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC
    algorithm = second.algorithm_identification
    assert (algorithm.name, algorithm.version) == ("swin_unetr", "0a1b2c")
    colour = highdicom.color.CIELabColor.from_dicom_value(second.RecommendedDisplayCIELabValue)
    np.testing.assert_allclose(colour.to_rgb(), (255, 0, 0), atol=2)
    assert seg.segmentation_type == highdicom.seg.SegmentationTypeValues.BINARY and seg.BitsAllocated == 1
    assert "Research use, not a medical device" in seg.SeriesDescription
    assert seg.ContentDescription == "Research use, not a medical device"


def test_it_belongs_to_its_patient_study_and_series(tmp_path: Path) -> None:
    files = slices_of(pixels())
    volume = read_dicom(save(tmp_path / "scan", files))
    seg = highdicom.seg.segread(write(tmp_path, labels_of(volume), volume))
    assert (seg.PatientName, seg.PatientID, seg.StudyInstanceUID) == (NAME, IDENTITY, files[0].StudyInstanceUID)
    assert seg.FrameOfReferenceUID == files[0].FrameOfReferenceUID
    assert seg.SeriesInstanceUID != files[0].SeriesInstanceUID and seg.Modality == "SEG"
    by_uid = {(study, one, sop) for study, one, sop in seg.get_source_image_uids()}
    assert by_uid == {(one.StudyInstanceUID, one.SeriesInstanceUID, one.SOPInstanceUID) for one in files}
    positions = {one.SOPInstanceUID: list(one.ImagePositionPatient) for one in files}
    for item in seg.PerFrameFunctionalGroupsSequence:
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        assert list(item.PlanePositionSequence[0].ImagePositionPatient) == positions[source.ReferencedSOPInstanceUID]


def test_tilted_slices_keep_their_positions(tmp_path: Path) -> None:
    files = slices_of(pixels(6), step=(0.1, 0.9, 2.5))
    volume = read_dicom(save(tmp_path / "scan", files))
    labels = labels_of(volume)
    found = frames_by_place(write(tmp_path, labels, volume))
    for k, one in enumerate(files):
        for segment, value in ((1, 2), (2, 7), (3, 300)):
            wanted = value == labels[..., k].T
            if wanted.any():
                np.testing.assert_array_equal(found.pop((segment, tuple(one.ImagePositionPatient))), wanted)
    assert not found


def test_multi_frame_sources_are_referred_to_by_their_frames(tmp_path: Path) -> None:
    """One echo of a file of two, its frames in no order."""

    def twice(k: int, one: Dataset) -> None:
        one.ImagePositionPatient = [0, 0, 2.0 * (k // 2)]

    order = (5, 0, 3, 2, 1, 4)
    one = enhanced(slices_of(pixels(6), change=twice), order=order, echoes=[3.0, 8.0] * 3)
    save(tmp_path / "scan", [one])
    volume = read_dicom(tmp_path / "scan", series="2")
    seg = highdicom.seg.segread(write(tmp_path, labels_of(volume), volume))
    assert [item.ReferencedSOPInstanceUID for item in seg.SourceImageSequence] == [one.SOPInstanceUID]
    assert len(seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence) == 1
    for item in seg.PerFrameFunctionalGroupsSequence:
        (source,) = item.DerivationImageSequence[0].SourceImageSequence
        frame = one.PerFrameFunctionalGroupsSequence[source.ReferencedFrameNumber - 1]
        assert frame.MREchoSequence[0].EffectiveEchoTime == 8
        assert frame.PlanePositionSequence[0].ImagePositionPatient == item.PlanePositionSequence[0].ImagePositionPatient


def test_an_empty_map_has_blank_frames_and_an_empty_structure_none(tmp_path: Path) -> None:
    volume = read_dicom(series(tmp_path / "scan"))
    labels = np.zeros(volume.grid.shape, np.uint8)
    seg = highdicom.seg.segread(write(tmp_path, labels, volume))
    assert seg.NumberOfFrames == 3 * 5 and not seg.pixel_array.any()
    labels[2, 3, 4] = 7
    seg = highdicom.seg.segread(write(tmp_path, labels, volume))
    assert seg.NumberOfFrames == 1 and seg.pixel_array.sum() == 1 and seg.number_of_segments == 3


def test_a_single_structure(tmp_path: Path) -> None:
    volume = read_dicom(series(tmp_path / "scan", pixels(4, 5, 7)))  # 35 pixels a frame: not whole bytes
    labels = np.random.default_rng(0).integers(0, 2, volume.grid.shape).astype(np.uint8)
    found = frames_by_place(write(tmp_path, labels, volume, (Structure(value=1, name="spleen"),)))
    assert sorted(place[2] for _, place in found) == [5, 7.5, 10, 12.5]
    for (_, place), plane in found.items():
        np.testing.assert_array_equal(plane, labels[..., int((place[2] - 5) / 2.5)].T)


def test_tags_that_de_identification_took_are_added_empty_and_sources_stay(tmp_path: Path) -> None:
    lost = ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "Manufacturer", "ReferringPhysicianName", "StudyTime")

    def stripped(k: int, one: Dataset) -> None:
        for keyword in lost:
            delattr(one, keyword)
        del one.SliceThickness
        one.StudyDate = "2020-odd"

    folder = series(tmp_path / "scan", change=stripped)
    before = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    volume = read_dicom(folder)
    seg = pydicom.dcmread(write(tmp_path, labels_of(volume), volume))
    for keyword in ("PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber", "StudyTime", "StudyDate"):
        assert keyword in seg and not seg.get(keyword)
    assert "PatientSex" not in volume.origin.frames[0].header and volume.origin.frames[0].header.StudyDate == "2020-odd"
    assert before == {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def test_names_in_other_scripts_survive(tmp_path: Path) -> None:
    def renamed(k: int, one: Dataset) -> None:
        one.SpecificCharacterSet, one.PatientName = "ISO_IR 100", "Müller^Jörg"

    volume = read_dicom(series(tmp_path / "scan", change=renamed))
    seg = pydicom.dcmread(write(tmp_path, labels_of(volume), volume))
    assert seg.PatientName == "Müller^Jörg" and seg.SegmentSequence[1].SegmentLabel == "Ösophagus"


def test_a_series_without_identity_is_refused_by_the_tags_it_lacks(tmp_path: Path) -> None:
    def stripped(k: int, one: Dataset) -> None:
        one.SOPInstanceUID, one.StudyInstanceUID = "", ""

    volume = read_dicom(series(tmp_path / "scan", change=stripped))
    assert "badly de-identified" in volume.warnings[0] and "SOPInstanceUID" in str(obstacle(volume))
    assert obstacle(read_dicom(series(tmp_path / "sound"))) is None
    with pytest.raises(OutputError, match="StudyInstanceUID, SOPInstanceUID are absent or empty") as caught:
        write(tmp_path, labels_of(volume), volume)
    assert "--format nifti" in str(caught.value.hint)

    def alike(k: int, one: Dataset) -> None:
        one.SOPInstanceUID = "1.2.3.4"

    volume = read_dicom(series(tmp_path / "alike", change=alike))
    with pytest.raises(OutputError, match="share one SOPInstanceUID"):
        write(tmp_path, labels_of(volume), volume)
    assert not list(tmp_path.glob("*.dcm")) and not list(tmp_path.glob(".*"))


def test_scans_that_are_no_dicom_and_labels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    volume = read_dicom(series(tmp_path / "scan"))
    origin = NiftiOrigin(tmp_path / "a.nii", 1, None, 0, None, 0, "mm")
    with pytest.raises(RequestError, match="is no DICOM series"):
        write(tmp_path, labels_of(volume), Volume(volume.values, volume.grid, "a", origin))
    with pytest.raises(RequestError, match="not on the grid"):
        write(tmp_path, labels_of(volume)[1:], volume)
    for unknown in (5, 900):
        labels = labels_of(volume)
        labels[0, 0, 0] = unknown
        with pytest.raises(OutputError, match=rf"no structure: \[{unknown}\]"):
            write(tmp_path, labels, volume)
    assert not list(tmp_path.glob("*.dcm")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("fault", ["pixels", "position", "source", "label", "missing", "truncated"])
def test_the_check_finds_every_fault(tmp_path: Path, fault: str) -> None:
    volume = read_dicom(series(tmp_path / "scan"))
    labels = labels_of(volume)
    path = write(tmp_path, labels, volume)
    check_seg(path, labels, volume, STRUCTURES)
    one = pydicom.dcmread(path)
    frames = one.PerFrameFunctionalGroupsSequence
    if fault == "pixels":
        one.PixelData = bytes([one.PixelData[0] ^ 1]) + one.PixelData[1:]
    elif fault == "position":
        frames[0].PlanePositionSequence[0].ImagePositionPatient[1] += 0.01
    elif fault == "source":
        source = frames[0].DerivationImageSequence[0].SourceImageSequence[0]
        source.ReferencedSOPInstanceUID = frames[-1].DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
    elif fault == "label":
        one.SegmentSequence[0].SegmentLabel = "spleen"
    elif fault == "missing":
        labels[..., 1] = 2  # the map has a slice that the file lacks
    if fault != "truncated":
        one.save_as(path)
    else:
        path.write_bytes(path.read_bytes()[:-80])
    with pytest.raises(OutputError, match="is not the label map"):
        check_seg(path, labels, volume, STRUCTURES)


def test_nothing_stays_behind_where_the_check_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    volume = read_dicom(series(tmp_path / "scan"))
    kept = write(tmp_path, labels_of(volume), volume).read_bytes()
    encode = highdicom.seg.Segmentation._encode_pixels_native
    monkeypatch.setattr(
        highdicom.seg.Segmentation, "_encode_pixels_native", lambda self, planes: encode(self, np.roll(planes, 1))
    )
    with pytest.raises(OutputError, match="holds other pixels"):
        write(tmp_path, labels_of(volume), volume)
    assert (tmp_path / "seg.dcm").read_bytes() == kept and not list(tmp_path.glob(".*"))


def test_no_error_or_log_names_the_patient(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Names that are not as the standard has them are what highdicom would quote."""

    def careless(k: int, one: Dataset) -> None:
        one.PatientName, one.PatientSex, one.PatientBirthDate = "Quixote Alonso", "Alonso", "Alonso"

    files = slices_of(pixels(), change=careless)
    with caplog.at_level(logging.DEBUG), warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        volume = read_dicom(save(tmp_path / "scan", files))
        caplog.clear()
        raised.clear()
        write(tmp_path, labels_of(volume), volume)
    assert not private(caplog.text + " ".join(str(one.message) for one in raised))


@pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="dciodvfy of dicom3tools is not installed")
@pytest.mark.parametrize("kind", ["slices", "frames", "empty"])
def test_dciodvfy_finds_no_error(tmp_path: Path, kind: str) -> None:
    files = slices_of(pixels())
    save(tmp_path / "scan", [enhanced(files, order=range(5))] if kind == "frames" else files)
    volume = read_dicom(tmp_path / "scan")
    path = write(tmp_path, labels_of(volume) * (kind != "empty"), volume)
    said = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False).stderr
    assert "Segmentation" in said and "Error" not in said, said


@pytest.mark.parametrize("study", ["study1", "study2", "study3"])
def test_hippocampus_studies(shared: Path, tmp_path: Path, study: str) -> None:
    volume = read_dicom(shared / "data" / "medical_samples" / "hippocampus_dicom" / study)
    labels = np.zeros(volume.grid.shape, np.uint8)
    labels[5:20, 7:22, 3:9], labels[15:25, 20:30, 8:20] = 2, 7
    whole = highdicom.seg.segread(write(tmp_path, labels, volume)).get_volume(combine_segments=True)
    for segment, value in ((1, 2), (2, 7)):
        indices = np.argwhere(whole.array == segment)
        lps = indices @ whole.affine[:3, :3].T + whole.affine[:3, 3]
        wanted = volume.grid.to_world(np.argwhere(labels == value)) * (-1, -1, 1)
        assert {tuple(point) for point in lps.round(3)} == {tuple(point) for point in wanted.round(3)}
