"""Geometric self-ensemble: one network on the eight flips and turns of a picture, its results turned back and averaged.

Source: Timofte et al., "Seven ways to improve example-based single image super resolution", CVPR 2016, section 3.6;
Lim et al., "Enhanced deep residual networks for single image super-resolution" (EDSR), CVPR Workshops 2017, who mark it "+".
Axes: (B, ..., C, H, W); only the last two are turned.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from restore.models.base import RestorationNetwork

VIEWS = 8
"""The symmetries of the square: with and without a flip of rows, of columns, and an exchange of the two."""
NOTE = "Self-ensemble: the mean of the network's results on the eight flips and turns of each tile."


class SelfEnsemble(RestorationNetwork):
    """A network that stands where the one inside did: eight times the time, and one result more in memory.

    Attributes:
        network: The network that runs, one view after the other.
        card: Its card, with room for the running sum.
        note: What a record says of it.
    """

    def __init__(self, network: RestorationNetwork) -> None:
        super().__init__()
        self.network = network
        self.note = NOTE
        card = network.card
        summed = card.outputs * card.out_channels * card.scale**2
        self.card = replace(card, activation_floats=card.activation_floats + summed, result=None)
        self.precision, self.source, self.precision_verdict = network.precision, network.source, network.precision_verdict
        self.train(network.training)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the mean of eight results (B, ..., C, H * scale, W * scale), summed in float32."""
        total: Tensor | None = None
        for axes, swap in _views():
            y = self.network.result(_turn(x, axes, swap)).float()
            y = (y.transpose(-2, -1) if swap else y).flip(axes)  # undone in the opposite order
            total = y if total is None else total.add_(y)
        assert total is not None
        return total.div_(VIEWS)


def _views() -> Iterator[tuple[tuple[int, ...], bool]]:
    """The axes that a view flips, and whether it exchanges rows and columns afterwards; the picture as it is first."""
    for swap in (False, True):
        for axes in ((), (-1,), (-2,), (-2, -1)):
            yield axes, swap


def _turn(x: Tensor, axes: tuple[int, ...], swap: bool) -> Tensor:
    flipped = x.flip(axes) if axes else x
    return flipped.transpose(-2, -1).contiguous() if swap else flipped
