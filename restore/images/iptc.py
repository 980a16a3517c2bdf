"""IPTC blocks as formats hold them: TIFF bare, JPEG among Photoshop's image resources (Photoshop File Formats, resource 1028)."""

from __future__ import annotations

import struct

RESOURCES, RESOURCE, IPTC = b"Photoshop 3.0\0", b"8BIM", 1028


def for_format(block: bytes, file_format: str) -> bytes | None:
    """A block as a JPEG or TIFF holds it, whichever of the two it comes from; None where it cannot be found in its resources."""
    wrapped = block.startswith(RESOURCES)
    if file_format == "jpeg":
        return (
            block if wrapped else RESOURCES + RESOURCE + struct.pack(">HHI", IPTC, 0, len(block)) + block + bytes(len(block) % 2)
        )
    return _bare(block[len(RESOURCES) :]) if wrapped else block


def _bare(resources: bytes) -> bytes | None:
    """Each resource: mark, number, name with its length before it (padded to be even), length, data (padded likewise)."""
    position = 0
    while resources[position : position + 4] == RESOURCE and position + 7 <= len(resources):
        (number,) = struct.unpack_from(">H", resources, position + 4)
        name = 1 + resources[position + 6]
        start = position + 6 + name + name % 2 + 4
        if start > len(resources):
            return None
        (length,) = struct.unpack_from(">I", resources, start - 4)
        if number == IPTC:
            return resources[start : start + length] or None
        position = start + length + length % 2
    return None
