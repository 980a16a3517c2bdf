"""The U-shape of Restormer: levels of half the side and twice the channels, with pixel shuffles between them.

Zamir et al., "Restormer: Efficient Transformer for High-Resolution Image Restoration", CVPR 2022, arXiv 2111.09881, figure 2.
Axis letters: B batch, H and W rows and columns, D channels of the first level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate
from hybrid.blocks.layout import to_image, to_tokens


class UShape(nn.Module):
    """Encoders down to the deepest level, decoders back up beside them; the last decoder has the channels of the level below.

    Args:
        dim: Channels D.
        depths: Blocks of each level, deepest last.
        block: Makes one block for a level, 0 the first, and its number of channels; it maps (B, H, W, C), which it may
            overwrite, to the same.
        bias: Whether the reductions after a concatenation have biases.
    """

    def __init__(self, dim: int, depths: Sequence[int], block: Callable[[int, int], nn.Module], bias: bool = False) -> None:
        super().__init__()
        dims = [dim * 2**level for level in range(len(depths))]

        def blocks(level: int, channels: int) -> nn.Sequential:
            return nn.Sequential(*[block(level, channels) for _ in range(depths[level])])

        self.encoders = nn.ModuleList(blocks(level, channels) for level, channels in enumerate(dims))
        self.downs = nn.ModuleList(nn.Conv2d(n, n // 2, 3, padding=1, bias=False) for n in dims[:-1])
        # Deepest first. The first level takes what comes from below and from beside it without reducing it to half.
        self.ups = nn.ModuleList(nn.Conv2d(n, 2 * n, 3, padding=1, bias=False) for n in reversed(dims[1:]))
        self.reduces = nn.ModuleList(nn.Conv2d(2 * n, n, 1, bias=bias) for n in reversed(dims[1:-1]))
        self.decoders = nn.ModuleList(blocks(level, dims[max(level, 1)]) for level in reversed(range(len(dims) - 1)))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D), which belongs to the caller and may be overwritten, to (B, H, W, 2 D).

        H and W are multiples of two to the number of levels less one.
        """
        kept: list[Tensor] = []
        kind = x.dtype  # the residual stream keeps it, whatever the steps compute in
        for level, encoder in enumerate(self.encoders):
            x = encoder(x)
            if level < len(self.downs):
                kept.append(x)
                x = to_tokens(F.pixel_unshuffle(self.downs[level](to_image(x)), 2)).to(kind)
        for step, decoder in enumerate(self.decoders):
            x = to_tokens(F.pixel_shuffle(self.ups[step](to_image(x)), 2)).to(kind)
            x = self._joined(step, x, kept.pop()).to(kind)  # what came from below is let go before the decoder runs
            x = decoder(x)
        return x

    def _joined(self, step: int, below: Tensor, beside: Tensor) -> Tensor:
        if step == len(self.reduces):
            return torch.cat([below, beside], -1)
        reduce = self.reduces[step]
        assert isinstance(reduce, nn.Conv2d)
        of_below, of_beside = reduce.weight.flatten(1).chunk(2, 1)
        return accumulate(F.linear(below, of_below, reduce.bias), F.linear(beside, of_beside))
