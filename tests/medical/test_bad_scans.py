"""What `medical segment` says before a network runs, and of what it refuses; beside tests/medical/test_cli_segment.py."""

from __future__ import annotations

import json
import re
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image

from hybrid.weights.catalogue import Catalogue
from medical import load_model
from medical.loading import catalogue, save_model
from medical.models import family
from medical.models.swin_unetr import KEYS
from tests.command import Said, files
from tests.command import medical as run
from tests.medical.dicom_stubs import pixels, series
from tests.medical.stubs import protocol, smooth

TINY = {"in_channels": 1, "out_channels": 3, "feature_size": 12, "depths": (1, 1), "num_heads": (2, 4), "window": 3}
NAME = "swin-unetr-btcv-tiny"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Swin UNETR that has learnt nothing, for voxels of 1 mm."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_model(path, family("swin_unetr").create(**TINY), protocol=protocol(patch=(16, 16, 16), spacing=(1, 1, 1)))
    return path


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file under a published name, of a network that is as small as the catalogue then says."""
    torch.manual_seed(0)
    network = family("swin_unetr").create(**TINY, merging="legacy")
    entry = catalogue().entry(NAME)
    small = entry.files[1].model_copy(update={"parameters": sum(p.numel() for p in network.parameters()), "sha256": None})
    asked = protocol(patch=(16, 16, 16)).model_dump()
    known = entry.model_copy(update={"files": {1: small}, "protocol": asked, "notice": "For tests."})
    monkeypatch.setattr("medical.loading.catalogue", lambda: Catalogue({NAME: known}, Path()))
    path = tmp_path / small.name
    torch.save({KEYS.to_published(key): value for key, value in network.state_dict().items()}, path)
    return path


def scan(path: Path, *shape: int, step: float = 1.0, low: float = 200) -> Path:
    values = (smooth(*(shape or (17, 19, 15))) * 50 + low).astype(np.float32)
    nib.save(nib.Nifti1Image(values, np.diag([step, step, step, 1])), path)
    return path


def segment(path: Path, weights: Path, *more: str | Path) -> Said:
    return run("segment", path, "--weights", weights, "--no-report", "--precision", "float32", *more)


# Refusals --------------------------------------------------------------------------------------------------------


def refused(said: Said, code: int, *words: str) -> None:
    assert said.code == code and said.out == "", said
    assert said.err.startswith("error: ") and len(said.err.splitlines()) == 1, said.err
    for word in words:
        assert word in said.err, said.err


def test_refusals_say_what_it_is_and_how_to_mend_it(tmp_path: Path, weights: Path) -> None:
    path, folder = scan(tmp_path / "good.nii.gz"), tmp_path / "folder.nii.gz"
    folder.mkdir()
    other = tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.ones((5, 6, 7), np.uint8), np.eye(4)), other)
    study = series(tmp_path / "study", pixels(6))
    cut = tmp_path / "cut.zip"
    with zipfile.ZipFile(cut, "w") as archive:
        for file in study.iterdir():
            archive.write(file, file.name)
    cut.write_bytes(cut.read_bytes()[:-200])
    (tmp_path / "empty.zip").write_bytes(b"")
    dust = scan(tmp_path / "dust.nii.gz", step=1e-4)
    before = files(tmp_path)
    refused(segment(path, weights, "--roi", other), 3, "another grid", "Give --roi a mask that was drawn on this scan")
    refused(segment(dust, weights), 3, "would have 1 x 1 x 1 voxels", "too few", "Check the size of its voxels")
    for damaged in (cut, tmp_path / "empty.zip"):
        refused(segment(damaged, weights), 3, f"{damaged.name} is a damaged zip", "Copy or pack it again")
    refused(run("stats", folder), 3, "folder.nii.gz is a folder", "Name the file in it")
    assert files(tmp_path) == before


def test_the_bound_of_memory_that_is_asked_for_is_enough(tmp_path: Path, weights: Path) -> None:
    path = scan(tmp_path / "scan.nii.gz", 40, 40, 40)
    said = segment(path, weights, "--memory", "20MB")
    refused(said, 5, "of --memory 20 MB, of which the program itself takes")
    asked = re.search(r"Give --memory ([\d.]+[MG]B) or more", said.err)
    assert asked is not None and segment(path, weights, "--memory", asked[1], "-q").code == 0


def test_nothing_is_said_of_the_weights_where_no_scan_is_segmented(tmp_path: Path, published: Path) -> None:
    flat, good = tmp_path / "flat.nii.gz", scan(tmp_path / "good.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((9, 9, 9), np.float32), np.eye(4)), flat)
    refused(segment(flat, published), 3, "the value 1 everywhere")
    said = run("segment", good, flat, "--weights", published, "--no-report", "-o", tmp_path / "out")
    assert said.code == 1 and said.err.count("For tests.") == 1


def test_a_picture_for_a_network_of_volumes_is_named_in_full_and_alone(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photo.v2.jpg"
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(20, 30)).save(path)
    monkeypatch.setenv("HYBRID_AUTO_PRECISION", "bf16")
    refused(run("segment", path, "--weights", weights), 3, "photo.v2.jpg is a picture, and this network segments volumes")
    said = run("segment", scan(tmp_path / "scan.nii.gz"), "--weights", weights, "--no-report")
    assert said.code == 0 and said.err.count("Computes in bf16") == 1


# Before the network runs -----------------------------------------------------------------------------------------


def test_a_plan_does_not_mind_what_is_there(tmp_path: Path, weights: Path) -> None:
    path = scan(tmp_path / "scan.nii.gz")
    (tmp_path / "scan_seg.nii.gz").write_text("mine")
    before = files(tmp_path)
    said = segment(path, weights, "--plan")
    assert said.code == 0 and said.err == "" and said.out.strip().endswith("scan_seg.nii.gz, which is there")
    assert json.loads(segment(path, weights, "--plan", "--json").out)["outputs"][0].endswith("scan_seg.nii.gz")
    assert segment(path, weights, "--plan", "-o", path).code == 2  # what could not be run is still refused
    assert segment(path, weights).code == 6 and files(tmp_path) == before


def test_doubts_are_told_before_the_network_runs_and_once(tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = scan(tmp_path / "ct.nii.gz", low=-1000)
    said = segment(path, weights)
    assert said.code == 0 and said.err.count("look like CT in HU") == 1
    assert said.err.index("look like CT in HU") < said.err.index("ct_seg.nii.gz")
    assert "look like CT" in (tmp_path / "ct_seg.nii.gz.json").read_text()
    assert segment(path, weights, "--overwrite", "-q").err == ""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medical.segmentation.run.segment_windows", stop)
    assert "look like CT in HU" in segment(path, weights, "--overwrite").err
    assert "look like CT in HU" in segment(path, weights, "--plan").err


def test_a_long_run_says_what_it_is_in_for(tmp_path: Path, weights: Path) -> None:
    short, long = scan(tmp_path / "short.nii.gz"), scan(tmp_path / "long.nii.gz", 12, 12, 12, step=3)
    assert "windows" not in segment(short, weights).err
    said = segment(long, weights)
    lines = said.err.splitlines()
    assert said.code == 0 and lines[0].startswith("long.nii.gz: 3 x 3 x 3 mm, axes RAS, resampled to 1 x 1 x 1 mm; 64 windows")
    assert re.fullmatch(r"long\.nii\.gz: about ([\d.]+ s|\d+ min \d\d s)", lines[1])
    assert segment(long, weights, "-q", "--overwrite").err == ""


# Published files by their path -----------------------------------------------------------------------------------


def test_a_published_file_has_its_protocol_wherever_it_lies(tmp_path: Path, published: Path) -> None:
    network = load_model(published, device="cpu")
    assert network.protocol == protocol(patch=(16, 16, 16))
    assert network.source is not None and network.source.origin == "file"
    said = segment(scan(tmp_path / "scan.nii.gz"), published)
    assert said.code == 0 and f"By its name {published.name} is {NAME}" in said.err and "For tests." in said.err


@pytest.mark.parametrize("change", ["name", "classes", "protocol"])
def test_what_only_looks_like_it_has_none(change: str, tmp_path: Path, published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if change == "name":
        published = published.rename(tmp_path / "other.pt")
    elif change == "classes":
        network = family("swin_unetr").create(**TINY | {"out_channels": 4}, merging="legacy")
        torch.save({KEYS.to_published(key): value for key, value in network.state_dict().items()}, published)
    else:
        from medical.loading import catalogue as known

        entry = known().entry(NAME)
        bare = entry.model_copy(update={"protocol": None})
        monkeypatch.setattr("medical.loading.catalogue", lambda: Catalogue({NAME: bare}, Path()))
    assert load_model(published, device="cpu").protocol is None
    said = segment(scan(tmp_path / "scan.nii.gz"), published)
    assert said.code == 2 and "--protocol FILE" in said.err
