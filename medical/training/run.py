"""Training of segmentation networks from YAML recipes: scans in memory, cut into patches, on the ground's loop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from data_specs import SegmentationSpec, load_spec
from hybrid.errors import RequestError
from hybrid.families import created
from hybrid.training.loop import Task, TrainSettings, train
from hybrid.training.processes import is_first_process
from hybrid.training.recipes import NetworkPart, Part, read_recipe
from hybrid.training.record import Curve, write_training
from medical.evaluation.metrics import dice
from medical.loading import save_model
from medical.models import MODULES, family
from medical.models.base import SegmentationNetwork
from medical.protocol import Protocol
from medical.segmentation.slabs import LabelPainter
from medical.segmentation.sliding import device_of, segment_windows
from medical.training.cases import Case, Folder, Patches, drawn
from medical.training.losses import LossPart
from medical.training.mixing import Mixed, Mixing
from medical.training.starting import begin
from medical.training.transforms import Augment, Augmentation

log = logging.getLogger(__name__)


class DataPart(Part):
    """What is drawn from the scans, and what is done to it.

    Attributes:
        spec: The data set, by the name of its description or a YAML file; it says what is in folders without a dataset.json.
        foreground: Share of patches with a voxel of a structure at their centre.
        augmentation: Random changes; mirroring is along the axes that the protocol names.
        mixing: Samples made of others, after these changes; for small data.
        cases: Train on this share (0.1) or this number (18) of the cases alone, chosen by the seed; None for all. Of one seed
            the fewer are among the more.
        validate_on: How many of the validation cases are segmented at each validation; None for all.
    """

    spec: str | None = None
    foreground: float = Field(default=0.33, ge=0, le=1)
    augmentation: Augmentation = Augmentation()
    mixing: Mixing | None = None
    cases: Annotated[float, Field(gt=0, le=1, strict=True)] | Annotated[int, Field(gt=0, strict=True)] | None = None
    validate_on: int | None = Field(default=None, gt=0)


class Recipe(Part):
    """One training, as a person writes it.

    Attributes:
        name: Stem of the files that it leaves.
        licence: Of the weights.
        start_from: Weights to begin with: a model of the catalogue or a file. Of a whole network what fits by name and shape
            is taken; a file that holds an encoder alone must hold all of it.
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
    def _trainable(self) -> Recipe:
        values, regions = {structure.value for structure in self.protocol.structures}, self.protocol.regions
        if max(values, default=0) > 255:
            raise ValueError("protocol.structures: give values up to 255")
        if self.data.mixing and self.data.mixing.slices is not None and self.protocol.spatial_dims == 2:
            raise ValueError("data.mixing.slices is for volumes; the patch is a slice already")
        if not regions:
            return self
        if sorted(region.channel for region in regions) != list(range(len(regions))):
            raise ValueError("protocol.regions: give one region for each channel, 0, 1, ...")
        if not all(region.name for region in regions) or {v for region in regions for v in region.values} != values:
            raise ValueError("protocol.regions: give each its name, and the values of the structures of which it consists")
        if self.loss.background:
            raise ValueError("loss.background: regions have no background")
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
    segment_windows(network, values, protocol, write=LabelPainter(labels, protocol))
    return labels


def scored(protocol: Protocol) -> dict[str, tuple[int, ...]]:
    """What is scored, with its labels: each region, or each structure where there are none."""
    if protocol.regions:
        return {region.name: region.values for region in protocol.regions}
    return {structure.name: (structure.value,) for structure in protocol.structures}


class HeldOut:
    """Mean Dice of a network over cases that are not trained on: of each structure or region, and of all of them.

    What a case lacks and the network does not find is left out of the mean.

    Args:
        cases: Ready for the network.
        protocol: The network's.
        bf16: Compute as a training in mixed precision does, in half of the time.
    """

    def __init__(self, cases: Sequence[Case], protocol: Protocol, *, bf16: bool = False) -> None:
        self.cases, self.protocol, self.bf16 = cases, protocol, bf16

    def __call__(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, SegmentationNetwork)
        network.deep_supervision = False  # of the averaged network, which is never trained
        scores = np.array([self._scores(network, case) for case in self.cases])
        with np.errstate(invalid="ignore"):
            means = np.nansum(scores, 0) / np.sum(~np.isnan(scores), 0)
        names = map(figure, scored(self.protocol))
        return {"dice": float(np.nanmean(means))} | dict(zip(names, map(float, means), strict=True))

    def _scores(self, network: SegmentationNetwork, case: Case) -> list[float]:
        with torch.autocast(device_of(network).type, torch.bfloat16, enabled=self.bf16):
            found = predict(network, case.values, self.protocol)
        return [dice(np.isin(found, values), np.isin(case.labels, values)) for values in scored(self.protocol).values()]


def figure(structure: str) -> str:
    """Name of a structure's or region's figure in the log.

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
    on_start: Callable[[str], None] | None = None,
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
    found = Folder.read(data, load_spec(recipe.data.spec, SegmentationSpec) if recipe.data.spec else None)
    names = drawn(found.train, recipe.data.cases, recipe.training.seed)
    network = make_network(recipe)
    started = begin(network, recipe.start_from) if recipe.start_from else {}
    if on_start:
        on_start(f"{len(names)} of {len(found.train)} cases to train on, {len(found.val)} to choose by")
        for each in started.values():
            on_start(f"starts from {each['file']}: {each['tensors']}")
    protocol = recipe.protocol
    training, held_out = found.cases(names, protocol), found.cases(found.val[: recipe.data.validate_on], protocol)
    augment = Augment(recipe.data.augmentation, protocol.mirror, protocol.spatial_dims)
    patches, mixing = Patches(training, protocol.patch, recipe.data.foreground, augment), recipe.data.mixing
    task = Task(
        network=network,
        sample=Mixed(patches, mixing, [structure.value for structure in protocol.structures]) if mixing else patches,
        loss=recipe.loss.function(protocol),
        validate=HeldOut(held_out, protocol, bf16=recipe.training.precision == "bf16-mixed"),
    )
    average = train(task, recipe.training, folder, devices=devices, accelerator=accelerator, on_progress=on_progress)
    assert isinstance(average, SegmentationNetwork)
    average.protocol, average.deep_supervision = protocol, False
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
    network = created(family(recipe.network.family), given)
    if network.card.task != "segmentation":
        raise RequestError(
            f"{network.card.title} is made for {network.card.task}, and recipes train segmentation.",
            hint="Choose another family; these weights can be what it starts from.",
        )
    if network.card.spatial_dims != protocol.spatial_dims:
        raise RequestError(
            f"The network has {network.card.spatial_dims} spatial dimensions, and the patch of the protocol "
            f"{protocol.spatial_dims}.",
            hint="Give the patch as many edges: two for pictures and slices.",
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
    names = {"dice": "mean"} | {figure(name): name for name in scored(network.protocol)}
    curve = Curve(names, "Dice, held-out scans", "training loss (Dice + cross entropy)")
    save = partial(save_model, network=network, metadata=metadata, half=True)
    return write_training(folder, name, save, facts, curve)
