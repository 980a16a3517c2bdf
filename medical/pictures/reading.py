"""Pictures as what networks for slices segment: PNG, JPEG, TIFF, WebP, AVIF and single-frame DICOM, as volumes of one slice.

Axes: values are (C, rows, columns, 1), so that all that is done to scans is done to pictures too. Pictures are upright once
read (EXIF), and are never turned: they have no place in a patient.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hybrid.errors import InputError, ResourceError
from hybrid.memory import available_bytes, format_size
from medical.volumes.geometry import Grid
from medical.volumes.volume import PICTURE_ENDINGS, Volume, stem

if TYPE_CHECKING:
    from restore.images.metadata import Picture

LUMA = (0.299, 0.587, 0.114)
"""Of red, green and blue in the gray of a colour picture (ITU-R BT.601)."""
PRINTING = (72, 96, 100, 120, 144, 150, 180, 200, 240, 300, 350, 400, 600, 1200)
"""Dots per inch that programs write where nobody measured anything: they say how to print a picture."""
_MICROMETRES = {"nm": 1e-3, "um": 1.0, "µm": 1.0, "\\u00b5m": 1.0, "micron": 1.0, "microns": 1.0, "mm": 1e3, "cm": 1e4}
_FULL = {"uint8": 255.0, "uint16": 65535.0}


@dataclass(frozen=True)
class PictureOrigin:
    """Where a picture came from.

    Attributes:
        path: The file.
        white: The value of white, 255 or 65535; 1 where values mean themselves (floats, DICOM).
        pixel_mm: Distance of neighbouring pixels along rows and columns of the array in mm; None where nobody says it.
        modality: Of DICOM; None for other files.
        inverted: Whether high values are to be shown dark (MONOCHROME1).
    """

    path: Path
    white: float = 1.0
    pixel_mm: tuple[float, float] | None = None
    modality: str | None = None
    inverted: bool = False


def is_picture(path: str | Path) -> bool:
    """Whether a path is a picture: a file named like one, or a DICOM file of a single frame."""
    path = Path(path)
    if path.name.lower().endswith(PICTURE_ENDINGS):
        return not path.is_dir()
    from medical.dicom.files import DicomFile, is_dicom, read_headers
    from medical.dicom.frames import is_image, number

    if not path.is_file() or path.suffix.lower() in (".gz", ".nii", ".hdr", ".img", ".zip") or not is_dicom(path):
        return False
    headers, _ = read_headers([DicomFile(path)])
    return any(is_image(header) and (number(header, "NumberOfFrames") or 1) == 1 for _, header in headers)


def of_picture(volume: Volume) -> bool:
    """Whether what was read is a picture."""
    return isinstance(volume.origin, PictureOrigin)


def read_picture_file(path: str | Path, *, channels: int = 1) -> Volume:
    """Read a picture for a network of so many channels.

    Args:
        path: See `is_picture`.
        channels: 1 makes colour gray, and 3 repeats gray; warnings say so. Any other number must be the picture's own.

    Returns:
        Values (channels, rows, columns, 1) as stored, or the real values of DICOM. The grid's steps are mm where
        `origin.pixel_mm` is known, else 1.

    Raises:
        InputError: It cannot be read, has other channels, or holds values that are no finite numbers.
        ResourceError: It is larger than the memory at hand.
    """
    path = Path(path)
    if path.name.lower().endswith(PICTURE_ENDINGS):
        values, origin, warnings = _read_picture(path)
    else:
        from medical.pictures.dicom import read_single_frame

        values, origin, warnings = read_single_frame(path)
    values, changed = _in_channels(path, values, channels)
    rows, columns = values.shape[:2]
    step = origin.pixel_mm or (1.0, 1.0)
    grid = Grid((rows, columns, 1), np.diag([*step, 1.0, 1.0]))
    return Volume(np.moveaxis(values, -1, 0)[..., None], grid, stem(path), origin, (*warnings, *changed))


def _read_picture(path: Path) -> tuple[np.ndarray, PictureOrigin, tuple[str, ...]]:
    """(rows, columns, colours) of a picture file."""
    from restore.images import probe, read_picture

    info = probe(path)
    # What is read, and what a network sees of it as floats.
    needed = info.width * info.height * (info.channels + info.alpha) * (np.dtype(info.dtype).itemsize + 4)
    if needed > available_bytes():
        raise ResourceError(
            f"{path.name} has {info.width} x {info.height} pixels: {format_size(needed, up=True)} of memory needed, "
            f"{format_size(available_bytes())} left.",
            hint="Cut it into parts.",
        )
    picture = read_picture(path, max_pixels=info.width * info.height)
    warnings = list(picture.metadata.notes)
    if picture.alpha is not None and not (picture.alpha == picture.alpha.max()).all():
        warnings.append("Its transparency was left out: pixels count whether they show or not.")
    size, said = _pixel_size(path, picture)
    return picture.colour, PictureOrigin(path, _FULL.get(info.dtype, 1.0), size), (*warnings, *said)


def _pixel_size(path: Path, picture: Picture) -> tuple[tuple[float, float] | None, tuple[str, ...]]:
    """Steps along rows and columns of the array in mm, and what a user should be told of them."""
    info = picture.metadata.source
    if info is None or info.format != "tiff":  # the density of other files says how to print them
        return None, ()
    if (size := _imagej_size(path)) is not None:
        return size, ()
    if (dpi := picture.metadata.dpi) is None:
        return None, ()
    if all(round(each) in PRINTING for each in dpi):
        return None, (f"Its resolution of {dpi[0]:g} dpi is one of printing, and not taken as the size of its pixels.",)
    return (25.4 / dpi[1], 25.4 / dpi[0]), ()


def _imagej_size(path: Path) -> tuple[float, float] | None:
    """The size of pixels that ImageJ and Fiji write: pixels in each of a unit that the description names."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            unit = _MICROMETRES.get(str((file.imagej_metadata or {}).get("unit", "")).strip())
            tags = [file.pages[0].tags.get(name) for name in ("YResolution", "XResolution")]  # type: ignore[union-attr]
            if unit is None or None in tags:
                return None
            steps = [tag.value[1] / tag.value[0] * unit / 1e3 for tag in tags if tag is not None and tag.value[0]]
    except (tifffile.TiffFileError, OSError, ValueError, TypeError, IndexError, KeyError):  # no ImageJ file, then
        return None
    return (steps[0], steps[1]) if len(steps) == 2 and min(steps) > 0 else None


def _in_channels(path: Path, values: np.ndarray, channels: int) -> tuple[np.ndarray, tuple[str, ...]]:
    found = values.shape[-1]
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{path.name} holds values that are no finite numbers.", hint="Export the picture again.")
    if found == channels:
        return values, ()
    if found == 1 and channels == 3:
        return np.broadcast_to(values, (*values.shape[:2], 3)), ("A gray picture: the network's three channels are alike.",)
    if found == 3 and channels == 1:
        first = values[..., :1]
        if all(np.array_equal(first[..., 0], values[..., each]) for each in (1, 2)):
            return np.ascontiguousarray(first), ()
        gray = sum(values[..., each] * np.float32(share) for each, share in enumerate(LUMA))
        whole = np.rint(gray).astype(values.dtype) if values.dtype.kind == "u" else gray
        return np.asarray(whole)[..., None], ("A colour picture: the network sees its gray.",)
    raise InputError(
        f"{path.name} has {found} channel{'s' * (found > 1)}, and the network takes {channels}.",
        hint="Give a file for each channel with --stack." if channels > 1 else "Save it as gray.",
    )
