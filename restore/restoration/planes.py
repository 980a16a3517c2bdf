"""A network run on whatever planes a picture has: gray or RGB, with alpha or without."""

from __future__ import annotations

import torch
from torch import Tensor

from hybrid.cards import ModelCard
from hybrid.errors import RequestError
from restore.images.colour import enlarge_by_luma
from restore.models.base import RestorationNetwork


class AnyPlanes:
    """A network of three channels or one, run on gray or RGB planes and an alpha plane of its own.

    A network of colours sees gray as three equal planes, whose mean is taken; one of gray works on each colour by itself, and
    one of luma on luma alone, the chroma being enlarged beside it. A network of luma gets a gray plane as it is, in full swing.
    """

    def __init__(self, network: RestorationNetwork, channels: int) -> None:
        check_channels(network.card)
        self.network, self.channels = network, channels

    def __call__(self, x: Tensor) -> Tensor:
        """(1, channels [+ 1], H, W) to the same planes, restored: (1, ..., planes, H * scale, W * scale).

        The dots are the axis of outputs, where the network has several; alpha is the same in each.
        """
        colour = self._colour(x[:, : self.channels])
        if x.shape[1] == self.channels:
            return colour
        alpha = self._alpha(x[:, self.channels :])
        alpha = alpha.reshape(1, *(1,) * (colour.ndim - 4), *alpha.shape[1:])
        return torch.cat((colour, alpha.expand(*colour.shape[:-3], -1, -1, -1)), -3)

    def _colour(self, x: Tensor) -> Tensor:
        takes = self.network.card.channels
        if takes == x.shape[1]:
            return self.network.mirrored(x)
        if takes == 3:
            return self.network.mirrored(x.expand(-1, 3, -1, -1)).mean(-3, keepdim=True)
        if self.network.card.luma:
            return enlarge_by_luma(self.network.mirrored, x, self.network.card.scale)
        return self.network.mirrored(x.transpose(0, 1)).transpose(0, -3)

    def _alpha(self, x: Tensor) -> Tensor:
        """Alpha is enlarged like a gray picture; where it is constant it stays so, exactly and at no cost.

        A network that keeps the size leaves it alone: blur, noise and the traces of JPEG are in the colours.
        """
        scale = self.network.card.scale
        if scale == 1:
            return x
        first = x[..., :1, :1]
        if bool((x == first).all()):
            return first.expand(-1, -1, x.shape[2] * scale, x.shape[3] * scale)
        return self._colour(x).clamp(0, 1)


def check_channels(card: ModelCard) -> None:
    """Refuse networks that do not take one picture, such as those of the two views of a dual-pixel sensor, or of any size.

    Raises:
        RequestError: It takes neither gray nor RGB, gives other channels than it takes, or takes one size alone.
    """
    if card.fixed_size:
        raise RequestError(
            f"{card.title} has an absolute position embedding: it takes {card.fixed_size} x {card.fixed_size} pixels alone, "
            "and no tiles of a larger picture.",
            hint="Choose a network without; this one runs from Python: restore.load_model.",
        )
    if card.channels not in (1, 3) or card.out_channels != card.channels:
        raise RequestError(
            f"{card.title} takes {card.channels} channels and gives {card.out_channels}, not one gray or RGB picture.",
            hint="Choose a network for single pictures; this one runs from Python: restore.load_model.",
        )
