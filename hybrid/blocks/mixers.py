"""Token mixers of one form, so that a network takes any of them by its name: in two and in three dimensions.

A mixer is a step of the residual stream, x + mixing(norm(x)): what lets the tokens of a grid see each other, between the
feed-forwards that see one token each. All are made of the blocks of this package, in sizes that a small network can afford.
Axis letters: B batch, C channels, K sub-bands. Grids are channels-last, (B, *spatial, C).

    window        self-attention in windows, shifted in every second block (Liu et al., Swin Transformer, ICCV 2021)
    cross-shaped  self-attention in bars along each axis (Dong et al., CSWin Transformer, CVPR 2022)
    overlapping   attention from windows to larger ones around them (Chen et al., HAT, CVPR 2023)
    channel       a gate a channel from the mean of the grid (Hu et al., SENet, CVPR 2018)
    transposed    attention between channels, after a depthwise kernel (Zamir et al., Restormer, CVPR 2022)
    large-kernel  a gate of a large depthwise kernel (Wu et al., CFSR, arXiv 2401.05633)
    wavelet       small kernels in the sub-bands of a Haar transform (Finder et al., WTConv, ECCV 2024, arXiv 2407.05848)
    rwkv          averages along all tokens whose weights decay (Yang et al., Restore-RWKV, arXiv 2407.11087)
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.attention import ChannelAttention, OverlappingCrossAttention, WindowAttention
from hybrid.blocks.chunks import accumulate
from hybrid.blocks.convolution import DepthwiseConvolution, LargeKernelMixer, PointwiseConvolution
from hybrid.blocks.cross_shaped import CrossShapedAttention
from hybrid.blocks.feedforward import FeedForward
from hybrid.blocks.layout import to_image, to_tokens
from hybrid.blocks.rwkv import SpatialMix, shifted
from hybrid.blocks.transposed import TransposedAttention
from hybrid.blocks.wavelets import haar, inverse_haar

WINDOW = {2: 8, 3: 4}
"""Edge of a window by the axes of the grid: 64 tokens either way."""
OVERLAP = {2: 12, 3: 6}
"""Edge of the larger window around it, half as long again as in HAT."""
SPLIT = {2: 4, 3: 2}
"""Width of a bar of cross-shaped attention."""
KERNEL = {2: 9, 3: 5}
"""Edge of the large kernel."""
HEAD_CHANNELS = 12
"""Channels at least that a head has, where the number of heads leaves a choice."""
SQUEEZED = 4
"""Channels of the grid for each of the hidden layer of the channel gate."""


def width_step(spatial_dims: int) -> int:
    """What the channels of every mixer are a multiple of: each axis has its share of heads, and each head some channels.

    >>> width_step(2), width_step(3)
    (8, 12)
    """
    return 4 * spatial_dims


def heads_of(dim: int, spatial_dims: int) -> int:
    """Heads of attention: a multiple of the axes, and as many as leave each `HEAD_CHANNELS` channels.

    >>> [heads_of(dim, 2) for dim in (16, 48, 64, 96)], [heads_of(dim, 3) for dim in (12, 48, 96)]
    ([2, 4, 4, 8], [3, 3, 6])
    """
    fits = [n for n in range(spatial_dims, dim + 1, spatial_dims) if dim % n == 0 and dim // n >= HEAD_CHANNELS]
    return max(fits, default=spatial_dims)


class Mixer(nn.Module):
    """Base of the mixers: (B, *spatial, C) of any size to the same; the input stays as it is.

    Attributes:
        spatial_dims: Axes of the grid, 2 or 3.
        multiple: Sides that are multiples of this are not filled up; others are, with zeros at their ends.
        global_context: Whether what a token sees reaches farther as the grid grows.
        not_exported: Why there is no graph of it in ONNX; None where there is.
        open_sides: Whether such a graph takes any size.
    """

    multiple: int = 1
    global_context: bool = False
    not_exported: str | None = None
    open_sides: bool = True

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        """
        Args:
            dim: Channels C, a multiple of `width_step(spatial_dims)`.
            depth_index: Place of the block in its network, for mixers that alternate.
            spatial_dims: Axes of the grid.
        """
        super().__init__()
        self.spatial_dims = spatial_dims
        self.heads = heads_of(dim, spatial_dims)


class WindowMixer(Mixer):
    """Window attention, shifted by half of a window in every second block."""

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__(dim, depth_index, spatial_dims)
        self.multiple = WINDOW[spatial_dims]
        self.shift = (self.multiple // 2 * (depth_index % 2),) * spatial_dims
        self.norm = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, (self.multiple,) * spatial_dims, self.heads)

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.attention(_filled_up(self.norm(x), self.multiple), self.shift)
        return accumulate(_cropped(mixed, x), x)


class CrossShapedMixer(Mixer):
    """Attention in bars along each axis, each kind with its share of the channels."""

    global_context = True
    open_sides = False

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__(dim, depth_index, spatial_dims)
        self.multiple = SPLIT[spatial_dims]
        self.norm = nn.LayerNorm(dim)
        self.attention = CrossShapedAttention(dim, self.heads, self.multiple, spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        return accumulate(self.attention(self.norm(x)), x)


class OverlappingMixer(Mixer):
    """Attention from windows to larger windows around them."""

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__(dim, depth_index, spatial_dims)
        self.multiple = WINDOW[spatial_dims]
        self.norm = nn.LayerNorm(dim)
        window, overlap = (self.multiple,) * spatial_dims, (OVERLAP[spatial_dims],) * spatial_dims
        self.attention = OverlappingCrossAttention(dim, window, overlap, self.heads)

    def forward(self, x: Tensor) -> Tensor:
        return accumulate(_cropped(self.attention(_filled_up(self.norm(x), self.multiple)), x), x)


class ChannelMixer(Mixer):
    """x + proj(gate(value(norm(x)))): tokens see of each other the mean alone."""

    global_context = True

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__(dim, depth_index, spatial_dims)
        self.norm = nn.LayerNorm(dim)
        self.value, self.proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.gate = ChannelAttention(dim, max(1, dim // SQUEEZED), spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        gated = to_tokens(self.gate(to_image(self.value(self.norm(x)))))
        return accumulate(self.proj(gated), x)


class TransposedMixer(Mixer):
    """Attention between channels, whose maps over all tokens are what is compared."""

    global_context = True

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__(dim, depth_index, spatial_dims)
        self.norm = nn.LayerNorm(dim)
        self.attention = TransposedAttention(dim, self.heads, spatial_dims=spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        mixed: Tensor = self.attention(x if torch.is_grad_enabled() else x.clone(), self.norm)  # which else writes over it
        return mixed


class LargeKernelGate(Mixer):
    """The ConvFormer mixer of CFSR, which has a norm, a skip and a scale a channel of its own."""

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__(dim, depth_index, spatial_dims)
        self.gate = LargeKernelMixer(dim, KERNEL[spatial_dims], spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        gated: Tensor = self.gate(x)
        return gated


class WaveletMixer(Mixer):
    """x + proj(GELU(inverse(DW(haar(value(norm(x))))))) with DW a depthwise 3^n kernel for each channel of each sub-band."""

    multiple = 2

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__(dim, depth_index, spatial_dims)
        self.norm = nn.LayerNorm(dim)
        self.value, self.proj = (PointwiseConvolution(dim, dim, spatial_dims) for _ in range(2))
        self.bands = DepthwiseConvolution(2**spatial_dims * dim, 3, spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        return accumulate(self.proj(F.gelu(self.in_bands(self.value(self.norm(x))))), x)

    def in_bands(self, x: Tensor) -> Tensor:
        """The kernels in the sub-bands of (B, *spatial, C), and back; the identity where they are."""
        sides = None if torch.compiler.is_exporting() else x.shape[1:-1]  # a graph's are even, see `multiple`
        return inverse_haar(self.bands(haar(x)), sides=sides)


class RWKVMixer(Mixer):
    """The spatial mix of Restore-RWKV after its token shift: once along each axis."""

    global_context = True
    not_exported = "its averages run along all pixels, chunk by chunk, and ONNX has no such step."

    def __init__(self, dim: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__(dim, depth_index, spatial_dims)
        self.norm = nn.LayerNorm(dim)
        self.spatial = SpatialMix(dim, recurrences=spatial_dims, spatial_dims=spatial_dims)
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return accumulate(self.spatial(shifted(self.norm, self.spatial.shift, x), self.scale), x)


MIXERS: dict[str, type[Mixer]] = {
    "window": WindowMixer,
    "cross-shaped": CrossShapedMixer,
    "overlapping": OverlappingMixer,
    "channel": ChannelMixer,
    "transposed": TransposedMixer,
    "large-kernel": LargeKernelGate,
    "wavelet": WaveletMixer,
    "rwkv": RWKVMixer,
}
"""Name to what makes the mixer, called with channels, place of the block and axes of the grid."""


def mixer(name: str, dim: int, depth_index: int, spatial_dims: int = 2) -> Mixer:
    """A mixer by its name in `MIXERS`.

    Raises:
        ValueError: No such mixer, or channels that the heads cannot share.

    >>> mixer("wavelet", 12, 0, spatial_dims=3)(torch.ones(1, 5, 4, 3, 12)).shape
    torch.Size([1, 5, 4, 3, 12])
    """
    if name not in MIXERS:
        raise ValueError(f"there is no mixer {name!r}, only {', '.join(MIXERS)}")
    if dim % spatial_dims:
        raise ValueError(f"{dim} channels cannot be shared by {spatial_dims} axes")
    return MIXERS[name](dim, depth_index, spatial_dims)


class MixerBlock(nn.Module):
    """A mixer, then x + feed-forward(norm(x)). Parameters of the mixer are named ``mixer.<its name>.…``, which tells it.

    Args:
        name: Of the mixer.
        dim: Channels C.
        width: Hidden channels of the feed-forward.
        depth_index: Place of the block in its network.
        spatial_dims: Axes of the grid.
    """

    def __init__(self, name: str, dim: int, width: int, depth_index: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.mixer = nn.ModuleDict({name: mixer(name, dim, depth_index, spatial_dims)})
        self.norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) of any size to the same."""
        for step in self.mixer.values():
            x = step(x)
        return accumulate(self.mlp(self.norm(x)), x)


def mixer_name(state: Mapping[str, Tensor], block: str) -> str | None:
    """Name of the mixer of a block, from the names of its parameters; None where there is no such block.

    Args:
        state: Tensors by name.
        block: Name of a `MixerBlock`, with a point at its end.
    """
    start = block + "mixer."
    return next((key[len(start) :].partition(".")[0] for key in state if key.startswith(start)), None)


def _filled_up(x: Tensor, multiple: int) -> Tensor:
    """(B, *spatial, C) with zeros at the ends of sides that are no multiples; of graphs sides are multiples already."""
    if torch.compiler.is_exporting():
        return x
    missing = [-n % multiple for n in x.shape[1:-1]]
    return F.pad(x, [0, 0, *(n for m in reversed(missing) for n in (0, m))]) if any(missing) else x


def _cropped(mixed: Tensor, x: Tensor) -> Tensor:
    """The corner of `mixed` that has the sides of `x`."""
    if torch.compiler.is_exporting() or prod(mixed.shape) == prod(x.shape):
        return mixed
    return mixed[(slice(None), *map(slice, x.shape[1:-1]))]
