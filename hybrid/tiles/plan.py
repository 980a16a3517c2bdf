"""Plan overlapping tiles over a picture or a volume, as data that can be checked with no network.

Axes: the spatial axes of the input in order, the first one (rows of a picture, slices of a volume) being the axis
along which results stream out. All sizes are in input pixels unless a name says output; one input pixel is `scale`
output pixels along every axis.

Tiles start at multiples of the network's own multiple (its window or its down-sampling), so that the windows inside
a tile are the windows of the whole picture. Where neighbours overlap, the outer quarter of each overlap is thrown
away, because a border is where a network has the least context, and the two central quarters are blended linearly.
Where a network's reach is known and the overlap is twice that, both tiles are right up to the middle of the overlap:
there they are cut, and nothing is computed for a blend.

Volumes are segmented in windows of a fixed size (`plan_windows`), which are averaged with Gaussian weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, product
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hybrid.errors import RequestError, ResourceError
from hybrid.memory import format_size
from hybrid.tiles.blending import Span, blend_weights, gaussian_weights, supports

BYTES_PER_FLOAT = 4
SMALLEST_SIDE = 64  # below this a transformer sees too little context to be worth its run

Tile = int | tuple[int, ...] | Literal["auto"] | None


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of one input lie, and what running them costs.

    Attributes:
        shape: Spatial shape of the input.
        tile: Shape of one tile; along an axis that is not cut this is the input's own size.
        overlap: Least overlap of neighbours that was asked for; the real one can be larger.
        scale: Output pixels per input pixel along each axis.
        multiple: Tiles start at multiples of this, and the network pads what it is given up to it.
        out_channels: Values that the network returns per output pixel (outputs x channels).
        floats_per_pixel: Floats alive per input pixel at the peak of one network call, its input and output included.
        spans: For each axis the (start, stop) of its tiles, in order.
        exact: Whether tiles are cut in the middle of their overlap in place of being blended.
        gaussian: Whether tiles are windows of a fixed size, averaged with Gaussian weights.
    """

    shape: tuple[int, ...]
    tile: tuple[int, ...]
    overlap: int
    scale: int
    multiple: int
    out_channels: int
    floats_per_pixel: int
    spans: tuple[tuple[Span, ...], ...]
    gaussian: bool = False
    exact: bool = False

    @property
    def count(self) -> int:
        """Number of tiles."""
        return math.prod(self.grid)

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of tiles along each axis."""
        return tuple(len(axis) for axis in self.spans)

    @property
    def whole(self) -> bool:
        """Whether the input runs in one piece."""
        return self.count == 1

    def boxes(self) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...]]]:
        """Each tile's place in the grid and its box of the input, the first axis being the slowest."""
        for index in product(*map(range, self.grid)):
            yield index, tuple(slice(*axis[place]) for axis, place in zip(self.spans, index, strict=True))

    @cached_property
    def supports(self) -> tuple[tuple[Span, ...], ...]:
        """For each axis the output pixels (start, stop) where a tile has weight."""
        return self.spans if self.gaussian else tuple(supports(axis, self.scale, self.exact) for axis in self.spans)

    @cached_property
    def weights(self) -> tuple[list[NDArray[np.float64]], ...]:
        """For each axis the weights of its tiles' output pixels, over the whole tile."""
        if self.gaussian:
            return tuple(gaussian_weights(axis) for axis in self.spans)
        return tuple(blend_weights(axis, self.scale, self.exact) for axis in self.spans)

    @property
    def tile_bytes(self) -> int:
        """Bytes that the network needs for one tile."""
        padded = math.prod(_round_up(side, self.multiple) for side in self.tile)
        return BYTES_PER_FLOAT * self.floats_per_pixel * padded

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the output rows that are held until all tiles over them are done; 0 for an input in one piece."""
        return self._output_row_bytes * max(stop - start for start, stop in self.supports[0]) if not self.whole else 0

    @property
    def memory_bytes(self) -> int:
        """Peak bytes of a run: the held rows, and the largest of what comes and goes beside them.

        That is the network with its activations, or one finished tile with its weights, or a copy of the strip that
        passes on to the next row of tiles. What the reader and the writer keep is not in it.
        """
        if self.whole:
            return self.tile_bytes
        tile_pixels = math.prod(side * self.scale for side in self.tile)
        blending = BYTES_PER_FLOAT * (self.out_channels + 1) * tile_pixels
        strip = max((before[1] - after[0] for before, after in pairwise(self.supports[0])), default=0)
        return self.buffer_bytes + max(self.tile_bytes, blending, strip * self._output_row_bytes)

    @property
    def _output_row_bytes(self) -> int:
        return BYTES_PER_FLOAT * self.out_channels * math.prod(side * self.scale for side in self.shape[1:])

    def describe(self) -> str:
        """One line for people, with sizes as they write them: width first.

        >>> plan_tiles((500, 700), scale=2, tile=256, overlap=32, multiple=16, out_channels=3, floats_per_pixel=500).describe()
        '9 tiles of 256 x 256 over 700 x 500, overlap 32, about 138 MB'
        """
        shape = " x ".join(map(str, reversed(self.shape)))
        if self.whole:
            return f"{shape} in one piece, about {format_size(self.memory_bytes)}"
        tile = " x ".join(map(str, reversed(self.tile)))
        return f"{self.count} tiles of {tile} over {shape}, overlap {self.overlap}, about {format_size(self.memory_bytes)}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, for a record in JSON."""
        return {
            "shape": list(self.shape),
            "tile": list(self.tile),
            "overlap": self.overlap,
            "scale": self.scale,
            "multiple": self.multiple,
            "count": self.count,
            "memory_bytes": self.memory_bytes,
            "spans": [[list(span) for span in axis] for axis in self.spans],
        }


