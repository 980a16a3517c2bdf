"""Where voxels lie in the patient, and the only place that permutes, flips or resamples axes.

Axes: arrays of volumes are (C, i, j, k) or (i, j, k) in the order of the file; world coordinates are RAS+ millimetres
(x to the patient's right, y to the front, z to the head), as in NIfTI. An affine maps voxel indices to the world.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import nibabel as nib
import numpy as np
from scipy import ndimage, sparse

from hybrid.errors import InputError, RequestError

SHEAR_TOLERANCE = 1e-3
"""Largest cosine between two axes of a grid that still counts as orthogonal."""

_SLAB_BYTES = 1 << 26
_SAME_PLACE = 1e-3  # voxels; nearer than this, two places give the same value


@dataclass(frozen=True, eq=False)
class Grid:
    """A grid of voxels in the patient.

    Attributes:
        shape: Voxels along (i, j, k).
        affine: (4, 4) float64, voxel indices to RAS+ mm; read-only.

    Raises:
        InputError: The affine is not finite, or maps the grid to less than a volume; or the shape is not three edges.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        affine = np.array(self.affine, dtype=np.float64)
        if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.array_equal(affine[3], (0, 0, 0, 1)):
            raise InputError("The affine of the scan is no finite 4 x 4 matrix.", hint="Export the scan again.")
        with np.errstate(all="ignore"):  # what overflows is refused below
            lengths = np.linalg.norm(affine[:3, :3], axis=0)
            volume = abs(np.linalg.det(affine[:3, :3] / lengths))
        if not (lengths.min() > 0 and volume >= 1e-6):  # false for NaN too
            raise InputError("The affine of the scan gives its voxels no volume.", hint="Export the scan again.")
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise InputError(f"The scan's shape {tuple(self.shape)} holds no volume.", hint="Export the scan again.")
        affine.flags.writeable = False
        object.__setattr__(self, "affine", affine)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance of neighbouring voxels along (i, j, k) in mm."""
        i, j, k = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(i), float(j), float(k)

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel in millilitres, right for sheared grids too."""
        return float(abs(np.linalg.det(self.affine[:3, :3]))) / 1000.0

    @property
    def codes(self) -> str:
        """Closest anatomical direction of each axis, such as ``RAS`` or ``LPS``."""
        return "".join(nib.aff2axcodes(self.affine))

    @property
    def orthogonal(self) -> bool:
        """Whether the axes stand at right angles to each other, within a cosine of 1e-3."""
        directions = self.affine[:3, :3] / np.linalg.norm(self.affine[:3, :3], axis=0)
        return bool(np.abs(directions.T @ directions - np.eye(3)).max() <= SHEAR_TOLERANCE)

    def to_world(self, indices: np.ndarray) -> np.ndarray:
        """(..., 3) voxel indices to (..., 3) RAS+ mm."""
        places: np.ndarray = np.asarray(indices) @ self.affine[:3, :3].T + self.affine[:3, 3]
        return places

    def matches(self, other: Grid, tolerance: float = 1e-3) -> bool:
        """Whether every voxel of both lies at the same place, within `tolerance` mm."""
        if self.shape != other.shape:
            return False
        corners = np.stack(np.meshgrid(*([0, n - 1] for n in self.shape), indexing="ij"), -1).reshape(-1, 3)
        return bool(np.abs(self.to_world(corners) - other.to_world(corners)).max() <= tolerance)


