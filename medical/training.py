"""Training of segmentation networks from YAML recipes: scans in memory, cut into patches, on the ground's loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hybrid.checkpoints import read_checkpoint
from hybrid.errors import RequestError
from hybrid.recipes import NetworkPart, Part, read_recipe
from hybrid.training import Task, TrainSettings, is_first_process, train
from hybrid.training_record import Curve, write_training
from hybrid.training_start import start_from
from medical.cases import Case, Folder, Patches
from medical.loading import find_weights, save_model
from medical.metrics import dice
from medical.models import MODULES, family
from medical.models.base import SegmentationNetwork
from medical.protocol import Protocol
from medical.sliding import device_of, segment_windows
from medical.transforms import Augment, Augmentation

log = logging.getLogger(__name__)


class DataPart(Part):
    """What is drawn from the scans, and what is done to it.

    Attributes:
        foreground: Share of patches with a voxel of a structure at their centre.
        augmentation: Random changes; mirroring is along the axes that the protocol names.
        validate_on: How many of the validation cases are segmented at each validation; None for all.
    """

    foreground: float = Field(default=0.33, ge=0, le=1)
    augmentation: Augmentation = Augmentation()
    validate_on: int | None = Field(default=None, gt=0)


class LossPart(Part):
    """Dice loss plus cross entropy (Isensee et al., nnU-Net, Nature Methods 2021), in equal parts.

    Attributes:
        batch: Whether Dice is of all samples of a batch together, not the mean of theirs.
        background: Whether Dice has the background among its classes.
    """

    batch: bool = False
    background: bool = False

    def function(self) -> Callable[[Tensor, Tensor], Tensor]:
        """(B, classes, *spatial) logits and (B, 1, *spatial) labels to a scalar."""
        from monai.losses import DiceCELoss

        return DiceCELoss(to_onehot_y=True, softmax=True, include_background=self.background, batch=self.batch)


class Recipe(Part):
    """One training, as a person writes it.

    Attributes:
        name: Stem of the files that it leaves.
        licence: Of the weights.
        start_from: Weights to begin with: a model of the catalogue or a file. What fits by name and shape is taken.
        protocol: What the network asks of a scan; it goes into the weights' file.
    """

    name: str
    licence: str
    start_from: str | None = None
    network: NetworkPart
    protocol: Protocol
    data: DataPart = DataPart()
    loss: LossPart = LossPart()
    training: TrainSettings

    @model_validator(mode="after")
    def _classes(self) -> Recipe:
        if self.protocol.regions:
            raise ValueError("protocol.regions cannot be trained; give structures alone, one channel a class")
        return self


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a YAML file.

    Raises:
        RequestError: No such recipe, or a field of it cannot be used; the message names each field.
    """
    return read_recipe(source, Recipe, "medical")


def predict(network: SegmentationNetwork, values: np.ndarray, protocol: Protocol) -> np.ndarray:
    """Label map (i, j, k) uint8 of a scan that is ready for the network, (C, i, j, k), by sliding windows."""
    labels = np.zeros(values.shape[1:], np.uint8)

    def keep(first: int, logits: Tensor) -> None:
        labels[first : first + logits.shape[1]] = logits.argmax(0).cpu().numpy()

    segment_windows(network, values, protocol, write=keep)
    return labels


class HeldOut:
    """Mean Dice of a network over cases that are not trained on: of each structure, and of all structures.

    A structure that a case lacks and the network does not find is left out of the mean.

    Args:
        cases: Ready for the network.
        protocol: The network's.
        bf16: Compute as a training in mixed precision does, in half of the time.
    """

    def __init__(self, cases: Sequence[Case], protocol: Protocol, *, bf16: bool = False) -> None:
        self.cases, self.protocol, self.bf16 = cases, protocol, bf16

    def __call__(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, SegmentationNetwork)
        scores = np.array([self._scores(network, case) for case in self.cases])
        with np.errstate(invalid="ignore"):
            means = np.nansum(scores, 0) / np.sum(~np.isnan(scores), 0)
        names = [figure(structure.name) for structure in self.protocol.structures]
        return {"dice": float(np.nanmean(means))} | dict(zip(names, map(float, means), strict=True))

    def _scores(self, network: SegmentationNetwork, case: Case) -> list[float]:
        with torch.autocast(device_of(network).type, torch.bfloat16, enabled=self.bf16):
            found = predict(network, case.values, self.protocol)
        return [dice(found == s.value, case.labels == s.value) for s in self.protocol.structures]


def figure(structure: str) -> str:
    """Name of a structure's figure in the log.

    >>> figure("Anterior hippocampus")
    'dice_anterior_hippocampus'
    """
    return "dice_" + structure.lower().replace(" ", "_")


