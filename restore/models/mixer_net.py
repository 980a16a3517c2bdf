"""A small restoration network whose token mixer is an option, to compare mixers; the network is ours, no paper defines it.

A convolution, groups of blocks of mixer and feed-forward with a convolution at their end (the groups of SwinIR and HAT), and a
convolution with pixel shuffle whose result is added to the enlarged input. Mixers: `hybrid.blocks.mixers`.
Axis letters: B batch, H and W rows and columns, D embedding channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.mixers import MIXERS, Mixer, MixerBlock, mixer_name, width_step
from hybrid.blocks.resampling import in_strips, strip_rows
from hybrid.cards import ModelCard
from hybrid.families import build_from
from hybrid.initialisation import initialise_linears
from hybrid.parameter_budget import widths_for
from hybrid.weights.keys import KeyMap, count_numbered
from restore.models.base import Family, RestorationNetwork

TAIL_HALO = 2
"""Rows of context that the tail needs: one for each 3x3 convolution."""
TAIL_PIXELS = 2**14
"""Input pixels a strip of the tail."""
OVERLAP = 32
"""Context in pixels that tiles share; what mixers see of the picture is more, and counts little."""


@dataclass(frozen=True)
class MixerNetConfig:
    """One network.

    Attributes:
        mixer: Name in `hybrid.blocks.mixers.MIXERS`.
        in_channels: Of the pictures.
        embed_dim: Channels D, a multiple of 8.
        depths: Blocks of each group.
        mlp_width: Hidden channels of the feed-forwards.
        scale: Enlargement; 1 keeps the size.
    """

    mixer: str = "window"
    in_channels: int = 3
    embed_dim: int = 48
    depths: tuple[int, ...] = (4, 4)
    mlp_width: int = 96
    scale: int = 4


class Group(nn.Module):
    """Blocks, then a 3x3 convolution, and the group's input added."""

    def __init__(self, config: MixerNetConfig, first: int, depth: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.blocks = nn.Sequential(*[MixerBlock(config.mixer, dim, config.mlp_width, first + i) for i in range(depth)])
        self.conv = nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, D) to the same."""
        return accumulate(to_tokens(self.conv(to_image(self.blocks(x)))), x)


class MixerNet(RestorationNetwork):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1], enlarged by `config.scale`."""

    def __init__(self, config: MixerNetConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.embed_dim, config.in_channels
        self.conv_first = nn.Conv2d(channels, dim, 3, padding=1)
        firsts = [sum(config.depths[:n]) for n in range(len(config.depths))]
        self.groups = nn.Sequential(*[Group(config, *group) for group in zip(firsts, config.depths, strict=True)])
        self.norm = nn.LayerNorm(dim)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv_last = nn.Conv2d(dim, channels * config.scale**2, 3, padding=1)
        initialise_linears(self)
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        mixer = next(module for module in self.modules() if isinstance(module, Mixer))
        self.open_sides, self.not_exported = mixer.open_sides, mixer.not_exported
        self.card = _card(config, mixer)

    def restore(self, x: Tensor) -> Tensor:
        # The features that carry the picture are float32 whatever the steps compute in.
        with torch.autocast(x.device.type, enabled=False):
            shallow = self.conv_first(x.float().contiguous(memory_format=torch.channels_last))
        deep = to_image(self.groups(to_tokens(shallow)))
        rows = strip_rows(TAIL_PIXELS, x.shape[-1])
        return in_strips(self._tail, deep, shallow, x, scale=self.config.scale, halo=TAIL_HALO, rows=rows)

    def _tail(self, deep: Tensor, shallow: Tensor, x: Tensor) -> Tensor:
        body = self.conv_after_body(to_image(self.norm(to_tokens(deep)))) + shallow
        scale = self.config.scale
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(body.device.type, enabled=False):
            pixels = self.conv_last(body.float()) + x.repeat_interleave(scale**2, 1)  # each pixel of x, scale^2 times
            return F.pixel_shuffle(pixels, scale)


def _card(config: MixerNetConfig, mixer: Mixer) -> ModelCard:
    return ModelCard(
        family="mixer",
        title=f"Mixer network, {config.mixer}",
        paper="ours, to compare mixers; theirs are named in hybrid.blocks.mixers",
        code_licence="Apache-2.0",
        scale=config.scale,
        channels=config.in_channels,
        multiple=mixer.multiple,
        overlap=OVERLAP,
        global_context=mixer.global_context,
        # Measured, D = 56 and 64, 256^2 and 512^2: 5.9 D (cross-shaped) to 8.6 D (window) a pixel.
        activation_floats=8 * config.embed_dim + 2 * config.in_channels * (1 + config.scale**2),
        working_floats=2**22,
        tasks=("super-resolution",) if config.scale > 1 else ("deblurring", "denoising", "jpeg"),
    )


_BLOCK = "groups.0.blocks.0."


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for this network with any of the mixers."""
    return {"conv_first.weight", "conv_after_body.weight", _BLOCK + "mlp.fc1.weight"} <= state.keys() and (
        mixer_name(state, _BLOCK) in MIXERS
    )


def read_config(state: Mapping[str, Tensor]) -> MixerNetConfig:
    """The configuration, all of which the names and shapes of a state dict tell."""
    name = mixer_name(state, _BLOCK)
    assert name is not None
    dim, channels = state["conv_first.weight"].shape[:2]
    return MixerNetConfig(
        mixer=name,
        in_channels=channels,
        embed_dim=dim,
        depths=tuple(count_numbered(state, f"groups.{n}.blocks.") for n in range(count_numbered(state, "groups."))),
        mlp_width=len(state[_BLOCK + "mlp.fc1.weight"]),
        scale=isqrt(len(state["conv_last.weight"]) // channels),
    )


def create(parameters: int | None = None, **options: Any) -> MixerNet:
    """The network for a training: fields of MixerNetConfig.

    Args:
        parameters: How many it is to have at most, in place of `embed_dim` and `mlp_width`, which follow from it.

    Raises:
        ValueError: No such mixer, too few parameters, or widths beside them.
    """
    config = MixerNetConfig(**options)
    config = replace(config, depths=tuple(config.depths))
    if parameters is None:
        return MixerNet(config)
    if given := {"embed_dim", "mlp_width"} & options.keys():
        raise ValueError(f"parameters and {' and '.join(sorted(given))} say the same; give one of them")

    def make(dim: int, hidden: int) -> MixerNet:
        return MixerNet(replace(config, embed_dim=dim, mlp_width=hidden))

    return make(*widths_for(parameters, make, width_step(spatial_dims=2)))


FAMILY = Family(name="mixer", matches=matches, build=build_from(MixerNet, read_config), create=create, options=(), keys=KeyMap())
