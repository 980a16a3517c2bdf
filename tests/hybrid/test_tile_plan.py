"""The plan of tiles, checked as data."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.errors import RequestError, ResourceError
from hybrid.tiles.blending import blend_weights
from hybrid.tiles.run import TilePlan
from tests.hybrid.tile_stubs import AXES, plan, plans


@given(plans())
@settings(deadline=None)
def test_spans_cover_every_axis_aligned_and_overlapping(tiles: TilePlan) -> None:
    for size, side, spans in zip(tiles.shape, tiles.tile, tiles.spans, strict=True):
        assert spans[0][0] == 0 and spans[-1][1] == size
        for start, stop in spans:
            assert start % tiles.multiple == 0 and 0 <= start < stop <= size
            assert stop - start == side or (stop == size and side - (stop - start) < tiles.multiple)
        for before, after in pairwise(spans):
            assert before[0] < after[0] and before[1] - after[0] >= min(tiles.overlap, size)


@given(plans())
@settings(deadline=None)
def test_weights_sum_to_one_and_drop_the_outer_quarter(tiles: TilePlan) -> None:
    for spans, supports in zip(tiles.spans, tiles.supports, strict=True):
        weights = blend_weights(spans, tiles.scale)
        total = np.zeros(spans[-1][1] * tiles.scale)
        for (start, stop), (low, high), weight in zip(spans, supports, weights, strict=True):
            total[start * tiles.scale : stop * tiles.scale] += weight
            nonzero = np.flatnonzero(weight) + start * tiles.scale
            assert (nonzero[0], nonzero[-1] + 1) == (low, high) and len(nonzero) == high - low
        np.testing.assert_allclose(total, 1.0, atol=1e-12)
        for i, (before, after) in enumerate(pairwise(spans)):
            quarter = (before[1] - after[0]) * tiles.scale // 4
            assert not weights[i + 1][:quarter].any() and not weights[i][len(weights[i]) - quarter :].any()


@given(plans())
@settings(deadline=None)
def test_exact_tiles_are_cut_once_in_the_middle_of_each_overlap(tiles: TilePlan) -> None:
    tiles = replace(tiles, exact=True)
    for spans, supports, weights in zip(tiles.spans, tiles.supports, tiles.weights, strict=True):
        for (start, _), (low, high), weight in zip(spans, supports, weights, strict=True):
            kept = np.flatnonzero(weight) + start * tiles.scale
            assert (kept[0], kept[-1] + 1) == (low, high) and set(weight[weight > 0]) == {1.0}
        assert [low for low, _ in supports[1:]] == [high for _, high in supports[:-1]]  # no pixel twice, none left out
        for before, after, (low, _) in zip(spans, spans[1:], supports[1:], strict=False):
            assert low // tiles.scale - after[0] >= tiles.overlap // 2 and before[1] - low // tiles.scale >= tiles.overlap // 2


@given(AXES, st.integers(0, 16), st.integers(1, 16), st.integers(1, 4), st.integers(20_000, 20_000_000))
@settings(deadline=None)
def test_auto_fits_its_budget_or_says_what_is_missing(
    shape: tuple[int, ...], overlap: int, multiple: int, scale: int, budget: int
) -> None:
    try:
        tiles = plan(shape, "auto", overlap=overlap, multiple=multiple, scale=scale, budget_bytes=budget)
    except ResourceError as error:
        assert "--memory by" in str(error) and "--tile" in str(error)
        smallest = -(-max(64, 4 * overlap, overlap + multiple) // multiple) * multiple
        assert plan(shape, smallest, overlap=overlap, multiple=multiple, scale=scale).memory_bytes > budget
    else:
        assert tiles.memory_bytes <= budget
        assert tiles.whole == (plan(shape, None, multiple=multiple, scale=scale).memory_bytes <= budget)


def test_auto_takes_the_largest_tile_that_fits_and_evens_it_out() -> None:
    budget = 60_000_000
    tiles = plan((1000, 1500), "auto", multiple=16, overlap=32, floats_per_pixel=100, budget_bytes=budget)
    by_hand = [plan((1000, 1500), side, multiple=16, overlap=32, floats_per_pixel=100) for side in range(64, 1500, 16)]
    fewest = min(p.count for p in by_hand if p.memory_bytes <= budget)
    assert tiles.count == fewest
    assert all(side % 16 == 0 for side in tiles.tile)
    assert plan((1000, 1500), tuple(side - 16 for side in tiles.tile), multiple=16, overlap=32).count > fewest


def test_memory_grows_with_tile_width_and_floats_and_counts_the_held_rows() -> None:
    costs = [plan((900, 900), side).memory_bytes for side in (64, 128, 256, 512)]
    assert costs == sorted(set(costs))
    assert plan((900, 900), 128, floats_per_pixel=200).memory_bytes > plan((900, 900), 128).memory_bytes
    assert plan((900, 1800), 128).memory_bytes > plan((900, 900), 128).memory_bytes
    whole = plan((90, 91))
    assert whole.whole and whole.memory_bytes == 4 * 100 * 92 * 92  # padded to the multiple, nothing held
    tiles = plan((900, 900), 128, scale=2)
    assert tiles.memory_bytes == tiles.buffer_bytes + tiles.tile_bytes
    assert tiles.buffer_bytes <= 4 * 3 * (2 * 128) * (2 * 900)


def test_a_plan_that_exceeds_the_budget_names_the_missing_memory() -> None:
    with pytest.raises(ResourceError, match=r"in one piece.*Raise --memory by 40MB or more. Use --tile auto\."):
        plan((400, 1000), None, budget_bytes=120_000_000)
    with pytest.raises(ResourceError, match=r"smaller --tile"):
        plan((400, 1000), 256, budget_bytes=1_000_000)
    with pytest.raises(ResourceError, match=r"0 B of memory left.*--memory by"):
        plan((400, 1000), "auto", budget_bytes=-5)


@pytest.mark.parametrize(
    ("shape", "tile", "changes", "message"),
    [
        ((100, 100), 20, {}, "--tile 32 or more"),
        ((100, 100), (64, 64, 64), {}, "one side per axis"),
        ((100, 100), 0, {}, "at least 1"),
        ((100, 100), "large", {}, "--tile auto"),
        ((0, 100), None, {}, "no pixels"),
        ((100, 100), None, {"scale": 0}, "1 or more"),
        ((100, 100), None, {"overlap": -1}, "0 or more"),
    ],
)
def test_senseless_requests_are_refused(shape: tuple[int, ...], tile: object, changes: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        plan(shape, tile, **changes)


def test_asked_tile_is_taken_down_to_the_multiple() -> None:
    assert plan((500, 500), 100, multiple=16).tile == (96, 96)
    assert plan((500, 500), (100, 600), multiple=16).tile == (96, 500)
    assert plan((500, 40), 100, multiple=16).tile == (96, 40)


def test_plan_as_text_and_as_plain_values() -> None:
    tiles = plan((500, 40), 96)
    assert tiles.describe() == "7 tiles of 40 x 96 over 40 x 500, overlap 16, about 1.6 MB"
    facts = json.loads(json.dumps(tiles.to_dict()))
    assert facts["count"] == tiles.count == len(list(tiles.boxes())) == math.prod(tiles.grid)
    assert facts["tile"] == [96, 40] and facts["memory_bytes"] == tiles.memory_bytes


def test_boxes_run_through_the_grid_row_by_row() -> None:
    tiles = plan((100, 90), 40)
    assert [index for index, _ in tiles.boxes()] == list(product(*map(range, tiles.grid)))
