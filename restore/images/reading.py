"""Pictures in: header facts and whole pictures from PNG, JPEG, TIFF, WebP and AVIF files."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pyvips
from pyvips import ffi, glib_lib, vips_lib

from hybrid.errors import InputError
from restore.images.metadata import Picture, PictureInfo, PictureMetadata, upright_exif, upright_xmp
from restore.images.tiff import exif_from_tiff, is_palette_tiff
from restore.images.tiff_blocks import check_blocks, check_tiles_across

MAX_PIXELS = 200_000_000
"""Pixels that are opened unasked: 200 megapixels, 0.6 GB as 8-bit RGB and 2.4 GB as the floats of a network."""

LOADERS = {"png": "pngload", "jpeg": "jpegload", "tiff": "tiffload", "webp": "webpload", "avif": "heifload"}
DTYPES = {"uchar": "uint8", "ushort": "uint16", "float": "float32"}
COLOUR_SPACES = {"b-w", "grey16", "srgb", "rgb16", "rgb", "scrgb", "cmyk"}
READABLE = "Give a PNG, JPEG, TIFF, WebP or AVIF file."
DAMAGED = "Copy or export the file again."
PNG_DEFAULT_DENSITY = 2.834  # px/mm: what libvips reports for a PNG that tells no density; a stored 72 dpi reads 2.835

PNG_KEYWORDS = {
    "Title", "Author", "Description", "Copyright", "Creation Time", "Software", "Disclaimer", "Warning", "Source", "Comment",
}  # fmt: skip
"""Keywords that the format knows (PNG, third edition, 11.3.3.1); any other might itself be a name, and is not repeated."""

ERRORS = threading.RLock()
"""Held while libvips works: it has one list of errors for all threads, by which damage is told."""

# libvips remembers operations by file name: a file that changed between two calls would be read as it was before.
pyvips.cache_set_max(0)


def probe(path: str | Path) -> PictureInfo:
    """Facts of a picture from its header, without decoding pixels.

    Raises:
        InputError: The file is missing, a folder, empty, of another kind, or its header is damaged.
    """
    path = Path(path)
    return info_of(path, *open_image(path))


def read_picture(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Picture:
    """Read a picture: upright, palette expanded, alpha apart and not premultiplied, CMYK converted to sRGB.

    Gray and RGB values are those of the file; its ICC profile travels along. `metadata.notes` names what was changed.

    Args:
        path: PNG, JPEG, TIFF, WebP or AVIF file, told by its content.
        max_pixels: Refuse a picture of more pixels, before memory is taken for it.

    Raises:
        InputError: As `probe`, and where the pixels are damaged, cut short, or more than `max_pixels`.
    """
    path = Path(path)
    image, file_format = open_image(path)
    info = info_of(path, image, file_format)
    check_pixels(info, max_pixels)
    if file_format == "tiff":
        check_tiles_across(path)
    metadata = metadata_of(image, info)
    try:
        if info.kind == "cmyk":
            image = cmyk_to_srgb(image, info)
        with no_silent_damage():
            stored = np.asarray(image.numpy()).reshape(image.height, image.width, image.bands)
    except pyvips.Error as error:
        raise InputError(f"{path} is damaged or cut short ({reason_of(error)}).", hint=DAMAGED) from error
    if file_format == "avif" and info.dtype == "uint16":
        stored = whole_range(stored, image.get("bits-per-sample"))
    stored = upright(stored, orientation_of(image))
    colour = np.ascontiguousarray(stored[..., : info.channels])
    alpha = np.ascontiguousarray(stored[..., info.channels]) if info.alpha else None
    return Picture(colour, alpha, metadata)


def check_pixels(info: PictureInfo, max_pixels: int) -> None:
    """Refuse a picture by its header, before memory is taken for it.

    Raises:
        InputError: It has more than `max_pixels`; the message names the flag that allows it.
    """
    pixels = info.width * info.height
    if pixels > max_pixels:
        raise InputError(
            f"{info.path} has {info.width} x {info.height} pixels, more than the limit of {max_pixels}.",
            hint=f"If the file is trusted and memory allows, pass --max-pixels {pixels}.",
        )


def open_image(path: Path, access: Literal["sequential", "random"] = "sequential") -> tuple[pyvips.Image, str]:
    """The lazily opened picture and its format; the loader follows from the content, so that no other one can run.

    Raises:
        InputError: There is no such file, or it is no picture of a format that is read.
    """
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):  # a pipe would be waited for, a device never ends
            raise InputError(f"{path} is a pipe or device, not a file.", hint=READABLE)
        with path.open("rb") as file:
            start = file.read(32)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.", hint="Check the path.") from error
    except IsADirectoryError as error:
        raise InputError(f"{path} is a folder, not a picture.", hint=READABLE) from error
    except OSError as error:
        raise InputError(f"{path} cannot be opened ({error.strerror}).", hint="Check the path and its permissions.") from error
    if not start:
        raise InputError(f"{path} is empty (0 bytes).", hint=DAMAGED)
    file_format = _format(start)
    if file_format is None:
        raise InputError(f"{path} is not a picture of a supported format.", hint=READABLE)
    try:
        with ERRORS:
            return pyvips.Operation.call(LOADERS[file_format], str(path), access=access, fail_on="error"), file_format
    except pyvips.Error as error:
        raise InputError(
            f"{path} starts as {file_format.upper()} but cannot be read as one ({reason_of(error)}).", hint=DAMAGED
        ) from error


def _format(start: bytes) -> str | None:
    """Format by the first bytes of a file."""
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if start.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    if start[4:8] == b"ftyp" and start[8:12] in (b"avif", b"avis", b"mif1") and b"avi" in start:
        return "avif"
    return None


def reason_of(error: pyvips.Error) -> str:
    """The last line of libvips' message; those before may come from attempts that went well in the end."""
    lines = [line.strip() for line in str(error.detail).splitlines() if ": " in line]
    return lines[-1] if lines else error.message


