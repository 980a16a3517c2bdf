"""Swin UNETR: a Swin transformer as the encoder of a convolutional U-Net, for volumes and for slices.

A. Hatamizadeh, V. Nath, Y. Tang, D. Yang, H. R. Roth, D. Xu, "Swin UNETR: Swin Transformers for Semantic Segmentation of
Brain Tumors in MRI Images", BrainLes at MICCAI 2021, arXiv 2201.01266; self-supervised encoders: Y. Tang et al., CVPR 2022,
arXiv 2111.14791; version 2, with a convolution before each stage: Y. He et al., MICCAI 2023.
Axis letters: B batch, C channels. Grids inside are channels-last, (B, *spatial, C).
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.layout import to_image, to_tokens
from hybrid.blocks.swin import SwinBlock
from hybrid.errors import WeightsError
from hybrid.families import build_from, create_from
from hybrid.weights.keys import KeyMap, count_numbered
from medical.models.base import Family, SegmentationCard, SegmentationNetwork
from medical.models.unet_blocks import CONVOLUTIONS, ResidualBlock, UpBlock, logits

PATCH = 2
"""Edge of the patches that become tokens."""
BOTTLENECK = 10
"""Published number of the block below the last stage, whatever the number of stages."""

MERGING_ORDERS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "legacy": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
    "merging15": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1)),
    "v2_091": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (1, 1, 0), (0, 1, 1), (1, 1, 1)),
    "v2": ((0, 0, 0), (0, 0, 1), (0, 1, 0), (0, 1, 1), (1, 0, 0), (1, 0, 1), (1, 1, 0), (1, 1, 1)),
}
"""In which order the eight neighbours of a volume are joined, by what MONAI did when the weights were trained: `merging` up
to 1.4 (which reads two neighbours twice and two never), `merging` from 1.5 on, `mergingv2` of 0.9.1, `mergingv2` from 1.0 on.
Shapes never tell it. In slices all versions agree."""


@dataclass(frozen=True)
class SwinUNETRConfig:
    """One Swin UNETR. Defaults are the smallest of the official segmentation recipes, f24.

    Attributes:
        in_channels, out_channels: Channels of the scan, and logits a voxel.
        spatial_dims: 3 for volumes, 2 for slices.
        feature_size: Channels C of the first grid; they double with each stage.
        depths, num_heads: Swin blocks and heads of each stage. Published networks have four stages; fewer are ours, for
            small structures in small scans.
        window: Edge of the attention window.
        mlp_ratio: Hidden channels of the feed-forward, in multiples of its channels.
        qkv_bias: Whether the projection to queries, keys and values has a bias.
        patch_norm: Whether the first tokens are normalised, which published networks do not do.
        stage_convolutions: Version 2: a residual block of convolutions before each stage.
        merging: Order of the neighbours where four or eight tokens become one, a name of MERGING_ORDERS; not in a file.
        normalize: Whether the decoder sees the encoder's grids normalised; not in a file.
        drop_path: Rate of stochastic depth at the last block, in training; not in a file.
    """

    in_channels: int = 1
    out_channels: int = 14
    spatial_dims: int = 3
    feature_size: int = 24
    depths: tuple[int, ...] = (2, 2, 2, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    patch_norm: bool = False
    stage_convolutions: bool = False
    merging: str = "legacy"
    normalize: bool = True
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.merging not in MERGING_ORDERS:
            raise ValueError(f"there is no merging order {self.merging!r}, only {', '.join(MERGING_ORDERS)}")
        if self.spatial_dims not in CONVOLUTIONS:
            raise ValueError(f"Swin UNETR has 2 or 3 spatial dimensions, not {self.spatial_dims}")
        if len(self.depths) != len(self.num_heads) or len(self.depths) < 2:
            raise ValueError(
                f"{len(self.depths)} depths do not go with {len(self.num_heads)} numbers of heads; stages are two at least"
            )
        object.__setattr__(self, "depths", tuple(self.depths))
        object.__setattr__(self, "num_heads", tuple(self.num_heads))

    @property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        """The neighbours of a patch merging, in their order."""
        if self.spatial_dims == 2:
            return tuple((h, w) for w, h in itertools.product((0, 1), repeat=2))
        return MERGING_ORDERS[self.merging]


class PatchMerging(nn.Module):
    """Join the neighbours of each block of two along every axis: norm, then a projection to twice the channels."""

    def __init__(self, dim: int, offsets: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        self.offsets = offsets
        self.norm = nn.LayerNorm(len(offsets) * dim)
        self.reduction = nn.Linear(len(offsets) * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) with even sides to (B, *spatial / 2, 2 C)."""
        parts = [x[(slice(None), *(slice(o, None, 2) for o in offset))] for offset in self.offsets]
        merged: Tensor = self.reduction(self.norm(torch.cat(parts, dim=-1)))
        return merged


