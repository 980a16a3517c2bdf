"""What an uncertain segmentation says in figures: of each structure, and which slices want a look.

Axes: all arrays are (i, j, k) on the scan's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from scipy import ndimage

from medical.uncertainty.ensemble import UncertainSegmentation
from medical.volumes.geometry import Grid

PLANES = {"R": "sagittal", "L": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
LISTED = 3
"""Slices of each axis that are listed."""
APART_MM = 4.0
"""Least distance of two listed slices of one axis: nearer ones show the same."""
LEAST_MM2 = 1.0
"""Least uncertain area of a slice for it to be listed."""
LEAST_EXCESS = 0.1
"""Least excess likewise: in a scan that is equally unsure everywhere no slice is listed."""

BORDER, AWAY, CONFLICT = "unsure where the border runs", "unsure away from borders", "members disagree"


@dataclass(frozen=True)
class StructureUncertainty:
    """How sure the members are of one structure. What is undefined is None.

    Attributes:
        value, name: Of the structure.
        voxels: In the label map.
        entropy_inside: Mean entropy of its voxels.
        entropy_border: Mean entropy of its border shell: voxels of it that share a face with others, and these.
        information_inside, information_border: Mean mutual information of the same.
        dice_mean, dice_least: Of all pairs of members, before any tidying; pairs of which neither found it are left out.
        ml_mean, ml_least, ml_most: Volume that the members give it, in millilitres, before any tidying.
        ml_variation: Standard deviation of that volume (n - 1) over its mean.
    """

    value: int
    name: str
    voxels: int
    entropy_inside: float | None
    entropy_border: float | None
    information_inside: float | None
    information_border: float | None
    dice_mean: float | None
    dice_least: float | None
    ml_mean: float
    ml_least: float
    ml_most: float
    ml_variation: float | None


@dataclass(frozen=True)
class SliceToSee:
    """A slice that wants a look.

    Attributes:
        rank: From 1.
        axis: ``i``, ``j`` or ``k`` of the file.
        index: Voxel along it, from 0.
        plane: The nearest plane of the patient.
        place: Along the patient's axis nearest to it, RAS+ mm, at the slice's middle.
        reason: Why.
        area: What speaks for it, in mm2: entropy, or share of members outvoted, summed over pixel areas.
        usual: The mean of that area in the slices of the axis that show a structure or are unsure.
        excess: How much it is above that, over the mean of all entropy in those slices; ranks are by this.
    """

    rank: int
    axis: str
    index: int
    plane: str
    place: float
    reason: str
    area: float
    usual: float
    excess: float


@dataclass(frozen=True)
class UncertaintyFigures:
    """All figures of one segmentation."""

    structures: tuple[StructureUncertainty, ...]
    slices: tuple[SliceToSee, ...]

    def describe(self) -> str:
        """One line for people: how much members differ, and where to look first."""
        dice = [f"{row.name} {row.dice_mean:.3f}" for row in self.structures if row.dice_mean is not None]
        first = [f"{each.plane} {each.axis} = {each.index}" for each in self.slices[:3]]
        look = f"look first at {', '.join(first)}" if first else "no slice stands out"
        return f"Dice between the members: {', '.join(dice) or 'none'}; {look}"


def uncertainty_figures(result: UncertainSegmentation, grid: Grid) -> UncertaintyFigures:
    """The figures of a segmentation on its scan's grid."""
    return UncertaintyFigures(tuple(structure_uncertainty(result, grid)), tuple(slices_to_see(result, grid)))


def structure_uncertainty(result: UncertainSegmentation, grid: Grid) -> list[StructureUncertainty]:
    """Figures of each structure, in their order."""
    boxes = ndimage.find_objects(result.labels)
    rows = []
    for structure, shared in zip(result.structures, result.shared, strict=True):
        box = boxes[structure.value - 1] if structure.value <= len(boxes) else None
        inside: tuple[float | None, ...] = (None, None)
        border: tuple[float | None, ...] = (None, None)
        voxels = 0
        if box is not None:
            around = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in box)
            mask = result.labels[around] == structure.value
            voxels = int(np.count_nonzero(mask))
            maps = result.entropy[around], result.mutual_information[around]
            inside, border = (tuple(_mean(values, where) for values in maps) for where in (mask, borders(mask)))
        ml = np.diagonal(shared) * grid.voxel_ml
        dice = _pairwise_dice(shared)
        rows.append(
            StructureUncertainty(
                structure.value,
                structure.name,
                voxels,
                inside[0],
                border[0],
                inside[1],
                border[1],
                float(np.mean(dice)) if dice else None,
                min(dice, default=None),
                float(ml.mean()),
                float(ml.min()),
                float(ml.max()),
                float(ml.std(ddof=1) / ml.mean()) if ml.any() else None,
            )
        )
    return rows


