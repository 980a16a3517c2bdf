"""Augmentation by mixing, for small data: MixUp, CutMix and CropMix, of values and targets alike.

Samples are (C, *spatial) float32 values and (1 + structures, *spatial) float32 shares of background and structures, of
slices or volumes. Compared on medical pictures by Qi et al., MediAug, arXiv:2504.18983; there classes of whole pictures are
mixed, here those of each voxel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch.nn import functional as F

from hybrid.training.loop import Sample
from hybrid.training.recipes import Part

Draw = Callable[[np.random.Generator], Sample]
Share = Annotated[float, Field(ge=0, le=1)]
Concentration = Annotated[float, Field(gt=0)]


class _Mixing(Part):
    """What all kinds have.

    Attributes:
        probability: Share of samples that are mixed.
        slices: Axis along which each slice of a volume is mixed by itself, as a picture, with chance of its own; None mixes
            samples as they are.
    """

    probability: Share = 0.5
    slices: Literal[0, 1, 2] | None = None


class MixUp(_Mixing):
    """A weighted mean of two samples (Zhang et al., ICLR 2018).

    Attributes:
        alpha: The weight of the first is drawn from Beta(alpha, alpha): near 0 or 1 for small ones, near 1/2 for large ones.
    """

    kind: Literal["mixup"] = "mixup"
    alpha: Concentration = 0.2

    def mix(self, first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
        """One sample of two."""
        return blend(first, second, rng.beta(self.alpha, self.alpha))


class CutMix(_Mixing):
    """A box of one sample put into another (Yun et al., ICCV 2019).

    Attributes:
        alpha: The share of the first that is to stay is drawn from Beta(alpha, alpha). Boxes are cut off at the border, so
            that somewhat more stays.
    """

    kind: Literal["cutmix"] = "cutmix"
    alpha: Concentration = 1.0

    def mix(self, first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
        """One sample of two."""
        return paste(first, second, border_box(first[0].shape[1:], 1 - rng.beta(self.alpha, self.alpha), rng))


class CropMix(_Mixing):
    """Parts of one sample, each enlarged to the size of the whole, mixed with each other (Han et al., arXiv:2205.15955).

    The parts' shares of the whole are drawn from as many bands of equal width between the two of `scale`, one from each,
    so that a sample always shows itself at several scales. Sides keep their ratio, as anatomy does.

    Attributes:
        crops: Number of parts.
        scale: Smallest and largest share of the sample that a part takes.
        by: How parts are joined, in random order, one after the other.
        alpha: As in MixUp or CutMix.
    """

    kind: Literal["cropmix"] = "cropmix"
    crops: int = Field(default=2, ge=2, le=8)
    scale: tuple[Annotated[float, Field(gt=0, le=1)], Annotated[float, Field(gt=0, le=1)]] = (0.25, 1.0)
    by: Literal["mixup", "cutmix"] = "mixup"
    alpha: Concentration = 1.0

    @model_validator(mode="after")
    def _rising(self) -> CropMix:
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale from {self.scale[0]:g} to {self.scale[1]:g} is empty")
        return self

    def mix(self, first: Sample, second: Sample, rng: np.random.Generator) -> Sample:
        """One sample of its own parts; the second takes no part."""
        shape = first[0].shape[1:]
        bands = pairwise(np.linspace(*self.scale, self.crops + 1))
        mixed, *others = (
            enlarge(first, inner_box(shape, share, rng)) for share in rng.permutation([rng.uniform(*band) for band in bands])
        )
        join = MixUp(alpha=self.alpha) if self.by == "mixup" else CutMix(alpha=self.alpha)
        for other in others:
            mixed = join.mix(mixed, other, rng)
        return mixed


Mixing = Annotated[MixUp | CutMix | CropMix, Field(discriminator="kind")]


class Mixed:
    """Samples of which some are mixed at random, all with shares in place of labels.

    Args:
        draw: Makes one sample, (C, *spatial) values and (1, *spatial) labels; a second one is drawn with the same generator.
        mixing: How.
        values: Labels of the structures, in the order of their channels.
    """

    def __init__(self, draw: Draw, mixing: MixUp | CutMix | CropMix, values: Sequence[int]) -> None:
        self.draw, self.mixing, self.values = draw, mixing, values

    def __call__(self, rng: np.random.Generator) -> Sample:
        """Draw (C, *spatial) values and (1 + structures, *spatial) shares."""
        first = self._shares(rng)
        if rng.random() >= self.mixing.probability:
            return first
        second = first if isinstance(self.mixing, CropMix) else self._shares(rng)
        axis = self.mixing.slices
        if axis is None:
            return self.mixing.mix(first, second, rng)
        numbers = range(first[0].shape[1 + axis])
        slices = [self.mixing.mix(_slice(first, axis, n), _slice(second, axis, n), rng) for n in numbers]
        values, targets = (np.stack(sides, 1 + axis) for sides in zip(*slices, strict=True))
        return values, targets

    def _shares(self, rng: np.random.Generator) -> Sample:
        values, labels = self.draw(rng)
        return values, np.concatenate([labels == value for value in (0, *self.values)], dtype=np.float32)


def blend(first: Sample, second: Sample, share: float) -> Sample:
    """`share` of the first sample and the rest of the second."""
    values, targets = (np.float32(share) * a + np.float32(1 - share) * b for a, b in zip(first, second, strict=True))
    return values, targets


def paste(first: Sample, second: Sample, box: tuple[slice, ...]) -> Sample:
    """The first sample with a box of the second in the same place."""
    values, targets = (np.array(side) for side in first)
    for side, source in zip((values, targets), second, strict=True):
        side[(slice(None), *box)] = source[(slice(None), *box)]
    return values, targets


def enlarge(sample: Sample, box: tuple[slice, ...]) -> Sample:
    """A box of a sample at the size of the whole, interpolated linearly; shares still sum up to 1."""
    shape = sample[0].shape[1:]
    mode = "bilinear" if len(shape) == 2 else "trilinear"
    parts = (torch.from_numpy(np.ascontiguousarray(side[(slice(None), *box)]))[None] for side in sample)
    values, targets = (F.interpolate(part, shape, mode=mode)[0].numpy() for part in parts)
    return values, targets


def border_box(shape: Sequence[int], share: float, rng: np.random.Generator) -> tuple[slice, ...]:
    """A box of about this share of a grid and of its proportions, around any point of it, cut off at the border."""
    sides = np.array(shape)
    half = sides * share ** (1 / len(shape)) / 2
    centre = rng.uniform(0, sides)
    low, high = (np.rint(np.clip(centre + step, 0, sides)).astype(int) for step in (-half, half))
    return tuple(slice(int(a), int(b)) for a, b in zip(low, high, strict=True))


def inner_box(shape: Sequence[int], share: float, rng: np.random.Generator) -> tuple[slice, ...]:
    """A box of about this share of a grid and of its proportions, at least a voxel, anywhere inside."""
    sides = [max(1, round(n * share ** (1 / len(shape)))) for n in shape]
    starts = [int(rng.integers(n - side, endpoint=True)) for n, side in zip(shape, sides, strict=True)]
    return tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))


def _slice(sample: Sample, axis: int, number: int) -> Sample:
    values, targets = (side.take(number, 1 + axis) for side in sample)
    return values, targets