@dataclass(frozen=True, eq=False)
class Reorientation:
    """The permutation and flips that bring a grid's axes nearest to an orientation; exact both ways.

    Obliquity stays in the affine: no value is interpolated. Build it with `between`.

    Attributes:
        axes: For each new axis, the old axis that it is.
        flips: For each new axis, whether it runs against the old one.
        grid: The grid with its axes permuted and flipped; each voxel keeps its place in the patient.
    """

    axes: tuple[int, int, int]
    flips: tuple[bool, bool, bool]
    grid: Grid

    @classmethod
    def between(cls, grid: Grid, orientation: str) -> Reorientation:
        """The way from a grid to an orientation such as ``RAS``: each letter says where an axis runs to.

        Raises:
            RequestError: The orientation does not name each direction of the body once.
        """
        if sorted("LRPAIS".find(letter) // 2 for letter in orientation) != [0, 1, 2]:
            raise RequestError(f"{orientation!r} is no orientation of three axes.", hint="Name one such as RAS or LPS.")
        wanted = nib.orientations.axcodes2ornt(orientation)
        turn = nib.orientations.ornt_transform(nib.orientations.io_orientation(grid.affine), wanted)
        # nibabel says where each old axis goes to; here each new axis says which old one it is.
        axes = tuple(int(np.flatnonzero(turn[:, 0] == new)[0]) for new in range(3))
        flips = tuple(bool(turn[old, 1] < 0) for old in axes)
        steps = np.zeros((4, 4))
        steps[3, 3] = 1
        for new, (old, flip) in enumerate(zip(axes, flips, strict=True)):
            steps[old, new] = -1 if flip else 1
            steps[old, 3] = grid.shape[old] - 1 if flip else 0
        shape = tuple(grid.shape[old] for old in axes)
        return cls(axes, flips, Grid(shape, grid.affine @ steps))  # type: ignore[arg-type]

    def apply(self, array: np.ndarray) -> np.ndarray:
        """(..., i, j, k) on the old grid to a view of it on the new one."""
        lead = tuple(range(array.ndim - 3))
        view: np.ndarray = array.transpose(*lead, *(array.ndim - 3 + old for old in self.axes))[self._runs]
        return view

    def undo(self, array: np.ndarray) -> np.ndarray:
        """(..., i, j, k) on the new grid to a view of it on the old one."""
        lead = tuple(range(array.ndim - 3))
        view: np.ndarray = array[self._runs].transpose(*lead, *(array.ndim - 3 + new for new in np.argsort(self.axes)))
        return view

    @property
    def _runs(self) -> tuple[Any, ...]:
        return (..., *(slice(None, None, -1 if flip else 1) for flip in self.flips))


def resampled(grid: Grid, spacing: tuple[float, float, float]) -> Grid:
    """The same field of view with voxels of about `spacing` mm along (i, j, k).

    The outer edges of the outer voxels stay where they are, and each edge holds the nearest whole number of voxels,
    at least one; so the spacing is that asked for up to this rounding, as in nnU-Net.

    >>> resampled(Grid((10, 10, 5), np.diag([1.0, 1.0, 3.0, 1.0])), (2.0, 2.0, 2.0)).shape
    (5, 5, 8)
    """
    # Rounded twice, so that noise in the last digits of an affine cannot tip a half either way.
    lengths = np.array(grid.shape) * grid.spacing / np.array(spacing)
    shape = tuple(max(1, round(round(float(length), 6))) for length in lengths)
    affine = grid.affine.copy()
    affine[:3, :3] *= np.array(grid.shape) / shape
    affine[:3, 3] += 0.5 * (affine[:3, :3] - grid.affine[:3, :3]).sum(axis=1)
    return Grid(shape, affine)  # type: ignore[arg-type]


def orthogonalised(grid: Grid) -> Grid:
    """The smallest grid with axes at right angles that covers a sheared one; an orthogonal grid is given back as it is.

    The two axes that are nearest to a right angle are kept, of several such pairs the one of the likest spacing: those of
    a slice. The third becomes their normal, its step the distance of the planes. So the slices of a CT with a tilted
    gantry stay the slices, and values move within them alone. Where the shear is strong an axis may come nearest to another
    anatomical direction than before: make a grid orthogonal first, then reorient it.
    """
    if grid.orthogonal:
        return grid
    directions, spacing = grid.affine[:3, :3] / grid.spacing, grid.spacing

    def unlikeness(pair: tuple[int, int]) -> tuple[float, float]:
        one, other = pair
        cosine, ratio = float(directions[:, one] @ directions[:, other]), math.log(spacing[one] / spacing[other])
        return round(abs(cosine), 3), round(abs(ratio), 3)

    first, second = min(combinations(range(3), 2), key=unlikeness)
    order = [first, second, 3 - first - second]
    # QR is Gram and Schmidt's method; its signs are free, so they are set to those of the old axes.
    frame, steps = np.linalg.qr(grid.affine[:3, order])
    frame = frame * np.sign(np.diag(steps))
    distances = np.abs(np.diag(steps))

    edges = np.stack(np.meshgrid(*([-0.5, n - 0.5] for n in grid.shape), indexing="ij"), -1).reshape(-1, 3)
    places = grid.to_world(edges) @ frame
    low, high = places.min(axis=0), places.max(axis=0)
    counts = np.ceil((high - low) / distances - 1e-6).astype(int)

    affine, shape = np.eye(4), [0, 0, 0]
    affine[:3, 3] = frame @ (low + distances / 2)
    for column, axis in enumerate(order):
        affine[:3, axis] = frame[:, column] * distances[column]
        shape[axis] = int(counts[column])
    return Grid(tuple(shape), affine)  # type: ignore[arg-type]


def resample(array: np.ndarray, source: Grid, target: Grid, *, order: int) -> np.ndarray:
    """Values of a scan at the voxels of another grid, by their place in the patient.

    Places outside of the scan take its nearest value. Grids whose axes are parallel, whatever their order and sense, are
    resampled one axis after another in slabs, within little more memory than the result; others by
    `scipy.ndimage.affine_transform`. Reducing does not smooth first, as in nnU-Net and MONAI.

    Args:
        array: (..., i, j, k) on `source`, of any real type.
        source: Where the values lie.
        target: Where values are wanted.
        order: 0 takes the nearest voxel, 1 interpolates linearly, 3 by cubic B-splines.

    Returns:
        (..., i, j, k) float32 on `target`.

    Raises:
        ValueError: The array does not lie on `source`, or there is no such order.
    """
    if array.shape[-3:] != source.shape or order not in (0, 1, 3):
        raise ValueError(f"{array.shape} on a grid of {source.shape}, order {order}")
    result = np.empty(array.shape[:-3] + target.shape, dtype=np.float32)
    steps = np.linalg.inv(source.affine) @ target.affine
    axes = _parallel_axes(steps, target.shape)
    if axes is None:
        for index in np.ndindex(array.shape[:-3]):
            ndimage.affine_transform(array[index], steps[:3, :3], steps[:3, 3], output=result[index], order=order, mode="nearest")
        return result
    weights = [
        _weights(source.shape[old], steps[old, new] * np.arange(target.shape[new]) + steps[old, 3], order)
        for new, old in enumerate(axes)
    ]
    for index in np.ndindex(array.shape[:-3]):
        _resample_axes(array[index].transpose(axes), weights, result[index])
    return result


def resample_labels(labels: np.ndarray, source: Grid, target: Grid) -> np.ndarray:
    """The label with the largest share at each voxel of another grid; of equal shares the lower label's.

    Each label's mask is interpolated linearly, so that borders stay smooth where the nearest voxel would make stairs. The
    work does not grow with the number of labels: a place whose eight neighbours agree takes their label, and only the
    others' shares are summed.

    Args:
        labels: (i, j, k) integers on `source`.
        source: Where they lie.
        target: Where they are wanted.

    Returns:
        (i, j, k) on `target`, of the type of `labels`.

    Raises:
        ValueError: The labels do not lie on `source`.
    """
    if labels.shape != source.shape:
        raise ValueError(f"{labels.shape} on a grid of {source.shape}")
    result = np.empty(target.shape, dtype=labels.dtype)
    steps = np.linalg.inv(source.affine) @ target.affine
    # What a step adds over the whole grid, and whether that is anything: then axes that stay parallel stay apart, and
    # their places are lines, not volumes.
    moves = np.abs(steps[:3, :3]) * (np.array(target.shape) - 1) >= _SAME_PLACE
    rows = max(1, _SLAB_BYTES // (16 * math.prod(target.shape[1:])))
    for first in range(0, target.shape[0], rows):
        indices = np.ogrid[first : min(first + rows, target.shape[0]), : target.shape[1], : target.shape[2]]
        places = [
            sum((steps[old, new] * indices[new] for new in range(3) if moves[old, new]), start=np.full((1, 1, 1), steps[old, 3]))
            for old in range(3)
        ]
        result[first : first + rows] = _largest_shares(labels, places, result[first : first + rows].shape)
    return result


def _largest_shares(labels: np.ndarray, places: list[np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The label of the largest share at places (i, j, k) in voxels, each of which can be broadcast to `shape`."""
    corners, shares = [], []
    for edge, place in zip(labels.shape, places, strict=True):
        place = np.clip(np.round(place, 6), 0, edge - 1)
        low = place.astype(np.intp)
        corners.append((low, np.minimum(low + 1, edge - 1)))
        shares.append((1 - (place - low), place - low))
    sides = list(product((0, 1), repeat=3))
    near = [np.broadcast_to(labels[tuple(corner[side] for corner, side in zip(corners, s, strict=True))], shape) for s in sides]
    result = near[0].copy()
    mixed = np.logical_or.reduce([other != result for other in near[1:]])
    candidates = np.stack([corner[mixed] for corner in near])
    weights = np.stack(
        [np.broadcast_to(math.prod(share[side] for share, side in zip(shares, s, strict=True)), shape)[mixed] for s in sides]
    )
    best = np.zeros(candidates.shape[1])
    chosen = candidates[0].copy()
    for candidate in candidates:
        share = (weights * (candidates == candidate)).sum(axis=0)
        # Shares that differ by rounding alone are equal.
        better = (share > best + 1e-5) | ((share > best - 1e-5) & (candidate < chosen))
        chosen[better] = candidate[better]
        np.maximum(best, share, out=best)
    result[mixed] = chosen
    return result


def _parallel_axes(steps: np.ndarray, shape: tuple[int, int, int]) -> tuple[int, ...] | None:
    """For each target axis the source axis that it is parallel to, or None where an axis crosses several."""
    travel = np.abs(steps[:3, :3]) * (np.array(shape) - 1)
    axes = np.abs(steps[:3, :3]).argmax(axis=0)
    if len(set(axes)) < 3:
        return None
    travel[axes, range(3)] = 0
    return tuple(int(axis) for axis in axes) if travel.max() < _SAME_PLACE else None


def _weights(size: int, places: np.ndarray, order: int) -> sparse.csr_array | None:
    """(places, size) share of each source voxel of a line in the values at `places`; None where they are the same line."""
    places = np.round(places, 6)  # noise in an affine must not decide which of two voxels is the nearest
    if places.shape == (size,) and np.abs(places - np.arange(size)).max() < _SAME_PLACE:
        return None
    # Interpolation is linear in the values, so the answers to unit impulses are the weights.
    columns = [ndimage.map_coordinates(unit, [places], order=order, mode="nearest") for unit in np.eye(size)]
    dense = np.stack(columns, axis=1)
    dense[np.abs(dense) < 1e-7] = 0  # the far tails of cubic splines
    dense /= dense.sum(axis=1, keepdims=True)
    return sparse.csr_array(dense.astype(np.float32))


def _resample_axes(values: np.ndarray, weights: list[sparse.csr_array | None], result: np.ndarray) -> None:
    """Multiply the weights into each axis of (i, j, k) values, slab by slab of the axis that memory holds outermost."""
    outer = int(np.argmax(np.abs(values.strides)))
    values, target = np.moveaxis(values, outer, 0), np.moveaxis(result, outer, 0)
    inner = [matrix for axis, matrix in enumerate(weights) if axis != outer]
    plane = max(values[0].size, target[0].size, values.shape[1] * target.shape[2], target.shape[1] * values.shape[2])
    rows = max(1, _SLAB_BYTES // (4 * plane * max(1, round(len(values) / len(target)))))
    for first in range(0, len(target), rows):
        last = min(first + rows, len(target))
        block = _rows(values, weights[outer], first, last)
        for axis, matrix in enumerate(inner, start=1):
            block = _along(matrix, block, axis)
        target[first:last] = block


def _rows(values: np.ndarray, matrix: sparse.csr_array | None, first: int, last: int) -> np.ndarray:
    """Rows first to last of the weighted first axis, read from the source rows that they need alone."""
    if matrix is None:
        return np.ascontiguousarray(values[first:last], dtype=np.float32)
    part = matrix[first:last]
    low, high = int(part.indices.min()), int(part.indices.max()) + 1
    return _along(part[:, low:high], np.ascontiguousarray(values[low:high], dtype=np.float32), 0)


def _along(matrix: sparse.csr_array | None, block: np.ndarray, axis: int) -> np.ndarray:
    if matrix is None:
        return block
    moved = np.moveaxis(block, axis, 0)
    weighted = matrix @ moved.reshape(len(moved), -1)
    return np.moveaxis(weighted.reshape(-1, *moved.shape[1:]), 0, axis)