class Stage(nn.Module):
    """Swin blocks, every second one shifted, then a patch merging; in version 2 a residual block before them."""

    def __init__(self, config: SwinUNETRConfig, number: int, drop_path: list[float]) -> None:
        super().__init__()
        dim, dims, window = config.feature_size * 2**number, config.spatial_dims, config.window
        self.convolution = ResidualBlock(dim, dim, dims) if config.stage_convolutions else None
        self.blocks = nn.ModuleList(
            SwinBlock(
                dim,
                (window,) * dims,
                config.num_heads[number],
                int(dim * config.mlp_ratio),
                (window // 2 if i % 2 else 0,) * dims,
                config.qkv_bias,
                rate,
                any_size=True,
            )
            for i, rate in enumerate(drop_path)
        )
        self.merging = PatchMerging(dim, config.offsets)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) with even sides to (B, *spatial / 2, 2 C)."""
        if self.convolution is not None:
            x = self.convolution(x)
        for block in self.blocks:
            x = block(x)
        merged: Tensor = self.merging(x)
        return merged


class Encoder(nn.Module):
    """The Swin transformer: patches become tokens, and each stage halves the grid and doubles the channels."""

    def __init__(self, config: SwinUNETRConfig) -> None:
        super().__init__()
        dim = config.feature_size
        self.normalize = config.normalize
        self.embed = CONVOLUTIONS[config.spatial_dims](config.in_channels, dim, PATCH, stride=PATCH)
        self.embed_norm = nn.LayerNorm(dim) if config.patch_norm else nn.Identity()
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").split(list(config.depths))
        # Stages are numbered from 1, as published.
        self.stages = nn.ModuleDict({str(i + 1): Stage(config, i, rate.tolist()) for i, rate in enumerate(rates)})

    def tokens(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) to the first grid, (B, *spatial / 2, C')."""
        tokens: Tensor = self.embed_norm(to_tokens(self.embed(x)))
        return tokens

    def hidden(self, x: Tensor) -> Tensor:
        """What the decoder sees of a grid."""
        return F.layer_norm(x, x.shape[-1:]) if self.normalize else x

    def forward(self, x: Tensor) -> list[Tensor]:
        """All hidden grids of a (B, C, *spatial) image, (B, C', *spatial') each, the finest first."""
        grid = self.tokens(x)
        seen = [self.hidden(grid)]
        for stage in self.stages.values():
            grid = stage(grid)
            seen.append(self.hidden(grid))
        return [to_image(grid) for grid in seen]


class SwinUNETR(SegmentationNetwork):
    """The whole network. Takes (B, C, *spatial) float32 and returns logits (B, classes, *spatial)."""

    def __init__(self, config: SwinUNETRConfig) -> None:
        super().__init__()
        self.config = config
        dim, dims, stages = config.feature_size, config.spatial_dims, len(config.depths)
        self.encoder = Encoder(config)
        # Numbered as published: block 1 refines the image, block i + 2 the grid before stage i + 1, block 10 the last grid.
        self.refine = nn.ModuleDict({"1": ResidualBlock(config.in_channels, dim, dims)})
        self.refine.update({str(i + 2): ResidualBlock(dim * 2**i, dim * 2**i, dims) for i in range(stages - 1)})
        self.refine[str(BOTTLENECK)] = ResidualBlock(dim * 2**stages, dim * 2**stages, dims)
        self.decoder = nn.ModuleDict(
            {str(i + 1): UpBlock(dim * 2**i, dim * 2 ** max(0, i - 1), dims) for i in range(stages, -1, -1)}
        )
        self.head = CONVOLUTIONS[dims](dim, config.out_channels, 1)
        self.card = _card(config)

    def options(self) -> dict[str, Any]:
        return {"merging": self.config.merging, "normalize": self.config.normalize}

    def padded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """As for all networks; and the last grid has two tokens at least, since instance norm makes nothing of one."""
        sides = super().padded(shape)
        return sides if any(n > self.card.multiple for n in sides) else (2 * sides[0], *sides[1:])

    def segment(self, x: Tensor) -> Tensor:
        grid = self.encoder.tokens(x)
        skips = []
        for number, stage in self.encoder.stages.items():
            # Refined at once, so that no grid is kept twice.
            skip = self.encoder.hidden(grid)
            refine = str(int(number) + 1)
            skips.append(self.refine[refine](skip) if refine in self.refine else skip)
            grid = stage(grid)
        grid = self.refine[str(BOTTLENECK)](self.encoder.hidden(grid))
        for block in self.decoder.values():
            # The clone gives one channel the strides of channels-last too, which tell torch the layout of the result.
            skip = skips.pop() if skips else self.refine["1"](x.movedim(1, -1).clone(memory_format=torch.contiguous_format))
            grid = block(grid, skip)
        return logits(grid, self.head)


