"""The five scripts to copy from run as they stand, and what they leave is judged by scikit-image, SciPy, NumPy and nibabel."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from scipy.signal import correlate
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio

import medical
import restore

ROOT = Path(__file__).resolve().parents[1]
CROPS = ROOT / "data_specs" / "mini"
SCANS = ROOT / "medical" / "examples"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESTORE_OFFLINE", "1")


def script(name: str, *arguments: str | Path) -> dict[str, Any]:
    """Run a script of `examples/` as `python examples/NAME ARGUMENTS` does; its names."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")


def high_and_low(name: str, edge: int) -> tuple[np.ndarray, Image.Image]:
    """The middle of a shipped crop, and the same at half its size, by Pillow."""
    start = (240 - edge) // 2
    with Image.open(CROPS / name) as whole:
        high = whole.convert("RGB").crop((start, start, start + edge, start + edge))
    return np.asarray(high), high.resize((edge // 2, edge // 2), Image.Resampling.BICUBIC)


def psnr(found: np.ndarray, reference: np.ndarray) -> float:
    """On BT.601 luma, as papers have it, four pixels of border left out."""
    a, b = (rgb2ycbcr(each)[4:-4, 4:-4, 0] for each in (reference, found))
    return float(peak_signal_noise_ratio(a, b, data_range=255))


def bicubic(low: Image.Image) -> np.ndarray:
    return np.asarray(low.resize((low.width * 2, low.height * 2), Image.Resampling.BICUBIC))


def test_a_folder_is_restored_better_than_by_bicubic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "holiday"
    folder.mkdir()
    pairs = {name: high_and_low(name, 128) for name in ("otter.png", "courtyard.png")}
    for name, (_, low) in pairs.items():
        low.save(folder / name)
    (folder / "broken.png").write_bytes((folder / "otter.png").read_bytes()[:200])
    (folder / "notes.txt").write_text("no picture")
    script("restore_folder.py", folder, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.suffix == ".png") == sorted(pairs)
    for name, (high, low) in pairs.items():
        assert psnr(np.asarray(Image.open(tmp_path / "out" / name)), high) > psnr(bicubic(low), high) + 0.5, name
        assert (tmp_path / "out" / f"{name}.json").is_file()
    said = capsys.readouterr().out
    assert "broken.png: " in said and "128 x 128" in said and "notes.txt" not in said


def test_a_benchmark_is_scored_as_scikit_image_scores_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("evaluate_benchmark.py")
    with (tmp_path / "benchmark" / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 6
    folders = {"Lanczos (Pillow)": "lanczos-pillow", "bicubic (stored LR)": "bicubic-stored-lr"}
    mean: dict[str, float] = {}
    for row in rows:
        kept = tmp_path / "benchmark" / "mini_x4" / folders.get(row["method"], row["method"]) / f"{row['image']}.png"
        expected = psnr(*(np.asarray(Image.open(path)) for path in (kept, CROPS / kept.name)))
        assert float(row["psnr"]) == pytest.approx(expected, abs=1e-3), row
        mean[row["method"]] = mean.get(row["method"], 0) + expected / 6
    assert mean["cfsr-compact"] > mean["espcn-compact"] > mean["Lanczos (Pillow)"] > mean["bicubic (stored LR)"]
    said = capsys.readouterr().out
    assert all(f"{value:.2f} dB" in said for value in mean.values())


def test_a_minutes_training_beats_bicubic_on_a_picture_it_never_saw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = runpy.run_path(str(ROOT / "examples" / "train_compact.py"))
    made["main"](CROPS, tmp_path / "run", steps=240)
    (weights,) = (tmp_path / "run").glob("*.safetensors")
    assert f"restore sr --weights {weights}" in capsys.readouterr().out
    high, low = high_and_low("colosseum.png", 240)
    network = restore.load_model(weights, scale=2)
    low.save(tmp_path / "low.png")
    enlarged = restore.restore_picture(network, restore.read_picture(tmp_path / "low.png")).colour
    assert psnr(enlarged, high) > psnr(bicubic(low), high) + 0.3
    record = (tmp_path / "run" / f"{weights.stem}.json").read_text()
    assert '"validated_on"' in record and "otter.png" in record


def test_a_scan_is_outlined_as_by_hand_and_measured_as_nibabel_does(tmp_path: Path) -> None:
    script("segment_and_measure.py", SCANS / "hippocampus_141.nii.gz", tmp_path / "out")
    made, drawn = (nib.load(path) for path in (tmp_path / "out" / "labels.nii.gz", SCANS / "hippocampus_141_reference.nii.gz"))
    found, reference = (np.asarray(image.dataobj) for image in (made, drawn))
    np.testing.assert_allclose(made.affine, nib.load(SCANS / "hippocampus_141.nii.gz").affine, atol=1e-5)
    with (tmp_path / "out" / "statistics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ["Anterior hippocampus", "Posterior hippocampus"]
    for row in rows:
        a, b = found == int(row["value"]), reference == int(row["value"])
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.8
        assert float(row["ml"]) == pytest.approx(a.sum() * np.prod(made.header.get_zooms()) / 1000)
    assert Image.open(tmp_path / "out" / "preview.png").width > 300


def test_a_kernel_of_slices_becomes_the_middle_of_one_of_volumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script("transfer_2d_to_3d.py")
    assert "is that of the volumes: True" in capsys.readouterr().out
    before, after = (load_file(tmp_path / "transferred" / f"{name}.safetensors") for name in ("slices", "volumes"))
    (name,) = (name for name in before if name.endswith("weights_3d") and before[name].shape[1] == 1)
    np.testing.assert_array_equal(np.roll(before[name], (1, 1, 1), (2, 3, 4)), after[name])
    # At angle 0 a slice is convolved with the middle of the kernel for volumes.
    network = medical.load_model(tmp_path / "transferred" / "slices.safetensors", device="cpu")
    first = next(module for module in network.modules() if hasattr(module, "reset_angle"))
    first.reset_angle()
    picture = np.random.default_rng(0).random((20, 18), dtype=np.float32)
    with torch.inference_mode():
        given = first(torch.from_numpy(picture)[None, None])[0].numpy()
    padded = np.pad(picture, first.padding)
    for number, kernel in enumerate(after[name][:, 0, after[name].shape[2] // 2]):
        expected = correlate(padded, kernel, mode="valid")[:: first.stride, :: first.stride]
        np.testing.assert_allclose(given[number], expected, atol=1e-5)
    labels = nib.load(tmp_path / "transferred" / "labels.nii.gz")
    assert labels.shape == nib.load(SCANS / "hippocampus_141.nii.gz").shape
