"""CRAFT, super-resolution by rectangle-window attention that is corrected by high frequencies.

A. Li, L. Zhang, Y. Liu, C. Zhu, "Feature Modulation Transformer: Cross-Refinement of Global Representation via
High-Frequency Prior for Image Super-Resolution", ICCV 2023. Axis letters: B batch, H and W rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt, lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate
from hybrid.blocks.convolution import PointwiseConvolution, in_row_strips
from hybrid.blocks.feedforward import FeedForward
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.resampling import in_strips, strip_rows
from hybrid.blocks.split_windows import SplitWindowAttention
from hybrid.blocks.transposed import STRIP_PIXELS, GatedFeedForward, TransposedCrossAttention
from hybrid.cards import ModelCard
from hybrid.families import create_from
from hybrid.initialisation import initialise_linears
from hybrid.weights.keys import KeyMap
from restore.models.base import Family
from restore.models.published import WindowNetwork, build_windows, count_numbered, picture_mean

TAIL_HALO = 2
"""Rows of context that the tail needs: one for each 3x3 convolution."""


@dataclass(frozen=True)
class CRAFTConfig:
    """One CRAFT. Defaults are CRAFT x4 as published; widths are absolute, since ratios cannot be told from a file.

    Attributes:
        embed_dim: Channels C. depths, num_heads: Stages and heads of each group.
        split_size: Window of half of the channels, rows and columns; the other half has it turned.
        mlp_width, gated_width: Hidden channels of the transformer's feed-forward and of the fusion's.
        bias_width: Hidden channels of the position bias; with one it has no effect.
        img_range: Factor on the mean-free input; not in a file.
    """

    in_channels: int = 3
    embed_dim: int = 48
    depths: tuple[int, ...] = (2,) * 4
    num_heads: tuple[int, ...] = (6,) * 4
    split_size: tuple[int, int] = (4, 16)
    mlp_width: int = 96
    gated_width: int = 127
    bias_width: int = 1
    qkv_bias: bool = True
    body_convolution: bool = True
    scale: int = 4
    img_range: float = 1.0


class RectangleWindowBlock(nn.Module):
    """SRWAB: attention in lying and standing windows, then the feed-forward (paper, section 3.2)."""

    def __init__(self, config: CRAFTConfig, heads: int, rolled: bool) -> None:
        super().__init__()
        dim, (short, long) = config.embed_dim, config.split_size
        self.rolled = rolled
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        windows = ((short, long), (long, short))
        self.attention = SplitWindowAttention(dim, windows, heads, config.bias_width, config.qkv_bias)
        self.mlp = FeedForward(dim, config.mlp_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        total = accumulate(self.attention(self.norm1(x), self.rolled), x)
        return accumulate(self.mlp(self.norm2(total)), total)


class HighFrequencyBlock(nn.Module):
    """HFERB: a convolution of one half of the channels, the local maximum of the other, and a skip (paper, section 3.3)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv = nn.Conv2d(half, half, 3, padding=1)
        self.fc = PointwiseConvolution(half, half)
        self.last_fc = PointwiseConvolution(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        return in_row_strips(self._enhance, x, halo=1, pixels=STRIP_PIXELS)

    def _enhance(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        edges = F.gelu(to_tokens(self.conv(to_image(first))))
        peaks = F.gelu(self.fc(to_tokens(F.max_pool2d(to_image(second), 3, stride=1, padding=1))))
        return accumulate(self.last_fc(torch.cat([edges, peaks], -1)), x)


class FusionBlock(nn.Module):
    """HFB: channel attention whose queries are the high frequencies, then a gated feed-forward (paper, section 3.4)."""

    def __init__(self, config: CRAFTConfig, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.embed_dim), nn.LayerNorm(config.embed_dim)
        self.attention = TransposedCrossAttention(config.embed_dim, heads)
        self.feedforward = GatedFeedForward(config.embed_dim, config.gated_width)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """(B, H, W, C) twice to the same."""
        total = accumulate(self.attention(high, self.norm1(low)), low)
        return in_row_strips(self._feed, total, halo=self.feedforward.halo, pixels=STRIP_PIXELS)

    def _feed(self, x: Tensor) -> Tensor:
        return accumulate(self.feedforward(self.norm2(x)), x)


class ResidualGroup(nn.Module):
    """RCRFG: stages of two window blocks beside a high-frequency block, fused; a 3x3 convolution, a skip (paper, section 3.1)."""

    def __init__(self, config: CRAFTConfig, depth: int, heads: int) -> None:
        super().__init__()
        self.window_blocks = nn.ModuleList(RectangleWindowBlock(config, heads, rolled=bool(j % 2)) for j in range(2 * depth))
        self.high_blocks = nn.ModuleList(HighFrequencyBlock(config.embed_dim) for _ in range(depth))
        self.fusion_blocks = nn.ModuleList(FusionBlock(config, heads) for _ in range(depth))
        self.conv = nn.Conv2d(config.embed_dim, config.embed_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        stage = x
        pairs = zip(self.window_blocks[::2], self.window_blocks[1::2], strict=True)
        for pair, high, fuse in zip(pairs, self.high_blocks, self.fusion_blocks, strict=True):
            enhanced = high(stage)
            for block in pair:
                stage = block(stage)
            stage = fuse(stage, enhanced)
        return accumulate(to_tokens(self.conv(to_image(stage))), x)


class CRAFT(WindowNetwork):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1], enlarged by `config.scale`."""

    def __init__(self, config: CRAFTConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.embed_dim, config.in_channels
        self.register_buffer("mean", picture_mean(channels), persistent=False)
        self.conv_first = nn.Conv2d(channels, dim, 3, padding=1)
        self.groups = nn.Sequential(
            *[ResidualGroup(config, depth, heads) for depth, heads in zip(config.depths, config.num_heads, strict=True)]
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1) if config.body_convolution else nn.Identity()
        self.upsample = nn.Conv2d(dim, channels * config.scale**2, 3, padding=1)
        initialise_linears(self)
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = _card(config)

    def restore(self, x: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        x = ((x - self.mean) * self.config.img_range).to(memory_format=torch.channels_last)
        shallow = self.conv_first(x)
        deep = to_image(self.groups(to_tokens(shallow)))
        rows = strip_rows(STRIP_PIXELS, x.shape[-1])
        return in_strips(self._reconstruct, deep, shallow, scale=self.config.scale, halo=TAIL_HALO, rows=rows)

    def _reconstruct(self, deep: Tensor, shallow: Tensor) -> Tensor:
        body = accumulate(self.conv_after_body(to_image(self.norm(to_tokens(deep)))), shallow)
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(body.device.type, enabled=False):
            assert isinstance(self.mean, Tensor)
            return F.pixel_shuffle(self.upsample(body.float()), self.config.scale) / self.config.img_range + self.mean


def _card(config: CRAFTConfig) -> ModelCard:
    # Alive in a window block: both skips, the high frequencies, its input, norm, values, attended values and their local
    # term, the indices of the windows; then the output. Measured a pixel, 256^2 to 512^2: 9.8 C (C = 48) and 9.2 C (96).
    dim, outputs = config.embed_dim, config.in_channels * config.scale**2
    return ModelCard(
        family="craft",
        title="CRAFT",
        paper="Li et al., Feature Modulation Transformer: Cross-Refinement of Global Representation via High-Frequency Prior "
        "for Image Super-Resolution, ICCV 2023",
        code_licence="Apache-2.0",
        scale=config.scale,
        channels=config.in_channels,
        multiple=lcm(*config.split_size),
        overlap=4 * max(config.split_size),  # rolled windows mix opposite sides of a tile, so its margin is worth less
        global_context=True,
        activation_floats=round(1.1 * (9 * dim + 16 + outputs)),
        working_floats=STRIP_PIXELS * (6 * dim + 9 * config.gated_width),
    )


_GROUP = "layers.{}.residual_group."
_WINDOW, _OUR_WINDOW = _GROUP + "srwa_blocks.{}.", "groups.{}.window_blocks.{}."
_FUSION, _OUR_FUSION = _GROUP + "hf_blocks.{}.", "groups.{}.fusion_blocks.{}."
_POSITION, _OUR_POSITION = _WINDOW + "attns.{}.pos.", _OUR_WINDOW + "attention.biases.{}."
KEYS = KeyMap(
    (_POSITION + "pos_proj.", _OUR_POSITION + "embed."),
    *((f"{_POSITION}pos{n + 1}.", f"{_OUR_POSITION}layers.{n}.") for n in range(3)),
    (_WINDOW + "get_v.", _OUR_WINDOW + "attention.local."),
    (_WINDOW + "qkv.", _OUR_WINDOW + "attention.qkv."),
    (_WINDOW + "proj.", _OUR_WINDOW + "attention.proj."),
    (_WINDOW, _OUR_WINDOW),
    (_FUSION + "norm1.body.", _OUR_FUSION + "norm1."),
    (_FUSION + "norm2.body.", _OUR_FUSION + "norm2."),
    (_FUSION + "attn.", _OUR_FUSION + "attention."),
    (_FUSION + "ffn.", _OUR_FUSION + "feedforward."),
    (_GROUP + "hfer_blocks.{}.", "groups.{}.high_blocks.{}."),
    ("layers.{}.conv.", "groups.{}.conv."),
    ("norm.body.", "norm."),
    ("upsample.0.", "upsample."),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for CRAFT."""
    return {"conv_first.weight", "layers.0.residual_group.hf_blocks.0.attn.temperature"} <= state.keys()


def read_config(state: Mapping[str, Tensor]) -> CRAFTConfig:
    """The configuration that a state dict under published keys tells by its names and shapes."""
    groups = range(count_numbered(state, "layers."))
    dim, channels = state["conv_first.weight"].shape[:2]
    window, fusion = _WINDOW.format(0, 0), _FUSION.format(0, 0)
    config = CRAFTConfig(
        in_channels=channels,
        embed_dim=dim,
        depths=tuple(count_numbered(state, _GROUP.format(g) + "hf_blocks.") for g in groups),
        num_heads=tuple(len(state[_FUSION.format(g, 0) + "attn.temperature"]) for g in groups),
        mlp_width=len(state[window + "mlp.fc1.weight"]),
        gated_width=state[fusion + "ffn.project_out.weight"].shape[1],
        bias_width=len(state[window + "attns.0.pos.pos_proj.weight"]),
        qkv_bias=window + "qkv.bias" in state,
        body_convolution="conv_after_body.weight" in state,
        scale=isqrt(len(state["upsample.0.weight"]) // channels),
    )
    if "biases_h" not in state:  # the table of offsets, computed by the network: files stripped of it are as published
        return config
    rows, columns = (int(size) + 1 for size in state["biases_h"].amax(0))
    return replace(config, split_size=(rows, columns))


def build(state: Mapping[str, Tensor], **options: Any) -> CRAFT:
    """CRAFT for a checkpoint.

    `options`: `img_range`; `qk_scale`, the factor on products of queries and keys; `split_size`, rows and columns of the
    windows, or each by its published name, `split_size_0` and `split_size_1`.
    """
    told = read_config(state)
    rows, columns = options.pop("split_size", told.split_size)
    options["split_size"] = (options.pop("split_size_0", rows), options.pop("split_size_1", columns))
    return build_windows(CRAFT, lambda _: told)(state, **options)


FAMILY = Family(
    name="craft",
    matches=matches,
    build=build,
    create=create_from(CRAFT, CRAFTConfig),
    # A file that was stripped of its tables does not tell the split.
    options=("img_range", "split_size", "split_size_0", "split_size_1", "qk_scale"),
    in_weights=("qk_scale",),
    keys=KEYS,
    derived=("relative_position_index_[hv]", "biases_[hv]"),
)
