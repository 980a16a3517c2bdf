"""Training of segmentation networks: recipes, cases, patches, loss, held-out Dice, and a whole run with what it leaves."""

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
from torch import Tensor
from typer import Typer
from typer.testing import CliRunner

from hybrid.errors import InputError, RequestError, WeightsError
from hybrid.records import sha256_file
from hybrid.training.loop import read_log
from hybrid.weights.checkpoints import read_checkpoint
from medical.cli.train import train as train_command
from medical.loading import load_model
from medical.models.base import SegmentationCard, SegmentationNetwork
from medical.protocol import Protocol
from medical.training.cases import Case, Folder, Patches, cut, make_case
from medical.training.run import HeldOut, LossPart, Recipe, load_recipe, make_network, predict, run, write_result
from medical.training.transforms import Augment, Augmentation
from medical.volumes.geometry import Grid
from medical.volumes.volume import read_volume

RECIPE: dict[str, Any] = {
    "name": "egg",
    "licence": "CC0-1.0",
    "network": {
        "family": "swin_unetr",
        "options": {"feature_size": 4, "depths": [1, 1], "num_heads": [1, 2], "window": 2, "merging": "v2"},
    },
    "protocol": {
        "modality": "MR", "channels": ["T1w"], "spacing": [1, 1, 1], "intensity": {"kind": "z-score"}, "patch": [16, 16, 8],
        "mirror": [0],
        "structures": [{"value": 1, "name": "Front of egg"}, {"value": 2, "name": "Back"}],
    },
    "data": {"foreground": 0.5, "augmentation": {"spatial": 0.3, "rotation": 10, "intensity": 0.3, "noise": 0.05}},
    "training": {"steps": 6, "batch": 2, "learning_rate": 0.003, "log_every": 2, "validate_every": 3},
}  # fmt: skip
PARTS = [{"value": 1, "name": "White"}, {"value": 4, "name": "Yolk"}]
REGIONS = [
    {"channel": 1, "value": 1, "name": "Whole egg", "values": [1, 4]},
    {"channel": 0, "value": 4, "name": "Yolk", "values": [4]},
]
LARGE = [{"channel": 0, "value": 300, "name": "x", "values": [300]}]
SHAPE = (14, 18, 12)


