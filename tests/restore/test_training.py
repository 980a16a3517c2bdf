"""Training of picture networks: recipes, pairs of crops, held-out figures, and a whole run with what it leaves."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor, nn

from hybrid.errors import InputError, RequestError
from hybrid.records import sha256_file
from hybrid.training.loop import read_log
from hybrid.weights.checkpoints import read_checkpoint
from restore import load_model
from restore.evaluation.metrics import psnr
from restore.images.resize import downscale, imresize
from restore.models.base import RestorationNetwork
from restore.training.data import HeldOut, PhotoCrops, read_photos
from restore.training.losses_multi import charbonnier_loss
from restore.training.record import write_result
from restore.training.run import Recipe, load_recipe, run

RECIPE: dict[str, Any] = {
    "name": "tiny",
    "scale": 2,
    "licence": "CC0-1.0",
    "network": {
        "family": "hat",
        "options": {
            "embed_dim": 8, "depths": [1], "num_heads": [2], "window": 4, "overlap_window": 6, "mlp_width": 8, "cab_width": 4,
            "squeeze_width": 2, "num_feat": 4,
        },
    },
    "data": {"patch": 8, "validation": ["c.png"], "validation_crop": 32},
    "training": {"steps": 6, "batch": 2, "learning_rate": 0.001, "log_every": 2, "validate_every": 3},
}  # fmt: skip


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours with some grain, so that no two places are alike."""
    rng = np.random.default_rng(seed)
    smooth = imresize(rng.integers(40, 216, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8), 8, "uint8")
    return smooth[:height, :width] + rng.integers(-20, 21, (height, width, 3)).astype(np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "deeper").mkdir(parents=True)
    Image.fromarray(photograph(48, 64, 1)).save(folder / "a.png")
    Image.fromarray(photograph(64, 40, 2)[..., 0]).save(folder / "deeper" / "b.png")  # grey
    Image.fromarray(photograph(41, 47, 3)).save(folder / "c.png")
    (folder / "notes.txt").write_text("no picture")
    return folder


# Recipes ---------------------------------------------------------------------------------------------------------


def written(folder: Path, changes: dict[str, Any]) -> Path:
    """The recipe with some fields replaced; `a.b` is field b of part a."""
    recipe = json.loads(json.dumps(RECIPE))
    for place, value in changes.items():
        part = recipe
        *parents, last = place.split(".")
        for name in parents:
            part = part[name]
        part[last] = value
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder / "recipe.yaml"


def test_recipe_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, {}))
    assert recipe.network.family == "hat" and recipe.training.steps == 6 and recipe.data.source_scales == (1.0,)
    shipped = load_recipe("hat-compact-x4")
    assert (shipped.name, shipped.scale) == ("hat-compact-x4", 4)


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"scale": 0}, ["scale"]),
        ({"training.steps": "many", "data.patch": -1}, ["training.steps", "data.patch"]),
        ({"training.learning_rates": 1}, ["training.learning_rates"]),
        ({"loss": "l3"}, ["loss"]),
        ({"data": {"patch": 8}}, ["data.validation"]),
        ({"colour": "red"}, ["colour"]),
    ],
)
def test_faults_of_a_recipe_are_named(changes: dict[str, Any], fields: list[str], tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"recipe\.yaml cannot be used.*Correct these fields") as refused:
        load_recipe(written(tmp_path, changes))
    for field in fields:
        assert f"{field}: " in str(refused.value)


