"""NAFNet and Baseline, U-shaped convolutional networks without activation functions, or with the usual ones.

L. Chen, X. Chu, X. Zhang, J. Sun, "Simple Baselines for Image Restoration", ECCV 2022, arXiv 2204.04676. The means of
their channel attention can be local at test time: X. Chu, L. Chen, C. Chen, X. Lu, "Improving Image Restoration by
Revisiting Global Information Aggregation" (TLC), ECCV 2022, arXiv 2112.04491. Axis letters: B batch, H and W rows and
columns, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.channel_gates import STRIP_VALUES, ActivationFreeBlock
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.resampling import in_strips, strip_rows
from hybrid.cards import ModelCard
from hybrid.families import create_from
from hybrid.weights.keys import KeyMap, count_numbered
from restore.models.base import Family
from restore.models.multi_output import Heads, SeveralOutputs, count_heads, training_size

DEBLURRING_DEPTHS = (1, 1, 1, 28)
"""Encoder of the published deblurring networks, which are run with local means; those of denoising are not."""
PUBLISHED_TRAIN_SIZE = 256


@dataclass(frozen=True)
class NAFNetConfig:
    """One NAFNet or Baseline. Defaults are NAFNet for GoPro, width 32, as published.

    Attributes:
        in_channels: Image channels, of the output too.
        width: Channels of the first level; each further one has twice as many.
        encoder_depths, middle_depth, decoder_depths: Blocks of each level, the decoder's deepest level first.
        expand, widen: Hidden channels of a block's two steps, per channel, before the gate.
        plain: Baseline's blocks.
        tlc_train_size: Rows and columns of the training crops, for means over windows of one and a half times that size
            in place of the whole picture; None for the whole picture. Not in a file.
        n_heads: Outputs of the last convolution. combine_heads: Whether their pairwise averages are outputs too; not in a file.
        face_size: Edge of the aligned faces that it was trained on; 0 for a network of any picture. Not in a file.
    """

    in_channels: int = 3
    width: int = 32
    encoder_depths: tuple[int, ...] = DEBLURRING_DEPTHS
    middle_depth: int = 1
    decoder_depths: tuple[int, ...] = (1, 1, 1, 1)
    expand: int = 2
    widen: int = 2
    plain: bool = False
    tlc_train_size: tuple[int, int] | None = None
    n_heads: int = 1
    combine_heads: bool = True
    face_size: int = 0

    @property
    def levels(self) -> int:
        """How often the side is halved."""
        return len(self.encoder_depths)

    def window(self, level: int) -> tuple[int, int] | None:
        """The window of the means of one level: what the level makes of a training crop, times one and a half."""
        if self.tlc_train_size is None:
            return None
        multiple = 2**self.levels
        rows, columns = (-(-size // multiple) * multiple // 2**level * int(1.5 * size) // size for size in self.tlc_train_size)
        return rows, columns


class NAFNet(SeveralOutputs):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1]; returns (B, outputs, C, H, W) with several heads."""

    def __init__(self, config: NAFNetConfig) -> None:
        super().__init__()
        self.config = config
        self.heads = Heads(config.n_heads, config.in_channels, config.combine_heads)
        widths = [config.width * 2**level for level in range(config.levels + 1)]
        self.intro = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.ending = nn.Conv2d(widths[0], config.in_channels * config.n_heads, 3, padding=1)
        self.encoders = nn.ModuleList(_level(config, level, depth) for level, depth in enumerate(config.encoder_depths))
        self.downs = nn.ModuleList(nn.Conv2d(width, 2 * width, 2, stride=2) for width in widths[:-1])
        self.middle = _level(config, config.levels, config.middle_depth)
        self.ups = nn.ModuleList(nn.Conv2d(width, 2 * width, 1, bias=False) for width in reversed(widths[1:]))
        self.decoders = nn.ModuleList(
            _level(config, config.levels - 1 - step, depth) for step, depth in enumerate(config.decoder_depths)
        )
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = self.heads.on_card(_card(config))

    def restore(self, x: Tensor) -> Tensor:
        rows = strip_rows(STRIP_VALUES, self.config.width * x.shape[-1])
        return self.heads.apart(in_strips(self._tail, to_image(self.features(x)), x, scale=1, halo=1, rows=rows))

    def features(self, x: Tensor) -> Tensor:
        """What the last convolution takes, (B, H, W, width)."""
        # The residual stream and its norms are float32 whatever the steps compute in.
        with torch.autocast(x.device.type, enabled=False):
            grid: Tensor = to_tokens(self.intro(x.contiguous(memory_format=torch.channels_last)))
        kept: list[Tensor] = []
        for encoder, down in zip(self.encoders, self.downs, strict=True):
            kept.append(encoder(grid))
            grid = to_tokens(down(to_image(kept[-1]))).to(grid.dtype)
        grid = self.middle(grid)
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            assert isinstance(up, nn.Conv2d)
            grid = decoder(_enlarged_onto(kept.pop(), grid, up.weight))
        return grid

    def _tail(self, features: Tensor, x: Tensor) -> Tensor:
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(features.device.type, enabled=False):
            return self.heads.mix(self.ending(features.float()), x)


