"""Training at scale 1: pairs of crops, held-out figures of one output and of several, and a run with what it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import convolve
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from hybrid.training.loop import read_log
from hybrid.weights.checkpoints import read_checkpoint
from restore import load_model
from restore.degradations.pipeline import Pipeline, gaussian_noise, jpeg, motion_blur
from restore.degradations.steps import Blur, GaussianNoise
from restore.models import family
from restore.models.base import RestorationNetwork
from restore.training.data import HeldOutSameSize, PhotoCrops
from restore.training.losses_multi import psnr_loss
from restore.training.record import write_result
from restore.training.run import Recipe, load_recipe, run

WORDS = ("deblur-compact", "deblur-compact-single", "denoise-compact", "dejpeg-compact")


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random colours in squares of 4 pixels, so that no two places are alike."""
    rng = np.random.default_rng(seed)
    return rng.integers(20, 236, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)[:height, :width]


# Pairs -----------------------------------------------------------------------------------------------------------


def test_noise_is_drawn_from_the_values_that_no_file_of_8_bits_holds() -> None:
    flat = np.full((64, 64, 3), 250, np.uint8)
    low, high = PhotoCrops([flat], 1, 32, gaussian_noise(25.0), rounded=False)(np.random.default_rng(0))
    assert low.shape == high.shape == (3, 32, 32) and low.dtype == np.float32 and np.all(high == np.float32(250 / 255))
    assert low.max() > 1.1 and (low - high).std() * 255 == pytest.approx(25, rel=0.05)
    stored, _ = PhotoCrops([flat], 1, 32, gaussian_noise(25.0))(np.random.default_rng(0))
    np.testing.assert_allclose(stored, np.round(low.clip(0, 1) * 255) / 255, atol=1e-6)


def test_a_margin_keeps_mirrored_edges_out_of_blurred_crops() -> None:
    photo = photograph(64, 64)
    kernel = Blur(sizes=(9, 9), sigma=(3.0, 3.0), shapes={"isotropic": 1.0})
    crops = PhotoCrops([photo], 1, 24, Pipeline(scale=1, steps=(kernel,)), margin=4, rounded=False)
    line = np.exp(-((np.arange(9) - 4.0) ** 2) / 18)
    weights = np.outer(line, line) / line.sum() ** 2
    blurred = np.stack([convolve(photo[..., c] / 255.0, weights) for c in range(3)])
    for draw in range(6):
        low, high = crops(np.random.default_rng(draw))
        places = [
            (turn, flip, row, column)
            for turn in range(4)
            for flip in (False, True)
            for row in range(4, 37)
            for column in range(4, 37)
            if np.allclose(turned(photo[row : row + 24, column : column + 24].transpose(2, 0, 1) / 255.0, turn, flip), high)
        ]
        assert len(places) == 1
        turn, flip, row, column = places[0]
        expected = turned(blurred[:, row : row + 24, column : column + 24], turn, flip)
        np.testing.assert_allclose(low, expected, atol=2e-5)


def turned(pixels: NDArray, turn: int, flip: bool) -> NDArray:
    pixels = np.rot90(pixels, turn, (1, 2))
    return pixels[:, :, ::-1] if flip else pixels


def test_crops_lie_anywhere_on_the_grid_of_jpeg() -> None:
    """Blocks of one colour survive the strongest compression only on the grid, so the place on it shows in the error."""
    photo = photograph(96, 96).reshape(96, 96, 3)[::4, ::4].repeat(16, 0).repeat(16, 1)[:96, :96]
    crops = PhotoCrops([photo], 1, 32, jpeg(10, chroma=("4:4:4",)))
    errors = {round(float(np.abs(np.subtract(*crops(np.random.default_rng(draw)))).mean()), 3) for draw in range(12)}
    assert len(errors) > 6


# Figures ---------------------------------------------------------------------------------------------------------


class Shifted(RestorationNetwork):
    """Three outputs, the input and two that are off by a constant; a list of stages where asked for."""

    def __init__(self, stages: bool = False) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))
        card = family("nafnet").create(width=8, encoder_depths=(1,), middle_depth=1, decoder_depths=(1,)).card
        self.card = replace(card, multiple=1, outputs=3, result=1 if stages else None)
        self.stages = stages

    def restore(self, x: Tensor) -> Tensor | list[Tensor]:
        y = torch.stack([x * self.gain, x + 8 / 255, x - 8 / 255], 1)
        return [y * 0, y] if self.stages else y