def test_recipes_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no recipe 'hat-compakt'.*hat-compact-x4"):
        load_recipe("hat-compakt")
    with pytest.raises(RequestError, match="no recipe"):
        load_recipe(tmp_path / "absent.yaml")
    (tmp_path / "broken.yaml").write_text("name: [")
    with pytest.raises(RequestError, match=r"broken\.yaml is not YAML"):
        load_recipe(tmp_path / "broken.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(RequestError, match=r"list\.yaml cannot be used"):
        load_recipe(tmp_path / "list.yaml")


# Crops -----------------------------------------------------------------------------------------------------------


def orientations(pixels: np.ndarray) -> list[np.ndarray]:
    """The eight ways to lay down (H, W, C) pixels."""
    turned = [np.rot90(pixels, turns) for turns in range(4)]
    return turned + [pixels.transpose(1, 0, 2) for pixels in turned]


def place_of(crop: np.ndarray, photo: np.ndarray) -> tuple[int, int, int]:
    """Where in a photo a crop was cut: its orientation, and the top left corner."""
    for orientation, pixels in enumerate(orientations(crop)):
        windows = sliding_window_view(photo, pixels.shape)[:, :, 0]
        found = np.argwhere((windows == pixels).all(axis=(2, 3, 4)))
        if len(found):
            return orientation, int(found[0][0]), int(found[0][1])
    raise AssertionError("the crop is not of this photo")


@pytest.mark.parametrize("scale", [2, 3])
def test_crops_are_those_of_the_whole_degraded_photo(scale: int) -> None:
    """Shrinking a crop with its margin, flipped or turned, gives the pixels that shrinking the whole photo gives."""
    photo = photograph(48, 54)
    crops = PhotoCrops([photo], scale, patch=5)
    whole = downscale(photo, scale)
    seen, aligned = Counter[int](), 0
    for draw in range(60):
        low, high = crops(np.random.default_rng(draw))
        assert (low.shape, high.shape) == ((3, 5, 5), (3, 5 * scale, 5 * scale))
        assert low.dtype == high.dtype == np.float32 and low.min() >= 0 and low.max() <= 1
        low8, high8 = (np.rint(pair.transpose(1, 2, 0) * 255).astype(np.uint8) for pair in (low, high))
        orientation, top, left = place_of(high8, photo)
        seen[orientation] += 1
        if top % scale == left % scale == 0:
            aligned += 1
            row, column = top // scale, left // scale
            expected = whole[row : row + 5, column : column + 5]
            np.testing.assert_array_equal(orientations(low8)[orientation], expected)
    assert aligned > 2 and len(seen) == 8


def test_crops_come_from_all_photos_by_their_area_and_from_the_generator_alone() -> None:
    large, small, tiny = np.full((60, 60, 3), 10, np.uint8), np.full((30, 60, 3), 200, np.uint8), np.zeros((20, 90, 3), np.uint8)
    crops = PhotoCrops([large, small, tiny], scale=2, patch=4)
    drawn = Counter(round(float(crops(np.random.default_rng(i))[1].mean()) * 255) for i in range(300))
    assert set(drawn) == {10, 200}  # the last one is smaller than a crop with its margin
    assert 1.5 < drawn[10] / drawn[200] < 2.7
    crops = PhotoCrops([photograph(48, 54)], scale=2, patch=4)
    again = [crops(np.random.default_rng([1, 2])) for _ in range(2)]
    np.testing.assert_array_equal(again[0][0], again[1][0])


def test_photos_that_are_all_too_small_are_refused() -> None:
    with pytest.raises(InputError, match=r"as large as a training crop of 24 pixels.*data\.patch"):
        PhotoCrops([photograph(23, 80)], scale=2, patch=4)


def test_photos_are_read_as_rgb_and_shrunk(photos: Path, tmp_path: Path) -> None:
    colour, half, grey, _ = read_photos([photos / "a.png", photos / "deeper" / "b.png"], (1.0, 0.5))
    np.testing.assert_array_equal(colour, photograph(48, 64, 1))
    np.testing.assert_array_equal(half, downscale(colour, 2))
    np.testing.assert_array_equal(grey, np.repeat(photograph(64, 40, 2)[..., :1], 3, axis=2))
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(tmp_path / "deep.png")
    with pytest.raises(InputError, match=r"deep\.png is a uint16 picture; training takes 8 bits"):
        read_photos([tmp_path / "deep.png"])


# Figures ---------------------------------------------------------------------------------------------------------


class Nearest(nn.Module):
    def __init__(self, scale: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.gain).repeat_interleave(self.scale, -1).repeat_interleave(self.scale, -2)


def test_held_out_figures_are_psnr_on_y_of_the_centre_crops() -> None:
    photos = [photograph(50, 61), photograph(31, 70, 1)]
    crops = [photos[0][9:41, 14:46], photos[1][:30, 19:51]]  # 32 x 32 of the centre; the second is 31 rows high, an odd number
    expected = {"psnr": 0.0, "psnr_bicubic": 0.0}
    for high in crops:
        low = downscale(high, 2)
        expected["psnr"] += psnr(low.repeat(2, 0).repeat(2, 1), high, border=2) / 2
        expected["psnr_bicubic"] += psnr(imresize(low, 2, "uint8"), high, border=2) / 2
    assert HeldOut(photos, scale=2, crop=32)(Nearest(2)) == pytest.approx(expected)


def test_held_out_values_are_clipped_to_the_range() -> None:
    white = HeldOut([np.full((16, 16, 3), 255, np.uint8)], scale=2, crop=16)
    network = Nearest(2)
    with torch.no_grad():
        network.gain.fill_(1.5)
    assert white(network)["psnr"] == np.inf


def test_charbonnier() -> None:
    a, b = torch.tensor([0.0, 0.5, 1.0]).view(1, 1, 1, 3), torch.tensor([0.0, 0.1, 1.3]).view(1, 1, 1, 3)
    assert float(charbonnier_loss(a, b)) == pytest.approx(np.mean(np.sqrt(np.array([0, 0.4, 0.3]) ** 2 + 1e-6)), rel=1e-6)


# A whole run -----------------------------------------------------------------------------------------------------


def test_a_run_leaves_weights_that_load_with_their_record(photos: Path, tmp_path: Path) -> None:
    seen: list[int] = []
    folder = tmp_path / "run"
    network, facts = run(
        Recipe.model_validate(RECIPE), photos, folder, accelerator="cpu", on_progress=lambda done, *_: seen.append(done)
    )
    assert isinstance(network, RestorationNetwork) and seen == [2, 3, 4, 6]
    assert (facts["trained_on"], facts["validated_on"]) == (["a.png", "b.png"], ["c.png"])
    weights, record, log, curve = write_result(network, facts, folder, "tiny")

    loaded = load_model(weights, device="cpu", scale=2)
    x = torch.rand(1, 3, 10, 13)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), network.cpu()(x), atol=5e-3, rtol=0)  # the file is float16
    checkpoint = read_checkpoint(weights)
    assert {value.dtype for value in checkpoint.state.values()} == {torch.float16}
    assert checkpoint.metadata == {"family": "hat", "recipe": "tiny", "licence": "CC0-1.0"}

    facts = json.loads(record.read_text())
    rows = read_log(log)
    assert facts["weights_sha256"] == sha256_file(weights) and facts["weights_bytes"] == weights.stat().st_size
    assert facts["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert facts["result"] == {key: rows[-1][key] for key in ("step", "psnr", "psnr_bicubic")}
    assert facts["recipe"]["training"]["steps"] == 6 and facts["recipe"]["loss"] == "l1"
    with Image.open(curve) as picture:
        assert picture.format == "PNG" and picture.width > 500
    assert sorted(p.name for p in folder.iterdir()) == [
        "last.pt", "log.csv", "previous.pt", "tiny.csv", "tiny.json", "tiny.png", "tiny.safetensors"
    ]  # fmt: skip


def test_a_run_starts_from_its_seed(photos: Path, tmp_path: Path) -> None:
    def weights(name: str, seed: int) -> Tensor:
        recipe = Recipe.model_validate(RECIPE | {"training": RECIPE["training"] | {"seed": seed, "steps": 2}})
        return run(recipe, photos, tmp_path / name, accelerator="cpu")[0].state_dict()["conv_first.weight"]

    first = weights("a", 0)
    torch.manual_seed(99)
    assert torch.equal(weights("b", 0), first)
    assert not torch.equal(weights("c", 1), first)


def test_a_run_begins_with_the_weights_it_is_given(photos: Path, tmp_path: Path) -> None:
    """Training at a rate of almost nothing leaves the weights where they came from, x2's tail included in x4."""
    network, facts = run(Recipe.model_validate(RECIPE), photos, tmp_path / "x2", accelerator="cpu")
    weights, *_ = write_result(network, facts, tmp_path / "x2", "tiny")
    still = RECIPE["training"] | {"learning_rate": 1e-9, "steps": 2}
    changes = {
        "scale": 4,
        "training": still,
        "data": RECIPE["data"] | {"patch": 4},
        "start_from": {"model": str(weights), "scale": 2},
        "name": "tiny-x4",
    }
    begun, facts = run(Recipe.model_validate(RECIPE | changes), photos, tmp_path / "x4", accelerator="cpu")
    before, after = network.state_dict(), begun.state_dict()
    for name in ("conv_first.weight", "upsample.0.weight"):
        torch.testing.assert_close(after[name], before[name], atol=1e-3, rtol=1e-3)  # the file is float16
    assert facts["started_from"]["sha256"] == sha256_file(weights)
    assert "2 initialised (upsample.2.weight" in facts["started_from"]["tensors"]


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"network.family": "hatt"}, RequestError, r"no family 'hatt'.*hat"),
        ({"network.options": {"width": 3}}, RequestError, r"options do not fit.*width.*network\.options"),
        ({"scale": 5}, RequestError, r"options do not fit.*not by 5"),
        (
            {"network.family": "nafnet", "network.options": {"width": 8}, "scale": 2},
            RequestError,
            r"options do not fit nafnet.*scale",
        ),
        (
            {"network.family": "mixer", "network.options": {"embed_dim": 16, "mlp_width": 24, "depths": [1], "scale": 3}},
            RequestError,
            r"enlarges by 3, the recipe by 2.*scale: 2",
        ),
        (
            {"data.validation": ["c.png", "z.png"]},
            InputError,
            r"photos lacks the validation photographs z\.png.*data\.validation",
        ),
        ({"data.validation": ["a.png", "b.png", "c.png"]}, InputError, "holds nothing to train on"),
    ],
)
def test_runs_that_cannot_start_say_why(changes, kind, match, photos: Path, tmp_path: Path) -> None:
    recipe = load_recipe(written(tmp_path, changes))
    with pytest.raises(kind, match=match):
        run(recipe, photos, tmp_path / "run", accelerator="cpu")
    assert not (tmp_path / "run").exists()
