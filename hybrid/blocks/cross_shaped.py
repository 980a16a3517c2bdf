"""Attention in cross-shaped windows: bars along each axis, each kind with its share of the channels, on grids of any dimension.

X. Dong et al., "CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows", CVPR 2022,
arXiv 2107.00652. With two spatial axes this is the published layer. With three - bars along each of three axes, channels and
heads in thirds - it is an extension of this package, the one that is the published layer where there are two.

Axis letters: B batch, C channels, A kinds of bars (one an axis, or one in all), c = C / A channels of a kind, M bars of the
whole batch, N tokens of one bar, h heads of a kind, d channels a head. Grids are channels-last, (B, *spatial, C).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.attention import attend
from hybrid.blocks.chunks import accumulate, chunk_length
from hybrid.blocks.convolution import DepthwiseConvolution
from hybrid.blocks.feedforward import FeedForward, StochasticDepth
from hybrid.blocks.layout import to_image
from hybrid.blocks.windows import merge, partition


@dataclass(frozen=True)
class Slab:
    """Some neighbouring bars of a grid, and all of it along the other axes.

    Attributes:
        rows: Which rows of the grid, along the axis of the plan.
        before, after: Zeros to add along each axis, so that the slab is a whole number of bars.
    """

    rows: slice
    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True)
class BarPlan:
    """How a grid is cut into bars of one kind.

    Attributes:
        shape: Sides of the grid.
        bar: Sides of a bar: the whole grid along one axis, or along all, and the split along the others.
        axis: The axis along which slabs follow each other, of those that the bar does not span where there is one.
    """

    shape: tuple[int, ...]
    bar: tuple[int, ...]
    axis: int

    def slabs(self, bars: int) -> Iterator[Slab]:
        """The grid in slabs of about so many `bars`. A side that is no multiple is filled up on both sides, more at the end."""
        missing = [-n % b for n, b in zip(self.shape, self.bar, strict=True)]
        counts = [-(-n // b) for n, b in zip(self.shape, self.bar, strict=True)]
        side, edge, first = self.shape[self.axis], self.bar[self.axis], missing[self.axis] // 2
        step = max(1, bars * counts[self.axis] // prod(counts))
        for start in range(0, counts[self.axis], step):
            top, bottom = start * edge - first, min(start + step, counts[self.axis]) * edge - first
            before, after = [m // 2 for m in missing], [m - m // 2 for m in missing]
            before[self.axis], after[self.axis] = max(0, -top), max(0, bottom - side)
            yield Slab(slice(max(0, top), min(side, bottom)), tuple(before), tuple(after))


def plan_bars(shape: tuple[int, ...], along: int | None, split: int) -> BarPlan:
    """Bars that span the grid `along` one axis and are `split` tokens wide along the others; None for one that is the grid.

    >>> plan_bars((14, 10), 0, 7).bar
    (14, 7)
    >>> [(slab.rows.start, slab.rows.stop, slab.before, slab.after) for slab in plan_bars((14, 10), 0, 7).slabs(1)]
    [(0, 5, (0, 2), (0, 0)), (5, 10, (0, 0), (0, 2))]
    """
    bar = tuple(n if along in (None, axis) else split for axis, n in enumerate(shape))
    return BarPlan(shape, bar, 1 if along == 0 and len(shape) > 1 else 0)


class CrossShapedAttention(nn.Module):
    """Multi-head self-attention in bars along each axis at once, with locally enhanced positions.

    proj(concat_a(softmax(q_a k_a^T / sqrt(d)) v_a + DW_a(v_a))) with DW_a a depthwise 3x3 convolution inside each bar (LePE;
    arXiv 2107.00652, equations 4 to 7). No bias table and no shift. Tokens that only fill up a side are zero after the
    projection, and take part in the softmax, as published.

    Args:
        dim: Channels C.
        num_heads: Heads, shared equally by the kinds of bars.
        split: Width of a bar.
        spatial_dims: Axes of the grid.
        whole: One kind of bar, which is the whole grid, as in the last stage.
    """

    def __init__(self, dim: int, num_heads: int, split: int, spatial_dims: int = 2, whole: bool = False) -> None:
        super().__init__()
        self.directions: tuple[int | None, ...] = (None,) if whole else tuple(range(spatial_dims))
        kinds = len(self.directions)
        if dim % num_heads or num_heads % kinds or split < 1:
            raise ValueError(f"{dim} channels and {num_heads} heads cannot be shared by {kinds} kinds of bars {split} wide")
        self.split, self.num_heads = split, num_heads // kinds
        self.qkv = nn.Linear(dim, 3 * dim)
        self.local = nn.ModuleList(DepthwiseConvolution(dim // kinds, 3, spatial_dims) for _ in range(kinds))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same; sides of any length."""
        kinds = [self._slabs(x, kind) for kind in range(len(self.directions))]
        mixed: Tensor
        if torch.is_grad_enabled():
            mixed = self.proj(torch.cat([part for kind in kinds for _, part in kind], -1))  # a slab is then the whole grid
            return mixed
        attended: Tensor | None = None
        for channels, kind in zip(range(0, x.shape[-1], x.shape[-1] // len(kinds)), kinds, strict=True):
            for place, part in kind:
                attended = part.new_empty(x.shape) if attended is None else attended
                attended[place][..., channels : channels + part.shape[-1]] = part
        assert attended is not None
        mixed = self.proj(attended)
        return mixed

    def _slabs(self, x: Tensor, kind: int) -> Iterator[tuple[tuple[slice, ...], Tensor]]:
        """Attended values (B, *slab, c) of the channels of one kind, a few bars at a time, with their place in the grid."""
        plan = plan_bars(tuple(x.shape[1:-1]), self.directions[kind], self.split)
        bars = chunk_length(prod(x.shape[:-1]), len(x) * prod(plan.bar))
        for slab in plan.slabs(bars):
            place = (slice(None),) * (1 + plan.axis) + (slab.rows,)
            yield place, self.mix(self._project(x[place], kind), plan.bar, slab, kind)

    def _project(self, x: Tensor, kind: int) -> Tensor:
        """Queries, keys and values of one kind, (B, *slab, 3c), from all channels (B, *slab, C)."""
        # The rows of the joint projection are [q | k | v], each [kind][head][channel].
        weight = self.qkv.weight.view(3, len(self.directions), -1, x.shape[-1])[:, kind].flatten(0, 1)
        return F.linear(x, weight, self.qkv.bias.view(3, len(self.directions), -1)[:, kind].flatten())

    def mix(self, qkv: Tensor, bar: tuple[int, ...], slab: Slab, kind: int) -> Tensor:
        """Attention and local term of one kind inside bars: (B, *slab, 3c), queries first, to (B, *slab, c)."""
        batch, *sides, _ = qkv.shape
        if any(slab.before) or any(slab.after):
            pads = zip(reversed(slab.before), reversed(slab.after), strict=True)
            qkv = F.pad(qkv, [0, 0, *(n for pair in pads for n in pair)])
        padded = qkv.shape[1:-1]
        windows = partition(qkv, bar)  # (M, N, 3c)
        m, n, _ = windows.shape
        q, k, v = windows.view(m, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (M, h, N, d)
        values = windows.chunk(3, -1)[2]
        total = accumulate(attend(q, k, v, None).transpose(1, 2).flatten(2), self._local(values, bar, kind))
        grid = merge(total, bar, (batch, *padded, total.shape[-1]))
        return grid[(slice(None), *(slice(b, b + s) for b, s in zip(slab.before, sides, strict=True)))]

    def _local(self, values: Tensor, bar: tuple[int, ...], kind: int) -> Tensor:
        """The depthwise convolution inside each of the bars (M, N, c). Along an axis of one token only its centre sees any."""
        convolution = self.local[kind]
        assert isinstance(convolution, DepthwiseConvolution)
        weight, bias = convolution.folded()
        weight = weight[(slice(None), slice(None), *(slice(1, 2) if b == 1 else slice(None) for b in bar))]
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(bar) - 1]
        image = to_image(values.unflatten(1, bar))
        padding = [edge // 2 for edge in weight.shape[2:]]
        # oneDNN leaves parts of this kernel's gradient unset in bfloat16 where a bar is thinner than the kernel (torch 2.13).
        learning = torch.is_grad_enabled() and image.device.type == "cpu"
        with torch.autocast("cpu", enabled=False) if learning else nullcontext():
            image = image.to(weight.dtype) if learning else image
            found = convolve(image, weight, bias, padding=padding, groups=len(weight))
        return found.movedim(1, -1).flatten(1, -2)


class CSWinBlock(nn.Module):
    """x + attention(norm(x)), then the same with the feed-forward (arXiv 2107.00652, equation 8).

    Args:
        dim: Channels C.
        num_heads: Heads, shared equally by the kinds of bars.
        split: Width of a bar.
        mlp_width: Hidden channels of the feed-forward.
        spatial_dims: Axes of the grid.
        whole: Attend over the whole grid, as in the last stage.
        drop_path: Rate of stochastic depth, in training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        split: int,
        mlp_width: int,
        spatial_dims: int = 2,
        whole: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = CrossShapedAttention(dim, num_heads, split, spatial_dims, whole)
        self.mlp = FeedForward(dim, mlp_width)
        self.drop_path = StochasticDepth(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same; sides of any length."""
        total = accumulate(self.drop_path(self.attention(self.norm1(x))), x)
        return accumulate(self.drop_path(self.mlp(self.norm2(total))), total)
