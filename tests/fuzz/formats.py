"""Where the numbers of file headers lie, and the checksums that go with their data."""

from __future__ import annotations

import pickletools
import re
import struct
import zlib

PNG = b"\x89PNG\r\n\x1a\n"


def spots_of(data: bytes) -> list[tuple[int, int]]:
    """Offsets and sizes of the numbers of a header; none for a format that is not known."""
    try:
        if data.startswith(PNG):
            return _png_spots(data)
        if data[:2] == b"\xff\xd8":
            return _jpeg_spots(data)
        if data[:2] in (b"II", b"MM") and len(data) > 16:
            return _tiff_spots(data, 0)
        if data[:6] == b"Exif\0\0":
            return _tiff_spots(data, 6)
        if data[:4] == b"RIFF":
            return _chunk_spots(data, 12)
        if data[4:8] == b"ftyp":
            return [(match.start() - 4, 4) for match in re.finditer(rb"meta|iloc|ispe|pixi|av1C|ipma|colr|infe|pitm", data)] + [
                (at, 4) for match in re.finditer(rb"ispe|iloc", data) for at in range(match.end(), match.end() + 24, 4)
            ]
        if len(data) >= 348 and data[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c", b"\x1c\2\0\0", b"\0\0\2\x1c"):
            return _nifti_spots(data)
        if data[128:132] == b"DICM":
            return _dicom_spots(data)
        if data[:1] == b"\x80":
            return [(at, 1) for _, _, at in pickletools.genops(data) if at is not None]
    except (struct.error, ValueError, IndexError, AttributeError, OverflowError):
        pass
    return []


def _png_spots(data: bytes) -> list[tuple[int, int]]:
    spots, at = [(16, 4), (20, 4), (24, 1), (25, 1), (26, 1), (27, 1), (28, 1)], 8
    while at + 8 <= len(data) and len(spots) < 60:
        spots += [(at, 4), (at + 4, 4), (at + 8, 4)]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return spots


def _jpeg_spots(data: bytes) -> list[tuple[int, int]]:
    spots, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != 0xDA:
        spots += [(at + 1, 1), (at + 2, 2)]
        if data[at + 1] in (0xC0, 0xC1, 0xC2, 0xC3):
            spots += [(at + 4, 1), (at + 5, 2), (at + 7, 2), (at + 9, 1), (at + 11, 1)]
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            spots += _tiff_spots(data, at + 10)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return spots


def _tiff_spots(data: bytes, start: int) -> list[tuple[int, int]]:
    order = "<" if data[start : start + 2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, start + 2)[0] == 43
    place, count, record = (8, "Q", 20) if big else (4, "I", 12)
    first = struct.unpack_from(order + count, data, start + place)[0]
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, start + first)
    spots, at = [(start + place, 8 if big else 4)], start + first + (8 if big else 2)
    for _ in range(min(entries, 40)):
        spots += [(at, 2), (at + 2, 2), (at + 4, 8 if big else 4), (at + (12 if big else 8), 8 if big else 4)]
        spots += [(at + (12 if big else 8), 2)]
        at += record
    return spots


def _chunk_spots(data: bytes, at: int) -> list[tuple[int, int]]:
    spots = [(4, 4)]
    while at + 8 <= len(data) and len(spots) < 40:
        spots += [(at + 4, 4), (at + 8, 4), (at + 12, 4), (at + 16, 2)]
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little") + 1 & ~1
    return spots


def _nifti_spots(data: bytes) -> list[tuple[int, int]]:
    if data[:1] == b"\x5c" or data[3:4] == b"\x5c":
        halves = [*range(40, 56, 2), *range(68, 76, 2), 252, 254]
        words = [0, *range(56, 68, 4), *range(76, 124, 4), *range(124, 148, 4), *range(256, 328, 4), 344]
        return [(at, 2) for at in halves] + [(at, 4) for at in words] + [(123, 1), (348, 4), (352, 4), (356, 4)]
    return [(12, 2), (14, 2), *((at, 8) for at in range(16, 240, 8)), *((at, 4) for at in (0, 344, 348, 500, 540, 544, 548))]


def _dicom_spots(data: bytes) -> list[tuple[int, int]]:
    """Elements of an explicit little-endian file, one level deep."""
    spots, at = [], 132
    while at + 8 <= len(data):
        long = data[at + 4 : at + 6] in (b"OB", b"OW", b"SQ", b"UN", b"UT", b"OF", b"OD", b"UC")
        head, length = (12, 4) if long else (8, 2)
        size = int.from_bytes(data[at + head - length : at + head], "little")
        spots += [(at, 2), (at + 2, 2), (at + 4, 2), (at + head - length, length)]
        if data[at + 4 : at + 6] in (b"US", b"SS"):
            spots += [(at + head, 2)] * 3
        elif size:
            spots += [(at + head, 1), (at + head + min(size - 1, 3), 1)]
        at += head + (0 if size == 0xFFFFFFFF else size)
    return spots


def with_checksums(data: bytes) -> bytes:
    """A PNG file whose chunks have the checksums that go with their data."""
    body, at = bytearray(data), 8
    while at + 12 <= len(body):
        end = at + 8 + int.from_bytes(body[at : at + 4], "big")
        if end + 4 > len(body):
            break
        body[end : end + 4] = zlib.crc32(body[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(body)