@contextmanager
def no_silent_damage() -> Iterator[None]:
    """Raise `pyvips.Error` where reading pixels ends well but left a complaint.

    libvips (8.18) makes a damaged tile of a TIFF black and goes on; only its list of errors knows.
    """
    with ERRORS:
        vips_lib.vips_error_clear()
        yield
        if ffi.string(vips_lib.vips_error_buffer()):
            raise pyvips.Error("pixels are damaged")  # takes its detail from that list


def cmyk_to_srgb(image: pyvips.Image, info: PictureInfo) -> pyvips.Image:
    """In sRGB by the embedded profile; without one libvips takes its own built-in CMYK profile."""
    depth = 16 if info.dtype == "uint16" else 8
    return image.icc_transform("srgb", embedded=True, intent="relative", black_point_compensation=True, depth=depth)


def info_of(path: Path, image: pyvips.Image, file_format: str) -> PictureInfo:
    """Header facts.

    Raises:
        InputError: The samples or the colour space are not carried, or the file does not list all of its pixels.
    """
    if file_format == "tiff":
        check_blocks(path)
    if image.format not in DTYPES:
        raise InputError(f"{path} holds {image.format} samples.", hint="Save it with 8-bit, 16-bit or float32 samples.")
    alpha = bool(image.hasalpha())
    stored = image.bands - alpha
    if image.interpretation not in COLOUR_SPACES or stored not in (1, 3, 4):
        raise InputError(
            f"{path} holds {image.bands} channels of {image.interpretation} colour.",
            hint="Save it as gray, RGB or CMYK, with or without alpha.",
        )
    kind = "gray" if stored == 1 else "rgb"
    if image.interpretation == "cmyk":
        kind = "cmyk"
    elif image.get_typeof("palette") or (file_format == "tiff" and is_palette_tiff(path)):
        kind = "palette"
    width, height = image.width, image.height
    if orientation_of(image) >= 5:
        width, height = height, width
    return PictureInfo(path, width, height, 1 if stored == 1 else 3, alpha, DTYPES[image.format], file_format, kind)


