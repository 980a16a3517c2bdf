"""A tiled BigTIFF that grows tile by tile, and goes on growing after its writer was broken off.

Compressed tiles are appended to the file in order, and their sizes to an index beside it; the directory, which knows where
each tile lies, comes last. So memory holds a tile, and what is on disk is what the finished file will hold.
Sources: TIFF 6.0, sections 14 (predictor) and 15 (tiles); Adobe Photoshop TIFF Technical Note 3 (predictor of floats).
"""

from __future__ import annotations

import os
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyvips

from restore.images.metadata import PictureMetadata
from restore.images.plan import OutputPlan
from restore.images.tiff import (
    BYTE,
    IPTC,
    LONG,
    LONG8,
    PHOTOMETRIC,
    RATIONAL,
    SHORT,
    UNDEFINED,
    Directory,
    Entry,
    big_header,
    exif_directories,
    layout_tags,
    numbers,
    pack_big_directory,
)

TILE = 256
"""Edge of a tile: what map and slide viewers are used to, and a multiple of 16, as the format asks for."""
LEVEL = 6  # of zlib
HEADER = len(big_header(0))
XMP, ICC = 700, 34675


class TiledTiff:
    """Appends tiles to a file, which is a BigTIFF once `finish` has been called.

    Args:
        path: The file; what is there from a run before is taken up.
        plan: What is written.
        done: Tiles to take up. Those beyond are cut off.

    Attributes:
        across: Tiles in a row.
        down: Rows of tiles.
    """

    def __init__(self, path: Path, plan: OutputPlan, done: int) -> None:
        self.path, self.index, self.plan = path, path.with_name(path.name + "-index"), plan
        self.across, self.down = -(-plan.width // TILE), -(-plan.height // TILE)
        for file, size in ((self.index, 8 * done), (path, 0)):
            file.touch(mode=0o600)
            if file.stat().st_size < size:
                raise OSError(0, f"{file.name} is cut short")
        os.truncate(self.index, 8 * done)
        end = int(sum(_places(self._sizes())[1][-1:])) or HEADER
        if done and path.stat().st_size < end:
            raise OSError(0, f"{path.name} is cut short")
        os.truncate(path, end)
        self._pixels, self._list = path.open("r+b"), self.index.open("ab")
        self._pixels.seek(0)
        self._pixels.write(big_header(0))
        self._pixels.seek(0, os.SEEK_END)

    def append(self, tile: bytes) -> None:
        """Add the next tile, row after row from left to right, as `encode_tile` made it."""
        self._list.write(np.uint64(len(tile)).tobytes())
        self._pixels.write(tile + b"\0" * (len(tile) % 2))  # a tile starts at an even place

    def sync(self) -> None:
        """Bring all tiles to the disk itself, where they outlive a loss of power."""
        for file in (self._pixels, self._list):
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files, so that they may be deleted."""
        self._pixels.close()
        self._list.close()

    def finish(self) -> None:
        """Write the directory and let the header point there.

        Raises:
            ValueError: Tiles are missing.
        """
        self.sync()
        sizes = self._sizes()
        if len(sizes) != self.across * self.down:
            raise ValueError(f"{len(sizes)} tiles of {self.across * self.down} were written")
        starts, ends = _places(sizes)
        start = int(ends[-1]) + -int(ends[-1]) % 8
        self._pixels.seek(start)
        exif = self.plan.metadata.exif
        parts = exif_directories(exif, self.plan.width, self.plan.height) if exif else ({}, {}, {})
        self._pixels.write(pack_big_directory(_tags(self.plan, starts, sizes), start, parts))
        self._pixels.seek(0)
        self._pixels.write(big_header(start))
        self.sync()
        self.close()

    def _sizes(self) -> np.ndarray:
        return np.fromfile(self.index, "<u8")


def encode_tile(rows: np.ndarray, plan: OutputPlan, profile: Path | None = None) -> bytes:
    """One tile, compressed.

    Args:
        rows: (h, w, samples) of the file's sample type, at most `TILE` each way: smaller at the right and lower border.
        plan: What is written.
        profile: File with the CMYK profile to convert to, where `plan.cmyk`.
    """
    if profile is not None:
        rows = _to_cmyk(rows, profile)
    height, width, samples = rows.shape
    rows = np.pad(rows, ((0, TILE - height), (0, TILE - width), (0, 0)), "edge")  # compresses better than zeros
    if rows.dtype.kind == "f":
        planes = rows.astype(">f4").view(np.uint8).reshape(TILE, TILE * samples, 4).transpose(0, 2, 1)  # highest bytes first
        rows = np.ascontiguousarray(planes).reshape(TILE, TILE * 4, samples)
    differences = rows.copy()
    differences[:, 1:] -= rows[:, :-1]
    return zlib.compress(differences.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes(), LEVEL)


def _to_cmyk(rows: np.ndarray, profile: Path) -> np.ndarray:
    depth = 16 if rows.dtype == np.uint16 else 8
    image = pyvips.Image.new_from_array(np.ascontiguousarray(rows), interpretation="rgb16" if depth == 16 else "srgb")
    how = {"input_profile": "srgb", "intent": "relative", "black_point_compensation": True, "depth": depth}
    return np.asarray(image.icc_transform(str(profile), **how).numpy())


def _places(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where tiles of these sizes start, and where what follows each starts."""
    ends = HEADER + np.cumsum(sizes + sizes % 2, dtype=np.uint64)
    return np.concatenate((np.array([HEADER], np.uint64), ends))[: len(sizes)], ends


def _tags(plan: OutputPlan, starts: np.ndarray, sizes: np.ndarray) -> Directory:
    dtype = np.dtype(plan.dtype)
    samples = 4 if plan.cmyk else plan.channels + plan.alpha
    colours = 4 if plan.cmyk else plan.channels
    return (
        layout_tags(plan.width, plan.height, samples, colours, dtype)
        | {
            259: numbers(SHORT, [8]),  # deflate
            PHOTOMETRIC: numbers(SHORT, [{1: 1, 3: 2, 4: 5}[colours]]),
            274: numbers(SHORT, [1]),  # row 0 is the top
            284: numbers(SHORT, [1]),  # samples beside each other
            317: numbers(SHORT, [3 if dtype.kind == "f" else 2]),
            322: numbers(LONG, [TILE]),
            323: numbers(LONG, [TILE]),
            324: numbers(LONG8, starts),
            325: numbers(LONG, sizes),
        }
        | _resolution(plan.metadata)
        | _blocks(plan)
    )


def _resolution(metadata: PictureMetadata) -> Directory:
    """Dots per inch; nothing where none are known."""
    if metadata.dpi is None:
        return {}
    x, y = (Fraction(value).limit_denominator(1000) for value in metadata.dpi)
    return {
        282: Entry(RATIONAL, 1, np.array([x.numerator, x.denominator], "<u4").tobytes()),
        283: Entry(RATIONAL, 1, np.array([y.numerator, y.denominator], "<u4").tobytes()),
        296: numbers(SHORT, [2]),
    }


def _blocks(plan: OutputPlan) -> Directory:
    metadata = plan.metadata
    icc = metadata.cmyk_icc if plan.cmyk else metadata.icc
    blocks = {XMP: (BYTE, metadata.xmp), IPTC: (UNDEFINED, metadata.iptc), ICC: (UNDEFINED, icc)}
    return {tag: Entry(kind, len(block), block) for tag, (kind, block) in blocks.items() if block}
