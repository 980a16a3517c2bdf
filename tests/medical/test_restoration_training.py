"""Training and evaluation of restoration networks for scans: what is drawn, how it is scored, that it learns and goes on."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from scipy.stats import rice
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hybrid.errors import RequestError
from medical.restoration.degradations import Rician, RicianNoise, reference_level, rician
from medical.restoration.evaluation import METHODS, check_classical, evaluate_denoising, without_bias, write_evaluation
from medical.restoration.loading import load_restorer
from medical.restoration.scores import psnr, ssim
from medical.restoration.training import DataPart, DegradedSlices, is_restoration, load_recipe, make_network, root_of_mean_squares
from tests.command import medical
from tests.medical.restoration_stubs import protocol, restorer, scan
from tests.medical.stubs import smooth, volume

NOISE = {"kind": "rician-noise", "sigma": [0.1, 0.1]}


def data(**changes: object) -> DataPart:
    return DataPart.model_validate({"patch": 16, "degradation": NOISE, "validate_at": [NOISE]} | changes)


def tissue(*shape: int, seed: int = 0) -> np.ndarray:
    """A smooth magnitude scan."""
    return (smooth(*shape, seed=seed) * 10 + 100).clip(0).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three scans to train on and two to choose by."""
    names = [f"case_{number}" for number in range(5)]
    for number, name in enumerate(names):
        scan(tmp_path / "data" / "imagesTr" / f"{name}.nii.gz", tissue(18, 20, 17, seed=number), np.eye(4))
    described = {"licence": "none", "splits": {"train": names[:3], "val": names[3:]}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(described))
    return tmp_path / "data"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    network = {"family": "nafnet", "options": {"width": 8, "encoder_depths": [1], "middle_depth": 1, "decoder_depths": [1]}}
    training = {"steps": 40, "batch": 4, "learning_rate": 5e-3, "ema": 0.9, "log_every": 10, "validate_every": 20}
    raw = {
        "name": "tiny", "licence": "none", "network": network, "options": {"tlc_train_size": [16, 16]},
        "protocol": protocol(neighbours=1, spacing=(1, 1)).model_dump(mode="json"),
        "data": {"patch": 16, "degradation": NOISE, "validate_at": [NOISE], "air": 0.2}, "training": training,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(raw))
    return path


# What is drawn -------------------------------------------------------------------------------------------------------


def test_a_pair_is_a_patch_of_noisy_slices_and_the_middle_one_without_noise() -> None:
    array = tissue(18, 20, 17)
    draw = DegradedSlices([volume(array)], protocol(neighbours=2), data())
    pairs = [draw(np.random.default_rng(seed)) for seed in range(40)]
    x, y = pairs[0]
    assert x.shape == (5, 16, 16) and y.shape == (1, 16, 16) and x.dtype == y.dtype == np.float32
    again, _ = draw(np.random.default_rng(0))
    np.testing.assert_array_equal(x, again)
    errors = np.array([(x[2] - y[0]).std() for x, y in pairs])
    assert 0.07 < errors.mean() < 0.12, "a tenth of the 99th percentile, in the network's range"
    others = np.array([np.abs(x[0] - y[0]).mean() / np.abs(x[2] - y[0]).mean() for x, y in pairs])
    assert others.mean() > 1.05, "the middle slice is the nearest"


def test_slices_are_drawn_across_each_of_equal_axes_and_across_the_thickest_alone() -> None:
    ramp = np.broadcast_to(np.arange(20, dtype=np.float32)[:, None, None] + 50, (20, 20, 20)).copy()

    def across(affine: np.ndarray) -> set[bool]:
        draw = DegradedSlices([volume(ramp, affine)], protocol(), data(degradation=NOISE | {"sigma": [1e-6, 1e-6]}))
        return {bool(np.ptp(draw(np.random.default_rng(seed))[1]) < 1e-3) for seed in range(24)}

    assert across(np.eye(4)) == {True, False}
    assert across(np.diag([3.0, 1, 1, 1])) == {True}


def test_air_is_a_half_space_of_zeros() -> None:
    draw = DegradedSlices([volume(tissue(18, 20, 17))], protocol(), data(air=1.0))
    pairs = [draw(np.random.default_rng(seed)) for seed in range(30)]
    shares = [float((y == 0).mean()) for _, y in pairs]
    assert max(shares) > 0.3 and any(0 < share < 0.9 for share in shares)
    floor = np.concatenate([x[0][y[0] == 0] for x, y in pairs])
    assert floor.mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.15), "Rayleigh noise where there is nothing"


def test_the_loss_is_of_the_middle_slice_alone() -> None:
    output, target = torch.zeros(2, 3, 4, 4), torch.zeros(2, 1, 4, 4)
    output[:, 0] = 9
    output[0, 1], output[1, 1] = 3, 1
    assert float(root_of_mean_squares(output, target)) == pytest.approx(2, abs=1e-3)


# Scores --------------------------------------------------------------------------------------------------------------


