"""Run a network over overlapping tiles, holding one tile's activations and one row of results at a time.

The plan comes from `hybrid.tiles.plan`. A tile that does not fit into memory is cut smaller, and only that tile; if
that fails too, the run fails. No pixel of a result ever comes from anywhere but its own tiles.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hybrid.errors import OutputError, ResourceError
from hybrid.tiles.plan import TilePlan, plan_tiles, smaller_plan

__all__ = ["TilePlan", "is_out_of_memory", "plan_tiles", "run_tile", "run_tiles", "support_weights"]

logger = logging.getLogger(__name__)

Box = tuple[slice, ...]

# PyTorch has a class of its own for an exhausted CUDA allocator only; the others are RuntimeErrors that differ by text.
_OUT_OF_MEMORY_TEXTS = (
    "DefaultCPUAllocator",
    "can't allocate memory",
    "CUDA error: out of memory",
    "MPS backend out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "std::bad_alloc",
)


def run_tiles(
    network: Callable[[Tensor], Tensor],
    read: Callable[[Box], Tensor],
    plan: TilePlan,
    write: Callable[[int, Tensor], None],
    *,
    device: torch.device | str = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> None:
    """Run `network` over the plan's tiles, blend them, and hand out the result in rows as soon as they are final.

    Args:
        network: Takes (1, C, *tile) float32 on `device`, returns (1, ..., C', *tile * scale); leading axes (several
            outputs) are allowed.
        read: Returns the input of one box, (1, C, *box); moved to `device` here.
        plan: From `plan_tiles`.
        write: Receives (first output row, block); block is (..., C', rows, *rest) float32 on the CPU. Blocks come in
            order and cover each row of the first spatial axis exactly once. A block is a view of a buffer that is
            used again: copy what must outlive the call.
        device: Where the network runs.
        on_progress: Called as (tiles done, tiles in all).

    Raises:
        ResourceError: A tile does not fit into memory even when cut to the smallest size.
        OutputError: The network returned another shape than the plan's scale asks for, or values that are not finite.
    """
    device = torch.device(device)
    rows = _Rows(plan, write)
    with torch.inference_mode():
        for done, (index, box) in enumerate(plan.boxes(), start=1):
            tile = run_tile(network, read(box), plan, device)
            rows.add(index, tile)
            del tile  # else it would stay beside the next tile's activations
            if on_progress is not None:
                on_progress(done, plan.count)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the CPU or on a GPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY_TEXTS)


def support_weights(plan: TilePlan) -> list[list[Tensor]]:
    """For each axis the weights of its tiles, each (n,) float32 over the output pixels where that tile has weight."""
    return [
        [
            torch.from_numpy(weight[low - start * plan.scale : high - start * plan.scale]).float()
            for (start, _), (low, high), weight in zip(spans, supports, weights, strict=True)
        ]
        for spans, supports, weights in zip(plan.spans, plan.supports, plan.weights, strict=True)
    ]


class _Rows:
    """The output rows that still wait for tiles: of a whole row of tiles, and the strip passed on to the next row."""

    def __init__(self, plan: TilePlan, write: Callable[[int, Tensor], None]) -> None:
        self.plan, self.write = plan, write
        self.buffer: Tensor | None = None
        self.weights = support_weights(plan)

    def add(self, index: tuple[int, ...], tile: Tensor) -> None:
        """Add the tile (..., C', *tile * scale) at a place in the grid; the last one of a row hands rows out."""
        if self.plan.whole:
            self.write(0, tile)
            return
        if self.buffer is None:
            self.buffer = self._new_buffer(tile)
        elif self.buffer.shape[: -len(index)] != tile.shape[: -len(index)]:
            raise OutputError(
                f"The network returned {tuple(tile.shape[: -len(index)])} channels for one tile and "
                f"{tuple(self.buffer.shape[: -len(index)])} for another.",
                hint="Check that the model's card names the right network.",
            )
        first_row = self.plan.supports[0][index[0]][0]
        source: list[slice] = []
        target: list[slice] = []
        weight = torch.ones(())
        for axis, place in enumerate(index):
            low, high = self.plan.supports[axis][place]
            origin = self.plan.spans[axis][place][0] * self.plan.scale
            source.append(slice(low - origin, high - origin))
            target.append(slice(low - first_row, high - first_row) if axis == 0 else slice(low, high))
            weight = weight[..., None] * self.weights[axis][place]
        _cut(self.buffer, target).addcmul_(_cut(tile, source), weight)
        if all(place == count - 1 for place, count in zip(index[1:], self.plan.grid[1:], strict=True)):
            self._hand_out(index[0])

    def _hand_out(self, row: int) -> None:
        """Write the rows that no later tile covers, and pass the others on to the next row of tiles."""
        assert self.buffer is not None
        supports = self.plan.supports[0]
        low, high = supports[row]
        final = supports[row + 1][0] if row + 1 < len(supports) else high
        axis = len(self.plan.shape)
        buffer = self.buffer.movedim(-axis, 0)  # the streaming axis first: a view
        self.write(low, self.buffer.narrow(-axis, 0, final - low))
        strip = buffer[final - low : high - low].clone()
        buffer[: len(strip)] = strip
        buffer[len(strip) :] = 0

    def _new_buffer(self, tile: Tensor) -> Tensor:
        rows = max(high - low for low, high in self.plan.supports[0])
        rest = [side * self.plan.scale for side in self.plan.shape[1:]]
        shape = (*tile.shape[: -len(self.plan.shape)], rows, *rest)
        try:
            return torch.zeros(shape)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise ResourceError(
                f"No memory for {rows} rows of the result, {math.prod(shape) * 4} bytes.",
                hint="Close other programs." if self.plan.gaussian else "Use a smaller --tile.",
            ) from error


def run_tile(network: Callable[[Tensor], Tensor], x: Tensor, plan: TilePlan, device: torch.device) -> Tensor:
    """The checked result (..., C', *size * scale) of one tile x (1, C, *size), cut smaller where memory runs out.

    Raises:
        OutputError: The result is of another size than the plan says, or not finite.
        ResourceError: The smallest part does not fit the memory.
    """
    y = _call(network, x, device)
    if y is None:
        return _run_in_parts(network, x, plan, device)
    expected = tuple(side * plan.scale for side in x.shape[2:])
    if y.shape[0] != 1 or tuple(y.shape[-len(expected) :]) != expected or y.ndim < len(expected) + 2:
        raise OutputError(
            f"The network returned shape {tuple(y.shape)} for a tile of shape {tuple(x.shape)}; "
            f"a scale of {plan.scale} asks for (1, channels, {', '.join(map(str, expected))}).",
            hint="Check the model's scale.",
        )
    if not all(math.isfinite(bound) for bound in torch.aminmax(y)):
        raise OutputError(
            "The network returned values that are not finite.", hint="Use --precision float32, or check the weights."
        )
    return y[0]


def _call(network: Callable[[Tensor], Tensor], x: Tensor, device: torch.device) -> Tensor | None:
    """The network's result as float32 on the CPU, or None where memory ran out.

    None, and not the error: a caught error keeps the failed call's frames alive, and with them its activations.
    """
    try:
        return network(x.to(device, torch.float32)).to("cpu", torch.float32)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        logger.warning("A tile of %s ran out of memory on %s.", " x ".join(map(str, x.shape[2:])), device)
        return None


def _run_in_parts(network: Callable[[Tensor], Tensor], x: Tensor, plan: TilePlan, device: torch.device) -> Tensor:
    """The result of one tile that does not fit, from smaller overlapping tiles of it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # blocks cut for the failed call are of no use to smaller ones
    parts = smaller_plan(plan, x.shape[2:])
    if parts is None:
        raise ResourceError(
            f"A tile of {' x '.join(map(str, x.shape[2:]))} does not fit into the memory of {device}, and smaller ones "
            f"would lose too much context.",
            hint=f"Give it more --memory{'' if plan.gaussian else ', a smaller --tile'}, or another device with --device cpu.",
        )
    blocks: list[Tensor] = []
    run_tiles(network, lambda box: _cut(x, box), parts, lambda _, block: blocks.append(block.clone()), device=device)
    return torch.cat(blocks, dim=-len(plan.shape))


def _cut(tensor: Tensor, box: Sequence[slice]) -> Tensor:
    """A view of the box over the last axes."""
    leading = (slice(None),) * (tensor.ndim - len(box))
    return tensor[leading + tuple(box)]