def borders(labels: np.ndarray) -> np.ndarray:
    """Voxels that share a face with a voxel of another label: on both sides of each border. The scan's edge is none.

    >>> borders(np.array([[[0, 0, 1, 1, 1]]])).astype(int).tolist()
    [[[0, 1, 1, 0, 0]]]
    """
    found = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        values, marks = np.moveaxis(labels, axis, 0), np.moveaxis(found, axis, 0)
        differs = values[1:] != values[:-1]
        marks[1:] |= differs
        marks[:-1] |= differs
    return found


def slices_to_see(result: UncertainSegmentation, grid: Grid) -> list[SliceToSee]:
    """The slices of each axis that are most unsure, first those that stand out most from the others of their axis.

    For each axis and reason an area is summed over each slice, and what it is above the mean of its axis counts, in parts of
    that axis' mean entropy: so reasons and axes can be ranked together. Areas add up what is unsure, so a long blurred border
    counts for more than a voxel at the tip of a structure.
    """
    near = borders(result.labels)
    # Views: each voxel is looked at once for each axis, a row at a time.
    found: list[SliceToSee] = []
    for axis in range(3):
        rows = [np.moveaxis(array, axis, 0) for array in (result.labels, result.entropy, result.disagreement, near)]
        if min(rows[0].shape[1:]) < 2:  # a line of a single picture is no slice
            continue
        found += _of_axis(axis, rows, grid)
    found.sort(key=lambda each: (-each.excess, -each.area, each.axis, each.index))
    return [replace(each, rank=rank) for rank, each in enumerate(found, 1)]


def _of_axis(axis: int, rows: Sequence[np.ndarray], grid: Grid) -> Iterator[SliceToSee]:
    labels, entropy, outvoted, near = rows
    pixel = grid.voxel_ml * 1000 / grid.spacing[axis]
    areas = {reason: np.zeros(len(labels)) for reason in (BORDER, AWAY, CONFLICT)}
    shown = np.zeros(len(labels), bool)
    for row in range(len(labels)):
        unsure, close = entropy[row], near[row]
        areas[BORDER][row] = unsure[close].sum(dtype=np.float64) * pixel
        areas[AWAY][row] = unsure[~close].sum(dtype=np.float64) * pixel
        areas[CONFLICT][row] = outvoted[row].sum(dtype=np.float64) * pixel
        shown[row] = labels[row].any()
    total = areas[BORDER] + areas[AWAY]
    compared = shown | (total >= LEAST_MM2)
    best: dict[int, tuple[float, str]] = {}
    for reason, area in areas.items():
        above = (area - area[compared].mean()) / total[compared].mean() if total[compared].any() else np.zeros(len(area))
        for index in np.flatnonzero((area >= LEAST_MM2) & (above >= LEAST_EXCESS)).tolist():
            best[index] = max(best.get(index, (0.0, "")), (float(above[index]), reason))
    taken: list[int] = []
    for index in sorted(best, key=lambda each: (-best[each][0], each)):
        if len(taken) == LISTED:
            return
        if all(abs(index - other) * grid.spacing[axis] >= APART_MM for other in taken):
            taken.append(index)
            excess, reason = best[index]
            why = areas[reason]
            place = _where(axis, index, grid)
            yield SliceToSee(0, "ijk"[axis], index, *place, reason, float(why[index]), float(why[compared].mean()), excess)


def _where(axis: int, index: int, grid: Grid) -> tuple[str, float]:
    """The plane of a slice, and the place of its middle along the patient's axis that it lies across."""
    letter = grid.codes[axis]
    middle = (np.array(grid.shape) - 1) / 2
    middle[axis] = index
    along = next(number for number, letters in enumerate(("RL", "AP", "SI")) if letter in letters)
    return PLANES[letter], float(grid.to_world(middle)[along])


def _mean(values: np.ndarray, where: np.ndarray) -> float | None:
    return float(values[where].mean(dtype=np.float64)) if where.any() else None


def _pairwise_dice(shared: np.ndarray) -> list[float]:
    """2 |A and B| / (|A| + |B|) of each pair of members that found anything."""
    sizes = np.diagonal(shared)
    pairs = [(a, b) for a, b in combinations(range(len(sizes)), 2) if sizes[a] + sizes[b]]
    return [float(2 * shared[a, b] / (sizes[a] + sizes[b])) for a, b in pairs]
