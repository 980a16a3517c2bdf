"""Who a scan is of is told nowhere: every command that reads one, with every tag unmistakable; pydicom and nibabel judge."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
from pydicom.dataset import Dataset
from pydicom.uid import UID

from hybrid.batch.journal import JOURNAL
from hybrid.errors import RequestError
from medical.dicom.deidentification import METHOD, Pseudonyms, deidentified
from medical.dicom.volume import read_dicom
from medical.structures import Structure
from medical.volumes.label_maps import write_labels
from medical.volumes.volume import read_volume
from tests.command import Said, medical
from tests.medical.dicom_stubs import pixels, save, slices_of
from tests.medical.restoration_stubs import save_nafnet
from tests.medical.stubs import save_untrained
from tests.medical.training_stubs import egg, written

NAMES = {
    "PatientName": "Zyxqvu^Wolfram", "PatientID": "PIDZYX7781", "PatientBirthDate": "18470211", "PatientBirthTime": "031415.926",
    "OtherPatientNames": "Zyxqold^Other", "PatientMotherBirthName": "Zyxqmum^Maiden", "PatientAddress": "Zyxqstreet 77",
    "PatientTelephoneNumbers": "099-77-8812", "PatientComments": "zyxqcomment", "MilitaryRank": "Zyxqmajor",
    "EthnicGroup": "zyxqfolk", "Occupation": "zyxqbaker", "AdditionalPatientHistory": "zyxqhistory", "PatientAge": "077Y",
    "AccessionNumber": "ACCZYX42", "StudyID": "STDZYX9", "StudyDate": "18991231", "StudyTime": "235959.123456",
    "SeriesDate": "18991230", "AcquisitionDate": "18991229", "ContentDate": "18991228",
    "StudyDescription": "zyxqstudy of Wolfram", "SeriesDescription": "T1 of Zyxqvu", "ProtocolName": "zyxqprotocol",
    "InstitutionName": "Zyxqklinik", "StationName": "ZYXQSTN",
    "InstitutionAddress": "Zyxqplatz 1", "InstitutionalDepartmentName": "zyxqward", "DeviceSerialNumber": "ZYXQDEV001",
    "ReferringPhysicianName": "Zyxqref^Doctor", "PerformingPhysicianName": "Zyxqper^Doctor", "OperatorsName": "Zyxqop^Nurse",
    "NameOfPhysiciansReadingStudy": "Zyxqread^Doctor", "PhysiciansOfRecord": "Zyxqrec^Doctor", "RequestingPhysician": "Zyxqreq^D",
    "ImageComments": "zyxqimagecomment", "ClinicalTrialSubjectID": "ZYXQSUBJECT", "IssuerOfPatientID": "ZYXQISSUER",
}  # fmt: skip
STUDY, SERIES, FRAME, INSTANCE = (f"1.3.99.7788990011.{at}" for at in range(1, 5))
_TITLES = ("Doctor", "Nurse", "Other", "D")
SECRETS = (*(part.casefold() for value in NAMES.values() for part in value.split("^") if part not in _TITLES), "zyxqsecret")
UIDS = (STUDY, SERIES, FRAME, INSTANCE, "1.3.99.7788990011")
KEY = b"the key of these tests"


def named(k: int, one: Dataset) -> None:
    """Give a slice an identity."""
    for keyword, value in NAMES.items():
        setattr(one, keyword, value)
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = STUDY, SERIES, FRAME
    one.SOPInstanceUID = f"{INSTANCE}.{k + 1}"
    block = one.private_block(0x0019, "ZYXQ PRIVATE", create=True)
    block.add_new(0x01, "LO", "zyxqsecret")


def told_of(text: str, secrets: tuple[str, ...] = SECRETS + UIDS) -> list[str]:
    return [secret for secret in secrets if secret in text.casefold()]


def leaks(folder: Path, secrets: tuple[str, ...] = SECRETS + UIDS) -> list[str]:
    """What files below a folder tell: by their names, their bytes, and their bytes unpacked."""
    found = []
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if path.name.endswith(".gz"):
            data = nib.Nifti1Image.from_filename(path).to_bytes()
        found += [f"{path.name}: {secret}" for secret in told_of(f"{path.name}\n{data.decode('latin-1')}", secrets)]
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_untrained(tmp_path_factory.mktemp("weights") / "tiny.safetensors", mirror=(0,))


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return save(tmp_path / "in" / "case", slices_of(pixels(12, 18, 16), change=named))


@pytest.fixture
def studies(study: Path) -> Path:
    """A folder of two."""
    save(study.parent / "other", slices_of(pixels(12, 18, 16, seed=1), change=named))
    return study.parent


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def segment(study: Path, weights: Path, *more: str | Path) -> Said:
    return medical("segment", study, "--weights", weights, "--precision", "float32", "--threads", 1, *more)


def test_the_scan_itself_would_tell(study: Path) -> None:
    assert len({leak.split(": ")[1] for leak in leaks(study)}) == len(set(SECRETS + UIDS))


def test_commands_tell_nothing(
    study: Path, studies: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, said = tmp_path / "out", []
    with caplog.at_level(logging.DEBUG):
        said.append(
            segment(study, weights, "-o", out / "a", "--format", "nifti", "--json", "--save-probabilities", "--uncertainty")
        )
        said.append(segment(study, weights, "--plan"))
        said.append(segment(studies, weights, "-o", out / "b", "--format", "nifti", "--no-report"))
        restorer = save_nafnet(tmp_path / "same.safetensors")
        said.append(medical("restore", study, "--weights", restorer, "-o", out / "c", "--threads", 1, "--precision", "float32"))
        said.append(medical("stats", out / "b" / "case.nii.gz", study, "-o", out / "d"))
        said.append(medical("evaluate", out / "b", out / "b", "-o", out / "e", "-q"))
    assert [each.code for each in said] == [0] * len(said), [each.err for each in said]
    assert len([*out.rglob("*")]) > 25 and (out / "b" / "run.jsonl").is_file()
    assert not leaks(out)
    assert not told_of(caplog.text + "".join(each.out + each.err for each in said))


def test_failures_tell_nothing(tmp_path: Path, weights: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A gap, pixels that are cut short, values that are none, two series in a folder, and SEGs that cannot be."""
    inputs, out = tmp_path / "in", tmp_path / "out"
    whole = slices_of(pixels(12, 18, 16), change=named)
    save(inputs / "gap", [*whole[:5], *whole[6:]])

    def broken(k: int, one: Dataset) -> None:
        named(k, one)
        one.Rows, one.PatientBirthDate, one.StudyDate = 19, "zyxqborn", "zyxqday"
        one.PatientName = "Zyxqvu^" + "x" * 100

    def nameless(k: int, one: Dataset) -> None:
        named(k, one)
        one.SOPInstanceUID = f"{INSTANCE}.1"

    with pytest.warns(UserWarning):
        save(inputs / "cut", slices_of(pixels(12, 18, 16), change=broken))
    save(inputs / "alike", slices_of(pixels(12, 18, 16), change=nameless))
    for part in ("one", "two"):
        each = slices_of(pixels(4, 18, 16), change=named)
        for slice_ in each:
            slice_.SeriesInstanceUID = f"{SERIES}.{1 + (part == 'two')}"
        save(inputs / "mixed", each, ending=f".{part}")
    with caplog.at_level(logging.DEBUG):
        said = [segment(inputs, weights, "-o", out / "all", "--format", "seg")]
        said += [
            segment(inputs / name, weights, "-o", out / name, "--format", "seg") for name in ("gap", "cut", "alike", "mixed")
        ]
        said += [segment(inputs / "mixed", weights, "--series", "99"), medical("restore", inputs / "gap", "-o", out / "r")]
    assert all(each.code for each in said), [each.code for each in said]
    assert "failed" in (out / "all" / "run.jsonl").read_text()
    assert not leaks(out)
    assert not told_of(caplog.text + "".join(each.out + each.err for each in said))


