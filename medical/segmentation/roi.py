"""Which part of a scan to segment: a box of voxels, or the surroundings of what an existing mask shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hybrid.errors import InputError, RequestError
from medical.segmentation.preparation import Box
from medical.volumes.geometry import Grid

MARGIN_MM = 20.0
"""Width of the surroundings of a masked structure that are segmented with it."""


def roi_box(text: str, grid: Grid) -> Box:
    """The box that a user means.

    Args:
        text: ``i0:i1,j0:j1,k0:k1`` in voxels of the scan, ``r0:r1,c0:c1`` in rows and columns of a picture, or a mask file on
            the scan's grid, or one with a structure's name or number behind a colon: ``mask.nii.gz:liver``.
        grid: The scan's.

    Raises:
        RequestError: Not understood, an empty box, or no such structure.
        InputError: The mask cannot be read, lies on another grid, or is empty.
    """
    path = mask_path(text)
    if path is None:
        return parse_box(text, grid)
    return mask_box(path, None if str(path) == str(Path(text)) else text.rpartition(":")[2], grid)


def mask_path(text: str) -> Path | None:
    """The mask file that a text names, with a structure behind it or without; None where it names none."""
    whole, without_structure = text, text.rpartition(":")[0]
    return next((Path(name) for name in (whole, without_structure) if name and Path(name).is_file()), None)


def parse_box(text: str, grid: Grid) -> Box:
    """The box that ``i0:i1,j0:j1,k0:k1`` means: from the first to before the second voxel, either may be left out.

    Raises:
        RequestError: Not such a text, or an empty box.

    >>> parse_box("2:8,:,5:", Grid((10, 10, 10), np.eye(4)))
    (slice(2, 8, None), slice(0, 10, None), slice(5, 10, None))
    """
    parts = [part.strip().split(":") for part in text.split(",")]
    if len(parts) == 2 and grid.shape[2] == 1:  # a picture's rows and columns
        parts.append(["", ""])
    if len(parts) != 3 or any(len(part) != 2 or not all(n == "" or n.isdecimal() for n in part) for part in parts):
        raise RequestError(
            f"--roi {text} is not understood.", hint="Give voxels such as 10:90,20:120,0:64, or an existing mask file."
        )
    ends = [(int(low or 0), min(int(high or n), n)) for (low, high), n in zip(parts, grid.shape, strict=True)]
    if any(low >= high for low, high in ends):
        raise RequestError(
            f"--roi {text} holds no voxel of this scan of {' x '.join(map(str, grid.shape))}.", hint="Voxels count from 0."
        )
    i, j, k = (slice(low, high) for low, high in ends)
    return i, j, k


def mask_box(path: Path, structure: str | None, grid: Grid) -> Box:
    """The box around a structure of a mask, or around all of them, and `MARGIN_MM` on each side.

    Raises:
        RequestError: The mask has no such structure.
        InputError: It lies on another grid than the scan, or there is nothing in it.
    """
    from medical.results.statistics import check_same_grid
    from medical.volumes.label_maps import read_labels

    labels, mask_grid, structures = read_labels(path)
    try:
        check_same_grid(mask_grid, grid)
    except InputError as error:
        raise InputError(error.message, hint="Give --roi a mask that was drawn on this scan.") from error
    there = labels != 0
    if structure is not None:
        numbers = {name.lower(): named.value for named in structures for name in (named.name, str(named.value))}
        if structure.lower() not in numbers:
            raise RequestError(
                f"{path.name} has no structure {structure!r}.",
                hint=f"It has {', '.join(named.name for named in structures) or 'none'}.",
            )
        there = labels == numbers[structure.lower()]
    if not there.any():
        raise InputError(f"{path.name} shows nothing to segment around.", hint="Give another mask, or leave --roi out.")
    ends = []
    for axis, step in enumerate(grid.spacing):
        rows = np.flatnonzero(there.any(axis=tuple(other for other in range(3) if other != axis)))
        margin = int(np.ceil(MARGIN_MM / step))
        ends.append(slice(max(int(rows[0]) - margin, 0), min(int(rows[-1]) + 1 + margin, grid.shape[axis])))
    i, j, k = ends
    return i, j, k
