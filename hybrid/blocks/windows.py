"""Window partition for attention on grids of any dimension: shifted windows, their masks, overlapping windows.

Axis letters: B batch, L tokens of one grid in row-major order, C channels, M windows of the whole batch,
N tokens of one window, K keys of one overlapping window.

Shifted windows follow Liu et al., "Swin Transformer", ICCV 2021 (section 3.2), for two and three spatial axes alike.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

MASKED = -100.0
"""Added to the logits of pairs that are neighbours only because the grid was rolled. Finite, as published."""


@dataclass(frozen=True)
class WindowPlan:
    """Where each token of a batch of grids goes when it is cut into windows, rolled or not.

    Attributes:
        gather: (M * N,) int64, for each place in the windows the row of the flattened (B * L, C) tokens.
        scatter: (B * L,) int64, its inverse.
        absent: Places in the windows that lie beyond the end of the grid, in a padded plan; their tokens are zero.
        groups: Runs of windows that share one mask: number of windows, and the additive (N, N) float32 mask or None.
            Only windows at the far end of an axis mix pixels that are no neighbours, so there are at most two
            kinds a axis; windows are ordered by kind, and no mask a window is ever stored.
    """

    gather: Tensor
    scatter: Tensor
    groups: tuple[tuple[int, Tensor | None], ...]
    absent: Tensor | None = None

    @property
    def tokens(self) -> int:
        """Tokens N of a window."""
        return len(self.gather) // sum(count for count, _ in self.groups)


@lru_cache(maxsize=16)
@torch.inference_mode(False)  # a plan made in inference must also serve a later training step
def plan_windows(
    batch: int,
    shape: tuple[int, ...],
    window: tuple[int, ...],
    shift: tuple[int, ...],
    device: torch.device,
    pad: bool = False,
) -> WindowPlan:
    """Plan the windows of a (batch, *shape, C) grid, rolled by `-shift`.

    Sides must be multiples of `window`, or with `pad` are filled up to one at their end, before they are rolled.

    Raises:
        ValueError: A side is no multiple of the window.
    """
    missing = [-n % w for n, w in zip(shape, window, strict=True)]
    if any(missing) and not pad:
        raise ValueError(f"the grid {shape} is not a multiple of the window {window}")
    counts = [-(-n // w) for n, w in zip(shape, window, strict=True)]
    tokens = F.pad(torch.arange(prod(shape)).view(*shape), [n for m in reversed(missing) for n in (0, m)], value=-1)
    rolled = torch.roll(tokens, [-s for s in shift], dims=list(range(len(shape))))
    windows = partition(rolled[None, ..., None], window).squeeze(-1)  # (M, N), row-major windows
    # A window's kind says for each axis whether it is the last one there and the grid was rolled along that axis.
    kinds = torch.zeros(counts, dtype=torch.long)
    for axis, (count, s) in enumerate(zip(counts, shift, strict=True)):
        if s:
            index = [slice(None)] * len(counts)
            index[axis] = slice(count - 1, count)
            kinds[tuple(index)] += 2**axis
    kinds = kinds.flatten()
    order, groups = [], []
    for kind in range(2 ** len(shape)):
        members = (kinds == kind).nonzero().flatten()
        if len(members):
            rows = windows[members]  # (m, N)
            order.append(torch.cat([torch.where(rows < 0, rows, rows + b * prod(shape)) for b in range(batch)]))
            groups.append((batch * len(members), _mask(kind, window, shift, device)))
    gather = torch.cat(order).flatten()
    present, absent = (gather >= 0).nonzero().flatten(), (gather < 0).nonzero().flatten()
    scatter = torch.empty_like(present)
    scatter[gather[present]] = present
    gather.clamp_(min=0)
    return WindowPlan(gather.to(device), scatter.to(device), tuple(groups), absent.to(device) if len(absent) else None)


def _mask(kind: int, window: tuple[int, ...], shift: tuple[int, ...], device: torch.device) -> Tensor | None:
    """The additive (N, N) mask of the windows of one kind: pairs from the two sides of the seam are masked."""
    if kind == 0:
        return None
    sides = []
    for axis, (w, s) in enumerate(zip(window, shift, strict=True)):
        rolled_in = torch.arange(w) >= w - s if kind & 2**axis else torch.zeros(w, dtype=torch.bool)
        sides.append(rolled_in.long())
    grids = torch.meshgrid(*sides, indexing="ij")
    label = sum(grid.flatten() * 2**axis for axis, grid in enumerate(grids))
    assert isinstance(label, Tensor)
    different = label[:, None] != label[None, :]
    return torch.zeros(different.shape).masked_fill_(different, MASKED).to(device)


class _Permute(torch.autograd.Function):
    """Reorder rows; the backward pass reorders by the inverse, where index_select would add row by row.

    Rows `absent` of the result are zero, and rows `unread` of the input are not read; index and inverse are void there.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, inverse: Tensor, absent: Tensor | None, unread: Tensor | None) -> Tensor:
        ctx.save_for_backward(index, inverse, absent, unread)
        result = rows.index_select(0, index)
        return result if absent is None else result.index_fill_(0, absent, 0.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        index, inverse, absent, unread = ctx.saved_tensors
        return _Permute.apply(gradient, inverse, index, unread, absent), None, None, None, None  # type: ignore[no-untyped-call]


def to_windows(x: Tensor, plan: WindowPlan, tokens: int) -> Tensor:
    """(B, *spatial, C) to (M, N, C) with N = `tokens`, in the plan's order."""
    rows: Tensor = _Permute.apply(x.reshape(-1, x.shape[-1]), plan.gather, plan.scatter, plan.absent, None)  # type: ignore[no-untyped-call]
    return rows.view(-1, tokens, x.shape[-1])


def from_windows(windows: Tensor, plan: WindowPlan, shape: Sequence[int]) -> Tensor:
    """(M, N, C) back to (B, *spatial, C) = `shape`."""
    rows: Tensor = _Permute.apply(windows.reshape(-1, windows.shape[-1]), plan.scatter, plan.gather, None, plan.absent)  # type: ignore[no-untyped-call]
    return rows.view(*shape)


def group_rows(plan: WindowPlan, tokens: int, windows: int) -> Iterator[tuple[int, Tensor]]:
    """The plan's windows of N = `tokens` tokens, at most so many `windows` at a time: group number and token rows (m * N,)."""
    for number, rows in enumerate(plan.gather.split([count * tokens for count, _ in plan.groups])):
        for chunk in rows.split(windows * tokens):
            yield number, chunk


def partition(x: Tensor, window: Sequence[int]) -> Tensor:
    """Cut (B, *spatial, C) into (M, N, C): windows row-major with the batch slowest, tokens row-major.

    >>> partition(torch.arange(16.0).view(1, 4, 4, 1), (2, 2))[1].flatten()
    tensor([2., 3., 6., 7.])
    """
    dims = len(window)
    sizes = [x.shape[0]]
    for n, w in zip(x.shape[1:-1], window, strict=True):
        sizes += [n // w, w]
    order = [0, *range(1, 2 * dims, 2), *range(2, 2 * dims + 1, 2), 2 * dims + 1]
    return x.view(*sizes, x.shape[-1]).permute(order).reshape(-1, prod(window), x.shape[-1])


def merge(windows: Tensor, window: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Undo `partition`: (M, N, C) to (B, *spatial, C) = `shape`."""
    dims = len(window)
    counts = [n // w for n, w in zip(shape[1:-1], window, strict=True)]
    order = [0, *itertools.chain.from_iterable((1 + axis, 1 + dims + axis) for axis in range(dims)), 2 * dims + 1]
    return windows.view(shape[0], *counts, *window, shape[-1]).permute(order).reshape(*shape)


def overlapping(x: Tensor, window: Sequence[int], overlap: Sequence[int], present: tuple[int, int] = (0, 0)) -> Tensor:
    """A strided view (B, *counts, C, *overlap) of overlapping windows around each window of (B, *spatial, C).

    The window at `i` covers `i * w - p ... i * w - p + o - 1` with `p = (o - w) // 2`; outside the grid are zeros.
    Of the first spatial axis, `present` rows of the margin are in `x` already, before and after. Only the padded grid
    is copied here.
    """
    pads: list[int] = [0, 0]  # the channels; F.pad counts axes from the last one
    for w, o in zip(reversed(window), reversed(overlap), strict=True):
        pads += [(o - w) // 2] * 2
    pads[-2:] = [pads[-2] - present[0], pads[-1] - present[1]]
    view = F.pad(x, pads)
    for axis, (w, o) in enumerate(zip(window, overlap, strict=True)):
        view = view.unfold(1 + axis, o, w)
    return view


@cache  # shared by all blocks of a network
@torch.inference_mode(False)
def relative_index(window: tuple[int, ...]) -> Tensor:
    """(N * N,) rows of the bias table for each pair (query, key) of one window: offsets query minus key, row-major.

    The table has prod(2 w - 1) rows; an offset d along an axis counts as d + w - 1 (Swin Transformer, section 3.2).
    """
    return _pair_index(window, window, [w - 1 for w in window], sign=1)


@cache
@torch.inference_mode(False)
def overlapping_index(window: tuple[int, ...], overlap: tuple[int, ...]) -> Tensor:
    """(N * K,) rows of the bias table of overlapping cross-attention: offsets key minus query, row-major.

    The table has prod(w + o - 1) rows; an offset d along an axis counts as d + w - o + 1, the key counted from its
    own window's corner. The row number so made is negative for most pairs and is taken modulo the table's length,
    as the published weights expect (Chen et al., HAT, CVPR 2023, and its reference implementation).
    """
    index = _pair_index(window, overlap, [w - o + 1 for w, o in zip(window, overlap, strict=True)], sign=-1)
    return index % prod(w + o - 1 for w, o in zip(window, overlap, strict=True))


def _pair_index(queries: tuple[int, ...], keys: tuple[int, ...], start: Sequence[int], sign: int) -> Tensor:
    cpu = torch.device("cpu")  # the result is kept for all networks, also for those that are built on another device
    index = torch.zeros(1, 1, dtype=torch.long, device=cpu)
    for n, k, first in zip(queries, keys, start, strict=True):
        offset = sign * (torch.arange(n, device=cpu)[:, None] - torch.arange(k, device=cpu)[None, :]) + first
        radix = n + k - 1
        index = index[:, None, :, None] * radix + offset[None, :, None, :]
        index = index.reshape(index.shape[0] * n, -1)
    return index.flatten()