def egg(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A bright egg in noise, of any intensity scale, and its labels: the front half 1, the back half 2."""
    rng = np.random.default_rng(seed)
    centre, radii = np.array(SHAPE) / 2 + rng.uniform(-1, 1, 3), np.array([4, 6, 4]) + rng.uniform(-0.5, 0.5, 3)
    place = np.stack(np.indices(SHAPE), -1) - centre
    inside = ((place / radii) ** 2).sum(-1) < 1
    labels = np.where(inside, np.where(place[..., 1] > 0, 1, 2), 0).astype(np.uint8)
    return ((inside * (2.0 - labels * 0.4) + rng.normal(0, 0.1, SHAPE) + 1) * 10.0 ** (seed % 4)).astype(np.float32), labels


def write_case(folder: Path, name: str, values: np.ndarray, labels: np.ndarray, affine: np.ndarray | None = None) -> None:
    for part, array in (("imagesTr", values), ("labelsTr", labels)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array, np.eye(4) if affine is None else affine), folder / part / f"{name}.nii.gz")


@pytest.fixture(scope="module")
def eggs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "eggs"
    names = [f"egg_{number}" for number in range(6)]
    for number, name in enumerate(names):
        write_case(folder, name, *egg(number))
    described = {"name": "Eggs", "licence": "CC0-1.0", "splits": {"train": names[:4], "val": names[4:]}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def changed(changes: dict[str, Any]) -> dict[str, Any]:
    """The recipe with some fields replaced; `a.b` is field b of part a."""
    recipe = json.loads(json.dumps(RECIPE))
    for place, value in changes.items():
        part = recipe
        *parents, last = place.split(".")
        for name in parents:
            part = part[name]
        part[last] = value
    return recipe


def written(folder: Path, changes: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(changed(changes)))
    return path


def protocol(**changes: Any) -> Protocol:
    return Protocol.model_validate(RECIPE["protocol"] | changes)


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


# Data ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (None, r"holds no dataset\.json.*--data"),
        ("{", r"lists no cases under splits"),
        ('{"splits": {"train": ["a"]}}', r"lists no cases under splits.*Add"),
        ('{"splits": {"train": ["a"], "val": []}}', "no case in one of the splits"),
        ('{"splits": {"train": ["a", "b"], "val": ["b"]}}', "b is in both splits"),
    ],
)
def test_folders_that_are_no_data_set_say_why(text: str | None, match: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match=match):
        Folder.read(tmp_path)


def test_a_case_is_brought_to_the_protocol_however_it_is_stored(tmp_path: Path) -> None:
    values, labels = egg(1)
    write_case(tmp_path, "plain", values, labels)
    stored = [np.ascontiguousarray(a.transpose(2, 0, 1)[::-1, ::-1]) for a in (values, labels)]  # I L A, as one finds them
    affine = np.zeros((4, 4))
    affine[2, 0], affine[0, 1], affine[1, 2], affine[3, 3] = -1, -1, 1, 1
    write_case(tmp_path, "turned", *stored, affine)
    cases = Folder(tmp_path, (), (), "").cases(["plain", "turned"], protocol())
    for case in cases:
        np.testing.assert_array_equal(case.labels, labels)
        np.testing.assert_allclose(case.values[0], (values - values.mean()) / values.std(), atol=1e-4)
        assert case.grid.codes == "RAS" and case.values.dtype == np.float32 and case.labels.dtype == np.uint8


def test_another_spacing_resamples_scan_and_labels_alike(tmp_path: Path) -> None:
    values, labels = egg(0)
    write_case(tmp_path, "a", values, labels, np.diag([2.0, 1, 1, 1]))
    (case,) = Folder(tmp_path, (), (), "").cases(["a"], protocol())
    assert case.labels.shape == case.values.shape[1:] == (28, 18, 12) and case.grid.spacing == pytest.approx((1, 1, 1))
    assert case.labels.sum() == pytest.approx(2 * labels.sum(), rel=0.05)
    assert set(np.unique(case.labels)) == {0, 1, 2}
    inside = case.values[0][case.labels > 0].mean(), case.values[0][case.labels == 0].mean()
    assert inside[0] > 1 > 0 > inside[1]


def test_values_of_no_structure_become_background_and_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    values, labels = egg(2)
    strange = labels.astype(np.int16)
    strange[0, 0, 0], strange[1, 0, :2] = -3, 7
    write_case(tmp_path, "a", values, strange)
    with caplog.at_level(logging.WARNING):
        (case,) = Folder(tmp_path, (), (), "").cases(["a"], protocol())
    np.testing.assert_array_equal(case.labels, labels)
    assert case.warnings == ("3 voxels with values of no structure (-3, 7) are taken as background",)
    assert "a: 3 voxels" in caplog.text


def test_cases_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    values, labels = egg(0)
    write_case(tmp_path, "good", values, labels)
    write_case(tmp_path, "shifted", values, labels, np.diag([1.0, 1, 1.5, 1]))
    write_case(tmp_path, "soft", values, labels * 0.5)
    scan, far, soft = (
        read_volume(tmp_path / place) for place in ("imagesTr/good.nii.gz", "labelsTr/shifted.nii.gz", "labelsTr/soft.nii.gz")
    )
    with pytest.raises(InputError, match="label map of good does not lie on the grid"):
        make_case("good", scan, far, protocol())
    with pytest.raises(InputError, match="between whole numbers"):
        make_case("soft", scan, soft, protocol())
    with pytest.raises(InputError, match="no scan and label map of absent"):
        Folder(tmp_path, (), (), "").cases(["absent"], protocol())


# Patches ---------------------------------------------------------------------------------------------------------


def case_of(shape: tuple[int, int, int], seed: int = 0) -> Case:
    """A case whose values tell the place of each voxel, with two small structures."""
    values = (np.arange(np.prod(shape), dtype=np.float32) + 1).reshape(1, *shape)
    labels = np.zeros(shape, np.uint8)
    labels[-2:, -3:, -1:], labels[1, 1, 1] = 1, 2
    return Case(f"case {seed}", values, labels, Grid(shape, np.eye(4)))


def drawn(shape: tuple[int, int, int], patch: tuple[int, int, int], foreground: float, count: int = 60) -> list:
    patches = Patches([case_of(shape)], patch, foreground, Augment(Augmentation(), ()))
    return [patches(np.random.default_rng([3, number])) for number in range(count)]


@pytest.mark.parametrize("foreground", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("patch", [(4, 4, 4), (12, 4, 4), (12, 12, 14)])
def test_patches_are_parts_of_the_scan_with_zeros_around(patch: tuple[int, int, int], foreground: float) -> None:
    shape = (10, 11, 12)
    case = case_of(shape)
    starts = set()
    for values, labels in drawn(shape, patch, foreground):
        assert values.shape == labels.shape == (1, *patch)
        inside = values[0] > 0
        assert inside.sum() == np.prod(np.minimum(shape, patch))  # never more outside than must be
        index = np.unravel_index(values[0][inside].astype(int) - 1, shape)
        np.testing.assert_array_equal(labels[0][inside], case.labels[index])
        assert (labels[0][~inside] == 0).all()
        first = tuple(int(i[0]) for i in np.nonzero(inside))
        starts.add((first, tuple(int(i[0]) for i in index)))
        # All of it is one box, moved as a whole.
        moved = np.argwhere(inside) - np.array(first) + [i[0] for i in index]
        np.testing.assert_array_equal(moved, np.stack(index, -1))
    assert len(starts) >= 3


def test_the_share_of_patches_on_structures() -> None:
    def share(foreground: float) -> tuple[float, float]:
        found = drawn((30, 30, 30), (4, 4, 4), foreground, 200)
        return tuple(float(np.mean([(y == value).any() for _, y in found])) for value in (1, 2))  # type: ignore[return-value]

    assert max(share(0.0)) < 0.1
    assert all(0.4 < part < 0.6 for part in share(1.0))  # in equal parts, though one is six times as large
    assert all(0.12 < part < 0.4 for part in share(0.5))


def test_a_case_without_structures_is_drawn_from_too() -> None:
    case = case_of((10, 11, 12))
    empty = Case("empty", case.values, np.zeros_like(case.labels), case.grid)
    values, labels = Patches([empty], (4, 4, 4), 1.0, Augment(Augmentation(), ()))(np.random.default_rng(0))
    assert (values > 0).all() and not labels.any()


def test_a_patch_that_lies_partly_outside() -> None:
    array = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    padded = np.pad(array, [(0, 0), (2, 9), (2, 9), (2, 9)])
    for start in [(0, 0, 0), (-2, 1, -1), (2, -1, 3)]:
        i, j, k = (first + 2 for first in start)
        np.testing.assert_array_equal(cut(array, np.array(start), (3, 5, 4)), padded[:, i : i + 3, j : j + 5, k : k + 4])


# Loss and validation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("background", [False, True])
def test_the_loss_is_dice_and_cross_entropy(batch: bool, background: bool) -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(2, 3, 4, 5, 6)), rng.integers(0, 3, (2, 1, 4, 5, 6))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = np.stack([labels[:, 0] == value for value in range(3)], 1)
    entropy = -np.log(p[truth.nonzero()]).mean()
    axes = (0, 2, 3, 4) if batch else (2, 3, 4)
    overlap = 2 * (p * truth).sum(axes) / (p.sum(axes) + truth.sum(axes))
    expected = 1 - (overlap if background else overlap[..., 1:]).mean() + entropy
    loss = LossPart(batch=batch, background=background).function(protocol())
    found = loss(torch.from_numpy(logits).float(), torch.from_numpy(labels).float())
    assert float(found) == pytest.approx(expected, abs=1e-4)


class Threshold(SegmentationNetwork):
    """Finds structure 1 where values are above 0.5, structure 2 where they are above 1.5."""

    card = SegmentationCard("none", "Threshold", "", "", 3, 1, 3, 1, 1)

    def segment(self, x: Tensor) -> Tensor:
        return torch.cat([torch.full_like(x, 0.5), x.clamp(max=1), 2 * x - 2], 1)


def test_prediction_and_mean_dice_over_the_cases() -> None:
    values = np.zeros((1, 20, 18, 9), np.float32)
    values[0, 3:15, 2:7, 2:5], values[0, 12:18, 9:13, 3:8] = 1, 2
    shown = np.rint(values[0]).astype(np.uint8)
    chosen = protocol(patch=(8, 8, 8))
    np.testing.assert_array_equal(predict(Threshold(), values, chosen), shown)
    part = shown.copy()
    part[:9] = 0
    cases = [Case("a", values, shown, Grid(shown.shape, np.eye(4))), Case("b", values, part, Grid(shown.shape, np.eye(4)))]
    none = np.where(values == 2, 0, values).astype(np.float32)
    cases.append(Case("c", none, (none[0] > 0).astype(np.uint8), cases[0].grid))  # no structure 2: left out of its mean
    n, m = (shown == 1).sum(), (part == 1).sum()
    front = (1 + 2 * m / (n + m) + 1) / 3
    expected = {"dice": (front + 1) / 2, "dice_front_of_egg": front, "dice_back": 1.0}
    assert HeldOut(cases, chosen)(Threshold()) == pytest.approx(expected)


class Nested(SegmentationNetwork):
    """Finds the yolk, channel 0, where values are above 1.5, and the whole egg, channel 1, where they are above 0.5."""

    card = SegmentationCard("none", "Nested", "", "", 3, 1, 2, 1, 1)

    def segment(self, x: Tensor) -> Tensor:
        return torch.cat([x - 1.5, x - 0.5], 1)


def test_regions_are_painted_and_scored_as_unions_of_labels() -> None:
    values = np.zeros((1, 20, 18, 9), np.float32)
    values[0, 3:15, 2:12, 2:8], values[0, 6:10, 4:9, 3:6] = 1, 2
    chosen = protocol(patch=(8, 8, 8), structures=PARTS, regions=REGIONS)
    labels = np.select([values[0] == 1, values[0] == 2], [1, 4]).astype(np.uint8)
    np.testing.assert_array_equal(predict(Nested(), values, chosen), labels)
    raw = labels.copy()
    raw[labels == 4] = 1  # all white: the yolk is a false alarm, the whole egg is right
    cases = [Case("a", values, labels, Grid(labels.shape, np.eye(4))), Case("b", values, raw, Grid(labels.shape, np.eye(4)))]
    assert HeldOut(cases, chosen)(Nested()) == pytest.approx({"dice": 0.75, "dice_whole_egg": 1.0, "dice_yolk": 0.5})


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
