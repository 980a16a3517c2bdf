"""Faces to a standard place and size, and back: the template, the similarity that leads there, and the warps.

The template is FFHQ's mean face at 512 x 512, in the order and the numbers of facexlib and RestoreFormer. The similarity is the
least-squares one in closed form (Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
TPAMI 1991); the option LMedS leaves out a landmark that does not fit the others (Rousseeuw, "Least median of squares
regression", JASA 1984). Coordinates are x, y in pixels, centres of pixels at integers; matrices are (2, 3).
"""

from __future__ import annotations

from itertools import combinations
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.errors import InputError
from restore.images.interpolation import resize

Fit = Literal["least-squares", "lmeds"]
FITS: tuple[Fit, ...] = ("least-squares", "lmeds")
TEMPLATE_SIZE = 512
TEMPLATE = np.array(
    [(192.98138, 239.94708), (318.90277, 240.1936), (256.63416, 314.01935), (201.26117, 371.41043), (313.08905, 371.15118)]
)
"""Left eye, right eye, nose, left and right mouth corner, as the viewer sees them, at 512 x 512."""
FILL = (132 / 255, 133 / 255, 135 / 255)
"""The gray beside a picture, with which the published networks were trained."""
OVERSAMPLED = 1.75
"""Pixels along an edge, for each of the result, to which a source of more is shrunk before a warp: with more it aliases, with
fewer it blurs."""
_LMEDS_DEVIATION = 2.5 * 1.4826 * (1 + 5 / 3)
"""Deviations from the median fit within which a landmark of five is kept (Rousseeuw and Leroy 1987, with small-sample factor)."""


def template(size: int) -> NDArray[np.float64]:
    """The template (5, 2) for faces of `size` pixels: both sizes share their outer edges.

    >>> bool(np.allclose(template(512), TEMPLATE))
    True
    """
    return (TEMPLATE + 0.5) * (size / TEMPLATE_SIZE) - 0.5


def fit_similarity(points: NDArray[np.float64], size: int, fit: Fit = "least-squares") -> NDArray[np.float64]:
    """The turn, scale and shift (2, 3) that bring landmarks of a picture to the template of `size`.

    Args:
        points: (5, 2), as of `TEMPLATE`.
        size: Edge of the aligned face.
        fit: "least-squares" takes all points alike, "lmeds" leaves out those that do not fit the rest.

    Raises:
        InputError: The points lie all in one place, or are not finite.
    """
    target = template(size)
    if not np.isfinite(points).all() or np.ptp(points, axis=0).max() < 1e-6:
        raise InputError("The landmarks of a face lie in one place.", hint="Give five different points.")
    return similarity(points, target) if fit == "least-squares" else _lmeds(points, target)


