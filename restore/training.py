"""Training of picture networks from YAML recipes: photographs to crops, degraded on the fly, on the ground's loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.checkpoints import read_checkpoint
from hybrid.errors import InputError, RequestError
from hybrid.training import Sample, Task, TrainSettings, train
from hybrid.training_start import start_from
from restore.degradation_steps import AnyStep
from restore.degradations import PRESETS, Pipeline
from restore.images import read_picture
from restore.loading import find_weights
from restore.metrics import psnr
from restore.models import MODULES, family
from restore.models.base import RestorationNetwork
from restore.resize import downscale, imresize, mod_crop

MARGIN = 4
"""Low-resolution pixels cut from a degraded crop: the bicubic kernel reaches two pixels beyond it."""

DEGRADED_SHARE = 64 / 100
"""Edge of a training crop as a share of what is degraded, as in Real-ESRGAN: 256 of 400 pixels. Mirrored edges and the
grid of JPEG blocks then fall anywhere."""

PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NetworkPart(_Part):
    """Which network: a family of the registry and its full configuration."""

    family: str
    options: dict[str, Any] = {}


Degradation = Annotated[
    Annotated[Literal["bicubic", "first-order", "real-world"], Tag("name")] | Annotated[tuple[AnyStep, ...], Tag("steps")],
    Discriminator(lambda value: "name" if isinstance(value, str) else "steps"),
]
"""What makes low-resolution crops: MATLAB's bicubic, a preset of `restore.degradations`, or steps written out."""


class DataPart(_Part):
    """Which photographs, and what is done to them.

    `source_scales` adds shrunken copies, which hold finer detail and no trace of JPEG blocks.
    """

    patch: int = Field(gt=0, description="edge of the low-resolution crop in pixels")
    degradation: Degradation = "bicubic"
    source_scales: tuple[float, ...] = (1.0,)
    validation: tuple[str, ...] = Field(description="file names kept out of training and used to choose")
    validation_crop: int = Field(384, gt=0, description="edge of the centre crop that is scored, in pixels")


class StartPart(_Part):
    """Weights to begin with: a model of the catalogue and its scale, or a file. What fits by name and shape is taken."""

    model: str
    scale: int | None = None


