"""Self-supervised pre-training: scans without labels, recipes, whole runs, and the encoder files that they leave."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from typer.testing import CliRunner

from hybrid.errors import InputError, RequestError, WeightsError
from hybrid.records import sha256_file
from hybrid.training.loop import read_log
from hybrid.weights.checkpoints import read_checkpoint
from medical.cli.app import app
from medical.loading import load_model
from medical.models import family
from medical.models.encoders import encoder_files
from medical.protocol import Protocol
from medical.training.pretext import PretextPart
from medical.training.pretraining import Recipe, load_recipe, make_network, run, write_result
from medical.training.unlabelled import Scans, find_scans
from tests.medical.pretraining_stubs import RECIPE, SHAPE, SMALL, egg, of, protocol, recipe, write_scan, written


@pytest.fixture(scope="module")
def eggs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "eggs"
    for number in range(5):
        write_scan(folder / f"site_{number % 2}" / f"egg_{number}.nii.gz", egg(number))
    return folder


# Scans -----------------------------------------------------------------------------------------------------------


def test_a_folder_is_searched_and_labels_are_no_scans(eggs: Path, tmp_path: Path) -> None:
    found, licence = find_scans(eggs)
    assert sorted(path.name for path in found) == [f"egg_{n}.nii.gz" for n in range(5)] and licence == "unknown"
    for name in ("a.nii", "deep/er/b.nii.gz", "labelsTr/a.nii", ".hidden/c.nii", "deep/.d.nii", "seg.nii.gz"):
        write_scan(tmp_path / name, egg(0))
    (tmp_path / "seg.labels.json").write_text("{}")  # as this package writes beside its label maps
    (tmp_path / "notes.txt").write_text("no scan")
    assert [str(path.relative_to(tmp_path)) for path in find_scans(tmp_path)[0]] == ["a.nii", "deep/er/b.nii.gz"]


def test_of_a_data_set_only_the_scans_of_its_train_split_are_opened(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_scan(tmp_path / "imagesTr" / f"{name}.nii.gz", egg(0))
    for other in ("imagesTr/three.nii.gz", "labelsTr/one.nii.gz", "labelsTr/two.nii.gz", "imagesTs/four.nii.gz"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_bytes(b"whoever opens this fails")
    (tmp_path / "dataset.json").write_text(json.dumps({"licence": "CC0", "splits": {"train": ["one", "two"], "val": ["three"]}}))
    _, facts = run(recipe(), tmp_path, tmp_path / "run", accelerator="cpu")
    assert facts["trained_on"] == ["one", "two"] and facts["data_licence"] == "CC0" and facts["left_out"] == {}


def test_scans_that_cannot_be_used_are_left_out_and_told(eggs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_scan(tmp_path / "good.nii", egg(0))
    write_scan(tmp_path / "empty.nii", np.zeros(SHAPE, np.float32))
    write_scan(tmp_path / "four.nii", np.stack([egg(0)] * 2, -1))
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing")
    with caplog.at_level(logging.WARNING):
        scans = Scans(find_scans(tmp_path)[0], protocol(), 10**9)
    assert scans.names == ["good"] and set(scans.left_out) == {"empty", "four", "broken"}
    assert "same" in scans.left_out["empty"] or "everywhere" in scans.left_out["empty"]
    assert "broken is left out" in caplog.text
    np.testing.assert_allclose(scans[0][0], (egg(0) - egg(0).mean()) / egg(0).std(), atol=1e-4)
    with pytest.raises(InputError, match=r"None of 1 scans can be used.*empty"):
        Scans([tmp_path / "empty.nii"], protocol(), 10**9)


def test_scans_for_which_there_is_no_room_are_read_again(eggs: Path) -> None:
    paths, _ = find_scans(eggs)
    bytes_of_one = 4 * int(np.prod(SHAPE))
    kept, some, none = (Scans(paths, protocol(), room) for room in (10**9, 2 * bytes_of_one, 0))
    for number in range(len(paths)):
        np.testing.assert_array_equal(kept[number], some[number])
        np.testing.assert_array_equal(kept[number], none[number])
    assert [sum(scans[n] is scans[n] for n in range(5)) for scans in (kept, some, none)] == [5, 2, 0]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda folder: folder / "absent", "no folder"),
        (lambda folder: folder, r"holds no NIfTI file.*\.nii\.gz"),
        (lambda folder: (folder / "dataset.json").write_text("{}") and folder, "splits"),
    ],
)
def test_folders_without_scans(make: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=match):
        find_scans(make(tmp_path))


# Recipes ---------------------------------------------------------------------------------------------------------


def test_the_shipped_recipe_trains_the_encoder_of_a_shipped_recipe() -> None:
    from medical.training.run import load_recipe as load_training

    chosen, training = load_recipe("pretrain-hippocampus"), load_training("hippocampus-swin")
    same = ("modality", "channels", "orientation", "spacing", "intensity", "patch")
    assert chosen.network == training.network
    assert all(getattr(chosen.protocol, field) == getattr(training.protocol, field) for field in same)
    defaults = PretextPart(plane=(0, 2))
    assert chosen.pretext == defaults  # as published, but for the plane


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"protocol__patch": [16, 16, 8]}, r"16 and 8 voxels long along the axes 1 and 2.*pretext\.plane"),
        ({"pretext__plane": [1, 1]}, "a plane has two axes"),
        ({"pretext__box": [0.3, 0.2]}, "boxes cannot have sides from 0.3 to 0.2"),
        ({"pretext__cut_out": 0}, r"pretext\.cut_out"),
        ({"training__batch": 1}, "batch must be 2 at least"),
        ({"protocol__structures": [{"value": 1, "name": "Egg"}]}, "no use for structures"),
        ({"loss": {}}, "loss: Extra inputs"),
    ],
)
def test_fields_that_cannot_be_used_are_named(changes: dict[str, Any], match: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(written(changes)))
    with pytest.raises(RequestError, match=match):
        load_recipe(tmp_path / "r.yaml")


def test_recipes_of_trainings_are_told_apart() -> None:
    with pytest.raises(RequestError, match="names no pretext tasks.*medical train"):
        load_recipe("hippocampus")


@pytest.mark.parametrize(
    ("changes", "kind", "match"),
    [
        ({"network": {"family": "neunet"}}, RequestError, r"no pre-training for 'neunet'.*swin_unetr, cswin_unet"),
        ({"network__options": {"width": 3}}, RequestError, r"options do not fit.*width"),
        ({"network__options": SMALL["swin 2-D"][1]}, RequestError, r"1 channels of 2 axes; the protocol has 1 of 3"),
        ({"protocol__patch": [12, 12, 12]}, RequestError, r"no whole grid of 12 x 12 x 12 voxels.*16 x 16 x 16"),
        ({"data__held_out": 5}, InputError, "holds 5 scans, of which data.held_out takes 5"),
        ({"start_from": "none.safetensors"}, WeightsError, r"none\.safetensors"),
    ],
)
def test_runs_that_cannot_start_say_why(
    changes: dict[str, Any], kind: type[Exception], match: str, eggs: Path, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=match):
        run(recipe(**changes), eggs, tmp_path / "run", accelerator="cpu")
    assert not (tmp_path / "run").exists()


# Whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SMALL)
def test_the_file_holds_the_whole_encoder_under_published_names(kind: str, eggs: Path, tmp_path: Path) -> None:
    chosen = of(kind, name="encoder")
    network, facts = run(chosen, eggs, tmp_path, accelerator="cpu")
    weights, record, log, curve = write_result(network, facts, tmp_path, "encoder")
    trained = network.get_submodule("encoder").state_dict()
    initial = make_network(chosen).get_submodule("encoder").state_dict()
    moved = [name for name in trained if not torch.equal(trained[name].cpu(), initial[name])]
    skips = [name for name in trained if "skip_norms" in name]
    averaged = torch.load(tmp_path / "last.pt", weights_only=True)["average"]
    assert all(torch.equal(averaged["encoder." + name], tensor.cpu()) for name, tensor in trained.items())
    assert sorted({*moved, *skips}) == sorted(trained) and not {*moved} & {*skips}

    torch.manual_seed(7)
    whole = family(chosen.network.family).create(in_channels=1, out_channels=5, **chosen.network.options)
    files = encoder_files(chosen.network.family)
    assert files is not None and files.load(whole, weights) == len(trained)  # strictly: every tensor, and no other
    for name, tensor in whole.get_submodule("encoder").state_dict().items():
        assert torch.equal(tensor, trained[name].cpu()), name
    checkpoint = read_checkpoint(weights)
    assert len(checkpoint.state) == len(trained)
    published = {"swin_unetr": "swinViT.patch_embed.proj.weight", "cswin_unet": "stage1_conv_embed.0.weight"}
    assert published[chosen.network.family] in checkpoint.state
    header = checkpoint.metadata
    assert header["part"] == "encoder" and header["recipe"] == "encoder" and header["licence"] == "CC0-1.0"
    assert Protocol.model_validate_json(header["protocol"]) == chosen.protocol and not chosen.protocol.structures
    with pytest.raises(WeightsError, match="with which a training can begin"):
        load_model(weights, device="cpu")

    told, rows = json.loads(record.read_text()), read_log(log)
    assert told["weights_sha256"] == sha256_file(weights) and told["data_licence"] == "unknown"
    assert told["trained_on"] == [f"egg_{n}" for n in (0, 2, 4, 1, 3)] and "trained on" in told["validated_on"]
    assert told["parameters"] == sum(tensor.numel() for tensor in trained.values())
    assert told["result"]["step"] == 2 and set(told["result"]) > {"rotation_accuracy", "pair_accuracy", "in_painting"}
    assert Recipe.model_validate(told["recipe"]) == chosen
    assert rows[-1]["rotation_loss"] + rows[-1]["contrastive_loss"] + rows[-1]["reconstruction_loss"] > 0
    with Image.open(curve) as picture:
        assert picture.format == "PNG"


def test_it_learns_on_a_tiny_set(eggs: Path, tmp_path: Path) -> None:
    more = {"steps": 50, "batch": 4, "learning_rate": 0.01, "ema": 0.8, "validate_every": 50, "log_every": 50}
    run(recipe(training=more, data={"validate_on": 16}), eggs, tmp_path / "run", accelerator="cpu")
    run(recipe(training=more | {"steps": 1}, data={"validate_on": 16}), eggs, tmp_path / "begun", accelerator="cpu")
    begun, last = read_log(tmp_path / "begun" / "log.csv")[-1], read_log(tmp_path / "run" / "log.csv")[-1]
    assert last["reconstruction_loss"] < 0.75 * begun["reconstruction_loss"]
    assert last["in_painting"] < 0.9 * begun["in_painting"]
    assert last["mean_value"] == begun["mean_value"]  # the same crops each time
    assert last["rotation_loss"] < 0.8 * begun["rotation_loss"]


def test_a_stopped_run_goes_on_to_the_same_weights(eggs: Path, tmp_path: Path) -> None:
    settings = RECIPE["training"] | {"hold": 1.0, "validate_every": 1}
    run(recipe(training=settings | {"steps": 1}), eggs, tmp_path / "parts", accelerator="cpu")
    resumed, _ = run(recipe(training=settings), eggs, tmp_path / "parts", accelerator="cpu")
    straight, _ = run(recipe(training=settings), eggs, tmp_path / "straight", accelerator="cpu")
    for (name, a), b in zip(straight.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_scans_are_held_out_by_the_seed(eggs: Path, tmp_path: Path) -> None:
    one = {"training__steps": 1, "data__held_out": 2}
    _, facts = run(recipe(**one), eggs, tmp_path / "a", accelerator="cpu")
    assert len(facts["trained_on"]) == 3 and len(facts["validated_on"]) == 2
    assert sorted(facts["trained_on"] + facts["validated_on"]) == [f"egg_{n}" for n in range(5)]


def test_learned_weights_are_trained(eggs: Path, tmp_path: Path) -> None:
    run(recipe(pretext={"embedding": 8, "weights": "learned"}), eggs, tmp_path / "run", accelerator="cpu")
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["network"]
    assert "uncertainty" in state and not torch.equal(state["uncertainty"], torch.ones(3))


def test_the_commands_from_scans_to_a_network(eggs: Path, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(written({})))
    given = ["pretrain", str(tmp_path / "r.yaml"), "--data", str(eggs), "-o", str(tmp_path / "out"), "--accelerator", "cpu"]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    names = [Path(line).name for line in result.stdout.split("\n") if line.endswith((".safetensors", ".json", ".csv", ".png"))]
    assert names == ["egg-encoder.safetensors", "egg-encoder.json", "egg-encoder.csv", "egg-encoder.png"]
    assert "5 scans to train on, none held out" in result.stderr


# Real scans ------------------------------------------------------------------------------------------------------


def test_the_hippocampus_scans_are_those_of_the_train_split(shared: Path) -> None:
    found, licence = find_scans(shared / "data" / "hippocampus")
    assert len(found) == 180 and "CC-BY-SA" in licence and {path.parent.name for path in found} == {"imagesTr"}
