"""Self-supervised pre-training of encoders from YAML recipes: scans without labels, on the ground's loop."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from hybrid.errors import InputError, RequestError
from hybrid.families import created
from hybrid.memory import available_bytes
from hybrid.training.loop import Task, TrainSettings, train
from hybrid.training.processes import is_first_process, processes_here
from hybrid.training.recipes import NetworkPart, Part, read_recipe
from hybrid.training.record import Curve, write_training
from hybrid.weights.checkpoints import write_checkpoint
from medical.loading import file_header
from medical.models import family
from medical.models.base import SegmentationNetwork
from medical.models.encoders import MODULES, encoder_files
from medical.protocol import Protocol
from medical.training.pretext import PretextPart, Views
from medical.training.pretraining_network import Answers, PretextLoss, PretrainingNetwork, likeness, parted
from medical.training.starting import begin
from medical.training.unlabelled import Scans, find_scans

CURVE = Curve(
    {
        "rotation_accuracy": "turn told right",
        "pair_accuracy": "partner found",
        "in_painting": "error where cut out",
        "mean_value": "the same of the mean value",
    },
    "share, or mean absolute error",
    "pretext loss",
    level=("mean_value",),
)
PART = "encoder"
"""The part of a network that is trained."""
VALIDATION = 2**32 - 1
"""Stands for the step in the seeds of the crops of validation, which no training reaches."""


class DataPart(Part):
    """Which scans are for what.

    Attributes:
        held_out: Scans, chosen by the seed, that are kept out of the training and validated on; with none, validation is on
            crops of scans that are trained on, the same each time.
        validate_on: Crops of a validation.
    """

    held_out: int = Field(default=0, ge=0)
    validate_on: int = Field(default=32, ge=2)


class Recipe(Part):
    """One pre-training, as a person writes it. That it names `pretext` tells it from a recipe of `medical train`.

    Attributes:
        name: Stem of the files that it leaves.
        licence: Of the weights.
        start_from: Weights whose encoder is trained on: a model of the catalogue or a file.
        network: The network whose encoder is trained.
        protocol: What the encoder asks of a scan, as in a recipe of `medical train`; structures, regions and mirror axes
            do not apply.
        pretext: The tasks.
    """

    name: str
    licence: str
    start_from: str | None = None
    network: NetworkPart
    protocol: Protocol
    pretext: PretextPart
    data: DataPart = DataPart()
    training: TrainSettings

    @model_validator(mode="before")
    @classmethod
    def _kind(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and "pretext" not in raw:
            raise ValueError("it names no pretext tasks, so it is no recipe of a pre-training; `medical train` takes the others")
        return raw

    @field_validator("protocol", mode="before")
    @classmethod
    def _applicable(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        if named := [field for field in ("structures", "regions", "mirror") if raw.get(field)]:
            raise ValueError(f"a pre-training has no use for {', '.join(named)}")
        return {"structures": (), **raw}

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        self.pretext.turning(self.protocol)
        if self.training.batch < 2:
            raise ValueError("training.batch must be 2 at least: a view is told from those of other crops")
        return self


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a YAML file.

    Raises:
        RequestError: No such recipe, or a field of it cannot be used; the message names each field.
    """
    return read_recipe(source, Recipe, "medical")


