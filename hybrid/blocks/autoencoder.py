"""Blocks of convolutional auto-encoders with group norm: residual blocks, attention over the whole grid, halving and doubling.

P. Esser, R. Rombach, B. Ommer, "Taming Transformers for High-Resolution Image Synthesis" (VQGAN), CVPR 2021, arXiv 2012.09841;
latent diffusion has the same. In two and three dimensions. Axis letters: B batch, C channels, h heads, d channels a head,
N voxels of one grid. Grids are channels-last, (B, *spatial, C).

In inference the norm, the activation and the convolution after them are done strip by strip, so that only the residual
stream and one map beside it are alive.
"""

from __future__ import annotations

from functools import partial
from itertools import product
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.attention import attend
from hybrid.blocks.chunks import computed_type
from hybrid.blocks.convolution import STRIP_PIXELS, PointwiseConvolution, in_row_strips
from hybrid.blocks.layout import to_image, to_tokens
from hybrid.blocks.normalisation import Affine, apply_affine, mean_and_variance

EPSILON = 1e-6


class GroupNorm(nn.GroupNorm):
    """Group norm of channels-last grids (Wu and He, ECCV 2018), the statistics of which are those of the whole grid."""

    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels, EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same, as a new tensor."""
        if torch.is_grad_enabled():
            # Of bfloat16 channels-last maps the backward pass of torch's norm takes thrice the time on a CPU.
            return to_tokens(super().forward(to_image(x).float()))
        return apply_affine(x, self.affine_of(x), out=torch.empty_like(x))

    def affine_of(self, x: Tensor) -> Affine:
        """What the norm does to each channel of each grid. Not for gradients."""
        mean, variance = (moment.unflatten(-1, (self.num_groups, -1)) for moment in mean_and_variance(x))
        centre = mean.mean(-1, keepdim=True)
        spread = (variance + (mean - centre).square()).mean(-1, keepdim=True)
        scale = (self.weight.view(mean.shape[1:]) * (spread + self.eps).rsqrt()).flatten(1)
        return Affine(scale, self.bias - scale * centre.expand_as(mean).flatten(1))


def activated_convolution(x: Tensor, norm: GroupNorm, convolution: nn.Module, onto: Tensor | None = None) -> Tensor:
    """convolution(silu(norm(x))) of a grid (B, *spatial, C) with a 3^n kernel, plus `onto`.

    In inference in strips, and the sum in the place of `onto`, which must belong to the caller.
    """
    if torch.is_grad_enabled():
        y = to_tokens(convolution(to_image(F.silu(norm(x)))))
        return y if onto is None else onto + y
    affine = norm.affine_of(x)

    def step(strip: Tensor) -> Tensor:
        y = torch.empty_like(strip, dtype=computed_type(strip))
        apply_affine(strip, affine, out=y, activation=partial(F.silu, inplace=True))
        return to_tokens(convolution(to_image(y)))

    return in_row_strips(step, x, halo=1, onto=onto)


class ResidualBlock(nn.Module):
    """Two convolutions, each after a norm and SiLU, and a skip, projected where the channels change.

    Args:
        inputs, outputs: Channels. groups: Of the norms.
    """

    def __init__(self, inputs: int, outputs: int, groups: int = 32, spatial_dims: int = 2) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(groups, inputs), GroupNorm(groups, outputs)
        self.conv1 = convolution_of(spatial_dims)(inputs, outputs, 3, padding=1)
        self.conv2 = convolution_of(spatial_dims)(outputs, outputs, 3, padding=1)
        self.shortcut = PointwiseConvolution(inputs, outputs, spatial_dims) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, inputs) to (B, *spatial, outputs), in inference perhaps in the place of `x`, the caller's own."""
        hidden = activated_convolution(x, self.norm1, self.conv1)
        skip = x if self.shortcut is None else self.shortcut(x).to(x.dtype)
        return activated_convolution(hidden, self.norm2, self.conv2, onto=skip)