def plan_tiles(
    shape: Sequence[int],
    *,
    scale: int,
    tile: Tile,
    overlap: int,
    multiple: int,
    out_channels: int,
    floats_per_pixel: int,
    exact: bool = False,
    budget_bytes: int | None = None,
) -> TilePlan:
    """Plan the tiles of one input.

    Args:
        shape: Spatial shape of the input, one to three axes.
        scale: Output pixels per input pixel along each axis.
        tile: None runs the input in one piece. "auto" takes the largest equal-sided tile whose run fits the budget, then
            evens it out: as small as the same number of tiles allows. A number or one number per axis is the largest
            side wanted; it is taken down to a multiple of `multiple`.
        overlap: Least overlap of neighbours; half of it is blended, a quarter on each side is thrown away.
        multiple: Grid on which tiles start and the multiple of their size.
        out_channels: Values that the network returns per output pixel (outputs x channels).
        floats_per_pixel: Floats alive per input pixel at the peak of one network call, its input and output included.
        exact: Cut tiles in the middle of their overlap; for a network whose reach is half of the overlap at most.
        budget_bytes: Bytes that the run may use (`TilePlan.memory_bytes`); None sets no bound.

    Raises:
        RequestError: A size, overlap or tile that makes no sense.
        ResourceError: The plan, or with "auto" even the smallest sensible tile, exceeds the budget.

    >>> plan_tiles((300, 200), scale=4, tile=128, overlap=32, multiple=16, out_channels=3, floats_per_pixel=100).spans
    (((0, 128), (80, 208), (176, 300)), ((0, 128), (80, 200)))
    """
    shape = tuple(int(side) for side in shape)
    _check(shape, scale, overlap, multiple, out_channels, floats_per_pixel)

    def build(sides: tuple[int, ...]) -> TilePlan:
        spans = tuple(_axis_spans(n, side, overlap, multiple) for n, side in zip(shape, sides, strict=True))
        actual = tuple(min(n, side) for n, side in zip(shape, sides, strict=True))
        return TilePlan(shape, actual, overlap, scale, multiple, out_channels, floats_per_pixel, spans, exact=exact)

    if tile == "auto":
        return _largest_within(build(shape), budget_bytes, build)
    plan = build(shape if tile is None else _asked_sides(shape, tile, overlap, multiple))
    if budget_bytes is not None and plan.memory_bytes > budget_bytes:
        raise _does_not_fit(plan, budget_bytes, "Use --tile auto" if tile is None else "Use --tile auto or a smaller --tile")
    return plan


