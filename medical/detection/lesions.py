"""Lesions that a network found against those that are there: candidates in a map of confidences, and which of them are hits.

Rules are those of the PI-CAI challenge (A. Saha et al., The Lancet Oncology 25, 2024) unless others are asked for; dynamic
extraction is that of J. Bosma et al., Radiology: Artificial Intelligence 5, 2023.

Axes: arrays are (i, j, k). Voxels that share a face, an edge or a corner are connected.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from hybrid.errors import InputError, RequestError
from medical.volumes.geometry import Grid

Extraction = Literal["dynamic", "dynamic-fast", "static", "map"]
"""How candidates are made of a map:

- ``dynamic``: from the highest voxel on, all that is connected to it and has at least 1 / 2.5 of its confidence, up to five
  times; see `candidates`.
- ``dynamic-fast``: connected voxels of at least 1 / 2.5 of the highest one in the scan.
- ``static``: connected voxels of at least a threshold.
- ``map``: a detection map already: connected voxels above 0, of any size.
"""
Extra = Literal["ignore", "false-positive"]
"""What a candidate counts that meets the hit criterion for a lesion which another candidate was matched to."""
Outcome = Literal["hit", "false positive", "not counted"]

FACTOR = 2.5
"""A dynamic candidate reaches down to its peak divided by this."""
MOST = 5
"""Dynamic candidates of a scan."""
FLOOR = 0.01
"""Peaks below this begin no dynamic candidate."""
_NEIGHBOURS = np.ones((3, 3, 3), bool)
_BEYOND = 1e-3
"""Stored probabilities may leave [0, 1] by so much, through rounding and interpolation."""
_REACH = 16

Mask = NDArray[np.bool_]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class DetectionRules:
    """The choices that a table of detection scores must name.

    Attributes:
        extraction: How candidates are made.
        threshold: Of ``static`` extraction.
        min_voxels: Smaller candidates are dropped, but for ``map``. 11, as PI-CAI's tool keeps what has more than 10.
        overlap: A candidate can hit a lesion if their intersection over union is at least this.
        distance: In the place of `overlap`: if their centres of mass lie no further apart than this, in mm.
        extra: What further candidates on a lesion count.
    """

    extraction: Extraction = "dynamic"
    threshold: float = 0.5
    min_voxels: int = 11
    overlap: float = 0.1
    distance: float | None = None
    extra: Extra = "ignore"

    def __post_init__(self) -> None:
        for name, value in (("threshold", self.threshold), ("overlap", self.overlap)):
            if not 0 < value <= 1:
                raise RequestError(f"A {name} of {value:g} is none.", hint="Give a number above 0 and up to 1.")
        if self.min_voxels < 1:
            raise RequestError(f"A smallest candidate of {self.min_voxels} voxels is none.", hint="Give 1 or more.")
        if self.distance is not None and not 0 < self.distance < np.inf:
            raise RequestError(f"A distance of {self.distance:g} mm is none.", hint="Give millimetres, such as 5.")


@dataclass(frozen=True)
class Lesion:
    """A lesion of the reference.

    Attributes:
        voxels, ml: Its size.
        centre: Its centre of mass, RAS+ mm.
        candidate: Number of the candidate that hits it, from 0; None: missed.
    """

    voxels: int
    ml: float
    centre: Point
    candidate: int | None


@dataclass(frozen=True)
class Candidate:
    """What may be a lesion.

    Attributes:
        confidence: The highest value in it.
        voxels, ml: Its size.
        centre: Its centre of mass, RAS+ mm.
        outcome: What it counts.
        lesion: Number of the lesion that it hits, else of the one it overlaps most, from 0; None where it overlaps none.
        overlap: Intersection over union with that lesion.
        distance: From its centre to that lesion's, in mm; NaN without one.
    """

    confidence: float
    voxels: int
    ml: float
    centre: Point
    outcome: Outcome
    lesion: int | None
    overlap: float
    distance: float


@dataclass(frozen=True)
class Detections:
    """Lesions and candidates of one scan, in the order of the array and of their making."""

    lesions: tuple[Lesion, ...]
    candidates: tuple[Candidate, ...]

    @property
    def confidence(self) -> float:
        """That the scan shows a lesion: the highest of its candidates' confidences; 0 without candidates."""
        return max((each.confidence for each in self.candidates), default=0.0)

    def count(self, outcome: Outcome) -> int:
        """Candidates of an outcome."""
        return sum(each.outcome == outcome for each in self.candidates)


