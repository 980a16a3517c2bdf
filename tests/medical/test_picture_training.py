"""Training on pictures and on slices: what is drawn, where it comes from, and whole runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from PIL import Image

from hybrid.errors import InputError, RequestError
from medical.loading import load_model
from medical.pictures.reading import read_picture_file
from medical.segmentation.run import segment
from medical.training.case_files import CaseFiles
from medical.training.cases import Case, Folder, Patches
from medical.training.run import Recipe, load_recipe, make_network
from medical.training.run import run as train
from medical.training.transforms import Augment, Augmentation
from medical.volumes.geometry import Grid
from tests.command import medical
from tests.medical.picture_stubs import protocol_2d, tissue, write_pair
from tests.medical.stubs import smooth
from tests.medical.test_boundaries import SPEC

RECIPE: dict[str, Any] = {
    "name": "tissue",
    "licence": "CC0-1.0",
    "network": {"family": "neunet", "options": {"spatial_dims": 2, "features": [4, 8, 16], "deep_supervision": True}},
    "protocol": {
        "modality": "EM", "channels": ["EM"], "intensity": {"kind": "z-score"}, "patch": [32, 32], "mirror": [0, 1],
        "structures": [{"value": 1, "name": "Membrane"}],
    },
    "data": {"foreground": 0.5, "augmentation": {"spatial": 0.3, "rotation": 90, "intensity": 0.3, "noise": 0.05}},
    "training": {"steps": 6, "batch": 2, "learning_rate": 0.003, "log_every": 2, "validate_every": 3},
}  # fmt: skip
ALL = Augmentation(
    spatial=1, rotation=180, scaling=0.2, intensity=1, noise=0.01, blur=0.5, brightness=0.1, contrast=1.2, low_resolution=1.5
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in pairs, with a dataset.json."""
    folder = tmp_path_factory.mktemp("data") / "tissue"
    for seed, name in enumerate("abcd"):
        write_pair(folder, name, *tissue(seed))
    described = {"licence": "CC0-1.0", "splits": {"train": ["a", "b", "c"], "val": ["d"]}, "label_values": {"0": 1, "255": 0}}
    (folder / "dataset.json").write_text(json.dumps(described))
    return folder


def recipe(**changes: Any) -> Recipe:
    return Recipe.model_validate(RECIPE | changes)


def test_labels_follow_the_values_of_slices() -> None:
    values = smooth(40, 50)[None]
    labels = (values > 0).astype(np.float32)
    augment, seen = Augment(ALL, (0, 1), 2), []
    for seed in range(8):
        changed, painted = augment(values, labels, np.random.default_rng(seed))
        assert changed.shape == painted.shape == (1, 40, 50) and changed.dtype == np.float32
        assert set(np.unique(painted)) <= {0, 1}
        bright = changed > changed.mean()
        inside = np.abs(changed - changed.mean()) > changed.std() / 2  # away from the border between both
        seen.append(float((bright == (painted > 0))[inside].mean()))
    assert np.mean(seen) > 0.85
    again = augment(values, labels, np.random.default_rng(7))
    np.testing.assert_array_equal(again[0], changed)


def test_patches_of_slices() -> None:
    place = np.arange(20 * 30 * 3, dtype=np.float32).reshape(1, 20, 30, 3)
    labels = np.zeros((20, 30, 3), np.uint8)
    labels[15, 22, 1] = 1
    case = Case("x", place, labels, Grid((20, 30, 3), np.eye(4)))
    draw = Patches([case], (8, 10), 1.0, Augment(Augmentation(), (), 2))
    values, painted = draw(np.random.default_rng(0))
    assert values.shape == painted.shape == (1, 8, 10)
    assert painted.sum() == 1 and values[painted > 0][0] == place[0, 15, 22, 1]  # the one slice with the structure
    assert len(np.unique(values % 3)) == 1


def test_a_folder_of_pictures(data: Path, tmp_path: Path) -> None:
    found = Folder.read(data)
    (case,) = found.cases(["b"], protocol_2d())
    values, membrane = tissue(1)
    np.testing.assert_allclose(case.values[0, ..., 0], values / 255, atol=1e-6)
    np.testing.assert_array_equal(case.labels[..., 0], membrane)
    described = Folder.read(data, load_recipe_spec(tmp_path))
    assert described.train == ("a", "b", "c")  # what the folder says of itself goes before
    with pytest.raises(InputError, match=r"has no scan and label map of nobody: looked for imagesTr/nobody"):
        found.cases(["nobody"], protocol_2d())
    write_pair(tmp_path, "x", *tissue(0))
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(tmp_path / "labels" / "x.png")
    with pytest.raises(InputError, match="64 x 48 and 5 x 5 pixels"):
        CaseFiles.find(tmp_path, "x", {}).read(1)


