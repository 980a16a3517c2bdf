"""CFSR, convolutional super-resolution in the shape of a transformer: 9x9 depthwise gates instead of attention.

G. Wu, J. Jiang, J. Jiang, X. Liu, "Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach", IEEE
Transactions on Image Processing, 2024, arXiv 2401.05633. Axis letters: B batch, H and W rows and columns, D embedding channels.

The network has a training form, in which fixed edge filters with learned scales lie beside the depthwise kernels, and
the published form, in which they are merged into these kernels. Both give the same values; files of both load.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.convolution import EdgeFeedForward, LargeKernelMixer, PointwiseConvolution, edge_masks, merge_branches
from hybrid.blocks.resampling import in_strips
from hybrid.cards import ModelCard
from hybrid.keys import KeyMap
from restore.models.base import Family, RestorationNetwork

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean of DIV2K, subtracted from RGB inputs; not in the checkpoints."""
TAIL_PIXELS = 2**14
"""Input pixels a strip of the enlarging tail, whose maps are scale^2 as large as its output is deep."""


@dataclass(frozen=True)
class CFSRConfig:
    """One CFSR. Defaults are CFSR x4 as published.

    Attributes:
        embed_dim: Channels D. depths: Blocks of each layer. kernel: Edge of the mixer's depthwise kernel.
        mlp_ratio: Hidden channels of the feed-forward per channel.
        scale: Enlargement; 1 gives the form without a sub-pixel tail, which adds a picture to the input.
        branches: Training form, with edge filters beside the depthwise kernels.
        img_range: Factor on the mean-free input; not in a file.
    """

    in_channels: int = 3
    embed_dim: int = 48
    depths: tuple[int, ...] = (6, 6)
    kernel: int = 9
    mlp_ratio: int = 2
    scale: int = 4
    branches: bool = False
    img_range: float = 1.0


class ConvFormerBlock(nn.Module):
    """Mixer and edge-preserving feed-forward, each with its skip (paper, section III)."""

    def __init__(self, config: CFSRConfig) -> None:
        super().__init__()
        dim, branches = config.embed_dim, config.branches
        self.mixer = LargeKernelMixer(dim, config.kernel, branches=branches)
        self.feedforward = EdgeFeedForward(dim, config.mlp_ratio * dim, branches=branches)


class ResidualLayer(nn.Module):
    """The blocks of one layer, then a 1x1 convolution with a skip over it alone."""

    def __init__(self, config: CFSRConfig, depth: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(ConvFormerBlock(config) for _ in range(depth))
        self.conv = PointwiseConvolution(config.embed_dim, config.embed_dim)


class CFSR(RestorationNetwork):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1], enlarged by `config.scale`."""

    def __init__(self, config: CFSRConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.embed_dim, config.in_channels
        mean = RGB_MEAN if channels == 3 else (0.0,) * channels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.conv_first = nn.Conv2d(channels, dim, 3, padding=1)
        self.layers = nn.ModuleList(ResidualLayer(config, depth) for depth in config.depths)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        if config.scale > 1:
            self.upsample = nn.Conv2d(dim, channels * config.scale**2, 3, padding=1)
        else:
            self.conv_last = nn.Conv2d(dim, channels, 3, padding=1)
        # Tokens are channels-last images: convolutions follow them.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.card = _card(config)

    def merge(self) -> CFSR:
        """Fold the edge filters of the training form into the depthwise kernels, in place: the published form."""
        merge_branches(self)
        self.config = replace(self.config, branches=False)
        return self

    def restore(self, x: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        x = ((x - self.mean) * self.config.img_range).to(memory_format=torch.channels_last)
        # The residual stream and its norms are float32 whatever the branches compute in.
        shallow = to_tokens(self.conv_first(x)).float()
        grid = shallow
        for step in self._steps():  # one flat loop: no frame holds on to a map that has been used up
            grid = step(grid)
        grid = self.norm(grid)
        body = self.conv_after_body(to_image(grid)) + to_image(shallow)
        del grid, shallow
        if self.config.scale == 1:
            return self._tail(body, self.conv_last) + x / self.config.img_range
        rows = max(16, TAIL_PIXELS // x.shape[-1])
        return in_strips(self._enlarge, body, scale=self.config.scale, halo=1, rows=rows)

    def _steps(self) -> Iterator[nn.Module]:
        for layer in self.layers:
            assert isinstance(layer, ResidualLayer)
            for block in layer.blocks:
                assert isinstance(block, ConvFormerBlock)
                yield block.mixer
                yield block.feedforward
            yield _Skipping(layer.conv)

    def _enlarge(self, body: Tensor) -> Tensor:
        return F.pixel_shuffle(self._tail(body, self.upsample), self.config.scale)

    def _tail(self, body: Tensor, last: nn.Conv2d) -> Tensor:
        """The last convolution with the mean and range of the picture folded in."""
        # It is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(body.device.type, enabled=False):
            assert isinstance(self.mean, Tensor) and last.bias is not None
            mean = self.mean.flatten().repeat_interleave(last.out_channels // self.config.in_channels)
            weight, bias = last.weight / self.config.img_range, last.bias / self.config.img_range + mean
            return F.conv2d(body.float(), weight, bias, padding=1)
