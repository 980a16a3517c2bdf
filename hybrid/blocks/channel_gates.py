"""Gates between channels without attention over pixels: simple gates, and channel attention from global or local means.

Axis letters: B batch, C channels, M hidden channels. Grids are channels-last, (B, *spatial, C).

L. Chen, X. Chu, X. Zhang, J. Sun, "Simple Baselines for Image Restoration", ECCV 2022, arXiv 2204.04676. Local means in
place of global ones: X. Chu, L. Chen, C. Chen, X. Lu, "Improving Image Restoration by Revisiting Global Information
Aggregation", ECCV 2022, arXiv 2112.04491 (the test-time local converter, TLC).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks import exportable
from hybrid.blocks.chunks import accumulate, modulate
from hybrid.blocks.convolution import DepthwiseConvolution, PointwiseConvolution, in_row_strips

STRIP_VALUES = 2**19
"""Values of one hidden map of a strip: it stays near the cache, and below the size from which memory is mapped afresh."""
LEAST_ROWS = 16
"""Rows of a strip: each is computed with one row of context on either side."""
EPSILON = 1e-6
MEAN_STRIP = 64
"""Rows or columns whose running sums are held at a time."""


class SimplifiedChannelAttention(nn.Module):
    """A factor a channel, linear in the means: no hidden layer and no sigmoid (SCA, Simple Baselines, equation 7)."""

    def __init__(self, dim: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.conv = PointwiseConvolution(dim, dim, spatial_dims)

    def forward(self, means: Tensor) -> Tensor:
        """(B, *spatial, C) means to factors."""
        factors: Tensor = self.conv(means)
        return factors


class SqueezedChannelAttention(nn.Module):
    """A factor a channel, sigmoid(W2 relu(W1 means)), half as wide inside (Hu et al., SENet, CVPR 2018)."""

    def __init__(self, dim: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.squeeze = PointwiseConvolution(dim, dim // 2, spatial_dims)
        self.expand = PointwiseConvolution(dim // 2, dim, spatial_dims)

    def forward(self, means: Tensor) -> Tensor:
        """(B, *spatial, C) means to factors."""
        return torch.sigmoid(self.expand(F.relu(self.squeeze(means))))


class ActivationFreeBlock(nn.Module):
    """Two steps with skips: depthwise convolution, gate and channel attention; then a gated feed-forward (NAFNet's block).

        y = x + beta * conv3(t * attention(mean(t))), t = gate(conv2(conv1(norm1(x))))
        out = y + gamma * conv5(gate(conv4(norm2(y))))

    The gate multiplies one half of the channels by the other. With `plain` it is GELU, which halves nothing, and the
    attention squeezes: the block of the paper's Baseline.

    Args:
        dim: Channels C.
        expand: Hidden channels of the first step per channel, before the gate.
        widen: Those of the second step.
        plain: Baseline's block.
        window: Edges of the window of a local mean in place of the global one; None for the global one.
    """

    def __init__(
        self,
        dim: int,
        expand: int = 2,
        widen: int = 2,
        *,
        plain: bool = False,
        window: Sequence[int] | None = None,
        spatial_dims: int = 2,
    ) -> None:
        super().__init__()
        hidden, width, halves = expand * dim, widen * dim, 1 if plain else 2
        self.plain, self.window = plain, window
        self.beta, self.gamma = (nn.Parameter(torch.zeros(1, dim, *[1] * spatial_dims)) for _ in range(2))
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=EPSILON), nn.LayerNorm(dim, eps=EPSILON)
        self.conv1 = PointwiseConvolution(dim, hidden, spatial_dims)
        self.conv2 = DepthwiseConvolution(hidden, 3, spatial_dims)
        self.attention = (SqueezedChannelAttention if plain else SimplifiedChannelAttention)(hidden // halves, spatial_dims)
        self.conv3 = PointwiseConvolution(hidden // halves, dim, spatial_dims)
        self.conv4 = PointwiseConvolution(dim, width, spatial_dims)
        self.conv5 = PointwiseConvolution(width // halves, dim, spatial_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same. Without gradients the result takes the place of `x`, which must belong to the caller."""
        pixels = STRIP_VALUES // len(self.conv1.weight)
        if not torch.is_grad_enabled():
            pixels = max(pixels, LEAST_ROWS * prod(x.shape[2:-1]))
        gated = in_row_strips(self._gather, x, halo=1, pixels=pixels)
        sides = x.shape[1:-1]
        window = sides if self.window is None else self.window
        if torch.compiler.is_exporting():
            return self._mix(x, gated, self.attention(exportable.local_means(gated, window)))
        factors = self.attention(local_mean(gated, window))
        if torch.is_grad_enabled():
            return self._mix(x, gated, spread_edges(factors, sides))
        step = pixels // prod(sides[1:])
        for top in range(0, sides[0], step):
            rows = slice(top, top + step)
            part = x[:, rows]
            mixed = self._mix(part, gated[:, rows], spread_edges(factors, sides, rows))
            if mixed is not part:  # in a type that `x` does not hold
                part.copy_(mixed)
        return x

    def _gather(self, x: Tensor) -> Tensor:
        return self._gate(self.conv2(self.conv1(self.norm1(x))))

    def _mix(self, x: Tensor, gated: Tensor, factors: Tensor) -> Tensor:
        """All that follows the mean, which needs no neighbours; `gated` is used up. Without gradients in the place of `x`."""
        y = accumulate(x, self.conv3(modulate(gated, factors), scale=self.beta.flatten()))
        return accumulate(y, self.conv5(self._gate(self.conv4(self.norm2(y))), scale=self.gamma.flatten()))

    def _gate(self, x: Tensor) -> Tensor:
        if self.plain:
            return F.gelu(x)
        first, second = x.chunk(2, -1)
        return first * second


def local_mean(x: Tensor, window: Sequence[int]) -> Tensor:
    """Means over all places of a window that lies wholly inside a grid; along an axis that it exceeds, over the whole axis.

    Running sums along one axis after the other, whatever the window's size; in float64, since in float32 the difference
    of two sums over a large picture would have few digits left.

    Args:
        x: (B, *spatial, C)
        window: Edges of the window.

    Returns:
        (B, *places, C), with n - k + 1 places along an axis of n pixels for an edge of k, at least one.

    >>> local_mean(torch.tensor([0.0, 2.0, 4.0, 9.0]).view(1, 4, 1), [2]).flatten().tolist()
    [1.0, 3.0, 6.5]
    """
    for axis, edge in enumerate(window, start=1):
        size = x.shape[axis]
        if edge >= size:
            x = x.mean(axis, keepdim=True)
        else:
            across = 2 if axis == 1 and x.ndim > 3 else 1
            strips = x.split(MEAN_STRIP, across) if across != axis and not torch.is_grad_enabled() else (x,)
            x = torch.cat([_running_mean(strip, axis, edge) for strip in strips], across)
    return x


def spread_edges(x: Tensor, sides: Sequence[int], rows: slice | None = None) -> Tensor:
    """Extend a map to a grid of these sides by repeating its outermost values on both ends, and where uneven once more far off.

    Args:
        x: (B, *places, C); a single place along an axis is left to broadcasting.
        sides: Of the grid.
        rows: Which rows of the result to make; None for all.

    >>> spread_edges(torch.tensor([1.0, 2.0]).view(1, 2, 1), [5]).flatten().tolist()
    [1.0, 1.0, 2.0, 2.0, 2.0]
    """
    for axis, size in enumerate(sides, start=1):
        places = x.shape[axis]
        if places == 1:
            continue
        index = (torch.arange(size, device=x.device) - (size - places) // 2).clamp_(0, places - 1)
        x = x.index_select(axis, index if rows is None or axis > 1 else index[rows])
    return x


def _running_mean(x: Tensor, axis: int, edge: int) -> Tensor:
    sums = x.cumsum(axis, dtype=torch.float64)
    places = x.shape[axis] - edge + 1
    first, later = sums.narrow(axis, edge - 1, 1), sums.narrow(axis, edge, places - 1) - sums.narrow(axis, 0, places - 1)
    return (torch.cat([first, later], axis) / edge).to(x.dtype)
