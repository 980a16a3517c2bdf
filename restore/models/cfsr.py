"""CFSR, convolutional super-resolution in the shape of a transformer: 9x9 depthwise gates instead of attention.

G. Wu, J. Jiang, J. Jiang, X. Liu, "Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach", IEEE
Transactions on Image Processing, 2024, arXiv 2401.05633. Axis letters: B batch, H and W rows and columns, D embedding channels.

The network has a training form, in which fixed edge filters with learned scales lie beside the depthwise kernels, and
the published form, in which they are merged into these kernels. Both give the same values; files of both load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.convolution import (
    STRIP_PIXELS,
    EdgeFeedForward,
    LargeKernelMixer,
    PointwiseConvolution,
    edge_masks,
    merge_branches,
)
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.resampling import in_strips, strip_rows
from hybrid.cards import ModelCard
from hybrid.families import build_from, create_from
from hybrid.weights.keys import KeyMap
from restore.models.base import Family, RestorationNetwork
from restore.models.published import count_numbered, picture_mean

TAIL_HALO = 2
"""Rows of context that the tail needs: one for each 3x3 convolution."""


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
        self.register_buffer("mean", picture_mean(channels), persistent=False)
        self.conv_first = nn.Conv2d(channels, dim, 3, padding=1)
        self.layers = nn.ModuleList(ResidualLayer(config, depth) for depth in config.depths)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.conv_after_body = nn.Conv2d(dim, dim, 3, padding=1)
        last = nn.Conv2d(dim, channels * config.scale**2, 3, padding=1)
        self.add_module("upsample" if config.scale > 1 else "conv_last", last)  # as published
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = _card(config)

    def merge(self) -> CFSR:
        """Fold the edge filters of the training form into the depthwise kernels, in place: the published form."""
        merge_branches(self)
        self.config = replace(self.config, branches=False)
        return self

    def restore(self, x: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        x = ((x - self.mean) * self.config.img_range).to(memory_format=torch.channels_last)
        # The features that carry the picture, the residual stream and its norms are float32 whatever the branches compute in.
        with torch.autocast(x.device.type, enabled=False):
            shallow = to_tokens(self.conv_first(x.float()))
        grid = shallow
        for step in self._steps():  # one flat loop: no frame holds on to a map that has been used up
            grid = step(grid)
        rows = strip_rows(STRIP_PIXELS, x.shape[-1])
        y = in_strips(self._tail, to_image(grid), to_image(shallow), scale=self.config.scale, halo=TAIL_HALO, rows=rows)
        return y + x / self.config.img_range if self.config.scale == 1 else y

    def _steps(self) -> Iterator[Callable[[Tensor], Tensor]]:
        for layer in self.layers:
            assert isinstance(layer, ResidualLayer)
            for block in layer.blocks:
                assert isinstance(block, ConvFormerBlock)
                yield block.mixer
                yield block.feedforward
            yield partial(layer.conv, skip=True)

    def _tail(self, deep: Tensor, shallow: Tensor) -> Tensor:
        """The convolution after the body and the last one, with the mean and range of the picture folded in."""
        scale = self.config.scale
        last = self.upsample if scale > 1 else self.conv_last
        body = self.conv_after_body(to_image(self.norm(to_tokens(deep)))) + shallow
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(body.device.type, enabled=False):
            assert isinstance(self.mean, Tensor) and isinstance(last, nn.Conv2d) and last.bias is not None
            mean = self.mean.flatten().repeat_interleave(scale**2)
            weight, bias = last.weight / self.config.img_range, last.bias / self.config.img_range + mean
            return F.pixel_shuffle(F.conv2d(body.float(), weight, bias, padding=1), scale)


def _card(config: CFSRConfig) -> ModelCard:
    # conv_first, each block's kernel and feed-forward, and the two convolutions after the body reach this far.
    reach = 3 + sum(config.depths) * (config.kernel // 2 + 1)
    dim, width, outputs = config.embed_dim, config.mlp_ratio * config.embed_dim, config.in_channels * (2 + config.scale**2)
    return ModelCard(
        family="cfsr",
        title="CFSR",
        paper="Wu et al., Transforming Image Super-Resolution: A ConvFormer-based Efficient Approach, TIP 2024, arXiv 2401.05633",
        code_licence="unknown",
        scale=config.scale,
        channels=config.in_channels,
        multiple=1,
        overlap=2 * reach,
        exact=True,
        global_context=False,
        # The shallow map and the residual before and after a step, or the result beside the first two; and the maps of
        # a strip: measured at 256 to 640 pixels a side, plus a tenth.
        activation_floats=round(1.1 * max(3 * dim + 2 * config.in_channels, 2 * dim + outputs)),
        working_floats=STRIP_PIXELS * (5 * dim + 6 * width),
    )


_BLOCK = "layers.{}.blocks.{}."
_EDGES = [(f"scale_{name}", f"{name}.scale") for name in edge_masks(2)]
_EDGES += [(f"{name}_bias", f"{name}.bias") for name in edge_masks(2)]
_EDGES += [(f"mask_{name}", f"{name}.mask") for name in edge_masks(2)]
KEYS = KeyMap(
    (_BLOCK + "layer_scale_1", _BLOCK + "mixer.scale"),
    (_BLOCK + "layer_scale_2", _BLOCK + "feedforward.scale"),
    (_BLOCK + "attn.a.0.", _BLOCK + "mixer.context."),
    (_BLOCK + "attn.v.", _BLOCK + "mixer.value."),
    *((_BLOCK + "attn.a.2." + theirs, _BLOCK + "mixer.large.detail.edges." + ours) for theirs, ours in _EDGES),
    (_BLOCK + "attn.a.2.small_conv.", _BLOCK + "mixer.large.detail."),
    (_BLOCK + "attn.a.2.lkb_origin.", _BLOCK + "mixer.large.whole."),
    (_BLOCK + "attn.a.2.lkb_reparam.", _BLOCK + "mixer.large."),
    (_BLOCK + "attn.", _BLOCK + "mixer."),
    *((_BLOCK + "mlp." + theirs, _BLOCK + "feedforward.edge.edges." + ours) for theirs, ours in _EDGES),
    (_BLOCK + "mlp.pos.", _BLOCK + "feedforward.edge."),
    (_BLOCK + "mlp.", _BLOCK + "feedforward."),
    ("upsample.0.", "upsample."),
)
"""Published names and ours, by prefix; of the training form those of the reference's earlier commit."""

