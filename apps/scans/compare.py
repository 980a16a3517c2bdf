"""A label map beside another one of the same scan: scores of each structure, and where the two differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.scans.view import AGREED, OTHERWISE, OURS, THEIRS
from medical.evaluation.metrics import dice, hd95
from medical.results.statistics import check_same_grid
from medical.structures import Structure
from medical.volumes.geometry import Grid
from medical.volumes.label_maps import read_label_map


@dataclass(frozen=True)
class Agreement:
    """One structure in both label maps; what is undefined is None.

    Attributes:
        value, name: Of the structure.
        dice: From 0 to 1; None where neither map has it.
        hd95: 95th percentile of the distances between the surfaces in mm; None where a map lacks it.
        ours_ml, theirs_ml: Its volume in either, in millilitres.
    """

    value: int
    name: str
    dice: float | None
    hd95: float | None
    ours_ml: float
    theirs_ml: float


@dataclass(frozen=True, eq=False)
class Reference:
    """A label map to compare with.

    Attributes:
        name: Its file.
        labels: (i, j, k) on the scan's grid.
        structures: What its numbers mean.
        warnings: What a user should be told.
    """

    name: str
    labels: np.ndarray
    structures: tuple[Structure, ...]
    warnings: tuple[str, ...]


def read_reference(path: Path, grid: Grid) -> Reference:
    """Read a label map that lies on the grid of a scan.

    Raises:
        InputError: It cannot be read, is no label map, or lies on another grid.
    """
    found = read_label_map(path)
    check_same_grid(found.grid, grid)
    return Reference(path.name, found.labels, found.structures, found.warnings)


def agreements(ours: np.ndarray, theirs: np.ndarray, grid: Grid, structures: Sequence[Structure]) -> list[Agreement]:
    """Scores of each structure, and of every other number that stands in the second map.

    Args:
        ours, theirs: (i, j, k) labels on one grid.
        grid: Where they lie.
        structures: What the numbers mean, in both.
    """
    names = {each.value: each.name for each in structures}
    names |= {value: f"label {value}" for value in np.unique(theirs).tolist() if value and value not in names}
    rows = []
    for value, name in names.items():
        mine, other = ours == value, theirs == value
        score, distance = dice(mine, other), hd95(mine, other, grid.spacing)
        sizes = (float(np.count_nonzero(mask) * grid.voxel_ml) for mask in (mine, other))
        rows.append(Agreement(value, name, _defined(score), _defined(distance), *sizes))
    return rows


def difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """(i, j, k) uint8 of `AGREED`, `OURS`, `THEIRS`, `OTHERWISE`; 0 where both are background."""
    found = np.zeros(ours.shape, np.uint8)
    mine, other = ours > 0, theirs > 0
    found[mine & other] = OTHERWISE
    found[mine & (ours == theirs)] = AGREED
    found[mine & ~other] = OURS
    found[other & ~mine] = THEIRS
    return found


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
