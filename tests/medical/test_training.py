"""Training of segmentation networks: recipes, and whole runs with what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer import Typer
from typer.testing import CliRunner

from hybrid.errors import InputError, RequestError, WeightsError
from hybrid.records import sha256_file
from hybrid.training.loop import read_log
from hybrid.weights.checkpoints import read_checkpoint
from medical.cli.train import train as train_command
from medical.loading import load_model
from medical.models.base import SegmentationNetwork
from medical.training.cases import Folder
from medical.training.run import Recipe, load_recipe, make_network, predict, run, write_result
from tests.medical.training_stubs import PARTS, RECIPE, REGIONS, SHAPE, changed, eggs, write_case, written

__all__ = ["eggs"]  # a fixture

LARGE = [{"channel": 0, "value": 300, "name": "x", "values": [300]}]


# Recipes ---------------------------------------------------------------------------------------------------------


def test_the_shipped_recipe_is_read_and_its_network_fits_the_promise() -> None:
    recipe = load_recipe("hippocampus")
    assert recipe.protocol.outputs == 3 and recipe.protocol.intensity.kind == "z-score"
    network = make_network(recipe)
    assert sum(p.numel() for p in network.parameters()) * 2 < 9e6  # bytes as float16
    assert all(side % network.card.multiple == 0 for side in recipe.protocol.patch)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"training.steps": 0}, r"training\.steps"),
        ({"data.foreground": 1.2}, r"data\.foreground"),
        ({"data.augmentation": {"rotate": 3}}, r"data\.augmentation\.rotate"),
        ({"protocol.intensity": {"kind": "percentile"}}, r"protocol\.intensity"),
        ({"protocol.regions": [{"channel": 1, "value": 1}]}, r"regions: give one region for each channel"),
        ({"protocol.regions": [{"channel": 0, "value": 1}]}, r"regions: give each its name, and the values"),
        ({"protocol.regions": [{"channel": 0, "value": 1, "name": "all", "values": [1]}]}, r"regions: give each its name"),
        ({"protocol.regions": REGIONS[::-1]}, "regions painted in this order make 1 of label 4"),
        ({"protocol.regions": REGIONS, "loss": {"background": True}, "protocol.structures": PARTS}, "regions have no background"),
        ({"protocol.structures": [{"value": 300, "name": "x"}], "protocol.regions": LARGE}, "values up to 255"),
        ({"data.mixing": {"kind": "mixup", "crops": 3}}, r"data\.mixing\.mixup\.crops"),
        ({"data.mixing": {"kind": "snapmix"}}, r"data\.mixing"),
        ({"data.mixing": {"kind": "cropmix", "scale": [0.5, 0.5]}}, r"scale from 0\.5 to 0\.5 is empty"),
        (
            {"data.mixing": {"kind": "cutmix", "slices": 0}, "protocol.patch": [16, 16], "protocol.spacing": [1, 1]},
            "is a slice already",
        ),
        ({"colour": "red"}, "colour"),
    ],
)
def test_fields_that_cannot_be_used_are_named(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=match):
        load_recipe(written(tmp_path, changes))


def test_recipes_that_are_not_there_and_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"no recipe 'hippo'.*hippocampus"):
        load_recipe("hippo")
    (tmp_path / "a.yaml").write_text("a: [")
    with pytest.raises(RequestError, match=r"a\.yaml is not YAML"):
        load_recipe(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RequestError, match=r"b\.yaml is not YAML: it is no text"):
        load_recipe(tmp_path / "b.yaml")


# A whole run -----------------------------------------------------------------------------------------------------


def trained(eggs: Path, folder: Path, **changes: Any) -> tuple[SegmentationNetwork, dict[str, Any]]:
    return run(Recipe.model_validate(changed(changes)), eggs, folder, accelerator="cpu")


def test_a_run_leaves_weights_that_load_with_their_protocol_and_record(eggs: Path, tmp_path: Path) -> None:
    network, facts = trained(eggs, tmp_path)
    assert facts["trained_on"] == ["egg_0", "egg_1", "egg_2", "egg_3"] and facts["validated_on"] == ["egg_4", "egg_5"]
    weights, record, log, curve = write_result(network, facts, tmp_path, "egg")

    loaded = load_model(weights, device="cpu")
    assert loaded.protocol == Recipe.model_validate(RECIPE).protocol
    assert loaded.card == network.card
    x = torch.randn(1, 1, 16, 18, 9)
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), network.cpu()(x), atol=2e-2, rtol=0)  # the file is float16
    checkpoint = read_checkpoint(weights)
    assert {value.dtype for value in checkpoint.state.values()} == {torch.float16}
    assert {"family": "swin_unetr", "recipe": "egg", "licence": "CC0-1.0"}.items() <= checkpoint.metadata.items()
    assert json.loads(checkpoint.metadata["protocol"])["structures"][1]["name"] == "Back"

    facts, rows = json.loads(record.read_text()), read_log(log)
    assert facts["weights_sha256"] == sha256_file(weights) and facts["weights_bytes"] == weights.stat().st_size
    assert facts["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert facts["result"] == {key: rows[-1][key] for key in ("step", "dice", "dice_front_of_egg", "dice_back")}
    assert facts["data_licence"] == "CC0-1.0" and facts["warnings"] == []
    with Image.open(curve) as picture:
        assert picture.format == "PNG" and picture.width > 500
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "egg.csv", "egg.json", "egg.png", "egg.safetensors", "last.pt", "log.csv", "previous.pt"
    ]  # fmt: skip


def test_it_learns(eggs: Path, tmp_path: Path) -> None:
    more = RECIPE["training"] | {"steps": 60, "validate_every": 60, "learning_rate": 0.01, "ema": 0.8}
    trained(eggs, tmp_path, training=more)
    rows = read_log(tmp_path / "log.csv")
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    assert rows[-1]["dice"] > 0.6


@pytest.fixture(scope="module")
def yolks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eggs with a yolk; white is 1 and yolk 4."""
    folder = tmp_path_factory.mktemp("data") / "yolks"
    place = np.stack(np.indices(SHAPE), -1)
    for number in range(3):
        rng = np.random.default_rng(number)
        far = np.sqrt((((place - np.array(SHAPE) / 2 - rng.uniform(-1, 1, 3)) / (5, 7, 5)) ** 2).sum(-1))
        labels = np.select([far < 0.6, far < 1], [4, 1]).astype(np.uint8)
        values = np.select([far < 0.6, far < 1], [2.0, 1.0]) + rng.normal(0, 0.1, SHAPE)
        write_case(folder, f"yolk_{number}", values.astype(np.float32), labels)
    splits = {"train": ["yolk_0", "yolk_1"], "val": ["yolk_2"]}
    (folder / "dataset.json").write_text(json.dumps({"splits": splits}))
    return folder


