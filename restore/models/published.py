"""What published super-resolution networks of one lineage (EDSR, SwinIR, HAT) share beside their blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite, isqrt
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hybrid.blocks.attention import OverlappingCrossAttention, WindowAttention
from hybrid.blocks.split_windows import SplitWindowAttention
from hybrid.families import build_from
from hybrid.weights.keys import count_numbered
from restore.models.base import RestorationNetwork

__all__ = ["RGB_MEAN", "AbsolutePositions", "WindowNetwork", "build_windows", "count_numbered", "picture_mean", "read_positions"]

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of DIV2K, subtracted from RGB inputs; not in the checkpoints."""


class AbsolutePositions(nn.Module):
    """An embedding of each position, which is added to the tokens of pictures of one size (Dosovitskiy et al., ViT, ICLR 2021).

    Args:
        edge: Of the square of positions. dim: Channels D.
    """

    def __init__(self, edge: int, dim: int) -> None:
        super().__init__()
        self.edge = edge
        self.table = nn.Parameter(torch.zeros(1, edge**2, dim))
        nn.init.normal_(self.table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) to the same.

        Raises:
            ValueError: There are not as many positions.
        """
        _, height, width, _ = x.shape
        if height * width != self.edge**2:
            raise ValueError(
                f"the network has an absolute position embedding, for pictures with as many positions as "
                f"{self.edge} x {self.edge}; this one is {width} x {height}, filled up to whole windows"
            )
        return x + self.table.view(1, height, width, -1)


def read_positions(state: Mapping[str, Tensor]) -> int:
    """Edge of the one picture size of a checkpoint with an absolute position embedding; 0 of one without.

    Raises:
        ValueError: Its positions are no square.
    """
    table = state.get("absolute_pos_embed")
    edge = 0 if table is None else isqrt(table.shape[1])
    if table is not None and table.shape[1] != edge**2:
        raise ValueError(f"its {table.shape[1]} positions are no square")
    return edge


class WindowNetwork(RestorationNetwork):
    """Base of networks of window attention, whose files do not tell the factor on products of queries and keys.

    Attributes:
        qk_scale: That factor for all blocks, until the weights of a file are in; None or 0 for the usual 1 / sqrt(d), with d
            channels a head.
    """

    qk_scale: float | None = None

    @torch.no_grad()
    def loaded(self) -> None:
        """Bring the weights of queries to the usual factor, which is the one that is computed with; results stay the same."""
        for module in self.modules() if self.qk_scale else ():
            if isinstance(module, (WindowAttention, OverlappingCrossAttention, SplitWindowAttention)):
                shapes = len(module.windows) if isinstance(module, SplitWindowAttention) else 1
                dim = module.proj.in_features
                for parameter in module.qkv.parameters():
                    parameter[:dim] *= self.qk_scale * (dim / (module.num_heads * shapes)) ** 0.5  # queries come first
        self.qk_scale = None


W = TypeVar("W", bound=WindowNetwork)


def build_windows(network: Callable[..., W], read_config: Callable[[Mapping[str, Tensor]], Any]) -> Callable[..., W]:
    """`Family.build` of networks of window attention: options are fields of the configuration, and `qk_scale`."""
    plain = build_from(network, read_config)

    def build(state: Mapping[str, Tensor], *, qk_scale: float | None = None, **options: Any) -> W:
        made = plain(state, **options)
        if not isfinite(factor := float(qk_scale or 0)):
            raise ValueError(f"qk_scale {qk_scale} is no factor")
        made.qk_scale = factor
        return made

    return build


def picture_mean(channels: int) -> Tensor:
    """(1, C, 1, 1): what is subtracted from the input; zeros for anything but RGB."""
    return torch.tensor(RGB_MEAN if channels == 3 else (0.0,) * channels).view(1, -1, 1, 1)
