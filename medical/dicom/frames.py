"""What the header of a DICOM file says of each of its frames, single-slice and enhanced multi-frame files alike."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import UID

from medical.dicom.files import UNREADABLE_VALUE, DicomFile

SPLIT_KEYS = {
    "ImageType": "kind",
    "AcquisitionNumber": "acquisition",
    "TemporalPositionIdentifier": "time point",
    "EchoTime": "echo time",
    "InversionTime": "inversion time",
    "DiffusionBValue": "b-value",
    "DiffusionGradientOrientation": "gradient",
    "TriggerTime": "trigger time",
    "ContentTime": "time",
    "DimensionIndexValues": "dimension",
}
"""What may tell slices at one place apart, in the order in which it is tried, and what people call it."""

NO_SCANS = ("SEG", "RTSTRUCT", "RTDOSE", "RTPLAN", "RTRECORD", "SR", "PR", "KO", "REG", "DOC", "PLAN", "ANN")
"""Modalities of objects that are made from scans."""

# Where enhanced files keep what single-slice files have at the top: (sequence of the functional groups, tag in it).
_GROUPS = {
    "ImageType": (
        ("MRImageFrameTypeSequence", "FrameType"), ("CTImageFrameTypeSequence", "FrameType"),
        ("PETFrameTypeSequence", "FrameType"),
    ),
    "AcquisitionNumber": (("FrameContentSequence", "FrameAcquisitionNumber"),),
    "TemporalPositionIdentifier": (("FrameContentSequence", "TemporalPositionIndex"),),
    "EchoTime": (("MREchoSequence", "EffectiveEchoTime"),),
    "DiffusionBValue": (("MRDiffusionSequence", "DiffusionBValue"),),
    "TriggerTime": (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"),),
}  # fmt: skip
_PLACES = tuple(Tag(keyword) for keyword in ("ImagePositionPatient", "InStackPositionNumber", "StackID"))
_MAX_FRAMES = 1_000_000


@dataclass(frozen=True, eq=False)
class Frame:
    """One slice.

    Attributes:
        file: The file that it is in.
        number: Its number in the file, from 1.
        header: The file's header; never changed.
        multiframe: Whether the file holds frames by functional groups.
        size: (columns, rows).
        position: ImagePositionPatient, LPS+ mm; None where the file does not say it.
        orientation: ImageOrientationPatient, likewise.
        pixel_spacing: Between rows, between columns, in mm, likewise.
        slope, intercept: Real value = stored * slope + intercept.
        rescaled: Whether the file states them.
        keys: Values of `SPLIT_KEYS`, as far as they are there.
    """

    file: DicomFile
    number: int
    header: Dataset = field(repr=False)
    multiframe: bool
    size: tuple[int, int]
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    pixel_spacing: tuple[float, float] | None
    slope: float
    intercept: float
    rescaled: bool
    keys: dict[str, str] = field(repr=False)

    @property
    def placed(self) -> bool:
        """Whether it says where it lies."""
        return None not in (self.position, self.orientation, self.pixel_spacing)


def is_image(header: Dataset) -> bool:
    """Whether a file holds a picture that a scanner made, and not a segmentation, report or plan."""
    return text(header, "Modality") not in NO_SCANS and all(number(header, key) for key in ("Rows", "Columns"))


def is_localizer(header: Dataset) -> bool:
    """Whether it is a scout image, by the third value of ImageType or any other."""
    return "LOCALIZER" in text(header, "ImageType").upper().split("\\")


def frames_of(file: DicomFile, header: Dataset) -> Iterator[Frame]:
    """The frames of a file, in its order."""
    shared = _items(header, "SharedFunctionalGroupsSequence")[:1]
    own = _items(header, "PerFrameFunctionalGroupsSequence")
    count = int(number(header, "NumberOfFrames") or 1)
    if not shared and not own:
        # Frames of one file without functional groups have no place of their own: only the first's is at the top.
        for index in range(min(count, _MAX_FRAMES)):
            yield _frame(file, header, index + 1, [header] if count == 1 else [], False)
        return
    for index in range(min(count, _MAX_FRAMES)):
        yield _frame(file, header, index + 1, [*own[index : index + 1], *shared], True)


def text(dataset: Dataset, keyword: str) -> str:
    """The value of a tag as text, several values with a backslash between them; empty where it is absent or damaged."""
    try:
        value = dataset.get(keyword)
    except UNREADABLE_VALUE:
        return ""
    if value is None:
        return ""
    return "\\".join(map(str, value)) if isinstance(value, MultiValue | list | tuple) else str(value).strip()


def number(dataset: Dataset, keyword: str) -> float | None:
    """The value of a tag that is one number; None where it is absent or damaged."""
    values = numbers(dataset, keyword, 1)
    return values[0] if values else None


def numbers(dataset: Dataset, keyword: str, count: int) -> tuple[float, ...] | None:
    """The values of a tag that holds so many finite numbers; None where it is absent or damaged."""
    try:
        value = dataset.get(keyword)
        values = tuple(float(part) for part in (value if isinstance(value, MultiValue | list) else [value]))
    except UNREADABLE_VALUE:
        return None
    return values if len(values) == count and all(abs(part) < float("inf") for part in values) else None


def uid(dataset: Dataset, keyword: str) -> str:
    """A UID; empty where it is absent or is none."""
    found = UID(text(dataset, keyword), validation_mode=0)
    return str(found) if found.is_valid else ""


def description_of(header: Dataset) -> str | None:
    """SeriesDescription, unless a word of the patient's identity or anything like it is in it.

    Any person's name, identifier or date of the header counts, and so do names as DICOM writes them and long runs of
    digits, which are numbers of patients or dates.
    """
    said = " ".join(text(header, "SeriesDescription").split())
    folded = said.casefold()
    private = {
        word.casefold() for keyword in _IDENTITY for word in re.split(r"[\^=\\\s,;]+", text(header, keyword)) if len(word) > 1
    }
    if not said or "^" in said or re.search(r"\d[\d./-]{5,}", said) or any(word in folded for word in private):
        return None
    return "".join(letter for letter in said if letter.isprintable())[:64]


_IDENTITY = (
    "PatientName", "PatientID", "OtherPatientIDs", "OtherPatientNames", "PatientBirthDate", "PatientBirthName",
    "PatientMotherBirthName", "AccessionNumber", "ReferringPhysicianName", "PerformingPhysicianName", "OperatorsName",
    "PhysiciansOfRecord", "NameOfPhysiciansReadingStudy", "RequestingPhysician", "PatientAddress",
)  # fmt: skip


def _frame(file: DicomFile, header: Dataset, at: int, groups: list[Dataset], multiframe: bool) -> Frame:
    """One frame; `groups` are where to look, the frame's own before what all share."""

    def find(sequence: str, keyword: str, count: int) -> tuple[float, ...] | None:
        for group in groups:
            for item in _items(group, sequence)[:1] if multiframe else [group]:
                if (values := numbers(item, keyword, count)) is not None:
                    return values
        return None

    spacing = find("PixelMeasuresSequence", "PixelSpacing", 2)
    slope = find("PixelValueTransformationSequence", "RescaleSlope", 1)
    intercept = find("PixelValueTransformationSequence", "RescaleIntercept", 1)
    if not multiframe or slope is None:  # files with frames and without groups keep one for all at the top
        slope, intercept = numbers(header, "RescaleSlope", 1), numbers(header, "RescaleIntercept", 1)
    return Frame(
        file, at, header, multiframe,
        size=(int(number(header, "Columns") or 0), int(number(header, "Rows") or 0)),
        position=find("PlanePositionSequence", "ImagePositionPatient", 3),
        orientation=find("PlaneOrientationSequence", "ImageOrientationPatient", 6),
        pixel_spacing=(spacing[0], spacing[1]) if spacing is not None and min(spacing) > 0 else None,
        slope=slope[0] if slope is not None and slope[0] != 0 else 1.0,
        intercept=intercept[0] if intercept is not None else 0.0,
        rescaled=slope is not None,
        keys=_keys(header, groups) if multiframe else {key: said for key in SPLIT_KEYS if (said := text(header, key))},
    )  # fmt: skip


def _keys(header: Dataset, groups: list[Dataset]) -> dict[str, str]:
    keys = {}
    for key, places in _GROUPS.items():
        said = (text(item, tag) for group in groups for sequence, tag in places for item in _items(group, sequence)[:1])
        if value := next(filter(None, said), ""):
            keys[key] = value
    # Dimensions that are no place along the stack: whatever they are, frames that differ in them are different images.
    pointers = [item.get("DimensionIndexPointer") for item in _items(header, "DimensionIndexSequence")]
    content = [item for group in groups for item in _items(group, "FrameContentSequence")[:1]]
    indices = text(content[0], "DimensionIndexValues").split("\\") if content else []
    others = [index for pointer, index in zip(pointers, indices, strict=False) if pointer not in _PLACES]
    return keys | ({"DimensionIndexValues": " ".join(others)} if others else {})


def _items(dataset: Dataset, keyword: str) -> list[Any]:
    """The items of a sequence; none where it is absent or damaged."""
    try:
        value = dataset.get(keyword)
        return list(value) if value else []
    except UNREADABLE_VALUE:
        return []
