"""Plans of tiles with ordinary values, and any plan for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from hybrid.tiles.run import TilePlan, plan_tiles


def plan(shape: tuple[int, ...], tile: object = None, **changes: object) -> TilePlan:
    facts: dict = {"scale": 1, "overlap": 16, "multiple": 4, "out_channels": 3, "floats_per_pixel": 100}
    return plan_tiles(shape, tile=tile, **(facts | changes))  # type: ignore[arg-type]


# The plan ------------------------------------------------------------------------------------------------------------

AXES = st.lists(st.integers(1, 90), min_size=1, max_size=3).map(tuple)


@st.composite
def plans(draw: st.DrawFn) -> TilePlan:
    multiple, overlap = draw(st.integers(1, 8)), draw(st.integers(0, 12))
    least = max(2 * overlap, overlap + multiple) + multiple
    return plan(
        draw(AXES), draw(st.integers(least, least + 40)), scale=draw(st.integers(1, 3)), overlap=overlap, multiple=multiple
    )
