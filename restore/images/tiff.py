"""The little of TIFF 6.0 and BigTIFF that libvips does not do: palettes told apart, EXIF carried, a file that grows by rows.

A directory is a list of records (tag, type, count, field); the field holds the value where it fits, else its offset.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

BYTE, SHORT, LONG, RATIONAL, UNDEFINED, LONG8, IFD8 = 1, 3, 4, 5, 7, 16, 18
# Bytes of one value by type number, and the unit within it that byte order applies to (TIFF 6.0, section 2; BigTIFF).
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
UNITS = {3: 2, 4: 4, 5: 4, 8: 2, 9: 4, 10: 4, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}

PHOTOMETRIC, PALETTE = 262, 3
TILE_WIDTH = 322
EXIF_POINTER, GPS_POINTER, INTEROPERABILITY_POINTER = 0x8769, 0x8825, 0xA005
PIXEL_X, PIXEL_Y = 0xA002, 0xA003
IPTC = 33723
# Description, make, model, software, date, artist, copyright, the five Windows texts: nothing about the pixels' layout.
DESCRIPTIVE = {270, 271, 272, 305, 306, 315, 33432, *range(0x9C9B, 0x9CA0)}
DAMAGE = (struct.error, ValueError, OverflowError)
"""What reading a damaged file ends in; the last from offsets of BigTIFF that no file can have."""
LARGEST_VALUE = 16 * 2**20  # bytes of one value in a directory; more is taken for damage


@dataclass(frozen=True)
class Entry:
    """One value of a directory, its `data` in little-endian byte order."""

    kind: int
    count: int
    data: bytes


Directory = dict[int, Entry]
Record = tuple[int, int, int, bytes]


@dataclass(frozen=True)
class Layout:
    """Byte order ("<" or ">") and size of a TIFF file's fields, and where its first directory starts."""

    order: str
    big: bool
    first: int

    @property
    def count(self) -> struct.Struct:
        """The number of entries before a directory."""
        return struct.Struct(self.order + ("Q" if self.big else "H"))

    @property
    def record(self) -> struct.Struct:
        """An entry: tag, type, number of values, and the values or their place."""
        return struct.Struct(self.order + ("HHQ8s" if self.big else "HHI4s"))

    @property
    def offset(self) -> struct.Struct:
        """A place in the file."""
        return struct.Struct(self.order + ("Q" if self.big else "I"))


def is_palette_tiff(path: Path) -> bool:
    """Whether the first picture of a TIFF file is stored through a colour map. False for a damaged directory."""
    entry = _first_value(path, PHOTOMETRIC)
    return entry is not None and entry.data[:2] == struct.pack("<H", PALETTE)


def is_tiled_tiff(path: Path) -> bool:
    """Whether the first picture of a TIFF file is stored in tiles. False for a damaged directory."""
    return _first_value(path, TILE_WIDTH) is not None


def _first_value(path: Path, tag: int) -> Entry | None:
    try:
        with path.open("rb") as file:
            layout = _layout(file)
            return _read(file, layout, layout.first, {tag}).get(tag)
    except DAMAGE:
        return None


