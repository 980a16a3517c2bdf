"""HAT, the Hybrid Attention Transformer for super-resolution.

X. Chen, X. Wang, J. Zhou, Y. Qiao, C. Dong, "Activating More Pixels in Image Super-Resolution Transformer", CVPR 2023,
arXiv 2205.04437; journal extension arXiv 2309.05239. Axis letters: B batch, H and W rows and columns, D embedding channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.attention import STRIP_TOKENS, ChannelAttention, OverlappingCrossAttention, WindowAttention
from hybrid.blocks.chunks import accumulate
from hybrid.blocks.feedforward import FeedForward, StochasticDepth
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.resampling import in_strips, strip_rows, sub_pixel_stages
from hybrid.cards import ModelCard
from hybrid.families import create_from
from hybrid.initialisation import initialise_linears
from hybrid.weights.keys import KeyMap
from restore.models.base import Family
from restore.models.published import AbsolutePositions, WindowNetwork, build_windows, count_numbered, picture_mean, read_positions

PUBLISHED_CONV_SCALE = 0.01
TAIL_HALO = 4
"""Rows of context that the enlarging tail needs: one for each 3x3 convolution, counted at the input's resolution."""
TAIL_PIXELS = 32 * 64
"""Input pixels a strip of the tail: its feature maps are scale^2 as large, and in one piece would be the peak."""


@dataclass(frozen=True)
class HATConfig:
    """One HAT. Defaults are HAT x4 as published; widths are absolute, since ratios cannot be told from a file.

    Attributes:
        embed_dim: Channels D. depths, num_heads: Blocks and heads of each group.
        window, overlap_window: Edge of the query window, and of the key window of overlapping cross-attention.
        mlp_width, cab_width, squeeze_width: Hidden channels of the feed-forward, of the convolution branch and of its gate.
        conv_scale: Weight of the convolution branch; not in a file.
        img_range: Factor on the mean-free input; not in a file.
        img_size: Training patch; not in a file. Shifting is off when it does not exceed the window.
        drop_path: Rate of stochastic depth at the last block, in training; not in a file.
        positions: Edge of the one picture size of a network with an absolute position embedding; 0 for any size.
    """

    in_channels: int = 3
    embed_dim: int = 180
    depths: tuple[int, ...] = (6,) * 6
    num_heads: tuple[int, ...] = (6,) * 6
    window: int = 16
    overlap_window: int = 24
    mlp_width: int = 360
    cab_width: int = 60
    squeeze_width: int = 6
    num_feat: int = 64
    qkv_bias: bool = True
    patch_norm: bool = True
    group_convolution: bool = True
    scale: int = 4
    conv_scale: float = PUBLISHED_CONV_SCALE
    img_range: float = 1.0
    img_size: int = 64
    drop_path: float = 0.0
    positions: int = 0


class ConvolutionBranch(nn.Module):
    """CAB: two 3x3 convolutions and a channel gate (paper, section 3.2). (B, D, H, W) to the same."""

    def __init__(self, dim: int, width: int, squeeze_width: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(dim, width, 3, padding=1)
        self.restore = nn.Conv2d(width, dim, 3, padding=1)
        self.gate = ChannelAttention(dim, squeeze_width)

    def forward(self, x: Tensor, scale: float) -> Tensor:
        gated: Tensor = self.gate(self.restore(F.gelu(self.reduce(x))), scale)
        return gated


class HybridAttentionBlock(nn.Module):
    """HAB: window attention beside the convolution branch, then the feed-forward (paper, equations 2 and 3)."""

    def __init__(self, config: HATConfig, heads: int, shift: int, drop_path: float) -> None:
        super().__init__()
        dim = config.embed_dim
        self.shift, self.conv_scale = shift, config.conv_scale
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, (config.window,) * 2, heads, config.qkv_bias)
        self.convolution = ConvolutionBranch(dim, config.cab_width, config.squeeze_width)
        self.mlp = FeedForward(dim, config.mlp_width)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) to the same."""
        normed = self.norm1(x)
        total = accumulate(self.drop_path(self.attention(normed, (self.shift,) * 2)), x)
        total = accumulate(total, to_tokens(self.convolution(to_image(normed), self.conv_scale)))
        del normed
        return accumulate(self.drop_path(self.mlp(self.norm2(total))), total)


class OverlappingBlock(nn.Module):
    """OCAB: overlapping cross-attention and a feed-forward (paper, section 3.2)."""

    def __init__(self, config: HATConfig, heads: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        window, overlap = (config.window,) * 2, (config.overlap_window,) * 2
        self.attention = OverlappingCrossAttention(dim, window, overlap, heads, config.qkv_bias)
        self.mlp = FeedForward(dim, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) to the same."""
        total = accumulate(self.attention(self.norm1(x)), x)
        return accumulate(self.mlp(self.norm2(total)), total)


