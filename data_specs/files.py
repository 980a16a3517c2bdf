"""Finds the files of a data set below a user's folder, and checks them against known sums."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_specs.schema import DataSpec, Layout, SuperResolutionSpec
from hybrid.errors import InputError, RequestError
from hybrid.records import sha256_file

PICTURE_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ImagePair:
    """One test picture; `lr` is None where the low-resolution picture is to be made."""

    name: str
    hr: Path
    lr: Path | None


@dataclass(frozen=True)
class FoundImages:
    """The pictures of a set, in order of their names, and how they lie."""

    folder: Path
    layout: Layout
    pairs: tuple[ImagePair, ...]


@dataclass(frozen=True)
class Checked:
    """How many files have a known checksum, and which have not."""

    known: int
    unknown: tuple[Path, ...]


def find_images(spec: SuperResolutionSpec, data_dir: str | Path | None, scale: int) -> FoundImages:
    """Find the pictures of a set at one scale.

    Args:
        spec: The set's description. One that brings its own pictures (`mini`) needs no `data_dir`.
        data_dir: The folder that holds the set's folder, or that folder itself.
        scale: Scale of the benchmark.

    Raises:
        RequestError: The set is not made for this scale, or `data_dir` is needed.
        InputError: The folder or the pictures are missing or incomplete; the message lists what was looked for.
    """
    if scale not in spec.scales:
        known = ", ".join(f"x{each}" for each in spec.scales)
        raise RequestError(f"{spec.title} has no x{scale}.", hint=f"Choose one of {known}.")
    folder = set_folder(spec, data_dir)
    tried = []
    for layout in spec.layouts:
        if layout.scales is not None and scale not in layout.scales:
            continue
        pairs = _pairs(layout, folder, scale)
        if pairs and spec.images in (None, len(pairs)):
            return FoundImages(folder, layout, pairs)
        found = f"{len(pairs)} pictures" if pairs else "none"
        tried.append(f"{_shown(layout.hr, scale)}: {found}")
    wanted = f"{spec.images} pictures" if spec.images else "pictures"
    raise InputError(
        f"{folder} does not hold the {wanted} of {spec.title} at x{scale}. Looked for: {'; '.join(tried)}.",
        hint=f"Put them into {folder / _shown(spec.layouts[0].hr, scale)}. Source: {spec.source.url or spec.source.where}.",
    )


def check_files(spec: DataSpec, found: FoundImages | Sequence[Path]) -> Checked | None:
    """Compare the content of all found files with the set's checksums, whatever their names; None if it has none.

    A file with an unknown sum is not wrong: another download may store the same pixels in other bytes.
    """
    if spec.checksums is None:
        return None
    sums = {line.split()[0] for line in spec.checksums.read_text(encoding="utf-8").splitlines() if line.strip()}
    if isinstance(found, FoundImages):
        paths = [path for pair in found.pairs for path in (pair.hr, pair.lr) if path is not None]
    else:
        paths = list(found)
    unknown = tuple(path for path in paths if sha256_file(path) not in sums)
    return Checked(len(paths) - len(unknown), unknown)


def set_folder(spec: DataSpec, data_dir: str | Path | None) -> Path:
    """The folder of a set: its own, the one of its name in `data_dir`, or `data_dir` if that has the name.

    Raises:
        RequestError: `data_dir` is needed.
        InputError: There is no such folder.
    """
    if spec.pictures is not None:
        return spec.pictures
    if data_dir is None:
        raise RequestError(
            f"{spec.title} does not ship with the package.", hint="Name the folder of your data sets with --data, or try mini."
        )
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise InputError(f"The data folder {data_dir} does not exist.", hint="Name the folder that holds your data sets.")
    names = {name.lower() for name in spec.folders}
    for child in sorted(data_dir.iterdir()):
        if child.is_dir() and child.name.lower() in names:
            return child
    if data_dir.resolve().name.lower() in names:
        return data_dir
    raise InputError(
        f"{data_dir} has no folder named {' or '.join(spec.folders)} for the data set {spec.title}.",
        hint=f"Put the set there. Source: {spec.source.url or spec.source.where}.",
    )


def _pairs(layout: Layout, folder: Path, scale: int) -> tuple[ImagePair, ...]:
    """All pictures that fit the layout. Either every low-resolution picture is there, or none is used."""
    hr = _pictures(layout.hr, folder, scale)
    lr = _pictures(layout.lr, folder, scale) if layout.lr is not None else {}
    missing = [name for name in hr if name not in lr]
    if lr and hr and missing:
        raise InputError(
            f"{len(missing)} of {len(hr)} low-resolution pictures are missing in {folder}, the first is "
            f"{_shown(str(layout.lr), scale).replace('NAME', missing[0])}.",
            hint="Complete them, or remove them all to have them made from the high-resolution pictures.",
        )
    return tuple(ImagePair(name, hr[name], lr.get(name)) for name in sorted(hr))


def _pictures(pattern: str, folder: Path, scale: int) -> dict[str, Path]:
    """Files that fit a pattern, by the picture's name in it."""
    parent, _, last = pattern.replace("{scale}", str(scale)).rpartition("/")
    before, after = (re.escape(part) for part in last.split("{name}"))
    place = folder / parent
    found: dict[str, Path] = {}
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        match = re.fullmatch(f"{before}(.+){after}", path.stem)
        if match and path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith("."):
            if match[1] in found:
                raise InputError(f"{found[match[1]]} and {path} are the same picture.", hint="Keep one of them.")
            found[match[1]] = path
    return found


def _shown(pattern: str, scale: int) -> str:
    """A layout pattern as a user would write it."""
    return pattern.replace("{scale}", str(scale)).replace("{name}", "NAME") + ".png"