def plan_windows(
    shape: Sequence[int],
    window: Sequence[int],
    *,
    overlap: float,
    multiple: int,
    out_channels: int,
    floats_per_pixel: int,
) -> TilePlan:
    """Plan windows of a fixed size at regular steps, the last of each axis ending at the border.

    Args:
        shape: Spatial shape of the input, at least the window's along each axis.
        window: What the network sees at a time.
        overlap: Share of the window, from 0 to less than 1, that neighbours have in common.
        multiple, out_channels, floats_per_pixel: As of `plan_tiles`.

    Raises:
        RequestError: A size or overlap that makes no sense.

    >>> plan_windows((10, 4), (4, 4), overlap=0.5, multiple=2, out_channels=3, floats_per_pixel=9).spans
    (((0, 4), (2, 6), (4, 8), (6, 10)), ((0, 4),))
    """
    shape, window = tuple(map(int, shape)), tuple(map(int, window))
    _check(shape, 1, 0, multiple, out_channels, floats_per_pixel)
    if len(window) != len(shape) or any(side < 1 or side > n for side, n in zip(window, shape, strict=True)):
        raise RequestError(f"A window of {window} does not fit an input of {shape}.", hint="Pad the input to the window.")
    if not 0 <= overlap < 1:
        raise RequestError(f"An overlap of {overlap} is not possible.", hint="Give a share of the window from 0 to below 1.")
    steps = [max(1, int(side * (1 - overlap))) for side in window]
    spans = tuple(
        tuple((start, start + side) for start in [*range(0, n - side, step), n - side])
        for n, side, step in zip(shape, window, steps, strict=True)
    )
    least = min(side - step for side, step in zip(window, steps, strict=True))
    return TilePlan(shape, window, least, 1, multiple, out_channels, floats_per_pixel, spans, gaussian=True)


def smaller_plan(plan: TilePlan, shape: Sequence[int]) -> TilePlan | None:
    """Cut a tile of `shape` that ran out of memory in two or more along its longest axis.

    None at the smallest size, and for windows: their size is part of what a network was trained for.
    """
    if plan.gaussian:
        return None
    shape = tuple(shape)
    axis = max(range(len(shape)), key=lambda i: shape[i])
    half = _round_up(math.ceil((shape[axis] + plan.overlap) / 2), plan.multiple)
    half = max(half, _smallest_side(plan.overlap, plan.multiple))
    if half >= shape[axis]:
        return None
    sides = tuple(half if i == axis else _round_up(side, plan.multiple) for i, side in enumerate(shape))
    return plan_tiles(
        shape,
        scale=plan.scale,
        tile=sides,
        overlap=plan.overlap,
        multiple=plan.multiple,
        out_channels=plan.out_channels,
        floats_per_pixel=plan.floats_per_pixel,
        exact=plan.exact,
    )


