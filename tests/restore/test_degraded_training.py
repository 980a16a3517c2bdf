"""Training on degraded photographs: pairs of crops, held-out pairs, and recipes that name or spell a degradation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from hybrid.errors import InputError, RequestError
from restore.degradations.pipeline import PRESETS, REAL_WORLD_X4, Pipeline, first_order
from restore.degradations.steps import Resize
from restore.images.resize import imresize
from restore.training.data import HeldOut, PhotoCrops
from restore.training.run import Recipe, load_recipe, run


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random colours with some grain."""
    rng = np.random.default_rng(seed)
    smooth = imresize(rng.integers(40, 216, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8), 8, "uint8")
    return smooth[:height, :width] + rng.integers(-20, 21, (height, width, 3)).astype(np.uint8)


def test_training_crops_are_degraded_and_lie_on_their_original() -> None:
    photo = photograph(120, 130)
    halved = PhotoCrops([photo], 2, 16, Pipeline(scale=2, steps=(Resize(methods=("area",)),)))
    for draw in range(8):
        low, high = halved(np.random.default_rng(draw))
        assert (low.shape, high.shape) == ((3, 16, 16), (3, 32, 32)) and low.dtype == high.dtype == np.float32
        np.testing.assert_allclose(low, high.reshape(3, 16, 2, 16, 2).mean(axis=(2, 4)), atol=0.51 / 255)
    again = [PhotoCrops([photo], 2, 16, first_order(2))(np.random.default_rng(4)) for _ in range(2)]
    np.testing.assert_array_equal(again[0][0], again[1][0])
    with pytest.raises(InputError, match="training crop of 130 pixels"):  # 41 low pixels ask for 400 / 256 of them, 65
        PhotoCrops([photo], 2, 41, first_order(2))


def test_held_out_pairs_are_degraded_the_same_every_time() -> None:
    photos = [photograph(50, 61), photograph(31, 70, 1)]
    pairs = [HeldOut(photos, 2, 32, PRESETS["real-world"](2)).pairs for _ in range(2)]
    for (low, high), (again, _) in zip(*pairs, strict=True):
        np.testing.assert_array_equal(low, again)
        assert low.shape[0] * 2 == high.shape[0] and not np.array_equal(low, imresize(high, 0.5, "uint8"))


@pytest.fixture
def recipe() -> dict[str, Any]:
    options = {
        "embed_dim": 8, "depths": [1], "num_heads": [2], "window": 4, "overlap_window": 6, "mlp_width": 8, "cab_width": 4,
        "squeeze_width": 2, "num_feat": 4,
    }  # fmt: skip
    return {
        "name": "tiny",
        "scale": 2,
        "licence": "CC0-1.0",
        "network": {"family": "hat", "options": options},
        "data": {"patch": 8, "validation": ["b.png"], "validation_crop": 24},
        "training": {"steps": 1, "batch": 2, "learning_rate": 0.001, "log_every": 1, "validate_every": 1},
    }


@pytest.mark.parametrize("degradation", ["real-world", [{"kind": "sinc"}, {"kind": "resize"}, {"kind": "webp"}]])
def test_a_recipe_with_degradation_trains(degradation: Any, recipe: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for seed, name in enumerate("ab"):
        Image.fromarray(photograph(40, 44, seed)).save(tmp_path / "photos" / f"{name}.png")
    recipe["data"]["degradation"] = degradation
    _, facts = run(Recipe.model_validate(recipe), tmp_path / "photos", tmp_path / "run", accelerator="cpu")
    kept = facts["recipe"]["data"]["degradation"]
    assert kept == degradation or [step["kind"] for step in kept] == ["sinc", "resize", "webp"]
    assert Recipe.model_validate(facts["recipe"]) == Recipe.model_validate(recipe)


@pytest.mark.parametrize(
    ("degradation", "match"),
    [
        ("fog", r"data\.degradation\.name: Input should be 'bicubic'"),
        ([{"kind": "jpeg", "quality": 5}], r"steps\.0\.jpeg\.quality: "),
    ],
)
def test_faults_of_a_recipe_are_named(degradation: Any, match: str, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe["data"]["degradation"] = degradation
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(RequestError, match=match):
        load_recipe(tmp_path / "recipe.yaml")


def test_the_shipped_recipe_is_the_compact_network_on_real_world_pictures() -> None:
    real, bicubic = load_recipe("real-hat-compact-x4"), load_recipe("hat-compact-x4")
    assert real.network == bicubic.network and bicubic.degradation() is None
    assert real.degradation() == REAL_WORLD_X4
