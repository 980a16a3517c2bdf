"""Plain forms of the steps whose fast forms ask for numbers that a graph of open sizes does not have.

A graph that is exported knows the sides of its input by name alone: it can neither be told how many strips there are, nor look up
an index made for these sides. Strips are not an obstacle, since exports are made with gradients enabled, where blocks do the
plain thing (`hybrid.blocks.chunks`). What is left stands here: padding, windows with their masks, moving means, instance norm.
Each equals the form for daily use up to rounding; tests compare them. Blocks take them where `torch.compiler.is_exporting()`.

Axis letters: B batch, C channels, M windows of one grid, N tokens of a window, K keys of an overlapping window, h heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.blocks.windows import MASKED, merge, partition

Attend = Callable[[Tensor, Tensor | None], Tensor]
"""Attention of the windows (M, N, C) of one grid, with a mask (M, N, N) that is added to the logits."""


def padded(x: Tensor, multiple: int, mode: str) -> Tensor:
    """`hybrid.blocks.resampling.pad_to_multiple` of (B, C, *spatial), whose sides may be open."""
    for axis in range(2, x.ndim):
        size = x.shape[axis]
        if multiple == 1 or (isinstance(size, int) and size % multiple == 0):
            continue
        target = (size + multiple - 1) // multiple * multiple
        place = torch.arange(target, device=x.device)
        if mode == "zeros":
            inside = (place < size).to(x.dtype).view(-1, *[1] * (x.ndim - 1 - axis))
            x = x.index_select(axis, place.clamp(max=size - 1)) * inside
        else:
            turn = 2 * (size - 1)
            place = place % (turn + (torch.arange(1, device=x.device) >= turn))  # of a single element, turn is 0
            x = x.index_select(axis, torch.minimum(place, turn - place).abs().clamp(max=size - 1))
    return x


def windowed(x: Tensor, window: tuple[int, ...], shift: tuple[int, ...], step: Callable[[Tensor], Tensor]) -> Tensor:
    """A `step` on the windows (B * M, N, C) of a grid (B, *spatial, C) rolled by `-shift`, put back: (B, *spatial, C')."""
    axes = list(range(1, x.ndim - 1))
    rolled = torch.roll(x, [-s for s in shift], axes) if any(shift) else x
    windows = step(partition(rolled.contiguous(), window))
    y = merge(windows, window, (*x.shape[:-1], windows.shape[-1]))
    return torch.roll(y, list(shift), axes) if any(shift) else y


def masked_windows(x: Tensor, window: tuple[int, ...], shift: tuple[int, ...], attend: Attend, *, any_size: bool) -> Tensor:
    """Attention in shifted, masked windows of (B, *spatial, C); `any_size` as of `hybrid.blocks.attention.WindowAttention`."""
    sides = tuple(x.shape[1:-1])
    if any_size:  # which of both is less must be known: such networks have fixed sides
        shift = tuple(s if n > w else 0 for n, w, s in zip(sides, window, shift, strict=True))
        window = tuple(min(n, w) for n, w in zip(sides, window, strict=True))
        missing = [-n % w for n, w in zip(sides, window, strict=True)]
        x = F.pad(x, [0, 0, *(n for m in reversed(missing) for n in (0, m))]) if any(missing) else x
    mask = seam_mask(tuple(x.shape[1:-1]), window, shift, x)
    y = windowed(x, window, shift, lambda windows: attend(windows, mask))
    return y[(slice(None), *map(slice, sides))] if any_size else y


def seam_mask(sides: Sequence[int], window: Sequence[int], shift: Sequence[int], like: Tensor) -> Tensor | None:
    """The additive mask (M, N, N) of the windows of a rolled grid: tokens of different regions are no neighbours."""
    if not any(shift):
        return None
    regions = torch.zeros([1] * len(sides), dtype=torch.int64, device=like.device)
    for axis, (n, w, s) in enumerate(zip(sides, window, shift, strict=True)):
        place = torch.arange(n, device=like.device)
        region = (place >= n - w).long() + (place >= n - s).long() if s else torch.zeros_like(place)
        regions = regions + (region * 3**axis).view([-1 if other == axis else 1 for other in range(len(sides))])
    labels = partition(regions[None, ..., None], window).squeeze(-1)  # (M, N)
    return (labels[:, :, None] != labels[:, None, :]).to(like.dtype) * MASKED


def attended(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v of the windows (M, h, N, d) of one grid.

    Args:
        q, k, v: Of the windows; keys may be more than queries.
        bias: (1, h, N, K).
        mask: (M, N, K).
    """
    logits = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    if bias is not None:
        logits = logits + bias
    if mask is not None:
        logits = logits + mask[:, None]
    return torch.matmul(torch.softmax(logits, -1), v)


def overlapping(x: Tensor, window: Sequence[int], overlap: Sequence[int]) -> Tensor:
    """`hybrid.blocks.windows.overlapping`, read by index: (B, *spatial, C) to (B * M, K, C)."""
    margins = [(o - w) // 2 for w, o in zip(window, overlap, strict=True)]
    counts = [n // w for n, w in zip(x.shape[1:-1], window, strict=True)]
    x = F.pad(x, [0, 0, *(n for m in reversed(margins) for n in (m, m))])
    for axis, (count, w, o) in enumerate(zip(counts, window, overlap, strict=True), start=1):
        corner = torch.arange(count, device=x.device)[:, None] * w
        place = (corner + torch.arange(o, device=x.device)).flatten()
        x = x.index_select(axis, place)
    return partition(x, overlap)


def local_means(x: Tensor, window: Sequence[int]) -> Tensor:
    """`hybrid.blocks.channel_gates.local_mean` with `spread_edges`: (B, *spatial, C) to the same, or to one mean an axis."""
    for axis, edge in enumerate(window, start=1):
        size = x.shape[axis]
        if not isinstance(edge, int) or (isinstance(size, int) and edge >= size):  # an open edge is that of the whole grid
            x = x.mean(axis, keepdim=True)
            continue
        reach = torch.sym_min(edge, size)
        sums = F.pad(x.to(torch.float64), [0, 0] * (x.ndim - 1 - axis) + [1, 0]).cumsum(axis)
        places = size - reach + 1
        first = (torch.arange(size, device=x.device) - (size - places) // 2).clamp(min=0).minimum(_whole(places - 1, x))
        x = ((sums.index_select(axis, first + reach) - sums.index_select(axis, first)) / reach).to(x.dtype)
    return x


def cropped(x: Tensor, sides: Sequence[int]) -> Tensor:
    """The near corner of (B, ..., *spatial), of sides that are known not to exceed its own."""
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # takes half a second to import

    for axis, size in enumerate(sides, start=x.ndim - len(sides)):
        if statically_known_true(x.shape[axis] == size):
            continue
        x = x.index_select(axis, torch.arange(size, device=x.device))
    return x


def _whole(number: int, like: Tensor) -> Tensor:
    return torch.full((1,), number, dtype=torch.int64, device=like.device)


def instance_norm(x: Tensor, epsilon: float) -> Tensor:
    """`hybrid.blocks.normalisation.instance_norm`: (B, *spatial, C) to the same."""
    axes = list(range(1, x.ndim - 1))
    centred = x - x.mean(axes, keepdim=True)
    return centred * (centred.square().mean(axes, keepdim=True) + epsilon).rsqrt()
