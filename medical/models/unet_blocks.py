"""Convolutional blocks of segmentation networks, on channels-last grids of any dimension.

Axis letters: B batch, C channels. Grids are (B, *spatial, C), so that they are token lists to attention and
channels-last images to convolutions without a copy; on a CPU that is also the layout in which convolutions are fastest.
"""

from __future__ import annotations

from functools import partial, reduce

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate, chunk_length, join
from hybrid.blocks.convolution import convolve
from hybrid.blocks.layout import to_image, to_tokens
from hybrid.blocks.normalisation import apply_affine, instance_norm, moments

CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SLOPE = 0.01
"""Of the leaky ReLU."""
leaky_relu_ = partial(F.leaky_relu_, negative_slope=SLOPE)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with instance norm, and the input added, with leaky ReLUs (He et al., CVPR 2016).

    Where the channels change, the input is added through a 1x1 convolution with a norm of its own.
    """

    def __init__(self, inputs: int, outputs: int, spatial_dims: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[spatial_dims]
        self.conv1 = convolution(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = convolution(outputs, outputs, 3, padding=1, bias=False)
        self.conv3 = convolution(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, *parts: Tensor) -> Tensor:
        """(B, *spatial, C) to (B, *spatial, C'); several parts stand for one grid with all their channels, in that order."""
        if torch.is_grad_enabled():
            return self._learn(parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))
        y = _convolve(parts, self.conv1.weight)
        y = apply_affine(y, moments(y), out=y, activation=leaky_relu_)
        y = _convolve((y,), self.conv2.weight)
        if self.conv3 is None:
            return apply_affine(y, moments(y), out=y, plus=parts[0], activation=leaky_relu_)
        shortcut = _convolve(parts, self.conv3.weight)
        apply_affine(shortcut, moments(shortcut), out=shortcut)
        return apply_affine(y, moments(y), out=y, plus=shortcut, activation=leaky_relu_)

    def _learn(self, x: Tensor) -> Tensor:
        """The same, one step after the other."""
        y = F.leaky_relu(instance_norm(_convolve((x,), self.conv1.weight)), SLOPE)
        y = instance_norm(_convolve((y,), self.conv2.weight))
        shortcut = x if self.conv3 is None else instance_norm(_convolve((x,), self.conv3.weight))
        return F.leaky_relu(y + shortcut, SLOPE)


class UpBlock(nn.Module):
    """Double the grid by a transposed convolution, join the skip to it, and refine both (Ronneberger et al., U-Net, 2015)."""

    def __init__(self, inputs: int, outputs: int, spatial_dims: int) -> None:
        super().__init__()
        self.up = TRANSPOSED[spatial_dims](inputs, outputs, 2, stride=2, bias=False)
        self.block = ResidualBlock(2 * outputs, outputs, spatial_dims)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, *spatial, C) and a skip of twice its sides, (B, *2 spatial, C'), to the skip's shape."""
        joined: Tensor = self.block(to_tokens(self.up(to_image(x))), skip)
        return joined


def _convolve(parts: tuple[Tensor, ...], weight: Tensor) -> Tensor:
    """A convolution that keeps the size, of the channels of all parts: the sum over the parts, which are never joined."""
    weights = weight.split([part.shape[-1] for part in parts], dim=1)
    if weight.shape[-1] == 1:
        return _project(parts, [own.flatten(1) for own in weights])
    total = None
    for part, own in zip(parts, weights, strict=True):
        term = to_tokens(convolve(to_image(part), own))
        total = term if total is None else accumulate(total, term)
    assert total is not None
    return total


def _project(parts: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
    """The sum of matrix products, a few voxels at a time: a term of the sum is never there as a whole."""
    tokens = [part.flatten(0, -2) for part in parts]
    chunks = zip(*(t.split(chunk_length(len(t))) for t in tokens), strict=True)
    sums = (reduce(accumulate, map(F.linear, chunk, weights)) for chunk in chunks)
    mixed: Tensor = join(sums, len(tokens[0])).unflatten(0, parts[0].shape[:-1])
    return mixed


def logits(grid: Tensor, head: nn.Module) -> Tensor:
    """A 1x1 convolution, as the product that leaves its result channels-first: (B, *spatial, C) to (B, classes, *spatial)."""
    weight, bias = head.weight, head.bias
    assert isinstance(weight, Tensor) and isinstance(bias, Tensor)
    tokens = grid.flatten(1, -2).transpose(1, 2)
    mixed = torch.baddbmm(bias[:, None], weight.flatten(1).expand(len(grid), -1, -1), tokens)
    found: Tensor = mixed.unflatten(-1, grid.shape[1:-1])
    return found
