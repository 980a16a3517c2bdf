"""Finds the pictures of a restoration benchmark below a user's folder: pairs of files, blocks in one array, boxes to cut out."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import scipy.io

from data_specs.files import PICTURE_SUFFIXES, set_folder
from data_specs.restoration_schema import BlockLayout, BoxLayout, PictureLayout, RestorationSpec
from hybrid.errors import InputError

AnyLayout = PictureLayout | BlockLayout | BoxLayout


@dataclass(frozen=True)
class RestorationItem:
    """One test picture.

    Attributes:
        name: Its name in reports; a folder in it shows as a slash.
        clean: File of the reference; None where there is none.
        degraded: File of the degraded picture; None where it is made.
        block: Place in the array of blocks (scene, block), or (photograph, box) counted from 0; None for a file of one picture.
    """

    name: str
    clean: Path | None
    degraded: Path | None
    block: tuple[int, int] | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that are read."""
        return tuple(path for path in (self.clean, self.degraded) if path is not None)


@dataclass(frozen=True)
class FoundRestoration:
    """The pictures of a set, in order of their names, and how they lie."""

    folder: Path
    layout: AnyLayout
    items: tuple[RestorationItem, ...]


def find_restoration(spec: RestorationSpec, data_dir: str | Path | None) -> FoundRestoration:
    """Find the pictures of a set.

    Args:
        spec: The set's description. One that brings its own pictures needs no `data_dir`.
        data_dir: The folder that holds the set's folder, or that folder itself.

    Raises:
        RequestError: `data_dir` is needed.
        InputError: The folder or the pictures are missing or incomplete; the message lists what was looked for.
    """
    folder = set_folder(spec, data_dir)
    tried = []
    for layout in spec.layouts:
        items = _items(layout, folder, spec)
        if items and spec.images in (None, len(items)):
            return FoundRestoration(folder, layout, items)
        tried.append(f"{shown(layout)}: {f'{len(items)} pictures' if items else 'none'}")
    wanted = f"{spec.images} pictures" if spec.images else "pictures"
    raise InputError(
        f"{folder} does not hold the {wanted} of {spec.title}. Looked for: {'; '.join(tried)}.",
        hint=f"Put them into {folder / shown(spec.layouts[0])}. Source: {spec.source.url or spec.source.where}.",
    )


def shown(layout: AnyLayout) -> str:
    """The files of a layout as a user would write them."""
    if isinstance(layout, BlockLayout):
        return f"{layout.clean_blocks} with {layout.degraded_blocks}"
    if isinstance(layout, BoxLayout):
        return f"{_written(layout.noisy)}.mat with {layout.boxes}"
    clean = f"{_written(layout.clean)}.png"
    return clean if layout.degraded is None else f"{clean} with {_written(layout.degraded)}.png"


def _written(pattern: str) -> str:
    return pattern.replace("{name}", "NAME").replace("{scene}", "SCENE")


def _items(layout: AnyLayout, folder: Path, spec: RestorationSpec) -> tuple[RestorationItem, ...]:
    if isinstance(layout, BlockLayout):
        return _blocks(folder / layout.clean_blocks, folder / layout.degraded_blocks)
    if isinstance(layout, BoxLayout):
        if not (folder / layout.boxes).is_file():
            return ()
        photographs = matching(layout.noisy, folder, (".mat",))
        return tuple(
            RestorationItem(f"{name}_{box + 1:02}", None, path, (index, box))
            for index, (name, path) in enumerate(sorted(photographs.items()))
            for box in range(spec.blocks or 1)
        )
    clean = matching(layout.clean, folder, PICTURE_SUFFIXES)
    if layout.degraded is None:
        return tuple(RestorationItem(name, path, None) for name, path in sorted(clean.items()))
    # A folder that only one side has is no part of the name that both share.
    shared = "{scene}" in layout.clean and "{scene}" in layout.degraded
    clean = clean if shared else _without_scene(clean)
    degraded = matching(layout.degraded, folder, PICTURE_SUFFIXES)
    degraded = degraded if shared else _without_scene(degraded)
    missing = sorted(set(degraded) - set(clean)) or sorted(set(clean) - set(degraded)) if degraded else []
    if clean and "{scene}" not in layout.clean and "{scene}" in layout.degraded:
        missing = sorted(set(degraded) - set(clean))  # the clean folder holds the training pictures too
        clean = {name: path for name, path in clean.items() if name in degraded}
    if missing and clean:
        raise InputError(
            f"{len(missing)} of the pictures in {folder} have no partner, the first is {missing[0]} ({shown(layout)}).",
            hint="Complete the pairs.",
        )
    return tuple(RestorationItem(name, clean[name], degraded[name]) for name in sorted(clean) if name in degraded)


def _without_scene(paths: dict[str, Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for name, path in paths.items():
        short = name.rpartition("/")[2]
        if short in found:
            raise InputError(f"{found[short]} and {path} are the same picture.", hint="Keep one of them.")
        found[short] = path
    return found


def matching(pattern: str, folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Files that fit a pattern, by scene and name in it."""
    parent, _, last = pattern.rpartition("/")
    before, after = (re.escape(part) for part in last.split("{name}"))
    found: dict[str, Path] = {}
    for scene, place in _places(parent, folder):
        for path in sorted(place.iterdir()) if place.is_dir() else ():
            match = re.fullmatch(f"{before}(.+){after}", path.stem)
            if match and path.suffix.lower() in suffixes and not path.name.startswith("."):
                name = f"{scene}/{match[1]}" if scene else match[1]
                if name in found:
                    raise InputError(f"{found[name]} and {path} are the same picture.", hint="Keep one of them.")
                found[name] = path
    return found


def _places(parent: str, folder: Path) -> list[tuple[str, Path]]:
    """Folders of a pattern's files, each with the scene that it stands for."""
    if "{scene}" not in parent:
        return [("", folder / parent)]
    above, _, below = parent.partition("{scene}")
    top = folder / above
    scenes = sorted(path for path in top.iterdir() if path.is_dir()) if top.is_dir() else []
    return [(scene.name, scene / below.lstrip("/")) for scene in scenes]


def _blocks(clean: Path, degraded: Path) -> tuple[RestorationItem, ...]:
    if not (clean.is_file() and degraded.is_file()):
        return ()
    shapes = {path: array_shape(path) for path in (clean, degraded)}
    if len(set(shapes.values())) > 1 or len(shapes[clean]) != 5:
        raise InputError(
            f"{clean.name} holds an array of {shapes[clean]} and {degraded.name} one of {shapes[degraded]}.",
            hint="Both must hold (scenes, blocks, H, W, 3) of one size; download them again.",
        )
    scenes, blocks = shapes[clean][:2]
    places = ((scene, block) for scene in range(scenes) for block in range(blocks))
    return tuple(RestorationItem(f"{scene:02}_{block:02}", clean, degraded, (scene, block)) for scene, block in places)


def array_shape(path: Path) -> tuple[int, ...]:
    """Shape of the array that has the name of its MATLAB file.

    Raises:
        InputError: It is no such file.
    """
    try:
        shapes = {name: tuple(shape) for name, shape, _ in scipy.io.whosmat(path)}
    except (OSError, ValueError, NotImplementedError, scipy.io.matlab.MatReadError) as error:
        raise InputError(f"{path} is no MATLAB file that can be read: {error}.", hint="Download it again.") from error
    if path.stem not in shapes:
        raise InputError(f"{path} holds {', '.join(shapes) or 'nothing'}, and no array {path.stem}.", hint="Download it again.")
    return shapes[path.stem]
