"""A network over a scan in overlapping windows, its logits handed out in slabs as soon as they are final.

Axes: scans are (C, i, j, k) and logits (classes, i, j, k). The axis along which slabs come is moved to the front of the
three while windows run ("stream order"): (classes, rows, and the two others in their order).

Windows, their grid and their weights are MONAI's (`sliding_window_inference`, Gaussian) but for one thing: MONAI raises
weights below 0.001 of the centre's to that, here they stay a product of one Gaussian an axis, so that rows can be finished
one after the other. Where windows agree, nothing differs; where they do not, a voxel's result is another mean of the same
windows. Only logits of one row of windows are held, whatever the size of the scan.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hybrid.errors import OutputError, RequestError, ResourceError
from hybrid.memory import activation_budget, available_bytes, format_size
from hybrid.tiles.plan import TilePlan, plan_windows
from hybrid.tiles.run import run_tiles
from medical.models.base import SegmentationCard, SegmentationNetwork
from medical.protocol import Protocol

WriteSlab = Callable[[int, Tensor], None]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class WindowPlan:
    """Windows over one scan.

    Attributes:
        shape: The scan's (i, j, k).
        axis: Along which slabs of the result come.
        overlap: Share of the window that neighbours have in common.
        mirror: Axes whose mirror images are averaged too.
        tiles: The windows in stream order, over the scan padded to at least one window.
    """

    shape: tuple[int, ...]
    axis: int
    overlap: float
    mirror: tuple[int, ...]
    tiles: TilePlan

    @property
    def before(self) -> tuple[int, ...]:
        """Voxels of padding before the scan, in stream order; as many or one more lie behind it."""
        shape = stream_order(self.shape, self.axis)
        return tuple((padded - n) // 2 for padded, n in zip(self.tiles.shape, shape, strict=True))

    @property
    def patch(self) -> tuple[int, ...]:
        """The window along (i, j, k)."""
        first, *rest = self.tiles.tile
        return (*rest[: self.axis], first, *rest[self.axis :])

    @property
    def views(self) -> int:
        """How often the network sees each window."""
        return 1 << len(self.mirror)

    def describe(self) -> str:
        """One line for people."""
        count, axis = self.tiles.count, "ijk"[self.axis]
        axes = 2 if self.shape[2] == 1 else 3
        what = f"{count} window{'s' if count > 1 else ''} of {_sides(self.patch[:axes])} over {_sides(self.shape[:axes])}"
        mirrored = f", {self.views} mirror images of each" if self.mirror else ""
        return f"{what}, overlap {self.overlap:g}, slabs along {axis}{mirrored}, about {format_size(self.tiles.memory_bytes)}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values, for a record in JSON."""
        return {
            "shape": list(self.shape),
            "window": list(self.patch),
            "overlap": self.overlap,
            "weights": "gaussian",
            "mirror": list(self.mirror),
            "count": self.tiles.count,
            "slab_axis": self.axis,
            "memory_bytes": self.tiles.memory_bytes,
        }


