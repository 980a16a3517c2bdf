"""Dice, 95 % Hausdorff distance and surface Dice of segmentations.

Masks are boolean arrays (i, j, k), or (i, j) for pictures, of one structure in one case; spacing is in mm in the order
of the array's axes, which are taken to stand at right angles.

Masks that are empty have no agreed score, and published tables differ by it; see `Empty`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, find_objects
from scipy.spatial import KDTree

from hybrid.errors import RequestError

Empty = Literal["nan", "monai-ignore", "monai-strict", "transunet"]
"""What a case counts whose reference or prediction is empty: Dice for (both, the reference alone, the prediction alone).

- ``nan``: NaN, which means left out, 0, 0: nnU-Net's.
- ``monai-ignore``: NaN, NaN, 0: MONAI's DiceMetric as it comes.
- ``monai-strict``: 1, 0, 0: MONAI with ``ignore_empty=False``; the BraTS challenges'.
- ``transunet``: 0, 1, 0, and HD95 is 0 in all three: what the scripts of TransUNet and its successors do. It rewards
  false alarms; only good to compare with their tables.

Apart from ``transunet``, HD95 is NaN as soon as one mask is empty: no distance is the right one for a missed structure.
"""
Hausdorff = Literal["max", "pooled"]
Surface = Literal["subvoxel", "voxel"]

EMPTY_DICE: dict[Empty, tuple[float, float, float]] = {
    "nan": (np.nan, 0.0, 0.0),
    "monai-ignore": (np.nan, np.nan, 0.0),
    "monai-strict": (1.0, 0.0, 0.0),
    "transunet": (0.0, 1.0, 0.0),
}
_TIE = 1 + 1e-6
"""Spacings come out of float32 headers: a distance counts as within a tolerance that it exceeds by rounding alone."""

Mask = NDArray[np.bool_]
Box = tuple[slice, ...]


@dataclass(frozen=True)
class Conventions:
    """The choices that a table of scores must name.

    Attributes:
        empty: What cases with an empty mask count; see `Empty`.
        hausdorff: ``max``: the larger of the two directed 95th percentiles (MONAI). ``pooled``: the 95th percentile of
            the distances of both directions together (medpy, most papers).
        surface: Surface Dice by ``subvoxel`` areas, or by counting surface ``voxel``.
        tolerance: Tolerance of surface Dice in `unit`.
        unit: Of distances: mm, or px of pictures, whose pixels are taken as squares of side 1.
        boundary: Tolerance in px of the boundary F1 of pictures (`medical.evaluation.boundaries`); None leaves it out.
        partition: Whether the cells are scored into which the structures divide a picture, as membranes do.
    """

    empty: Empty = "nan"
    hausdorff: Hausdorff = "max"
    surface: Surface = "subvoxel"
    tolerance: float = 1.0
    unit: Literal["mm", "px"] = "mm"
    boundary: float | None = None
    partition: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.tolerance < np.inf:
            raise RequestError(f"A tolerance of {self.tolerance} mm is none.", hint="Give millimetres, such as 1.")


@dataclass(frozen=True)
class Scores:
    """Scores of one structure in one case, and the number of voxels in reference and prediction."""

    dice: float
    hd95: float
    nsd: float
    reference_voxels: int
    predicted_voxels: int


def dice(prediction: Mask, reference: Mask, *, empty: Empty = "nan") -> float:
    """Dice coefficient, 2 |P and R| / (|P| + |R|), from 0 to 1.

    Raises:
        RequestError: Shapes differ, or a mask is not boolean.

    >>> dice(np.array([[1, 1, 0]], bool), np.array([[0, 1, 0]], bool))
    0.6666666666666666
    """
    _check(prediction, reference)
    predicted, referred = int(np.count_nonzero(prediction)), int(np.count_nonzero(reference))
    if not predicted or not referred:
        return EMPTY_DICE[empty][2 if referred else 1 if predicted else 0]
    return 2 * int(np.count_nonzero(prediction & reference)) / (predicted + referred)


def hd95(
    prediction: Mask, reference: Mask, spacing: Sequence[float], *, variant: Hausdorff = "max", empty: Empty = "nan"
) -> float:
    """95th percentile of the distances between the two surfaces, in mm.

    Surface voxels are those with a neighbour outside the mask across a face (an edge in 2-D); the outside of the array
    is outside the mask. Distances run from each surface voxel to the nearest one of the other mask; percentiles are
    interpolated linearly.

    Returns:
        Millimetres; NaN if a mask is empty (0 for ``transunet``).

    Raises:
        RequestError: Shapes differ, a mask is not boolean, or the spacing does not fit.

    >>> mask = np.zeros((1, 9), bool); mask[0, 2] = True
    >>> hd95(np.roll(mask, 3), mask, (1.0, 0.5))
    1.5
    """
    _check(prediction, reference, spacing)
    if not (prediction.any() and reference.any()):
        return 0.0 if empty == "transunet" else np.nan
    box = _box(prediction, reference)
    surfaces = [_surface_points(mask[box], spacing) for mask in (prediction, reference)]
    there, back = _distances(*surfaces), _distances(*surfaces[::-1])
    if variant == "pooled":
        return float(np.percentile(np.concatenate([there, back]), 95))
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def surface_dice(
    prediction: Mask, reference: Mask, spacing: Sequence[float], tolerance: float, *, method: Surface = "subvoxel"
) -> float:
    """Normalised surface Dice: the share of both surfaces that lies within a tolerance of the other, from 0 to 1.

    ``subvoxel`` cuts the surface into elements where the corners of eight voxels (four pixels) meet and weights each by
    its area (its length), as S. Nikolov et al., arXiv 1809.04430, do. ``voxel`` counts surface voxels; it is faster.

    Args:
        prediction: Boolean mask.
        reference: Boolean mask of the same shape.
        spacing: mm along each axis.
        tolerance: mm.
        method: How the surface is measured.

    Returns:
        NaN if both masks are empty, 0 if one is.

    Raises:
        RequestError: Shapes differ, a mask is not boolean, or the spacing does not fit.
    """
    _check(prediction, reference, spacing)
    if not (prediction.any() and reference.any()):
        return 0.0 if prediction.any() or reference.any() else np.nan
    box = _box(prediction, reference)
    measured = _surface_elements if method == "subvoxel" else _surface_voxels
    (points, weights), (other_points, other_weights) = (measured(mask[box], spacing) for mask in (prediction, reference))
    within = weights[_distances(points, other_points) <= tolerance * _TIE].sum()
    within += other_weights[_distances(other_points, points) <= tolerance * _TIE].sum()
    return float(within / (weights.sum() + other_weights.sum()))


def score(prediction: Mask, reference: Mask, spacing: Sequence[float], conventions: Conventions) -> Scores:
    """All scores of one structure."""
    _check(prediction, reference, spacing)
    box = _box(prediction, reference)
    prediction, reference = prediction[box], reference[box]
    return Scores(
        dice(prediction, reference, empty=conventions.empty),
        hd95(prediction, reference, spacing, variant=conventions.hausdorff, empty=conventions.empty),
        surface_dice(prediction, reference, spacing, conventions.tolerance, method=conventions.surface),
        int(np.count_nonzero(reference)),
        int(np.count_nonzero(prediction)),
    )


def score_labels(
    prediction: NDArray[np.integer],
    reference: NDArray[np.integer],
    spacing: Sequence[float],
    structures: Sequence[Sequence[int]],
    conventions: Conventions,
) -> list[Scores]:
    """Scores of structures in label maps.

    Only the part of the arrays that a structure fills is looked at, so that memory grows with the structure's surface
    and bounding box, and not with the scan and the number of structures.

    Args:
        prediction: Label map.
        reference: Label map of the same shape.
        spacing: mm along each axis.
        structures: The values of each structure; several where structures overlap, as the regions of a tumour.
        conventions: How to score.

    Raises:
        RequestError: Shapes differ, or the spacing does not fit.
    """
    if prediction.shape != reference.shape:
        raise RequestError(f"Cannot compare label maps of shapes {prediction.shape} and {reference.shape}.")
    highest = max(value for values in structures for value in values)
    boxes = [find_objects(labels, max_label=highest) for labels in (prediction, reference)]
    scores = []
    for values in structures:
        found = [each[value - 1] for each in boxes for value in values if each[value - 1] is not None]
        box = _union(found) if found else tuple(slice(0, 1) for _ in prediction.shape)
        scores.append(score(np.isin(prediction[box], values), np.isin(reference[box], values), spacing, conventions))
    return scores


def _check(prediction: Mask, reference: Mask, spacing: Sequence[float] | None = None) -> None:
    if prediction.shape != reference.shape:
        raise RequestError(f"Cannot compare masks of shapes {prediction.shape} and {reference.shape}.")
    if prediction.dtype != bool or reference.dtype != bool:
        raise RequestError(
            f"Masks are boolean, not {prediction.dtype} and {reference.dtype}.", hint="Compare label maps with a value first."
        )
    if prediction.ndim not in (2, 3):
        raise RequestError(f"Masks are 2-D or 3-D, not of shape {prediction.shape}.")
    if spacing is not None and (len(spacing) != prediction.ndim or not all(0 < each < np.inf for each in spacing)):
        raise RequestError(f"The spacing {tuple(spacing)} does not fit {prediction.ndim}-D masks.", hint="Give mm for each axis.")


def _box(prediction: Mask, reference: Mask) -> Box:
    """The smallest box that holds both masks; one voxel if both are empty."""
    found = []
    for axis in range(prediction.ndim):
        others = tuple(each for each in range(prediction.ndim) if each != axis)
        filled = np.flatnonzero(prediction.any(axis=others) | reference.any(axis=others))
        found.append(slice(int(filled[0]), int(filled[-1]) + 1) if filled.size else slice(0, 1))
    return tuple(found)


def _union(boxes: Sequence[Box]) -> Box:
    return tuple(slice(min(each.start for each in axis), max(each.stop for each in axis)) for axis in zip(*boxes, strict=True))


def _surface_points(mask: Mask, spacing: Sequence[float]) -> NDArray[np.float64]:
    """(n, axes) mm: the surface voxels of a mask."""
    return np.multiply(np.argwhere(mask & ~binary_erosion(mask)), spacing, dtype=np.float64)


def _surface_voxels(mask: Mask, spacing: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    points = _surface_points(mask, spacing)
    return points, np.ones(len(points))


def _surface_elements(mask: Mask, spacing: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Places (n, axes) in mm and areas (n) in mm² of the surface elements, lengths in mm for pictures.

    An element lies where the corners of voxels meet; which of these are inside says how the surface runs between them.
    """
    padded = np.pad(mask, 1)
    areas, bits = _element_areas(tuple(float(each) for each in spacing))
    pattern = np.zeros([n - 1 for n in padded.shape], np.uint8)
    for offset in product((0, 1), repeat=mask.ndim):
        corner = padded[tuple(slice(at, at + n) for at, n in zip(offset, pattern.shape, strict=True))]
        pattern += corner * bits[offset]
    at = np.nonzero((pattern > 0) & (pattern < len(areas) - 1))
    return np.multiply(np.stack(at, axis=-1), spacing, dtype=np.float64), areas[pattern[at]]


@lru_cache(maxsize=8)
def _element_areas(spacing: tuple[float, ...]) -> tuple[NDArray[np.float64], NDArray[np.uint8]]:
    """Area of the surface for each pattern of inner and outer voxels, and the bit of each voxel in the pattern."""
    from monai.metrics.utils import get_code_to_measure_table  # late: it takes seconds

    areas, bits = get_code_to_measure_table(spacing)  # type: ignore[no-untyped-call]
    return areas.double().numpy(), bits[0, 0].numpy().astype(np.uint8)


def _distances(points: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """From each point to the nearest of the others, in mm.

    A tree of surface points takes memory for the surface; a distance transform would take 30 bytes and more for each
    voxel of the box.
    """
    # Voxels lie on a lattice, where a balanced tree is slow to build and no faster to ask.
    distances: NDArray[np.float64] = KDTree(others, leafsize=32, balanced_tree=False, compact_nodes=False).query(points)[0]
    return distances
