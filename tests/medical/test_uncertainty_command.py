"""`medical segment --uncertainty`: maps on the scan's grid, figures and record."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from scipy import stats

from medical.loading import save_model
from medical.models import family
from medical.protocol import Protocol
from medical.volumes.label_maps import read_labels
from tests.command import Said, files, medical
from tests.medical.stubs import protocol, smooth


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny networks that have learnt nothing: two of one protocol with a mirror axis, one without, one of another spacing."""
    folder = tmp_path_factory.mktemp("weights")
    asked = {"patch": (16, 16, 16), "orientation": "LPS"}
    protocols: dict[str, Protocol] = {
        "one": protocol(**asked, mirror=(0,)),
        "two": protocol(**asked, mirror=(0,)),
        "plain": protocol(**asked),
        "coarse": protocol(**asked, mirror=(0,), spacing=(2.0, 2.0, 2.0)),
    }
    for seed, (name, each) in enumerate(protocols.items()):
        torch.manual_seed(seed)
        network = family("swin_unetr").create(
            in_channels=1, out_channels=3, feature_size=12, depths=(1, 1), num_heads=(2, 4), window=3
        )
        save_model(folder / f"{name}.safetensors", network, protocol=each)
    return {name: folder / f"{name}.safetensors" for name in protocols}


def scan(path: Path, seed: int = 0) -> Path:
    affine = np.array([[-1.0, 0.1, 0, 10], [0.1, 1.0, 0, -30], [0, 0, 1.5, 5], [0, 0, 0, 1]])
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image((smooth(17, 19, 15, seed=seed) * 50 + 200).astype(np.int16), affine), path)
    return path


def run(*arguments: str | Path) -> Said:
    return medical("segment", *arguments, "--precision", "float32", "--threads", 1, "-q")


MAPS = ("_probabilities.nii.gz", "_entropy.nii.gz", "_mutual_information.nii.gz", "_disagreement.nii.gz")
TABLES = ("_uncertainty.csv", "_uncertainty_slices.csv", "_uncertainty.json", "_uncertainty.png")
USUAL = (".labels.json", ".nii.gz", ".nii.gz.json", "_preview.png", "_report.html", "_statistics.csv", "_statistics.json")