def test_overlapping_regions_are_learnt(yolks: Path, tmp_path: Path) -> None:
    more = RECIPE["training"] | {"steps": 60, "validate_every": 60, "learning_rate": 0.01, "ema": 0.8}
    changes = {"protocol.structures": PARTS, "protocol.regions": REGIONS, "training": more}
    network, facts = trained(yolks, tmp_path, **changes)
    assert facts["warnings"] == [] and network.card.out_channels == 2
    weights, record, *_ = write_result(network, facts, tmp_path, "egg")
    result = json.loads(record.read_text())["result"]
    assert set(result) == {"step", "dice", "dice_whole_egg", "dice_yolk"}
    assert result["dice_whole_egg"] > 0.8 and result["dice_yolk"] > 0.7
    loaded, (case,) = load_model(weights, device="cpu"), Folder.read(yolks).cases(["yolk_2"], network.protocol)
    found = predict(loaded, case.values, loaded.protocol)
    assert set(np.unique(found)) == {0, 1, 4}
    assert np.mean(found == case.labels) > 0.9


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "cropmix"])
def test_regions_of_mixed_samples_are_trained_too(kind: str, yolks: Path, tmp_path: Path) -> None:
    changes = {"protocol.structures": PARTS, "protocol.regions": REGIONS, "data.mixing": {"kind": kind, "probability": 1}}
    _, facts = trained(yolks, tmp_path, training=RECIPE["training"] | {"steps": 2}, **changes)
    assert facts["recipe"]["data"]["mixing"]["kind"] == kind
    assert np.isfinite([row["loss"] for row in read_log(tmp_path / "log.csv")]).all()


def test_deep_supervision_is_for_training_alone(eggs: Path, tmp_path: Path) -> None:
    options = {"features": [4, 8, 8, 8], "convolutions": 1, "decoder_convolutions": 1, "deep_supervision": True}
    changes = {"network.family": "neunet", "network.options": options}
    network, facts = trained(eggs, tmp_path, **changes)
    assert network.deep_supervision is False
    rest, _ = trained(eggs, tmp_path, **changes)  # nothing is left to train, nor to validate
    assert rest.deep_supervision is False
    weights, *_ = write_result(network, facts, tmp_path, "egg")
    loaded, (case,) = load_model(weights, device="cpu"), Folder.read(eggs).cases(["egg_4"], network.protocol)
    with torch.inference_mode():
        x = torch.from_numpy(case.values[None])
        assert loaded(x).shape == (1, 3, *SHAPE)
        torch.testing.assert_close(loaded(x), rest(x), atol=2e-2, rtol=2e-2)
    assert predict(loaded, case.values, loaded.protocol).shape == SHAPE
    start = torch.load(tmp_path / "previous.pt", weights_only=True)["network"]
    end = torch.load(tmp_path / "last.pt", weights_only=True)["network"]
    moved = {name for name in start if "heads" in name and name.endswith("weight") and not torch.equal(start[name], end[name])}
    assert len(moved) == 2  # full scale and half