def detect(confidences: NDArray[np.floating], reference: Mask, grid: Grid, rules: DetectionRules | None = None) -> Detections:
    """Match the candidates of a map to the lesions of a reference.

    Candidates and lesions are matched one to one, so that there are as many hits as can be, and among these matchings the
    one of the largest total overlap (with the distance criterion: the smallest total distance).

    Args:
        confidences: From 0 to 1, on the grid.
        reference: True in lesions; each connected part is one.
        grid: Of both.
        rules: How candidates are made and when they hit.

    Raises:
        InputError: The values are no probabilities.
        RequestError: Shapes differ.
    """
    rules = rules or DetectionRules()
    if confidences.shape != reference.shape or reference.shape != grid.shape:
        raise RequestError(f"Cannot compare a map {confidences.shape} with a reference {reference.shape} on {grid.shape}.")
    found, peaks = candidates(confidences, rules)
    lesions, count = ndimage.label(reference, _NEIGHBOURS)
    sizes, centres = _measured(found, grid)
    lesion_sizes, lesion_centres = _measured(lesions, grid)
    both = (found > 0) & (lesions > 0)
    shared = np.zeros((len(peaks), count), np.int64)
    np.add.at(shared, (found[both] - 1, lesions[both] - 1), 1)
    overlap = shared / (sizes[:, None] + lesion_sizes - shared)
    distance = np.linalg.norm(centres[:, None] - lesion_centres, axis=-1)
    hits, reach = match(overlap, distance, rules)
    hit_by = {lesion: candidate for candidate, lesion in hits.items()}
    return Detections(
        tuple(
            Lesion(int(lesion_sizes[n]), float(lesion_sizes[n] * grid.voxel_ml), _point(lesion_centres[n]), hit_by.get(n))
            for n in range(count)
        ),
        tuple(
            Candidate(
                float(peaks[n]),
                int(sizes[n]),
                float(sizes[n] * grid.voxel_ml),
                _point(centres[n]),
                _outcome(n in hits, bool(reach[n].any()), rules.extra),
                lesion := hits.get(n, _nearest(overlap[n])),
                float(overlap[n, lesion]) if lesion is not None else 0.0,
                float(distance[n, lesion]) if lesion is not None else np.nan,
            )
            for n in range(len(peaks))
        ),
    )


