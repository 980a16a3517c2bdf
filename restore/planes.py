"""A network run on whatever planes a picture has: gray or RGB, with alpha or without."""

from __future__ import annotations

import torch
from torch import Tensor

from restore.colour import enlarge_by_luma
from restore.models.base import RestorationNetwork


class AnyPlanes:
    """A network of three channels or one, run on gray or RGB planes and an alpha plane of its own.

    A network of luma gets a gray plane as it is, in full swing.
    """

    def __init__(self, network: RestorationNetwork, channels: int) -> None:
        self.network, self.channels = network, channels

    def __call__(self, x: Tensor) -> Tensor:
        """(1, channels [+ 1], H, W) to the same planes, enlarged."""
        colour = self._colour(x[:, : self.channels])
        return colour if x.shape[1] == self.channels else torch.cat((colour, self._alpha(x[:, self.channels :])), 1)

    def _colour(self, x: Tensor) -> Tensor:
        takes = self.network.card.channels
        if takes == x.shape[1]:
            return self.network(x)
        if takes == 3:
            return self.network(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        if self.network.card.luma:
            return enlarge_by_luma(self.network, x, self.network.card.scale)
        return self.network(x.transpose(0, 1)).transpose(0, 1)

    def _alpha(self, x: Tensor) -> Tensor:
        """Alpha is enlarged like a gray picture; where it is constant it stays so, exactly and at no cost."""
        first = x[..., :1, :1]
        if bool((x == first).all()):
            scale = self.network.card.scale
            return first.expand(-1, -1, x.shape[2] * scale, x.shape[3] * scale)
        return self._colour(x).clamp(0, 1)
