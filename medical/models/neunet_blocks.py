"""Blocks of neU-Net on channels-last grids: convolutions with instance norm, sub-pixel enlargement, heads.

Axis letters: B batch, C channels. Grids are (B, *spatial, C), channels-last images to convolutions without a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate
from hybrid.blocks.convolution import convolve
from hybrid.blocks.layout import to_image, to_tokens
from hybrid.blocks.normalisation import Affine, apply_affine, instance_norm, moments
from medical.models.unet_blocks import CONVOLUTIONS, SLOPE, leaky_relu_


class ActiveNorm(nn.Module):
    """Instance norm with a weight and a bias for each channel, then a leaky ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same; without gradients in the memory of `x`."""
        if torch.is_grad_enabled():
            return F.leaky_relu_(torch.addcmul(self.bias.to(x), instance_norm(x), self.weight.to(x)), SLOPE)
        plain = moments(x)
        return apply_affine(
            x, Affine(plain.scale * self.weight, plain.offset * self.weight + self.bias), out=x, activation=leaky_relu_
        )


class ConvBlock(nn.Module):
    """Convolution with a bias, instance norm, leaky ReLU.

    Args:
        inputs, outputs: Channels.
        kernel: Odd edges; a stride of 1 keeps the sides.
        stride: Steps along each axis; None for 1.
    """

    def __init__(self, inputs: int, outputs: int, kernel: Sequence[int], stride: Sequence[int] | None = None) -> None:
        super().__init__()
        convolution, steps = CONVOLUTIONS[len(kernel)], tuple(stride or [1] * len(kernel))
        self.conv = convolution(inputs, outputs, tuple(kernel), steps, padding=tuple(k // 2 for k in kernel))  # type: ignore[arg-type]
        self.norm = ActiveNorm(outputs)

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, *spatial / stride, C'); several parts stand for one grid with all their channels."""
        mixed: Tensor = self.norm(self._convolve(parts))
        return mixed

    def _convolve(self, parts: tuple[Tensor, ...]) -> Tensor:
        """The sum over the parts, which are never joined.

        The bias moves the mean, which the norm takes away. Inference leaves it out; in training it stays in the graph,
        since optimisers and distributed training want a gradient of each parameter, though it be nothing but rounding.
        """
        conv, total = self.conv, None
        bias = conv.bias if torch.is_grad_enabled() else None
        for part, weight in zip(parts, conv.weight.split([part.shape[-1] for part in parts], dim=1), strict=True):
            term = to_tokens(convolve(to_image(part), weight, bias, conv.stride))
            total, bias = term if total is None else accumulate(total, term), None
        assert total is not None
        return total


class SubPixelUp(nn.Module):
    """Enlarge a grid by two convolutions with tanh and a pixel shuffle (Shi et al., ESPCN, CVPR 2016), as neU-Net does.

    Args:
        inputs, outputs: Channels.
        stride: Enlargement along each axis.
    """

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__()
        convolution, self.stride = CONVOLUTIONS[len(stride)], stride
        self.conv1 = convolution(inputs, 2 * inputs, 5, padding=2)
        self.conv2 = convolution(2 * inputs, outputs * prod(stride), 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, *spatial * stride, C') in [-1, 1]."""
        y = to_image(x)
        for conv in (self.conv1, self.conv2):
            y = convolve(y, conv.weight, conv.bias).tanh_()
        return pixel_shuffle(to_tokens(y), self.stride)


def pixel_shuffle(x: Tensor, factors: Sequence[int]) -> Tensor:
    """Move channels into space: for a volume, channel ((c * f + i) * g + j) * h + k to channel c at offset (i, j, k).

    (B, *spatial, C * f * g * h) to (B, *spatial * factors, C); the same order as torch's PixelShuffle of slices.

    >>> pixel_shuffle(torch.arange(4.0).view(1, 1, 1, 4), (2, 2)).flatten().tolist()
    [0.0, 1.0, 2.0, 3.0]
    """
    n = len(factors)
    y = x.unflatten(-1, (-1, *factors))
    order = chain.from_iterable((1 + axis, n + 2 + axis) for axis in range(n))
    sides = [side * factor for side, factor in zip(x.shape[1:-1], factors, strict=True)]
    enlarged: Tensor = y.permute(0, *order, n + 1).reshape(len(x), *sides, -1)
    return enlarged