def candidates(confidences: NDArray[np.floating], rules: DetectionRules) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Candidates of a map, and their confidences: the highest value in each.

    ``dynamic`` begins at the highest voxel; the candidate is what is connected to it among the voxels of at least its
    confidence / 2.5. It is taken out of the map, and the next one begins at what is then the highest voxel, until there
    are five or the highest is below 0.01. What is too small, or touches an earlier candidate, is taken out all the same and
    does not count, so that candidates stay apart.

    Args:
        confidences: (i, j, k) from 0 to 1; not changed.
        rules: Its `extraction`, `threshold` and `min_voxels` count.

    Returns:
        (i, j, k) with 1 for the first candidate and so on, 0 elsewhere; and (candidates,).

    Raises:
        InputError: The values are no probabilities.
    """
    low, high = float(confidences.min()), float(confidences.max())
    if not (low >= -_BEYOND and high <= 1 + _BEYOND):  # false for NaN too
        raise InputError(
            f"Values from {low:g} to {high:g} are no probabilities.", hint="Give the network's output after softmax or sigmoid."
        )
    if rules.extraction == "dynamic":
        return _dynamic(confidences, rules.min_voxels)
    if rules.extraction == "map":
        return _parts(confidences, confidences > 0, 1)
    threshold = rules.threshold if rules.extraction == "static" else high / FACTOR
    return _parts(confidences, (confidences >= threshold) & (confidences > 0), rules.min_voxels)


def match(
    overlap: NDArray[np.floating], distance: NDArray[np.floating], rules: DetectionRules
) -> tuple[dict[int, int], NDArray[np.bool_]]:
    """Match candidates to lesions one to one.

    Args:
        overlap: (candidates, lesions) intersection over union.
        distance: (candidates, lesions) between centres, in mm.
        rules: The hit criterion.

    Returns:
        The lesion of each candidate that hits one; and (candidates, lesions) whether the criterion is met.

    >>> overlap = np.array([[0.5, 0.4], [0.45, 0.0]])  # the best pair alone would leave the second lesion without a hit
    >>> match(overlap, np.zeros((2, 2)), DetectionRules())[0]
    {0: 1, 1: 0}
    """
    if rules.distance is None:
        reach, worth = overlap >= rules.overlap, overlap
    else:
        reach, worth = distance <= rules.distance, 1 - distance / rules.distance
    more = max(overlap.shape, default=0)  # than all differences in worth together: one hit more always comes first
    rows, columns = linear_sum_assignment(np.where(reach, more + worth, 0), maximize=True)
    return {int(row): int(column) for row, column in zip(rows, columns, strict=True) if reach[row, column]}, reach


def _dynamic(confidences: NDArray[np.floating], min_voxels: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    left = np.array(confidences)
    found = np.zeros(left.shape, np.int32)
    peaks: list[float] = []
    while len(peaks) < MOST:
        seed = np.unravel_index(int(left.argmax()), left.shape)
        peak = float(left[seed])
        if peak < FLOOR:
            break
        box, part = _part_around(left, tuple(map(int, seed)), peak / FACTOR)
        left[box][part] = 0
        apart = not found[box][ndimage.binary_dilation(part, _NEIGHBOURS)].any()
        if np.count_nonzero(part) >= min_voxels and apart:
            peaks.append(peak)
            found[box][part] = len(peaks)
    return found, np.array(peaks)


def _part_around(values: NDArray[np.floating], seed: tuple[int, ...], threshold: float) -> tuple[tuple[slice, ...], Mask]:
    """A box with the part of at least a threshold that is connected to a voxel, and a margin around it where there is room.

    The box grows until it holds the part, which is small in a large scan as a rule.
    """
    reach = _REACH
    while True:
        box = tuple(slice(max(0, at - reach), at + reach + 1) for at in seed)
        parts, _ = ndimage.label(values[box] >= threshold, _NEIGHBOURS)
        part = parts == parts[tuple(at - side.start for at, side in zip(seed, box, strict=True))]
        cut = [
            (side.start > 0 and part.take(0, axis).any()) or (side.stop < length and part.take(-1, axis).any())
            for axis, (side, length) in enumerate(zip(box, values.shape, strict=True))
        ]
        if not any(cut):
            return box, part
        reach *= 2


def _parts(confidences: NDArray[np.floating], mask: Mask, min_voxels: int) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Connected parts of a mask that are large enough, and the highest value in each."""
    parts, count = ndimage.label(mask, _NEIGHBOURS)
    kept = np.bincount(parts.ravel(), minlength=count + 1) >= min_voxels
    kept[0] = False
    found = np.where(kept, np.cumsum(kept), 0).astype(np.int32)[parts]
    return found, np.array([confidences[box][part].max() for box, part in _each(found)], np.float64)


def _measured(parts: NDArray[np.integer], grid: Grid) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Voxels (parts,) and centres of mass (parts, 3) in mm of the parts 1, 2, ..."""
    places = [np.argwhere(part) + [side.start for side in box] for box, part in _each(parts)]
    centres = np.array([each.mean(axis=0) for each in places]).reshape(-1, 3)
    return np.array([len(each) for each in places], np.int64), grid.to_world(centres)


def _each(parts: NDArray[np.integer]) -> Iterator[tuple[tuple[slice, ...], Mask]]:
    """The box of each of the parts 1, 2, ..., and where it is in there: far less to look at than the scan."""
    for number, box in enumerate(ndimage.find_objects(parts), 1):
        yield box, parts[box] == number


def _outcome(hit: bool, near: bool, extra: Extra) -> Outcome:
    if hit:
        return "hit"
    return "not counted" if near and extra == "ignore" else "false positive"


def _nearest(overlap: NDArray[np.floating]) -> int | None:
    return int(overlap.argmax()) if overlap.any() else None


def _point(centre: NDArray[np.float64]) -> Point:
    i, j, k = (float(each) for each in centre)
    return i, j, k
