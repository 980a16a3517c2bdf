"""DRCT, the dense-residual-connected transformer for super-resolution.

C.-C. Hsu, C.-M. Lee, Y.-S. Chou, "DRCT: Saving Image Super-Resolution away from Information Bottleneck", CVPR Workshops
2024, arXiv 2404.00722. Axis letters: B batch, H and W rows and columns, D embedding channels, G channels that a block
adds, N tokens of a window, h heads.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import CHUNK_TOKENS, accumulate, chunk_length
from hybrid.blocks.convolution import PointwiseConvolution
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.resampling import in_strips, strip_rows, sub_pixel_stages
from hybrid.blocks.swin import SwinBlock
from hybrid.blocks.windows import group_rows
from hybrid.cards import ModelCard
from hybrid.families import create_from
from hybrid.initialisation import initialise_linears
from hybrid.weights.keys import KeyMap
from restore.models.base import Family
from restore.models.published import AbsolutePositions, WindowNetwork, build_windows, count_numbered, picture_mean, read_positions

BLOCKS = 5
"""Swin blocks of a group."""
TAIL_FEATURES = 64
"""Channels between the body and the enlarged picture."""
TAIL_HALO = 4
"""Rows of context that the tail needs: one for each 3x3 convolution, counted at the input's resolution."""
TAIL_PIXELS = 32 * 64
"""Input pixels a strip of the tail: its feature maps are scale^2 as large, and in one piece would be the peak."""


