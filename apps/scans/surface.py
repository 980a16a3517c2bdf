"""Surfaces of the structures in a label map, for a picture that turns.

Places are RAS+ mm in the patient, so that oblique and sheared scans look as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from skimage.measure import marching_cubes

from medical.structures import Structure
from medical.volumes.geometry import Grid

FINEST = 1 << 21
"""Voxels of a structure's box that are looked at one by one; in larger boxes every second or third."""
_SMOOTHING = 1.0  # voxels: enough to take the stairs off, little enough to leave a thin structure there


@dataclass(frozen=True, eq=False)
class Surface:
    """The surface of one structure.

    Attributes:
        structure: Whose.
        points: (n, 3) float32, RAS+ mm.
        normals: (n, 3) float32, unit length, outwards.
        faces: (m, 3) uint32 numbers of points.
    """

    structure: Structure
    points: np.ndarray
    normals: np.ndarray
    faces: np.ndarray


def surfaces(labels: np.ndarray, grid: Grid, structures: Sequence[Structure]) -> Iterator[Surface]:
    """The surface of each structure that is there, by marching cubes over its slightly smoothed mask (Lorensen and Cline, 1987).

    Args:
        labels: (i, j, k).
        grid: Where they lie.
        structures: What the numbers mean.
    """
    boxes = ndimage.find_objects(labels)
    for structure in structures:
        box = boxes[structure.value - 1] if structure.value <= len(boxes) else None
        if box is not None and (found := _surface(labels, box, grid, structure)) is not None:
            yield found


def _surface(labels: np.ndarray, box: tuple[slice, ...], grid: Grid, structure: Structure) -> Surface | None:
    mask = np.pad(labels[box] == structure.value, 2)
    step = max(1, int(np.ceil((mask.size / FINEST) ** (1 / 3))))
    smooth = ndimage.gaussian_filter(mask.astype(np.float32), _SMOOTHING)
    level = 0.5 if smooth.max() > 0.5 else float(smooth.max()) / 2  # a voxel alone is smoothed below a half
    if min(mask.shape) <= 2 * step:
        step = 1
    points, faces, normals, _ = marching_cubes(smooth, level, step_size=step, gradient_direction="descent")
    if not len(faces):
        return None
    start = np.array([part.start for part in box]) - 2
    linear = grid.affine[:3, :3]
    world = grid.to_world(points + start)
    outwards = normals @ np.linalg.inv(linear)  # normals go with the inverse transpose
    outwards /= np.maximum(np.linalg.norm(outwards, axis=1, keepdims=True), 1e-12)
    if np.linalg.det(linear) > 0:  # so that faces, too, turn outwards
        faces = faces[:, ::-1]
    return Surface(structure, world.astype(np.float32), outwards.astype(np.float32), faces.astype(np.uint32))
