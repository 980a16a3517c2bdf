"""The outputs of a network that has several: kept on disk while tiles run, compared, and written as asked.

The network runs once a tile. Each output's rows go to files as they become final (`restore.images.row_files`), in the
picture's sample type; which output is the result is decided when all are there (`restore.restoration.selection`), from
regions that are read back. So memory holds a row of tiles and a region of all outputs, and the disk, until the end, an
uncompressed picture for each output.

Beside the result may be written candidates, named by their numbers as outputs, and a map of where the heads differ. Heads are
the outputs that are no averages of others. All are finished in a hidden folder before the first one appears under its name.
Axes: (m, H, W, P), m outputs, P planes being the colours and alpha.
"""

from __future__ import annotations

import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hybrid.batch.work import Stages
from hybrid.cards import ModelCard
from hybrid.errors import OutputError
from hybrid.records import Record
from restore.images import PictureInfo, PictureMetadata, PictureWriter, SaveOptions, from_unit, plan_output, to_unit
from restore.images.row_files import RowFiles
from restore.restoration.one_output import Selection, candidate_path
from restore.restoration.record import with_record
from restore.restoration.selection import CRITERION, Box, score_outputs

ROWS = 64
"""Rows that are worked on at a time."""
WHITE = 0.999
"""Part of the pixels that the map of differences shows below white; those beyond are white too."""
MAP_FULL = 65535


Written = tuple[Record, tuple[str, ...], tuple[Path, ...]]
"""The record of a run, what the format cannot carry, and all files that were written."""


