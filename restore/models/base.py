"""What every picture network shares: any input size, float32 in and out, and how a published file becomes a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from hybrid.blocks.resampling import pad_to_multiple
from hybrid.cards import ModelCard
from hybrid.keys import KeyMap

if TYPE_CHECKING:
    from restore.loading import WeightsSource

COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class RestorationNetwork(nn.Module):
    """Base of networks from a picture to a picture.

    A subclass gives `card` and `restore`, which may ask for sides that are multiples of `card.multiple`.
    """

    card: ModelCard
    precision: str = "float32"
    source: WeightsSource | None = None

    def restore(self, x: Tensor) -> Tensor:
        """(B, C, H, W) with sides that are multiples of `card.multiple` to (B, ..., C, H * scale, W * scale)."""
        raise NotImplementedError

    def merge(self) -> RestorationNetwork:
        """The network with weights in the published form, where they are trained in another; the output stays the same."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        """Restore pictures of any size.

        Args:
            x: (B, C, H, W) float32, RGB or gray, in `card.value_range`.

        Returns:
            (B, ..., C, H * scale, W * scale) float32, raw: not clamped.

        Raises:
            ValueError: The input is no batch of pictures, or has another number of channels than the network.
        """
        if x.ndim != 4 or x.shape[1] != self.card.channels or 0 in x.shape:
            raise ValueError(f"{self.card.title} takes (B, {self.card.channels}, H, W), not {tuple(x.shape)}")
        height, width = x.shape[-2] * self.card.scale, x.shape[-1] * self.card.scale
        # In float32 a surrounding autocast, as in training, stays in force.
        low = self.precision != "float32"
        with torch.autocast(x.device.type, dtype=COMPUTE_TYPES[self.precision]) if low else nullcontext():
            y = self.restore(pad_to_multiple(x, self.card.multiple))
        return y[..., :height, :width].float()


@dataclass(frozen=True)
class Family:
    """How files of one architecture are told, built and named. One stands in each model's file, as `FAMILY`.

    Attributes:
        name: Registry name.
        matches: True for a state dict, under its published keys, of this family.
        build: A network of the configuration that a state dict's keys and shapes tell; options override the rest.
        create: A network of a configuration given in full, for training.
        options: Names that `build` takes: what a file cannot tell.
        keys: Published names of the parameters and ours.
        derived: Last parts of published entries that the network computes itself and a loader ignores.
    """

    name: str
    matches: Callable[[Mapping[str, Tensor]], bool]
    build: Callable[..., RestorationNetwork]
    create: Callable[..., RestorationNetwork]
    options: tuple[str, ...]
    keys: KeyMap
    derived: tuple[str, ...] = ()
