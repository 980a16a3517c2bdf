"""Finds the faces of a benchmark below a user's folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data_specs.face_schema import FaceLayout, FaceSpec
from data_specs.files import PICTURE_SUFFIXES, set_folder
from data_specs.restoration_files import matching
from hybrid.errors import InputError


@dataclass(frozen=True)
class FaceItem:
    """One test face: its name, the sharp file where there is one, the degraded file where it is stored."""

    name: str
    clean: Path | None
    degraded: Path | None


@dataclass(frozen=True)
class FoundFaces:
    """The faces of a set, in order of their names, and how they lie."""

    layout: FaceLayout
    items: tuple[FaceItem, ...]


def find_faces(spec: FaceSpec, data_dir: str | Path | None) -> FoundFaces:
    """Find the faces of a set.

    Args:
        spec: The set's description.
        data_dir: The folder that holds the set's folder, or that folder itself.

    Raises:
        RequestError: `data_dir` is needed.
        InputError: The folder or the faces are missing or incomplete; the message lists what was looked for.
    """
    folder, tried = set_folder(spec, data_dir), []
    for layout in spec.layouts:
        sides = [matching(p, folder, PICTURE_SUFFIXES) if p else None for p in (layout.clean, layout.degraded)]
        names = set.intersection(*(set(side) for side in sides if side is not None))
        alone = set.union(*(set(side) for side in sides if side is not None)) - names
        if names and alone:
            raise InputError(
                f"{len(alone)} faces in {folder} have no partner, the first is {min(alone)}.", hint="Complete the pairs."
            )
        if names and spec.images in (None, len(names)):
            clean, degraded = sides
            items = [FaceItem(n, clean[n] if clean else None, degraded[n] if degraded else None) for n in sorted(names)]
            return FoundFaces(layout, tuple(items))
        patterns = " with ".join(p.replace("{name}", "NAME") + ".png" for p in (layout.degraded, layout.clean) if p)
        tried.append(f"{patterns}: {f'{len(names)} faces' if names else 'none'}")
    wanted = f"{spec.images} faces" if spec.images else "faces"
    raise InputError(
        f"{folder} does not hold the {wanted} of {spec.title}. Looked for: {'; '.join(tried)}.",
        hint=f"Source: {spec.source.url or spec.source.where}.",
    )
