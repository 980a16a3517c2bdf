"""Correction by hand: a brush that paints or erases a label on a slice, with undo.

Axes: the label map is (i, j, k) on the scan's own grid; places of the brush are voxels of the scan turned to (left,
posterior, inferior), as `apps.scans.view` counts them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from apps.scans.view import Index, Plane
from hybrid.errors import RequestError
from medical.results.preview import AXES, ORIENTATION
from medical.volumes.geometry import Grid, Reorientation

UNDO_STEPS = 50
LARGEST_RADIUS = 50.0
"""In mm."""


@dataclass(frozen=True)
class Stroke:
    """One drag of the brush.

    Attributes:
        plane: The slice's plane.
        points: Voxels of the turned scan that it went through, all in one slice of that plane.
        radius: In mm; a disc in the slice. The voxel under the brush is always taken.
        value: The label to paint; 0 erases.
    """

    plane: Plane
    points: tuple[Index, ...]
    radius: float
    value: int


@dataclass(frozen=True, eq=False)
class Step:
    """What a stroke changed, so that it can be undone: flat places in the label map, and what was there."""

    places: np.ndarray
    before: np.ndarray


@dataclass(eq=False)
class Correction:
    """A label map under correction, and the steps that led to it.

    Attributes:
        labels: (i, j, k), C order; changed in place.
        grid: Where it lies.
        values: Labels that may be painted.
        steps: What can be undone, the last one last.
        strokes: How many strokes are in the label map, those among them that can no longer be undone.
    """

    labels: np.ndarray
    grid: Grid
    values: frozenset[int]
    steps: list[Step] = field(default_factory=list)
    strokes: int = 0

    def paint(self, stroke: Stroke) -> int:
        """Apply a stroke and return how many voxels it changed.

        Raises:
            RequestError: It paints a label that the map does not have, has no point, or leaves the scan or its slice.
        """
        turn = Reorientation.between(self.grid, ORIENTATION)
        self._check(stroke, turn.grid)
        places = _places(stroke, turn, self.grid)
        flat = self.labels.reshape(-1)
        before = flat[places]
        changes = before != stroke.value
        if not changes.any():
            return 0
        self.steps.append(Step(places[changes], before[changes]))
        del self.steps[:-UNDO_STEPS]
        flat[places[changes]] = stroke.value
        self.strokes += 1
        return int(changes.sum())

    def undo(self) -> bool:
        """Take the last stroke back; whether there was one."""
        if not self.steps:
            return False
        step = self.steps.pop()
        self.labels.reshape(-1)[step.places] = step.before
        self.strokes -= 1
        return True

    def _check(self, stroke: Stroke, turned: Grid) -> None:
        if stroke.value not in self.values | {0}:
            raise RequestError("The brush has a label that this label map does not know.", hint="Choose one of the list.")
        if not stroke.points or not 0 <= stroke.radius <= LARGEST_RADIUS:
            raise RequestError(f"The brush needs a place and a radius of at most {LARGEST_RADIUS:g} mm.", hint="Try again.")
        axis = AXES[stroke.plane]
        inside = all(0 <= at < edge for point in stroke.points for at, edge in zip(point, turned.shape, strict=True))
        if not inside or len({point[axis] for point in stroke.points}) != 1:
            raise RequestError("The brush left the slice.", hint="Try again.")


def _places(stroke: Stroke, turn: Reorientation, grid: Grid) -> np.ndarray:
    """Flat places, in C order of the scan's own grid, of the voxels that a stroke touches."""
    axis = AXES[stroke.plane]
    pixels = list(np.nonzero(_touched(stroke, turn.grid)))
    pixels.insert(axis, np.full(len(pixels[0]), stroke.points[0][axis]))
    own = [pixels[0]] * 3
    for new, (old, flip) in enumerate(zip(turn.axes, turn.flips, strict=True)):
        own[old] = grid.shape[old] - 1 - pixels[new] if flip else pixels[new]
    return np.ravel_multi_index(tuple(own), grid.shape)


def _touched(stroke: Stroke, turned: Grid) -> np.ndarray:
    """Pixels of the slice, by the turned scan's two other axes, whose middle lies within the radius of the brush's way."""
    across, down = (other for other in range(3) if other != AXES[stroke.plane])
    steps = np.array([turned.spacing[across], turned.spacing[down]])
    middle = np.stack(np.meshgrid(*(np.arange(turned.shape[axis]) for axis in (across, down)), indexing="ij"), -1) * steps
    points = np.array([(point[across], point[down]) for point in stroke.points])
    found = np.zeros(middle.shape[:2], bool)
    for start, end in _ways(points * steps):
        found |= _distance(middle, start, end) <= stroke.radius
    found[points[:, 0], points[:, 1]] = True
    return found


def _ways(places: np.ndarray) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """The straight pieces of a brush's way; a single point is a piece of no length."""
    return [(places[0], places[0])] if len(places) == 1 else list(pairwise(places))


def _distance(middle: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """From each pixel to a piece of the way."""
    along = end - start
    length = float(along @ along)
    share = np.clip((middle - start) @ along / length, 0, 1)[..., None] if length else 0.0
    distances: np.ndarray = np.linalg.norm(middle - (start + share * along), axis=-1)
    return distances
