"""Super-resolution of pictures: read, plan, run over tiles, check, write with a record.

    network = restore.load_model("hat", scale=4, precision="auto")
    outcome = enlarge_file(network, Path("input.png"), Path("output.png"))

or in memory: `enlarge(network, read_picture("input.png"))`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from hybrid.cards import ModelCard
from hybrid.errors import InputError, OutputError
from hybrid.memory import activation_budget, format_size, release_memory
from hybrid.records import Record, record_path, sha256_file, timestamp, write_record
from hybrid.tile_plan import BYTES_PER_FLOAT
from hybrid.tiles import TilePlan, plan_tiles, run_tiles
from restore.colour import LUMA_ROUTE_VALUES, enlarge_by_luma
from restore.images import (
    MAX_PIXELS,
    Picture,
    PictureInfo,
    PictureWriter,
    SaveOptions,
    check_output,
    check_pixels,
    fill_transparent,
    from_unit,
    probe,
    read_picture,
    to_unit,
)
from restore.models.base import RestorationNetwork

OnProgress = Callable[[int, int], None]

SHARE_OF_MEMORY = 0.5
"""Part of the free memory that a run takes when no limit is given: the rest stays for the system and other programs."""
WRITER_RESERVE = 96 * 2**20
"""Bytes kept free under a limit for reading, for rows on their way to disk and for the encoder."""
PROBE_SIDE = 48
"""Edge of the picture that is run to estimate the time of a whole one."""


@dataclass(frozen=True)
class RunSettings:
    """How pictures are run; the same for every picture of a batch.

    Attributes:
        tile: "auto" fits tiles to the memory, a number is the largest tile edge in input pixels, None takes the whole.
        memory: Bytes that the process may take at its peak; None takes up to half of what is free.
        max_pixels: Pictures of more pixels are refused.
        overwrite: Whether a file that is there may be replaced.
        save: How to encode.
    """

    tile: Literal["auto"] | int | None = "auto"
    memory: int | None = None
    max_pixels: int = MAX_PIXELS
    overwrite: bool = False
    save: SaveOptions = field(default_factory=SaveOptions)


@dataclass(frozen=True)
class Outcome:
    """What one run made.

    Attributes:
        input, output: The files.
        size: Width and height of the output in pixels.
        seconds: Time from reading to the written file.
        tiles: The tile plan in one line.
        notes: What the format could not carry and what reading changed, one sentence each.
    """

    input: Path
    output: Path
    size: tuple[int, int]
    seconds: float
    tiles: str
    notes: tuple[str, ...]


def check_target(source: Path, target: Path, settings: RunSettings) -> None:
    """Make sure that the result and its record can be written, before any work is done.

    Raises:
        OutputError: The folder is missing or not writable, or one of the files is there and may not be replaced.
        RequestError: The target is the source, or its suffix names no format.
    """
    check_output(target, [source], overwrite=settings.overwrite, format=settings.save.format)
    record = record_path(target)
    if record.exists() and not settings.overwrite:
        raise OutputError(
            f"{record}, where the record would go, is there already.", hint="Pass --overwrite or choose another --output."
        )


def plan_picture(network: RestorationNetwork, info: PictureInfo, settings: RunSettings) -> TilePlan:
    """Plan the tiles of a picture from its header.

    Raises:
        ResourceError: It does not fit the memory; the message names the flag that helps.
    """
    card = network.card
    planes = info.channels + info.alpha
    held = info.width * info.height * planes * np.dtype(info.dtype).itemsize
    working = BYTES_PER_FLOAT * card.working_floats
    device = next(network.parameters()).device
    budget = activation_budget(settings.memory, device, held + working + WRITER_RESERVE)
    if settings.memory is None:
        budget = int(budget * SHARE_OF_MEMORY)
    return plan_tiles(
        (info.height, info.width),
        scale=card.scale,
        tile=settings.tile,
        overlap=card.overlap,
        multiple=card.multiple,
        out_channels=planes,
        floats_per_pixel=_floats_per_pixel(card, info.channels),
        budget_bytes=budget if settings.tile == "auto" or settings.memory is not None else None,
    )


def _floats_per_pixel(card: ModelCard, channels: int) -> int:
    if card.luma and channels == 3:  # the network on one plane, then the colours
        return card.activation_floats + LUMA_ROUTE_VALUES * card.scale**2
    # A network of one channel sees the colours of an RGB picture as a batch of three.
    return card.activation_floats * max(1, channels // card.channels)


def seconds_per_pixel(network: RestorationNetwork) -> float:
    """Time the network on a small input, after one run to warm up: seconds per input pixel."""
    x = torch.zeros(1, network.card.channels, PROBE_SIDE, PROBE_SIDE, device=next(network.parameters()).device)
    with torch.inference_mode():
        network(x)
        started = time.perf_counter()
        network(x).cpu()
    return (time.perf_counter() - started) / PROBE_SIDE**2


def expected_seconds(plan: TilePlan, per_pixel: float) -> float:
    """Estimated time of a plan: its tiles' pixels, overlaps counted each time."""
    return per_pixel * sum(np.prod([part.stop - part.start for part in box]) for _, box in plan.boxes())