def test_a_crash_tells_nothing(
    study: Path, studies: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nobody has foreseen, and that quotes the header as pydicom's do; it is told where it was all the same."""
    from medical.files import segment as segment_files

    def fall(volume: object, *arguments: object, **options: object) -> None:
        header = volume.origin.frames[0].header  # type: ignore[attr-defined]
        try:
            raise KeyError(str(header.PatientID))
        except KeyError as error:
            raise RuntimeError(f"no such value: {header.PatientName} {header}") from error

    monkeypatch.setattr(segment_files, "segment", fall)
    said = segment(study, weights, "-o", tmp_path / "one")
    assert said.code == 1 and "fall" in said.err and "KeyError" in said.err and "HYBRID_SHOW_ERRORS" in said.err
    batch = segment(studies, weights, "-o", tmp_path / "many")
    assert batch.code == 1 and "RuntimeError in test_privacy.py" in batch.err + (tmp_path / "many" / "run.jsonl").read_text()
    assert not told_of(said.out + said.err + batch.out + batch.err)
    assert not leaks(tmp_path / "one") and not leaks(tmp_path / "many")
    with patch.dict("os.environ", {"HYBRID_SHOW_ERRORS": "1"}), pytest.raises(RuntimeError, match="Wolfram"):
        segment(study, weights, "-o", tmp_path / "again")


def telling(path: Path, values: np.ndarray) -> Path:
    """A NIfTI file with names in every free field and in extensions of each kind, among them a whole DICOM header."""
    image = nib.Nifti1Image(values, np.diag([1, 1, 1.5, 1]))
    for name, text in (("descrip", "Zyxqvu"), ("aux_file", "PIDZYX7781"), ("intent_name", "Zyxqref"), ("db_name", "ACCZYX42")):
        image.header[name] = text.encode()
    header = Dataset()
    header.PatientName = "Zyxqvu^Wolfram"
    image.header.extensions.append(nib.nifti1.Nifti1DicomExtension(2, header))
    for code in ("comment", "afni"):
        image.header.extensions.append(nib.nifti1.Nifti1Extension(code, b"Zyxqklinik 18470211"))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def test_texts_of_nifti_headers_go_nowhere(tmp_path: Path, weights: Path) -> None:
    values = np.random.default_rng(0).integers(0, 500, (17, 19, 15)).astype(np.int16)
    path = telling(tmp_path / "in" / "case.nii.gz", values)
    assert len(leaks(path.parent)) > 5
    restorer = save_nafnet(tmp_path / "same.safetensors")
    said = [segment(path, weights, "-o", tmp_path / "out" / "a", "--save-probabilities")]
    said += [medical("restore", path, "--weights", restorer, "-o", tmp_path / "out" / "b", "--threads", 1)]
    write_labels(tmp_path / "mask.nii.gz", values > 250, read_volume(path), [Structure(value=1, name="part")])
    said += [medical("stats", tmp_path / "mask.nii.gz", path, "-o", tmp_path / "out" / "c")]
    assert [each.code for each in said] == [0, 0, 0], [each.err for each in said]
    assert not leaks(tmp_path / "out") and not told_of("".join(each.out + each.err for each in said))


def test_a_training_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Of scans that would: the run, one that fails over a damaged case, and a crash that quotes a header."""
    data, out, names = tmp_path / "data", tmp_path / "out", ("one", "two", "three")
    for seed, name in enumerate(names):
        values, labels = egg(seed)
        telling(data / "imagesTr" / f"{name}.nii.gz", values)
        telling(data / "labelsTr" / f"{name}.nii.gz", labels)
    described = {"name": "Eggs", "licence": "CC0-1.0", "splits": {"train": names[:2], "val": names[2:]}}
    (data / "dataset.json").write_text(json.dumps(described))
    assert len(leaks(data)) > 20
    recipe = written(tmp_path, {"training.steps": 2, "training.log_every": 1, "training.validate_every": 1})
    command = ("train", recipe, "--data", data, "--accelerator", "cpu", "-o")
    with caplog.at_level(logging.DEBUG):
        said = [medical(*command, out / "run"), medical(*command, out / "run", "--steps", "4")]
        monkeypatch.setattr(
            "medical.training.run.train", lambda *_, **__: int(f"{nib.load(data / 'imagesTr' / 'one.nii.gz').header}")
        )
        said.append(medical(*command, out / "crash"))
        path = data / "imagesTr" / "two.nii.gz"
        path.write_bytes(path.read_bytes()[:-900])
        said.append(medical(*command, out / "damaged"))
    assert [each.code for each in said] == [0, 0, 1, 3], [each.err for each in said]
    assert (out / "run" / "egg.safetensors").is_file() and "ValueError" in said[2].err and "two.nii.gz" in said[3].err
    assert not leaks(out) and not told_of(caplog.text + "".join(each.out + each.err for each in said))


def test_workers_of_ray_tell_nothing(studies: Path, weights: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Not in what the command says and writes, and not in the logs that Ray keeps of its workers; one study is damaged."""
    ray = pytest.importorskip("ray", reason="needs ray: pip install 'hybrid-imaging[cluster]'")

    def broken(k: int, one: Dataset) -> None:
        named(k, one)
        one.Rows, one.PatientBirthDate = 19, "zyxqborn"

    with pytest.warns(UserWarning):
        save(studies / "cut", slices_of(pixels(12, 18, 16), change=broken))
    out = tmp_path / "out"
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False)
    try:
        logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs"
        with caplog.at_level(logging.DEBUG):
            said = segment(studies, weights, "-o", out, "--format", "nifti", "--engine", "ray", "--workers", "1")
        assert said.code == 1 and len([*out.glob("*.nii.gz")]) == 2 and "failed" in (out / JOURNAL).read_text(), said.err
        assert any("worker" in path.name for path in logs.iterdir())
        assert not leaks(logs) and not leaks(out) and not told_of(caplog.text + said.out + said.err)
    finally:
        ray.shutdown()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    (tmp_path / "key").write_bytes(KEY + b"\n")
    return tmp_path / "key"


