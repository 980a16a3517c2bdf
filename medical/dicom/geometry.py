"""Slices of a series to a grid: sorted by their place along the normal, and refused where they are no even stack.

Positions are those of DICOM: LPS+ mm, of the centre of the first pixel. A grid is RAS+. Section 7 of the project's medical
protocol has the rules; PS3.3 C.7.6.2.1.1 of the standard the tags.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hybrid.errors import InputError
from medical.volumes.geometry import Grid

SAME_PLACE = 1e-3
"""Two slices nearer than this along the normal, in mm, are at one place."""
TILT = 0.1
"""Degrees between the way from slice to slice and the normal, beyond which a stack is sheared."""

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_LISTED = 6


@dataclass(frozen=True, eq=False)
class Stack:
    """Slices as a volume.

    Attributes:
        order: For each k the index of its slice in what was given.
        grid: (columns, rows, slices) in RAS+ mm.
        tilt: Degrees between the way from slice to slice and the normal of the slices.
    """

    order: tuple[int, ...]
    grid: Grid
    tilt: float


def normal_of(orientation: tuple[float, ...]) -> np.ndarray:
    """(3,) unit normal of slices, from the directions of a row and of a column.

    Raises:
        InputError: The directions are not two perpendicular ones of length 1.
    """
    along_row, along_column = np.array(orientation[:3]), np.array(orientation[3:])
    lengths = np.linalg.norm(along_row), np.linalg.norm(along_column)
    if not (max(abs(length - 1) for length in lengths) < 0.01 and abs(along_row @ along_column) < 0.01):
        raise InputError(
            "The slices' ImageOrientationPatient is not two perpendicular directions.", hint="Export the series again."
        )
    normal = np.cross(along_row, along_column)
    unit: np.ndarray = normal / np.linalg.norm(normal)
    return unit


def repeated(distances: np.ndarray) -> np.ndarray:
    """Those of (n,) distances along the normal, sorted, at which there is more than one slice."""
    ordered = np.sort(distances)
    again = np.flatnonzero(np.diff(ordered) < SAME_PLACE)
    return ordered[again[np.diff(again, prepend=-2) > 1]]


def stack_slices(
    positions: np.ndarray, orientation: tuple[float, ...], pixel_spacing: tuple[float, float], size: tuple[int, int]
) -> Stack:
    """Sort slices and find the affine of the volume that they make; InstanceNumber and SliceLocation are not looked at.

    Args:
        positions: (n, 3) ImagePositionPatient.
        orientation: ImageOrientationPatient: the directions in which columns and rows are counted.
        pixel_spacing: PixelSpacing: mm between rows, and between columns.
        size: (columns, rows).

    Raises:
        InputError: One slice alone; slices at one place, missing, unevenly spaced or shifted against each other.
    """
    if len(positions) < 2:
        raise InputError("This is a single slice, and a volume is needed.", hint="Give the folder with the whole series.")
    normal = normal_of(orientation)
    distances = positions @ normal
    if len(places := repeated(distances)):
        raise InputError(
            f"Several slices lie at one place ({_places(places)} along the normal), and nothing in them tells them apart.",
            hint="Leave one series in the folder, each slice once.",
        )
    order = np.argsort(distances)
    placed, distances = positions[order], distances[order]
    _check_gaps(distances)
    step = (placed[-1] - placed[0]) / (len(placed) - 1)
    _check_line(placed, step, normal, min(pixel_spacing))
    along_row, along_column = (np.array(part) / np.linalg.norm(part) for part in (orientation[:3], orientation[3:]))
    affine = np.eye(4)
    affine[:3] = np.column_stack([along_row * pixel_spacing[1], along_column * pixel_spacing[0], step, placed[0]])
    tilt = np.degrees(np.arccos(np.clip(step @ normal / np.linalg.norm(step), -1, 1)))
    return Stack(tuple(int(index) for index in order), Grid((*size, len(order)), _LPS_TO_RAS @ affine), float(tilt))


def position_of(grid: Grid, k: int) -> np.ndarray:
    """(3,) LPS+ mm of the first pixel of slice k.

    >>> position_of(Grid((2, 2, 2), np.diag([-1.0, -1, 3, 1])), 1)
    array([0., 0., 3.])
    """
    place: np.ndarray = (_LPS_TO_RAS @ grid.affine @ (0, 0, k, 1))[:3] + 0.0
    return place


def _check_gaps(distances: np.ndarray) -> None:
    gaps = np.diff(distances)
    usual = float(np.median(gaps))
    allowed = max(0.01 * usual, 0.01)
    wrong = np.abs(gaps - usual) > allowed
    if not wrong.any():
        return
    multiples = np.rint(gaps / usual)
    if (multiples[wrong] >= 2).all() and (np.abs(gaps - multiples * usual)[wrong] <= allowed * multiples[wrong]).all():
        missing = np.concatenate(
            [distances[at] + gaps[at] / multiples[at] * np.arange(1, multiples[at]) for at in np.flatnonzero(wrong)]
        )
        raise InputError(
            f"{len(missing)} slice{'s are' if len(missing) > 1 else ' is'} missing, at {_places(missing)} along the normal.",
            hint="Export or copy the whole series.",
        )
    raise InputError(
        f"The slices have non-uniform spacing: {gaps.min():.3f} to {gaps.max():.3f} mm.",
        hint="Resample the series to even spacing, such as by dcm2niix, and give the NIfTI file.",
    )


def _check_line(placed: np.ndarray, step: np.ndarray, normal: np.ndarray, pixel: float) -> None:
    """Each slice must be where even steps from the first lead."""
    off = placed - (placed[0] + np.arange(len(placed))[:, None] * step)
    along = off @ normal
    if np.abs(along).max() > max(0.05 * abs(step @ normal), 0.01):
        raise InputError(
            f"The slices have non-uniform spacing: they drift by up to {np.abs(along).max():.3f} mm from even steps.",
            hint="Resample the series to even spacing, such as by dcm2niix, and give the NIfTI file.",
        )
    across = np.linalg.norm(off - along[:, None] * normal, axis=1).max()
    if across > max(0.05 * pixel, 0.01):
        raise InputError(
            f"The slices are shifted against each other by up to {across:.3f} mm and make no volume.",
            hint="Give each part as a folder of its own.",
        )


def _places(distances: np.ndarray) -> str:
    text = ", ".join(f"{distance:.2f}" for distance in distances[:_LISTED]) + " mm"
    return text if len(distances) <= _LISTED else f"{text} and {len(distances) - _LISTED} more"
