"""Training of face networks from YAML recipes: a dictionary of sharp faces, a restorer on top of it, or any other network."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import Field, model_validator
from torch import Tensor

from hybrid.errors import RequestError
from hybrid.families import created
from hybrid.plain_yaml import read_yaml
from hybrid.training.loop import Task, TrainSettings, train
from hybrid.training.recipes import NetworkPart, Part, read_recipe
from hybrid.training.start import start_from
from hybrid.weights.checkpoints import read_checkpoint
from restore.faces.data import FacePairs, HeldOutFaces, held_out, read_faces
from restore.faces.degradation import FACE_PRESETS
from restore.faces.training_learner import FaceLearner, LossPart
from restore.loading import find_weights, load_model
from restore.models import MODULES, family
from restore.models.base import RestorationNetwork
from restore.models.restoreformer import RestoreFormer


class FaceDataPart(Part):
    """Which faces, and what is done to them.

    Attributes:
        size: Edge of the aligned faces in pixels.
        crop: Edge of the part of a face that is learnt from at a time; None for the whole.
        degradation: A preset of `restore.faces.degradation`, scaled to that size; `face-sharp` for a dictionary.
        validation: Number of faces, spread over the sorted names, that are kept out of training and used to judge it.
    """

    size: int = Field(gt=0)
    crop: int | None = Field(None, gt=0)
    degradation: Literal["face-base", "face-extending", "face-sharp"] = "face-extending"
    validation: int = Field(24, gt=0)


class FaceStartPart(Part):
    """Weights to begin with: a model of the catalogue, or a file. What fits by name and shape is taken."""

    model: str


class FaceRecipe(Part):
    """One training of a face network, as a person writes it."""

    name: str
    task: Literal["face"]
    licence: str
    start_from: FaceStartPart | None = None
    network: NetworkPart
    data: FaceDataPart
    losses: LossPart = Field(default_factory=LossPart)
    training: TrainSettings

    @model_validator(mode="after")
    def _consistent(self) -> FaceRecipe:
        if self.losses.association and self.start_from is None:
            raise ValueError("losses.association needs the dictionary of start_from")
        if self.data.crop is not None and self.data.crop > self.data.size:
            raise ValueError("data.crop is larger than data.size")
        if self.losses.parts and self.data.crop is not None:
            raise ValueError("losses.parts needs whole faces: leave out data.crop")
        return self


def load_face_recipe(source: str | Path) -> FaceRecipe | None:
    """Read a recipe for faces by the name of a shipped one, or from a YAML file; None where it is for another task, or no recipe.

    Raises:
        RequestError: It is for faces, and a field of it cannot be used; the message names each field.
    """
    shipped, path = resources.files("restore") / "recipes", Path(source)
    try:
        plain = read_yaml(shipped / f"{source}.yaml" if path.suffix == "" else path)
    except (OSError, yaml.YAMLError):
        return None  # whoever reads it next says what is wrong
    return read_recipe(source, FaceRecipe, "restore") if isinstance(plain, dict) and plain.get("task") == "face" else None


def run_faces(
    recipe: FaceRecipe,
    data: Path,
    folder: Path,
    *,
    devices: int = 1,
    accelerator: str = "auto",
    on_progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[RestorationNetwork, dict[str, Any]]:
    """Train by a recipe on a folder of aligned faces; goes on from a checkpoint in `folder`.

    Returns:
        The network of averaged weights, and the facts for its record.

    Raises:
        RequestError: An unknown family, or options that it does not take.
        InputError: The data lack faces, or have them of another size.
        WeightsError: What it is to start from is absent, or of another network.
    """
    faces = read_faces(data, recipe.data.size)
    kept = held_out(list(faces), recipe.data.validation)
    training = [name for name in faces if name not in kept]
    if not training:
        raise RequestError(f"{len(faces)} faces are too few to keep {len(kept)} for validation.", hint="Lower data.validation.")
    torch.manual_seed(recipe.training.seed)
    network = _create(recipe)
    started, guide = _begin(network, recipe.start_from.model) if recipe.start_from else ({}, None)
    degradation = FACE_PRESETS[recipe.data.degradation](recipe.data.size)
    judge = HeldOutFaces([faces[name] for name in kept], degraded=recipe.data.degradation != "face-sharp")
    task = Task(
        network=FaceLearner(network, recipe.losses, steps=recipe.training.steps, guide=guide),
        sample=FacePairs([faces[name] for name in training], degradation, recipe.data.crop),
        loss=_as_it_is,
        validate=lambda learner: judge(learner.network),  # type: ignore[arg-type]
    )
    average = train(task, recipe.training, folder, devices=devices, accelerator=accelerator, on_progress=on_progress)
    assert isinstance(average, FaceLearner)
    facts = {
        "recipe": _recorded(recipe),
        **started,
        "trained_on": {"faces": len(training), "names_sha256": hashlib.sha256("\n".join(training).encode()).hexdigest()},
        "validated_on": kept,
        "parameters": sum(p.numel() for p in average.network.parameters()),
    }
    return average.network, facts


def _create(recipe: FaceRecipe) -> RestorationNetwork:
    name, options = recipe.network.family, recipe.network.options
    if name not in MODULES:
        raise RequestError(f"There is no family {name!r}.", hint=f"Choose one of {', '.join(MODULES)}.")
    network = created(family(name), options)
    edges = {recipe.data.size, recipe.data.crop or recipe.data.size}
    if network.card.scale != 1 or any(edge % network.card.multiple for edge in edges):
        raise RequestError(
            f"{network.card.title} does not take faces of {' and '.join(map(str, sorted(edges)))} pixels at their own size.",
            hint=f"Take a network of scale 1 and sizes that are multiples of {network.card.multiple}.",
        )
    return network


def _begin(network: RestorationNetwork, source: str) -> tuple[dict[str, Any], RestoreFormer | None]:
    """Take over weights; what belongs in the record, and the auto-encoder where it is one."""
    found, _ = find_weights(source, None)
    checkpoint = read_checkpoint(found.path)
    report = start_from(network, checkpoint.state, rename=family(network.card.family).keys.to_ours)
    facts = {"started_from": {"file": found.path.name, "sha256": checkpoint.sha256, "tensors": str(report)}}
    guide = load_model(source, device="cpu")
    return facts, guide if isinstance(guide, RestoreFormer) and not guide.config.kind.asks else None


def _recorded(recipe: FaceRecipe) -> dict[str, Any]:
    """The recipe as plain values, of a file to start from only the name."""
    plain = recipe.model_dump(mode="json")
    if recipe.start_from:
        plain["start_from"]["model"] = Path(recipe.start_from.model).name
    return plain


def _as_it_is(loss: Tensor, target: Tensor) -> Tensor:
    """The learner gives the loss itself, since parts of it have parameters."""
    return loss
