"""Pictures that do not fit the memory: read, run and written in boxes, and resumed after an interruption.

A box of the input goes through the network (`hybrid.tiles.stream`); what is final of its result goes to rows on disk
(`restore.images.row_files`), and from there, tile by tile of the file, into a BigTIFF (`restore.images.tiff_tiles`).
After each row of the network's tiles all of it is brought to disk and noted (`restore.restoration.resumable`). Memory
holds a box at each of these steps, whatever the picture's width and height. Axes: (H, W, P), P planes being the colours
and alpha.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from torch import Tensor

from hybrid.records import Record, record_path, timestamp, write_record
from hybrid.tiles.stream import stream_tiles
from restore.images.interpolation import resize_matrix
from restore.images.metadata import PictureInfo
from restore.images.plan import OutputPlan, SaveOptions, plan_output
from restore.images.regions import RegionReader
from restore.images.row_files import RowFiles, StripFiles
from restore.images.tiff import exif_directories
from restore.images.tiff_tiles import TILE, TiledTiff, encode_tile
from restore.images.values import fill_transparent, from_unit
from restore.models.base import RestorationNetwork
from restore.restoration.final_size import resize_note
from restore.restoration.plan import (
    FilePlan,
    Outcome,
    RunSettings,
    plan_streamed,
    result_size,
    tile_notes,
    to_rows,
    to_tensor,
    unit_range,
)
from restore.restoration.planes import AnyPlanes
from restore.restoration.record import make_record, with_record
from restore.restoration.resumable import PICTURE, Part, part_folder, resumable

SCAN = 1024  # edge of the boxes in which the range of a picture of floats is found
AT_WORK = 16  # tiles of the file that are compressed at a time


def restore_streamed(
    network: RestorationNetwork,
    source: Path,
    target: Path,
    settings: RunSettings,
    *,
    notes: tuple[str, ...] = (),
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Outcome:
    """Restore a picture file to a tiled BigTIFF, or go on where an earlier run of the same request was broken off.

    The file is the same, byte for byte, however often it was broken off; it depends on the tile plan, which a run that is
    resumed takes over. Arguments and errors as of `restore.restoration.run.restore_file`.
    """
    clock, folder = time.perf_counter(), part_folder(target)
    reader = RegionReader(source, folder)
    size = result_size(network.card.scale, reader.info, settings)
    if size != (made := tuple(side * network.card.scale for side in (reader.info.width, reader.info.height))):
        notes = (*notes, resize_note((made[0], made[1]), size))
    record = make_record(network, source, target, settings.task, "", timestamp(), notes)
    with resumable(target, _request(record, network, settings)) as part:
        plan = plan_streamed(network, reader.info, settings, part.progress.tile)
        resumed = _greeting(part, plan)
        for note in (f"{target.name}: {plan.describe()}.", *resumed):
            if on_note is not None:
                on_note(note)
        record = replace(record, tiles=plan.describe(), started=part.progress.started)
        output = _output(reader, target, size, with_record(settings.save, record))
        seconds = _run(network, reader, plan, part, output, (clock, on_progress))
        said = (*reader.metadata.notes, *output.notes, *tile_notes(network.card, plan.tiles))
        write_record(replace(record, seconds=round(seconds, 3), notes=(*record.notes, *said, *resumed)), target)
        try:
            part.publish()
        except BaseException:
            record_path(target).unlink(missing_ok=True)  # no record without its result
            raise
    return Outcome(source, target, size, seconds, plan.describe(), said)


def _run(
    network: RestorationNetwork,
    reader: RegionReader,
    plan: FilePlan,
    part: Part,
    output: OutputPlan,
    watch: tuple[float, Callable[[int, int], None] | None],
) -> float:
    """Run what is left of a part and finish its picture; returns the seconds that it took in all."""
    (clock, on_progress), before, tiles = watch, part.progress, plan.tiles
    if before.tile == 0:
        part.keep(replace(before, tile=plan.side, value_range=_value_range(reader)))
    low, high = part.progress.value_range or (0.0, 1.0)
    channels = reader.info.channels
    strips = StripFiles(part.folder, tiles, channels + reader.info.alpha)
    writer = _BoxWriter(part, reader.info, tiles.scale, output)

    def read(box: tuple[slice, ...]) -> Tensor:
        colour, alpha = reader.read(*box)
        return to_tensor(colour if alpha is None else fill_transparent(colour, alpha), alpha, low, high)

    def write(top: int, left: int, block: Tensor) -> None:
        writer.write(top, left, to_rows(block, channels, low, high))

    def keep(row: int) -> None:
        done = writer.encode(tiles.supports[0][row][0] if row < tiles.grid[0] else tiles.shape[0] * tiles.scale)
        strips.sync(row)
        seconds = before.seconds + time.perf_counter() - clock
        part.keep(replace(part.progress, rows=row, tiles=done, seconds=seconds))
        strips.drop(row - 1)  # what is deleted is not needed from here on, wherever the run is broken off
        writer.drop()

    try:
        stream_tiles(
            AnyPlanes(network, channels),
            read,
            tiles,
            write,
            strips,
            first_row=before.rows,
            on_row=keep,
            on_progress=on_progress,
            device=next(network.parameters()).device,
        )
        writer.finish()
    finally:
        writer.close()
    return before.seconds + time.perf_counter() - clock


class _BoxWriter:
    """From boxes of the network's result to tiles of the file, by way of rows on disk, and of a resize where one is asked for."""

    def __init__(self, part: Part, info: PictureInfo, scale: int, output: OutputPlan) -> None:
        self.info, self.output = info, output
        source, target = (info.height * scale, info.width * scale), (output.height, output.width)
        self.resized = source != target
        pairs = zip(source, target, strict=True) if self.resized else ()
        self.matrices = [resize_matrix(*sides, "bicubic", True) for sides in pairs]
        dtype = "float32" if self.resized else info.dtype
        self.rows = RowFiles(part.folder, "rows", source[1], info.channels + info.alpha, dtype)
        self.file = TiledTiff(part.folder / PICTURE, output, part.progress.tiles)
        self.done = part.progress.tiles
        self.profile = part.folder / "profile" if output.cmyk else None
        if self.profile is not None:
            self.profile.write_bytes(output.metadata.cmyk_icc or b"")

    def write(self, top: int, left: int, rows: np.ndarray) -> None:
        """Take a box (h, w, planes) of the network's result, float32 in the picture's range."""
        self.rows.write(top, left, rows if self.resized else from_unit(rows, self.info.dtype))

    def encode(self, end: int) -> int:
        """Append the rows of the file's tiles that need no row of the network's from `end` on; returns tiles in all."""
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            while self.done < self.file.across * self.file.down and self._reach(0, self._span(0, self._row)).stop <= end:
                across = range(self.file.across)
                for start in across[::AT_WORK]:
                    for tile in pool.map(self._encoded, across[start : start + AT_WORK]):
                        self.file.append(tile)
                self.done += self.file.across
        self.rows.sync()
        self.file.sync()
        return self.done

    def drop(self) -> None:
        """Delete the rows that all tiles still to come can do without."""
        self.rows.drop(self._reach(0, self._span(0, self._row)).start if self._row < self.file.down else None)

    def finish(self) -> None:
        """Complete the file."""
        self.file.finish()

    def close(self) -> None:
        """Close the file, finished or not."""
        self.file.close()

    @property
    def _row(self) -> int:
        return self.done // self.file.across

    def _encoded(self, column: int) -> bytes:
        """The tile of that column in the row of tiles that is next."""
        spans = self._span(0, self._row), self._span(1, column)
        reach = self._reach(0, spans[0]), self._reach(1, spans[1])
        block = self.rows.read(*reach)
        if self.resized:
            block = from_unit(self._resize(block, spans, reach), self.info.dtype)
        return encode_tile(block, self.output, self.profile)

    def _resize(self, block: np.ndarray, spans: tuple[slice, slice], reach: tuple[slice, slice]) -> np.ndarray:
        """As `restore.restoration.final_size.RowResizer`: across, then down."""
        height, width, planes = block.shape
        down, across = (matrix[span, near] for matrix, span, near in zip(self.matrices, spans, reach, strict=True))
        turned = np.ascontiguousarray(block.transpose(1, 0, 2)).reshape(width, height * planes)
        narrow = (across @ turned).reshape(-1, height, planes).transpose(1, 0, 2)
        rows: np.ndarray = (down @ np.ascontiguousarray(narrow).reshape(height, -1)).reshape(-1, across.shape[0], planes)
        np.clip(rows[..., self.info.channels :], 0, 1, out=rows[..., self.info.channels :])
        return rows

    def _span(self, axis: int, place: int) -> slice:
        """Pixels of the file that a tile of it holds along an axis."""
        length = (self.output.height, self.output.width)[axis]
        return slice(place * TILE, min((place + 1) * TILE, length))

    def _reach(self, axis: int, span: slice) -> slice:
        """Pixels of the network's result that pixels of the file are made of."""
        if not self.resized:
            return span
        matrix: csr_array = self.matrices[axis]
        near = matrix.indices[matrix.indptr[span.start] : matrix.indptr[span.stop]]
        return slice(int(near.min()), int(near.max()) + 1)