class GlobalAttention(nn.Module):
    """Multi-head attention between all voxels of a grid, which may be asked by another: its queries then come from there.

    Args:
        dim: Channels C. num_heads: Heads h; C is divided among them.
        groups: Of the norms.
        asked: Whether `forward` is given a context. Files have a second norm, of the context, either way; without a context it
            stays as it came.
    """

    def __init__(self, dim: int, num_heads: int = 1, groups: int = 32, asked: bool = False, spatial_dims: int = 2) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels cannot be shared by {num_heads} heads")
        self.num_heads = num_heads
        self.norm1, self.norm2 = GroupNorm(groups, dim), GroupNorm(groups, dim).requires_grad_(asked)
        self.q, self.k, self.v, self.proj = (PointwiseConvolution(dim, dim, spatial_dims) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, *spatial, C), and a context of the same shape, to the same: the grid plus what its own keys and values answer."""
        normed = self.norm1(x)
        asking = normed if context is None else self.norm2(context)
        q, k, v = (self._heads(part) for part in (self.q(asking), self.k(normed), self.v(normed)))
        attended = attend(q, k, v, None).transpose(1, 2).flatten(2)
        mixed: Tensor = x + self.proj(attended.reshape(x.shape))
        return mixed

    def _heads(self, grid: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, h, N, d)."""
        heads: Tensor = grid.flatten(1, -2).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class Downsample(nn.Module):
    """A 3^n convolution of stride 2, with zeros beside the far end of each axis alone. Sides have to be even."""

    def __init__(self, channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.conv = convolution_of(spatial_dims)(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, *spatial / 2, C)."""
        spatial = x.ndim - 2
        rows = x.shape[1] // 2
        step = rows if torch.is_grad_enabled() else max(1, STRIP_PIXELS // prod(x.shape[2:-1]))
        strips = []
        for top in range(0, rows, step):
            strip = x[:, 2 * top : 2 * (top + step) + 1]  # the last has no row below it
            beside = [0, 0] + [0, 1] * (spatial - 1) + [0, int(top + step >= rows)]
            strips.append(to_tokens(self.conv(to_image(F.pad(strip, beside)))).to(x.dtype))
        return strips[0] if len(strips) == 1 else torch.cat(strips, 1)


class Upsample(nn.Module):
    """Each voxel doubled along each axis, then a 3^n convolution.

    In inference both at once, for less than half the products: where voxels are doubled, two of three neighbours along an axis
    are the same one, so that every second result is a convolution of the smaller grid with a kernel of two taps an axis.
    """

    def __init__(self, channels: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.conv = convolution_of(spatial_dims)(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, 2 * spatial, C)."""
        if torch.is_grad_enabled():
            return to_tokens(self.conv(F.interpolate(to_image(x), scale_factor=2, mode="nearest"))).to(x.dtype)
        sides = x.shape[1:-1]
        result = x.new_empty(len(x), *(2 * side for side in sides), x.shape[-1])
        convolve = (F.conv2d, F.conv3d)[len(sides) - 2]
        for phases in product((0, 1), repeat=len(sides)):
            part = to_tokens(convolve(to_image(x), _two_taps(self.conv.weight, phases), self.conv.bias, padding=1))
            held = tuple(slice(phase, phase + side) for phase, side in zip(phases, sides, strict=True))
            result[(slice(None), *(slice(phase, None, 2) for phase in phases))] = part[(slice(None), *held)]
        return result


def _two_taps(weight: Tensor, phases: tuple[int, ...]) -> Tensor:
    """A kernel (C', C, 3, ...) over doubled voxels as one (C', C, 2, ...) over the voxels, for the first or second of a pair."""
    for axis, phase in enumerate(phases, start=2):
        first, middle, last = weight.unbind(axis)
        weight = torch.stack((first + middle, last) if phase else (first, middle + last), axis)
    return weight.contiguous(memory_format=torch.channels_last if weight.ndim == 4 else torch.channels_last_3d)


def convolution_of(spatial_dims: int) -> type[nn.Conv2d] | type[nn.Conv3d]:
    """torch's class for two or three axes."""
    return (nn.Conv2d, nn.Conv3d)[spatial_dims - 2]
