"""The CSWin transformer as the encoder of a U-Net, for slices and for volumes.

X. Dong et al., "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", CVPR 2022,
arXiv 2107.00652. In slices it is the published backbone; in volumes the stem and the mergings are the same convolutions with
one axis more, and the attention has bars along three axes, which is an extension of this package.
Axis letters: B batch, C channels. Grids inside are channels-last, (B, *spatial, C).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import prod

import torch
from torch import Tensor, nn

from hybrid.blocks.cross_shaped import CSWinBlock
from hybrid.blocks.layout import to_image, to_tokens
from medical.models.unet_blocks import CONVOLUTIONS


@dataclass(frozen=True)
class CSWinConfig:
    """One U-Net with a CSWin encoder. Defaults are the published network for slices.

    Attributes:
        in_channels, out_channels: Channels of the image, and logits a pixel.
        embed_dim: Channels C of the first grid; they double with each stage.
        depths, num_heads: Blocks and heads of each stage. Published networks have four stages; fewer are ours.
        split_size: Width of the bars in each stage. The last stage attends over its whole grid, and does not read its own.
        mlp_ratio: Hidden channels of the feed-forward, in multiples of its channels.
        whole: Numbers of further stages, counted from 1, that attend over their whole grid. Published code does so where the
            grid it was made for is as large as the split.
        patch: Stride of the stem along each axis; its kernel is 2 * stride - 1 wide, 3 at least.
        strides: Stride of the merging between two stages along each axis; empty for 2 everywhere.
        drop_path: Rate of stochastic depth at the encoder's last block, in training; not in a file.
    """

    in_channels: int = 3
    out_channels: int = 9
    embed_dim: int = 64
    depths: tuple[int, ...] = (1, 2, 9, 1)
    num_heads: tuple[int, ...] = (2, 4, 8, 16)
    split_size: tuple[int, ...] = (1, 2, 7, 7)
    mlp_ratio: float = 4.0
    whole: tuple[int, ...] = ()
    patch: tuple[int, ...] = (4, 4)
    strides: tuple[tuple[int, ...], ...] = ()
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        for each in fields(self):  # files and recipes have lists
            if isinstance(value := getattr(self, each.name), (list, tuple)):
                object.__setattr__(self, each.name, tuple(tuple(v) if isinstance(v, (list, tuple)) else v for v in value))
        stages = len(self.depths)
        if not self.strides:
            object.__setattr__(self, "strides", ((2,) * len(self.patch),) * (stages - 1))
        if stages < 2 or not stages == len(self.num_heads) == len(self.split_size) == len(self.strides) + 1:
            raise ValueError(
                f"{stages} depths do not go with {len(self.num_heads)} numbers of heads, {len(self.split_size)} splits and "
                f"{len(self.strides)} strides; stages are two at least, with a stride between each two"
            )
        if self.spatial_dims not in CONVOLUTIONS or {len(s) for s in self.strides} != {self.spatial_dims}:
            raise ValueError(f"the patch {self.patch} and the strides {self.strides} are not all of two axes, or of three")

    @property
    def spatial_dims(self) -> int:
        """2 for slices, 3 for volumes."""
        return len(self.patch)

    @property
    def stages(self) -> range:
        """Their numbers, from 1 as published."""
        return range(1, len(self.depths) + 1)

    @property
    def multiples(self) -> tuple[int, ...]:
        """What each side of an image must be a multiple of, so that every grid is whole."""
        return tuple(prod(steps) for steps in zip(self.patch, *self.strides, strict=True))

    def width(self, stage: int) -> int:
        """Channels of a stage's grid."""
        return self.embed_dim << (stage - 1)

    def blocks(self, stage: int) -> nn.Sequential:
        """The blocks of a stage. Stochastic depth rises from block to block up to `drop_path` at the last one."""
        rates = torch.linspace(0, self.drop_path, sum(self.depths), device="cpu").split(list(self.depths))
        dim = self.width(stage)
        whole = stage == len(self.depths) or stage in self.whole
        heads, split, width = self.num_heads[stage - 1], self.split_size[stage - 1], int(dim * self.mlp_ratio)
        return nn.Sequential(
            *(CSWinBlock(dim, heads, split, width, self.spatial_dims, whole, rate) for rate in rates[stage - 1].tolist())
        )


class Merging(nn.Module):
    """A convolution of 3 along each axis, with a stride, to twice the channels; then a norm."""

    def __init__(self, dim: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        convolution: type[nn.Module] = CONVOLUTIONS[len(stride)]
        self.conv = convolution(dim, 2 * dim, 3, stride=stride, padding=1)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, *spatial / stride rounded up, 2 C)."""
        merged: Tensor = self.norm(to_tokens(self.conv(to_image(x))))
        return merged


class Encoder(nn.Module):
    """A stem of overlapping patches, then stages of CSWin blocks with mergings between them.

    Args:
        config: Of the network.
        skip_norms: Whether the grids of all stages are normalised for the decoder, each by a norm of its own, as in the
            published backbone for segmentation; otherwise the last one alone is.
    """

    def __init__(self, config: CSWinConfig, skip_norms: bool) -> None:
        super().__init__()
        kernel = tuple(max(3, 2 * step - 1) for step in config.patch)
        padding = tuple(max(1, step // 2) for step in config.patch)
        convolution: type[nn.Module] = CONVOLUTIONS[config.spatial_dims]
        self.embed = convolution(config.in_channels, config.embed_dim, kernel, stride=config.patch, padding=padding)
        self.embed_norm = nn.LayerNorm(config.embed_dim)
        self.stages = nn.ModuleDict({str(i): config.blocks(i) for i in config.stages})
        *inner, last = config.stages
        self.merges = nn.ModuleDict({str(i): Merging(config.width(i), config.strides[i - 1]) for i in inner})
        self.skip_norms = nn.ModuleDict({str(i): nn.LayerNorm(config.width(i)) for i in inner if skip_norms})
        self.norm = nn.LayerNorm(config.width(last))

    def grids(self, x: Tensor) -> list[Tensor]:
        """What the decoder sees of a (B, C, *spatial) image: (B, *spatial', C') of each stage, the finest first."""
        grid, seen = self.embed_norm(to_tokens(self.embed(x))), []
        for number, stage in self.stages.items():
            grid = stage(grid)
            if number not in self.merges:
                seen.append(self.norm(grid))
                break
            seen.append(self.skip_norms[number](grid) if number in self.skip_norms else grid)
            grid = self.merges[number](grid)
        return seen

    def forward(self, x: Tensor) -> list[Tensor]:
        """All grids of a (B, C, *spatial) image, as images (B, C', *spatial'), the finest first."""
        return [to_image(grid) for grid in self.grids(x)]
