"""Finds the scans and label maps of a data set below a user's folder, and the cases of a split."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import numpy as np

from data_specs.files import PICTURE_SUFFIXES, set_folder
from data_specs.segmentation_schema import Fold, SegmentationSpec, Split, VolumeLayout
from hybrid.errors import InputError, RequestError

VOLUME_SUFFIXES = (".nii.gz", ".nii")
ALL = "all"


@dataclass(frozen=True)
class VolumeCase:
    """One scan and its reference. `images` holds one file, or one for each channel."""

    name: str
    images: tuple[Path, ...]
    labels: Path


@dataclass(frozen=True)
class FoundVolumes:
    """The cases of a split, in order of their names, and how they lie."""

    folder: Path
    layout: VolumeLayout
    split: str
    cases: tuple[VolumeCase, ...]


def find_volumes(spec: SegmentationSpec, data_dir: str | Path, split: str = ALL) -> FoundVolumes:
    """Find the scans and references of one split.

    Args:
        spec: The set's description.
        data_dir: The folder that holds the set's folder, or that folder itself, under whatever name.
        split: A name from the description, or ``all``.

    Raises:
        RequestError: There is no such split, or its list is not to be had.
        InputError: Files are missing; the message says which.
    """
    rule = _rule(spec, split)
    folder = _folder(spec, Path(data_dir))
    layout, labels = _labels(spec, folder)
    names = sorted(labels) if rule is None else _split_cases(rule, folder, layout, labels)
    missing = [name for name in names if name not in labels]
    if missing or not names:
        raise InputError(
            f"{folder.name} lacks the label maps of {len(missing)} of {len(names)} cases of the split {split}"
            + (f", the first is {missing[0]}." if missing else "."),
            hint="Complete the data set, or choose another split.",
        )
    cases = tuple(VolumeCase(name, _images(layout, folder, name), labels[name]) for name in names)
    return FoundVolumes(folder, layout, split, cases)


def volume_stem(path: Path) -> str:
    """The file name without the suffix of a volume.

    >>> volume_stem(Path("labelsTr/a.b.nii.gz"))
    'a.b'
    """
    suffix = next((suffix for suffix in VOLUME_SUFFIXES if path.name.lower().endswith(suffix)), path.suffix)
    return path.name[: len(path.name) - len(suffix)]


def volumes_in(folder: Path, pattern: str = "*", *, pictures: bool = False) -> Iterator[Path]:
    """Volumes, or pictures, below a folder that fit a pattern without suffix, in order, but for hidden files (``._a.nii.gz``)."""
    suffixes = PICTURE_SUFFIXES if pictures else VOLUME_SUFFIXES
    for path in sorted(folder.glob(pattern + (".*" if pictures else ".nii*"))):
        if path.name.lower().endswith(suffixes) and not path.name.startswith(".") and path.is_file():
            yield path


def k_fold(names: Collection[str], fold: Fold) -> tuple[str, ...]:
    """The part of sorted names that a fold holds out, as scikit-learn's ``KFold(of, shuffle=True, random_state=seed)``.

    >>> k_fold(["a", "b", "c", "d", "e"], Fold(fold=0, of=5, seed=12345))
    ('a',)
    """
    ordered = sorted(names)
    order = np.arange(len(ordered))
    np.random.RandomState(fold.seed).shuffle(order)  # the old generator: scikit-learn's
    return tuple(ordered[index] for index in sorted(np.array_split(order, fold.of)[fold.fold]))


def _rule(spec: SegmentationSpec, split: str) -> Split | None:
    """The description of a split; None: all cases."""
    if split == ALL:
        return None
    rule = next((each for each in spec.splits if each.name == split), None)
    if rule is None:
        known = ", ".join([*(each.name for each in spec.splits), ALL])
        raise RequestError(f"{spec.title} has no split {split!r}.", hint=f"Choose one of {known}.")
    if rule.words is not None:
        raise RequestError(
            f"The cases of the split {split} of {spec.title} are not listed: {rule.words}",
            hint="List them under 'cases' in a copy of the description and name that file.",
        )
    return rule


def _folder(spec: SegmentationSpec, data_dir: Path) -> Path:
    try:
        return set_folder(spec, data_dir)
    except InputError:
        if data_dir.is_dir() and any(any(_painted(data_dir, layout)) for layout in spec.layouts):
            return data_dir
        raise


def _labels(spec: SegmentationSpec, folder: Path) -> tuple[VolumeLayout, dict[str, Path]]:
    """The layout that fits, and the label map of each case."""
    for layout in spec.layouts:
        labels: dict[str, Path] = {}
        for path in _painted(folder, layout):
            place = path.parent.relative_to(folder) / volume_stem(path)
            match = re.fullmatch(_expression(layout.labels), place.as_posix())
            if match and labels.setdefault(match["case"], path) != path:
                raise InputError(f"{labels[match['case']]} and {path} are one case.", hint="Keep one of them.")
        if labels:
            return layout, labels
    tried = "; ".join(f"{layout.labels.replace('{case}', 'CASE')}{_suffix(layout)}" for layout in spec.layouts)
    raise InputError(
        f"{folder} does not hold the label maps of {spec.title}. Looked for: {tried}.",
        hint=f"Source: {spec.source.url or spec.source.where}.",
    )


def _images(layout: VolumeLayout, folder: Path, case: str) -> tuple[Path, ...]:
    found = []
    for pattern in layout.images:
        paths = list(volumes_in(folder, pattern.replace("{case}", escape(case)), pictures=layout.pictures))
        if len(paths) != 1:
            what = "no scan" if not paths else f"{len(paths)} scans"
            shown = pattern.replace("{case}", case)
            raise InputError(
                f"{folder.name} holds {what} for the case {case}: {shown}{_suffix(layout)}.", hint="There must be one."
            )
        found.append(paths[0])
    return tuple(found)


def _split_cases(rule: Split, folder: Path, layout: VolumeLayout, labels: Collection[str]) -> list[str]:
    if rule.cases is not None:
        return sorted(rule.cases)
    if rule.k_fold is not None:
        return list(k_fold(labels, rule.k_fold))
    entries = [entry for entry in _listed(rule, folder) if _wanted(rule, entry)]
    return sorted({_case_name(entry, layout) for entry in entries})


def _listed(rule: Split, folder: Path) -> list[Any]:
    path = folder / str(rule.file)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        for key in rule.keys:
            found = found[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path} does not list the split {rule.name} under {'.'.join(rule.keys)}: {error}.",
            hint="Use the file that comes with the data set, or the split all.",
        ) from error
    if not isinstance(found, list):
        raise InputError(f"{path} holds no list of cases under {'.'.join(rule.keys)}.", hint="Use the data set's own file.")
    return found


def _wanted(rule: Split, entry: Any) -> bool:
    return not rule.entries or (isinstance(entry, dict) and all(entry.get(key) == want for key, want in rule.entries.items()))


def _case_name(entry: Any, layout: VolumeLayout) -> str:
    """The case that an entry of a split file means, given as a name, a file, or an object with files."""
    if isinstance(entry, dict):
        entry = entry.get("label", entry.get("image"))
        entry = entry[0] if isinstance(entry, list) and entry else entry
    if not isinstance(entry, str) or not entry:
        raise InputError(f"A split lists {entry!r}, which names no case.", hint="Give names or files of label maps.")
    endings = PICTURE_SUFFIXES if layout.pictures else VOLUME_SUFFIXES
    name = volume_stem(Path(entry)) if entry.lower().endswith(endings) else Path(entry).name
    for pattern in (layout.labels, *layout.images):
        before, after = (re.escape(part).replace(r"\*", ".*") for part in pattern.rpartition("/")[2].split("{case}"))
        if (before or after) and (match := re.fullmatch(f"{before}(.+){after}", name)):
            return match[1]
    return name


def _painted(folder: Path, layout: VolumeLayout) -> Iterator[Path]:
    """The label maps of a layout."""
    return volumes_in(folder, _glob(layout.labels), pictures=layout.pictures)


def _suffix(layout: VolumeLayout) -> str:
    return ".png" if layout.pictures else ".nii.gz"


def _glob(pattern: str) -> str:
    return pattern.replace("{case}", "*")


def _expression(pattern: str) -> str:
    """A regular expression for a path without suffix; every ``{case}`` must be the same name."""
    first, *others = re.escape(pattern).replace(r"\*", "[^/]*").split(r"\{case\}")
    return first + "(?P<case>[^/]+)" + "(?P=case)".join(others)