def first_records(path: Path) -> tuple[Layout, list[Record]]:
    """Layout of a TIFF file and the records of its first directory.

    Raises:
        One of `DAMAGE`: It is damaged.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        layout = _layout(file)
        return layout, _raw_records(file, layout, layout.first)


def exif_from_tiff(path: Path) -> bytes | None:
    """Descriptive tags, EXIF and GPS directories of a TIFF file as an EXIF block; None if it has none or they are damaged."""
    try:
        with path.open("rb") as file:
            layout = _layout(file)
            main = _read(file, layout, layout.first, DESCRIPTIVE | {EXIF_POINTER, GPS_POINTER})
            parts = _follow(file, layout, main)
    except DAMAGE:
        return None
    return _pack_exif(*parts) if any(parts) else None


def attach_blocks(path: Path, exif: bytes | None, iptc: bytes | None, width: int, height: int) -> None:
    """Add an EXIF block's tags and an IPTC block to a little-endian, one-page TIFF file by a new directory at its end.

    Values move, so maker notes that count their offsets from the start of the block cannot be read on by all programs.

    Raises:
        ValueError: The block or the file is damaged.
        OSError: The file cannot be written.
    """
    main, details, places = exif_directories(exif, width, height) if exif else ({}, {}, {})
    if iptc:
        main = main | {IPTC: Entry(UNDEFINED, len(iptc), iptc)}
    try:
        with path.open("r+b") as file:
            _append(file, main, details, places)
    except (struct.error, OverflowError) as error:
        raise ValueError("The file is damaged.") from error


def exif_directories(exif: bytes, width: int, height: int) -> tuple[Directory, Directory, Directory]:
    """Descriptive, EXIF and GPS directories of an EXIF block, for a picture of that size.

    Raises:
        ValueError: The block is damaged.
    """
    block = BytesIO(exif.removeprefix(b"Exif\0\0"))
    try:
        layout = _layout(block)
        main = _read(block, layout, layout.first, DESCRIPTIVE | {EXIF_POINTER, GPS_POINTER})
        main, details, places = _follow(block, layout, main)
    except (struct.error, OverflowError) as error:
        raise ValueError("The EXIF block is damaged.") from error
    for tag, value in ((PIXEL_X, width), (PIXEL_Y, height)):
        if tag in details:
            details[tag] = Entry(LONG, 1, struct.pack("<I", value))
    return main, details, places


def numbers(kind: int, values: Sequence[int] | np.ndarray) -> Entry:
    """A value of a directory that holds unsigned integers, (n,)."""
    return Entry(kind, len(values), np.asarray(values, f"<u{SIZES[kind]}").tobytes())


def pack_big_directory(tags: Directory, start: int, exif: tuple[Directory, Directory, Directory] = ({}, {}, {})) -> bytes:
    """Bytes of a little-endian BigTIFF directory that will lie at `start`, with those that an EXIF block adds."""
    main, details, places = exif
    return _pack_tree(Layout("<", big=True, first=start), [], start, (main | tags, details, places))


def scratch_header(width: int, height: int, samples: int, dtype: np.dtype) -> bytes:
    """Start of an uncompressed BigTIFF file; the rows, little-endian and top to bottom, are simply appended to it.

    libvips reads such a file strip by strip, while it maps a headerless file into memory as a whole.
    """
    row = width * samples * dtype.itemsize
    rows_per_strip = min(height, max(1, 2**16 // row))
    colours = 3 if samples >= 3 else 1
    tops = np.arange(0, height, rows_per_strip, dtype=np.uint64)
    strip_offsets = row * tops
    tags = layout_tags(width, height, samples, colours, dtype) | {
        259: numbers(SHORT, [1]),  # no compression
        PHOTOMETRIC: numbers(SHORT, [2 if colours == 3 else 1]),
        278: numbers(LONG, [rows_per_strip]),
        279: numbers(LONG8, row * np.minimum(rows_per_strip, height - tops)),
    }

    def header(first_row: int) -> bytes:
        return big_header(16) + pack_big_directory(tags | {273: numbers(LONG8, first_row + strip_offsets)}, 16)

    return header(len(header(0)))


def big_header(directory: int) -> bytes:
    """The 16 bytes that a little-endian BigTIFF file begins with; its first directory lies at `directory`."""
    return b"II" + struct.pack("<HHHQ", 43, 8, 0, directory)


def layout_tags(width: int, height: int, samples: int, colours: int, dtype: np.dtype) -> Directory:
    """Tags on the size and on samples beside each other; those beyond the colours are alpha, not premultiplied."""
    tags = {
        256: numbers(LONG, [width]),
        257: numbers(LONG, [height]),
        258: numbers(SHORT, [8 * dtype.itemsize] * samples),
        277: numbers(SHORT, [samples]),
        339: numbers(SHORT, [3 if dtype.kind == "f" else 1] * samples),
    }
    return tags | {338: numbers(SHORT, [2] * (samples - colours))} if samples > colours else tags


def _layout(file: BinaryIO) -> Layout:
    file.seek(0)
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        raise ValueError("This is no TIFF structure.")
    big = struct.unpack_from(order + "H", start, 2)[0] == 43
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), start, 8 if big else 4)
    return Layout(order, big, first)


def _raw_records(file: BinaryIO, layout: Layout, position: int) -> list[Record]:
    """Records (tag, type, count, field) of the directory at `position`, their fields as stored."""
    _seek(file, position)
    (count,) = layout.count.unpack(file.read(layout.count.size))
    if count > 2**16:
        raise ValueError("A TIFF directory of more than 65536 entries.")
    stored = file.read(layout.record.size * count)
    return [layout.record.unpack_from(stored, layout.record.size * index) for index in range(count)]


def _seek(file: BinaryIO, position: int) -> None:
    """Go to a place that the file names; the system says no to some that no file reaches, in words that vary."""
    if position > file.seek(0, 2):
        raise ValueError(f"Nothing lies at byte {position} of the file.")
    file.seek(position)


def _read(file: BinaryIO, layout: Layout, position: int, wanted: set[int] | None = None) -> Directory:
    """Values of the directory at `position`: those with `wanted` tags, or all."""
    directory = {}
    for tag, kind, count, field in _raw_records(file, layout, position):
        if kind not in SIZES or (wanted is not None and tag not in wanted):
            continue
        size = SIZES[kind] * count
        if size > LARGEST_VALUE:
            raise ValueError(f"TIFF tag {tag} claims {size} bytes.")
        if size <= len(field):
            data = field[:size]
        else:
            _seek(file, layout.offset.unpack(field)[0])
            data = file.read(size)
            if len(data) < size:
                raise ValueError(f"TIFF tag {tag} is cut short.")
        if layout.order == ">" and kind in UNITS:
            data = np.frombuffer(data, f">u{UNITS[kind]}").astype(f"<u{UNITS[kind]}").tobytes()
        directory[tag] = Entry(kind, count, data)
    return directory


def _follow(file: BinaryIO, layout: Layout, main: Directory) -> tuple[Directory, Directory, Directory]:
    """Descriptive, EXIF and GPS directories, the latter two read through their pointers in `main`."""
    pointed = []
    for pointer in (EXIF_POINTER, GPS_POINTER):
        entry = main.pop(pointer, None)
        pointed.append(_read(file, layout, int.from_bytes(entry.data, "little")) if entry else {})
    pointed[0].pop(INTEROPERABILITY_POINTER, None)
    return main, pointed[0], pointed[1]


def _records(layout: Layout, directory: Directory) -> list[Record]:
    """Records for `directory`, with empty fields where `_pack` sets an offset."""
    width = layout.offset.size
    return [(tag, entry.kind, entry.count, entry.data.ljust(width, b"\0")[:width]) for tag, entry in directory.items()]


def _pack(layout: Layout, records: list[Record], start: int, values: Directory) -> bytes:
    """Bytes of a directory that will lie at `start`, followed by those of its `values` that do not fit into their fields."""
    position = start + layout.count.size + layout.record.size * len(records) + layout.offset.size
    packed, tail = [layout.count.pack(len(records))], b""
    for tag, kind, count, stored in sorted(records):
        field, data = stored, values[tag].data if tag in values else b""
        if len(data) > layout.offset.size:
            field = layout.offset.pack(position + len(tail))
            tail += data + b"\0" * (-len(data) % 8)
        packed.append(layout.record.pack(tag, kind, count, field))
    return b"".join(packed) + layout.offset.pack(0) + tail


def _pack_tree(layout: Layout, records: list[Record], start: int, parts: tuple[Directory, Directory, Directory]) -> bytes:
    """Main directory at `start` (its own `records` and those of the first part), with EXIF and GPS directories after it."""
    main, details, places = parts
    pointers = {pointer: part for pointer, part in ((EXIF_POINTER, details), (GPS_POINTER, places)) if part}
    kind = IFD8 if layout.big else LONG

    def pack_main(positions: dict[int, int]) -> bytes:
        added = main | {pointer: numbers(kind, [position]) for pointer, position in positions.items()}
        kept = [record for record in records if record[0] not in added]
        return _pack(layout, kept + _records(layout, added), start, added)

    length = len(pack_main(dict.fromkeys(pointers, 0)))
    positions, tail = {}, b""
    for pointer, part in pointers.items():
        positions[pointer] = start + length + len(tail)
        packed = _pack(layout, _records(layout, part), positions[pointer], part)
        tail += packed + b"\0" * (-len(packed) % 8)
    return pack_main(positions) + tail


def _pack_exif(main: Directory, details: Directory, places: Directory) -> bytes:
    return b"Exif\0\0II*\0" + struct.pack("<I", 8) + _pack_tree(Layout("<", big=False, first=8), [], 8, (main, details, places))


def _append(file: BinaryIO, main: Directory, details: Directory, places: Directory) -> None:
    """Write a new first directory at the end of the file and let its header point there."""
    layout = _layout(file)
    records = _raw_records(file, layout, layout.first)
    end = file.seek(0, 2)
    start = end + -end % 8
    if not layout.big and start >= 2**32 - 2**20:
        raise ValueError("EXIF pointers of classic TIFF reach no further than 4 GB.")
    file.write(b"\0" * (start - end) + _pack_tree(replace(layout, first=start), records, start, (main, details, places)))
    file.seek(8 if layout.big else 4)
    file.write(layout.offset.pack(start))
