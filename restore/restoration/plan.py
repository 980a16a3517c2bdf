"""What restoring a picture takes and tells: settings, plans from a picture's header, and how its values meet a network."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hybrid.cards import ModelCard
from hybrid.console import format_duration
from hybrid.errors import InputError, ResourceError
from hybrid.memory import activation_budget, available_bytes, format_size
from hybrid.tiles.plan import BYTES_PER_FLOAT
from hybrid.tiles.run import TilePlan, plan_tiles
from restore.images import MAX_PIXELS, PictureInfo, SaveOptions, check_pixels, format_of, to_unit
from restore.images.colour import LUMA_ROUTE_VALUES
from restore.models.base import RestorationNetwork
from restore.restoration.final_size import FinalSize, RowResizer
from restore.restoration.one_output import Selection
from restore.restoration.resumable import part_folder

SHARE_OF_MEMORY = 0.5
"""Part of the free memory that a run takes when no limit is given: the rest stays for the system and other programs."""
WRITER_RESERVE = 96 * 2**20
"""Bytes kept free under a limit for reading, for rows on their way to disk and for the encoder."""
STREAM_FROM = 2 * 2**30
"""Bytes of an input and its result, uncompressed, from which a run streams and can be resumed whatever memory there is."""
STREAM_SIDES = (1024, 768, 512, 384, 256, 192, 128, 96, 64)
"""Tile edges of streamed runs: coarse steps, so that a little more or less free memory seldom changes the plan."""
PROBE_SIDE = 48
"""Edge of the picture that is run to estimate the time of a whole one."""


@dataclass(frozen=True)
class RunSettings:
    """How pictures are run; the same for every picture of a batch.

    Attributes:
        tile: "auto" fits tiles to the memory, a number is the largest tile edge in input pixels, None takes the whole.
        memory: Bytes that the process may take at its peak; None takes up to half of what is free.
        max_pixels: Pictures of more pixels are refused. None sets no bound to what is streamed, and `MAX_PIXELS` to the rest.
        overwrite: Whether a file that is there may be replaced.
        save: How to encode.
        final: The size of the results; None for what the network gives.
        selection: What becomes of the outputs, of networks that have several.
        task: The command or task, for the record.
    """

    tile: Literal["auto"] | int | None = "auto"
    memory: int | None = None
    max_pixels: int | None = None
    overwrite: bool = False
    save: SaveOptions = field(default_factory=SaveOptions)
    final: FinalSize | None = None
    selection: Selection = field(default_factory=Selection)
    task: str = "restore"


@dataclass(frozen=True)
class Outcome:
    """What one run made.

    Attributes:
        input, output: The files.
        size: Width and height of the output in pixels.
        seconds: Time from reading to the written file; of all runs where one was resumed.
        tiles: The tile plan in one line.
        notes: What the format could not carry and what reading changed, one sentence each.
        figures: Of a network with several outputs: which was taken and why, the candidates, the map. As in the record.
    """

    input: Path
    output: Path
    size: tuple[int, int]
    seconds: float
    tiles: str
    notes: tuple[str, ...]
    figures: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class FilePlan:
    """How a file is restored.

    Attributes:
        tiles: The tiles of the network.
        side: Edge of a streamed run's tiles, 0 where the picture is held in memory.
    """

    tiles: TilePlan
    side: int = 0

    @property
    def streamed(self) -> bool:
        """Whether the file is read and written in boxes, and can be resumed."""
        return self.side > 0

    def describe(self) -> str:
        """One line for people."""
        if not self.streamed:
            return self.tiles.describe()
        tile, shape = (" x ".join(map(str, reversed(sides))) for sides in (self.tiles.tile, self.tiles.shape))
        return (
            f"{self.tiles.count} tiles of {tile} over {shape}, overlap {self.tiles.overlap}, about "
            f"{format_size(streamed_bytes(self.tiles))}, streamed in {self.tiles.grid[0]} rows of tiles, resumable at each"
        )

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values."""
        if not self.streamed:
            return self.tiles.to_dict() | {"streamed": False}
        return self.tiles.to_dict() | {"streamed": True, "memory_bytes": streamed_bytes(self.tiles)}