@dataclass(frozen=True)
class DRCTConfig:
    """One DRCT. Defaults are DRCT x4 as published. Heads and widths are absolute, one for each block of a group.

    Attributes:
        embed_dim: Channels D. growth: Channels G that each block but the last adds for those after it.
        heads: For each group the heads of its five blocks; block k has D + k G channels to share among them.
        mlp_widths: Hidden channels of the five feed-forwards of a group.
        window: Window edge. shifted: Whether the second and the fourth block roll the grid by half a window.
        img_range: Factor on the mean-free input; not in a file.
        drop_path: Rate of stochastic depth, in training; not in a file.
        positions: Edge of the one picture size of a network with an absolute position embedding; 0 for any size.
    """

    in_channels: int = 3
    embed_dim: int = 180
    growth: int = 32
    heads: tuple[tuple[int, ...], ...] = ((6, 4, 2, 6, 4),) * 6
    mlp_widths: tuple[int, ...] = (360, 424, 488, 276, 308)
    window: int = 16
    shifted: bool = True
    qkv_bias: bool = True
    patch_norm: bool = True
    body_convolution: bool = True
    scale: int = 4
    img_range: float = 1.0
    drop_path: float = 0.0
    positions: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels that each block of a group reads; the last is the width of all that a group holds."""
        return tuple(self.embed_dim + k * self.growth for k in range(BLOCKS))


class DenseGroup(nn.Module):
    """RDG: five Swin blocks, each of which reads the group's input and what all blocks before it added (paper, section 3.2)."""

    def __init__(self, config: DRCTConfig, heads: tuple[int, ...], drop_path: float) -> None:
        super().__init__()
        half = config.window // 2 if config.shifted else 0
        plans = zip(config.widths, heads, config.mlp_widths, strict=True)
        self.blocks = nn.ModuleList(
            SwinBlock(dim, (config.window,) * 2, h, mlp, (half * (k % 2),) * 2, config.qkv_bias, drop_path)
            for k, (dim, h, mlp) in enumerate(plans)
        )
        added = [config.growth] * (BLOCKS - 1) + [config.embed_dim]
        self.adjust = nn.ModuleList(PointwiseConvolution(dim, new) for dim, new in zip(config.widths, added, strict=True))

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) to the same."""
        features = [x]
        for block, adjust in zip(self.blocks, self.adjust, strict=True):
            features.append(adjust(block(torch.cat(features, -1))))
            if len(features) <= BLOCKS:
                features[-1] = F.leaky_relu(features[-1], 0.2)
        return x + 0.2 * features[-1]

    def in_place(self, grid: Tensor) -> None:
        """The same on the first D channels of a grid (B, H, W, D + 4 G) whose others are room for what the blocks add.

        Nothing but what is added leaves a window, so each block takes a few windows at a time from gathering to adding.
        """
        tokens = grid.view(-1, grid.shape[-1])
        for block, adjust in zip(self.blocks, self.adjust, strict=True):
            assert isinstance(block, SwinBlock)
            dim, n = block.norm1.weight.shape[0], prod(block.attention.window)
            plan = block.attention.plan(grid, block.shift)
            biases = block.attention.biases(plan, grid.dtype)
            for group, rows in group_rows(plan, n, chunk_length(len(tokens) // n, n)):
                windows = tokens[:, :dim].index_select(0, rows).view(-1, n, dim)
                new = adjust(block.on_windows(windows, biases[group])).flatten(0, 1).to(tokens.dtype)
                if block is self.blocks[-1]:
                    tokens[:, : new.shape[1]].index_add_(0, rows, new, alpha=0.2)
                else:
                    tokens[:, dim : dim + new.shape[1]].index_copy_(0, rows, F.leaky_relu_(new, 0.2))


class DRCT(WindowNetwork):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1], enlarged by `config.scale`."""

    def __init__(self, config: DRCTConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.embed_dim, config.in_channels
        self.register_buffer("mean", picture_mean(channels), persistent=False)
        self.conv_first = nn.Conv2d(channels, dim, 3, padding=1)
        self.embed_norm = nn.LayerNorm(dim) if config.patch_norm else nn.Identity()
        self.positions = AbsolutePositions(config.positions, dim) if config.positions else nn.Identity()
        self.open_sides = not config.positions
        # Published rates rise over six blocks a group, of which the first rate serves the whole group.
        steps = max(1, 6 * len(config.heads) - 1)
        self.groups = nn.Sequential(
            *[DenseGroup(config, heads, config.drop_path * 6 * g / steps) for g, heads in enumerate(config.heads)]
        )
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1) if config.body_convolution else nn.Identity()
        self.conv_before_upsample = nn.Conv2d(dim, TAIL_FEATURES, 3, padding=1)
        self.upsample = sub_pixel_stages(TAIL_FEATURES, config.scale)
        self.conv_last = nn.Conv2d(TAIL_FEATURES, channels, 3, padding=1)
        initialise_linears(self)
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = _card(config)

    def restore(self, x: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        x = ((x - self.mean) * self.config.img_range).to(memory_format=torch.channels_last)
        shallow = self.conv_first(x)
        deep = self._groups(self.positions(self.embed_norm(to_tokens(shallow))))
        rows = strip_rows(TAIL_PIXELS, x.shape[-1], self.config.window)
        return in_strips(self._reconstruct, to_image(deep), shallow, scale=self.config.scale, halo=TAIL_HALO, rows=rows)

    def _groups(self, x: Tensor) -> Tensor:
        """All groups, (B, H, W, D) to the same; without gradients the result is a view of a wider grid."""
        if torch.is_grad_enabled():
            features: Tensor = self.groups(x)
            return features
        dtype = torch.promote_types(x.dtype, torch.float32)  # sums over all groups are kept whole under autocast
        grid = torch.empty(*x.shape[:-1], self.config.widths[-1], dtype=dtype, device=x.device)
        grid[..., : x.shape[-1]] = x
        for group in self.groups:
            assert isinstance(group, DenseGroup)
            group.in_place(grid)
        return grid[..., : x.shape[-1]]

    def _reconstruct(self, deep: Tensor, shallow: Tensor) -> Tensor:
        body = accumulate(self.conv_after_body(to_image(self.norm(to_tokens(deep)))), shallow)
        features = self.upsample(F.leaky_relu(self.conv_before_upsample(body), 0.01))
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(features.device.type, enabled=False):
            assert isinstance(self.mean, Tensor)
            picture: Tensor = self.conv_last(features.float()) / self.config.img_range + self.mean
            return picture


def _card(config: DRCTConfig) -> ModelCard:
    # Alive are the grid of all that a group holds, the first features, the indices of the windows and the output; beside
    # them a few windows at work, or a strip of the tail. Measured peaks, 64^2 to 320^2 pixels: within a tenth of this.
    outputs, widest = config.in_channels * config.scale**2, config.widths[-1]
    return ModelCard(
        family="drct",
        title="DRCT",
        paper="Hsu et al., DRCT: Saving Image Super-Resolution away from Information Bottleneck, CVPRW 2024, arXiv 2404.00722",
        code_licence="MIT",
        scale=config.scale,
        channels=config.in_channels,
        multiple=config.window,
        overlap=2 * config.window,
        fixed_size=config.positions,
        global_context=False,
        activation_floats=round(1.1 * (widest + config.embed_dim + 16 + 2 * outputs)),
        working_floats=max(8 * CHUNK_TOKENS * widest, 14 * TAIL_PIXELS * TAIL_FEATURES * config.scale**2),
    )


def _block_keys(k: int) -> tuple[tuple[str, str], ...]:
    block, ours = f"layers.{{}}.swin{k + 1}.", f"groups.{{}}.blocks.{k}."
    return (
        (block + "attn.relative_position_bias_table", ours + "attention.bias.table"),
        (block + "attn.", ours + "attention."),
        (block, ours),
        (f"layers.{{}}.adjust{k + 1}.", f"groups.{{}}.adjust.{k}."),
    )


KEYS = KeyMap(
    ("absolute_pos_embed", "positions.table"),
    ("patch_embed.norm.", "embed_norm."),
    *(pair for k in range(BLOCKS) for pair in _block_keys(k)),
    ("conv_before_upsample.0.", "conv_before_upsample."),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for DRCT."""
    names = ("swin1.norm1", "adjust1", "adjust5", "swin5.attn.qkv")
    return all(f"layers.0.{name}.weight" in state for name in names)


def read_config(state: Mapping[str, Tensor]) -> DRCTConfig:
    """The configuration that a state dict under published keys tells by its names and shapes.

    Raises:
        ValueError: Positions of an absolute embedding are no square.
    """
    positions = read_positions(state)
    blocks = [f"swin{k + 1}." for k in range(BLOCKS)]
    tables = [
        [state[f"layers.{g}.{block}attn.relative_position_bias_table"] for block in blocks]
        for g in range(count_numbered(state, "layers."))
    ]
    stages = [value.shape for key, value in state.items() if re.fullmatch(r"upsample\.\d+\.weight", key)]
    # Files hold the masks of shifted windows unless the training patch was one window; a file without any computed
    # table was stripped of them, and tells nothing.
    masks, indices = (any(key.endswith(name) for key in state) for name in ("attn_mask", "relative_position_index"))
    window = (isqrt(len(tables[0][0])) + 1) // 2
    return DRCTConfig(
        in_channels=state["conv_first.weight"].shape[1],
        embed_dim=state["conv_first.weight"].shape[0],
        growth=len(state["layers.0.adjust1.weight"]),
        heads=tuple(tuple(table.shape[1] for table in group) for group in tables),
        mlp_widths=tuple(len(state[f"layers.0.{block}mlp.fc1.weight"]) for block in blocks),
        window=window,
        shifted=positions > window if positions else masks or not indices,
        qkv_bias="layers.0.swin1.attn.qkv.bias" in state,
        patch_norm="patch_embed.norm.weight" in state,
        body_convolution="conv_after_body.weight" in state,
        scale=prod(isqrt(shape[0] // shape[1]) for shape in stages),
        positions=positions,
    )


FAMILY = Family(
    name="drct",
    matches=matches,
    build=build_windows(DRCT, read_config),
    create=create_from(DRCT, DRCTConfig),
    options=("img_range", "shifted", "drop_path", "qk_scale"),
    in_weights=("qk_scale",),
    keys=KEYS,
    derived=("*.attn_mask", "*.relative_position_index"),
)
