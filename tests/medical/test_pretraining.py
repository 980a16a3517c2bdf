"""Self-supervised pre-training: views, heads, losses, scans without labels, whole runs, and the encoder files that they leave."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from typer.testing import CliRunner

from hybrid.errors import InputError, RequestError, WeightsError
from hybrid.records import sha256_file
from hybrid.training.loop import read_log
from hybrid.weights.checkpoints import read_checkpoint
from medical.cli.app import app
from medical.loading import load_model
from medical.models import family
from medical.models.encoders import encoder_files
from medical.models.swin_unetr import Encoder, SwinUNETRConfig
from medical.protocol import Protocol
from medical.training.pretext import PretextPart, Views, boxes, turned
from medical.training.pretraining import Recipe, load_recipe, make_network, run, write_result
from medical.training.pretraining_network import Answers, PretextLoss, PretrainingNetwork, contrastive_loss
from medical.training.unlabelled import Scans, find_scans

SMALL = {
    "swin 3-D": ("swin_unetr", {"feature_size": 4, "depths": [1, 1], "num_heads": [1, 2], "window": 2, "merging": "v2"}),
    "swin 2-D": ("swin_unetr", {"spatial_dims": 2, "feature_size": 4, "depths": [1, 1], "num_heads": [1, 2], "window": 2}),
    "cswin 3-D": (
        "cswin_unet",
        {
            "spatial_dims": 3, "embed_dim": 6, "depths": [1, 1], "num_heads": [3, 3], "split_size": [1, 2], "patch": [2, 2, 1],
            "strides": [[2, 2, 2]], "image_features": 4,
        },
    ),
    "cswin 2-D": (
        "cswin_unet",
        {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "split_size": [1, 2], "patch": [4, 4]},
    ),
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "name": "egg-encoder",
    "licence": "CC0-1.0",
    "network": {"family": SMALL["swin 3-D"][0], "options": SMALL["swin 3-D"][1]},
    "protocol": {
        "modality": "MR", "channels": ["T1w"], "spacing": [1, 1, 1], "intensity": {"kind": "z-score"}, "patch": [16, 16, 16],
    },
    "pretext": {"embedding": 8},
    "data": {"validate_on": 4},
    "training": {"steps": 2, "batch": 2, "learning_rate": 0.003, "log_every": 1, "validate_every": 2},
}  # fmt: skip
SHAPE = (18, 20, 17)


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(written(changes))


def written(changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe with some fields replaced; `a__b` is field b of part a."""
    whole = json.loads(json.dumps(RECIPE))
    for place, value in changes.items():
        part, _, name = place.rpartition("__")
        (whole[part] if part else whole)[name] = value
    return whole


def of(kind: str, **changes: Any) -> Recipe:
    """The recipe of one of the small networks."""
    patch = {"protocol__patch": [16, 16], "protocol__spacing": [1, 1]} if "2-D" in kind else {}
    name, options = SMALL[kind]
    return recipe(network={"family": name, "options": options}, **patch, **changes)


def protocol(**changes: Any) -> Protocol:
    return Protocol.model_validate(RECIPE["protocol"] | {"structures": ()} | changes)


def egg(seed: int) -> np.ndarray:
    """A bright egg with a dark spot in front and on top, in noise."""
    rng = np.random.default_rng(seed)
    place = np.stack(np.indices(SHAPE), -1) - (np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3))
    spot = ((place - [0, 3, 2]) ** 2).sum(-1) < 6
    return ((((place / [5, 7, 5]) ** 2).sum(-1) < 1) * (2.0 - spot) + rng.normal(0, 0.1, SHAPE)).astype(np.float32)


def write_scan(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, np.eye(4)), path)


@pytest.fixture(scope="module")
def eggs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "eggs"
    for number in range(5):
        write_scan(folder / f"site_{number % 2}" / f"egg_{number}.nii.gz", egg(number))
    return folder


