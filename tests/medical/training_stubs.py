"""A small recipe of segmentation, and scans of eggs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml

from medical.protocol import Protocol

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