def load_recipe_spec(folder: Path) -> Any:
    from data_specs import SegmentationSpec, load_spec

    splits = [{"name": "train", "cases": ["a"], "source": "made up"}, {"name": "val", "cases": ["b"], "source": "made up"}]
    (folder / "tissue.yaml").write_text(yaml.safe_dump(SPEC | {"splits": splits}))
    return load_spec(folder / "tissue.yaml", SegmentationSpec)


def test_a_described_data_set(data: Path, tmp_path: Path) -> None:
    for part in ("images", "labels"):
        (tmp_path / "tissue" / part).mkdir(parents=True)
        for name in "ab":
            (tmp_path / "tissue" / part / f"{name}.png").write_bytes((data / part / f"{name}.png").read_bytes())
    load_recipe_spec(tmp_path)
    chosen = recipe(data={"spec": str(tmp_path / "tissue.yaml")})
    network, facts = train(chosen, tmp_path, tmp_path / "out", accelerator="cpu")
    assert facts["trained_on"] == ["a"] and facts["validated_on"] == ["b"] and facts["data_licence"] == "CC0-1.0"
    assert facts["warnings"] == [] and network.card.spatial_dims == 2


def test_a_whole_run_from_pictures_to_a_label_picture(data: Path, tmp_path: Path) -> None:
    """A small network learns what membranes are, and its file segments a picture that it has not seen."""
    plain = {"foreground": 0.0, "augmentation": {}}
    steps = {"steps": 60, "batch": 4, "learning_rate": 0.01, "ema": 0.9, "log_every": 20, "validate_every": 60}
    (tmp_path / "tissue.yaml").write_text(yaml.safe_dump(RECIPE | {"data": plain, "training": steps}))
    said = medical("train", tmp_path / "tissue.yaml", "--data", data, "-o", tmp_path / "run", "--accelerator", "cpu", "-q")
    assert said.code == 0, said.err
    network = load_model(tmp_path / "run" / "tissue.safetensors", device="cpu")
    assert network.protocol is not None and network.protocol.spatial_dims == 2
    found = segment(read_picture_file(data / "images" / "d.png"), network).labels[..., 0]
    membrane = tissue(3)[1]
    assert 2 * (found & membrane).sum() / (found.sum() + membrane.sum()) > 0.8


def test_training_on_the_slices_of_volumes(tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        pairs = [tissue(10 * seed + k) for k in range(3)]
        for part, arrays in zip(("imagesTr", "labelsTr"), zip(*pairs, strict=True), strict=True):
            (tmp_path / part).mkdir(exist_ok=True)
            volume = np.stack(arrays, -1).astype(np.uint8)
            nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 4, 1])), tmp_path / part / f"{name}.nii.gz")
    (tmp_path / "dataset.json").write_text(json.dumps({"splits": {"train": ["a"], "val": ["b"]}}))
    protocol = RECIPE["protocol"] | {"spacing": [1.0, 1.0]}
    network = {"family": "cswin_unet", "options": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "split_size": [2, 2]}}
    made, facts = train(recipe(protocol=protocol, network=network), tmp_path, tmp_path / "out", accelerator="cpu")
    assert made.card.spatial_dims == 2 and facts["trained_on"] == ["a"]


def test_a_network_for_volumes_and_a_patch_of_slices() -> None:
    network = {"family": "neunet", "options": {"features": [4, 8]}}
    with pytest.raises(RequestError, match="3 spatial dimensions, and the patch of the protocol 2"):
        make_network(recipe(network=network))


@pytest.mark.parametrize("name", ["membrane-cswin", "membrane-neunet"])
def test_shipped_recipes_for_pictures(name: str) -> None:
    chosen = load_recipe(name)
    network = make_network(chosen)
    assert chosen.name == name and chosen.data.spec == "membrane"
    assert sum(parameter.numel() for parameter in network.parameters()) < 4_000_000
