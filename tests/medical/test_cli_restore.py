"""`medical restore` from the command line: one scan, many, DICOM, refusals, and what is left on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from hybrid.batch.work import Tell
from hybrid.errors import OutputError
from hybrid.records import sha256_file
from medical.files.inputs import Job
from medical.restoration.files import FileSettings, restore_file, restore_stages
from medical.restoration.loading import load_restorer
from medical.restoration.run import restore
from medical.volumes import nifti_writing
from medical.volumes.nifti_writing import Storage, write_scan
from medical.volumes.volume import read_volume
from tests.command import files, medical
from tests.medical.dicom_stubs import series
from tests.medical.restoration_stubs import save_nafnet, scan, values

KINDS = (".nii.gz", ".nii.gz.json", "_preview.png")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that changes nothing."""
    return save_nafnet(tmp_path_factory.mktemp("weights") / "same.safetensors")


@pytest.fixture(scope="module")
def brighter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network that adds a tenth of the range."""
    return save_nafnet(tmp_path_factory.mktemp("weights") / "brighter.safetensors", change=0.1)


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def restored(*arguments: str | Path, precision: str = "float32"):
    return medical("restore", *arguments, "--threads", "1", "--precision", precision)


def test_one_scan_gives_a_scan_on_its_grid_and_all_that_goes_with_it(tmp_path: Path, brighter: Path) -> None:
    path = scan(tmp_path / "in" / "case.01.nii.gz", values().astype(np.int16))
    before = path.read_bytes()
    said = restored(path, "--weights", brighter)
    assert said.code == 0, said.err
    assert said.out == "" and "case.01_restored.nii.gz" in said.err and "int16; taken away" in said.err
    assert "Research use, not a medical device. Small details may be invented or removed." in said.err
    assert path.read_bytes() == before
    assert set(files(path.parent)) == {"case.01.nii.gz", *(f"case.01_restored{kind}" for kind in KINDS)}
    found, original = nib.load(path.with_name("case.01_restored.nii.gz")), nib.load(path)
    np.testing.assert_array_equal(found.affine, original.affine)
    assert found.get_data_dtype() == np.int16 and found.header["descrip"].tobytes().startswith(b"Research use")
    expected = restore(read_volume(path), load_restorer(brighter, device="cpu")).values
    np.testing.assert_array_equal(np.asarray(found.dataobj), expected)
    assert (expected > np.asarray(original.dataobj)).mean() > 0.9
    record = json.loads(path.with_name("case.01_restored.nii.gz.json").read_text(encoding="utf-8"))
    assert record["input_sha256"] == sha256_file(path) and record["weights_sha256"] == sha256_file(brighter)
    assert (record["task"], record["family"], record["storage"]) == ("restore", "nafnet", "int16")
    assert record["options"] == {"tlc_train_size": [32, 32]} and record["protocol"]["neighbours"] == 1
    assert record["slices"]["slices"] == 15 and record["removed"] > 10 and str(tmp_path) not in json.dumps(record)
    assert Image.open(path.with_name("case.01_restored_preview.png")).size[0] == 1200


STORED = {
    "int16": (np.int16, None), "uint8": (np.uint8, None), "float32": (np.float32, None), "int32": (np.int32, None),
    "scaled": (np.int16, (0.25, -30.0)), "big-endian": (np.dtype(">i2"), None),
}  # fmt: skip


@pytest.mark.parametrize("kind", STORED)
def test_a_network_that_changes_nothing_gives_the_same_file_again(kind: str, tmp_path: Path, weights: Path) -> None:
    dtype, scaling = STORED[kind]
    array = values().clip(0, 255).astype(dtype) if kind == "uint8" else (values() + 200).astype(dtype)
    path = scan(tmp_path / "a.nii", array, scaling=scaling)
    assert restored(path, "--weights", weights, "-o", tmp_path / "b.nii", "-q").code == 0
    found, original = nib.load(tmp_path / "b.nii"), nib.load(path)
    assert found.get_data_dtype() == original.get_data_dtype().newbyteorder("=")
    assert (found.dataobj.slope, found.dataobj.inter) == (original.dataobj.slope, original.dataobj.inter)
    np.testing.assert_array_equal(found.dataobj.get_unscaled(), original.dataobj.get_unscaled())
    for name in ("pixdim", "quatern_b", "qoffset_x", "srow_x", "srow_y", "srow_z", "sform_code", "qform_code", "xyzt_units"):
        np.testing.assert_array_equal(found.header[name], original.header[name], name)


def test_wide_scaled_numbers_and_float32_on_request(tmp_path: Path, weights: Path) -> None:
    wide = scan(tmp_path / "wide.nii", (values() * 1000).astype(np.int32), scaling=(0.5, 0))
    assert restored(wide, "--weights", weights, "-o", tmp_path / "out", "-q").code == 0
    assert nib.load(tmp_path / "out" / "wide.nii.gz").get_data_dtype() == np.float32
    path = scan(tmp_path / "a.nii", values().astype(np.int16))
    assert restored(path, "--weights", weights, "-o", tmp_path / "out", "--dtype", "float32", "-q").code == 0
    found = nib.load(tmp_path / "out" / "a.nii.gz")
    assert found.get_data_dtype() == np.float32 and np.array_equal(found.get_fdata(), nib.load(path).get_fdata())


def test_one_volume_of_a_4d_file(tmp_path: Path, weights: Path) -> None:
    array = np.stack([values(seed=seed) for seed in range(3)], -1).astype(np.int16)
    path = scan(tmp_path / "four.nii.gz", array)
    asked = restored(path, "--weights", weights)
    assert asked.code == 2 and "--volume 0 to 2" in asked.err
    assert restored(path, "--weights", weights, "--volume", "1", "-q").code == 0
    np.testing.assert_array_equal(nib.load(path.with_name("four_restored.nii.gz")).dataobj, array[..., 1])


def test_dicom_is_read_and_nifti_written(tmp_path: Path, weights: Path) -> None:
    series(tmp_path / "study")
    said = restored(tmp_path / "study", "--weights", weights)
    assert said.code == 0, said.err
    found = read_volume(tmp_path / "study_restored.nii.gz")
    from medical.dicom.volume import read_dicom

    original = read_dicom(tmp_path / "study", series=None)
    assert found.grid.matches(original.grid)
    np.testing.assert_array_equal(found.values, original.values)
    refused = restored(tmp_path / "study", "--weights", weights, "-o", tmp_path / "a.dcm")
    assert refused.code == 2 and "DICOM is read, and not written" in refused.err


def test_a_dicom_series_of_another_modality_is_refused(tmp_path: Path, weights: Path) -> None:
    series(tmp_path / "study", modality="CT")
    said = restored(tmp_path / "study", "--weights", weights)
    assert said.code == 3 and "says that it is CT" in said.err and not (tmp_path / "study_restored.nii.gz").exists()
    said = restored(tmp_path / "study", "--weights", weights, "--any-modality")
    assert said.code == 0 and "says that it is CT" in said.err and (tmp_path / "study_restored.nii.gz").exists()


def test_a_bad_file_does_not_stop_a_batch_and_a_second_run_goes_on(tmp_path: Path, brighter: Path) -> None:
    folder = tmp_path / "scans"
    scan(folder / "a.nii.gz", values().astype(np.int16))
    scan(folder / "sub" / "b.nii.gz", values(seed=1).astype(np.float32))
    (folder / "bad.nii.gz").write_bytes(b"no scan")
    scan(folder / "nan.nii", np.full((5, 6, 7), np.nan, np.float32))
    said = restored(folder, "--weights", brighter, "-o", tmp_path / "out", "--no-preview", "--json")
    assert said.code == 1 and "2 of 4 scans failed" in said.err
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [("error" in line, Path(line["input"]).name) for line in lines] == [
        (False, "a.nii.gz"), (True, "bad.nii.gz"), (True, "nan.nii"), (False, "b.nii.gz"),
    ]  # fmt: skip
    assert lines[0]["removed_share"] > 0.05 and lines[0]["storage"] == "int16"
    made = {"a.nii.gz", "a.nii.gz.json", "sub", "sub/b.nii.gz", "sub/b.nii.gz.json", "run.jsonl"}
    assert set(files(tmp_path / "out")) == made
    times = (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns
    again = restored(folder, "--weights", brighter, "-o", tmp_path / "out", "--no-preview")
    assert again.code == 1 and again.err.count("skipped") == 2
    assert (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns == times
    other = restored(folder, "--weights", brighter, "-o", tmp_path / "out", "--no-preview", "--dtype", "float32")
    assert other.code == 1 and "skipped" not in other.err and (tmp_path / "out" / "a.nii.gz").stat().st_mtime_ns > times
    (tmp_path / "out" / "run.jsonl").unlink()  # then the records alone tell what is there
    other = restored(folder, "--weights", brighter, "-o", tmp_path / "out", "--no-preview")
    assert "not of this scan, network and settings" in other.err


def test_restored_scans_in_a_folder_are_not_restored_again(tmp_path: Path, brighter: Path) -> None:
    path = scan(tmp_path / "scans" / "a.nii.gz", values().astype(np.int16))
    assert restored(path, "--weights", brighter, "-q").code == 0
    assert restored(path.parent, "--weights", brighter, "-q", "--no-preview").code == 0
    assert set(files(tmp_path / "scans_restored")) == {"a.nii.gz", "a.nii.gz.json", "run.jsonl"}


def test_what_is_there_is_kept_unless_told(tmp_path: Path, brighter: Path) -> None:
    path = scan(tmp_path / "a.nii.gz", values().astype(np.int16))
    target = tmp_path / "a_restored.nii.gz"
    target.write_bytes(b"old")
    said = restored(path, "--weights", brighter)
    assert said.code == 6 and "is there already" in said.err and target.read_bytes() == b"old"
    assert restored(path, "--weights", brighter, "--overwrite", "-q").code == 0
    assert target.read_bytes() != b"old"
    itself = restored(path, "--weights", brighter, "-o", path, "--overwrite")
    assert itself.code == 2 and "never changed" in itself.err


def test_a_plan_writes_nothing(tmp_path: Path, weights: Path) -> None:
    path = scan(tmp_path / "a.nii.gz", values().astype(np.int16))
    said = restored(path, "--weights", weights, "--plan")
    assert said.code == 0 and "15 slices of 17 x 19 from I to S, 1.5 mm apart" in said.out and "a_restored.nii.gz" in said.out
    told = json.loads(restored(path, "--weights", weights, "--plan", "--json").out)
    assert told["slices"]["slices"] == 15 and told["seconds"] > 0 and told["memory_bytes"] > 2 * 17 * 19 * 15 * 2
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_failure_leaves_nothing(tmp_path: Path, weights: Path) -> None:
    path = scan(tmp_path / "a.nii.gz", values().astype(np.int16))
    network = load_restorer(weights, device="cpu")
    with patch("medical.restoration.files.preview_png", side_effect=KeyboardInterrupt), pytest.raises(KeyboardInterrupt):
        restore_file(network, Job((path,), tmp_path / "b.nii.gz"))
    volume, true = read_volume(path), nifti_writing._write_volumes

    def falsified(stream, header, blocks, count) -> None:
        true(stream, header, lambda number: blocks(number) + 1, count)

    with (
        patch("medical.volumes.nifti_writing._write_volumes", falsified),
        pytest.raises(OutputError, match="read back with another values"),
    ):
        write_scan(tmp_path / "c.nii", volume.values[0], volume, Storage.of(volume))
    with pytest.raises(OutputError, match="do not fit"):
        write_scan(tmp_path / "c.nii", volume.values[0, 1:], volume, Storage.of(volume))
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


def test_a_file_without_protocol_asks_for_one(tmp_path: Path, weights: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    save_file(load_file(weights), bare)
    path = scan(tmp_path / "a.nii.gz", values().astype(np.int16))
    said = restored(path, "--weights", bare)
    assert said.code == 2 and "Give --protocol FILE" in said.err
    asked = tmp_path / "asked.yaml"
    asked.write_text(yaml.safe_dump({"modality": "MR", "neighbours": 1, "intensity": {"kind": "range", "low": 0, "high": 800}}))
    assert restored(path, "--weights", bare, "--protocol", asked, "-q").code == 0
    asked.write_text("modality: MR\nintensity: {kind: range, low: 9, high: 1}\n")
    said = restored(path, "--weights", bare, "--protocol", asked, "--overwrite")
    assert said.code == 3 and "the range from 9 to 1 is empty" in said.err


def test_the_shipped_network_takes_noise_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    clean = np.zeros((40, 44, 24))
    clean[8:30, 10:34] = 400
    clean[14:22, 18:26] = 800
    noisy = np.hypot(clean + rng.normal(0, 60, clean.shape), rng.normal(0, 60, clean.shape)).astype(np.float32)
    said = restored(scan(tmp_path / "a.nii.gz", noisy))
    assert said.code == 0, said.err
    made = nib.load(tmp_path / "a_restored.nii.gz").get_fdata()
    inner = (slice(10, 28), slice(12, 32), slice(2, -2))
    assert np.abs(made[inner] - clean[inner]).mean() < 0.6 * np.abs(noisy[inner] - clean[inner]).mean()


def test_networks_that_restore_none_are_named(tmp_path: Path, weights: Path) -> None:
    path = scan(tmp_path / "a.nii.gz", values().astype(np.int16))
    said = restored(path, "--model", "hippocampus")
    assert said.code == 2 and "hippocampus segments scans and restores none" in said.err
    picture = tmp_path / "a.png"
    Image.new("L", (20, 20), 3).save(picture)
    said = restored(picture, "--weights", weights)
    assert said.code == 3 and "restore denoise" in said.err


def test_info_of_a_restorer(weights: Path) -> None:
    said = medical("models", "info", weights)
    assert said.code == 0, said.err
    assert "restores    slices across the longest edge of their voxels, restored with 2 neighbours beside them" in said.out
    assert "MR; RAS, trained on pixels of 1 to 1 mm" in said.out and "0 to percentile 99 as 0 to 1" in said.out


def test_reading_and_writing_beside_the_computing_of_others_changes_nothing(tmp_path: Path, brighter: Path) -> None:
    """With a bound on memory each scan is read, computed and written before the next."""
    for seed, name in enumerate("abcd"):
        scan(tmp_path / "in" / f"{name}.nii.gz", values() + seed)
    bad = tmp_path / "in" / "b.nii.gz"
    bad.write_bytes(bad.read_bytes()[:200])
    made = []
    for out, more in ((tmp_path / "beside", ()), (tmp_path / "alone", ("--memory", "16GB"))):
        said = restored(tmp_path / "in", "-o", out, "--weights", brighter, *more)
        assert said.code == 1 and "b.nii.gz" in said.err
        made.append({name: data for name, data in files(out).items() if name.endswith((".nii.gz", ".png"))})
        assert not [name for name in files(out) if Path(name).name.startswith(".")]
    assert made[0] == made[1] and len(made[0]) == 6


def test_a_scan_given_up_at_a_pause_leaves_nothing(tmp_path: Path, brighter: Path) -> None:
    restorer, source = load_restorer(brighter, device="cpu"), scan(tmp_path / "a.nii.gz", values())
    out = tmp_path / "out"
    out.mkdir()
    for pauses in (1, 2):
        stages = restore_stages(restorer, Job((source,), out / "a.nii.gz"), FileSettings(), on_start=lambda *told: None)
        next(stages)
        if pauses == 2:
            stages.send(Tell())
            assert any(out.iterdir())
        stages.close()
        assert not any(out.iterdir())
