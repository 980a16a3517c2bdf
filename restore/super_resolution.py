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
from restore.colour import LUMA_ROUTE_VALUES
from restore.ensemble import NOTE as ENSEMBLE_NOTE
from restore.ensemble import SelfEnsemble
from restore.final_size import FinalSize, RowResizer, resize_note
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
from restore.planes import AnyPlanes

OnProgress = Callable[[int, int], None]
WriteRows = Callable[[int, np.ndarray], None]

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
        final: The size of the results; None for what the network gives.
    """

    tile: Literal["auto"] | int | None = "auto"
    memory: int | None = None
    max_pixels: int = MAX_PIXELS
    overwrite: bool = False
    save: SaveOptions = field(default_factory=SaveOptions)
    final: FinalSize | None = None


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
    if (resizer := _resizer(card.scale, info, settings, lambda top, rows: None)) is not None:
        held += resizer.bytes
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


def result_size(scale: int, info: PictureInfo, settings: RunSettings) -> tuple[int, int]:
    """Width and height of the result of a network of that scale."""
    if settings.final is not None:
        return settings.final.of(info.width, info.height)
    return info.width * scale, info.height * scale


def _resizer(scale: int, info: PictureInfo, settings: RunSettings, write: WriteRows) -> RowResizer | None:
    """From the network's size to the final one; None where they are the same."""
    width, height = result_size(scale, info, settings)
    source = info.height * scale, info.width * scale
    return None if source == (height, width) else RowResizer(source, (height, width), info.channels + info.alpha, write)


def _row_writer(scale: int, info: PictureInfo, settings: RunSettings, write: WriteRows) -> WriteRows:
    """A function that takes the network's float rows and hands the result's, in the picture's sample type, to `write`."""

    def store(top: int, rows: np.ndarray) -> None:
        write(top, from_unit(rows, info.dtype))

    def store_resized(top: int, rows: np.ndarray) -> None:
        np.clip(rows[..., info.channels :], 0, 1, out=rows[..., info.channels :])  # bicubic overshoots; alpha must not
        store(top, rows)

    resizer = _resizer(scale, info, settings, store_resized)
    return store if resizer is None else resizer.add


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
    dtype = picture.colour.dtype
    info = PictureInfo(Path(), width, height, channels, picture.alpha is not None, dtype.name, "", "")
    size = result_size(network.card.scale, info, settings)
    result = np.empty((size[1], size[0], channels + info.alpha), dtype)

    def keep(top: int, rows: np.ndarray) -> None:
        result[top : top + len(rows)] = rows

    write = _row_writer(network.card.scale, info, settings, keep)
    _run(network, picture, plan_picture(network, info, settings), write, on_progress)
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
    size = result_size(scale, info, settings)
    if size != (made := (info.width * scale, info.height * scale)):
        notes = (*notes, resize_note(made, size))
    record = _record(network, source, target, plan, started, notes)
    options = replace(settings.save, description=_embedded(record))
    with PictureWriter(
        target,
        *size,
        info.channels,
        alpha=info.alpha,
        dtype=info.dtype,
        metadata=picture.metadata,
        options=options,
    ) as writer:
        _run(network, picture, plan, _row_writer(scale, info, settings, writer.write_rows), on_progress)
        release_memory()  # the encoder's buffers take the place of the activations, not one beside the other
    said = (*picture.metadata.notes, *writer.notes)
    seconds = time.perf_counter() - clock
    try:
        write_record(replace(record, seconds=round(seconds, 3), notes=(*record.notes, *said)), target)
    except BaseException:
        target.unlink(missing_ok=True)  # no result without its record
        raise
    return Outcome(source, target, size, seconds, plan.describe(), said)


def _run(
    network: RestorationNetwork,
    picture: Picture,
    plan: TilePlan,
    write: WriteRows,
    on_progress: OnProgress | None,
) -> None:
    """Run the planned tiles of a picture; `write` gets finished rows (h, W, planes), float32 in the picture's range."""
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
        write(top, rows)

    device = next(network.parameters()).device
    run_tiles(AnyPlanes(network, colour.shape[2]), read, plan, finish, device=device, on_progress=on_progress)


def _float_range(colour: np.ndarray) -> tuple[float, float]:
    """The range that is mapped to [0, 1]: of a float picture that goes beyond it, its own."""
    if colour.dtype != np.float32:
        return 0.0, 1.0
    low, high = float(colour.min()), float(colour.max())
    if not np.isfinite((low, high)).all():
        raise InputError("The picture holds values that are not finite.", hint="Replace NaN and infinity in it.")
    return min(0.0, low), max(1.0, high)


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
        notes=(*notes, ENSEMBLE_NOTE) if isinstance(network, SelfEnsemble) else notes,
    )


def _embedded(record: Record) -> str:
    """The record as it is put into the picture itself, before the run's time is known."""
    facts = record.to_dict()
    del facts["seconds"]
    return json.dumps(facts, ensure_ascii=False, separators=(",", ":"))


def describe_plan(plan: TilePlan, info: PictureInfo, settings: RunSettings, per_pixel: float) -> str:
    """One line: tiles, memory of the activations, size of the result, time."""
    width, height = result_size(plan.scale, info, settings)
    result = width * height * (info.channels + info.alpha) * np.dtype(info.dtype).itemsize
    return (
        f"{plan.describe()}; result {width} x {height}, {format_size(result)} uncompressed; "
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
