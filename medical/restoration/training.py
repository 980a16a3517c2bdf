"""Training of restoration networks for scans from YAML recipes: slices of scans, degraded anew each time, on the ground's loop.

Axes: scans are (i, j, k) in the protocol's orientation; slices of a sample are (slices, rows, columns).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hybrid.errors import InputError, RequestError
from hybrid.families import created
from hybrid.training.loop import Sample, Task, TrainSettings, train
from hybrid.training.processes import is_first_process
from hybrid.training.recipes import NetworkPart, Part, read_recipe
from hybrid.training.record import Curve, write_training
from medical.restoration.degradations import RicianNoise, ScanDegradation
from medical.restoration.loading import Restorer, save_restorer
from medical.restoration.protocol import RestorationProtocol, seen_slices
from medical.restoration.run import check_scan, restore
from medical.restoration.scores import psnr
from medical.training.cases import Folder, drawn
from medical.volumes.geometry import Grid, Reorientation
from medical.volumes.volume import Volume, read_volume
from restore.models import MODULES, family
from restore.models.base import RestorationNetwork

CURVE = Curve(
    {"psnr": "restored", "psnr_degraded": "degraded"},
    "PSNR in dB, held-out scans",
    "training loss (root of the mean squared error)",
    level=("psnr_degraded",),
)


class DataPart(Part):
    """What is drawn from the scans.

    Attributes:
        patch: Edge of the square that is cut out of a slice.
        degradation: What is done to the whole scan before.
        air: Share of samples in which all on one side of a random plane is made 0, as around a head: crops of tissue alone do
            not show what noise looks like there.
        cases: Train on this share (0.1) or this number (18) of the cases alone, chosen by the seed; None for all.
        validate_on: How many of the validation cases are restored at each validation; None for all.
        validate_at: Degradations of these; each case has one of them in turn.
    """

    patch: int = Field(32, ge=8)
    degradation: ScanDegradation = RicianNoise()
    air: float = Field(0.0, ge=0, le=1)
    cases: Annotated[float, Field(gt=0, le=1, strict=True)] | Annotated[int, Field(gt=0, strict=True)] | None = None
    validate_on: int | None = Field(default=None, gt=0)
    validate_at: tuple[ScanDegradation, ...] = Field(min_length=1)


class Recipe(Part):
    """One training, as a person writes it.

    Attributes:
        name: Stem of the files that it leaves.
        licence: Of the weights.
        network: Its channels are those of the protocol.
        options: What the network is run with and a file does not tell, such as ``tlc_train_size``; goes into the weights' file.
        protocol: What the network asks of a scan; it goes into the weights' file.
    """

    name: str
    licence: str
    network: NetworkPart
    options: dict[str, Any] = Field(default_factory=dict)
    protocol: RestorationProtocol
    data: DataPart
    training: TrainSettings


class _Any(BaseModel):
    model_config = ConfigDict(extra="allow")
    data: Any = None


def is_restoration(source: str | Path) -> bool:
    """Whether a recipe trains a restoration: its `data` name a degradation.

    Raises:
        RequestError: There is no such recipe.
    """
    data = read_recipe(source, _Any, "medical").data
    return isinstance(data, dict) and "degradation" in data


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a YAML file.

    Raises:
        RequestError: No such recipe, or a field of it cannot be used; the message names each field.
    """
    return read_recipe(source, Recipe, "medical")


