"""A small recipe of pretraining, its networks, and scans of eggs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from medical.protocol import Protocol
from medical.training.pretraining import Recipe

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
