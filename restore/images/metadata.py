"""What a picture is and what travels with it: facts of the header, and the ICC, EXIF, XMP, IPTC and resolution blocks."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape, unescape

import numpy as np

CHANNELS_OF_PROFILE = {b"GRAY": 1, b"RGB ": 3, b"CMYK": 4}

_EMPTY_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>'
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '</rdf:RDF></x:xmpmeta><?xpacket end="w"?>'
).encode()
_RECORD = re.compile(
    rb'<rdf:Description rdf:about="" xmlns:hybrid="urn:hybrid-imaging:record">'
    rb"<hybrid:record>(.*?)</hybrid:record></rdf:Description>",
    re.DOTALL,
)
_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:\s*=\s*[\"']|>)\s*)[1-8]")


@dataclass(frozen=True)
class PictureInfo:
    """The facts in a picture's header, after its EXIF orientation is applied.

    Attributes:
        path: The file.
        width: Pixels across.
        height: Pixels down.
        channels: Colour channels once read: 1 (gray) or 3 (RGB); palettes and CMYK are read as RGB.
        alpha: Whether there is an alpha channel besides.
        dtype: "uint8", "uint16" or "float32", from the file's sample type, never from its values.
        format: "png", "jpeg", "tiff", "webp" or "avif", from the file's content, never from its name.
        kind: How the file stores colour: "gray", "rgb", "palette" or "cmyk".
    """

    path: Path
    width: int
    height: int
    channels: int
    alpha: bool
    dtype: str
    format: str
    kind: str


@dataclass(frozen=True)
class PictureMetadata:
    """What travels with the pixels from the file read to the file written.

    Attributes:
        icc: ICC profile of the pixels as they are in memory. None for a CMYK source, which is in sRGB once read.
        exif: EXIF block with its `Exif` prefix; orientation 1, no thumbnail.
        xmp: XMP packet.
        iptc: IPTC block.
        dpi: Resolution (x, y) in dots per inch, None if the file tells none.
        cmyk_icc: Profile embedded in a CMYK source, to convert the result back with.
        source: Header facts of the file that was read.
        notes: What was changed in reading, one sentence each.
    """

    icc: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    dpi: tuple[float, float] | None = None
    cmyk_icc: bytes | None = None
    source: PictureInfo | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Picture:
    """Pixels and metadata of one picture.

    Attributes:
        colour: (H, W, 1) gray or (H, W, 3) RGB; uint8 and uint16 over their whole range, float32 as stored.
        alpha: (H, W) of the same dtype, not multiplied into the colour; None for an opaque picture.
        metadata: What travels with the pixels.
    """

    colour: np.ndarray
    alpha: np.ndarray | None = None
    metadata: PictureMetadata = PictureMetadata()


def profile_channels(icc: bytes) -> int | None:
    """Colour channels an ICC profile is made for (ICC.1, header bytes 16 to 19); None for another colour space."""
    return CHANNELS_OF_PROFILE.get(icc[16:20])


def upright_exif(exif: bytes) -> bytes | None:
    """EXIF block with orientation 1 and without its thumbnail (EXIF 2.32, 4.5 and 4.6.4); None if it is damaged.

    The result shows other pixels than the thumbnail. Values are changed in place, so that maker notes, whose inner
    offsets count from the start of the block, stay readable.
    """
    body = bytearray(exif.removeprefix(b"Exif\0\0"))
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(body[:4]))
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", body, 4)
        (entries,) = struct.unpack_from(order + "H", body, start)
        for position in range(start + 2, start + 2 + 12 * entries, 12):
            tag, kind, count = struct.unpack_from(order + "HHI", body, position)
            if tag == 0x0112 and kind == 3 and count == 1:
                struct.pack_into(order + "H", body, position + 8, 1)
        struct.pack_into(order + "I", body, start + 2 + 12 * entries, 0)  # no second directory: it holds the thumbnail
    except struct.error:
        return None
    return b"Exif\0\0" + bytes(body)


def upright_xmp(xmp: bytes) -> bytes:
    """XMP packet whose `tiff:Orientation`, where it has one, is 1."""
    return _XMP_ORIENTATION.sub(rb"\g<1>1", xmp)


def add_record(xmp: bytes | None, text: str) -> bytes | None:
    """XMP packet with `text` in it as the provenance record; an earlier record gives way.

    Returns:
        The packet, or None if `xmp` is no packet that can be extended.

    >>> read_record(add_record(None, '{"model": "a<b"}'))
    '{"model": "a<b"}'
    """
    packet = _RECORD.sub(b"", xmp or _EMPTY_XMP)
    head, end, tail = packet.rpartition(b"</rdf:RDF>")
    if not end:
        return None
    record = (
        '<rdf:Description rdf:about="" xmlns:hybrid="urn:hybrid-imaging:record">'
        f"<hybrid:record>{escape(text)}</hybrid:record></rdf:Description>"
    )
    return head + record.encode() + end + tail


def read_record(xmp: bytes | None) -> str | None:
    """The provenance record in an XMP packet, as `add_record` left it; None without one."""
    found = _RECORD.search(xmp or b"")
    return unescape(found.group(1).decode()) if found else None