# Views -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plane", [(1, 2), (0, 2), (0, 1)])
def test_views_are_turned_by_what_their_labels_say(plane: tuple[int, int]) -> None:
    """The scans are as large as the patch, so that a crop is the whole scan; judged by numpy's and torch's own rotation."""
    scan = np.random.default_rng(0).random((1, 8, 8, 8), np.float32)
    views = Views([scan], protocol(patch=(8, 8, 8)), PretextPart(plane=plane))
    seen = set()
    for seed in range(20):
        shown, target = views(np.random.default_rng(seed))
        assert shown.shape == (2, 1, 8, 8, 8) and target.shape == (2, 2, 8, 8, 8) and shown.dtype == target.dtype == np.float32
        for view, (whole, label) in zip(shown[:, 0], target, strict=True):
            (turns,) = np.unique(label)
            np.testing.assert_array_equal(whole, np.rot90(scan[0], int(turns), plane))
            np.testing.assert_array_equal(whole, torch.rot90(torch.from_numpy(scan[0]), int(turns), plane).numpy())
            assert 0.4 < np.mean(view == whole) < 1  # something was cut out, and most is there
            seen.add(int(turns))
        assert not np.array_equal(shown[0], shown[1])
    assert seen == {0, 1, 2, 3}


def test_published_plane_is_of_the_last_two_axes_of_volumes_and_slices() -> None:
    assert PretextPart().turning(protocol()) == (1, 2)
    assert PretextPart().turning(protocol(patch=(16, 16), spacing=None)) == (0, 1)


def test_boxes_cover_a_uniform_share_and_have_the_published_sides() -> None:
    shape, pretext, rng = (40, 60, 20), PretextPart(), np.random.default_rng(0)
    shares = np.array([boxes(shape, pretext, rng).mean() for _ in range(400)])
    largest = (0.25**3, 0.25**3 * 1.2)
    assert 0 < shares.min() < 0.01 and 0.28 < shares.max() < 0.3 + largest[1]
    assert shares.mean() == pytest.approx(0.15 + 0.15**3 / 2, abs=0.012)  # of a uniform share, and half a box beyond
    assert np.quantile(shares, [0.25, 0.5, 0.75]) == pytest.approx([0.075, 0.15, 0.225], abs=0.03)
    sides = []
    for _ in range(400):
        places = np.argwhere(boxes(shape, PretextPart(cut_out=1e-9), rng))  # one box
        first, last = places.min(0), places.max(0) + 1
        assert len(places) == np.prod(last - first)
        sides.append((last - first) / shape)
    low, high = np.min(sides, 0), np.max(sides, 0)
    assert low == pytest.approx([0.05] * 3, abs=0.025) and high == pytest.approx([0.25] * 3, abs=0.025)
    assert np.mean(sides) == pytest.approx(0.15, abs=0.01)


@pytest.mark.parametrize("window", [True, False])
def test_boxes_are_filled_with_noise_and_then_with_another_sample(window: bool) -> None:
    """Two scans that can be told apart by their values, and both from noise."""
    rng = np.random.default_rng(1)
    low, high = (0, 1) if window else (-3, 5)
    places = np.arange(12**3, dtype=np.float32).reshape(1, 12, 12, 12) / 12**3
    scans = [low + (high - low) * places, 100 + places]
    intensity = {"kind": "window", "low": 0, "high": 1} if window else {"kind": "z-score"}
    views = Views(scans, protocol(patch=(12, 12, 12), intensity=intensity), PretextPart())
    noises, others = [], 0
    for _ in range(30):
        shown, target = views(rng)
        for view, whole in zip(shown[:, 0], target[:, 0], strict=True):
            if whole.min() >= 100:
                continue
            other = view >= 100
            np.testing.assert_array_equal(view[other], scans[1][0][other])  # in its place, and not turned
            others += int(other.sum())
            noises.append(view[(view != whole) & ~other])
    noise = np.concatenate(noises)
    assert others > 1000 and len(noise) > 5000
    assert low <= noise.min() < low + 0.15 * (high - low) and high - 0.15 * (high - low) < noise.max() <= high
    assert noise.mean() == pytest.approx((low + high) / 2, abs=0.05 * (high - low))
    assert 0.1 < noise.std() / (high - low) < 0.2  # a normal distribution between its extremes


