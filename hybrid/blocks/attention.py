"""Attention blocks in two and three dimensions: windows, overlapping windows, channels.

Axis letters: B batch, C channels, M windows of the whole batch, N queries and K keys of one window, h heads, d channels a head.
Grids are channels-last, (B, *spatial, C), so that they are token lists without a copy.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks import exportable
from hybrid.blocks.chunks import chunk_length, join
from hybrid.blocks.windows import (
    WindowPlan,
    from_windows,
    merge,
    overlapping,
    overlapping_index,
    partition,
    plan_windows,
    relative_index,
    to_windows,
)

FEW_KEYS = 256
"""Keys up to which the plain formula of attention learns faster in bfloat16 on a CPU than torch's fused one."""
STRIP_TOKENS = 16384
"""Query tokens of a strip of overlapping attention in inference. Neighbouring strips compute the keys and values that
both see twice, so strips are kept wider than the chunks inside them."""


class PositionBias(nn.Module):
    """The additive bias (h, N, K) read from a table of relative positions, a row each (Swin Transformer, section 3.2).

    It is read anew at each call: kept for all blocks it would take as much memory as all else that HAT needs for a tile of
    64 x 64, and save half a percent of the time.
    """

    def __init__(self, index: Tensor, rows: int, num_heads: int, queries: int) -> None:
        super().__init__()
        self.register_buffer("index", index, persistent=False)
        self.table = nn.Parameter(torch.zeros(rows, num_heads))
        self.queries = queries
        nn.init.normal_(self.table, std=0.02)

    def forward(self, dtype: torch.dtype) -> Tensor:
        return expanded(self.table, self.index, self.queries, dtype)


