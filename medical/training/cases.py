"""Scans with label maps as a training takes them: read from a folder, made ready for the network, cut into patches."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_specs import SegmentationSpec
from hybrid.errors import InputError, RequestError
from hybrid.training.loop import Sample
from medical.protocol import Protocol
from medical.segmentation.preparation import check_scan, prepare
from medical.training.case_files import CaseFiles, spec_files
from medical.training.transforms import Augment
from medical.volumes.geometry import Grid, resample_labels
from medical.volumes.volume import Volume

log = logging.getLogger(__name__)

REMEMBERED = 10_000
"""Voxels of each structure of a scan among which the centre of a patch is drawn."""


@dataclass(frozen=True, eq=False)
class Case:
    """A scan made ready for a network, with its labels.

    Attributes:
        name: The data set's name of it.
        values: (C, i, j, k) float32, in orientation, spacing and intensity of the protocol; pictures have one slice.
        labels: (i, j, k) uint8 on the same grid; 0 is the background.
        grid: That grid.
        warnings: What was changed on the way.
    """

    name: str
    values: np.ndarray
    labels: np.ndarray
    grid: Grid
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Folder:
    """A data set, in the layout of the Medical Segmentation Decathlon or by its description.

    `dataset.json` names the cases of each split under `splits`; the scan and the label map of a case lie as
    `imagesTr/<case>.nii.gz` and `labelsTr/<case>.nii.gz`, or as pictures `images/<case>.png` and `labels/<case>.png`. Where
    the values of label pictures are not the labels, `label_values` says what they are, such as ``{"255": 1}``.

    Attributes:
        path: The folder.
        train, val: Names of the cases to train on and to choose by.
        licence: Licence of the data as `dataset.json` or the description states it.
        meanings: What the values of label pictures stand for, where they are not the labels.
        files: Of each case, where a description has found them.
    """

    path: Path
    train: tuple[str, ...]
    val: tuple[str, ...]
    licence: str
    meanings: Mapping[int, int] = field(default_factory=dict)
    files: Mapping[str, CaseFiles] = field(default_factory=dict)

    @classmethod
    def described(cls, path: Path, spec: SegmentationSpec) -> Folder:
        """The splits `train` and `val` of a data set that is described.

        Raises:
            RequestError, InputError: As `data_specs.find_volumes`.
        """
        train, val = (spec_files(spec, path, split) for split in ("train", "val"))
        return cls(path, tuple(train), tuple(val), spec.licence, spec.label_values, {**train, **val})

    @classmethod
    def read(cls, path: Path, spec: SegmentationSpec | None = None) -> Folder:
        """Read what a folder says of itself in its `dataset.json`.

        Args:
            path: The folder.
            spec: Description of the data set that it is if it says nothing.

        Raises:
            RequestError: The description has no such splits.
            InputError: There is neither, or a `dataset.json` without both splits, or cases are missing.
        """
        file = path / "dataset.json"
        if spec is not None and not file.is_file():
            return cls.described(path, spec)
        try:
            described = json.loads(file.read_text(encoding="utf-8"))
            train, val = (tuple(str(name) for name in described["splits"][part]) for part in ("train", "val"))
            meanings = {int(value): int(label) for value, label in described.get("label_values", {}).items()}
        except OSError as error:
            raise InputError(
                f"{path.name} holds no dataset.json: {error.strerror}.", hint="Give --data with the folder of a data set."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(
                f"The dataset.json of {path.name} lists no cases under splits.train and splits.val.",
                hint='Add "splits": {"train": ["case_1", ...], "val": ["case_2", ...]} to it.',
            ) from error
        twice = sorted(set(train) & set(val))
        if twice or not train or not val:
            fault = f"{twice[0]} is in both splits" if twice else "there is no case in one of the splits"
            raise InputError(f"The dataset.json of {path.name} cannot be used: {fault}.", hint="Correct its splits.")
        return cls(path, train, val, str(described.get("licence", "unknown")), meanings)

    def cases(self, names: Sequence[str], protocol: Protocol) -> list[Case]:
        """Read cases into memory and make them ready.

        Raises:
            InputError: A file is absent or damaged, or scan and labels do not lie on one grid.
        """
        found = []
        for name in names:
            files = self.files.get(name) or CaseFiles.find(self.path, name, self.meanings)
            scan, labels = files.read(len(protocol.channels))
            case = make_case(name, scan, labels, protocol)
            for warning in case.warnings:
                log.warning("%s: %s", name, warning)
            found.append(case)
        return found


def drawn(names: Sequence[str], cases: float | int | None, seed: int) -> tuple[str, ...]:
    """Some of the cases, in their order: a share (float) or a number (int), chosen by a seed; all for None.

    Of one seed the fewer are always among the more.

    Raises:
        RequestError: More are asked for than there are.

    >>> drawn("abcdefghij", 0.3, seed=0), drawn("abcdefghij", 2, seed=0)
    (('c', 'e', 'g'), ('e', 'g'))
    """
    count = len(names) if cases is None else cases if isinstance(cases, int) else max(1, round(cases * len(names)))
    if count > len(names):
        raise RequestError(f"There are {len(names)} cases to train on, not {count}.", hint="Ask for fewer: `data.cases`.")
    chosen = np.random.default_rng(seed).permutation(len(names))[:count]
    return tuple(names[number] for number in sorted(chosen))


def make_case(name: str, scan: Volume, labels: Volume, protocol: Protocol) -> Case:
    """Bring a scan and its label map to the protocol; label values that it does not know become background.

    Raises:
        InputError: They do not lie on one grid, the scan is nothing to segment, or the labels are no whole numbers.
    """
    check_scan(scan, protocol)
    if not scan.grid.matches(labels.grid):
        raise InputError(f"The label map of {name} does not lie on the grid of its scan.", hint="Correct or leave out the case.")
    painted = labels.values[0]
    if not np.array_equal(painted, np.rint(painted)):
        raise InputError(f"The label map of {name} holds values between whole numbers.", hint="Export it without interpolation.")
    unknown = ~np.isin(painted, [0, *(structure.value for structure in protocol.structures)])
    found = ", ".join(str(int(value)) for value in np.unique(painted[unknown])[:8])
    warning = f"{np.count_nonzero(unknown)} voxels with values of no structure ({found}) are taken as background"
    way = prepare(scan, protocol)
    known = way.reorientation.apply(np.where(unknown, 0, painted).astype(np.uint8))
    if way.resampled:
        known = resample_labels(known, way.oriented, way.model)
    values, known = np.ascontiguousarray(way.apply(scan, protocol)), np.ascontiguousarray(known, np.uint8)
    return Case(name, values, known, way.model, (warning,) if found else ())


class Patches:
    """Patches at random places of random cases, changed at random.

    Args:
        cases: What to draw from, each with the same probability.
        patch: Voxels along (i, j, k), or along (i, j) of slices. What of a patch lies outside of its scan is 0, in values and
            labels.
        foreground: Share of patches that have a voxel of a structure at their centre, as far as the border of the scan
            allows; all structures of the case in equal parts, so that small ones are not missed.
        augment: Random changes.
    """

    def __init__(self, cases: Sequence[Case], patch: tuple[int, ...], foreground: float, augment: Augment) -> None:
        self.cases, self.foreground, self.augment = cases, foreground, augment
        self.sides, self.patch = patch, (*patch, 1)[:3]
        self.places = [[_some(case.labels == value) for value in np.unique(case.labels) if value] for case in cases]

    def __call__(self, rng: np.random.Generator) -> Sample:
        """Draw (C, *patch) float32 values and (1, *patch) float32 labels."""
        number = int(rng.integers(len(self.cases)))
        case, places = self.cases[number], self.places[number]
        shape = case.labels.shape
        low = [min(0, size - edge) for size, edge in zip(shape, self.patch, strict=True)]
        high = [max(0, size - edge) for size, edge in zip(shape, self.patch, strict=True)]
        start = rng.integers(low, high, endpoint=True)
        if places and rng.random() < self.foreground:
            place = places[rng.integers(len(places))]
            centred = place[rng.integers(len(place))] - np.array(self.patch) // 2
            # Along an axis on which the whole scan is in the patch it stays where chance has put it.
            start = np.where(np.array(high) > 0, np.clip(centred, low, high), start)
        values, labels = (cut(array, start, self.patch) for array in (case.values, case.labels[None]))
        values, labels = (array.reshape(len(array), *self.sides) for array in (values, labels))
        return self.augment(values, labels, rng)


def cut(array: np.ndarray, start: np.ndarray, patch: tuple[int, ...]) -> np.ndarray:
    """Copy a patch (C, *patch) out of (C, i, j, k), with zeros where it reaches beyond.

    >>> cut(np.arange(1, 7).reshape(1, 1, 2, 3), np.array([0, -1, 1]), (1, 2, 3))
    array([[[[0, 0, 0],
             [2, 3, 0]]]])
    """
    out = np.zeros((len(array), *patch), array.dtype)
    inside, target = [], []
    for first, edge, size in zip(start, patch, array.shape[1:], strict=True):
        begin, end = max(first, 0), min(first + edge, size)
        inside.append(slice(begin, end))
        target.append(slice(begin - first, end - first))
    out[(slice(None), *target)] = array[(slice(None), *inside)]
    return out


def _some(mask: np.ndarray) -> np.ndarray:
    """Indices (n, 3) of at most `REMEMBERED` voxels of a mask, spread evenly."""
    indices = np.argwhere(mask)
    return indices[:: max(1, -(-len(indices) // REMEMBERED))].astype(np.int32)
