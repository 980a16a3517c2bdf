"""ICC profiles that name nobody: the tags that say what colours are, and no others (ICC.1:2022, sections 7, 9, 10; ICC.1:2001).

A profile may hold the name that somebody gave a screen, its serial number, when and with what it was measured.
"""

from __future__ import annotations

import struct

HEADER, ENTRY = 128, struct.Struct(">4sII")  # of a tag: signature, offset, size
MOST_TAGS = 200
COLOURS = {
    *(f"{table}{intent}".encode() for table in ("A2B", "B2A", "D2B", "B2D") for intent in range(4)),
    *(f"{primary}{what}".encode() for primary in "rgb" for what in ("XYZ", "TRC")),
    *(b"kTRC", b"wtpt", b"bkpt", b"chad", b"chrm", b"cicp", b"gamt", b"lumi"),
}
"""Tags of numbers alone, by which colours are computed."""
DATED, DEVICE, CREATOR, CHECKSUM = slice(24, 36), slice(48, 56), slice(80, 84), slice(84, 100)
NO_DATE = struct.pack(">6H", 1900, 1, 1, 0, 0, 0)
DESCRIPTION, COPYRIGHT = "Colour profile", "Not told"  # both must be there


def anonymous_profile(icc: bytes) -> bytes | None:
    """A profile with the same colours that names no maker, device, person or time; None if it is damaged."""
    try:
        (count,) = struct.unpack_from(">I", icc, HEADER)
        if count > MOST_TAGS:
            return None
        entries = [ENTRY.unpack_from(icc, HEADER + 4 + ENTRY.size * place) for place in range(count)]
    except struct.error:
        return None
    if any(offset + size > len(icc) for _, offset, size in entries):
        return None
    told = _texts(version=icc[8])
    values = {tag: icc[offset : offset + size] for tag, offset, size in entries if tag in COLOURS} | told
    header = bytearray(icc[:HEADER])
    header[DATED] = NO_DATE
    for part in (DEVICE, CREATOR, CHECKSUM):
        header[part] = bytes(part.stop - part.start)
    return _packed(bytes(header), values)


def _packed(header: bytes, values: dict[bytes, bytes]) -> bytes:
    """A profile of these tags; equal values are stored once, as the three curves of a screen are."""
    start = HEADER + 4 + ENTRY.size * len(values)
    places: dict[bytes, int] = {}
    data = b""
    for value in values.values():
        if value not in places:
            places[value] = start + len(data)
            data += value + b"\0" * (-len(value) % 4)
    table = b"".join(ENTRY.pack(tag, places[value], len(value)) for tag, value in values.items())
    whole = header + struct.pack(">I", len(values)) + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def _texts(version: int) -> dict[bytes, bytes]:
    """Description and copyright, which every profile has: as multiLocalizedUnicodeType, before version 4 as plain text."""
    if version >= 4:
        return {b"desc": _localised(DESCRIPTION), b"cprt": _localised(COPYRIGHT)}
    text = DESCRIPTION.encode() + b"\0"
    described = b"desc" + struct.pack(">II", 0, len(text)) + text + bytes(4 + 4 + 2 + 1 + 67)  # no Unicode, no script
    return {b"desc": described, b"cprt": b"text" + bytes(4) + COPYRIGHT.encode() + b"\0"}


def _localised(text: str) -> bytes:
    data = text.encode("utf-16-be")
    return b"mluc" + struct.pack(">III4sII", 0, 1, 12, b"enUS", len(data), 28) + data