def test_the_other_sample_lies_over_the_noise() -> None:
    """Where both are drawn, with large shares, so that they meet often: 0.45 of the other sample, 0.45 * 0.55 of noise left."""
    places = np.random.default_rng(0).random((1, 12, 12, 12), np.float32)
    intensity = {"kind": "window", "low": 0, "high": 1}
    views = Views([places, 100 + places], protocol(patch=(12, 12, 12), intensity=intensity), PretextPart(cut_out=0.9))
    pairs = [views(np.random.default_rng(seed)) for seed in range(200)]
    shown, whole = (np.stack(side)[:, :, 0] for side in zip(*pairs, strict=True))
    mixed = (whole.max((2, 3, 4)) < 100) & (shown.max((2, 3, 4)) >= 100)  # views of one scan with the other in it
    other, noise = shown[mixed] >= 100, (shown[mixed] != whole[mixed]) & (shown[mixed] < 100)
    assert other.mean() == pytest.approx(0.46, abs=0.05) and noise.mean() == pytest.approx(0.25, abs=0.04)


def test_crops_of_air_are_drawn_again_and_scans_smaller_than_the_patch_are_filled_up() -> None:
    scan = np.zeros((1, 6, 60, 60), np.float32)
    scan[:, :, :30] = np.random.default_rng(0).random((1, 6, 30, 60), np.float32) + 1
    views = Views([scan], protocol(patch=(8, 8, 8)), PretextPart())
    wholes = [views(np.random.default_rng(seed))[1][:, 0] for seed in range(40)]
    assert all(whole.max() > 0 for pair in wholes for whole in pair)
    assert all((whole == 0).mean() >= 0.25 for pair in wholes for whole in pair)