@dataclass(frozen=True)
class Observed:
    """The picture that the outputs are of.

    Attributes:
        colour: (H, W, C) in its sample type.
        low, high: What of it is mapped to 0 and 1.
        info: Its facts.
    """

    colour: np.ndarray
    low: float
    high: float
    info: PictureInfo

    def unit(self, values: np.ndarray) -> np.ndarray:
        """Values of the picture's type as float32, `low` to `high` as 0 to 1."""
        return (to_unit(values) - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Ranking:
    """Which outputs are taken; all counted from 0.

    Attributes:
        main: The result; None for the mean of the heads.
        candidates: Those that are saved, the best first, heads before averages.
        scores: Of all outputs, the least being the best; empty where none were needed.
    """

    main: int | None
    candidates: tuple[int, ...]
    scores: tuple[float, ...]


class OutputFiles:
    """All outputs of a picture, as rows on disk.

    Args:
        folder: Where the rows lie; it exists.
        observed: The picture.
        card: Of the network.
        mean: Whether the mean of the heads is kept too.
        map: Whether their standard deviation is.
    """

    def __init__(self, folder: Path, observed: Observed, card: ModelCard, *, mean: bool = False, map: bool = False) -> None:
        info = observed.info
        self.observed, self.heads = observed, list(card.pure_outputs)
        names = [f"output{number}" for number in range(1, card.outputs + 1)]
        planes = info.channels + info.alpha
        self.outputs = [RowFiles(folder, name, info.width, planes, info.dtype) for name in names]
        self.mean = RowFiles(folder, "mean", info.width, planes, info.dtype) if mean else None
        self.deviation = RowFiles(folder, "deviation", info.width, 1, "float32") if map else None

    def add(self, top: int, rows: np.ndarray) -> None:
        """Take rows (m, h, W, P) from `top` on, float32 in the picture's range."""
        for start in range(0, rows.shape[1], ROWS):
            self._add(top + start, rows[:, start : start + ROWS])

    def _add(self, top: int, rows: np.ndarray) -> None:
        observed, info = self.observed, self.observed.info
        for file, values in zip(self.outputs, rows, strict=True):
            file.write(top, 0, from_unit(values, info.dtype))
        if self.mean is not None:
            self.mean.write(top, 0, from_unit(rows[self.heads].mean(0), info.dtype))
        if self.deviation is not None:
            heads = rows[self.heads][..., : info.channels] / (observed.high - observed.low)
            self.deviation.write(top, 0, np.sqrt(heads.var(0).mean(-1, keepdims=True)))

    def chosen(self, main: int | None) -> RowFiles:
        """The rows of an output, or of the mean."""
        if main is None:
            assert self.mean is not None
            return self.mean
        return self.outputs[main]

    def rank(self, selection: Selection) -> Ranking:
        """Decide which outputs are taken."""
        scores: list[float] = []
        if selection.main == "best" or selection.candidates:
            info = self.observed.info
            scores = score_outputs(self._region, info.height, info.width).tolist()
        order = sorted(range(len(scores)), key=lambda place: (place not in self.heads, scores[place]))
        main = int(np.argmin(scores)) if selection.main == "best" else None
        if isinstance(selection.main, int):
            main = selection.main - 1
        return Ranking(main, tuple(order[: selection.candidates]), tuple(scores))

    def _region(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        colour, channels = self.observed.colour[box], self.observed.info.channels
        outputs = np.stack([self.observed.unit(file.read(*box)[..., :channels]) for file in self.outputs])
        return self.observed.unit(colour), outputs


def rows_of(file: RowFiles, height: int) -> Iterator[tuple[int, np.ndarray]]:
    """All rows of a file from top to bottom, as (first row, rows (h, W, P))."""
    for top in range(0, height, ROWS):
        block = file.read(slice(top, min(top + ROWS, height)), slice(0, file.width))
        yield top, block.astype(block.dtype.newbyteorder("="), copy=False)


@contextmanager
def hidden_folder(target: Path) -> Iterator[Path]:
    """A folder beside a result in which to work; gone at the end, whatever happens.

    Raises:
        OutputError: The disk does not take what is written in it.
    """
    folder = target.parent / f".writing-{secrets.token_hex(6)}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    except OSError as error:
        raise OutputError(
            f"{target} cannot be written ({error.strerror or error}).",
            hint="Check the disk's free space and the folder's permissions.",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_several(
    run: Callable[[Callable[[int, np.ndarray], None]], None],
    observed: Observed,
    card: ModelCard,
    target: Path,
    selection: Selection,
    encode: tuple[SaveOptions, PictureMetadata],
    record: Record,
) -> Stages[Written]:
    """Run a network of several outputs, pause, and write what is asked for.

    Args:
        run: Runs the network and hands out rows (m, h, W, P).
        observed, card: The picture, and the facts of the network.
        target: Where the result goes.
        selection: What is asked for.
        encode: How, and what travels along.
        record: Of the run, as far as it is known.

    Returns:
        The record with what was found, and what was written.
    """
    options, metadata = encode
    info = observed.info  # what cannot be written is told before the network runs
    plan_output(target, (info.height, info.width, info.channels), info.dtype, info.alpha, metadata, options)
    with hidden_folder(target) as folder:
        files = OutputFiles(folder, observed, card, mean=selection.main == "mean", map=selection.uncertainty is not None)
        run(files.add)
        yield
        ranking = files.rank(selection)
        record = replace(record, figures=_figures(files, ranking, target, selection))
        finished = [(_write(files.chosen(ranking.main), observed.info, folder, target, encode, record), target)]
        notes = finished[0][0][1]
        for place in ranking.candidates:
            path = candidate_path(target, place + 1)
            finished.append((_write(files.outputs[place], observed.info, folder, path, encode, record), path))
        if selection.uncertainty is not None and files.deviation is not None:
            path, white = selection.uncertainty, _white_of(record)
            finished.append(((_write_map(files.deviation, observed.info, folder, path, white, (options, record)), ()), path))
        written: list[Path] = []
        try:
            for (made, _), path in finished:
                os.replace(made, path)
                written.append(path)
        except BaseException:
            for path in written:
                with suppress(OSError):
                    path.unlink()
            raise
    return record, notes, tuple(written)


def _write(
    file: RowFiles, info: PictureInfo, folder: Path, path: Path, encode: tuple[SaveOptions, PictureMetadata], record: Record
) -> tuple[Path, tuple[str, ...]]:
    """Encode the rows of an output in the hidden folder; returns the file, and what its format cannot carry."""
    options, metadata = encode
    described = with_record(options, replace(record, output=path.name))
    with PictureWriter(
        folder / path.name,
        info.width,
        info.height,
        info.channels,
        alpha=info.alpha,
        dtype=info.dtype,
        metadata=metadata,
        options=described,
    ) as writer:
        for top, rows in rows_of(file, info.height):
            writer.write_rows(top, rows)
    return folder / path.name, writer.notes


def _write_map(
    deviation: RowFiles, info: PictureInfo, folder: Path, path: Path, white: float, told: tuple[SaveOptions, Record]
) -> Path:
    asked, record = told
    made = folder / f"map-{path.name}"
    options = with_record(SaveOptions(format="png", deidentify=asked.deidentify), replace(record, output=path.name))
    with PictureWriter(made, info.width, info.height, 1, dtype="uint16", options=options) as writer:
        for top, rows in rows_of(deviation, info.height):
            writer.write_rows(top, from_unit(rows / np.float32(white), "uint16"))
    return made


def _figures(files: OutputFiles, ranking: Ranking, target: Path, selection: Selection) -> dict[str, object]:
    """What the record says of the outputs; numbers as a user counts, from 1."""
    figures: dict[str, object] = {
        "outputs": len(files.outputs),
        "heads": [place + 1 for place in files.heads],
        "main": "mean" if ranking.main is None else ranking.main + 1,
        "selected": selection.main if isinstance(selection.main, str) else "number",
    }
    if ranking.scores:
        figures |= {"criterion": CRITERION.name, "scores": [float(f"{score:.6g}") for score in ranking.scores]}
    if ranking.candidates:
        figures["candidates"] = {candidate_path(target, place + 1).name: place + 1 for place in ranking.candidates}
    if files.deviation is not None and selection.uncertainty is not None:
        figures["uncertainty"] = {"file": selection.uncertainty.name} | _scale(files.deviation, files.observed.info.height)
    return figures


def _scale(deviation: RowFiles, height: int) -> dict[str, object]:
    """The scale of the map: the value that is white, which leaves `WHITE` of the pixels below it."""
    greatest = total = 0.0
    for _, rows in rows_of(deviation, height):
        greatest, total = max(greatest, float(rows.max())), total + float(rows.sum(dtype=np.float64))
    bins = 2**16
    counts = np.zeros(bins, np.int64)
    for _, rows in rows_of(deviation, height) if greatest > 0 else ():
        counts += np.bincount(np.minimum((rows.ravel() * (bins / greatest)).astype(np.int64), bins - 1), minlength=bins)
    below = int(np.searchsorted(np.cumsum(counts), WHITE * counts.sum())) + 1
    white = greatest * below / bins if greatest > 0 else 1.0
    return {
        "unit": "standard deviation of the heads, as a part of the picture's range; over colours the root mean square",
        "black": 0.0,
        "white": float(f"{white:.6g}"),
        "greatest": float(f"{greatest:.6g}"),
        "mean": float(f"{total / (deviation.width * height):.6g}"),
    }


def _white_of(record: Record) -> float:
    scale = record.figures["uncertainty"]
    assert isinstance(scale, dict)
    white = float(scale["white"])
    return white if math.isfinite(white) and white > 0 else 1.0