def enlarge(
    network: RestorationNetwork,
    picture: Picture,
    settings: RunSettings | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Picture:
    """Enlarge a picture in memory; colour, alpha, sample type and metadata stay of their kind."""
    settings = settings or RunSettings()
    height, width, channels = picture.colour.shape
    scale, dtype = network.card.scale, picture.colour.dtype
    planes = channels + (picture.alpha is not None)
    info = PictureInfo(Path(), width, height, channels, picture.alpha is not None, dtype.name, "", "")
    result = np.empty((height * scale, width * scale, planes), dtype)

    def keep(top: int, rows: np.ndarray) -> None:
        result[top : top + len(rows)] = rows

    _run(network, picture, plan_picture(network, info, settings), keep, on_progress)
    alpha = np.ascontiguousarray(result[..., channels]) if picture.alpha is not None else None
    return Picture(np.ascontiguousarray(result[..., :channels]), alpha, picture.metadata)


def enlarge_file(
    network: RestorationNetwork,
    source: Path,
    target: Path,
    settings: RunSettings | None = None,
    *,
    notes: tuple[str, ...] = (),
    on_progress: OnProgress | None = None,
) -> Outcome:
    """Enlarge a picture file; the result streams to disk, and its record lies beside it as `<target>.json`.

    Args:
        network: From `restore.load_model`.
        source: Picture to read; never changed.
        target: File to write, whole or not at all.
        settings: Tiles, memory, encoding.
        notes: What the record must say besides, such as a network that stood in for another.
        on_progress: Called with tiles done and tiles in all.

    Raises:
        InputError: The picture cannot be read, or is too large to be opened unasked.
        OutputError: The result cannot be written.
        RequestError: The target is the source, or its format cannot hold the result.
        ResourceError: It does not fit the memory.
    """
    settings = settings or RunSettings()
    started, clock = timestamp(), time.perf_counter()
    check_target(source, target, settings)
    info = probe(source)
    check_pixels(info, settings.max_pixels)
    plan = plan_picture(network, info, settings)
    picture = read_picture(source, max_pixels=settings.max_pixels)
    scale = network.card.scale
    record = _record(network, source, target, plan, started, notes)
    options = replace(settings.save, description=_embedded(record))
    with PictureWriter(
        target,
        info.width * scale,
        info.height * scale,
        info.channels,
        alpha=info.alpha,
        dtype=info.dtype,
        metadata=picture.metadata,
        options=options,
    ) as writer:
        _run(network, picture, plan, writer.write_rows, on_progress)
        release_memory()  # the encoder's buffers take the place of the activations, not one beside the other
    said = (*picture.metadata.notes, *writer.notes)
    seconds = time.perf_counter() - clock
    try:
        write_record(replace(record, seconds=round(seconds, 3), notes=(*record.notes, *said)), target)
    except BaseException:
        target.unlink(missing_ok=True)  # no result without its record
        raise
    return Outcome(source, target, (info.width * scale, info.height * scale), seconds, plan.describe(), said)


def _run(
    network: RestorationNetwork,
    picture: Picture,
    plan: TilePlan,
    write: Callable[[int, np.ndarray], None],
    on_progress: OnProgress | None,
) -> None:
    """Run the planned tiles of a picture; `write` gets finished rows (h, W, planes) in the picture's sample type."""
    colour, alpha = picture.colour, picture.alpha
    if alpha is not None:
        colour = fill_transparent(colour, alpha)
    low, high = _float_range(colour)

    def read(box: tuple[slice, ...]) -> Tensor:
        planes = (to_unit(colour[box]) - low) / (high - low) if (low, high) != (0.0, 1.0) else to_unit(colour[box])
        if alpha is not None:
            planes = np.dstack((planes, to_unit(alpha[box])))
        return torch.from_numpy(np.ascontiguousarray(planes.transpose(2, 0, 1)))[None]

    def finish(top: int, block: Tensor) -> None:
        rows = block.permute(1, 2, 0).numpy()
        if (low, high) != (0.0, 1.0):
            rows = rows.copy()
            rows[..., : colour.shape[2]] = rows[..., : colour.shape[2]] * (high - low) + low
        write(top, from_unit(rows, colour.dtype))

    device = next(network.parameters()).device
    run_tiles(_AnyPlanes(network, colour.shape[2]), read, plan, finish, device=device, on_progress=on_progress)


def _float_range(colour: np.ndarray) -> tuple[float, float]:
    """The range that is mapped to [0, 1]: of a float picture that goes beyond it, its own."""
    if colour.dtype != np.float32:
        return 0.0, 1.0
    low, high = float(colour.min()), float(colour.max())
    if not np.isfinite((low, high)).all():
        raise InputError("The picture holds values that are not finite.", hint="Replace NaN and infinity in it.")
    return min(0.0, low), max(1.0, high)


class _AnyPlanes:
    """A network of three channels or one, run on gray or RGB planes and an alpha plane of its own.

    A network of luma gets a gray plane as it is, in full swing.
    """

    def __init__(self, network: RestorationNetwork, channels: int) -> None:
        self.network, self.channels = network, channels

    def __call__(self, x: Tensor) -> Tensor:
        """(1, channels [+ 1], H, W) to the same planes, enlarged."""
        colour = self._colour(x[:, : self.channels])
        return colour if x.shape[1] == self.channels else torch.cat((colour, self._alpha(x[:, self.channels :])), 1)

    def _colour(self, x: Tensor) -> Tensor:
        takes = self.network.card.channels
        if takes == x.shape[1]:
            return self.network(x)
        if takes == 3:
            return self.network(x.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
        if self.network.card.luma:
            return enlarge_by_luma(self.network, x, self.network.card.scale)
        return self.network(x.transpose(0, 1)).transpose(0, 1)

    def _alpha(self, x: Tensor) -> Tensor:
        """Alpha is enlarged like a gray picture; where it is constant it stays so, exactly and at no cost."""
        first = x[..., :1, :1]
        if bool((x == first).all()):
            scale = self.network.card.scale
            return first.expand(-1, -1, x.shape[2] * scale, x.shape[3] * scale)
        return self._colour(x).clamp(0, 1)


def _record(
    network: RestorationNetwork, source: Path, target: Path, plan: TilePlan, started: str, notes: tuple[str, ...]
) -> Record:
    weights = network.source
    return Record(
        task="sr",
        input=source.name,
        input_sha256=sha256_file(source),
        output=target.name,
        weights=weights.file if weights else "none",
        weights_sha256=weights.sha256 if weights else "",
        weights_origin=weights.origin if weights else "none",
        family=network.card.family,
        title=weights.name if weights else network.card.title,
        device=str(next(network.parameters()).device),
        precision=network.precision,
        started=started,
        seconds=0.0,
        tiles=plan.describe(),
        notes=notes,
    )


def _embedded(record: Record) -> str:
    """The record as it is put into the picture itself, before the run's time is known."""
    facts = record.to_dict()
    del facts["seconds"]
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))


def describe_plan(plan: TilePlan, info: PictureInfo, per_pixel: float) -> str:
    """One line: tiles, memory of the activations, size of the result, time."""
    scale = plan.scale
    result = info.width * info.height * scale**2 * (info.channels + info.alpha) * np.dtype(info.dtype).itemsize
    return (
        f"{plan.describe()}; result {info.width * scale} x {info.height * scale}, {format_size(result)} uncompressed; "
        f"about {format_duration(expected_seconds(plan, per_pixel))}"
    )


def format_duration(seconds: float) -> str:
    """A duration for people.

    >>> format_duration(0.4), format_duration(75), format_duration(7300)
    ('0.4 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