def test_the_command_writes_maps_on_the_scans_grid_figures_and_record(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    path = scan(tmp_path / "in" / "case.nii.gz")
    out = tmp_path / "out"
    said = run(path, "--weights", checkpoints["one"], "--uncertainty", "-o", out, "--json")
    assert said.code == 0, said.err
    assert set(files(out)) == {f"case{ending}" for ending in (*USUAL, *MAPS, *TABLES)}
    original = nib.load(path)
    found = {ending: nib.load(out / f"case{ending}") for ending in MAPS}
    for ending, image in found.items():
        np.testing.assert_array_equal(image.affine, original.affine)
        assert image.shape == (original.shape if ending != MAPS[0] else (*original.shape, 3))
        assert image.header["sform_code"] == original.header["sform_code"]
        assert image.get_fdata().min() >= 0 and image.get_fdata().max() <= 1
    mean = found[MAPS[0]].get_fdata()
    labels, _, _ = read_labels(out / "case.nii.gz")
    clear = np.sort(mean, -1)[..., -1] - np.sort(mean, -1)[..., -2] > 1e-4
    np.testing.assert_array_equal(mean.argmax(-1)[clear], labels[clear])
    np.testing.assert_allclose(found[MAPS[1]].get_fdata(), stats.entropy(mean, axis=-1) / np.log(3), atol=1e-3)
    record = json.loads((out / "case.nii.gz.json").read_text())
    assert [member["mirror"] for member in record["members"]] == [[], [0]] and record["settings"]["uncertainty"] is True
    assert set(record["outputs"]) == set(files(out)) - {"case.nii.gz.json"} | {"case.nii.gz.json"}
    facts = json.loads((out / "case_uncertainty.json").read_text())
    assert [row["name"] for row in facts["structures"]] == ["part 1", "part 2"] and facts["members"] == record["members"]
    with (out / "case_uncertainty.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert float(rows[0]["dice_mean"]) == facts["structures"][0]["dice_mean"] and "Research use" in rows[0]["note"]
    said_of = json.loads(said.out)["uncertainty"]
    assert said_of["structures"] == facts["structures"] and said_of["slices"] == facts["slices"]
    report = (out / "case_report.html").read_text()
    assert "<h2>Uncertainty</h2>" in report and "mutual information" in report and str(tmp_path) not in report


def test_an_ensemble_from_the_command(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    path, out = scan(tmp_path / "case.nii.gz"), tmp_path / "out"
    arguments = (
        path,
        "--weights",
        checkpoints["one"],
        "--uncertainty",
        "--ensemble",
        checkpoints["two"],
        "--no-report",
        "-o",
        out,
    )
    assert run(*arguments).code == 0
    assert set(files(out)) == {f"case{ending}" for ending in (*USUAL[:3], *MAPS)}
    members = json.loads((out / "case.nii.gz.json").read_text())["members"]
    assert [(member["name"], member["mirror"]) for member in members] == [("one", []), ("two", [])]
    assert run(*arguments, "--tta", "--overwrite").code == 0
    members = json.loads((out / "case.nii.gz.json").read_text())["members"]
    assert [(member["name"], member["mirror"]) for member in members] == [("one", []), ("one", [0]), ("two", []), ("two", [0])]
    # A run without it takes the maps away, which would seem to be its own.
    assert run(path, "--weights", checkpoints["one"], "--no-report", "-o", out, "--overwrite").code == 0
    assert set(files(out)) == {f"case{ending}" for ending in USUAL[:3]}


def test_refusals_name_what_is_wrong_and_leave_nothing(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    path = scan(tmp_path / "case.nii.gz")
    before = set(files(tmp_path))
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        (("--weights", checkpoints["plain"], "--uncertainty"), "not trained on mirrored scans"),
        (("--weights", checkpoints["one"], "--ensemble", checkpoints["two"]), "Add --uncertainty"),
        (("--weights", checkpoints["one"], "--uncertainty", "--ensemble", checkpoints["coarse"]), "coarse has another protocol"),
        (("--weights", checkpoints["one"], "--uncertainty", "--ensemble", checkpoints["one"]), "the same weights"),
    ]
    for arguments, words in cases:
        said = run(path, *arguments, "-o", tmp_path / "out" / "mask.nii.gz")
        assert said.code == 2 and words in " ".join(said.err.split()), said.err
        assert set(files(tmp_path)) == before


def test_a_folder_is_gone_through_once_and_maps_are_no_scans(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    for number in range(2):
        scan(tmp_path / "in" / f"case{number}.nii.gz", seed=number)
    folder = ("--weights", checkpoints["one"], "--uncertainty", "--no-report")
    assert run(tmp_path / "in", "-o", tmp_path / "out", *folder).code == 0
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")}
    again = medical("segment", tmp_path / "in", "-o", tmp_path / "out", *folder, "--precision", "float32", "--json")
    assert again.code == 0 and again.out.count('"skipped"') == 2
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in files(tmp_path / "out")} == before
    (tmp_path / "out" / "run.jsonl").unlink()  # which would have them made anew
    other = run(tmp_path / "in", "-o", tmp_path / "out", "--weights", checkpoints["one"], "--no-report")
    assert other.code != 0 and "not of this scan, network and settings" in other.err
    maps = medical("segment", tmp_path / "out", "-o", tmp_path / "third", "--weights", checkpoints["one"], "--plan")
    assert maps.code != 0 and "holds no scan" in " ".join(maps.err.split())


def test_pictures_have_no_maps(tmp_path: Path, checkpoints: dict[str, Path]) -> None:
    from PIL import Image

    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "picture.png")
    said = run(tmp_path / "picture.png", "--weights", checkpoints["one"], "--uncertainty", "-o", tmp_path / "out")
    assert said.code == 2 and "maps of uncertainty are of volumes" in " ".join(said.err.split())