def metadata_of(image: pyvips.Image, info: PictureInfo) -> PictureMetadata:
    """Blocks of metadata, put in order for the upright picture, and the notes on what reading changes."""
    notes = []
    if info.kind == "palette":
        notes.append("The palette was expanded; the result has true colour.")
    exif = exif_from_tiff(info.path) if info.format == "tiff" else _blob(image, "exif-data")
    if exif is not None:
        exif = upright_exif(exif)
        if exif is None:
            notes.append("The EXIF block is damaged and was left out.")
    xmp, icc, cmyk_icc = _blob(image, "xmp-data"), _blob(image, "icc-profile-data"), None
    if info.kind == "cmyk":
        icc, cmyk_icc = None, icc
        with_what = "its embedded profile" if cmyk_icc else "a general CMYK profile, for want of an embedded one"
        notes.append(f"CMYK was converted to sRGB with {with_what}.")
    if image.get_typeof("n-pages") and image.get("n-pages") > 1:
        notes.append(f"The file holds {image.get('n-pages')} pages or frames; the first was used.")
    elif info.format == "png" and _is_animated_png(info.path):
        notes.append("The file is an animated PNG; its still picture was used.")
    texts = [name.split("-", 3)[3] for name in _field_names(image) if name.startswith("png-comment-")]
    if texts:
        known, others = [name for name in texts if name in PNG_KEYWORDS], sum(name not in PNG_KEYWORDS for name in texts)
        named = (*known, *([f"{others} of other names"] if others else []))
        notes.append(f"PNG text chunks were left out: {', '.join(named)}.")
    return PictureMetadata(
        icc=icc,
        exif=exif,
        xmp=upright_xmp(xmp) if xmp else None,
        iptc=_blob(image, "iptc-data"),
        dpi=_dpi(image, info.format),
        cmyk_icc=cmyk_icc,
        source=info,
        notes=tuple(notes),
    )


def _blob(image: pyvips.Image, name: str) -> bytes | None:
    return bytes(image.get(name)) if image.get_typeof(name) else None


def _text(image: pyvips.Image, name: str) -> str:
    """A text of the metadata; empty where it is absent or no text."""
    try:
        return str(image.get(name)) if image.get_typeof(name) else ""
    except UnicodeDecodeError:
        return ""


def _field_names(image: pyvips.Image) -> list[str]:
    """Names of all metadata; those of PNG texts are in Latin-1 (PNG, third edition, 11.3.3.2), which pyvips stumbles over."""
    names: list[str] = []
    array = vips_lib.vips_image_get_fields(image.pointer)
    while array[len(names)] != ffi.NULL:
        names.append(ffi.string(array[len(names)]).decode("latin-1"))
        glib_lib.g_free(array[len(names) - 1])
    glib_lib.g_free(array)
    return names


def _dpi(image: pyvips.Image, file_format: str) -> tuple[float, float] | None:
    """Resolution in dots per inch for the upright picture, None where libvips only fills in its default."""
    x, y = image.xres, image.yres
    if file_format in ("webp", "avif"):  # these have no density of their own; EXIF may tell one
        fields = [f"exif-ifd0-{name}Resolution" for name in "XY"]
        told = [re.match(r"(\d{1,10})/(\d{1,10}) ", _text(image, field)) for field in fields]
        if not all(told):
            return None
        per_mm = 10 if _text(image, "exif-ifd0-ResolutionUnit").startswith("3") else 25.4
        x, y = (int(found[1]) / max(int(found[2]), 1) / per_mm for found in told if found)
    elif not image.get_typeof("resolution-unit") and (file_format != "png" or x == PNG_DEFAULT_DENSITY):
        return None
    dpi = (round(x * 25.4, 3), round(y * 25.4, 3))
    if not all(0 < each < math.inf for each in dpi):  # next to nothing is nothing
        return None
    return dpi[::-1] if orientation_of(image) >= 5 else dpi


def _is_animated_png(path: Path) -> bool:
    """Whether an animation control chunk comes before the pixels (PNG, third edition, 11.3.6)."""
    with path.open("rb") as file:
        file.seek(8)
        while len(header := file.read(8)) == 8 and header[4:] != b"IDAT":
            if header[4:] == b"acTL":
                return True
            file.seek(int.from_bytes(header[:4], "big") + 4, 1)
    return False


def orientation_of(image: pyvips.Image) -> int:
    """EXIF or TIFF orientation, 1 to 8; libvips has turned AVIF pictures already."""
    value = image.get("orientation") if image.get_typeof("orientation") else 1
    return value if 1 <= value <= 8 else 1


def upright(stored: np.ndarray, orientation: int) -> np.ndarray:
    """(H, W) or (H, W, C) turned so that row 0 is the visual top and column 0 the visual left (EXIF 2.32, tag 0x0112)."""
    if orientation >= 5:  # row and column change places in 5 to 8
        stored = stored.swapaxes(0, 1)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return stored[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]


def whole_range(stored: np.ndarray, bits: int) -> np.ndarray:
    """10- and 12-bit AVIF samples of any shape, which libvips puts in the upper bits, spread so that white is 65535."""
    most = 2**bits - 1
    samples = (stored >> (16 - bits)).astype(np.uint32)
    spread: np.ndarray = ((samples * 65535 + most // 2) // most).astype(np.uint16)
    return spread