class Trial:
    """Figures of a network on crops that are the same each time.

    Args:
        views: Where the crops come from.
        recipe: Of the training; its batch is how many crops stand beside one another.
    """

    def __init__(self, views: Views, recipe: Recipe) -> None:
        self.loss = PretextLoss(recipe.pretext)
        self.bf16 = recipe.training.precision == "bf16-mixed"
        seeds = ([recipe.training.seed, VALIDATION, number] for number in range(recipe.data.validate_on))
        pairs = [views(np.random.default_rng(seed)) for seed in seeds]
        shown, target = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
        count = max(1, len(shown) // recipe.training.batch)
        self.batches = list(zip(shown.tensor_split(count), target.tensor_split(count), strict=True))

    @torch.inference_mode()
    def __call__(self, network: nn.Module) -> dict[str, float]:
        """Loss of each task, shares of right answers, and the error where boxes were cut out.

        `mean_value` is that error of who answers with the mean of what is shown of each view.
        """
        device = next(network.parameters()).device
        each = [self._figures(network, shown.to(device), target.to(device)) for shown, target in self.batches]
        return {name: float(np.mean([figures[name] for figures in each])) for name in each[0]}

    def _figures(self, network: nn.Module, shown: Tensor, target: Tensor) -> dict[str, float]:
        with torch.autocast(shown.device.type, torch.bfloat16, enabled=self.bf16):
            answers: Answers = network(shown)
        whole, turns = parted(target)
        cosines, partners = likeness(answers.embedding)
        restored, seen, missing = (t.flatten(3) for t in (answers.reconstruction.float(), whole, shown != whole))
        mean = seen.masked_fill(missing, 0).sum(-1, keepdim=True) / (~missing).sum(-1, keepdim=True)
        figures = {
            "rotation_accuracy": (answers.rotation.argmax(-1) == turns).float().mean(),
            "pair_accuracy": (cosines.argmax(-1) == partners).float().mean(),
            "in_painting": (restored - seen)[missing].abs().mean(),
            "mean_value": (mean - seen)[missing].abs().mean(),
        }
        losses = {f"{name}_loss": loss for name, loss in self.loss.terms(answers, target)._asdict().items()}
        return {name: float(value) for name, value in (figures | losses).items()}


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
    """Pre-train by a recipe on a folder of scans, whose labels are never read; goes on from a checkpoint in `folder`.

    Args:
        recipe: What to train.
        data: NIfTI files, or a data set with `dataset.json`, of which the split `train` is taken.
        folder: For log and checkpoints.
        devices: Processes, one device each.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        on_start: Called with what is to be told before the training, a line each.
        on_progress: Called with steps done, all steps and the newest figures.

    Returns:
        The network, its encoder of averaged weights and its decoder as initialised, and the facts for the record.

    Raises:
        RequestError: A family without such encoders, or options that do not fit it or the protocol.
        InputError: There are no scans that can be used.
        WeightsError: The weights to start from are absent or of another network.
    """
    network, protocol = make_network(recipe), recipe.protocol
    started = begin(network, recipe.start_from) if recipe.start_from else {}
    training, held_out, licence = _scans(recipe, data, room=available_bytes() // (2 * processes_here(devices)))
    if on_start:
        on_start(f"{len(training)} scans to train on, {len(held_out) if held_out else 'none'} held out")
        for each in started.values():
            on_start(f"starts from {each['file']}: {each['tensors']}")
    task = Task(
        network=PretrainingNetwork(network.get_submodule(PART), len(protocol.channels), protocol.patch, recipe.pretext),
        sample=Views(training, protocol, recipe.pretext),
        loss=PretextLoss(recipe.pretext),
        validate=Trial(Views(held_out or training, protocol, recipe.pretext), recipe),
    )
    average = train(task, recipe.training, folder, devices=devices, accelerator=accelerator, on_progress=on_progress)
    network.get_submodule(PART).load_state_dict(average.get_submodule(PART).state_dict())
    network.protocol = protocol
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        **started,
        "data_licence": licence,
        "trained_on": training.names,
        "validated_on": held_out.names if held_out else "crops of scans that are trained on",
        "left_out": training.left_out | (held_out.left_out if held_out else {}),
        "parameters": sum(p.numel() for p in network.get_submodule(PART).parameters()),
    }
    return network, facts


def _scans(recipe: Recipe, data: Path, room: int) -> tuple[Scans, Scans | None, str]:
    """The scans to train on, those held out (None where none are), and the licence of the data."""
    paths, licence = find_scans(data)
    count = recipe.data.held_out
    if count >= len(paths):
        raise InputError(f"{data.name} holds {len(paths)} scans, of which data.held_out takes {count}.", hint="Hold out fewer.")
    drawn = np.random.default_rng(recipe.training.seed).permutation(len(paths))[:count]
    training = Scans([path for number, path in enumerate(paths) if number not in drawn], recipe.protocol, room)
    if not count:
        return training, None, licence
    return training, Scans([paths[number] for number in sorted(drawn)], recipe.protocol, room), licence


def make_network(recipe: Recipe) -> SegmentationNetwork:
    """The network of a recipe, initialised from its seed; its encoder is trained, and its decoder is none's concern.

    Raises:
        RequestError: A family without such encoders, or options that do not fit the family or the protocol.
    """
    name, protocol = recipe.network.family, recipe.protocol
    if name not in MODULES:
        raise RequestError(f"There is no pre-training for {name!r}.", hint=f"Choose one of {', '.join(MODULES)}.")
    torch.manual_seed(recipe.training.seed)
    given = {"in_channels": len(protocol.channels), "out_channels": protocol.outputs} | recipe.network.options
    network = created(family(name), given)
    card = network.card
    asked = (len(protocol.channels), protocol.outputs, protocol.spatial_dims)
    if (card.in_channels, card.out_channels, card.spatial_dims) != asked:
        raise RequestError(
            f"The network takes {card.in_channels} channels of {card.spatial_dims} axes; the protocol has "
            f"{len(protocol.channels)} of {protocol.spatial_dims}.",
            hint="Leave in_channels and out_channels out of `network.options`, and give protocol.patch as many edges.",
        )
    if (whole := network.padded(protocol.patch)) != protocol.patch:
        raise RequestError(
            f"The encoder makes no whole grid of {_sides(protocol.patch)} voxels.",
            hint=f"Give a protocol.patch such as {_sides(whole)}.",
        )
    return network


def write_result(network: SegmentationNetwork, facts: dict[str, Any], folder: Path, name: str) -> tuple[Path, ...]:
    """Write `<name>.safetensors` (the encoder alone, float32, under published names), `<name>.json`, `.csv` and `.png`.

    The header says family, options, recipe and licence, and what the encoder asks of a scan: a protocol without structures.

    Args:
        network: From `run`, as are the facts.
        facts: For the record.
        folder: The run's folder, which holds its `log.csv`.
        name: Stem of the files.

    Returns:
        The files; none from the other processes of a training on several, which write nothing.
    """
    files = encoder_files(network.card.family)
    if not is_first_process() or files is None:
        return ()
    header = file_header(f"{name}.safetensors", network, network.protocol)
    header |= {"family": network.card.family, "part": "encoder", "recipe": name, "licence": facts["recipe"]["licence"]}
    state = {files.to_published(key): tensor for key, tensor in network.get_submodule(PART).state_dict().items()}
    return write_training(folder, name, partial(write_checkpoint, state=state, metadata=header), facts, CURVE)


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
