"""Label maps of pictures: PNG files whose values are the labels, and whose palette shows them in the structures' colours.

Axes: labels are (rows, columns, 1), as `medical.pictures.reading` reads pictures.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from data_specs.volume_files import volume_stem, volumes_in
from hybrid.bounded_files import open_bounded
from hybrid.errors import InputError, OutputError, RequestError
from hybrid.records import replacing, write_bytes
from medical.notice import RESEARCH_USE
from medical.structures import Structure, unnamed
from medical.volumes.geometry import Grid
from medical.volumes.label_maps import LabelMap, names_of, names_path, names_to_json, read_label_map
from medical.volumes.volume import PICTURE_ENDINGS

_ENTRIES = 256
"""Colours of a palette; label maps with labels beyond them are gray of 16 bits."""
_FORMATS = ("PNG", "TIFF", "BMP", "JPEG", "WEBP", "AVIF")
"""Of the many that Pillow reads, some by running other programs; those with losses are named to be refused in plain words."""
_DAMAGE = (
    OSError, UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError, TypeError, KeyError, IndexError,
    AttributeError, OverflowError, ZeroDivisionError, struct.error,
)  # fmt: skip
"""What Pillow raises on files that are damaged; it documents none of it."""


def write_label_picture(path: Path, labels: np.ndarray, structures: Sequence[Structure]) -> Path:
    """Write a label map as PNG, whole or not at all, with the names of its structures beside it (`names_path`).

    Labels up to 255 are the indices of a palette that shows each in its structure's colour, and the background in black;
    with larger ones the file is gray of 16 bits.

    Args:
        path: .png.
        labels: (rows, columns, 1) uint8 or uint16.
        structures: What the labels mean.

    Raises:
        RequestError: The name ends otherwise.
        OutputError: The folder does not take the files, or what was read back is not what was written.
    """
    if path.suffix.lower() != ".png":
        raise RequestError(f"{path.name} does not end in .png, as label maps of pictures do.", hint=f"Name it {path.stem}.png.")
    plane = np.ascontiguousarray(labels[..., 0])
    if int(plane.max(initial=0)) < _ENTRIES:
        picture = Image.fromarray(plane.astype(np.uint8, copy=False), "L")
        picture.putpalette(_palette(structures))
    else:
        picture = Image.fromarray(plane.astype(np.uint16, copy=False))
    text = PngImagePlugin.PngInfo()
    text.add_itxt("Comment", RESEARCH_USE)
    try:
        with replacing(path) as part:
            picture.save(part, "PNG", pnginfo=text)
            with part.open("rb") as stream:  # by the reader of PNG itself: the limit on sizes is for files of others
                found = np.asarray(PngImagePlugin.PngImageFile(stream))
            if not np.array_equal(found, plane):
                raise OutputError(f"{path.name} was read back otherwise than it was written.", hint="Check the disk.")
    except OSError as error:
        raise OutputError(f"{path.name} cannot be written: {error.strerror}.", hint="Choose another --output.") from error
    write_bytes(names_path(path), (json.dumps(names_to_json(structures), ensure_ascii=False, indent=2) + "\n").encode())
    return path


def read_label_picture(path: str | Path, meanings: Mapping[int, int] | None = None) -> LabelMap:
    """Read a label map of a picture: a palette's indices, or values of gray, of 1 to 16 bits; PNG, TIFF or BMP.

    Args:
        path: The file.
        meanings: The label that each stored value stands for, where it is not the value itself; those not named stay.

    Returns:
        Labels (rows, columns, 1) on a grid whose steps are 1 pixel.

    Raises:
        InputError: It cannot be read, or is a picture in colours, whose values are no labels.
    """
    from restore.images.reading import upright

    path = Path(path)
    try:
        with open_bounded(path) as stream, Image.open(stream, formats=_FORMATS) as opened:
            stored = upright(np.asarray(opened), _orientation(opened))
            kind, lossy = opened.mode, opened.format in ("JPEG", "WEBP", "AVIF")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path}.", hint="Check the path.") from error
    except _DAMAGE as error:
        raise InputError(f"{path.name} cannot be read as a picture.", hint="Give a PNG or TIFF file.") from error
    if lossy:
        raise InputError(f"{path.name} is compressed with losses, which change labels.", hint="Save label maps as PNG.")
    if stored.ndim == 3 and kind in ("RGB", "RGBA", "LA") and _alike(stored, kind):
        stored = stored[..., 0]
    if stored.ndim != 2 or stored.dtype.kind not in "biu" or stored.min() < 0 or stored.max() > 65535:
        raise InputError(
            f"{path.name} is no label map: its pixels are {kind} and no whole numbers from 0 to 65535.",
            hint="Save the numbers of the structures as gray or palette PNG.",
        )
    labels = stored.astype(np.uint16)
    for value, label in (meanings or {}).items():
        labels[stored == value] = label
    labels = labels.astype(np.uint8) if labels.max() < 256 else labels
    return LabelMap(labels[..., None], pixel_grid(labels), _structures(path, labels))


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation, 1 to 8, of a picture that is loaded: Pillow itself turns TIFF and AVIF as it loads them."""
    value = picture.getexif().get(ExifTags.Base.Orientation)
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def read_any_label_map(path: Path, meanings: Mapping[int, int] | None = None) -> LabelMap:
    """A label map of a volume or of a picture, by the name of its file; `meanings` are those of `read_label_picture`.

    Raises:
        InputError: As `medical.volumes.label_maps.read_label_map` and `read_label_picture`.
    """
    return read_label_picture(path, meanings) if path.name.lower().endswith(PICTURE_ENDINGS) else read_label_map(path)