_LARGE = "layers.0.blocks.0.attn.a.2."
_MERGED, _ORIGIN = _LARGE + "lkb_reparam.weight", _LARGE + "lkb_origin.weight"


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for CFSR, of the published or the training form."""
    return "layers.0.blocks.0.mlp.pos.weight" in state and (_MERGED in state or _ORIGIN in state)


def read_config(state: Mapping[str, Tensor]) -> CFSRConfig:
    """The configuration that a state dict under published keys tells by its names and shapes."""
    layers = count_numbered(state, "layers.")
    dim, channels = state["conv_first.weight"].shape[:2]
    tail = state.get("upsample.0.weight")
    return CFSRConfig(
        in_channels=channels,
        embed_dim=dim,
        depths=tuple(count_numbered(state, f"layers.{n}.blocks.") for n in range(layers)),
        kernel=state[_MERGED if _MERGED in state else _ORIGIN].shape[-1],
        mlp_ratio=len(state["layers.0.blocks.0.mlp.fc1.weight"]) // dim,
        scale=1 if tail is None else isqrt(len(tail) // channels),
        branches=_ORIGIN in state,
    )


FAMILY = Family(
    name="cfsr",
    matches=matches,
    build=build_from(CFSR, read_config),
    create=create_from(CFSR, CFSRConfig),
    options=("img_range",),
    keys=KEYS,
)