@pytest.mark.parametrize("stages", [False, True])
def test_held_out_figures_of_several_outputs(stages: bool) -> None:
    photos = [photograph(40, 44, 1), photograph(36, 60, 2)]
    noise = Pipeline(scale=1, steps=(GaussianNoise(sigma=(10, 10), gray=0),))
    held_out = HeldOutSameSize(photos, 32, noise, margin=0, rounded=True)
    scores = []
    for low, high in held_out.pairs:
        outputs = [low, low + np.float32(8 / 255), low - np.float32(8 / 255)]
        bytes_ = [np.round(np.clip(output * 255.0, 0, 255)).astype(np.uint8) for output in outputs]
        scores.append([peak_signal_noise_ratio(high, picture) for picture in bytes_])
    table = np.array(scores)
    figures = held_out(Shifted(stages).eval())
    assert figures["psnr_input"] == pytest.approx(table[:, 0].mean(), abs=1e-4)
    assert figures["psnr"] == pytest.approx(table.mean(0).max(), abs=1e-4)
    assert figures["psnr_best"] == pytest.approx(table.max(1).mean(), abs=1e-4)
    assert [figures[f"won_{i}"] for i in range(3)] == np.bincount(table.argmax(1), minlength=3).tolist()


def test_held_out_pairs_are_the_centre_and_the_same_every_time() -> None:
    photo = photograph(80, 90)
    sets = [HeldOutSameSize([photo], 32, motion_blur(), margin=16, rounded=False).pairs for _ in range(2)]
    (low, high), (again, _) = sets[0][0], sets[1][0]
    np.testing.assert_array_equal(low, again)
    np.testing.assert_array_equal(high, photo[24:56, 29:61])
    assert low.shape == high.shape and low.dtype == np.float32


# Recipes and runs ------------------------------------------------------------------------------------------------


def recipe(**changes: Any) -> dict[str, Any]:
    options = {"width": 8, "encoder_depths": [1], "middle_depth": 1, "decoder_depths": [1], "tlc_train_size": [16, 16]}
    return {
        "name": "tiny",
        "task": "denoising",
        "licence": "CC0-1.0",
        "network": {"family": "nafnet", "options": options},
        "data": {"patch": 16, "degradation": "gaussian-noise", "rounded": False, "validation": ["b.png"], "validation_crop": 24},
        "loss": "psnr",
        "training": {"steps": 4, "batch": 2, "learning_rate": 0.001, "log_every": 2, "validate_every": 2},
    } | changes


def test_a_run_leaves_weights_that_know_what_their_tensors_do_not_tell(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate("ab"):
        Image.fromarray(photograph(48, 52, seed)).save(tmp_path / "photos" / f"{name}.png")
    plain = recipe()
    plain["network"]["options"] |= {"n_heads": 2, "combine_heads": False}
    network, facts = run(Recipe.model_validate(plain), tmp_path / "photos", tmp_path / "run", accelerator="cpu")
    weights, record, log, _ = write_result(network, facts, tmp_path / "run", "tiny")
    metadata = read_checkpoint(weights).metadata
    assert json.loads(metadata["options"]) == {"tlc_train_size": [16, 16], "combine_heads": False}
    rows = read_log(log)
    assert {"psnr", "psnr_input", "psnr_best", "won_0", "won_1"} <= rows[-1].keys() and "won_2" not in rows[-1]
    assert json.loads(record.read_text())["result"].keys() == {"step", "psnr", "psnr_input", "psnr_best"}

    loaded = load_model(weights, device="cpu")
    assert loaded.card.outputs == 2
    x = torch.rand(1, 3, 40, 70)  # beyond the window of local means
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), network.cpu()(x), atol=5e-3, rtol=0)
        whole = load_model(weights, device="cpu", tlc_train_size=0)
        assert not torch.equal(whole(x), loaded(x))  # what the caller says comes before the file


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"scale": 2}, "task denoising and scale 2 do not go together"),
        ({"task": "sr"}, "task sr and scale 1 do not go together"),
        (
            {"data": recipe()["data"] | {"degradation": "real-world"}},
            "task denoising and degradation real-world do not go together",
        ),
        (
            {"task": "sr", "scale": 2, "data": recipe()["data"] | {"degradation": "bicubic"}},
            "margin and data.rounded belong to tasks of scale 1",
        ),
    ],
)
def test_recipes_that_make_no_sense_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        Recipe.model_validate(recipe(**changes))


@pytest.mark.parametrize("name", WORDS)
def test_shipped_recipes_make_networks_of_under_a_million_parameters(name: str) -> None:
    shipped = load_recipe(name)
    assert shipped.name == name and shipped.scale == 1
    network = family(shipped.network.family).create(**shipped.network.options)
    assert 900_000 < sum(p.numel() for p in network.parameters()) < 1_000_000
    x = torch.rand(1, 3, 24, 24)
    y = network(x)
    assert isinstance(y, Tensor) and y.shape == ((1, 10, 3, 24, 24) if name == "deblur-compact" else x.shape)
    psnr_loss(y, x).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in network.parameters())