def test_scores_are_scikit_image_s() -> None:
    original = tissue(20, 21, 6)
    noisy = Rician(0.1, 0).apply(original)
    peak = reference_level(original, "p99")
    assert psnr(noisy, original) == pytest.approx(peak_signal_noise_ratio(original, noisy, data_range=peak), abs=1e-4)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": peak, "full": True}
    maps = [structural_similarity(original[..., k], noisy[..., k], **settings)[1][5:-5, 5:-5] for k in range(6)]
    assert ssim(noisy, original) == pytest.approx(np.mean(maps), abs=1e-4)
    assert psnr(original, original) == np.inf and ssim(original, original) == pytest.approx(1)


@pytest.mark.parametrize("brightness", [3.0, 5.0, 20.0])
def test_the_bias_of_rician_magnitudes_is_taken_away(brightness: float) -> None:
    """Judged by the mean of SciPy's Rice distribution."""
    mean = rice.mean(brightness)
    assert abs(float(without_bias(np.float64(mean), 1.0)) - brightness) < 0.2 * abs(mean - brightness)
    sampled = rician(np.full(200_000, brightness, np.float32), 1.0, np.random.default_rng(0))
    assert float(sampled.mean()) == pytest.approx(mean, abs=0.01)


def test_a_network_that_knows_the_original_is_ahead_in_every_case(folder: Path, tmp_path: Path) -> None:
    """A network that halves the noise towards the local mean, against the noisy scans and non-local means."""
    mean = restorer(lambda x: torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False))
    result = evaluate_denoising(mean, folder, "val", sigmas=(0.1,), classical=("nl-means",))
    assert result.methods() == ["noisy", "Stub", "nl-means"] and len(result.scores) == 6
    noisy, ours = result.means()[0], result.means()[1]
    assert noisy.psnr == pytest.approx(20, abs=0.6) and ours.psnr > noisy.psnr + 3 and noisy.network_ahead == 2
    assert result.scores == pytest.approx(result.scores)
    written = write_evaluation(result, tmp_path / "out")
    rows = list(csv.DictReader(written[0].open()))
    assert [row["case"] for row in rows] == ["case_3"] * 3 + ["case_4"] * 3
    facts = json.loads(written[1].read_text())
    assert facts["means"][1]["psnr"] == ours.psnr and facts["cases"] == ["case_3", "case_4"] and facts["research_use"]
    assert written[2].stat().st_size > 10_000


def test_methods_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="no method 'median'"):
        check_classical(["median"])
    monkeypatch.setattr("medical.restoration.evaluation.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="bm4d is not installed"):
        check_classical(["bm4d"])
    assert set(METHODS) == {"nl-means", "bm4d"}


# The whole of it -----------------------------------------------------------------------------------------------------


def test_a_training_learns_goes_on_and_leaves_what_can_be_run(folder: Path, recipe: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = medical("train", recipe, "--data", folder, "-o", runs, "--steps", "20", "--accelerator", "cpu", "-q")
    assert first.code == 0, first.err
    assert medical("train", recipe, "--data", folder, "-o", runs, "--accelerator", "cpu", "-q").code == 0
    record = json.loads((runs / "tiny.json").read_text())
    assert record["trained_on"] == ["case_0", "case_1", "case_2"] and record["validated_on"] == ["case_3", "case_4"]
    assert record["result"]["step"] == 40 and record["recipe"]["data"]["degradation"]["sigma"] == [0.1, 0.1]
    rows = list(csv.DictReader((runs / "tiny.csv").open()))
    scored = [float(row["psnr"]) for row in rows if row["psnr"]]
    assert len(rows) == 4 and scored[-1] > scored[0] and {row["psnr_degraded"] for row in rows if row["psnr"]}
    assert {path.name for path in runs.iterdir()} >= {"tiny.safetensors", "tiny.png"}
    network = load_restorer(runs / "tiny.safetensors", device="cpu")
    assert network.options == {"tlc_train_size": [16, 16]} and network.protocol.neighbours == 1
    said = medical(
        "restore-evaluate", "--model", runs / "tiny.safetensors", "--data", folder, "--sigma", "0.1", "-q", "--threads", 1
    )
    assert said.code == 0 and "noisy" in said.out and "tiny" in said.out and "Research use" in said.out


def test_recipes_are_told_apart_and_checked(recipe: Path, folder: Path, tmp_path: Path) -> None:
    assert is_restoration(recipe) and is_restoration("denoise-mr-compact") and not is_restoration("hippocampus")
    shipped = load_recipe("denoise-mr-compact")
    assert sum(p.numel() for p in make_network(shipped).parameters()) < 1_000_000
    refused = medical("train", recipe, "--data", folder, "-o", tmp_path / "runs", "--start-from", "hippocampus")
    assert refused.code == 2 and "--start-from" in refused.err
    raw = yaml.safe_load(recipe.read_text())
    raw["network"]["options"]["in_channels"] = 7
    recipe.write_text(yaml.safe_dump(raw))
    with pytest.raises(RequestError, match="takes 7 channels"):
        make_network(load_recipe(recipe))
    del raw["data"]["validate_at"]
    recipe.write_text(yaml.safe_dump(raw))
    with pytest.raises(RequestError, match=r"data\.validate_at"):
        load_recipe(recipe)


def test_noise_of_a_recipe_is_a_degradation() -> None:
    assert data().degradation == RicianNoise(sigma=(0.1, 0.1))
