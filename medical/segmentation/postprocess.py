"""Tidying of label maps by what anatomy knows: one piece, no holes. Works on the crop of one structure at a time.

Axes: label maps are (i, j, k); voxels that share a face hang together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage


def keep_largest(labels: np.ndarray, values: Sequence[int]) -> int:
    """Keep the largest piece of each structure, and make its others background, in place.

    Pieces are equally large: the one whose first voxel comes first stays.

    Args:
        labels: (i, j, k) of an unsigned integer type; changed.
        values: The structures.

    Returns:
        How many voxels became background.

    >>> labels = np.array([[[1, 1, 0, 1, 2]]], np.uint8)
    >>> keep_largest(labels, [1, 2]), labels.tolist()
    (1, [[[1, 1, 0, 0, 2]]])
    """
    removed = 0
    for value, part in _crops(labels, values):
        mask = part == value
        pieces, count = ndimage.label(mask)
        if count > 1:
            sizes = np.bincount(pieces.ravel(), minlength=count + 1)
            sizes[0] = 0
            others = mask & (pieces != int(sizes.argmax()))
            part[others] = 0
            removed += int(np.count_nonzero(others))
    return removed


def fill_holes(labels: np.ndarray, values: Sequence[int]) -> int:
    """Give each structure the background that it encloses, in place; other structures inside stay what they are.

    Args:
        labels: (i, j, k) of an unsigned integer type; changed.
        values: The structures, in the order in which they are filled.

    Returns:
        How many voxels were filled.

    >>> labels = np.ones((3, 3, 3), np.uint8); labels[1, 1, 1] = 0
    >>> fill_holes(labels, [1]), labels[1, 1, 1].item()
    (1, 1)
    """
    filled = 0
    for value, part in _crops(labels, values):
        holes = ndimage.binary_fill_holes(part == value) & (part == 0)
        part[holes] = value
        filled += int(np.count_nonzero(holes))
    return filled


def _crops(labels: np.ndarray, values: Sequence[int]) -> list[tuple[int, np.ndarray]]:
    """Each structure that is there and a view of the label map's box around it."""
    boxes = ndimage.find_objects(labels, max(values, default=0))
    return [(value, labels[box]) for value in values if (box := boxes[value - 1]) is not None]
