"""Metadata without whatever can name a person, a place or a device, and with what a picture needs to look right.

Blocks of free form (EXIF with its maker notes, XMP, IPTC) go as a whole, since no list knows all that makers put there. Colours
and the resolution stay. What pixels show is not touched.
"""

from __future__ import annotations

from dataclasses import replace

from restore.images.icc import anonymous_profile
from restore.images.metadata import PictureMetadata
from restore.images.tiff import exif_directories

EXIF_KINDS = {
    "people": {0x013B, 0x8298, 0x9C9D, 0xA430},
    "device": {0x010F, 0x0110, 0x0131, 0xA431, 0xA433, 0xA434, 0xA435},
    "times": {0x0132, 0x9003, 0x9004, 0x9010, 0x9011, 0x9012},
    "texts": {0x010E, 0x9286, 0x9C9B, 0x9C9C, 0x9C9E, 0x9C9F},
    "maker notes": {0x927C},
    "number of the picture": {0xA420},
}
"""Tags by what they tell (EXIF 2.32, 4.6; the five XP texts of Windows)."""


def deidentified(metadata: PictureMetadata) -> tuple[PictureMetadata, str]:
    """What may be written of a picture's metadata, and a sentence on the kinds of things that may not."""
    icc, cmyk = (profile and anonymous_profile(profile) for profile in (metadata.icc, metadata.cmyk_icc))
    left_out = [_of_exif(metadata.exif)] if metadata.exif else []
    left_out += [name for name, block in (("XMP", metadata.xmp), ("IPTC", metadata.iptc)) if block]
    if (metadata.icc and not icc) or (metadata.cmyk_icc and not cmyk):
        left_out.append("an ICC profile, which is damaged")
    elif metadata.icc or metadata.cmyk_icc:
        left_out.append("names in the ICC profile")
    clean = replace(metadata, icc=icc or None, exif=None, xmp=None, iptc=None, cmyk_icc=cmyk or None)
    return clean, f"De-identified. Left out: {', '.join(left_out)}." if left_out else "De-identified; nothing had to be left out."


def _of_exif(exif: bytes) -> str:
    """The block, and what kinds of tags are in it."""
    try:
        main, details, places = exif_directories(exif, 1, 1)
    except ValueError:
        return "EXIF"
    tags = {*main, *details}
    kinds = ["place"] * bool(places) + [kind for kind, known in EXIF_KINDS.items() if tags & known]
    return f"EXIF ({', '.join(kinds)})" if kinds else "EXIF"