def test_a_deidentified_seg(study: Path, weights: Path, tmp_path: Path, key: Path) -> None:
    """By the Basic Profile: nothing of the identity, UIDs under other numbers, and what was done is said."""
    said = segment(study, weights, "-o", tmp_path / "out", "--deidentify-key", key, "--no-report")
    assert said.code == 0 and "de-identified" in said.err, said.err
    assert not leaks(tmp_path / "out")
    (path,) = (tmp_path / "out").glob("*.dcm")
    found, pseudonyms = highdicom.seg.segread(path), Pseudonyms(KEY)
    assert (found.PatientIdentityRemoved, found.DeidentificationMethod) == ("YES", METHOD)
    assert found.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert found.LongitudinalTemporalInformationModified == "REMOVED"
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyID", "AccessionNumber"):
        assert not found[keyword].value and keyword in found
    assert found.PatientID == pseudonyms.patient("PIDZYX7781") != ""
    assert (found.StudyInstanceUID, found.FrameOfReferenceUID) == (pseudonyms.uid(STUDY), pseudonyms.uid(FRAME))
    referred = {item.ReferencedSOPInstanceUID for item in found.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred and referred <= {pseudonyms.uid(f"{INSTANCE}.{k + 1}") for k in range(12)}
    dates = [element.value for element in found.iterall() if element.VR in ("DA", "DT")]
    assert set(dates) <= {"", "19000101"} and not any(element.tag.is_private for element in found.iterall())
    facts = json.loads(next((tmp_path / "out").glob("*.nii.gz.json")).read_text())
    assert facts["settings"]["deidentified"] is True and KEY.decode() not in json.dumps(facts)


def test_images_under_the_same_key_are_those_that_it_refers_to(study: Path, weights: Path, tmp_path: Path, key: Path) -> None:
    """A SEG of the scan, and one of a copy whose UIDs were replaced beforehand, are about the same images."""
    segment(study, weights, "-o", tmp_path / "a", "--deidentify-key", key, "--no-report")
    pseudonyms = Pseudonyms(KEY)
    files = [pydicom.dcmread(file) for file in study.iterdir()]
    for one in files:
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID"):
            setattr(one, keyword, pseudonyms.uid(one[keyword].value))
    segment(save(tmp_path / "copy" / "case", files), weights, "-o", tmp_path / "b", "--no-report")
    found = [highdicom.seg.segread(next((tmp_path / name).glob("*.dcm"))) for name in "ab"]
    first, second = (
        [
            (item.ReferencedSOPInstanceUID, one.StudyInstanceUID)
            for item in one.ReferencedSeriesSequence[0].ReferencedInstanceSequence
        ]
        for one in found
    )
    assert sorted(first) == sorted(second)
    np.testing.assert_array_equal(found[0].pixel_array, found[1].pixel_array)


def test_without_a_key_each_run_has_its_own(study: Path, weights: Path, tmp_path: Path) -> None:
    uids = []
    for name in "ab":
        assert segment(study, weights, "-o", tmp_path / name, "--deidentify", "--format", "seg", "--no-report").code == 0
        uids.append(pydicom.dcmread(next((tmp_path / name).glob("*.dcm"))).StudyInstanceUID)
        assert not leaks(tmp_path / name)
    assert len({STUDY, *uids}) == 3 and all(UID(each).is_valid for each in uids)


def test_a_scan_is_not_changed_by_it(study: Path) -> None:
    before = {path: path.read_bytes() for path in study.iterdir()}
    volume = read_dicom(study)
    clean = deidentified(volume, Pseudonyms(KEY))
    assert clean.values is volume.values and volume.origin.frames[0].header.PatientID == "PIDZYX7781"
    assert not told_of(" ".join(str(frame.header) for frame in clean.origin.frames))
    assert {path: path.read_bytes() for path in study.iterdir()} == before


def test_keys_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"secret")
    for name, words in (("short", "6 bytes"), ("absent", "cannot be read")):
        with pytest.raises(RequestError, match=words):
            Pseudonyms.read(tmp_path / name)
    assert KEY.decode() not in repr(Pseudonyms(KEY))