class ResidualGroup(nn.Module):
    """RHAG: the blocks of one group, then a 3x3 convolution, and the group's input added (paper, section 3.1)."""

    def __init__(self, config: HATConfig, depth: int, heads: int, drop_path: list[float]) -> None:
        super().__init__()
        half = config.window // 2 if config.img_size > config.window else 0
        self.blocks = nn.Sequential(
            *[HybridAttentionBlock(config, heads, half if i % 2 else 0, drop_path[i]) for i in range(depth)]
        )
        self.overlap = OverlappingBlock(config, heads)
        dim = config.embed_dim
        self.conv = nn.Conv2d(dim, dim, 3, padding=1) if config.group_convolution else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) to the same."""
        return accumulate(to_tokens(self.conv(to_image(self.overlap(self.blocks(x))))), x)


class HAT(WindowNetwork):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1], enlarged by `config.scale`."""

    def __init__(self, config: HATConfig) -> None:
        super().__init__()
        self.config = config
        dim, features, channels = config.embed_dim, config.num_feat, config.in_channels
        self.register_buffer("mean", picture_mean(channels), persistent=False)
        self.conv_first = nn.Conv2d(channels, dim, 3, padding=1)
        self.embed_norm = nn.LayerNorm(dim) if config.patch_norm else nn.Identity()
        self.positions = AbsolutePositions(config.positions, dim) if config.positions else nn.Identity()
        self.open_sides = not config.positions
        rates = torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").split(list(config.depths))
        self.groups = nn.Sequential(
            *[
                ResidualGroup(config, depth, heads, rate.tolist())
                for depth, heads, rate in zip(config.depths, config.num_heads, rates, strict=True)
            ]
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1) if config.group_convolution else nn.Identity()
        self.conv_before_upsample = nn.Conv2d(dim, features, 3, padding=1)
        self.upsample = sub_pixel_stages(features, config.scale)
        self.conv_last = nn.Conv2d(features, channels, 3, padding=1)
        initialise_linears(self)
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = _card(config)

    def restore(self, x: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        x = ((x - self.mean) * self.config.img_range).to(memory_format=torch.channels_last)
        shallow = self.conv_first(x)
        deep = self.norm(self.groups(self.positions(self.embed_norm(to_tokens(shallow)))))
        body = accumulate(self.conv_after_body(to_image(deep)), shallow)
        rows = strip_rows(TAIL_PIXELS, x.shape[-1], self.config.window)
        return in_strips(self._reconstruct, body, scale=self.config.scale, halo=TAIL_HALO, rows=rows)

    @torch.no_grad()
    def merge(self) -> HAT:
        """Bring the convolution branches to the published weight of 0.01, which loaders assume, without changing the output."""
        for block in self.modules():
            if isinstance(block, HybridAttentionBlock):
                for parameter in block.convolution.restore.parameters():
                    parameter.mul_(block.conv_scale / PUBLISHED_CONV_SCALE)
                block.conv_scale = PUBLISHED_CONV_SCALE
        self.config = replace(self.config, conv_scale=PUBLISHED_CONV_SCALE)
        return self

    def _reconstruct(self, body: Tensor) -> Tensor:
        features = self.upsample(F.leaky_relu(self.conv_before_upsample(body), 0.01))
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(features.device.type, enabled=False):
            assert isinstance(self.mean, Tensor)
            picture: Tensor = self.conv_last(features.float()) / self.config.img_range + self.mean
            return picture


def _card(config: HATConfig) -> ModelCard:
    # Measured peaks above the loaded model, D = 64 and 180, 128^2 to 384^2 pixels: 7.8 and 8.9 D a pixel, and beside
    # it what one strip of overlapping attention and one of the tail take.
    return ModelCard(
        family="hat",
        title="HAT",
        paper="Chen et al., Activating More Pixels in Image Super-Resolution Transformer, CVPR 2023, arXiv 2205.04437",
        code_licence="Apache-2.0",
        scale=config.scale,
        channels=config.in_channels,
        multiple=config.window,
        overlap=2 * config.window,
        fixed_size=config.positions,
        global_context=True,
        activation_floats=9 * config.embed_dim + 2 * config.in_channels * config.scale**2,
        working_floats=8 * STRIP_TOKENS * config.embed_dim,
    )


_BLOCK, _OUR_BLOCK = "layers.{}.residual_group.blocks.{}.", "groups.{}.blocks.{}."
_OVERLAP, _OUR_OVERLAP = "layers.{}.residual_group.overlap_attn.", "groups.{}.overlap."
KEYS = KeyMap(
    ("absolute_pos_embed", "positions.table"),
    ("patch_embed.norm.", "embed_norm."),
    (_BLOCK + "attn.relative_position_bias_table", _OUR_BLOCK + "attention.bias.table"),
    (_BLOCK + "attn.", _OUR_BLOCK + "attention."),
    (_BLOCK + "conv_block.cab.0.", _OUR_BLOCK + "convolution.reduce."),
    (_BLOCK + "conv_block.cab.2.", _OUR_BLOCK + "convolution.restore."),
    (_BLOCK + "conv_block.cab.3.attention.1.", _OUR_BLOCK + "convolution.gate.squeeze."),
    (_BLOCK + "conv_block.cab.3.attention.3.", _OUR_BLOCK + "convolution.gate.expand."),
    (_BLOCK, _OUR_BLOCK),
    (_OVERLAP + "relative_position_bias_table", _OUR_OVERLAP + "attention.bias.table"),
    (_OVERLAP + "qkv.", _OUR_OVERLAP + "attention.qkv."),
    (_OVERLAP + "proj.", _OUR_OVERLAP + "attention.proj."),
    (_OVERLAP, _OUR_OVERLAP),
    ("layers.{}.conv.", "groups.{}.conv."),
    ("conv_before_upsample.0.", "conv_before_upsample."),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for HAT: SwinIR shares the groups and blocks, but has neither of the last two keys."""
    group = "layers.0.residual_group."
    return {
        "conv_first.weight",
        group + "blocks.0.conv_block.cab.0.weight",
        group + "overlap_attn.relative_position_bias_table",
    } <= state.keys()


def read_config(state: Mapping[str, Tensor]) -> HATConfig:
    """The configuration that a state dict under published keys tells by its names and shapes.

    Raises:
        ValueError: Positions of an absolute embedding are no square.
    """
    positions = read_positions(state)
    groups = count_numbered(state, "layers.")
    group = "layers.{}.residual_group."
    tables = [state[group.format(g) + "overlap_attn.relative_position_bias_table"] for g in range(groups)]
    block = group.format(0) + "blocks.0."
    window = (isqrt(len(state[block + "attn.relative_position_bias_table"])) + 1) // 2
    stages = [value.shape for key, value in state.items() if re.fullmatch(r"upsample\.\d+\.weight", key)]
    return HATConfig(
        in_channels=state["conv_first.weight"].shape[1],
        embed_dim=state["conv_first.weight"].shape[0],
        depths=tuple(count_numbered(state, group.format(g) + "blocks.") for g in range(groups)),
        num_heads=tuple(table.shape[1] for table in tables),
        window=window,
        overlap_window=isqrt(len(tables[0])) + 1 - window,
        mlp_width=len(state[block + "mlp.fc1.weight"]),
        cab_width=len(state[block + "conv_block.cab.0.weight"]),
        squeeze_width=len(state[block + "conv_block.cab.3.attention.1.weight"]),
        num_feat=state["conv_last.weight"].shape[1],
        qkv_bias=block + "attn.qkv.bias" in state,
        patch_norm="patch_embed.norm.weight" in state,
        group_convolution="conv_after_body.weight" in state,
        scale=prod(isqrt(shape[0] // shape[1]) for shape in stages),
        **({"img_size": positions, "positions": positions} if positions else {}),
    )


FAMILY = Family(
    name="hat",
    matches=matches,
    build=build_windows(HAT, read_config),
    create=create_from(HAT, HATConfig),
    options=("conv_scale", "img_range", "img_size", "drop_path", "qk_scale"),
    in_weights=("qk_scale",),
    keys=KEYS,
    derived=("relative_position_index_SA", "relative_position_index_OCA"),
)