def _output(reader: RegionReader, target: Path, size: tuple[int, int], options: SaveOptions) -> OutputPlan:
    info = reader.info
    output = plan_output(target, (size[1], size[0], info.channels), info.dtype, info.alpha, reader.metadata, options)
    try:
        if output.metadata.exif:
            exif_directories(output.metadata.exif, *size)
    except ValueError:  # told now, and not when all is done
        whole = replace(output.metadata, exif=None)
        return replace(output, metadata=whole, notes=(*output.notes, "The EXIF block is damaged and was left out."))
    return output


def _request(record: Record, network: RestorationNetwork, settings: RunSettings) -> dict[str, object]:
    """What the bytes of a result depend on, by the words that tell a user which of it is another."""
    facts = record.to_dict()
    save, card = settings.save, network.card
    return {
        "the input": [facts["input"], facts["input_sha256"]],
        "the network": [facts[key] for key in ("family", "title", "weights", "weights_sha256", "weights_origin")]
        + [card.scale, card.overlap, card.multiple],
        "the device or precision": [facts["device"], facts["precision"]],
        "the settings": [
            settings.tile,
            settings.memory,
            None if settings.final is None else asdict(settings.final),
            save.format,
            save.deidentify,
            facts["output"],
            facts["notes"],
        ],
        "the software": facts["versions"],
    }


def _greeting(part: Part, plan: FilePlan) -> tuple[str, ...]:
    """What is to be said of an earlier run."""
    if part.discarded:
        return (f"A part that an earlier run left was deleted and the work begun anew: {', '.join(part.discarded)} changed.",)
    if part.progress.rows:
        return (f"Resumed after {part.progress.rows} of {plan.tiles.grid[0]} rows of tiles.",)
    return ()


def _value_range(reader: RegionReader) -> tuple[float, float] | None:
    """The range of a picture of floats that is mapped to [0, 1]; None for integers, whose range is known."""
    if reader.info.dtype != "float32":
        return None
    low, high = np.inf, -np.inf
    for top in range(0, reader.info.height, SCAN):
        for left in range(0, reader.info.width, SCAN):
            box = slice(top, min(top + SCAN, reader.info.height)), slice(left, min(left + SCAN, reader.info.width))
            colour, _ = reader.read(*box)
            low, high = float(np.minimum(low, colour.min())), float(np.maximum(high, colour.max()))
    return unit_range(low, high)
