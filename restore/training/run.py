"""Training of picture networks from YAML recipes: photographs to crops, degraded on the fly, on the ground's loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Discriminator, Field, Tag, model_validator
from torch import nn

from hybrid.errors import InputError, RequestError
from hybrid.families import created
from hybrid.training.loop import Task, TrainSettings, train
from hybrid.training.recipes import NetworkPart, Part, read_recipe
from hybrid.training.start import start_from
from hybrid.weights.checkpoints import read_checkpoint
from restore.degradations.pipeline import PRESETS, SAME_SIZE_PRESETS, Pipeline
from restore.degradations.steps import AnyStep
from restore.loading import find_weights
from restore.models import MODULES, family
from restore.models.base import RestorationNetwork
from restore.training import losses_multi as losses
from restore.training.data import PICTURES, HeldOut, HeldOutSameSize, PhotoCrops, read_photos

LossName = Literal["l1", "charbonnier", "psnr", "hinet", "mprnet"]
LOSSES: dict[LossName, Callable[..., Any]] = {
    "l1": losses.l1_loss,
    "charbonnier": losses.charbonnier_loss,
    "psnr": losses.psnr_loss,
    "hinet": losses.hinet_loss,
    "mprnet": losses.mprnet_loss,
}
"""Of networks with several outputs the one nearest to the original counts. The last two are for networks of stages."""


Degradation = Annotated[
    Annotated[Literal["bicubic", "first-order", "real-world", "motion-blur", "gaussian-noise", "jpeg"], Tag("name")]
    | Annotated[tuple[AnyStep, ...], Tag("steps")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "steps"),
]
"""What makes the network's input: MATLAB's bicubic, a preset of `restore.degradations.pipeline`, or steps written out."""


class DataPart(Part):
    """Which photographs, and what is done to them.

    `source_scales` adds shrunken copies, which hold finer detail and no trace of JPEG blocks.
    """

    patch: int = Field(gt=0, description="edge of the network's input in pixels")
    degradation: Degradation = "bicubic"
    margin: int = Field(0, ge=0, description="at scale 1, pixels around a crop that are degraded too, and cut off")
    rounded: bool = Field(True, description="the input as a file of 8 bits holds it; else neither rounded nor clipped")
    source_scales: tuple[float, ...] = (1.0,)
    validation: tuple[str, ...] = Field(description="file names kept out of training and used to choose")
    validation_crop: int = Field(384, gt=0, description="edge of the centre crop that is scored, in pixels")


class StartPart(Part):
    """Weights to begin with: a model of the catalogue and its scale, or a file. What fits by name and shape is taken."""

    model: str
    scale: int | None = None


class Recipe(Part):
    """One training, as a person writes it."""

    name: str
    task: Literal["sr", "deblurring", "denoising", "jpeg"] = "sr"
    scale: int = Field(1, gt=0)
    licence: str
    start_from: StartPart | None = None
    network: NetworkPart
    data: DataPart
    loss: LossName = "l1"
    training: TrainSettings

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        asked, enlarging = self.data.degradation, self.task == "sr"
        if enlarging != (self.scale > 1):
            raise ValueError(f"task {self.task} and scale {self.scale} do not go together")
        if isinstance(asked, str) and enlarging != (asked == "bicubic" or asked in PRESETS):
            raise ValueError(f"task {self.task} and degradation {asked} do not go together")
        if enlarging and (self.data.margin or not self.data.rounded):
            raise ValueError("data.margin and data.rounded belong to tasks of scale 1")
        return self

    def degradation(self) -> Pipeline | None:
        """The random degradation; None stands for bicubic."""
        asked = self.data.degradation
        if asked == "bicubic":
            return None
        if isinstance(asked, str):
            return SAME_SIZE_PRESETS[asked]() if asked in SAME_SIZE_PRESETS else PRESETS[asked](self.scale)
        return Pipeline(scale=self.scale, steps=asked)


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a YAML file.

    Raises:
        RequestError: No such recipe, or a field of it cannot be used; the message names each field.
    """
    return read_recipe(source, Recipe, "restore")


def run(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *,
    devices: int = 1,
    accelerator: str = "auto",
    on_progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[RestorationNetwork, dict[str, Any]]:
    """Train by a recipe on a folder of photographs; goes on from a checkpoint in `folder`.

    Returns:
        The network of averaged weights, and the facts for its record.

    Raises:
        RequestError: An unknown family, or options that it does not take.
        InputError: The data lack photographs, or ones that the recipe names.
    """
    if recipe.network.family not in MODULES:
        raise RequestError(f"There is no family {recipe.network.family!r}.", hint=f"Choose one of {', '.join(MODULES)}.")
    if not data.is_dir():
        raise InputError(f"There is no folder {data}.", hint="Give --data with a folder of photographs.")
    files = sorted(p for p in data.rglob("*") if p.suffix.lower() in PICTURES)
    held_out = [f for f in files if f.name in recipe.data.validation]
    missing = set(recipe.data.validation) - {f.name for f in held_out}
    if missing or len(files) == len(held_out):
        what = f"lacks the validation photographs {', '.join(sorted(missing))}" if missing else "holds nothing to train on"
        raise InputError(
            f"The folder {data.name} {what}.",
            hint="Give the recipe's own folder, or a copy of the recipe with names of your photographs under data.validation.",
        )
    torch.manual_seed(recipe.training.seed)
    enlarging = {"scale": recipe.scale} if recipe.scale > 1 else {}  # the others have no such option
    network = created(family(recipe.network.family), enlarging | recipe.network.options)
    if network.card.scale != recipe.scale:
        raise RequestError(
            f"The network enlarges by {network.card.scale}, the recipe by {recipe.scale}.",
            hint=f"Give `scale: {recipe.scale}` under `network.options`, or another family.",
        )
    started = _begin(network, recipe.start_from) if recipe.start_from else {}
    training = [f for f in files if f not in held_out]
    degradation, data_part = recipe.degradation(), recipe.data
    task = Task(
        network=network,
        sample=PhotoCrops(
            read_photos(training, data_part.source_scales),
            recipe.scale,
            data_part.patch,
            degradation,
            margin=data_part.margin,
            rounded=data_part.rounded,
        ),
        loss=LOSSES[recipe.loss],
        validate=_held_out(recipe, degradation, read_photos(held_out)),
    )
    average = train(task, recipe.training, folder, devices=devices, accelerator=accelerator, on_progress=on_progress)
    assert isinstance(average, RestorationNetwork)
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        **started,
        "trained_on": [f.name for f in training],
        "validated_on": [f.name for f in held_out],
        "parameters": sum(p.numel() for p in average.parameters()),
    }
    return average, facts


def _held_out(
    recipe: Recipe, degradation: Pipeline | None, photos: Sequence[np.ndarray]
) -> Callable[[nn.Module], dict[str, float]]:
    part = recipe.data
    if recipe.scale == 1:
        assert degradation is not None
        return HeldOutSameSize(photos, part.validation_crop, degradation, margin=part.margin, rounded=part.rounded)
    return HeldOut(photos, recipe.scale, part.validation_crop, degradation)


def _begin(network: RestorationNetwork, start: StartPart) -> dict[str, Any]:
    """Take over the weights of another training, and return what of it belongs in the record."""
    found, _ = find_weights(start.model, start.scale)
    checkpoint = read_checkpoint(found.path)
    report = start_from(network, checkpoint.state, rename=family(network.card.family).keys.to_ours)
    return {"started_from": {"file": found.path.name, "sha256": checkpoint.sha256, "tensors": str(report)}}
