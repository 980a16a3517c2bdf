"""What a segmentation may write and what it never touches: scans, other runs' files, and what was there when it fails."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
from pydicom import Dataset

from hybrid.errors import InputError, OutputError, RequestError
from medical.files.inputs import Job, plan_jobs, read_scan
from medical.files.outputs import FileSettings, check_jobs
from medical.files.segment import is_done, segment_file
from medical.segmentation.run import SegmentSettings
from medical.volumes.label_maps import read_labels
from medical.volumes.staging import staged
from tests.command import files
from tests.medical.dicom_stubs import enhanced, pixels, series, slices_of
from tests.medical.stubs import Stub, convolution, protocol, smooth

ASKED = protocol()
QUICK = FileSettings(report=False, protocol=ASKED)


class Stopped(BaseException):
    """A signal."""


def scan(path: Path, seed: int = 0, shape: tuple[int, int, int] = (9, 10, 11)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image((smooth(*shape, seed=seed) * 50 + 200).astype(np.int16), np.eye(4)), path)
    return path


def test_a_seg_never_takes_the_place_of_its_own_scan(tmp_path: Path) -> None:
    """The label map has a name of its own, and the DICOM SEG beside it would have the scan's."""
    study = tmp_path / "study.dcm"
    enhanced(slices_of(pixels(10, 12, 9)), order=range(10)).save_as(study, enforce_file_format=True)
    before = files(tmp_path)
    for target in (tmp_path / "study.nii.gz", tmp_path / "study.dcm"):
        with pytest.raises(RequestError, match="Inputs are never changed"):
            segment_file(convolution(), Job((study,), target), FileSettings(overwrite=True, protocol=ASKED))
    folder = series(tmp_path / "slices", pixels(10, 12, 9))
    slice_ = sorted(folder.iterdir())[3]
    slice_.rename(folder / "3.dcm")
    before = files(tmp_path)
    for name in ("3.dcm", "new.dcm", "deep/new.nii.gz"):
        with pytest.raises(RequestError, match="the folder of the scan"):
            segment_file(convolution(), Job((folder,), folder / name), FileSettings(overwrite=True, protocol=ASKED))
    assert files(tmp_path) == before


def test_scans_of_a_batch_never_write_over_one_another(tmp_path: Path) -> None:
    one, other = scan(tmp_path / "in" / "a.nii.gz"), scan(tmp_path / "in" / "a_probabilities.nii.gz", 1)
    jobs = plan_jobs([str(one), str(other)], tmp_path / "out")
    check_jobs(jobs, QUICK)
    with pytest.raises(RequestError, match="would both be written to"):
        check_jobs(jobs, FileSettings(run=SegmentSettings(probabilities=True)))
    with pytest.raises(RequestError, match="Inputs are never changed"):
        check_jobs(jobs, QUICK, inputs=[tmp_path / "out" / "a.labels.json"])
    os.symlink(one, tmp_path / "link.nii.gz")
    with pytest.raises(RequestError, match="Inputs are never changed"):
        check_jobs([Job((one,), tmp_path / "link.nii.gz")], QUICK)


def test_nothing_of_an_earlier_run_is_left_to_pass_for_a_new_one(tmp_path: Path) -> None:
    job = Job((scan(tmp_path / "a.nii.gz"),), tmp_path / "out" / "a.nii.gz")
    job.target.parent.mkdir()
    (job.target.parent / "a_notes.txt").write_text("mine")
    full = FileSettings(run=SegmentSettings(probabilities=True), protocol=ASKED)
    segment_file(convolution(), job, full)
    assert {"a_report.html", "a_probabilities.nii.gz"} <= set(files(job.target.parent))
    segment_file(convolution(seed=1), job, FileSettings(report=False, overwrite=True, protocol=ASKED))
    assert set(files(job.target.parent)) == {"a.nii.gz", "a.labels.json", "a.nii.gz.json", "a_notes.txt"}