def _enlarged_onto(kept: Tensor, grid: Tensor, weight: Tensor) -> Tensor:
    """kept + the grid (B, H/2, W/2, 2 C), widened by a 1x1 convolution and shuffled to (B, H, W, C); into `kept` in inference."""

    def enlarged(part: Tensor) -> Tensor:
        return F.pixel_shuffle(to_image(F.linear(part, weight.flatten(1))), 2).movedim(1, -1)

    if torch.is_grad_enabled():
        return kept + enlarged(grid)
    rows = max(16, STRIP_VALUES // (grid.shape[2] * len(weight)))
    for top in range(0, grid.shape[1], rows):
        kept[:, 2 * top : 2 * (top + rows)] += enlarged(grid[:, top : top + rows])
    return kept


def _level(config: NAFNetConfig, level: int, depth: int) -> nn.Sequential:
    block = {"expand": config.expand, "widen": config.widen, "plain": config.plain, "window": config.window(level)}
    return nn.Sequential(*[ActivationFreeBlock(config.width * 2**level, **block) for _ in range(depth)])  # type: ignore[arg-type]


def _card(config: NAFNetConfig) -> ModelCard:
    # A mean over the whole picture is not that of a tile: 1.1 steps of 8 bits RMS in tiles of 256 (docs/tiles.md). With local
    # means the reach is finite but vast, half a window a block. Alive: the map beside a block, its input and its gated map,
    # and the running sums. Measured a pixel, 256^2 to 768^2 with local means: 147 for width 32, beside 5 MiB.
    return ModelCard(
        family="nafnet",
        title="Baseline" if config.plain else "NAFNet",
        paper="Chen et al., Simple Baselines for Image Restoration, ECCV 2022, arXiv 2204.04676",
        code_licence="MIT",
        scale=1,
        channels=config.in_channels,
        multiple=2**config.levels,
        padding="zeros",
        overlap=128,
        global_context=True,
        activation_floats=round(1.1 * 4.6 * config.width),
        working_floats=5 * STRIP_VALUES,
        face_size=config.face_size,
        tasks=_tasks(config),
    )


def _tasks(config: NAFNetConfig) -> tuple[str, ...]:
    if config.face_size:
        return ("face restoration",)
    return ("deblurring",) if config.encoder_depths == DEBLURRING_DEPTHS else ("denoising",)


_BLOCK = re.compile(r"(middle_blks\.\d+|(encoders|decoders)\.\d+\.\d+)\.")
_PARTS = (("encoders.{}.{}.", "encoders.{}.{}."), ("decoders.{}.{}.", "decoders.{}.{}."), ("middle_blks.{}.", "middle.{}."))
KEYS = KeyMap(
    *((theirs + "sca.1.", ours + "attention.conv.") for theirs, ours in _PARTS),
    *((theirs + "se.1.", ours + "attention.squeeze.") for theirs, ours in _PARTS),
    *((theirs + "se.3.", ours + "attention.expand.") for theirs, ours in _PARTS),
    ("middle_blks.", "middle."),
    ("ups.{}.0.", "ups.{}."),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for NAFNet and Baseline with one output or several."""
    if not {"intro.weight", "ending.weight"} <= state.keys() or _first_block(state) is None:
        return False
    return count_heads(len(state["ending.weight"]), state["intro.weight"].shape[1]) > 0


def _first_block(state: Mapping[str, Tensor]) -> str | None:
    """Where the names of a block begin; levels and the middle may have none. None where there is no block."""
    ends = ("sca.1.weight", "se.1.weight")
    found = (_BLOCK.match(key) for key in state if key.endswith(ends))
    return next((block[0] for block in found if block), None)


def read_config(state: Mapping[str, Tensor]) -> NAFNetConfig:
    """The configuration that a state dict under published keys tells by its names and shapes.

    Whether means are local is not in a file: they are in the networks published for deblurring, at their training size.
    """
    width, channels = state["intro.weight"].shape[:2]
    levels, block = range(count_numbered(state, "downs.")), _first_block(state) or ""
    depths = tuple(count_numbered(state, f"encoders.{level}.") for level in levels)
    deep = state[block + "conv1.weight"].shape[1]
    return NAFNetConfig(
        in_channels=channels,
        width=width,
        encoder_depths=depths,
        middle_depth=count_numbered(state, "middle_blks."),
        decoder_depths=tuple(count_numbered(state, f"decoders.{level}.") for level in levels),
        expand=len(state[block + "conv1.weight"]) // deep,
        widen=len(state[block + "conv4.weight"]) // deep,
        plain=block + "se.1.weight" in state,
        tlc_train_size=(PUBLISHED_TRAIN_SIZE,) * 2 if depths == DEBLURRING_DEPTHS else None,
        n_heads=count_heads(len(state["ending.weight"]), channels),
    )


def build(state: Mapping[str, Tensor], **options: Any) -> NAFNet:
    """NAFNet for a checkpoint.

    `options`: `combine_heads`; `face_size`; `tlc_train_size`, an edge or (rows, columns), 0 for global means.
    """
    if "tlc_train_size" in options:
        options["tlc_train_size"] = training_size(options["tlc_train_size"])
    return NAFNet(replace(read_config(state), **options))


FAMILY = Family(
    name="nafnet",
    matches=matches,
    build=build,
    create=create_from(NAFNet, NAFNetConfig),
    options=("tlc_train_size", "combine_heads", "face_size"),
    keys=KEYS,
)