def plan_file(network: RestorationNetwork, info: PictureInfo, target: Path, settings: RunSettings) -> FilePlan:
    """Plan the restoration of a file from its header.

    A TIFF is streamed where input and result together are too large for the memory, or so large that an interruption
    would cost much, or where a part of it is there already.

    Raises:
        ResourceError: It does not fit the memory; the message names the flag that helps.
    """
    if not may_stream(target, settings):
        try:
            return FilePlan(plan_picture(network, info, settings))
        except ResourceError as error:
            if may_stream(target, replace(settings, selection=Selection())):
                error.hint = f"{error.hint} Or leave out --outputs and --uncertainty: then it is streamed."
            raise
    if part_folder(target).exists() or _is_large(network.card.scale, info, settings):
        return plan_streamed(network, info, settings)
    try:
        return FilePlan(plan_picture(network, info, settings))
    except ResourceError:
        return plan_streamed(network, info, settings)


def may_stream(target: Path, settings: RunSettings) -> bool:
    """Whether a result can be written in boxes: a TIFF alone, and tiles not forbidden."""
    one = not settings.selection.shows_several
    return one and settings.tile is not None and (settings.save.format or format_of(target)) == "tiff"


def check_size(info: PictureInfo, target: Path, settings: RunSettings) -> None:
    """Refuse a picture of too many pixels by its header; without a limit of the user's, only what must be held in memory.

    Raises:
        InputError: It has too many; the message names the flag that allows it.
    """
    if settings.max_pixels is not None:
        check_pixels(info, settings.max_pixels)
    elif not may_stream(target, settings):
        check_pixels(info, MAX_PIXELS)


def plan_picture(network: RestorationNetwork, info: PictureInfo, settings: RunSettings) -> TilePlan:
    """Plan the tiles of a picture that is held in memory, from its header.

    Raises:
        ResourceError: It does not fit the memory; the message names the flag that helps.
    """
    held = info.width * info.height * (info.channels + info.alpha) * np.dtype(info.dtype).itemsize
    width, height = result_size(network.card.scale, info, settings)
    source = info.height * network.card.scale, info.width * network.card.scale
    if source != (height, width):
        held += RowResizer(source, (height, width), info.channels + info.alpha, lambda top, rows: None).bytes
    budget = _budget(network, settings, held)
    if settings.memory is None:
        budget = int(budget * SHARE_OF_MEMORY)
    return _tiles(network.card, info, settings.tile, budget if settings.tile == "auto" or settings.memory is not None else None)


def plan_streamed(network: RestorationNetwork, info: PictureInfo, settings: RunSettings, side: int = 0) -> FilePlan:
    """Plan the tiles of a picture that is read and written in boxes.

    Args:
        network, info, settings: As of `plan_file`.
        side: The tile edge of a run that is resumed; 0 for a new one.

    Raises:
        ResourceError: It does not fit the memory.
    """
    card, budget = replace(network.card, outputs=1), _budget(network, settings, 0)
    if settings.memory is None and not side:
        budget = int(budget * SHARE_OF_MEMORY)
    asked = side or (settings.tile if isinstance(settings.tile, int) else 0)
    bound = asked == 0 or side > 0 or settings.memory is not None  # a tile asked for by name is taken as it is
    least = max(STREAM_SIDES[-1], 4 * card.overlap, card.overlap + card.multiple)
    for each in (asked,) if asked else [known for known in STREAM_SIDES if known >= least] or [least]:
        plan = FilePlan(_tiles(card, info, each, None), each)
        if not bound or streamed_bytes(plan.tiles) <= budget:
            return plan
    missing = format_size(streamed_bytes(plan.tiles) - budget, up=True).replace(" ", "")
    instead = "use --tile auto or a smaller --tile" if asked and not side else "close other programs"
    raise ResourceError(
        f"{plan.describe()}, is more than the {format_size(max(budget, 0))} of memory left for it.",
        hint=f"Raise --memory by {missing} or more, or {instead}.",
    )


def streamed_bytes(tiles: TilePlan) -> int:
    """Peak bytes of a streamed run: the network at work on a tile, or a result on its way, beside what the last tile left."""
    result = BYTES_PER_FLOAT * tiles.out_channels * tiles.tile[0] * tiles.tile[1] * tiles.scale**2
    return max(tiles.tile_bytes, 5 * result) + result


def tile_notes(card: ModelCard, tiles: TilePlan) -> tuple[str, ...]:
    """What is to be said of tiles that cannot give what the whole picture gives."""
    if tiles.whole or not (card.global_context or card.parts_follow_size):
        return ()
    why = "sees more of a picture than its tiles share" if card.global_context else "divides a picture by its size"
    return (f"{card.title} {why}: in tiles, the result differs a little from that of the whole picture.",)


