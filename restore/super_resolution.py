"""Super-resolution of pictures: read, plan, run over tiles, check, write with a record.

    network = restore.load_model("hat", scale=4, precision="auto")
    outcome = enlarge_file(network, Path("input.png"), Path("output.png"))

or in memory: `enlarge(network, read_picture("input.png"))`. What is too large for the memory is streamed by
`restore.gigapixel`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from hybrid.memory import release_memory
from hybrid.records import timestamp, write_record
from hybrid.tiles import TilePlan, run_tiles
from restore.enlargement import (
    FilePlan,
    Outcome,
    RunSettings,
    check_size,
    describe_plan,
    expected_seconds,
    format_duration,
    plan_file,
    plan_picture,
    result_size,
    seconds_per_pixel,
    to_rows,
    to_tensor,
    unit_range,
)
from restore.enlargement_record import check_target, embedded, make_record
from restore.final_size import RowResizer, resize_note
from restore.gigapixel import enlarge_streamed
from restore.images import (
    MAX_PIXELS,
    Picture,
    PictureInfo,
    PictureWriter,
    fill_transparent,
    from_unit,
    probe,
    read_picture,
)
from restore.models.base import RestorationNetwork
from restore.planes import AnyPlanes

__all__ = [
    "FilePlan",
    "Outcome",
    "RunSettings",
    "check_size",
    "check_target",
    "describe_plan",
    "enlarge",
    "enlarge_file",
    "expected_seconds",
    "format_duration",
    "plan_file",
    "plan_picture",
    "result_size",
    "seconds_per_pixel",
]

OnProgress = Callable[[int, int], None]
WriteRows = Callable[[int, np.ndarray], None]


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
    on_note: Callable[[str], None] | None = None,
) -> Outcome:
    """Enlarge a picture file; the result streams to disk, and its record lies beside it as `<target>.json`.

    Args:
        network: From `restore.load_model`.
        source: Picture to read; never changed.
        target: File to write, whole or not at all. A run that is large enough to be streamed (`plan_file`) leaves
            `<target>.part` when it is broken off, and goes on from there when it is called again.
        settings: Tiles, memory, encoding.
        notes: What the record must say besides, such as a network that stood in for another.
        on_progress: Called with tiles done and tiles in all.
        on_note: Called with what should be known before the end: that the run is streamed, or resumed.

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
    check_size(info, target, settings)
    plan = plan_file(network, info, target, settings)
    if plan.streamed:
        return enlarge_streamed(network, source, target, settings, notes=notes, on_progress=on_progress, on_note=on_note)
    picture = read_picture(source, max_pixels=settings.max_pixels or MAX_PIXELS)
    scale, size = network.card.scale, result_size(network.card.scale, info, settings)
    if size != (made := (info.width * scale, info.height * scale)):
        notes = (*notes, resize_note(made, size))
    record = make_record(network, source, target, plan.describe(), started, notes)
    with PictureWriter(
        target,
        *size,
        info.channels,
        alpha=info.alpha,
        dtype=info.dtype,
        metadata=picture.metadata,
        options=replace(settings.save, description=embedded(record)),
    ) as writer:
        _run(network, picture, plan.tiles, _row_writer(scale, info, settings, writer.write_rows), on_progress)
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
        return to_tensor(colour[box], None if alpha is None else alpha[box], low, high)

    def finish(top: int, block: Tensor) -> None:
        write(top, to_rows(block, colour.shape[2], low, high))

    device = next(network.parameters()).device
    run_tiles(AnyPlanes(network, colour.shape[2]), read, plan, finish, device=device, on_progress=on_progress)


def _float_range(colour: np.ndarray) -> tuple[float, float]:
    """The range that is mapped to [0, 1]: of a float picture that goes beyond it, its own."""
    return unit_range(float(colour.min()), float(colour.max())) if colour.dtype == np.float32 else (0.0, 1.0)


def _row_writer(scale: int, info: PictureInfo, settings: RunSettings, write: WriteRows) -> WriteRows:
    """A function that takes the network's float rows and hands the result's, in the picture's sample type, to `write`."""

    def store(top: int, rows: np.ndarray) -> None:
        write(top, from_unit(rows, info.dtype))

    def store_resized(top: int, rows: np.ndarray) -> None:
        np.clip(rows[..., info.channels :], 0, 1, out=rows[..., info.channels :])  # bicubic overshoots; alpha must not
        store(top, rows)

    width, height = result_size(scale, info, settings)
    source = info.height * scale, info.width * scale
    if source == (height, width):
        return store
    return RowResizer(source, (height, width), info.channels + info.alpha, store_resized).add
