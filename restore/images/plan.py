"""What will be written, decided before any pixel is: format, sample type, metadata, and what has to be given up."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hybrid.errors import OutputError, RequestError
from restore.images.deidentification import deidentified
from restore.images.iptc import for_format
from restore.images.metadata import PictureMetadata, add_record, profile_channels

SUFFIXES = {
    ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".jpe": "jpeg", ".jfif": "jpeg",
    ".tif": "tiff", ".tiff": "tiff", ".webp": "webp", ".avif": "avif",
}  # fmt: skip
NAMES = {"png": "PNG", "jpeg": "JPEG", "tiff": "TIFF", "webp": "WebP", "avif": "AVIF"}
LONGEST_SIDE = {"jpeg": 65500, "webp": 16383, "avif": 16384}
SAMPLES = {
    "png": {"float32": "uint16"}, "tiff": {}, "avif": {"float32": "uint16"},
    "jpeg": {"uint16": "uint8", "float32": "uint8"}, "webp": {"uint16": "uint8", "float32": "uint8"},
}  # fmt: skip
JPEG_SEGMENT = 65533 - 29  # bytes of a marker segment less the name that XMP (29) or EXIF (6) begins with


@dataclass(frozen=True)
class SaveOptions:
    """How to encode.

    Attributes:
        format: "png", "jpeg", "tiff", "webp" or "avif"; None: by the file's suffix.
        quality: 1 to 100, for JPEG (never with subsampled colour), WebP and AVIF.
        lossless: Lossless WebP or AVIF. PNG and TIFF always are.
        compression: zlib level of PNG, 0 (fast) to 9 (small).
        description: Provenance record (JSON) to store in the XMP packet.
        deidentify: Leave out of the metadata whatever can name a person, a place or a device.
    """

    format: str | None = None
    quality: int = 95
    lossless: bool = False
    compression: int = 6
    description: str | None = None
    deidentify: bool = False

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in NAMES:
            raise RequestError(f"Unknown picture format {self.format!r}.", hint=f"Choose one of {', '.join(NAMES)}.")
        if not 1 <= self.quality <= 100:
            raise RequestError(f"Quality {self.quality} is out of range.", hint="Give 1 to 100.")
        if not 0 <= self.compression <= 9:
            raise RequestError(f"Compression level {self.compression} is out of range.", hint="Give 0 to 9.")


@dataclass(frozen=True)
class OutputPlan:
    """What will be written, decided before any pixel is.

    Attributes:
        width, height: Size in pixels.
        format: Format of the file.
        source_dtype, dtype: Sample type of the rows given, and of the file.
        source_alpha, alpha: Whether the rows given have alpha, and whether the file has.
        channels: Colour channels of the rows, 1 or 3.
        cmyk: Whether the file is converted back to CMYK.
        metadata: The blocks that the file carries.
        notes: What it cannot carry, one sentence each.
    """

    width: int
    height: int
    format: str
    source_dtype: str
    dtype: str
    source_alpha: bool
    alpha: bool
    channels: int
    cmyk: bool
    metadata: PictureMetadata
    notes: tuple[str, ...]


def check_output(
    path: str | Path, inputs: Iterable[str | Path] = (), *, overwrite: bool = False, format: str | None = None
) -> Path:
    """The path, once it is clear that a picture can be written there.

    Raises:
        RequestError: The suffix names no supported format (and `format` is None), or the path is one of the inputs.
        OutputError: The folder is missing or not writable, or the file is there and `overwrite` is False.
    """
    path = Path(path)
    if format is None:
        format_of(path)
    folder = path.parent
    if not folder.is_dir():
        raise OutputError(f"There is no folder {folder} to write {path.name} in.", hint="Create it or choose another --output.")
    if path.is_dir():
        raise OutputError(f"{path} is a folder.", hint="Name a file in it.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"The folder {folder} is not writable.", hint="Choose another --output.")
    for given in inputs:
        if path.exists() and Path(given).exists() and path.samefile(given):
            raise RequestError(
                f"The output {path} is the input {given}.", hint="Inputs are never changed: choose another --output."
            )
    if path.exists() and not overwrite:
        raise OutputError(f"{path} is there already.", hint="Pass --overwrite or choose another --output.")
    return path


def format_of(path: Path) -> str:
    """Format that a file's suffix names.

    Raises:
        RequestError: It names none that can be written.
    """
    try:
        return SUFFIXES[path.suffix.lower()]
    except KeyError:
        raise RequestError(
            f"{path.name} does not end in a supported suffix.", hint=f"Use one of {', '.join(SUFFIXES)}."
        ) from None


def plan_output(
    path: Path, shape: tuple[int, int, int], dtype: str, alpha: bool, metadata: PictureMetadata, options: SaveOptions
) -> OutputPlan:
    """Decide what a file can carry of a picture.

    Args:
        path: File to write; its suffix names the format unless the options do.
        shape: (height, width, colour channels) of the picture.
        dtype: Its sample type, "uint8", "uint16" or "float32".
        alpha: Whether it has alpha.
        metadata: What shall travel along.
        options: How to encode.

    Raises:
        RequestError: The suffix is unknown, or the format cannot hold such a picture at all.
    """
    height, width, channels = shape
    file_format = options.format or format_of(path)
    name = NAMES[file_format]
    if channels not in (1, 3) or min(height, width) < 1 or dtype not in ("uint8", "uint16", "float32"):
        raise RequestError(
            f"A picture of shape {shape} and {dtype} samples cannot be written.",
            hint="Give gray or RGB, 8-bit, 16-bit or float32.",
        )
    if max(height, width) > LONGEST_SIDE.get(file_format, max(height, width)):
        raise RequestError(
            f"{name} holds at most {LONGEST_SIDE[file_format]} pixels a side; the result has {width} x {height}.",
            hint="Write .png or .tif.",
        )
    if options.lossless and file_format == "jpeg":
        raise RequestError("JPEG has no lossless form.", hint="Write .png, .tif, .webp or .avif.")
    notes = []
    if options.deidentify:
        metadata, removed = deidentified(metadata)
        notes.append(removed)
    target = SAMPLES[file_format].get(dtype, dtype)
    bits = _depth(file_format, target)
    if dtype == "float32" and target != dtype:
        notes.append(f"{name} is written without float samples: values were clipped to [0, 1] and stored with {bits} bits.")
    elif bits < 8 * np.dtype(dtype).itemsize:
        notes.append(f"{name} has no 16-bit samples: values were rounded to {bits} bits.")
    if alpha and file_format == "jpeg":
        notes.append("JPEG has no transparency: the picture was laid on white.")
    if channels == 1 and file_format in ("webp", "avif"):
        notes.append(f"{name} is written without a gray form: gray became RGB with three equal channels.")
    keeps_alpha = alpha and file_format != "jpeg"
    takes_cmyk = channels == 3 and dtype != "float32" and not keeps_alpha and file_format in ("jpeg", "tiff")
    cmyk = metadata.cmyk_icc is not None and takes_cmyk
    if metadata.source is not None and metadata.source.kind == "cmyk" and not cmyk:
        notes.append(f"The CMYK picture was written as sRGB: {_why_not_cmyk(name, metadata)}.")
    carried, lost = _carried(metadata, file_format, channels, options.description)
    return OutputPlan(width, height, file_format, dtype, target, alpha, keeps_alpha, channels, cmyk, carried, (*notes, *lost))


def _depth(file_format: str, dtype: str) -> int:
    """Bits of a sample in the file."""
    return 12 if (file_format, dtype) == ("avif", "uint16") else 8 * np.dtype(dtype).itemsize


def _why_not_cmyk(name: str, metadata: PictureMetadata) -> str:
    if metadata.cmyk_icc is None:
        return "it has no embedded profile to convert back with"
    if name not in ("JPEG", "TIFF"):
        return f"{name} carries no CMYK"
    return "CMYK is written only from 8- or 16-bit RGB without alpha"


def _carried(
    metadata: PictureMetadata, file_format: str, channels: int, description: str | None
) -> tuple[PictureMetadata, list[str]]:
    """The blocks of metadata that the format takes, with the record added, and notes on the others."""
    name, notes = NAMES[file_format], []
    icc, exif, xmp, iptc = metadata.icc, metadata.exif, metadata.xmp, metadata.iptc
    stored_channels = 3 if file_format in ("webp", "avif") else channels
    if icc and profile_channels(icc) != stored_channels:
        icc = None
        notes.append("The ICC profile is for another number of channels and was left out.")
    if description is not None:
        extended = add_record(xmp, description)
        if extended is None:
            notes.append("The XMP packet cannot be extended: the provenance record was left out.")
        xmp = extended or xmp
    if file_format == "jpeg":
        for block, what in ((exif, "EXIF"), (xmp, "XMP")):
            if block and len(block) > JPEG_SEGMENT:
                notes.append(f"JPEG holds at most 64 kB of {what}: this block was left out.")
        exif, xmp = (block if block and len(block) <= JPEG_SEGMENT else None for block in (exif, xmp))
    if iptc and file_format not in ("jpeg", "tiff"):
        iptc = None
        notes.append(f"{name} carries no IPTC block: it was left out.")
    elif iptc:
        iptc = for_format(iptc, file_format)
        notes += [] if iptc else ["The IPTC block is damaged and was left out."]
    return replace(metadata, icc=icc, exif=exif, xmp=xmp, iptc=iptc), notes