def label_maps_in(folder: Path) -> dict[str, Path]:
    """Label maps by the names of their cases; those of pictures where there are none of volumes, which may have previews.

    Raises:
        InputError: Two files are of one case.
    """
    files: dict[str, Path] = {}
    for path in list(volumes_in(folder)) or _label_pictures(folder):
        if (other := files.setdefault(volume_stem(path), path)) != path:
            raise InputError(f"{folder} holds {volume_stem(path)} as {other.name} and as {path.name}.", hint="Keep one of them.")
    return files


def _label_pictures(folder: Path) -> list[Path]:
    """Pictures of a folder; only the label maps where `medical segment` has written them, which says so beside them."""
    found = list(volumes_in(folder, pictures=True))
    return [path for path in found if names_path(path).is_file()] or found


def pixel_grid(labels: np.ndarray) -> Grid:
    """The grid of a label map (rows, columns, ...) of a picture, on which it is scored: steps are 1 pixel."""
    return Grid((*labels.shape[:2], 1), np.eye(4))


def _alike(stored: np.ndarray, kind: str) -> bool:
    """Whether a picture in colours shows gray alone, opaque: some programs save label maps so."""
    colours = stored[..., :-1] if kind in ("RGBA", "LA") else stored
    opaque = kind == "RGB" or bool((stored[..., -1] == 255).all())
    return opaque and bool((colours == colours[..., :1]).all())


def _structures(path: Path, labels: np.ndarray) -> tuple[Structure, ...]:
    """Names from the file beside it; labels without a name are ``label 7`` and so on."""
    beside = names_path(path)
    named = names_of(beside.read_text(encoding="utf-8", errors="replace")) if beside.is_file() else ()
    others = set(np.unique(labels).tolist()) - {0, *(each.value for each in named)}
    return tuple(sorted((*named, *unnamed(sorted(others))), key=lambda each: each.value))


def _palette(structures: Sequence[Structure]) -> list[int]:
    colours = {each.value: each.rgb for each in structures}
    return [part for value in range(_ENTRIES) for part in colours.get(value, (0, 0, 0))]
