"""Pictures in and out: PNG, JPEG, TIFF, WebP and AVIF through libvips, with all that goes with the pixels.

    picture = read_picture("photo.jpg")
    result = upscale(to_unit(picture.colour))
    notes = write_picture("photo_x4.png", Picture(from_unit(result, picture.colour.dtype), metadata=picture.metadata))

What goes in comes out: sample type, gray, alpha, ICC profile, EXIF, XMP, IPTC, resolution. What a format cannot carry is
named in a note.
"""

from __future__ import annotations

from restore.images.metadata import Picture, PictureInfo, PictureMetadata, read_record
from restore.images.plan import OutputPlan, SaveOptions, check_output, format_of, plan_output
from restore.images.reading import MAX_PIXELS, check_pixels, probe, read_picture
from restore.images.values import fill_transparent, from_unit, to_unit
from restore.images.writing import PictureWriter, write_picture

__all__ = [
    "MAX_PIXELS",
    "OutputPlan",
    "Picture",
    "PictureInfo",
    "PictureMetadata",
    "PictureWriter",
    "SaveOptions",
    "check_output",
    "check_pixels",
    "fill_transparent",
    "format_of",
    "from_unit",
    "plan_output",
    "probe",
    "read_picture",
    "read_record",
    "to_unit",
    "write_picture",
]
