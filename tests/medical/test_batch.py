"""Folders of scans through the commands: resume, changes, privacy of the journal."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import medical as medical_package
from hybrid.batch.journal import JOURNAL
from hybrid.batch.work import Tell
from medical.files.inputs import Job
from medical.files.outputs import FileSettings
from medical.files.segment import segment_stages
from tests.command import Said, files, medical
from tests.medical.dicom_stubs import pixels, private, series
from tests.medical.stubs import save_untrained
from tests.medical.test_cli_segment import scan


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Swin UNETR that has learnt nothing."""
    return save_untrained(tmp_path_factory.mktemp("weights") / "tiny.safetensors", mirror=(0,))


FIXED = ("--precision", "float32", "--device", "cpu", "--threads", "1")


def segment(*arguments: str | Path) -> Said:
    return medical("segment", *arguments, "--no-report", *FIXED)


def entries(out: Path) -> dict[str, dict]:
    return {entry["input"]: entry for entry in map(json.loads, (out / JOURNAL).read_text().splitlines())}


def test_a_folder_goes_on_where_it_was(tmp_path: Path, weights: Path) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    second = scan(tmp_path / "in" / "sub" / "b.nii.gz", seed=1)
    whole = second.read_bytes()
    second.write_bytes(whole[:2000])
    out, command = tmp_path / "out", (tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
    said = segment(*command)
    assert said.code == 1 and entries(out)["sub/b.nii.gz"]["status"] == "failed"
    second.write_bytes(whole)
    again = segment(*command, "--retry-failed")
    assert again.code == 0 and "a.nii.gz" not in again.err
    assert {name: entry["status"] for name, entry in entries(out).items()} == {"a.nii.gz": "done", "sub/b.nii.gz": "done"}
    before = files(out)
    assert segment(*command).err.count("skipped") == 2 and files(out) == before


def test_other_options_make_all_anew_and_leave_nothing_of_the_old(tmp_path: Path, weights: Path) -> None:
    scan(tmp_path / "in" / "a.nii.gz")
    out, command = tmp_path / "out", (tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
    assert segment(*command, "--save-probabilities").code == 0 and (out / "a_probabilities.nii.gz").is_file()
    said = segment(*command)
    assert said.code == 0 and "skipped" not in said.err and not (out / "a_probabilities.nii.gz").exists()
    corrected = (out / "a.nii.gz").read_bytes() + b"corrected"
    (out / "a.nii.gz").write_bytes(corrected)
    refused = segment(*command)
    assert refused.code == 6 and "not as this batch wrote it" in refused.err and (out / "a.nii.gz").read_bytes() == corrected


def test_a_changed_mask_makes_all_anew(tmp_path: Path, weights: Path) -> None:
    import nibabel as nib

    path = scan(tmp_path / "in" / "a.nii.gz")
    image = nib.load(path)
    command = (tmp_path / "in", "-o", tmp_path / "out", "--weights", weights, "--roi", tmp_path / "mask.nii.gz")
    for edge, count in ((12, 0), (12, 1), (14, 0)):
        mask = np.zeros(image.shape, np.uint8)
        mask[2:edge, 2:12, 2:12] = 1
        nib.save(nib.Nifti1Image(mask, image.affine), tmp_path / "mask.nii.gz")
        said = segment(*command)
        assert said.code == 0 and said.err.count("skipped") == count, said.err


def test_the_journal_says_nothing_of_patients(tmp_path: Path, weights: Path) -> None:
    for name in ("one", "two"):
        series(tmp_path / "in" / name, pixels(12, 18, 16))
    broken = sorted((tmp_path / "in" / "two").iterdir())[3]
    broken.write_bytes(broken.read_bytes()[:-500])
    said = segment(tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
    found = entries(tmp_path / "out")
    assert said.code == 1 and (found["one"]["status"], found["two"]["status"]) == ("done", "failed")
    text = (tmp_path / "out" / JOURNAL).read_text()
    assert private(text) == [] and private(said.err + said.out) == [] and str(tmp_path) not in text
    assert found["two"]["error"] and "/" not in found["two"]["error"]


def test_remote_scans(tmp_path: Path, weights: Path) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec")
    scan(tmp_path / "in" / "sub" / "a.nii.gz")
    here = (tmp_path / "in", "-o", tmp_path / "here", "--weights", weights)
    there = ((tmp_path / "in").as_uri(), "-o", (tmp_path / "there").as_uri(), "--weights", weights)
    assert segment(*here).code == 0
    said = segment(*there)
    assert said.code == 0, said.err
    assert set(files(tmp_path / "there")) == set(files(tmp_path / "here"))
    assert (tmp_path / "there/sub/a.nii.gz").read_bytes() == (tmp_path / "here/sub/a.nii.gz").read_bytes()


def test_where_case_is_ignored_scans_that_become_one_are_refused(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("A.nii.gz", "a.nii.gz"):
        scan(tmp_path / "in" / name)
    monkeypatch.setattr("hybrid.batch.names._is_one_name", lambda folder, one, other: True)
    for command in ("segment", "restore"):
        said = medical(command, tmp_path / "in", "-o", tmp_path / "out", "--weights", weights)
        assert said.code == 2 and "A.nii.gz and " in said.err and "Rename one of them" in said.err
        assert not (tmp_path / "out").exists()


def test_reading_and_writing_beside_the_computing_of_others_changes_nothing(tmp_path: Path, weights: Path) -> None:
    """With a bound on memory each scan is read, computed and written before the next."""
    for seed, name in enumerate("abcd"):
        scan(tmp_path / "in" / f"{name}.nii.gz", seed=seed)
    bad = tmp_path / "in" / "b.nii.gz"
    bad.write_bytes(bad.read_bytes()[:2000])
    made = []
    for out, more in ((tmp_path / "beside", ()), (tmp_path / "alone", ("--memory", "16GB"))):
        said = medical("segment", tmp_path / "in", "-o", out, "--weights", weights, *FIXED, *more)
        assert said.code == 1 and "b.nii.gz" in said.err
        found = files(out)
        assert {Path(name).name.split(".")[0] for name in found if name.endswith("_preview.png")} == {
            "a_preview", "c_preview", "d_preview",
        }  # fmt: skip
        made.append({name: data for name, data in found.items() if name.endswith((".nii.gz", ".png", ".csv"))})
        assert not [name for name in found if Path(name).name.startswith(".")]
    assert made[0] == made[1] and len(made[0]) == 9


def test_a_scan_given_up_at_a_pause_leaves_nothing(tmp_path: Path, weights: Path) -> None:
    network, source = medical_package.load_model(weights), scan(tmp_path / "a.nii.gz")
    (tmp_path / "out").mkdir()
    for pauses in (1, 2):
        job = Job((source,), tmp_path / "out" / "a.nii.gz")
        stages = segment_stages(network, job, FileSettings(), on_start=lambda *told: None)
        next(stages)
        if pauses == 2:
            stages.send(Tell())
            assert any((tmp_path / "out").iterdir())
        stages.close()
        assert not any((tmp_path / "out").iterdir())
