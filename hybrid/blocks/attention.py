"""Attention blocks in two and three dimensions: windows, overlapping windows, channels.

Axis letters: B batch, C channels, M windows of the whole batch, N queries and K keys of one window, h heads, d channels a head.
Grids are channels-last, (B, *spatial, C), so that they are token lists without a copy.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.windows import (
    from_windows,
    merge,
    overlapping,
    overlapping_index,
    partition,
    plan_windows,
    relative_index,
    to_windows,
)

OVERLAP_CHUNK = 64
"""Windows of overlapping attention that are copied out at a time in inference: bounds the copies of keys and values."""


class PositionBias(nn.Module):
    """The additive attention bias (h, N, K) read from a table of relative positions.

    In inference the expanded bias is kept until the table changes; in training it is read anew, for its gradient.
    """

    def __init__(self, index: Tensor, rows: int, num_heads: int, queries: int) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.table = nn.Parameter(torch.zeros(rows, num_heads))
        self.queries = queries
        self._kept: tuple[tuple, Tensor] | None = None
        nn.init.normal_(self.table, std=0.02)

    def forward(self, dtype: torch.dtype) -> Tensor:
        if torch.is_grad_enabled():
            return self._expand(dtype)
        key = (self.table._version, self.table.data_ptr(), dtype)
        if self._kept is None or self._kept[0] != key:
            self._kept = (key, self._expand(dtype))
        return self._kept[1]

    def _expand(self, dtype: torch.dtype) -> Tensor:
        assert isinstance(self.index, Tensor)
        bias = self.table.t().to(dtype).index_select(1, self.index)
        return bias.view(bias.shape[0], self.queries, -1)

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_kept": None}  # a copy makes its own


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for (M, h, N, d) queries and (M, h, K, d) keys; bias (1, h, N, K).

    Fused where no gradient is asked for. A bias that learns keeps torch from its fused kernels, and its unfused form
    checks for rows that are masked out whole, which takes as long as the attention itself: there the plain formula is
    twice as fast (measured on a CPU, windows of 8 x 8).
    """
    if torch.is_grad_enabled() and bias.requires_grad:
        return torch.matmul(torch.softmax(torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2)) + bias, -1), v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside (shifted) windows of a grid, with a relative position bias.

    softmax(q k^T / sqrt(d) + bias + mask) v, computed fused, for any number of spatial axes
    (Liu et al., "Swin Transformer", ICCV 2021, equation 4).

    Args:
        dim: Channels C.
        window: Window edge along each spatial axis.
        num_heads: Heads h; C is divided among them.
        qkv_bias: Whether the joint projection to queries, keys and values has a bias.
    """

    def __init__(self, dim: int, window: tuple[int, ...], num_heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.window, self.num_heads = window, num_heads
        rows = prod(2 * w - 1 for w in window)
        self.bias = PositionBias(relative_index(window), rows, num_heads, prod(window))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, shift: tuple[int, ...]) -> Tensor:
        """(B, *spatial, C) to the same shape; sides must be multiples of the window; zeros in `shift` mean no roll."""
        plan = plan_windows(x.shape[0], tuple(x.shape[1:-1]), self.window, shift, x.device)
        qkv = self.qkv(to_windows(x, plan, prod(self.window)))
        m, n, _ = qkv.shape
        q, k, v = qkv.view(m, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (M, h, N, d)
        bias = self.bias(q.dtype)
        parts, start = [], 0
        for count, mask in plan.groups:
            run = slice(start, start + count)
            logits_bias = bias if mask is None else bias + mask.to(bias.dtype)
            parts.append(attend(q[run], k[run], v[run], logits_bias[None]))
            start += count
        attended = parts[0] if len(parts) == 1 else torch.cat([p.transpose(1, 2) for p in parts]).transpose(1, 2)
        return from_windows(self.proj(attended.transpose(1, 2).reshape(m, n, -1)), plan, x.shape)


class OverlappingCrossAttention(nn.Module):
    """Attention from each window to a larger window around it (Chen et al., HAT, CVPR 2023, section 3.2, OCA).

    Keys and values outside the grid are exact zeros, not masked, as published: they take softmax weight and add nothing.

    Args:
        dim: Channels C.
        window: Query window edge along each spatial axis.
        overlap: Key window edge along each axis; exceeds the query's by an even number.
        num_heads: Heads h.
        qkv_bias: Whether the joint projection has a bias.
    """

    def __init__(
        self, dim: int, window: tuple[int, ...], overlap: tuple[int, ...], num_heads: int, qkv_bias: bool = True
    ) -> None:
        super().__init__()
        if any((o - w) % 2 or o < w for w, o in zip(window, overlap, strict=True)):
            raise ValueError(f"the overlapping window {overlap} must exceed the window {window} by an even number")
        self.window, self.overlap, self.num_heads = window, overlap, num_heads
        rows = prod(w + o - 1 for w, o in zip(window, overlap, strict=True))
        self.bias = PositionBias(overlapping_index(window, overlap), rows, num_heads, prod(window))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same shape; sides must be multiples of the query window."""
        c, dims = x.shape[-1], len(self.window)
        qkv = self.qkv(x)
        queries = self._heads(partition(qkv[..., :c], self.window))
        around = overlapping(qkv[..., c:], self.window, self.overlap)  # (B, *counts, 2C, *overlap), a view
        around = around.movedim(dims + 1, -1)
        bias = self.bias(qkv.dtype)[None]
        row = prod(around.shape[2 : 1 + dims])  # windows in one step along the first spatial axis
        # Without a gradient to keep them for, keys and values are copied out for a few windows of one image at a time.
        whole = torch.is_grad_enabled()
        step = around.shape[1] if whole else max(1, OVERLAP_CHUNK // row)
        parts = []
        for image, image_queries in [(around, queries)] if whole else zip(around.split(1), queries.chunk(len(x)), strict=True):
            chunks = image_queries.split(len(image) * step * row)
            for block, q in zip(image.split(step, dim=1), chunks, strict=True):
                k, v = block.reshape(len(q), prod(self.overlap), 2 * c).chunk(2, dim=-1)
                attended = attend(q, self._heads(k), self._heads(v), bias)
                parts.append(attended.transpose(1, 2).flatten(2))
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)
        return merge(self.proj(attended), self.window, x.shape)

    def _heads(self, tokens: Tensor) -> Tensor:
        """(M, N, C) to (M, h, N, d)."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class ChannelAttention(nn.Module):
    """A gate a channel from the mean over the whole grid: x * sigmoid(W2 relu(W1 mean(x))) (Hu et al., "SENet", CVPR 2018).

    The weights are kept as 1x1 convolutions, the form in which they are published; applied to one vector an image
    they are matrix products.
    """

    def __init__(self, dim: int, width: int, spatial_dims: int = 2) -> None:
        super().__init__()
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial_dims - 1]
        self.squeeze = convolution(dim, width, 1)
        self.expand = convolution(width, dim, 1)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        """(B, C, *spatial) to the same; `scale` multiplies the gate, which is cheaper than multiplying the grid."""
        pooled = x.mean(list(range(2, x.ndim)))
        hidden = F.relu(F.linear(pooled, self.squeeze.weight.flatten(1), self.squeeze.bias))
        gate = torch.sigmoid(F.linear(hidden, self.expand.weight.flatten(1), self.expand.bias)) * scale
        return x * gate.view(*gate.shape, *[1] * (x.ndim - 2))
