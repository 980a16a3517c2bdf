"""Restoration of scans in memory: check, plan, run slice by slice, bring back, check.

    restorer = load_restorer("denoise-mr-compact", precision="auto")
    result = restore(read_volume("scan.nii.gz"), restorer)
    result.values  # (i, j, k) on the scan's own grid, in its own units

Files are read and written by `medical.restoration.files`. Axes: (i, j, k) in the order of the file; slices are (n, rows,
columns), views of the same values in the order of the protocol.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hybrid.errors import InputError, ResourceError
from hybrid.memory import activation_budget, format_size
from hybrid.tiles.plan import BYTES_PER_FLOAT, TilePlan, plan_tiles
from hybrid.tiles.run import run_tiles
from medical.pictures.reading import of_picture
from medical.restoration.loading import Restorer
from medical.restoration.protocol import Percentiles, RestorationProtocol, seen_slices
from medical.segmentation.sliding import OnProgress
from medical.volumes.geometry import Reorientation
from medical.volumes.modality import check_modality, other_modality
from medical.volumes.volume import Volume

WRITER_RESERVE = 96 * 2**20
"""Bytes kept free beside the network: blocks on their way to disk, the preview."""
SHARE_OF_MEMORY = 0.5
"""Part of the free memory that slices are fitted to when no limit is given."""
NEGATIVE = 0.05
"""How far below zero, as a share of the range, one voxel in a hundred may lie in scans that begin at zero."""
PROBE_SIDE = 64
"""Edge of the slice that is run to estimate the time of a whole scan."""
OTHER_SIZE = 2.0
"""How many times as long or as short as those trained on pixels may be before a result is to be doubted."""


@dataclass(frozen=True)
class RestoreSettings:
    """How scans are restored; the same for every scan of a batch.

    Attributes:
        dtype: ``source`` gives values of the scan's own type, whole numbers where it holds such; or ``float32``.
        tile: Largest edge of a tile of a slice; None takes slices as large as the memory allows.
        memory: Bytes that the process may take at its peak; None takes up to half of what is free.
        any_modality: Take scans whose headers name another modality than the network's; they are doubted then, not refused.
    """

    dtype: Literal["source", "float32"] = "source"
    tile: int | None = None
    memory: int | None = None
    any_modality: bool = False


@dataclass(frozen=True, eq=False)
class SlicePlan:
    """How a scan is cut.

    Attributes:
        turn: To the protocol's orientation.
        axis: Of that orientation, across which slices lie.
        tiles: Of one slice.
    """

    turn: Reorientation
    axis: int
    tiles: TilePlan

    @property
    def count(self) -> int:
        """Number of slices."""
        return self.turn.grid.shape[self.axis]

    @property
    def pixels(self) -> int:
        """Pixels that the network restores, overlaps counted each time."""
        return int(self.count * sum(math.prod(part.stop - part.start for part in box) for _, box in self.tiles.boxes()))

    def slices(self, array: np.ndarray) -> np.ndarray:
        """(i, j, k) of the scan as (n, rows, columns), a view."""
        return np.moveaxis(self.turn.apply(array), self.axis, 0)

    def describe(self) -> str:
        """One line for people."""
        shape = " x ".join(map(str, self.tiles.shape))
        code, opposite = self.turn.grid.codes[self.axis], dict(zip("LRPAIS", "RLAPSI", strict=True))
        cut = "" if self.tiles.whole else f", in {self.tiles.count} tiles of {' x '.join(map(str, self.tiles.tile))}"
        step = self.turn.grid.spacing[self.axis]
        return f"{self.count} slices of {shape} from {opposite[code]} to {code}, {step:.4g} mm apart{cut}"

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values."""
        return {"slices": self.count, "axis": self.turn.grid.codes[self.axis], "tiles": self.tiles.to_dict()}


@dataclass(frozen=True, eq=False)
class Restoration:
    """What a network made of a scan.

    Attributes:
        values: (i, j, k) on the scan's grid, in its units; of its type, or float32.
        plan: How it was cut.
        bounds: The values that were 0 and 1 to the network.
        removed: Root mean square of what was taken away, in the scan's units.
        notes: What a user should be told, one sentence each.
    """

    values: np.ndarray
    plan: SlicePlan
    bounds: tuple[float, float]
    removed: float
    notes: tuple[str, ...]

    @property
    def share(self) -> float:
        """`removed` as a share of the range."""
        return self.removed / (self.bounds[1] - self.bounds[0])