def run(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *,
    devices: int = 1,
    accelerator: str = "auto",
    on_progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[SegmentationNetwork, dict[str, Any]]:
    """Train by a recipe on a folder of scans; goes on from a checkpoint in `folder`.

    Returns:
        The network of averaged weights, and the facts for its record.

    Raises:
        RequestError: An unknown family, or options that do not fit the family or the protocol.
        InputError: The folder holds no data set, or cases that cannot be used.
        WeightsError: The weights to start from are absent or of another network.
    """
    found = Folder.read(data)
    network = make_network(recipe)
    started = _begin(network, recipe.start_from) if recipe.start_from else {}
    protocol = recipe.protocol
    training, held_out = found.cases(found.train, protocol), found.cases(found.val[: recipe.data.validate_on], protocol)
    augment = Augment(recipe.data.augmentation, protocol.mirror)
    task = Task(
        network=network,
        sample=Patches(training, protocol.patch, len(protocol.structures), recipe.data.foreground, augment),
        loss=recipe.loss.function(),
        validate=HeldOut(held_out, protocol, bf16=recipe.training.precision == "bf16-mixed"),
    )
    average = train(task, recipe.training, folder, devices=devices, accelerator=accelerator, on_progress=on_progress)
    assert isinstance(average, SegmentationNetwork)
    average.protocol = protocol
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        **started,
        "data_licence": found.licence,
        "trained_on": [case.name for case in training],
        "validated_on": [case.name for case in held_out],
        "warnings": [f"{case.name}: {warning}" for case in (*training, *held_out) for warning in case.warnings],
        "parameters": sum(p.numel() for p in average.parameters()),
    }
    return average, facts


def make_network(recipe: Recipe) -> SegmentationNetwork:
    """The network of a recipe, initialised from its seed.

    Raises:
        RequestError: An unknown family, or options that do not fit the family or the protocol.
    """
    if recipe.network.family not in MODULES:
        raise RequestError(f"There is no family {recipe.network.family!r}.", hint=f"Choose one of {', '.join(MODULES)}.")
    protocol = recipe.protocol
    given = {"in_channels": len(protocol.channels), "out_channels": protocol.outputs} | recipe.network.options
    torch.manual_seed(recipe.training.seed)
    try:
        network = family(recipe.network.family).create(**given)
    except (TypeError, ValueError) as error:
        raise RequestError(f"The network options do not fit: {error}.", hint="Correct `network.options`.") from error
    if network.card.task != "segmentation":
        raise RequestError(
            f"{network.card.title} is made for {network.card.task}, and recipes train segmentation.",
            hint="Choose another family; these weights can be what it starts from.",
        )
    if (network.card.in_channels, network.card.out_channels) != (len(protocol.channels), protocol.outputs):
        raise RequestError(
            f"The network has {network.card.in_channels} input and {network.card.out_channels} output channels; the protocol "
            f"asks for {len(protocol.channels)} and {protocol.outputs}.",
            hint="Leave in_channels and out_channels out of `network.options`.",
        )
    return network


def write_result(network: SegmentationNetwork, facts: dict[str, Any], folder: Path, name: str) -> tuple[Path, ...]:
    """Write `<name>.safetensors` (float16, with the protocol in its header), `<name>.json`, `<name>.csv`, `<name>.png`.

    Args:
        network: The trained network, of averaged weights.
        facts: From `run`.
        folder: The run's folder, which holds its `log.csv`.
        name: Stem of the files.

    Returns:
        The files; none from the other processes of a training on several, which write nothing.
    """
    if not is_first_process():
        return ()
    assert network.protocol is not None
    metadata = {"family": network.card.family, "recipe": name, "licence": facts["recipe"]["licence"]}
    structures = {figure(s.name): s.name for s in network.protocol.structures}
    curve = Curve({"dice": "mean of the structures"} | structures, "Dice, held-out scans", "training loss (Dice + cross entropy)")
    save = partial(save_model, network=network, metadata=metadata, half=True)
    return write_training(folder, name, save, facts, curve)


def _begin(network: SegmentationNetwork, source: str) -> dict[str, Any]:
    """Take over the weights of another training, and return what of it belongs in the record."""
    found = find_weights(source)
    checkpoint = read_checkpoint(found.path)
    report = start_from(network, checkpoint.state, rename=family(network.card.family).keys.to_ours)
    log.info("%s: %s", found.path.name, report)
    return {"started_from": {"file": found.path.name, "sha256": checkpoint.sha256, "tensors": str(report)}}
