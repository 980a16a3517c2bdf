"""Tiles in memory that does not grow: judged bit by bit by `run_tiles`, which holds a whole row of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.errors import OutputError
from hybrid.tiles.run import TilePlan, plan_tiles, run_tiles
from hybrid.tiles.stream import stream_tiles


class Kept:
    """Strips in memory."""

    def __init__(self) -> None:
        self.parts: dict[int, list[tuple[int, Tensor]]] = {}

    def read(self, row: int, left: int, right: int) -> Tensor:
        return torch.cat([block for _, block in self.parts[row]], 2)[:, :, left:right]

    def write(self, row: int, left: int, block: Tensor) -> None:
        if left == 0:
            self.parts[row] = []
        assert left == sum(each.shape[2] for _, each in self.parts[row])  # in order, without gaps
        self.parts[row].append((left, block.clone()))


def network(x: Tensor) -> Tensor:
    """Another result at each tile's border, so that the blend shows."""
    kernel = torch.arange(1.0, 26).reshape(1, 1, 5, 5) / 325
    return F.interpolate(F.conv2d(x, kernel, padding=2), scale_factor=2, mode="bilinear")


def plan_of(height: int, width: int, tile: int, overlap: int) -> TilePlan:
    return plan_tiles((height, width), scale=2, tile=tile, overlap=overlap, multiple=4, out_channels=1, floats_per_pixel=9)


def streamed(x: Tensor, plan: TilePlan, strips: Kept, first_row: int = 0) -> tuple[Tensor, list[int], list[tuple[int, int]]]:
    result = torch.full((1, x.shape[2] * 2, x.shape[3] * 2), torch.nan)
    rows: list[int] = []
    progress: list[tuple[int, int]] = []

    def write(top: int, left: int, block: Tensor) -> None:
        place = result[:, top : top + block.shape[1], left : left + block.shape[2]]
        assert place.shape == block.shape and place.isnan().all()  # each pixel once
        place.copy_(block)

    stream_tiles(
        network,
        lambda box: x[:, :, box[0], box[1]],
        plan,
        write,
        strips,
        first_row=first_row,
        on_row=rows.append,
        on_progress=lambda *at: progress.append(at),
    )
    return result, rows, progress


@pytest.mark.parametrize(
    ("height", "width", "tile", "overlap"),
    [(50, 70, 24, 8), (70, 50, 24, 0), (24, 90, 24, 8), (90, 20, 24, 4), (20, 20, 24, 8), (61, 67, 16, 8), (97, 99, 32, 12)],
)
def test_the_same_bits_as_with_whole_rows(height: int, width: int, tile: int, overlap: int) -> None:
    x = torch.rand(1, 1, height, width, generator=torch.Generator().manual_seed(3))
    plan = plan_of(height, width, tile, overlap)
    expected = torch.empty(1, height * 2, width * 2)

    def keep(top: int, block: Tensor) -> None:
        expected[:, top : top + block.shape[1]] = block

    run_tiles(network, lambda box: x[:, :, box[0], box[1]], plan, keep)
    result, rows, progress = streamed(x, plan, Kept())
    assert torch.equal(result, expected)
    assert rows == list(range(1, plan.grid[0] + 1)) and progress == [(i + 1, plan.count) for i in range(plan.count)]


@pytest.mark.parametrize("first_row", [1, 2, 4, 5])
def test_any_row_can_be_gone_on_from(first_row: int) -> None:
    x = torch.rand(1, 1, 90, 70, generator=torch.Generator().manual_seed(3))
    plan, strips = plan_of(90, 70, 24, 8), Kept()
    whole, _, _ = streamed(x, plan, strips)
    rest, rows, progress = streamed(x, plan, strips, first_row)
    top = plan.supports[0][first_row][0]
    assert torch.equal(rest[:, top:], whole[:, top:]) and rest[:, :top].isnan().all()
    assert rows[0] == first_row + 1 and progress[0] == (first_row * plan.grid[1] + 1, plan.count)


def test_what_is_not_finite_is_refused() -> None:
    x = torch.zeros(1, 1, 40, 40)
    with pytest.raises(OutputError, match="not finite"):
        stream_tiles(lambda x: network(x) / 0, lambda box: x[:, :, box[0], box[1]], plan_of(40, 40, 24, 8), print, Kept())