def restore(
    volume: Volume, restorer: Restorer, settings: RestoreSettings | None = None, *, on_progress: OnProgress | None = None
) -> Restoration:
    """Restore a scan.

    The network's change is scaled back to the scan's units and added to it, so that what it leaves alone stays the same to
    the last bit. Results are kept within the range of the scan and of the protocol.

    Args:
        volume: From `medical.volumes.volume.read_volume` or `medical.dicom.volume.read_dicom`; not changed.
        restorer: From `medical.restoration.loading.load_restorer`.
        settings: Type, tiles, memory.
        on_progress: Called as (tiles done, tiles in all).

    Raises:
        InputError: The scan does not suit the network.
        ResourceError: It does not fit the memory.
        OutputError: What the network returned is no picture, or not finite.
    """
    settings = settings or RestoreSettings()
    plan = plan_slices(volume, restorer, settings)
    bounds = check_scan(volume, restorer.protocol, any_modality=settings.any_modality)
    values = volume.values[0]
    result = np.empty_like(values, dtype=values.dtype if settings.dtype == "source" else np.float32)  # in the same order
    squares = run_slices(restorer, plan, values, result, bounds, on_progress)
    notes = (*volume.warnings, *doubts(volume, restorer.protocol, plan))
    return Restoration(result, plan, bounds, math.sqrt(squares / values.size), notes)


def plan_slices(volume: Volume, restorer: Restorer, settings: RestoreSettings) -> SlicePlan:
    """Cut a scan into slices, and slices that are too large for the memory into tiles.

    Raises:
        ResourceError: The result, or even the smallest tile, does not fit the memory.
    """
    card, protocol = restorer.network.card, restorer.protocol
    turn = Reorientation.between(volume.grid, protocol.orientation)
    axis = protocol.slice_axis(turn.grid)
    rows, columns = (n for other, n in enumerate(turn.grid.shape) if other != axis)
    device = device_of(restorer)
    held = WRITER_RESERVE + math.prod(volume.grid.shape) * (4 if settings.dtype == "float32" else volume.values.itemsize)
    working = BYTES_PER_FLOAT * card.working_floats
    budget = activation_budget(settings.memory, device, working + (held if device.type == "cpu" else 0))
    room = activation_budget(settings.memory if device.type == "cpu" else None, "cpu", held)
    if room < 0:
        raise ResourceError(
            f"The restored {volume.name} does not fit the memory beside the scan: {format_size(-room, up=True)} are missing.",
            hint="Give it more --memory, or close other programs.",
        )
    tiles = plan_tiles(
        (rows, columns),
        scale=1,
        tile="auto" if settings.tile is None else settings.tile,
        overlap=card.overlap,
        exact=card.exact,
        multiple=card.multiple,
        out_channels=1,
        floats_per_pixel=card.activation_floats + 2 * card.channels,
        budget_bytes=budget if settings.memory is not None else int(budget * SHARE_OF_MEMORY),
    )
    return SlicePlan(turn, axis, tiles)


def check_scan(volume: Volume, protocol: RestorationProtocol, *, any_modality: bool = False) -> tuple[float, float]:
    """Refuse what does not fit a protocol, and return the values that are 0 and 1 to the network.

    Args:
        volume: The scan.
        protocol: The network's.
        any_modality: As of `RestoreSettings`.

    Raises:
        InputError: A picture, several channels, values that are not finite or all the same, another modality, or values
            below zero where there can be none.
    """
    values, name = volume.values, volume.file_name
    if of_picture(volume):
        raise InputError(f"{name} is a picture, and this network restores scans.", hint="Use `restore denoise` for pictures.")
    if len(values) != 1:
        raise InputError(f"{name} has {len(values)} channels.", hint="Restore one at a time.")
    low, high = float(values.min()), float(values.max())  # NaN spreads to both
    if not np.isfinite((low, high)).all():
        raise InputError(f"{name} has voxels whose value is not finite (NaN or infinity).", hint="Replace them, such as by 0.")
    if low == high:
        raise InputError(f"{name} has the value {low:g} everywhere: there is nothing to restore.", hint="Check the file.")
    if not any_modality:
        check_modality(volume.origin, protocol.modality, name)
    bottom, top = protocol.intensity.bounds(values[0])
    if top <= bottom:
        raise InputError(
            f"{name} is almost empty: the range that the network asks for ({protocol.intensity.words}) is {bottom:g} to {top:g}.",
            hint="Crop the scan to the body.",
        )
    if low < bottom - NEGATIVE * (top - bottom) and _lowest(values[0]) < bottom - NEGATIVE * (top - bottom):
        raise InputError(
            f"{name} has many values far below {bottom:g}, down to {low:g}, and the network was trained on {protocol.modality} "
            f"scaled by {protocol.intensity.words}.",
            hint="Give the scan before it is normalised, or choose a network for such values.",
        )
    return bottom, top