def plan_scan(
    shape: Sequence[int],
    card: SegmentationCard,
    protocol: Protocol,
    *,
    overlap: float | None = None,
    mirror: bool = False,
    axis: int | None = None,
) -> WindowPlan:
    """Plan the windows over a scan.

    Args:
        shape: (i, j, k) in the protocol's orientation and spacing.
        card: The network's.
        protocol: Says the window, the overlap and the axes that may be mirrored.
        overlap: Another share than the protocol's.
        mirror: Average over mirror images along the protocol's axes.
        axis: Along which slabs come; None for the one that holds least.

    Raises:
        RequestError: Mirror images of a network that was not trained on them, or an overlap that makes no sense.
    """
    if mirror and not protocol.mirror:
        raise RequestError(
            "This network was not trained on mirrored scans, so mirror images cannot be averaged.", hint="Leave --tta out."
        )
    window = protocol.window
    padded = [max(n, side) for n, side in zip(shape, window, strict=True)]
    if axis is None:
        axis = min(range(3), key=lambda a: window[a] / padded[a])
    overlap = protocol.overlap if overlap is None else overlap
    # The logits, in the precision of the network and in float32, or added to those of other mirror images.
    floats = card.activation_floats + 2 * card.out_channels
    multiple = card.multiple
    if protocol.spatial_dims == 2:  # filled up within the slice alone
        floats = math.ceil(floats * math.prod(-(-side // multiple) * multiple / side for side in protocol.patch))
        multiple = 1
    tiles = plan_windows(
        stream_order(padded, axis),
        stream_order(window, axis),
        overlap=overlap,
        multiple=multiple,
        out_channels=card.out_channels,
        floats_per_pixel=floats,
    )
    return WindowPlan(tuple(shape), axis, overlap, tuple(sorted(set(protocol.mirror))) if mirror else (), tiles)


def segment_windows(
    network: SegmentationNetwork,
    values: np.ndarray,
    protocol: Protocol,
    *,
    write: WriteSlab,
    plan: WindowPlan | None = None,
    mirror: bool = False,
    memory: int | None = None,
    device: torch.device | str | None = None,
    on_progress: OnProgress | None = None,
) -> None:
    """Run a network over a scan, and hand out its logits.

    Args:
        network: Logits of windows; called with (1, C, *window) on `device`, where windows of slices have two axes.
        values: (C, i, j, k) float32, as the protocol asks.
        protocol: What the network was trained for.
        write: Receives (first row, logits); logits are (classes, rows, and the two other axes) float32 on the CPU, raw.
            Slabs come in order and cover each row of the plan's axis once; copy what must outlive the call.
        plan: From `plan_scan`; None plans with slabs along the first axis, so that logits are (classes, rows, j, k).
        mirror: Average over mirror images, where no plan is given.
        memory: Bytes that the process may take at its peak; None is bounded by what the machine has.
        device: Where the network runs; None for where it is.
        on_progress: Called as (windows done, windows in all).

    Raises:
        ResourceError: It does not fit the memory.
        OutputError: Logits that are not finite, or are not as many as the protocol has outputs.
    """
    plan = plan or plan_scan(values.shape[1:], network.card, protocol, mirror=mirror, axis=0)
    device = torch.device(device) if device is not None else device_of(network)
    check_memory(plan, device, memory)
    scan = np.moveaxis(values, 1 + plan.axis, 1)
    inside = [slice(low, low + n) for low, n in zip(plan.before, scan.shape[1:], strict=True)]

    def run(x: Tensor) -> Tensor:
        """(1, C, *window) in stream order to (1, classes, *window)."""
        x = x.movedim(2, 2 + plan.axis).contiguous()
        return _mean_of_views(network, x, plan.mirror).movedim(2 + plan.axis, 2)

    def hand_out(first: int, block: Tensor) -> None:
        if block.shape[0] != protocol.outputs:
            raise OutputError(
                f"The network gave {block.shape[0]} channels, and its protocol has {protocol.outputs}.",
                hint="Give the protocol of these weights.",
            )
        low, high = max(first, inside[0].start), min(first + block.shape[1], inside[0].stop)
        if low < high:
            write(low - inside[0].start, block[:, low - first : high - first, inside[1], inside[2]])

    run_tiles(run, lambda box: _padded(scan, box, plan.before), plan.tiles, hand_out, device=device, on_progress=on_progress)


def check_memory(plan: WindowPlan, device: torch.device, memory: int | None, *, reserve: int = 0) -> None:
    """Refuse a plan that does not fit. Windows are never made smaller, since that would change the result.

    Args:
        plan: The windows.
        device: Where the network runs; the slab of logits is always held by the CPU.
        memory: Bytes that the process may take on the device; None is bounded by what is there.
        reserve: Bytes that are still to be taken on the CPU beside the windows.

    Raises:
        ResourceError: Says how much is missing.
    """
    tiles = plan.tiles
    on_cpu = tiles.memory_bytes if device.type == "cpu" else 2 * tiles.buffer_bytes
    needs = [(on_cpu + reserve, activation_budget(memory if device.type == "cpu" else None, "cpu"), "of memory")]
    if device.type != "cpu":
        needs.append((tiles.tile_bytes, activation_budget(memory, device), f"on {device}"))
    for needed, left, where in needs:
        if needed > left:
            asked = memory is not None and (device.type == "cpu") == (where == "of memory")
            more, held = "Close other programs", ""
            if asked and memory is not None and left < available_bytes(device):
                more = f"Give --memory {_generous(memory + needed - left)} or more"
                held = f" of --memory {format_size(memory)}, of which the program itself takes {format_size(memory - left)}"
            raise ResourceError(
                f"{plan.describe()[:1].upper()}{plan.describe()[1:]}: {format_size(needed, up=True)} {where} needed, "
                f"{format_size(max(left, 0))} left{held}.",
                hint=f"{more}, or segment a part with --roi. Smaller windows would change the result.",
            )


def _generous(size: int) -> str:
    """A bound to type that surely holds so much: what a program takes differs by some MB from run to run.

    >>> _generous(463_000_000), _generous(14_010_000_000)
    ('500MB', '15GB')
    """
    step = 50_000_000
    return format_size(math.ceil(1.05 * size / step) * step, up=True).replace(" ", "")


def stream_order(sides: Sequence[int], axis: int) -> tuple[int, ...]:
    """Sides along (i, j, k) with `axis` first.

    >>> stream_order((5, 6, 7), 1)
    (6, 5, 7)
    """
    return (sides[axis], *(side for other, side in enumerate(sides) if other != axis))


def window_logits(network: SegmentationNetwork, x: Tensor) -> Tensor:
    """(1, C, i, j, k) to (1, classes, i, j, k); a network for slices sees the one slice of its windows."""
    logits: Tensor = network(x) if network.card.spatial_dims == 3 else network(x.squeeze(-1)).unsqueeze(-1)
    return logits


def device_of(network: SegmentationNetwork) -> torch.device:
    """Where a network's weights are."""
    return next((parameter.device for parameter in network.parameters()), torch.device("cpu"))


def _mean_of_views(network: SegmentationNetwork, x: Tensor, mirror: tuple[int, ...]) -> Tensor:
    """Mean of the logits of x (1, C, i, j, k) and its mirror images along every choice of the axes."""
    total: Tensor | None = None
    for axes in _choices(mirror):
        turned = [axis - 3 for axis in axes]
        y = window_logits(network, x.flip(turned)).flip(turned) if turned else window_logits(network, x)
        total = y if total is None else total.add_(y)
    assert total is not None
    return total.div_(2 ** len(mirror)) if mirror else total


def _choices(axes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for count in range(len(axes) + 1):
        yield from combinations(axes, count)


def _padded(scan: np.ndarray, box: tuple[slice, ...], before: tuple[int, ...]) -> Tensor:
    """The box (1, C, *box) of a scan (C, ...) that zeros surround, `before` of them before it."""
    starts = [part.start - low for part, low in zip(box, before, strict=True)]
    stops = [part.stop - low for part, low in zip(box, before, strict=True)]
    cut = [slice(max(start, 0), min(stop, n)) for start, stop, n in zip(starts, stops, scan.shape[1:], strict=True)]
    found = np.ascontiguousarray(scan[(slice(None), *cut)], np.float32)
    sides = [(part.start - start, stop - part.stop) for part, start, stop in zip(cut, starts, stops, strict=True)]
    return torch.from_numpy(np.pad(found, [(0, 0), *sides]))[None]


def _sides(sides: Sequence[int]) -> str:
    return " x ".join(map(str, sides))