class DegradedSlices:
    """Pairs of slices of a degraded scan and the middle one of the original, cut at random from scans in memory.

    Args:
        scans: As they are in their files.
        protocol: The network's. With slices across the thickest axis each of several equal axes has its turn.
        data: Patch, degradation, air.
    """

    def __init__(self, scans: Sequence[Volume], protocol: RestorationProtocol, data: DataPart) -> None:
        self.protocol, self.data = protocol, data
        turns = [Reorientation.between(scan.grid, protocol.orientation) for scan in scans]
        self.scans = [turn.apply(scan.values[0]).astype(np.float32) for scan, turn in zip(scans, turns, strict=True)]
        self.axes = [_axes(turn.grid, protocol) for turn in turns]

    def __call__(self, rng: np.random.Generator) -> Sample:
        """Draw (slices, patch, patch) and (1, patch, patch) float32 in the network's range; mirrored and turned at random."""
        number = int(rng.integers(len(self.scans)))
        clean = self.scans[number]
        if rng.random() < self.data.air:
            clean = with_air(clean, rng)
        noisy = self.data.degradation.draw(rng).apply(clean)
        low, high = self.protocol.intensity.bounds(noisy)
        axis = int(rng.choice(self.axes[number]))
        originals, slices = np.moveaxis(clean, axis, 0), np.moveaxis(noisy, axis, 0)
        middle = int(rng.integers(len(slices)))
        seen = seen_slices(middle, len(slices), self.protocol.neighbours)
        seen = seen[::-1] if rng.integers(2) else seen
        pair = np.concatenate([slices[seen], originals[middle : middle + 1]])
        pair = (_patch(pair, self.data.patch, rng) - low) / (high - low)
        pair = np.rot90(pair, int(rng.integers(4)), (1, 2))
        pair = np.ascontiguousarray(pair[:, :, ::-1] if rng.integers(2) else pair, np.float32)
        return pair[:-1], pair[-1:]