def doubts(volume: Volume, protocol: RestorationProtocol, plan: SlicePlan) -> tuple[str, ...]:
    """What a user should be told before trusting a result."""
    return tuple(_doubts(volume, protocol, plan))


def run_slices(
    restorer: Restorer,
    plan: SlicePlan,
    values: np.ndarray,
    result: np.ndarray,
    bounds: tuple[float, float],
    on_progress: OnProgress | None = None,
) -> float:
    """Run the network over all slices of (i, j, k) values into `result`, and return the sum of squares of its change."""
    scan, restored = plan.slices(values), plan.slices(result)
    low, high = bounds
    limits = _limits(values, result.dtype, bounds)
    middle, tiles, squares = restorer.protocol.neighbours, plan.tiles, 0.0
    network, device = restorer.network, device_of(restorer)

    def change(x: Tensor) -> Tensor:
        """(1, slices, rows, columns) to what is added to the middle one; blended tiles of no change are no change."""
        return network.mirrored(x)[:, middle : middle + 1] - x[:, middle : middle + 1]

    for number in range(plan.count):
        seen = seen_slices(number, plan.count, middle)

        def read(box: tuple[slice, ...], seen: list[int] = seen) -> Tensor:
            part = np.stack([scan[place][box] for place in seen]).astype(np.float64)
            return torch.from_numpy(((part - low) / (high - low)).astype(np.float32))[None]

        def write(top: int, block: Tensor, number: int = number) -> None:
            nonlocal squares
            rows = slice(top, top + block.shape[-2])
            added = block[0].numpy().astype(np.float64) * (high - low)
            new = np.clip(scan[number, rows] + added, *limits)
            squares += float(np.square(new - scan[number, rows]).sum())
            restored[number, rows] = np.rint(new) if result.dtype.kind in "iu" else new

        def tell(done: int, _: int, before: int = number * tiles.count) -> None:
            if on_progress is not None:
                on_progress(before + done, plan.count * tiles.count)

        run_tiles(change, read, tiles, write, device=device, on_progress=tell)
    return squares


def seconds_per_pixel(restorer: Restorer) -> float:
    """Time the network on a small slice, after one run to warm up."""
    x = torch.zeros(1, restorer.protocol.channels, PROBE_SIDE, PROBE_SIDE, device=device_of(restorer))
    with torch.inference_mode():
        restorer.network(x)
        started = time.perf_counter()
        restorer.network.result(x).cpu()
    return (time.perf_counter() - started) / PROBE_SIDE**2


def device_of(restorer: Restorer) -> torch.device:
    """Where a network's weights are."""
    return next((parameter.device for parameter in restorer.network.parameters()), torch.device("cpu"))


def _limits(values: np.ndarray, dtype: np.dtype, bounds: tuple[float, float]) -> tuple[float, float]:
    """Smallest and largest value of a result: the scan's own and the protocol's, within what the type holds."""
    low, high = min(bounds[0], float(values.min())), max(bounds[1], float(values.max()))
    if dtype.kind in "iu":
        low, high = max(low, float(np.iinfo(dtype).min)), min(high, float(np.iinfo(dtype).max))
    return low, high


def _lowest(values: np.ndarray) -> float:
    """The first percentile."""
    return Percentiles(low=1, high=50).bounds(values)[0]


def _doubts(volume: Volume, protocol: RestorationProtocol, plan: SlicePlan) -> Iterator[str]:
    if said := other_modality(volume.origin, protocol.modality):
        yield f"The network was trained on {protocol.modality}, and the scan says that it is {said}."
    edges = [step for axis, step in enumerate(plan.turn.grid.spacing) if axis != plan.axis]
    if protocol.spacing is not None:
        least, most = protocol.spacing
        if min(edges) < least / OTHER_SIZE or max(edges) > most * OTHER_SIZE:
            yield (
                f"The pixels of {' x '.join(f'{edge:.3g}' for edge in edges)} mm are of quite another size than those that the "
                f"network was trained on, {least:g}{f' to {most:g}' if most > least else ''} mm."
            )
    step = plan.turn.grid.spacing[plan.axis]
    if protocol.neighbours and protocol.spacing is not None and step > OTHER_SIZE * protocol.spacing[1]:
        yield (
            f"Slices are {step:.3g} mm apart, further than those that the network was trained on: what it takes from their "
            "neighbours may be wrong."
        )
    if float(volume.values.min()) < 0 and protocol.modality == "MR":
        yield "The scan has values below 0, which magnitudes of MR have not: it was filtered or normalised before."
