"""A restored face back into its picture: by a soft mask, at any enlargement, in floats, in the face's rectangle alone.

The mask is a rounded box that ends inside the aligned face, at hair, ears and neck; it is computed at each pixel of the picture
from where that pixel lies in the face, so that it is equally smooth at every scale. Where a picture is finer than the
network's faces, what the network could not see is left as it is in the picture.
Axes: H, W rows and columns, C colours, 3 or 1. Coordinates are x, y, centres of pixels at integers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from restore.faces.alignment import apply, corners, enlarged, inverse, scale_of, warp

CENTRE = (0.5, 0.54)
"""Middle of the mask, x and y in edges of the aligned face."""
RADII = (0.40, 0.43)
"""Where it ends, likewise."""
POWER = 3.0
"""Of the superellipse: 2 is an ellipse, more is nearer to a box."""
FEATHER = 0.35
"""Part of the way from its middle to its end, at the end, over which the mask falls from 1 to 0."""
CONTRAST = (0.8, 1.25)
"""Least and greatest factor of contrast when colours are matched."""

Pixels = NDArray[np.float32]


def soft_mask(points: NDArray[np.float64], size: int) -> Pixels:
    """The mask in [0, 1] at points (..., 2) of an aligned face of `size` pixels; 0 from its end on.

    >>> soft_mask(np.array([[256.0, 276.0], [0.0, 0.0]]), 512).tolist()
    [1.0, 0.0]
    """
    from_middle = np.abs((points + 0.5) / size - CENTRE) / RADII
    distance = (from_middle**POWER).sum(axis=-1) ** (1 / POWER)
    t = np.clip((1 - distance) / FEATHER, 0, 1)
    weights: Pixels = (t * t * (3 - 2 * t)).astype(np.float32)
    return weights


def mask_of(size: int) -> Pixels:
    """The mask (size, size, 1) of an aligned face."""
    y, x = np.mgrid[:size, :size].astype(np.float64)
    return soft_mask(np.stack((x, y), -1), size)[..., None]


def match_colour(face: Pixels, like: Pixels) -> Pixels:
    """A face with the mean and, within bounds, the contrast of another in each colour, weighted by the mask.

    Args:
        face, like: (S, S, C).
    """
    weights = mask_of(len(face))
    weights = weights / weights.sum()
    means = [(each * weights).sum(axis=(0, 1)) for each in (face, like)]
    deviations = [
        np.sqrt(((each - mean) ** 2 * weights).sum(axis=(0, 1))) for each, mean in zip((face, like), means, strict=True)
    ]
    factor = np.clip(deviations[1] / np.maximum(deviations[0], 1e-6), *CONTRAST)
    matched: Pixels = ((face - means[0]) * factor + means[1]).astype(np.float32)
    return matched


def paste(
    background: Pixels, face: Pixels, aligned: Pixels, matrix: NDArray[np.float64], scale: float | tuple[float, float] = 1.0
) -> None:
    """Blend a restored face into the picture, in place.

    Args:
        background: (H * scale, W * scale, C), the picture at its final size.
        face: (S, S, C), restored.
        aligned: (S, S, C), what the network was given.
        matrix: (2, 3) from the picture, at its own size, to the face.
        scale: Pixels of `background` for one of the picture, along x and y.
    """
    size = len(face)
    back = enlarged(inverse(matrix), scale)
    rectangle = _rectangle(back, size, background.shape)
    if rectangle is None:
        return
    (x0, y0), (x1, y1) = rectangle
    y, x = np.mgrid[y0:y1, x0:x1].astype(np.float64)
    mask = soft_mask(apply(inverse(back), np.stack((x, y), -1)), size)[..., None]
    back[:, 2] -= (x0, y0)
    part = background[y0:y1, x0:x1]
    if keeps_detail(matrix):
        part += mask * warp(face - aligned, back, part.shape[:2])
    else:
        part += mask * (warp(face, back, part.shape[:2]) - part)


def keeps_detail(matrix: NDArray[np.float64]) -> bool:
    """Whether the picture shows the face in more pixels than the network sees, by the (2, 3) matrix from picture to face."""
    return scale_of(matrix) < 1


def _rectangle(back: NDArray[np.float64], size: int, shape: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The part of a picture in which the mask is more than 0: its first x, y and the ones after its last; None for nothing."""
    box = (corners(1) * np.multiply(RADII, 2) + CENTRE) * size - 0.5
    reached = apply(back, box)
    first = np.clip(np.floor(reached.min(axis=0)), 0, shape[1::-1]).astype(int)
    after = np.clip(np.ceil(reached.max(axis=0)) + 1, 0, shape[1::-1]).astype(int)
    if (first >= after).any():
        return None
    return (int(first[0]), int(first[1])), (int(after[0]), int(after[1]))