def similarity(points: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The least-squares similarity without reflection from (N, 2) to (N, 2), N at least 2."""
    # As complex numbers a similarity is z -> a z + b, and a is a one-dimensional regression.
    z, w = points @ (1, 1j), target @ (1, 1j)
    centred = z - z.mean()
    a = (centred.conj() @ (w - w.mean())) / (centred.conj() @ centred)
    b = w.mean() - a * z.mean()
    return np.array([[a.real, -a.imag, b.real], [a.imag, a.real, b.imag]])


def apply(matrix: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where points (..., 2) go."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def inverse(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """The way back."""
    back = np.linalg.inv(matrix[:, :2])
    return np.column_stack((back, -back @ matrix[:, 2]))


def enlarged(matrix: NDArray[np.float64], scale: float | tuple[float, float]) -> NDArray[np.float64]:
    """A way into a picture, leading into the picture enlarged by `scale` (along x and y): both share their outer edges.

    A pixel's centre x is then at (x + 1/2) s - 1/2, so that the shift grows by (s - 1)/2, not by s/2.
    """
    factors = np.broadcast_to(np.asarray(scale, np.float64), 2)
    result = matrix * factors[:, None]
    result[:, 2] += (factors - 1) / 2
    return result


def scale_of(matrix: NDArray[np.float64]) -> float:
    """Pixels of the target for one of the source."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))


def corners(size: int) -> NDArray[np.float64]:
    """The outer corners (4, 2) of a square picture, clockwise."""
    return np.array([(-0.5, -0.5), (size - 0.5, -0.5), (size - 0.5, size - 0.5), (-0.5, size - 0.5)])


def warp_face(picture: NDArray[np.float32], matrix: NDArray[np.float64], size: int) -> NDArray[np.float32]:
    """The aligned face (size, size, C) float32 of a picture; gray where it reaches beyond.

    Args:
        picture: (H, W, C) float32 in [0, 1].
        matrix: From the picture to the face, as `fit_similarity` gives it.
        size: Edge of the face.
    """
    height, width, channels = picture.shape
    reached = apply(inverse(matrix), corners(size))
    margin = 2 + np.ceil(2 / scale_of(matrix))
    x0, y0 = np.clip(np.floor(reached.min(axis=0) - margin), 0, (width - 1, height - 1)).astype(int)
    x1, y1 = np.clip(np.ceil(reached.max(axis=0) + margin) + 1, (x0 + 1, y0 + 1), (width, height)).astype(int)
    moved = matrix.copy()
    moved[:, 2] = apply(matrix, np.array([x0, y0], np.float64))
    fill = FILL if channels == 3 else (sum(FILL) / 3,) * channels
    return warp(picture[y0:y1, x0:x1], moved, (size, size), fill)


def warp(
    source: NDArray[np.float32], matrix: NDArray[np.float64], shape: tuple[int, int], fill: tuple[float, ...] | None = None
) -> NDArray[np.float32]:
    """Resample (H, W, C) onto a grid of `shape` rows and columns; a source of far more pixels is shrunk first.

    Args:
        source: The picture.
        matrix: From its coordinates to the grid's.
        shape: Rows and columns of the grid.
        fill: What stands beyond the source; None repeats its edge.
    """
    from kornia.geometry.transform import warp_affine

    ratio = scale_of(matrix)
    if ratio * OVERSAMPLED < 1:
        height, width = source.shape[:2]
        small = max(1, round(height * ratio * OVERSAMPLED)), max(1, round(width * ratio * OVERSAMPLED))
        source = resize(source, small, "bicubic", antialias=True)
        back = np.array([[width / small[1], 0, (width / small[1] - 1) / 2], [0, height / small[0], (height / small[0] - 1) / 2]])
        matrix = np.column_stack((matrix[:, :2] @ back[:, :2], apply(matrix, back[:, 2])))
    planes = torch.from_numpy(np.ascontiguousarray(source.transpose(2, 0, 1)))[None].double()
    result = warp_affine(
        planes,
        torch.from_numpy(matrix)[None],
        shape,
        mode="bicubic",
        padding_mode="border" if fill is None else "fill",
        align_corners=True,
        **({} if fill is None else {"fill_value": torch.tensor(fill, dtype=torch.float64)}),
    )
    return result[0].numpy().transpose(1, 2, 0).astype(np.float32)


def _lmeds(points: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """The pair of points whose similarity has the least median of squared distances, then least squares over those that fit."""
    least, best = np.inf, similarity(points, target)
    for pair in combinations(range(len(points)), 2):
        if np.ptp(points[list(pair)], axis=0).max() < 1e-6:
            continue
        found = similarity(points[list(pair)], target[list(pair)])
        median = float(np.median(((apply(found, points) - target) ** 2).sum(axis=1)))
        if median < least:
            least, best = median, found
    distances = ((apply(best, points) - target) ** 2).sum(axis=1)
    fitting = distances <= max(_LMEDS_DEVIATION**2 * least, 1e-12)
    return similarity(points[fitting], target[fitting]) if fitting.sum() >= 2 else best
