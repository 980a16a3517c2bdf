"""A small U-Net for segmentation whose token mixer is an option, to compare mixers; the network is ours, no paper defines it.

At full size two convolutions with instance norm see the scan, before and after all else; from half of the size on, levels of
blocks of mixer and feed-forward (`hybrid.blocks.mixers`), each of half the side and twice the channels of the one before, with
skips that are added (Ronneberger et al., U-Net, 2015). In two and in three dimensions.
Axis letters: B batch, C channels, D channels of the first level of mixers. Grids are channels-last, (B, *spatial, C).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.blocks.chunks import accumulate
from hybrid.blocks.layout import to_image, to_tokens
from hybrid.blocks.mixers import MIXERS, Mixer, MixerBlock, mixer_name, width_step
from hybrid.families import build_from
from hybrid.initialisation import initialise_linears
from hybrid.parameter_budget import widths_for
from hybrid.weights.keys import KeyMap, count_numbered
from medical.models.base import Family, SegmentationCard, SegmentationNetwork
from medical.models.unet_blocks import CONVOLUTIONS, TRANSPOSED, ResidualBlock, UpBlock


@dataclass(frozen=True)
class MixerUNetConfig:
    """One network.

    Attributes:
        in_channels, out_channels: Of the scan, and logits a voxel. spatial_dims: 2 for slices, 3 for volumes.
        mixer: Name in `hybrid.blocks.mixers.MIXERS`.
        stem: Channels at full size.
        embed_dim: Channels D of the first level of mixers, a multiple of 8 for slices and of 12 for volumes.
        depths: Blocks of each level, of the encoder as of the decoder; the last level has one of the two.
        mlp_width: Hidden channels of the feed-forwards of the first level; twice as many on each further one.
    """

    in_channels: int = 1
    out_channels: int = 2
    spatial_dims: int = 3
    mixer: str = "window"
    stem: int = 16
    embed_dim: int = 48
    depths: tuple[int, ...] = (2, 2)
    mlp_width: int = 96


class MixerUNet(SegmentationNetwork):
    """The whole network. Takes (B, C, *spatial) float32 and returns logits (B, classes, *spatial)."""

    def __init__(self, config: MixerUNetConfig) -> None:
        super().__init__()
        self.config = config
        dims, levels = config.spatial_dims, len(config.depths)
        widths = [config.embed_dim * 2**level for level in range(levels)]
        convolution, transposed = CONVOLUTIONS[dims], TRANSPOSED[dims]
        self.stem = ResidualBlock(config.in_channels, config.stem, dims)
        self.downs = nn.ModuleList(
            convolution(above, width, 2, stride=2) for above, width in zip([config.stem, *widths], widths, strict=False)
        )
        self.encoder = nn.ModuleList(_level(config, level, first) for level, first in _places(config, 0))
        # Deepest first.
        self.ups = nn.ModuleList(transposed(2 * width, width, 2, stride=2) for width in reversed(widths[:-1]))
        after = sum(config.depths)
        self.decoder = nn.ModuleList(_level(config, level, after + first) for level, first in reversed(_places(config, 0)[:-1]))
        self.last = UpBlock(widths[0], config.stem, dims)
        self.head = convolution(config.stem, config.out_channels, 1)
        initialise_linears(self)
        mixer = next(module for module in self.modules() if isinstance(module, Mixer))
        self.not_exported = mixer.not_exported
        self.card = _card(config)

    def segment(self, x: Tensor) -> Tensor:
        # The clone has the strides of channels-last also where there is one channel.
        stem = self.stem(x.movedim(1, -1).clone(memory_format=torch.contiguous_format))
        grid, kept = stem, []
        for down, level in zip(self.downs, self.encoder, strict=True):
            # The residual stream is float32 whatever the steps compute in.
            grid = level(to_tokens(down(to_image(grid))).float())
            kept.append(grid)
        kept.pop()
        for up, level in zip(self.ups, self.decoder, strict=True):
            grid = level(accumulate(to_tokens(up(to_image(grid))).float(), kept.pop()))
        logits: Tensor = self.head(to_image(self.last(grid, stem)))
        return logits


def _places(config: MixerUNetConfig, start: int) -> list[tuple[int, int]]:
    """Each level with the number of its first block."""
    return [(level, start + sum(config.depths[:level])) for level in range(len(config.depths))]


def _level(config: MixerUNetConfig, level: int, first: int) -> nn.Sequential:
    dim, width = config.embed_dim * 2**level, config.mlp_width * 2**level
    blocks = (MixerBlock(config.mixer, dim, width, first + i, config.spatial_dims) for i in range(config.depths[level]))
    return nn.Sequential(*blocks)


def _card(config: MixerUNetConfig) -> SegmentationCard:
    return SegmentationCard(
        family="mixer_unet",
        title=f"Mixer U-Net, {config.mixer}",
        paper="ours, to compare mixers; theirs are named in hybrid.blocks.mixers",
        code_licence="Apache-2.0",
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        multiple=2 ** len(config.depths),
        # Measured, stem of 16 channels and D = 36 and 48: 73 to 81 a voxel at 128^3, 117 at 64^3 where steps in chunks count.
        activation_floats=5 * config.stem + 2 * config.embed_dim,
    )


_BLOCK = "encoder.0.0."


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for this network with any of the mixers."""
    return {"stem.conv1.weight", "head.weight", _BLOCK + "mlp.fc1.weight"} <= state.keys() and (
        mixer_name(state, _BLOCK) in MIXERS
    )


def read_config(state: Mapping[str, Tensor]) -> MixerUNetConfig:
    """The configuration, all of which the names and shapes of a state dict tell."""
    name, stem, first = mixer_name(state, _BLOCK), state["stem.conv1.weight"], state["downs.0.weight"]
    assert name is not None
    return MixerUNetConfig(
        in_channels=stem.shape[1],
        out_channels=len(state["head.weight"]),
        spatial_dims=stem.ndim - 2,
        mixer=name,
        stem=len(stem),
        embed_dim=len(first),
        depths=tuple(count_numbered(state, f"encoder.{n}.") for n in range(count_numbered(state, "encoder."))),
        mlp_width=len(state[_BLOCK + "mlp.fc1.weight"]),
    )


def create(parameters: int | None = None, **options: Any) -> MixerUNet:
    """The network for a training: fields of MixerUNetConfig.

    Args:
        parameters: How many it is to have at most, in place of `embed_dim` and `mlp_width`, which follow from it.

    Raises:
        ValueError: No such mixer, too few parameters, or widths beside them.
    """
    config = MixerUNetConfig(**options)
    config = replace(config, depths=tuple(config.depths))
    if parameters is None:
        return MixerUNet(config)
    if given := {"embed_dim", "mlp_width"} & options.keys():
        raise ValueError(f"parameters and {' and '.join(sorted(given))} say the same; give one of them")

    def make(dim: int, hidden: int) -> MixerUNet:
        return MixerUNet(replace(config, embed_dim=dim, mlp_width=hidden))

    return make(*widths_for(parameters, make, width_step(config.spatial_dims)))


FAMILY = Family(
    name="mixer_unet", matches=matches, build=build_from(MixerUNet, read_config), create=create, options=(), keys=KeyMap()
)
