"""Faces that are known: a JSON file of boxes, and of landmarks where there are any.

Of one picture it is a list, each face `[x0, y0, x1, y1]` or `{"box": [...], "landmarks": [[x, y], ... five]}`; of many, an object
from file names to such lists; or the record that `restore face` wrote. Coordinates are pixels, centres at integers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hybrid.errors import InputError
from restore.faces.detection import Face

FORM = 'Give a list of [x0, y0, x1, y1] or {"box": [...], "landmarks": [[x, y], ...]}, or an object of such lists by file name.'


def read_boxes(path: Path) -> dict[str | None, tuple[Face, ...]]:
    """The faces of each file name; under None those of whatever picture is given.

    Raises:
        InputError: The file is missing or says something else.
    """
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.", hint="Check --boxes.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no JSON: {error}.", hint=FORM) from error
    if isinstance(told, dict) and isinstance(told.get("figures"), dict):
        told = {str(told.get("input")): told["figures"].get("faces", [])}
    if isinstance(told, list):
        return {None: _faces(told, path)}
    if isinstance(told, dict):
        return {name: _faces(faces, path) for name, faces in told.items()}
    raise InputError(f"{path} names no faces.", hint=FORM)


def boxes_of(known: dict[str | None, tuple[Face, ...]], source: Path) -> Sequence[Face]:
    """The faces of a picture; none for one that the file does not name."""
    return known.get(source.name, known.get(None, ()))


def _faces(told: Any, path: Path) -> tuple[Face, ...]:
    if not isinstance(told, list):
        raise InputError(f"{path} does not list faces.", hint=FORM)
    return tuple(_face(each, place, path) for place, each in enumerate(told, 1))


def _face(told: Any, place: int, path: Path) -> Face:
    landmarks = told.get("landmarks") if isinstance(told, dict) else None
    try:
        box = np.asarray(told["box"] if isinstance(told, dict) else told, np.float64)
        points = None if landmarks is None else np.asarray(landmarks, np.float64)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"Face {place} of {path} is not understood.", hint=FORM) from error
    sound = box.shape == (4,) and bool(np.isfinite(box).all()) and bool((box[2:] > box[:2]).all())
    if not sound or (points is not None and (points.shape != (5, 2) or not np.isfinite(points).all())):
        raise InputError(f"Face {place} of {path} is no box, or has other than five landmarks.", hint=FORM)
    score = told.get("score", 1.0) if isinstance(told, dict) else 1.0
    x0, y0, x1, y1 = (float(edge) for edge in box)
    return Face((x0, y0, x1, y1), points, float(score) if isinstance(score, int | float) and abs(score) < 1e6 else 1.0)
