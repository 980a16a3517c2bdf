"""Run a network over the tiles of a picture of any width and height, holding one tile's results and nothing that grows.

`hybrid.tiles.run.run_tiles` holds the output rows of a whole row of tiles. Here a row of tiles is worked off from left to right:
what its next tile overlaps is held, what the next row overlaps goes to a `Strips` on disk, and the rest is final. The
sums are made in the same order, so that both give the same bits.

A row of tiles depends on the picture and on the strip of the row before alone: a run that was broken off goes on at the
row where it stopped, and gives what it would have given. Axes: (C, H, W).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from hybrid.tiles.plan import TilePlan
from hybrid.tiles.run import run_tile, support_weights


class Strips(Protocol):
    """Keeps the sums that a row of tiles hands to the next, of all columns."""

    def read(self, row: int, left: int, right: int) -> Tensor:
        """What is handed to row `row` of tiles, (C, h, right - left) float32, of output columns `left` to `right`."""

    def write(self, row: int, left: int, block: Tensor) -> None:
        """Take what is handed to row `row` of tiles, (C, h, w), from column `left` on; columns come in order."""


def stream_tiles(
    network: Callable[[Tensor], Tensor],
    read: Callable[[tuple[slice, ...]], Tensor],
    plan: TilePlan,
    write: Callable[[int, int, Tensor], None],
    strips: Strips,
    *,
    first_row: int = 0,
    on_row: Callable[[int], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    device: torch.device | str = "cpu",
) -> None:
    """Run `network` over the tiles of a plane and hand out the result in boxes as soon as they are final.

    Args:
        network: Takes (1, C, *tile) float32 on `device`, returns (1, C', *tile * scale).
        read: Returns the input of one box, (1, C, *box).
        plan: From `plan_tiles`, of two axes.
        write: Receives (top row, left column, block (C', h, w) float32 on the CPU). The boxes do not overlap and cover the
            result, row of tiles after row of tiles, from left to right; keep a copy, if any.
        strips: Keeps what one row of tiles hands to the next.
        first_row: Row of tiles to begin with; `strips` must hold what row `first_row - 1` handed on.
        on_row: Called with the number of finished rows of tiles, after the last box of each.
        on_progress: Called as (tiles done, tiles in all); tiles of rows before `first_row` count as done.
        device: Where the network runs.

    Raises:
        ResourceError: A tile does not fit into memory even when cut to the smallest size.
        OutputError: The network returned another shape than the plan asks for, or values that are not finite.
    """
    weights, columns = support_weights(plan), plan.grid[1]
    device = torch.device(device)
    with torch.inference_mode():
        for row in range(first_row, plan.grid[0]):
            carried: Tensor | None = None
            for column in range(columns):
                spans = plan.spans[0][row], plan.spans[1][column]
                tile = run_tile(network, read(tuple(slice(*span) for span in spans)), plan, device)
                sums = _begin(plan, strips, (row, column), tile.shape[0], carried)
                origin = [start * plan.scale for start, _ in spans]
                (top, bottom), (left, right) = plan.supports[0][row], plan.supports[1][column]
                sums.addcmul_(
                    tile[:, top - origin[0] : bottom - origin[0], left - origin[1] : right - origin[1]],
                    weights[0][row][:, None] * weights[1][column],
                )
                del tile  # else it would stay beside the next tile's activations
                carried = _hand_out(plan, strips, (row, column), sums, write)
                if on_progress is not None:
                    on_progress(row * columns + column + 1, plan.count)
            if on_row is not None:
                on_row(row + 1)


def _begin(plan: TilePlan, strips: Strips, place: tuple[int, int], channels: int, carried: Tensor | None) -> Tensor:
    """The sums over a tile's support before it: from the tile to its left, and from the row above where that had no part."""
    (top, bottom), (left, right) = plan.supports[0][place[0]], plan.supports[1][place[1]]
    sums = torch.zeros(channels, bottom - top, right - left)
    known = 0
    if carried is not None:
        known = carried.shape[2]
        sums[:, :, :known] = carried
    if place[0] > 0 and known < right - left:
        strip = strips.read(place[0], left + known, right)
        sums[:, : strip.shape[1], known:] = strip
    return sums


def _hand_out(
    plan: TilePlan, strips: Strips, place: tuple[int, int], sums: Tensor, write: Callable[[int, int, Tensor], None]
) -> Tensor:
    """Write what is final, pass on what the next row of tiles overlaps; returns what the next tile overlaps."""
    (row, column), (rows, columns) = place, plan.supports
    (top, bottom), (left, right) = rows[row], columns[column]
    last = columns[column + 1][0] if column + 1 < len(columns) else right
    end = rows[row + 1][0] if row + 1 < len(rows) else bottom
    write(top, left, sums[:, : end - top, : last - left])
    if row + 1 < len(rows):
        strips.write(row + 1, left, sums[:, end - top :, : last - left])
    return sums[:, :, last - left :].clone()