def test_a_record_cannot_make_the_scan_go(tmp_path: Path) -> None:
    """Whoever writes a record that lists the scan as an output of its own."""
    study = tmp_path / "study.dcm"
    enhanced(slices_of(pixels(10, 12, 9)), order=range(10)).save_as(study, enforce_file_format=True)
    listed = ["study.dcm", "../study.dcm", "keep.txt", 7]
    (tmp_path / "study.nii.gz.json").write_text(json.dumps({"outputs": listed}), encoding="utf-8")
    (tmp_path / "keep.txt").write_text("mine")
    settings = FileSettings(format="nifti", report=False, overwrite=True, protocol=ASKED)
    segment_file(convolution(), Job((study,), tmp_path / "study.nii.gz"), settings)
    assert study.is_file() and (tmp_path / "keep.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_stop_at_any_moment_leaves_what_was_there(tmp_path: Path, overwrite: bool) -> None:
    job = Job((scan(tmp_path / "a.nii.gz"),), tmp_path / "a_seg.nii.gz")
    if overwrite:
        segment_file(convolution(seed=1), job, FileSettings(protocol=ASKED))
    before, true_replace = files(tmp_path), os.replace
    settings = FileSettings(report=False, overwrite=overwrite, protocol=ASKED)
    for at in range(1, 60):
        for after in (False, True):
            calls = 0

            def replace(*places: Path, at: int = at, after: bool = after) -> None:
                nonlocal calls
                calls += 1
                if calls == at and not after:
                    raise Stopped
                true_replace(*places)
                if calls == at:
                    raise Stopped

            try:
                with patch("os.replace", replace):
                    segment_file(convolution(), job, settings)
            except Stopped:
                assert files(tmp_path) == before, (at, after)
            else:
                assert at > (10 if overwrite else 5) and files(tmp_path) != before
                return
    pytest.fail("it never came to an end")


def test_of_two_runs_at_once_one_is_refused(tmp_path: Path) -> None:
    job = Job((scan(tmp_path / "a.nii.gz"),), tmp_path / "a_seg.nii.gz")
    first = convolution()

    def slow(x: object) -> object:
        if not job.target.exists():
            segment_file(convolution(seed=1), job, QUICK)
        return first(x)

    with pytest.raises(OutputError, match="is there already"):
        segment_file(Stub(slow), job, QUICK)  # type: ignore[arg-type]
    assert set(files(tmp_path)) == {"a.nii.gz", "a_seg.nii.gz", "a_seg.labels.json", "a_seg.nii.gz.json"}
    expected = tmp_path / "b_seg.nii.gz"
    segment_file(convolution(seed=1), Job(job.sources, expected), QUICK)
    np.testing.assert_array_equal(read_labels(job.target)[0], read_labels(expected)[0])


def test_links_and_folders_in_the_way(tmp_path: Path) -> None:
    path, target = scan(tmp_path / "a.nii.gz"), tmp_path / "out.nii.gz"
    os.symlink("nowhere", target)
    with pytest.raises(OutputError, match="is there already"):
        segment_file(convolution(), Job((path,), target), QUICK)
    (tmp_path / "dir.nii.gz" / "inside").mkdir(parents=True)
    with pytest.raises(OutputError, match="is a folder"):
        segment_file(
            convolution(), Job((path,), tmp_path / "dir.nii.gz"), FileSettings(report=False, overwrite=True, protocol=ASKED)
        )
    assert os.readlink(target) == "nowhere" and (tmp_path / "dir.nii.gz" / "inside").is_dir()


def test_a_run_with_other_options_is_not_taken_for_done(tmp_path: Path) -> None:
    class Told(Stub):
        told = "legacy"

        def options(self) -> dict[str, str]:
            return {"merging": self.told}

    job = Job((scan(tmp_path / "a.nii.gz"),), tmp_path / "out.nii.gz")
    network = Told(convolution().function)
    assert not is_done(job, network, QUICK)
    segment_file(network, job, QUICK)
    assert is_done(job, network, QUICK)
    network.told = "v2"
    with pytest.raises(OutputError, match="not of this scan, network and settings"):
        is_done(job, network, QUICK)


def test_a_seg_that_cannot_be_is_refused_before_the_network_runs(tmp_path: Path) -> None:
    def without(k: int, one: Dataset) -> None:
        del one.FrameOfReferenceUID

    study = series(tmp_path / "study", pixels(10, 12, 9), change=without)
    network = Stub(convolution().function)
    for settings, target in ((FileSettings(format="both", protocol=ASKED), "a.nii.gz"), (QUICK, "a.dcm")):
        with pytest.raises(OutputError, match="FrameOfReferenceUID is absent or empty"):
            segment_file(network, Job((study,), tmp_path / target), settings)
    assert network.calls == 0
    outcome = segment_file(network, Job((study,), tmp_path / "a.nii.gz"), QUICK)
    assert not (tmp_path / "a.dcm").exists() and any("FrameOfReferenceUID" in note for note in outcome.notes)


def test_results_are_no_scans_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    segment_file(
        convolution(), Job((scan(tmp_path / "a.nii.gz"),), tmp_path / "a_seg.nii.gz"),
        FileSettings(run=SegmentSettings(probabilities=True), report=False, protocol=ASKED),
    )  # fmt: skip
    assert [job.source.name for job in plan_jobs([str(tmp_path)], tmp_path / "out")] == ["a.nii.gz"]
    study = series(tmp_path / "study", pixels(10, 12, 9))
    scan(study / "extra.nii.gz")
    assert "holds NIfTI files too, which were left out: 1" in " ".join(read_scan([study]).warnings)
    (tmp_path / "cut.zip").write_bytes(b"PK\x03\x04 cut short")
    assert "cut.zip" in [job.source.name for job in plan_jobs([str(tmp_path)], tmp_path / "out")]
    with pytest.raises(InputError, match="cut.zip is a damaged zip"):
        read_scan([tmp_path / "cut.zip"])


@pytest.mark.parametrize("name", ["labels.txt", "labels.gz", "labels.nrrd", "labels.nii.gz.zip"])
def test_an_output_that_is_no_label_map_is_no_folder_either(tmp_path: Path, name: str) -> None:
    with pytest.raises(RequestError, match="no name for a label map"):
        plan_jobs([str(scan(tmp_path / "a.nii.gz"))], tmp_path / name)
    assert plan_jobs([str(tmp_path / "a.nii.gz")], tmp_path / "run.v2")[0].target == tmp_path / "run.v2" / "a.nii.gz"


def test_staged_files_come_together_or_not_at_all(tmp_path: Path) -> None:
    outputs = [tmp_path / "a", tmp_path / "b"]
    with staged(outputs, overwrite=False) as folder:
        for path in outputs:
            (folder / path.name).write_text("new")
    assert files(tmp_path) == {"a": b"new", "b": b"new"}
    with pytest.raises(OutputError, match="could not be written"), staged(outputs, overwrite=True) as folder:
        (folder / "a").write_text("newer")  # and no b
    assert files(tmp_path) == {"a": b"new", "b": b"new"}