def expanded(rows: Tensor, index: Tensor | nn.Module, queries: int, dtype: torch.dtype) -> Tensor:
    """Rows (R, h) picked by `index` (queries * K) to a bias (h, queries, K)."""
    assert isinstance(index, Tensor)
    # Picked first: bfloat16 is three times as slow to pick, and its gradients would be summed in it.
    bias = rows.t().contiguous().index_select(1, index).to(dtype)
    return bias.view(bias.shape[0], queries, -1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v for (M, h, N, d) queries and (M, h, K, d) keys; bias (1, h, N, K) or none.

    Fused where no gradient is asked for. A bias that learns keeps torch from its fused kernels, and its unfused form
    checks for rows that are masked out whole, which takes as long as the attention itself: there the plain formula is
    twice as fast (measured on a CPU, windows of 8 x 8). It is so too, two to seven times, with few keys in bfloat16 on a
    CPU, where the gradient of the fused kernel is slow (torch 2.13).
    """
    learns = torch.is_grad_enabled() and bias is not None and bias.requires_grad
    quick = torch.is_grad_enabled() and q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[-2] <= FEW_KEYS
    if learns or quick:
        logits = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
        return torch.matmul(torch.softmax(logits if bias is None else logits + bias, -1), v)
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
        any_size: Take grids of any size, as Video Swin and Swin UNETR do: an axis no longer than the window is one window,
            without a shift; a longer one is filled up with zero tokens at its end, which take part in the attention.
            In windows of fewer tokens the bias is the corner of the whole window's, though offsets of it are then others.
    """

    def __init__(self, dim: int, window: tuple[int, ...], num_heads: int, qkv_bias: bool = True, any_size: bool = False) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        self.window, self.num_heads, self.any_size = window, num_heads, any_size
        rows = prod(2 * w - 1 for w in window)
        self.bias = PositionBias(relative_index(window), rows, num_heads, prod(window))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, shift: tuple[int, ...]) -> Tensor:
        """(B, *spatial, C) to the same shape; zeros in `shift` mean no roll.

        Unless it is of `any_size`, sides must be multiples of the window.
        """
        if torch.compiler.is_exporting():
            bias = self.bias(x.dtype)
            return exportable.masked_windows(x, self.window, shift, partial(self._exported, bias=bias), any_size=self.any_size)
        plan = self.plan(x, shift)
        windows = to_windows(x, plan, plan.tokens)
        step = chunk_length(len(windows), windows.shape[1])  # queries, keys and values live for a few windows at a time
        groups = zip(windows.split([count for count, _ in plan.groups]), self.biases(plan, windows.dtype), strict=True)
        chunks = ((chunk, bias) for group, bias in groups for chunk in group.split(step))
        return from_windows(join((self.attend_windows(*chunk) for chunk in chunks), len(windows)), plan, x.shape)

    def plan(self, x: Tensor, shift: tuple[int, ...]) -> WindowPlan:
        """How the grid (B, *spatial, C) is cut into windows."""
        shape = tuple(x.shape[1:-1])
        if not self.any_size:
            return plan_windows(x.shape[0], shape, self.window, shift, x.device)
        window = tuple(min(n, w) for n, w in zip(shape, self.window, strict=True))
        shift = tuple(s if n > w else 0 for n, w, s in zip(shape, self.window, shift, strict=True))
        return plan_windows(x.shape[0], shape, window, shift, x.device, pad=True)

    def biases(self, plan: WindowPlan, dtype: torch.dtype) -> list[Tensor]:
        """For each group of the plan's windows the sum of position bias and mask, (1, h, N, N)."""
        bias = self.bias(dtype)[:, : plan.tokens, : plan.tokens]
        return [(bias if mask is None else bias + mask.to(bias.dtype))[None] for _, mask in plan.groups]

    def attend_windows(self, windows: Tensor, bias: Tensor) -> Tensor:
        """Attention inside windows (M, N, C) that share a bias (1, h, N, N)."""
        m, n, _ = windows.shape
        q, k, v = self.qkv(windows).view(m, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)  # each (M, h, N, d)
        mixed: Tensor = self.proj(attend(q, k, v, bias).transpose(1, 2).reshape(m, n, -1))
        return mixed

    def _exported(self, windows: Tensor, mask: Tensor | None, *, bias: Tensor) -> Tensor:
        """The same for all windows at once, with the bias (h, N, N) of the whole window."""
        n = windows.shape[1]
        q, k, v = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(exportable.attended(q, k, v, bias[None, :, :n, :n], mask).transpose(1, 2).flatten(2))
        return mixed


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
        _check_heads(dim, num_heads)
        self.window, self.overlap, self.num_heads = window, overlap, num_heads
        rows = prod(w + o - 1 for w, o in zip(window, overlap, strict=True))
        self.bias = PositionBias(overlapping_index(window, overlap), rows, num_heads, prod(window))
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same shape; sides must be multiples of the query window."""
        if torch.compiler.is_exporting():
            return self._exported(x)
        height, edge = x.shape[1], self.window[0]
        row_tokens = prod(x.shape[2:-1]) * edge
        step = height if torch.is_grad_enabled() else max(1, STRIP_TOKENS // row_tokens) * edge
        if step >= height:
            return self._strip(x, 0, height)
        attended = torch.empty_like(x)
        for top in range(0, height, step):
            bottom = min(height, top + step)
            attended[:, top:bottom] = self._strip(x, top, bottom)
        return attended

    def _strip(self, x: Tensor, top: int, bottom: int) -> Tensor:
        """The attention of the queries from `top` to `bottom` along the first spatial axis."""
        c, n, k = x.shape[-1], prod(self.window), prod(self.overlap)
        margin = (self.overlap[0] - self.window[0]) // 2
        above, below = min(margin, top), min(margin, x.shape[1] - bottom)
        core = x[:, top:bottom]
        queries = partition(self._project(core, 0, c), self.window)
        around = self._project(x[:, top - above : bottom + below], c, 3 * c)
        around = overlapping(around, self.window, self.overlap, present=(above, below))  # (B, *counts, 2C, *overlap)
        around = around.movedim(len(self.window) + 1, -1).flatten(0, 1)  # (B * first count, *counts, *overlap, 2C)
        bias = self.bias(queries.dtype)[None]
        each = len(queries) // len(around)
        step = chunk_length(len(around), each * n)

        def chunks() -> Iterator[Tensor]:
            for block, q in zip(around.split(step), queries.split(step * each), strict=True):
                keys, values = block.reshape(len(q), k, 2 * c).chunk(2, dim=-1)
                attended = attend(self._heads(q), self._heads(keys), self._heads(values), bias)
                yield self.proj(attended.transpose(1, 2).flatten(2))

        return merge(join(chunks(), len(queries)), self.window, core.shape)

    def _exported(self, x: Tensor) -> Tensor:
        """The same for all windows at once."""
        c = x.shape[-1]
        around = exportable.overlapping(self._project(x, c, 3 * c), self.window, self.overlap)
        bias = self.bias(around.dtype)[None]

        def attention(windows: Tensor) -> Tensor:
            keys, values = (self._heads(part) for part in around.chunk(2, -1))
            attended = exportable.attended(self._heads(windows), keys, values, bias, None)
            mixed: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
            return mixed

        return exportable.windowed(self._project(x, 0, c), self.window, (0,) * len(self.window), attention)

    def _project(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Outputs `start` to `stop` of the joint projection: queries come from fewer tokens than keys and values."""
        bias = self.qkv.bias
        return F.linear(x, self.qkv.weight[start:stop], None if bias is None else bias[start:stop])

    def _heads(self, tokens: Tensor) -> Tensor:
        """(M, N, C) to (M, h, N, d)."""
        heads: Tensor = tokens.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


def _check_heads(dim: int, num_heads: int) -> None:
    if dim % num_heads:
        raise ValueError(f"{dim} channels cannot be shared by {num_heads} heads")


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
        """(B, C, *spatial) to the same; `scale` multiplies the gate, which is cheaper than multiplying the grid.

        Without gradients the result takes the place of `x`, which must belong to the caller.
        """
        pooled = x.mean(list(range(2, x.ndim)))
        hidden = F.relu(F.linear(pooled, self.squeeze.weight.flatten(1), self.squeeze.bias))
        gate = torch.sigmoid(F.linear(hidden, self.expand.weight.flatten(1), self.expand.bias)) * scale
        gate = gate.view(*gate.shape, *[1] * (x.ndim - 2))
        return x * gate if torch.is_grad_enabled() else x.mul_(gate)