def _card(config: SwinUNETRConfig) -> SegmentationCard:
    return SegmentationCard(
        family="swin_unetr",
        title="Swin UNETR",
        paper="Hatamizadeh et al., Swin UNETR: Swin Transformers for Semantic Segmentation of Brain Tumors in MRI Images, "
        "BrainLes 2021, arXiv 2201.01266",
        code_licence="Apache-2.0",
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        multiple=PATCH * 2 ** len(config.depths),
        # Measured peaks above the loaded model, at 96 to 128 voxels and 768 pixels a side: 4.3 to 5.0 C.
        activation_floats=5 * config.feature_size + config.in_channels,
    )


_STAGE, _OUR_STAGE = "swinViT.layers{}.0.", "encoder.stages.{}."
_BLOCK, _OUR_BLOCK = _STAGE + "blocks.{}.", _OUR_STAGE + "blocks.{}."
KEYS = KeyMap(
    ("swinViT.patch_embed.proj.", "encoder.embed."),
    ("swinViT.patch_embed.norm.", "encoder.embed_norm."),
    (_BLOCK + "attn.relative_position_bias_table", _OUR_BLOCK + "attention.bias.table"),
    (_BLOCK + "attn.", _OUR_BLOCK + "attention."),
    (_BLOCK + "mlp.linear1.", _OUR_BLOCK + "mlp.fc1."),
    (_BLOCK + "mlp.linear2.", _OUR_BLOCK + "mlp.fc2."),
    (_BLOCK, _OUR_BLOCK),
    (_STAGE + "downsample.", _OUR_STAGE + "merging."),
    ("swinViT.layers{}c.0.layer.conv{}.conv.", _OUR_STAGE + "convolution.conv{}."),
    ("encoder{}.layer.conv{}.conv.", "refine.{}.conv{}."),
    ("decoder{}.transp_conv.conv.", "decoder.{}.up."),
    ("decoder{}.conv_block.conv{}.conv.", "decoder.{}.block.conv{}."),
    ("out.conv.conv.", "head."),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for Swin UNETR: UNETR and Swin classifiers share some of these names, but not all."""
    return {
        "swinViT.patch_embed.proj.weight",
        "swinViT.layers1.0.blocks.0.attn.relative_position_bias_table",
        "decoder1.transp_conv.conv.weight",
        "out.conv.conv.weight",
    } <= state.keys()


def read_config(state: Mapping[str, Tensor]) -> SwinUNETRConfig:
    """The configuration that a state dict under published keys tells; `merging` is the order that goes with its version.

    Raises:
        WeightsError: Patches, windows or norms are of a kind that no published network has.
    """
    patches, block = state["swinViT.patch_embed.proj.weight"], "swinViT.layers{}.0.blocks."
    depths = tuple(itertools.takewhile(bool, (count_numbered(state, block.format(number)) for number in itertools.count(1))))
    tables = [state[block.format(i + 1) + "0.attn.relative_position_bias_table"] for i in range(len(depths))]
    dims = patches.ndim - 2
    offsets = round(len(tables[0]) ** (1 / dims))
    unknown = {
        "a patch other than 2": set(patches.shape[2:]) != {PATCH},
        "a window that is no cube": offsets**dims != len(tables[0]) or offsets % 2 == 0,
        "norms with weights in its decoder": any(re.fullmatch(r"(en|de)coder\d+\..*norm\d\..*", key) for key in state),
    }
    if any(unknown.values()):
        raise WeightsError(
            f"This Swin UNETR has {' and '.join(what for what, found in unknown.items() if found)}, which is not supported.",
            hint="Use weights of the published form: patch 2, instance norm without weights.",
        )
    dim, stage_convolutions = patches.shape[0], "swinViT.layers1c.0.layer.conv1.conv.weight" in state
    return SwinUNETRConfig(
        in_channels=patches.shape[1],
        out_channels=len(state["out.conv.conv.weight"]),
        spatial_dims=dims,
        feature_size=dim,
        depths=depths,
        num_heads=tuple(table.shape[1] for table in tables),
        window=(offsets + 1) // 2,
        mlp_ratio=len(state[block.format(1) + "0.mlp.linear1.weight"]) / dim,
        qkv_bias=block.format(1) + "0.attn.qkv.bias" in state,
        patch_norm="swinViT.patch_embed.norm.weight" in state,
        stage_convolutions=stage_convolutions,
        merging="v2" if stage_convolutions else "legacy",
    )


FAMILY = Family(
    name="swin_unetr",
    matches=matches,
    build=build_from(SwinUNETR, read_config),
    create=create_from(SwinUNETR, SwinUNETRConfig),
    options=("merging", "normalize", "drop_path"),
    keys=KEYS,
    derived=("*.relative_position_index",),
)