def test_views_are_a_function_of_the_generator() -> None:
    views = Views([egg(0)[None], egg(1)[None]], protocol(), PretextPart())
    once, again, other = (views(np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert all(np.array_equal(a, b) for a, b in zip(once, again, strict=True)) and not np.array_equal(once[0], other[0])


def test_turning_an_axis_of_several_channels() -> None:
    values = np.random.default_rng(0).random((3, 4, 5, 5))
    for turns in range(4):
        np.testing.assert_array_equal(turned(values, turns, (1, 2)), np.stack([np.rot90(v, turns, (1, 2)) for v in values]))


# Losses ----------------------------------------------------------------------------------------------------------


def test_contrastive_loss_against_its_definition() -> None:
    """Equation 1 of SimCLR, in plain loops: each view against all 2N - 1 others."""
    rng = np.random.default_rng(0)
    pairs, temperature = rng.normal(size=(5, 2, 7)), 0.5
    views = [(n, v) for n in range(5) for v in range(2)]

    def like(a: tuple[int, int], b: tuple[int, int]) -> float:
        x, y = pairs[a], pairs[b]
        return float(np.exp(x @ y / np.linalg.norm(x) / np.linalg.norm(y) / temperature))

    rest = {view: sum(like(view, other) for other in views if other != view) for view in views}
    losses = [-np.log(like((n, v), (n, 1 - v)) / rest[n, v]) for n, v in views]
    assert float(contrastive_loss(torch.from_numpy(pairs), temperature)) == pytest.approx(np.mean(losses), rel=1e-5)


def answers_and_target(seed: int = 0) -> tuple[Answers, Tensor, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    whole, turns = rng.normal(size=(3, 2, 1, 4, 4, 4)), rng.integers(0, 4, (3, 2))
    label = np.broadcast_to(turns[:, :, None, None, None, None], whole.shape)
    given = Answers(
        torch.from_numpy(rng.normal(size=(3, 2, 4))),
        torch.from_numpy(rng.normal(size=(3, 2, 6))),
        torch.from_numpy(rng.normal(size=whole.shape)),
        torch.tensor([0.5, 1.0, 2.0]),
    )
    return given, torch.from_numpy(np.concatenate([whole, label], 2)).float(), whole, turns


def test_rotation_and_reconstruction_losses_and_their_weights() -> None:
    given, target, whole, turns = answers_and_target()
    logits = given.rotation.numpy()
    chosen = np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), turns[..., None], -1)
    errors = np.abs(given.reconstruction.numpy() - whole)
    expected = [-chosen.mean(), float(contrastive_loss(given.embedding, 0.5)), errors.mean()]
    plain = PretextLoss(PretextPart())
    assert [float(term) for term in plain.terms(given, target)] == pytest.approx(expected, rel=1e-5)
    assert float(plain(given, target)) == pytest.approx(sum(expected), rel=1e-5)  # 1 : 1 : 1
    weights = {"rotation": 0.0, "contrastive": 2.0, "reconstruction": 3.0}
    weighted = PretextLoss(PretextPart.model_validate({"weights": weights}))
    assert float(weighted(given, target)) == pytest.approx(2 * expected[1] + 3 * expected[2], rel=1e-5)
    learned = PretextLoss(PretextPart(weights="learned"))
    sigmas = [0.5, 1.0, 2.0]
    balanced = sum(0.5 / s**2 * term + np.log(1 + s**2) for s, term in zip(sigmas, expected, strict=True))
    assert float(learned(given, target)) == pytest.approx(balanced, rel=1e-5)


# Heads -----------------------------------------------------------------------------------------------------------


def test_published_widths() -> None:
    """Of the published encoder, with 48 features: 768-384-192-96-48-48 and a projection, 4 turns, 512 numbers."""
    network = PretrainingNetwork(Encoder(SwinUNETRConfig(feature_size=48)), 1, (64, 32, 32), PretextPart())
    with torch.inference_mode():
        answers = network(torch.zeros(1, 2, 1, 64, 32, 32))
    widths = [(step.in_channels, step.out_channels) for step in network.reconstruction.steps]  # type: ignore[union-attr]
    assert widths == [(768, 384), (384, 192), (192, 96), (96, 48), (48, 48)]
    assert network.reconstruction.strides == [(2, 2, 2)] * 5
    assert network.rotation.weight.shape == (4, 768) and network.embedding.weight.shape == (512, 768)
    assert [tuple(answer.shape) for answer in answers[:3]] == [(1, 2, 4), (1, 2, 512), (1, 2, 1, 64, 32, 32)]


@pytest.mark.parametrize("kind", SMALL)
def test_heads_read_the_last_grid(kind: str) -> None:
    chosen = of(kind)
    network = PretrainingNetwork(make_network(chosen).get_submodule("encoder"), 1, chosen.protocol.patch, chosen.pretext).eval()
    views = torch.randn(3, 2, 1, *chosen.protocol.patch)
    with torch.inference_mode():
        answers = network(views)
        first = (0,) * chosen.protocol.spatial_dims
        second = (*first[:-1], 1)
        for n, v in [(0, 0), (2, 1)]:
            grid = network.encoder(views[n, v][None])[-1][0]
            torch.testing.assert_close(answers.rotation[n, v], network.rotation(grid[(slice(None), *first)]))
            torch.testing.assert_close(answers.embedding[n, v], network.embedding(grid[(slice(None), *second)]))
    assert answers.reconstruction.shape == views.shape


def test_the_decoder_as_it_is_published() -> None:
    """Step by step with torch's own layers, the projection last."""
    chosen = of("swin 3-D")
    network = PretrainingNetwork(make_network(chosen).get_submodule("encoder"), 1, (16, 16, 16), chosen.pretext).eval()
    grid = x = torch.randn(2, 16, 2, 2, 2)
    with torch.inference_mode():
        for step in network.reconstruction.steps:
            assert isinstance(step, nn.Conv3d)
            x = F.leaky_relu(F.instance_norm(step(x)), 0.01)
            x = F.interpolate(x, scale_factor=2, mode="trilinear", align_corners=False)
        x = network.reconstruction.head(x)
        torch.testing.assert_close(network.reconstruction(grid), x, atol=1e-5, rtol=1e-4)


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
