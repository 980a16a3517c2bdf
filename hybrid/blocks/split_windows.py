"""Window attention whose channels are split among window shapes, such as lying and standing rectangles.

Axis letters: B batch, C channels, L tokens of the batch, M windows of the whole batch, N tokens of one window, h heads,
S window shapes, c = C / S channels of one shape, P hidden channels of the position bias.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn

from hybrid.blocks import exportable
from hybrid.blocks.attention import attend, expanded
from hybrid.blocks.chunks import accumulate, chunk_length
from hybrid.blocks.layout import to_image, to_tokens
from hybrid.blocks.windows import WindowPlan, from_windows, plan_windows, relative_index, to_windows


class DynamicPositionBias(nn.Module):
    """The bias (h, N, N) that a small network gives for each relative position (Wang et al., CrossFormer, ICLR 2022).

    Linear to P channels, then three times LayerNorm, ReLU and Linear, the last to h; not residual.

    With P = 1 the norms forget their input, so the bias is the same for all pairs of a head and softmax removes it: the
    module then returns None, and its parameters, which published files hold, are never trained.
    """

    def __init__(self, window: tuple[int, ...], width: int, num_heads: int) -> None:
        super().__init__()
        offsets = torch.meshgrid(*[torch.arange(1.0 - w, w) for w in window], indexing="ij")
        self.register_buffer("offsets", torch.stack(offsets, -1).flatten(0, -2), persistent=False)
        self.register_buffer("index", relative_index(window), persistent=False)
        self.embed = nn.Linear(len(window), width)
        outputs = (width, width, num_heads)
        self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, n)) for n in outputs)
        self.queries = prod(window)
        self.constant = width == 1
        if self.constant:
            self.requires_grad_(False)

    def forward(self, dtype: torch.dtype) -> Tensor | None:
        if self.constant:
            return None
        assert isinstance(self.index, Tensor) and isinstance(self.offsets, Tensor)
        with torch.autocast(self.index.device.type, enabled=False):
            rows = self.embed(self.offsets.to(self.embed.weight.dtype))  # (offsets, P)
            for layer in self.layers:
                rows = layer(rows)
            return expanded(rows, self.index, self.queries, dtype)


class SplitWindowAttention(nn.Module):
    """Attention in windows of several shapes at once, each with its share of channels and heads, and a locality term.

    proj(concat_s(softmax(q_s k_s^T / sqrt(d) + bias_s) v_s) + DW(v)), with DW a depthwise 3x3 convolution of the values as an
    image (Chen et al., "Cross Aggregation Transformer", NeurIPS 2022). Rolled windows are not masked: those at the seam mix
    opposite sides, as published.

    Args:
        dim: Channels C.
        windows: The S window shapes.
        num_heads: Heads, shared equally by the shapes.
        bias_width: Hidden channels P of the position bias.
        qkv_bias: Whether the joint projection has a bias.
    """

    def __init__(self, dim: int, windows: tuple[tuple[int, int], ...], num_heads: int, bias_width: int, qkv_bias: bool = True):
        super().__init__()
        if dim % num_heads or num_heads % len(windows):
            raise ValueError(f"{dim} channels and {num_heads} heads cannot be shared by {len(windows)} window shapes")
        self.windows, self.num_heads = windows, num_heads // len(windows)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.local = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.biases = nn.ModuleList(DynamicPositionBias(window, bias_width, self.num_heads) for window in windows)

    def forward(self, x: Tensor, rolled: bool) -> Tensor:
        """(B, H, W, C) to the same; sides must be multiples of all windows; `rolled` by half a window along each axis."""
        attended, values = self._gathered(x, rolled) if torch.is_grad_enabled() else self._streamed(x, rolled)
        total = accumulate(to_tokens(self.local(to_image(values))), attended)
        mixed: Tensor = self.proj(total)
        return mixed

    def _gathered(self, x: Tensor, rolled: bool) -> tuple[Tensor, Tensor]:
        """Attended and plain values, (B, H, W, C) each, all windows at once."""
        parts: list[Iterable[Tensor]] = []
        for shape in range(len(self.windows)):
            if torch.compiler.is_exporting():
                parts.append(self._exported(x, shape, rolled))
                continue
            plan = self._plan(x, shape, rolled)
            windows = to_windows(x, plan, prod(self.windows[shape]))
            parts.append([from_windows(part, plan, (*x.shape[:-1], -1)) for part in self._attend(windows, shape)])
        attended, values = zip(*parts, strict=True)
        return torch.cat(attended, -1), torch.cat(values, -1)

    def _exported(self, x: Tensor, shape: int, rolled: bool) -> tuple[Tensor, Tensor]:
        """Attended and plain values, (B, H, W, c) each, of one window shape."""
        window = self.windows[shape]
        shift = tuple(w // 2 if rolled else 0 for w in window)
        both = exportable.windowed(x, window, shift, lambda windows: torch.cat(self._attend(windows, shape), -1))
        attended, values = both.chunk(2, -1)
        return attended, values

    def _streamed(self, x: Tensor, rolled: bool) -> tuple[Tensor, Tensor]:
        """The same, a few windows at a time, each put in its place at once."""
        tokens = x.reshape(-1, x.shape[-1])
        share = x.shape[-1] // len(self.windows)
        out: Tensor | None = None
        for shape, window in enumerate(self.windows):
            n = prod(window)
            for rows in self._plan(x, shape, rolled).gather.split(chunk_length(len(tokens) // n, n) * n):
                windows = tokens.index_select(0, rows).view(-1, n, x.shape[-1])
                for kind, part in enumerate(self._attend(windows, shape)):
                    out = part.new_empty(2, *tokens.shape) if out is None else out
                    out[kind, :, shape * share : (shape + 1) * share].index_copy_(0, rows, part.flatten(0, 1))
        assert out is not None
        attended, values = out.view(2, *x.shape)
        return attended, values

    def _plan(self, x: Tensor, shape: int, rolled: bool) -> WindowPlan:
        window = self.windows[shape]
        shift = tuple(w // 2 if rolled else 0 for w in window)
        return plan_windows(x.shape[0], tuple(x.shape[1:-1]), window, shift, x.device)

    def _attend(self, windows: Tensor, shape: int) -> tuple[Tensor, Tensor]:
        """Attended and plain values (M, N, c) of the channels of one window shape, from all channels (M, N, C)."""
        m, n, channels = windows.shape
        # The rows of the joint projection are [q | k | v], each [shape][head][channel].
        weight = self.qkv.weight.view(3, len(self.windows), -1, channels)[:, shape].flatten(0, 1)
        bias = None if self.qkv.bias is None else self.qkv.bias.view(3, len(self.windows), -1)[:, shape].flatten()
        qkv = nn.functional.linear(windows, weight, bias).view(m, n, 3, self.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (M, h, N, d)
        position = self.biases[shape](qkv.dtype)
        attended = attend(q, k, v, None if position is None else position[None])
        return attended.transpose(1, 2).flatten(2), qkv[:, :, 2].flatten(2)
