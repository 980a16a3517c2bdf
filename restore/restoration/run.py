"""Restoration of pictures, larger or at their own size: read, plan, run over tiles, check, write with a record.

    network = restore.load_model("hat", scale=4, precision="auto")
    outcome = restore_file(network, Path("input.png"), Path("output.png"))

or in memory: `restore_picture(network, read_picture("input.png"))`. What is too large for the memory is streamed by
`restore.restoration.gigapixel`; of networks with several outputs, `restore.restoration.candidates` writes what is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import Tensor

from hybrid.batch.work import Listener, Stages, Stopwatch, finish
from hybrid.errors import RequestError
from hybrid.memory import release_memory
from hybrid.records import Record, timestamp, write_record
from hybrid.tiles.run import TilePlan, run_tiles
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
from restore.restoration.candidates import Observed, OutputFiles, Written, rows_of, write_several
from restore.restoration.final_size import RowResizer, resize_note
from restore.restoration.gigapixel import restore_streamed
from restore.restoration.one_output import OneOutput, Selection, as_asked
from restore.restoration.plan import (
    FilePlan,
    Outcome,
    RunSettings,
    check_size,
    describe_plan,
    expected_seconds,
    plan_file,
    plan_picture,
    result_size,
    seconds_per_pixel,
    tile_notes,
    to_rows,
    to_tensor,
    unit_range,
)
from restore.restoration.planes import AnyPlanes
from restore.restoration.record import check_target, make_record, with_record

__all__ = [
    "FilePlan",
    "Outcome",
    "RunSettings",
    "Selection",
    "can_wait",
    "check_size",
    "check_target",
    "describe_plan",
    "expected_seconds",
    "plan_file",
    "plan_picture",
    "restore_file",
    "restore_picture",
    "result_size",
    "seconds_per_pixel",
]

BESIDE = 128 * 2**20
"""Bytes of samples up to which a picture is read, and its result encoded, beside the computing of others."""
STREAMED = "Too large to compare outputs: the picture is streamed, and the mean of the outputs was taken."

OnProgress = Callable[[int, int], None]
WriteRows = Callable[[int, np.ndarray], None]


def restore_picture(
    network: RestorationNetwork,
    picture: Picture,
    settings: RunSettings | None = None,
    *,
    on_progress: OnProgress | None = None,
) -> Picture:
    """Restore a picture in memory; colour, alpha, sample type and metadata stay of their kind.

    Of several outputs, the one that `settings.selection.main` says; the rest of the selection is for files.
    """
    settings = settings or RunSettings()
    network = as_asked(network, Selection(settings.selection.main))
    height, width, channels = picture.colour.shape
    dtype = picture.colour.dtype
    info = PictureInfo(Path(), width, height, channels, picture.alpha is not None, dtype.name, "", "")
    size = _size(network, info, settings)
    result = np.empty((size[1], size[0], channels + info.alpha), dtype)

    def keep(top: int, rows: np.ndarray) -> None:
        result[top : top + len(rows)] = rows

    plan, observed = plan_picture(network, info, settings), _observe(picture, info)
    if network.card.outputs == 1:
        _run(network, picture, observed, plan, _row_writer(network.card.scale, info, settings, keep), on_progress)
    else:
        with TemporaryDirectory(prefix="restore-") as folder:
            files = OutputFiles(Path(folder), observed, network.card)
            _run(network, picture, observed, plan, files.add, on_progress)
            for top, rows in rows_of(files.chosen(files.rank(Selection()).main), height):
                keep(top, rows)
    alpha = np.ascontiguousarray(result[..., channels]) if picture.alpha is not None else None
    return Picture(np.ascontiguousarray(result[..., :channels]), alpha, picture.metadata)


def restore_file(
    network: RestorationNetwork,
    source: Path,
    target: Path,
    settings: RunSettings | None = None,
    *,
    notes: tuple[str, ...] = (),
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Outcome:
    """Restore a picture file; the result streams to disk, and its record lies beside it as `<target>.json`.

    Args:
        network: From `restore.load_model`.
        source: Picture to read; never changed.
        target: File to write, whole or not at all. A run that is large enough to be streamed (`plan_file`) leaves
            `<target>.part` when it is broken off, and goes on from there when it is called again.
        settings: Tiles, memory, encoding, and what becomes of several outputs.
        notes: What the record must say besides, such as a network that stood in for another.
        on_progress: Called with tiles done and tiles in all.
        on_note: Called with what should be known before the end: that the run is streamed, or resumed.

    Raises:
        InputError: The picture cannot be read, or is too large to be opened unasked.
        OutputError: The result cannot be written.
        RequestError: The target is the source, or its format cannot hold the result, or the network lacks what is asked.
        ResourceError: It does not fit the memory.
    """
    stages = file_stages(network, source, target, settings or RunSettings(), notes=notes)
    return finish(stages, Listener(on_progress, on_note))


def file_stages(
    network: RestorationNetwork, source: Path, target: Path, settings: RunSettings, *, notes: tuple[str, ...] = ()
) -> Stages[Outcome]:
    """What `restore_file` does, with pauses before and after the network runs, where reading and writing need little memory.

    Args:
        network, source, target, settings, notes: As of `restore_file`.

    Raises:
        HybridError: As `restore_file`.
    """
    started, clock = timestamp(), Stopwatch()
    network = as_asked(network, settings.selection)
    check_target(source, target, settings, outputs=network.card.outputs)
    info = probe(source)
    size = _size(network, info, settings)
    check_size(info, target, settings)
    apart = can_wait(info, size, settings.memory)
    most = settings.max_pixels or MAX_PIXELS
    picture = read_picture(source, max_pixels=most) if apart else None
    with clock.stopped():
        tell = yield
    plan = plan_file(network, info, target, settings)
    if plan.streamed:
        if network.card.outputs > 1:
            network, notes = OneOutput(network, "mean"), (*notes, STREAMED)

        def say(note: str) -> None:
            tell.say(note, "dim")

        return restore_streamed(network, source, target, settings, notes=notes, on_progress=tell.progress, on_note=say)
    if picture is None:
        picture = read_picture(source, max_pixels=most)
    if size != (made := (info.width * network.card.scale, info.height * network.card.scale)):
        notes = (*notes, resize_note(made, size))
    record = make_record(network, source, target, settings.task, plan.describe(), started, notes)
    with closing(_write(network, picture, plan.tiles, target, settings, record, tell.progress)) as writing:
        next(writing)
        if apart:
            with clock.stopped():
                yield
        record, said, written = finish(writing, tell)
    said = (*picture.metadata.notes, *said, *tile_notes(network.card, plan.tiles))
    seconds = clock.seconds
    try:
        write_record(replace(record, seconds=round(seconds, 3), notes=(*record.notes, *said)), target)
    except BaseException:
        for path in written:
            path.unlink(missing_ok=True)  # no result without its record
        raise
    return Outcome(source, target, size, seconds, plan.describe(), said, record.figures)


def can_wait(info: PictureInfo, size: tuple[int, int], memory: int | None) -> bool:
    """Whether a picture may lie in memory, and its result be encoded, while the network computes others."""
    samples = (info.channels + info.alpha) * np.dtype(info.dtype).itemsize
    return memory is None and samples * max(info.width * info.height, size[0] * size[1]) <= BESIDE


def _write(
    network: RestorationNetwork,
    picture: Picture,
    plan: TilePlan,
    target: Path,
    settings: RunSettings,
    record: Record,
    on_progress: OnProgress,
) -> Stages[Written]:
    """Run, pause, and write."""
    height, width, channels = picture.colour.shape
    info = PictureInfo(target, width, height, channels, picture.alpha is not None, picture.colour.dtype.name, "", "")
    observed = _observe(picture, info)

    def run(write: WriteRows) -> None:
        _run(network, picture, observed, plan, write, on_progress)
        release_memory()  # the encoder's buffers take the place of the activations, not one beside the other

    if network.card.outputs > 1:
        encode = settings.save, picture.metadata
        return (yield from write_several(run, observed, network.card, target, settings.selection, encode, record))
    scale = network.card.scale
    with PictureWriter(
        target,
        *result_size(scale, info, settings),
        channels,
        alpha=info.alpha,
        dtype=info.dtype,
        metadata=picture.metadata,
        options=with_record(settings.save, record),
    ) as writer:
        run(_row_writer(scale, info, settings, writer.write_rows))
        yield
    return record, writer.notes, (target,)


def _run(
    network: RestorationNetwork,
    picture: Picture,
    observed: Observed,
    plan: TilePlan,
    write: WriteRows,
    on_progress: OnProgress | None,
) -> None:
    """Run the planned tiles; `write` gets finished rows ([m,] h, W, planes), float32 in the picture's range."""
    colour, alpha, low, high = observed.colour, picture.alpha, observed.low, observed.high

    def read(box: tuple[slice, ...]) -> Tensor:
        return to_tensor(colour[box], None if alpha is None else alpha[box], low, high)

    def finish(top: int, block: Tensor) -> None:
        write(top, to_rows(block, colour.shape[2], low, high))

    device = next(network.parameters()).device
    run_tiles(AnyPlanes(network, colour.shape[2]), read, plan, finish, device=device, on_progress=on_progress)


def _observe(picture: Picture, info: PictureInfo) -> Observed:
    """The picture as the network sees it: something visible below transparency, and the range that is mapped to [0, 1]."""
    colour = picture.colour if picture.alpha is None else fill_transparent(picture.colour, picture.alpha)
    return Observed(colour, *_float_range(colour), info)


def _size(network: RestorationNetwork, info: PictureInfo, settings: RunSettings) -> tuple[int, int]:
    """Width and height of the result.

    Raises:
        RequestError: Several outputs are to be resized.
    """
    size = result_size(network.card.scale, info, settings)
    if network.card.outputs > 1 and size != (info.width, info.height):
        raise RequestError("Several outputs keep the picture's size.", hint="Choose one of them, or resize the result.")
    return size


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
