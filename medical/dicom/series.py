"""Which slices make which volume: files grouped by series, scouts left out, what lies at one place told apart."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path

import numpy as np

from hybrid.errors import InputError
from medical.dicom.files import find_files, quiet, read_headers
from medical.dicom.frames import SPLIT_KEYS, Frame, description_of, frames_of, is_image, is_localizer, number, text, uid
from medical.dicom.geometry import SAME_PLACE, TILT, Stack, normal_of, repeated, stack_slices
from medical.volumes.geometry import Grid

SAME_DIRECTION = 1e-4
_TIMES = ("TriggerTime", "ContentTime")  # these differ from slice to slice too, so each part must be a whole volume
_EMPTY = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID")


@dataclass(frozen=True, eq=False)
class Series:
    """Slices that belong together.

    Attributes:
        path: The file, folder or zip where it was found.
        number: Its number in the list, from 1.
        uid: SeriesInstanceUID; empty where the files lack it.
        modality: Such as ``CT`` or ``MR``.
        description: SeriesDescription, where it is free of the patient's identity.
        part: What tells it from other parts of a series, such as ``echo time 4.6``; empty for whole series.
        slices: Number of slices.
        size: (columns, rows).
        grid: Where its voxels lie; None where it makes no volume.
        problem: Why it makes none.
        warnings: What a user should be told.
        frames: The slices, in order along k where there is a grid.
    """

    path: Path
    number: int
    uid: str
    modality: str
    description: str | None
    part: str
    slices: int
    size: tuple[int, int]
    grid: Grid | None
    problem: InputError | None
    warnings: tuple[str, ...]
    frames: tuple[Frame, ...] = field(repr=False)

    @property
    def spacing(self) -> tuple[float, float, float] | None:
        """Between columns, rows and slices, in mm; None where it makes no volume."""
        return self.grid.spacing if self.grid else None

    @property
    def is_stack(self) -> bool:
        """Whether it is meant as a volume, sound or not: several grey slices that say where they lie."""
        return self.slices > 1 and all(frame.placed for frame in self.frames) and not _coloured(self.frames[0])

    def __str__(self) -> str:
        """One line for a list: number, modality, slices, size, spacing, what it is, end of the UID."""
        measures = " x ".join(f"{edge:.3g}" for edge in self.spacing) + " mm" if self.spacing else "no volume"
        said = [self.modality or "unknown modality", f"{self.slices} x {self.size[0]} x {self.size[1]}", measures]
        said += [self.part] * bool(self.part) + [f'"{self.description}"'] * bool(self.description)
        return f"{self.number}: " + ", ".join(said) + (f" (UID ...{self.uid[-8:]})" if self.uid else "")


@quiet()
def list_series(path: str | Path) -> list[Series]:
    """Find the series of a folder with its sub-folders, a zip, or a file; pixels are not read.

    Slices of another size or direction than most of their series are left out, with a warning, and so are localizers. A
    series with several slices at each place (echoes, time points, b-values) gives one entry for each.

    Raises:
        InputError: Nothing there is a DICOM image, or the zip is damaged.
    """
    path = Path(path)
    headers, damaged = read_headers(find_files(path))
    images = [(file, header) for file, header in headers if is_image(header)]
    kept = [(file, header) for file, header in images if not is_localizer(header)]
    if not kept:
        raise InputError(_nothing(path, len(headers), len(images), damaged), hint="Give the folder of the original series.")
    common = _told((damaged, "Left out as damaged: {}."), (len(images) - len(kept), "Left out as localizer: {}."))
    groups: dict[Hashable, list[Frame]] = defaultdict(list)
    for file, header in kept:
        # Without a UID a folder is what holds a series together. Patients and studies are never mixed.
        place = uid(header, "SeriesInstanceUID") or (file.member or str(file.path)).rpartition("/")[0]
        whole = (text(header, "StudyInstanceUID"), text(header, "PatientID"), text(header, "Modality"))
        groups[place, whole].extend(frames_of(file, header))
    found = [_describe(path, part, said, common) for frames in groups.values() for said, part in _split(frames)]
    found.sort(key=_listing)
    return [replace(series, number=at) for at, series in enumerate(found, 1)]


def _split(frames: list[Frame]) -> list[tuple[tuple[str, tuple[str, ...]], list[Frame]]]:
    """The volumes of one series, each with (what it is, warnings)."""
    shapes = sorted(_shapes(frames), key=len, reverse=True)
    if 2 * len(shapes[0]) > len(frames):
        odd = len(frames) - len(shapes[0])
        warnings = _told((odd, "Left out, since of another size, spacing or direction than most of the series: {}."))
        return [((said, warnings), part) for said, part in _by_key(shapes[0])]
    # No majority, such as three planes of a scout or two stacks: each is offered.
    return [
        ((f"stack {at}" + f", {said}" * bool(said), ()), part)
        for at, shape in enumerate(shapes, 1)
        for said, part in _by_key(shape)
    ]


def _shapes(frames: list[Frame]) -> list[list[Frame]]:
    """Frames by size, spacing and direction, within a tolerance."""
    shapes: list[list[Frame]] = []
    for frame in frames:
        home = next((shape for shape in shapes if _alike(shape[0], frame)), None)
        if home is None:
            shapes.append([frame])
        else:
            home.append(frame)
    return shapes


def _alike(one: Frame, other: Frame) -> bool:
    if one.size != other.size or one.placed != other.placed:
        return False
    if not (one.orientation and other.orientation and one.pixel_spacing and other.pixel_spacing):
        return True
    gap = np.subtract(one.orientation + one.pixel_spacing, other.orientation + other.pixel_spacing)
    return bool(np.abs(gap).max() <= SAME_DIRECTION)


def _by_key(frames: list[Frame]) -> list[tuple[str, list[Frame]]]:
    """Frames told apart by the first tag, or pair of tags, that leaves one frame at each place; else all of them."""
    whole = _distances(frames)
    if whole is None or not len(repeated(whole)):
        return [("", frames)]
    places = len(whole) - int((np.diff(np.sort(whole)) < SAME_PLACE).sum())
    for count in (1, 2):
        for keys in combinations(SPLIT_KEYS, count):
            parts: dict[tuple[str, ...], list[Frame]] = defaultdict(list)
            for frame in frames:
                parts[tuple(frame.keys.get(key, "") for key in keys)].append(frame)
            least = places if any(key in _TIMES for key in keys) else 2
            if len(parts) > 1 and all(len(part) >= least and _unrepeated(part) for part in parts.values()):
                names = [SPLIT_KEYS[key] for key in keys]
                return [(_said(names, values), part) for values, part in parts.items()]
    return [("", frames)]


def _said(names: Sequence[str], values: Sequence[str]) -> str:
    """Such as ``echo time 4.6, b-value 1000``."""
    return ", ".join(f"{name} {value or 'not stated'}" for name, value in zip(names, values, strict=True))


def _unrepeated(frames: list[Frame]) -> bool:
    distances = _distances(frames)
    return distances is not None and not len(repeated(distances))


def _distances(frames: list[Frame]) -> np.ndarray | None:
    """(n,) places along the normal; None where frames do not say them."""
    if not all(frame.placed for frame in frames) or frames[0].orientation is None:
        return None
    try:
        places: np.ndarray | None = np.array([frame.position for frame in frames]) @ normal_of(frames[0].orientation)
        return places
    except InputError:
        return None


def _describe(path: Path, frames: list[Frame], said: tuple[str, tuple[str, ...]], common: tuple[str, ...]) -> Series:
    """A series, its slices in order if they make a volume, else with the reason why not."""
    stack, problem = None, None
    try:
        stack = _stack(frames)
    except InputError as error:
        problem = error
    ordered = tuple(frames[at] for at in stack.order) if stack else tuple(frames)
    header = ordered[0].header
    warnings = (*common, *said[1], *(_doubts(ordered, stack) if stack else ()))
    return Series(
        path, 0, uid(header, "SeriesInstanceUID"), text(header, "Modality"), description_of(header), said[0], len(frames),
        ordered[0].size, stack.grid if stack else None, problem, warnings, ordered,
    )  # fmt: skip


def _stack(frames: list[Frame]) -> Stack:
    first = frames[0]
    if _coloured(first):
        raise InputError("The series holds colour pictures, not a scan.", hint="Give the series that the scanner made.")
    if not all(frame.placed for frame in frames) or first.orientation is None or first.pixel_spacing is None:
        raise InputError(
            "The slices do not say where they lie: ImagePositionPatient, ImageOrientationPatient or PixelSpacing is missing.",
            hint="Export the original series.",
        )
    return stack_slices(np.array([frame.position for frame in frames]), first.orientation, first.pixel_spacing, first.size)


def _coloured(frame: Frame) -> bool:
    samples, kind = number(frame.header, "SamplesPerPixel"), text(frame.header, "PhotometricInterpretation")
    return samples not in (None, 1) or kind == "PALETTE COLOR"


def _doubts(frames: Sequence[Frame], stack: Stack) -> tuple[str, ...]:
    """What a user should be told of slices that make a volume."""
    warnings = []
    header, step = frames[0].header, stack.grid.spacing[2]
    if stack.tilt > TILT:
        warnings.append(f"The slices are tilted by {stack.tilt:.1f} degrees (gantry tilt); the sheared grid is kept.")
    said = number(header, "SpacingBetweenSlices")
    if said and abs(abs(said) - step) > 0.1 * step:
        warnings.append(f"The slices lie {step:.3g} mm apart, and their SpacingBetweenSlices says {abs(said):.3g} mm.")
    if empty := [keyword for keyword in _EMPTY if not uid(header, keyword)]:
        warnings.append(f"{', '.join(empty)} is empty: badly de-identified files. A DICOM SEG cannot refer to them.")
    if len({uid(frame.header, "FrameOfReferenceUID") for frame in frames}) > 1:
        warnings.append("The slices name several frames of reference; one is taken for all.")
    return tuple(warnings)


def _told(*counted: tuple[int, str]) -> tuple[str, ...]:
    """Sentences about so many images, for those counts that are not zero."""
    return tuple(sentence.format(f"{count} image{'s' * (count > 1)}") for count, sentence in counted if count)


def _nothing(path: Path, headers: int, images: int, damaged: int) -> str:
    if images:
        return f"{path.name} holds only localizers."
    if headers:
        return f"{path.name} holds DICOM files, but no image of a scanner: segmentations, reports or plans."
    return f"{path.name} holds {damaged} damaged DICOM file{'s' * (damaged > 1)} and no sound one."


def _listing(series: Series) -> tuple[float, str, str]:
    said = number(series.frames[0].header, "SeriesNumber")
    return (float("inf") if said is None else said, series.uid, series.part)