def result_size(scale: int, info: PictureInfo, settings: RunSettings) -> tuple[int, int]:
    """Width and height of the result of a network of that scale."""
    if settings.final is not None:
        return settings.final.of(info.width, info.height)
    return info.width * scale, info.height * scale


def result_bytes(scale: int, info: PictureInfo, settings: RunSettings) -> int:
    """Bytes of the result, uncompressed."""
    width, height = result_size(scale, info, settings)
    return width * height * (info.channels + info.alpha) * np.dtype(info.dtype).itemsize


def seconds_per_pixel(network: RestorationNetwork) -> float:
    """Time the network on a small input, after one run to warm up: seconds per input pixel."""
    x = torch.zeros(1, network.card.channels, PROBE_SIDE, PROBE_SIDE, device=next(network.parameters()).device)
    with torch.inference_mode():
        network.result(x)
        started = time.perf_counter()
        network.result(x).cpu()
    return (time.perf_counter() - started) / PROBE_SIDE**2


def expected_seconds(plan: TilePlan, per_pixel: float) -> float:
    """Estimated time of a plan: its tiles' pixels, overlaps counted each time."""
    return float(per_pixel * sum(np.prod([part.stop - part.start for part in box]) for _, box in plan.boxes()))


def describe_plan(plan: FilePlan, info: PictureInfo, settings: RunSettings, per_pixel: float) -> str:
    """One line: tiles, memory of the activations, size of the result, time."""
    width, height = result_size(plan.tiles.scale, info, settings)
    return (
        f"{plan.describe()}; result {width} x {height}, "
        f"{format_size(result_bytes(plan.tiles.scale, info, settings))} uncompressed; "
        f"about {format_duration(expected_seconds(plan.tiles, per_pixel))}"
    )


def to_tensor(colour: np.ndarray, alpha: np.ndarray | None, low: float, high: float) -> Tensor:
    """Colours (h, w, C) and alpha (h, w) of a box as (1, planes, h, w) float32, the colours' `low` to `high` as 0 to 1."""
    planes = (to_unit(colour) - low) / (high - low) if (low, high) != (0.0, 1.0) else to_unit(colour)
    if alpha is not None:
        planes = np.dstack((planes, to_unit(alpha)))
    return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))[None]


def to_rows(block: Tensor, channels: int, low: float, high: float) -> np.ndarray:
    """(..., planes, h, w) as (..., h, w, planes) float32, the first `channels` brought back from [0, 1] to `low` and `high`."""
    rows = block.movedim(-3, -1).numpy()
    if (low, high) != (0.0, 1.0):
        rows = rows.copy()
        rows[..., :channels] = rows[..., :channels] * (high - low) + low
    return rows


def unit_range(low: float, high: float) -> tuple[float, float]:
    """The range that is mapped to [0, 1], of a picture of floats from `low` to `high`: its own where it goes beyond.

    Raises:
        InputError: It is not finite.
    """
    if not np.isfinite((low, high)).all():
        raise InputError("The picture holds values that are not finite.", hint="Replace NaN and infinity in it.")
    return min(0.0, low), max(1.0, high)


def _is_large(scale: int, info: PictureInfo, settings: RunSettings) -> bool:
    pixels = info.width * info.height
    size = pixels * (info.channels + info.alpha) * np.dtype(info.dtype).itemsize + result_bytes(scale, info, settings)
    memory = settings.memory if settings.memory is not None else int(available_bytes() * SHARE_OF_MEMORY)
    return pixels > MAX_PIXELS or size > min(STREAM_FROM, memory)


def _budget(network: RestorationNetwork, settings: RunSettings, held: int) -> int:
    working = BYTES_PER_FLOAT * network.card.working_floats
    return activation_budget(settings.memory, next(network.parameters()).device, held + working + WRITER_RESERVE)


def _tiles(card: ModelCard, info: PictureInfo, tile: Literal["auto"] | int | None, budget: int | None) -> TilePlan:
    return plan_tiles(
        (info.height, info.width),
        scale=card.scale,
        tile=tile,
        overlap=card.overlap,
        exact=card.exact,
        multiple=card.multiple,
        out_channels=card.outputs * (info.channels + info.alpha),
        floats_per_pixel=_floats_per_pixel(card, info.channels),
        budget_bytes=budget,
    )


def _floats_per_pixel(card: ModelCard, channels: int) -> int:
    if card.luma and channels == 3:  # the network on one plane, then the colours
        return card.activation_floats + LUMA_ROUTE_VALUES * card.scale**2
    # A network of one channel sees the colours of an RGB picture as a batch of three.
    return card.activation_floats * max(1, channels // card.channels)