def test_a_mixed_run_stopped_goes_on_to_the_same_weights(eggs: Path, tmp_path: Path) -> None:
    changes = {"data.mixing": {"kind": "mixup", "probability": 1, "alpha": 1}}
    constant = RECIPE["training"] | {"hold": 1.0}
    trained(eggs, tmp_path / "parts", training=constant | {"steps": 3}, **changes)
    resumed, _ = trained(eggs, tmp_path / "parts", training=constant, **changes)
    straight, _ = trained(eggs, tmp_path / "straight", training=constant, **changes)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_a_stopped_run_goes_on_to_the_same_weights(eggs: Path, tmp_path: Path) -> None:
    constant = RECIPE["training"] | {"hold": 1.0}
    first, _ = trained(eggs, tmp_path / "parts", training=constant | {"steps": 3})
    before = first.state_dict()["head.weight"].clone()
    straight, _ = trained(eggs, tmp_path / "straight", training=constant)
    resumed, _ = trained(eggs, tmp_path / "parts", training=constant)
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert not torch.equal(resumed.state_dict()["head.weight"], before)


def test_validation_on_some_of_the_cases(eggs: Path, tmp_path: Path) -> None:
    data = RECIPE["data"] | {"validate_on": 1}
    _, facts = trained(eggs, tmp_path, data=data, training=RECIPE["training"] | {"steps": 1})
    assert facts["validated_on"] == ["egg_4"]


def test_a_run_starts_from_weights_that_are_given(eggs: Path, tmp_path: Path) -> None:
    network, facts = trained(eggs, tmp_path / "first")
    weights, *_ = write_result(network, facts, tmp_path / "first", "egg")
    still = RECIPE["training"] | {"steps": 1, "learning_rate": 1e-9}
    three = [*RECIPE["protocol"]["structures"], {"value": 3, "name": "Yolk"}]
    begun, facts = trained(eggs, tmp_path / "next", training=still, start_from=str(weights), **{"protocol.structures": three})
    assert begun.card.out_channels == 4
    before, after = network.state_dict(), begun.state_dict()
    taken = [name for name in before if before[name].shape == after[name].shape]
    assert len(taken) == len(before) - 2
    for name in taken:
        torch.testing.assert_close(after[name], before[name], atol=2e-3, rtol=2e-3)  # the file is float16
    assert facts["started_from"]["sha256"] == sha256_file(weights)
    assert "2 initialised (head.weight, head.bias)" in facts["started_from"]["tensors"]


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"network.family": "swinn"}, RequestError, r"no family 'swinn'.*swin_unetr"),
        ({"network.options": {"width": 3}}, RequestError, r"options do not fit.*width.*network\.options"),
        ({"network.options": {"out_channels": 5, "feature_size": 12}}, RequestError, r"1 input and 5 output.*asks for 1 and 3"),
        ({"start_from": "none.safetensors"}, WeightsError, r"none\.safetensors"),
        ({"protocol.channels": ["T1w", "T2w"]}, InputError, "the network takes 2"),
    ],
)
def test_runs_that_cannot_start_say_why(
    changes: dict[str, Any], kind: type[Exception], match: str, eggs: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=match):
        trained(eggs, tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_the_command(eggs: Path, tmp_path: Path) -> None:
    app = Typer()
    app.command()(train_command)
    given = [str(written(tmp_path, {})), "--data", str(eggs), "-o", str(tmp_path / "out"), "--steps", "2", "--accelerator", "cpu"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    assert [Path(line).name for line in result.stdout.split()] == ["egg.safetensors", "egg.json", "egg.csv", "egg.png"]
    assert json.loads((tmp_path / "out" / "egg.json").read_text())["result"]["step"] == 2


# Real scans ------------------------------------------------------------------------------------------------------


def test_the_hippocampus_data_are_read_as_the_recipe_asks(shared: Path) -> None:
    folder = Folder.read(shared / "data" / "hippocampus")
    assert (len(folder.train), len(folder.val), set(folder.train) & set(folder.val)) == (180, 40, set())
    recipe = load_recipe("hippocampus")
    for case in folder.cases(folder.val[:4], recipe.protocol):
        assert abs(float(case.values.mean())) < 1e-3 and float(case.values.std()) == pytest.approx(1, abs=1e-3)
        assert set(np.unique(case.labels)) == {0, 1, 2}
        front, back = (np.argwhere(case.labels == value)[:, 1].mean() for value in (1, 2))
        assert front > back  # the anterior part lies in front: orientation is right