def with_air(scan: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The scan (i, j, k) with all on one side of a random plane made 0: a tenth to a half of it."""
    normal = rng.standard_normal(3)
    places = sum(part * line for part, line in zip(normal, np.ogrid[tuple(map(slice, scan.shape))], strict=True))
    return np.where(places < np.quantile(places, rng.uniform(0.1, 0.5)), np.float32(0), scan)


def _patch(slices: np.ndarray, edge: int, rng: np.random.Generator) -> np.ndarray:
    """A square of (slices, rows, columns); what is smaller is mirrored at its far ends."""
    short = [max(0, edge - side) for side in slices.shape[1:]]
    slices = np.pad(slices, [(0, 0), *((0, missing) for missing in short)], mode="reflect")
    top, left = (int(rng.integers(side - edge + 1)) for side in slices.shape[1:])
    return slices[:, top : top + edge, left : left + edge]


def _axes(oriented: Grid, protocol: RestorationProtocol) -> list[int]:
    if protocol.axis != "thickest":
        return [protocol.axis]
    longest = max(oriented.spacing)
    return [axis for axis, step in enumerate(oriented.spacing) if step >= 0.99 * longest]


class HeldOut:
    """Mean PSNR of restored and of degraded scans that are not trained on, degraded the same each time.

    Args:
        scans: Originals.
        protocol: The network's.
        degradations: Each scan has one of them in turn.
        bf16: Compute as a training in mixed precision does.
    """

    def __init__(
        self,
        scans: Sequence[Volume],
        protocol: RestorationProtocol,
        degradations: Sequence[ScanDegradation],
        *,
        bf16: bool = False,
    ) -> None:
        self.protocol, self.bf16 = protocol, bf16
        self.originals = list(scans)
        self.degraded = [
            degraded(scan, degradations[number % len(degradations)], seed=number) for number, scan in enumerate(scans)
        ]
        self.level = self._mean(self.degraded)

    def __call__(self, network: nn.Module) -> dict[str, float]:
        assert isinstance(network, RestorationNetwork)
        restorer = Restorer(network, self.protocol, {})
        device = next(network.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            restored = [replace(scan, values=restore(scan, restorer).values[None]) for scan in self.degraded]
        return {"psnr": self._mean(restored), "psnr_degraded": self.level}

    def _mean(self, scans: Sequence[Volume]) -> float:
        pairs = zip(scans, self.originals, strict=True)
        return float(np.mean([psnr(scan.values[0], original.values[0]) for scan, original in pairs]))


def degraded(scan: Volume, degradation: ScanDegradation, *, seed: int) -> Volume:
    """The scan with its values degraded, by a draw that the seed decides."""
    operation = degradation.draw(np.random.default_rng(seed))
    return replace(scan, values=operation.apply(scan.values[0])[None])


def root_of_mean_squares(output: Tensor | list[Tensor], target: Tensor) -> Tensor:
    """Root of the mean squared error of each sample's middle slice, and their mean: strong noise does not outweigh weak.

    Args:
        output: (B, slices, rows, columns).
        target: (B, 1, rows, columns).
    """
    assert isinstance(output, Tensor)
    middle = output.shape[1] // 2
    errors = torch.square(output[:, middle : middle + 1].float() - target).mean((1, 2, 3))
    return torch.sqrt(errors + 1e-8).mean()


def run(
    recipe: Recipe,
    data: Path,
    folder: Path,
    *,
    devices: int = 1,
    accelerator: str = "auto",
    on_start: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> tuple[Restorer, dict[str, Any]]:
    """Train by a recipe on a folder of scans, whose labels are never read; goes on from a checkpoint in `folder`.

    Args:
        recipe: What to train.
        data: A folder with `dataset.json` and `imagesTr`, as of `medical.training.cases.Folder`.
        folder: For log and checkpoints.
        devices: Processes, one device each.
        accelerator: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        on_start: Called with what is to be told before the training, a line each.
        on_progress: Called with steps done, all steps and the newest figures.

    Returns:
        The network of averaged weights with its protocol, and the facts for its record.

    Raises:
        RequestError: An unknown family, or options that do not fit the family or the protocol.
        InputError: The folder holds no data set, or scans that cannot be used.
    """
    found = Folder.read(data)
    names, held_out = drawn(found.train, recipe.data.cases, recipe.training.seed), found.val[: recipe.data.validate_on]
    network = make_network(recipe)
    if on_start:
        on_start(f"{len(names)} of {len(found.train)} scans to train on, {len(held_out)} to choose by")
    protocol = recipe.protocol
    bf16 = recipe.training.precision == "bf16-mixed"
    task = Task(
        network=network,
        sample=DegradedSlices(_read(data, names, protocol), protocol, recipe.data),
        loss=root_of_mean_squares,
        validate=HeldOut(_read(data, held_out, protocol), protocol, recipe.data.validate_at, bf16=bf16),
    )
    average = train(task, recipe.training, folder, devices=devices, accelerator=accelerator, on_progress=on_progress)
    assert isinstance(average, RestorationNetwork)
    facts = {
        "recipe": recipe.model_dump(mode="json"),
        "data_licence": found.licence,
        "trained_on": list(names),
        "validated_on": list(held_out),
        "warnings": [],
        "parameters": sum(p.numel() for p in average.parameters()),
    }
    return Restorer(average, protocol, recipe.options), facts


def make_network(recipe: Recipe) -> RestorationNetwork:
    """The network of a recipe, initialised from its seed.

    Raises:
        RequestError: An unknown family, or options that do not fit the family or the protocol.
    """
    if recipe.network.family not in MODULES:
        raise RequestError(f"There is no family {recipe.network.family!r}.", hint=f"Choose one of {', '.join(MODULES)}.")
    given = {"in_channels": recipe.protocol.channels} | recipe.network.options | recipe.options
    torch.manual_seed(recipe.training.seed)
    network = created(family(recipe.network.family), given)
    return Restorer(network, recipe.protocol, recipe.options).network


def write_result(restorer: Restorer, facts: dict[str, Any], folder: Path, name: str) -> tuple[Path, ...]:
    """Write `<name>.safetensors` (float16, with the protocol in its header), `<name>.json`, `<name>.csv`, `<name>.png`.

    Args:
        restorer: From `run`, as are the facts.
        facts: For the record.
        folder: The run's folder, which holds its `log.csv`.
        name: Stem of the files.

    Returns:
        The files; none from the other processes of a training on several, which write nothing.
    """
    if not is_first_process():
        return ()
    metadata = {"recipe": name, "licence": facts["recipe"]["licence"]}
    save = partial(save_restorer, restorer=restorer, metadata=metadata, half=True)
    return write_training(folder, name, save, facts, CURVE)


def _read(data: Path, names: Sequence[str], protocol: RestorationProtocol) -> list[Volume]:
    scans = []
    for name in names:
        scan = read_volume(data / "imagesTr" / f"{name}.nii.gz")
        try:
            check_scan(scan, protocol)
        except InputError as error:
            raise InputError(f"The case {name} cannot be used. {error.message}", hint="Take it out of dataset.json.") from error
        scans.append(scan)
    return scans