def _axis_spans(size: int, side: int, overlap: int, multiple: int) -> tuple[Span, ...]:
    """Tiles of one axis: as few as `side` and `overlap` allow, spread evenly; the last one ends at the border."""
    if side >= size:
        return ((0, size),)
    last = math.ceil((size - side) / multiple)  # start of the last tile, in units of `multiple`
    steps = math.ceil(last / ((side - overlap) // multiple))
    starts = [multiple * (last * i // steps) for i in range(steps + 1)]
    return tuple((start, min(start + side, size)) for start in starts)


def _largest_within(whole: TilePlan, budget: int | None, build: Callable[[tuple[int, ...]], TilePlan]) -> TilePlan:
    """The plan with the largest equal-sided tile that fits, evened out."""
    if budget is None or whole.memory_bytes <= budget:
        return whole
    multiple, overlap = whole.multiple, whole.overlap
    smallest = _smallest_side(overlap, multiple)
    side = _round_up(max(whole.shape), multiple)
    while side >= smallest:
        plan = build((side,) * len(whole.shape))
        if plan.memory_bytes <= budget:
            return build(tuple(_even_side(n, side, overlap, multiple) for n in whole.shape))
        # A tile's volume falls with the side at most to the power of the axes: skip what cannot fit.
        fitting = side * (max(budget, 0) / plan.tile_bytes) ** (1 / len(whole.shape))
        side = min(side - multiple, _round_up(int(fitting) + 1, multiple))
    raise _does_not_fit(build((smallest,) * len(whole.shape)), budget, "Close other programs, or try a smaller --tile by hand")


def _even_side(size: int, side: int, overlap: int, multiple: int) -> int:
    """The smallest side that needs no more tiles along this axis: equal tiles, and no pixel computed for nothing."""
    if side >= size:
        return side
    count = len(_axis_spans(size, side, overlap, multiple))
    while (
        side - multiple >= _smallest_side(overlap, multiple)
        and len(_axis_spans(size, side - multiple, overlap, multiple)) == count
    ):
        side -= multiple
    return side


def _asked_sides(shape: tuple[int, ...], tile: int | tuple[int, ...] | str, overlap: int, multiple: int) -> tuple[int, ...]:
    if isinstance(tile, str):
        raise RequestError(f"A tile of {tile!r} is not known.", hint="Use --tile auto, --tile off, or a number of pixels.")
    asked = (tile,) * len(shape) if isinstance(tile, int) else tuple(tile)
    if len(asked) != len(shape):
        raise RequestError(f"A tile of {len(asked)} axes does not fit an input of {len(shape)}.", hint="Give one side per axis.")
    if min(asked) < 1:
        raise RequestError(f"A tile of {min(asked)} pixels is not possible.", hint="Use --tile auto, or at least 1.")
    sides = tuple(max(multiple, side // multiple * multiple) for side in asked)
    needed = _round_up(max(2 * overlap, overlap + multiple), multiple)
    for size, side in zip(shape, sides, strict=True):
        if side < size and side < needed:
            raise RequestError(
                f"A tile of {side} pixels is too small for an overlap of {overlap} on a grid of {multiple}.",
                hint=f"Use --tile {needed} or more, or a smaller overlap.",
            )
    return sides


def _check(shape: tuple[int, ...], scale: int, overlap: int, multiple: int, out_channels: int, floats_per_pixel: int) -> None:
    if not shape or min(shape) < 1:
        raise RequestError(f"An input of shape {shape} has no pixels.", hint="Give an input of at least 1 pixel along each axis.")
    if min(scale, multiple, out_channels, floats_per_pixel) < 1 or overlap < 0:
        raise RequestError(
            f"No tiles can be planned with scale {scale}, multiple {multiple}, overlap {overlap}, "
            f"{out_channels} output channels and {floats_per_pixel} floats per pixel.",
            hint="The overlap must be 0 or more, the others 1 or more.",
        )


def _does_not_fit(plan: TilePlan, budget: int, otherwise: str) -> ResourceError:
    missing = format_size(plan.memory_bytes - budget, up=True)
    return ResourceError(
        f"{plan.describe()}, is more than the {format_size(max(budget, 0))} of memory left for it.",
        hint=f"Raise --memory by {missing.replace(' ', '')} or more. {otherwise}.",
    )


def _smallest_side(overlap: int, multiple: int) -> int:
    return _round_up(max(SMALLEST_SIDE, 4 * overlap, overlap + multiple), multiple)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
