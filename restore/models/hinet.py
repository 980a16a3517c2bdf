"""HINet, two U-shaped convolutional stages that normalise half of the channels of their deep levels, with one output or several.

L. Chen, X. Lu, J. Zhang, X. Chu, C. Chen, "HINet: Half Instance Normalization Network for Image Restoration", CVPR Workshops
2021, arXiv 2105.06086; several outputs: see `restore.models.multi_output`. Axis letters: B batch, C channels, H and W rows and
columns. The names of the parameters are the published ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.normalisation import instance_norm
from hybrid.cards import ModelCard
from hybrid.families import create_from
from hybrid.weights.keys import KeyMap, count_numbered
from restore.models.base import Family
from restore.models.multi_output import Heads, SeveralOutputs, SupervisedAttention, count_heads, training_size

SLOPE = 0.2
"""Of the leaky activations."""


@dataclass(frozen=True)
class HINetConfig:
    """One HINet. Defaults are the network published for deblurring.

    Attributes:
        in_channels: Image channels, of each output too.
        width: Channels of the first level; each further one has twice as many.
        depth: Levels of each stage.
        normalised: Levels, counted from 0, whose half of channels is normalised on the way down.
        n_heads: Outputs of the last convolution. combine_heads: Whether their pairwise averages are outputs too; not in a file.
    """

    in_channels: int = 3
    width: int = 64
    depth: int = 5
    normalised: tuple[int, ...] = (3, 4)
    n_heads: int = 1
    combine_heads: bool = True


class HalfInstanceNorm(nn.Module):
    """Instance norm with a scale and an offset a channel on the first half of the channels (section 3.2)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels // 2))
        self.bias = nn.Parameter(torch.zeros(channels // 2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        first, second = to_tokens(x).tensor_split([len(self.weight)], -1)
        first = torch.addcmul(self.bias, instance_norm(first.float()), self.weight)
        return to_image(torch.cat([first.to(second.dtype), second], -1))


class ConvBlock(nn.Module):
    """Two convolutions beside a 1x1 one; in the second stage what the first stage knew of the level is added.

    Args:
        inputs, outputs: Channels.
        norm: Whether half of the channels is normalised.
        fused: Whether features of the first stage come in.
        down: Whether a map of half the size is made too.
    """

    def __init__(self, inputs: int, outputs: int, *, norm: bool = False, fused: bool = False, down: bool = False) -> None:
        super().__init__()
        self.identity = nn.Conv2d(inputs, outputs, 1)
        self.conv_1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv_2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.csff_enc = nn.Conv2d(outputs, outputs, 3, padding=1) if fused else None
        self.csff_dec = nn.Conv2d(outputs, outputs, 3, padding=1) if fused else None
        self.norm = HalfInstanceNorm(outputs) if norm else None
        self.downsample = nn.Conv2d(outputs, outputs, 4, stride=2, padding=1, bias=False) if down else None

    def forward(self, x: Tensor, earlier: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """(B, inputs, H, W) to (B, outputs, H, W); `earlier`: the first stage's maps of the level, going down and up."""
        y = self.conv_1(x)
        y = _leaky(y if self.norm is None else self.norm(y))
        y = accumulate(_leaky(self.conv_2(y)), self.identity(x))
        if self.csff_enc is not None and self.csff_dec is not None and earlier is not None:
            y = accumulate(accumulate(y, self.csff_enc(earlier[0])), self.csff_dec(earlier[1]))
        return y


class UpBlock(nn.Module):
    """A map enlarged by two, joined with that of the way down."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inputs, outputs, 2, stride=2)
        self.conv_block = ConvBlock(2 * outputs, outputs)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, H, W) and (B, C / 2, 2 H, 2 W) to the latter's shape."""
        y: Tensor = self.conv_block(torch.cat([self.up(x), skip], 1))
        return y


class HINet(SeveralOutputs):
    """The whole network. Takes (B, C, H, W) float32 in [0, 1] and returns [stage 1, stage 2], of which the last is the result.

    A stage is (B, C, H, W), and (B, outputs, C, H, W) with several heads.
    """

    def __init__(self, config: HINetConfig) -> None:
        super().__init__()
        self.config = config
        channels, width = config.in_channels, config.width
        self.heads = Heads(config.n_heads, channels, config.combine_heads)
        self.down_path_1, self.down_path_2 = (_down_path(config, fused) for fused in (False, True))
        self.conv_01, self.conv_02 = (nn.Conv2d(channels, width, 3, padding=1) for _ in range(2))
        widths = [width * 2**level for level in reversed(range(config.depth - 1))]
        self.up_path_1, self.up_path_2 = (nn.ModuleList(UpBlock(2 * w, w) for w in widths) for _ in range(2))
        self.skip_conv_1, self.skip_conv_2 = (
            nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths) for _ in range(2)
        )  # fmt: skip
        self.sam12 = SupervisedAttention(width, self.heads, kernel=3, bias=True)
        self.cat12 = nn.Conv2d(2 * width, width, 1)
        self.last = nn.Conv2d(width, channels * config.n_heads, 3, padding=1)
        channels_last(self)
        self.card = _card(config, self.heads)

    def restore(self, x: Tensor) -> list[Tensor]:
        image = x.contiguous(memory_format=torch.channels_last)
        encoded = _encode(self.down_path_1, self.conv_01(image), [])
        decoded = _decode(self.up_path_1, self.skip_conv_1, encoded)
        features, pictures = self.sam12(decoded[0], image)
        first = self.heads.mix(pictures)
        earlier = list(zip(encoded, decoded, strict=False))
        y = self.cat12(torch.cat([self.conv_02(image), features], 1))
        y = _decode(self.up_path_2, self.skip_conv_2, _encode(self.down_path_2, y, earlier))[0]
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(x.device.type, enabled=False):
            second = self.heads.mix(self.last(y.float()), x)
        return [self.heads.apart(first), self.heads.apart(second)]


def _encode(blocks: nn.ModuleList, x: Tensor, earlier: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """The way down: the maps of all levels, finest first. `earlier`: the first stage's of all levels but the deepest."""
    maps = []
    for level, block in enumerate(blocks):
        assert isinstance(block, ConvBlock)
        maps.append(block(x, earlier[level] if level < len(earlier) else None))
        x = maps[-1] if block.downsample is None else block.downsample(maps[-1])
    return maps


def _decode(blocks: nn.ModuleList, skips: nn.ModuleList, encoded: list[Tensor]) -> list[Tensor]:
    """The way up: the maps of all levels but the deepest, finest first."""
    maps = [encoded[-1]]
    for block, skip, beside in zip(blocks, skips, reversed(encoded[:-1]), strict=True):
        maps.append(block(maps[-1], skip(beside)))
    return maps[:0:-1]


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE, inplace=not torch.is_grad_enabled())


def _down_path(config: HINetConfig, fused: bool) -> nn.ModuleList:
    blocks, inputs = [], config.width
    for level in range(config.depth):
        deepest, outputs = level == config.depth - 1, config.width * 2**level
        norm = level in config.normalised
        blocks.append(ConvBlock(inputs, outputs, norm=norm, fused=fused and not deepest, down=not deepest))
        inputs = outputs
    return nn.ModuleList(blocks)


def _card(config: HINetConfig, heads: Heads) -> ModelCard:
    card = ModelCard(
        family="hinet",
        title="HINet",
        paper="Chen et al., HINet: Half Instance Normalization Network for Image Restoration, CVPRW 2021, arXiv 2105.06086",
        code_licence="unknown",
        scale=1,
        channels=config.in_channels,
        multiple=2 ** (config.depth - 1),
        overlap=64,  # deep levels are normalised over the whole picture: no overlap makes tiles exact
        global_context=bool(config.normalised),
        activation_floats=round(1.1 * 15 * config.width),  # measured, at widths 16 and 32
        tasks=("deblurring", "denoising", "deraining"),
        result=1,
    )
    return heads.on_card(card)


KEYS = KeyMap()
"""Published names and ours are the same."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for HINet with one output or several."""
    if not {"down_path_1.0.conv_1.weight", "conv_01.weight", "sam12.conv1.weight", "last.weight"} <= state.keys():
        return False
    return count_heads(len(state["last.weight"]), state["conv_01.weight"].shape[1]) > 0


def read_config(state: Mapping[str, Tensor]) -> HINetConfig:
    """The configuration that a state dict under published keys tells by its names and shapes."""
    width, channels = state["conv_01.weight"].shape[:2]
    depth = count_numbered(state, "down_path_1.")
    return HINetConfig(
        in_channels=channels,
        width=width,
        depth=depth,
        normalised=tuple(level for level in range(depth) if f"down_path_1.{level}.norm.weight" in state),
        n_heads=count_heads(len(state["last.weight"]), channels),
    )


def build(state: Mapping[str, Tensor], **options: Any) -> HINet:
    """HINet for a checkpoint.

    `options`: `combine_heads`; `tlc_train_size`, as NAFNet takes it, which changes nothing: HINet has no means over the picture
    that could be local, and its published class with local means (MHHINetLocal) is the same network.

    Raises:
        ValueError: `tlc_train_size` is no size.
    """
    training_size(options.pop("tlc_train_size", None))
    return HINet(replace(read_config(state), **options))


FAMILY = Family(
    name="hinet",
    matches=matches,
    build=build,
    create=create_from(HINet, HINetConfig),
    options=("combine_heads", "tlc_train_size"),
    keys=KEYS,
)
