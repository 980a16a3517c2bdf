"""What every picture network shares: any input size, float32 in and out."""

from __future__ import annotations

from contextlib import nullcontext
from math import isqrt

import torch
from torch import Tensor

from hybrid import families
from hybrid.blocks import exportable
from hybrid.blocks.resampling import pad_to_multiple
from hybrid.cards import ModelCard
from hybrid.precision.check import Agreement, Trial
from hybrid.precision.trials import near_pictures, sample

TRIAL_SIDES = (64, 192)
"""Least and largest edge, in pixels, of the tile that tells whether a lower precision does."""
TRIAL_COST = 1.5e10
"""Parameters times pixels of that tile: enough for the arithmetic to outweigh the rest, a fraction of a second on a CPU."""
FACE_TRIAL_SIDE = 256
"""Edge of that tile of networks for faces, which are seen as a whole."""


class RestorationNetwork(families.Network):
    """Base of networks from a picture to a picture.

    A subclass gives `card` and `restore`, which may ask for sides that are multiples of `card.multiple`. Networks of several
    stages give a list of them; `card.result` says which is the result.

    Attributes:
        card: Its facts.
        open_sides: Whether a graph of it (`restore.exporting`) takes any size, or one alone.
        not_exported: Why there is no graph of it; None where there is.
    """

    card: ModelCard
    open_sides: bool = True
    not_exported: str | None = None

    def restore(self, x: Tensor) -> Tensor | list[Tensor]:
        """(B, C, H, W) with sides that are multiples of `card.multiple` to (B, ..., C', H * scale, W * scale), or to a list."""
        raise NotImplementedError

    def trial(self) -> Trial:
        """A tile of smooth shapes, edges and a little noise; see `hybrid.precision.check`."""
        parameters = sum(p.numel() for p in self.parameters())
        fitting = isqrt(round(TRIAL_COST / max(1, parameters))) // 32 * 32
        side = (
            self.card.fixed_size or min(self.card.face_size, FACE_TRIAL_SIDE) or min(max(TRIAL_SIDES[0], fitting), TRIAL_SIDES[1])
        )
        low, high = self.card.value_range
        x = low + (high - low) * sample((side, side), self.card.channels)

        def agree(exact: Tensor, other: Tensor) -> Agreement:
            return near_pictures(exact, other, high - low)

        return Trial(x.to(next(self.parameters()).device), self.result, agree)

    def merge(self) -> RestorationNetwork:
        """The network with weights in the published form, where they are trained in another; the output stays the same."""
        return self

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Restore pictures of any size.

        Args:
            x: (B, C, H, W) float32, RGB or gray, in `card.value_range`; C is `card.channels`.

        Returns:
            (B, ..., C', H * scale, W * scale) float32, raw: not clamped; C' is `card.out_channels`, mostly C.
            The dots are the axis of outputs, where there are several. A list of such tensors from networks of stages.

        Raises:
            ValueError: The input is no batch of pictures, or has another number of channels than the network.
        """
        if x.ndim != 4 or x.shape[1] != self.card.channels or 0 in x.shape:
            raise ValueError(f"{self.card.title} takes (B, {self.card.channels}, H, W), not {tuple(x.shape)}")
        height, width = x.shape[-2] * self.card.scale, x.shape[-1] * self.card.scale
        # In float32 a surrounding autocast, as in training, stays in force.
        low = self.precision != "float32"
        with torch.autocast(x.device.type, dtype=families.COMPUTE_TYPES[self.precision]) if low else nullcontext():
            y = self.restore(pad_to_multiple(x, self.card.multiple, self.card.padding))
        if isinstance(y, list):
            return [_cropped(stage, height, width) for stage in y]
        return _cropped(y, height, width)

    def result(self, x: Tensor) -> Tensor:
        """What `forward` gives, (B, ..., C', H * scale, W * scale), and of a list of stages the one that is the result."""
        y: Tensor | list[Tensor] = self(x)
        if isinstance(y, list):
            assert self.card.result is not None
            return y[self.card.result]
        return y

    def mirrored(self, x: Tensor) -> Tensor:
        """What `result` gives of a picture that goes on as its mirror image to the next multiple.

        Where the published inference goes on with zeros (NAFNet, MIRNet), these darken the last rows and columns; a picture whose
        sides are multiples, as those of the benchmarks, is the same by either.

        Args:
            x: (B, C, H, W), as of `forward`.

        Returns:
            (B, ..., C', H * scale, W * scale).
        """
        height, width = x.shape[-2] * self.card.scale, x.shape[-1] * self.card.scale
        return self.result(pad_to_multiple(x, self.card.multiple))[..., :height, :width]


def _cropped(y: Tensor, height: int, width: int) -> Tensor:
    if torch.compiler.is_exporting():
        return exportable.cropped(y, (height, width)).float()
    return y[..., :height, :width].float()


Family = families.Family[RestorationNetwork]
"""A family of picture networks."""