class Recipe(_Part):
    """One training, as a person writes it."""

    name: str
    task: Literal["sr"] = "sr"
    scale: int = Field(gt=0)
    licence: str
    start_from: StartPart | None = None
    network: NetworkPart
    data: DataPart
    loss: Literal["l1", "charbonnier"] = "l1"
    training: TrainSettings

    def degradation(self) -> Pipeline | None:
        """The random degradation; None stands for bicubic."""
        asked = self.data.degradation
        if isinstance(asked, str):
            return None if asked == "bicubic" else PRESETS[asked](self.scale)
        return Pipeline(scale=self.scale, steps=asked)


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe by the name of a shipped one, or from a YAML file.

    Raises:
        RequestError: No such recipe, or a field of it cannot be used; the message names each field.
    """
    shipped = resources.files("restore") / "recipes"
    path = Path(source)
    try:
        text = (shipped / f"{source}.yaml").read_text() if path.suffix == "" else path.read_text()
    except OSError as error:
        names = ", ".join(sorted(p.name.removesuffix(".yaml") for p in shipped.iterdir() if p.name.endswith(".yaml")))
        raise RequestError(f"There is no recipe {str(source)!r}.", hint=f"Give a YAML file or one of: {names}.") from error
    try:
        return Recipe.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise RequestError(f"{path.name} is not YAML: {error}.", hint="Correct the file.") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RequestError(f"The recipe {path.name} cannot be used: {faults}.", hint="Correct these fields.") from error


class PhotoCrops:
    """Pairs of a degraded crop and its original, cut at random from photographs held in memory.

    Args:
        photos: (H, W, 3) uint8 arrays.
        scale: Factor between the two.
        patch: Edge of the low-resolution crop.
        degradation: Made anew for each pair; None is MATLAB's antialiased bicubic shrinking.
    """

    def __init__(self, photos: Sequence[np.ndarray], scale: int, patch: int, degradation: Pipeline | None = None) -> None:
        self.scale, self.patch, self.degradation = scale, patch, degradation
        self.extent = patch + 2 * MARGIN if degradation is None else math.ceil(patch / DEGRADED_SHARE)
        edge = self.extent * scale
        self.photos = [photo for photo in photos if min(photo.shape[:2]) >= edge]
        if not self.photos:
            raise InputError(
                f"No photograph is as large as a training crop of {edge} pixels.", hint="Give larger ones or lower `data.patch`."
            )
        areas = np.array([photo.shape[0] * photo.shape[1] for photo in self.photos], dtype=float)
        self.shares = areas / areas.sum()

    def __call__(self, rng: np.random.Generator) -> Sample:
        """Draw (3, patch, patch) and (3, patch * scale, patch * scale) float32 in [0, 1]; flipped and turned at random."""
        photo = self.photos[rng.choice(len(self.photos), p=self.shares)]
        edge = self.extent * self.scale
        top, left = (int(rng.integers(0, side - edge + 1)) for side in photo.shape[:2])
        high = np.ascontiguousarray(photo[top : top + edge, left : left + edge])
        if self.degradation is None:
            low, row, column = downscale(high, self.scale), MARGIN, MARGIN
        else:
            low = self.degradation.apply(high, rng).image
            row, column = (int(rng.integers(0, self.extent - self.patch + 1)) for _ in range(2))
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        low = low[row : row + self.patch, column : column + self.patch]
        high = high[row * self.scale :, column * self.scale :][: self.patch * self.scale, : self.patch * self.scale]
        return _augmented(low, turns, flip), _augmented(high, turns, flip)


def _augmented(pixels: np.ndarray, turns: int, flip: bool) -> np.ndarray:
    pixels = np.rot90(pixels, turns)
    pixels = pixels[:, ::-1] if flip else pixels
    return np.ascontiguousarray(pixels.transpose(2, 0, 1), dtype=np.float32) / 255.0


class HeldOut:
    """PSNR on Y of a network, and of bicubic enlargement, over the centre crops of photographs that are not trained on.

    A random degradation is drawn once a photograph, the same in every run.
    """

    def __init__(self, photos: Sequence[np.ndarray], scale: int, crop: int, degradation: Pipeline | None = None) -> None:
        self.scale = scale
        self.pairs = []
        for number, photo in enumerate(photos):
            top, left = ((side - min(side, crop)) // 2 for side in photo.shape[:2])
            high = mod_crop(photo[top : top + crop, left : left + crop], scale)
            rng = np.random.default_rng(number)
            low = downscale(high, scale) if degradation is None else degradation.apply(high, rng).image
            self.pairs.append((low, high))
        self.bicubic = self._mean(lambda low: imresize(low, scale, "uint8"))

    def __call__(self, network: nn.Module) -> dict[str, float]:
        def enlarge(low: np.ndarray) -> np.ndarray:
            x = torch.from_numpy(low.astype(np.float32).transpose(2, 0, 1) / 255.0)[None]
            x = x.to(next(network.parameters()).device)
            with torch.inference_mode():
                y = network(x)[0].clamp(0, 1).mul(255).round().byte().cpu()
            return y.permute(1, 2, 0).numpy()

        return {"psnr": self._mean(enlarge), "psnr_bicubic": self.bicubic}

    def _mean(self, enlarge: Callable[[np.ndarray], np.ndarray]) -> float:
        return float(np.mean([psnr(enlarge(low), high, border=self.scale) for low, high in self.pairs]))


def read_photos(files: Sequence[Path], scales: Sequence[float] = (1.0,)) -> list[np.ndarray]:
    """Decode photographs to (H, W, 3) uint8, each once a scale."""
    photos = []
    for file in files:
        colour = read_picture(file).colour
        if colour.dtype != np.uint8:
            raise InputError(f"{file.name} is a {colour.dtype} picture; training takes 8 bits.", hint="Convert or remove it.")
        colour = np.ascontiguousarray(np.broadcast_to(colour, (*colour.shape[:2], 3)))
        photos += [colour if s == 1.0 else imresize(colour, s, "uint8") for s in scales]
    return photos


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """sqrt(d^2 + 1e-6), a smooth L1 (Lai et al., LapSRN, CVPR 2017, equation 4, with their eps 1e-3)."""
    return torch.sqrt((output - target) ** 2 + 1e-6).mean()


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
    try:
        network = family(recipe.network.family).create(scale=recipe.scale, **recipe.network.options)
    except (TypeError, ValueError) as error:
        raise RequestError(f"The network options do not fit: {error}.", hint="Correct `network.options`.") from error
    started = _begin(network, recipe.start_from) if recipe.start_from else {}
    training = [f for f in files if f not in held_out]
    degradation = recipe.degradation()
    task = Task(
        network=network,
        sample=PhotoCrops(read_photos(training, recipe.data.source_scales), recipe.scale, recipe.data.patch, degradation),
        loss=F.l1_loss if recipe.loss == "l1" else charbonnier,
        validate=HeldOut(read_photos(held_out), recipe.scale, recipe.data.validation_crop, degradation),
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


def _begin(network: RestorationNetwork, start: StartPart) -> dict[str, Any]:
    """Take over the weights of another training, and return what of it belongs in the record."""
    found, _ = find_weights(start.model, start.scale)
    checkpoint = read_checkpoint(found.path)
    report = start_from(network, checkpoint.state, rename=family(network.card.family).keys.to_ours)
    return {"started_from": {"file": found.path.name, "sha256": checkpoint.sha256, "tensors": str(report)}}
