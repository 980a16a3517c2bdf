"""Label maps written as DICOM SEG: one binary segment for each structure, on the slices of the series they came from.

PS3.3 A.51 and C.8.20 of the standard; section 8 of the project's medical protocol says what receivers expect.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from hybrid.errors import OutputError, RequestError
from hybrid.records import replacing
from medical.dicom.deidentification import finish, is_deidentified
from medical.dicom.files import UNREADABLE, UNREADABLE_VALUE, quiet
from medical.dicom.frames import Frame, number, numbers, text, uid
from medical.notice import RESEARCH_USE
from medical.structures import Structure
from medical.volumes.volume import Volume

if TYPE_CHECKING:
    import highdicom

PRODUCT = "hybrid-imaging"
SAME_POSITION = 1e-3
"""How far, in mm, a frame that was read back may be from its slice."""

INSTEAD = "Write NIfTI instead, with --format nifti."
_LONG_STRING = 64
_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
# Tags of type 2 must be there and may be empty; hard de-identification takes them out.
_TYPE_2 = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName", "Manufacturer",
)  # fmt: skip
_FORMS = {"PatientBirthDate": r"\d{8}", "StudyDate": r"\d{8}", "StudyTime": r"\d{2,6}(\.\d{1,6})?", "PatientSex": r"[MFO]"}
# Groups of the patient, the study and the image; the rest of a header is of no use to a segmentation.
_GROUPS = (0x0008, 0x0010, 0x0012, 0x0020, 0x0028)


@quiet()
def write_seg(
    path: str | Path,
    labels: np.ndarray,
    volume: Volume,
    structures: Sequence[Structure],
    *,
    algorithm: str,
    version: str,
    by_hand: bool = False,
) -> Path:
    """Write a label map as a DICOM SEG that refers to its series, and read it back before it takes its place.

    Segments are numbered from 1 in the order of the structures' values, and are labelled and coded as the structures say.
    Structures without a voxel have a segment without frames. A label map that is empty altogether has all its frames, all
    of them blank, since a SEG without frames is none.

    Args:
        path: The file, by custom .dcm.
        labels: (i, j, k) integers on the scan's grid; 0 is the background.
        volume: The scan, from `medical.dicom.volume`, or from `medical.dicom.deidentification`.
        structures: What the numbers mean; every number in the map must be one of them.
        algorithm: Name of the network.
        version: Its version, such as the beginning of its weights' hash.
        by_hand: Whether somebody corrected what the network made: the segments are then called semi-automatic.

    Raises:
        RequestError: The scan is no DICOM series, or the labels are not on its grid.
        OutputError: The series lacks UIDs that a SEG must refer to; a label has no structure; the file cannot be written,
            or what was read back differs.
    """
    path = Path(path)
    frames = _source_frames(volume)
    numbered = _numbered(labels, volume, structures)
    if (fault := obstacle(volume)) is not None:
        raise OutputError(fault, hint=INSTEAD)
    try:
        with replacing(path) as part:
            segmentation = _segmentation(numbered, frames, volume, structures, (algorithm, version), by_hand)
            if is_deidentified(frames[0].header):
                finish(segmentation)
            segmentation.save_as(part)
            _check(part, numbered, frames, structures)
    except UNREADABLE as error:
        # What highdicom says is not passed on, since it may quote the patient's tags.
        raise OutputError(
            f"No DICOM SEG could be made of {volume.name}: a tag of its headers does not follow the standard.", hint=INSTEAD
        ) from error
    except OSError as error:
        raise OutputError(f"{path.name} could not be written: {error.strerror}.", hint="Choose another output folder.") from error
    return path


@quiet()
def obstacle(volume: Volume) -> str | None:
    """Why no DICOM SEG can refer to a DICOM series, in one sentence; None where it can.

    It refers to images by their UIDs, so they must have some, and each its own.

    Raises:
        RequestError: The scan is no DICOM series.
    """
    frames = _source_frames(volume)
    if absent := [keyword for keyword in _NEEDED if any(not uid(frame.header, keyword) for frame in frames)]:
        fault = f"{', '.join(absent)} {'is' if len(absent) == 1 else 'are'} absent or empty"
    elif len({(uid(frame.header, "SOPInstanceUID"), frame.number) for frame in frames}) < len(frames):
        fault = "several share one SOPInstanceUID"
    elif len({uid(frame.header, "FrameOfReferenceUID") for frame in frames}) > 1:
        fault = "they name several frames of reference (FrameOfReferenceUID)"
    else:
        return None
    return f"A DICOM SEG cannot refer to these files: {fault}."


@quiet()
def check_seg(path: str | Path, labels: np.ndarray, volume: Volume, structures: Sequence[Structure]) -> None:
    """Read a DICOM SEG anew and compare it with the label map (i, j, k) that it must hold.

    Every frame must lie on a slice of the series, refer to it, and hold exactly the structure's pixels there; and no voxel
    of the map may be in no frame.

    Raises:
        OutputError: It does not.
        RequestError: As `write_seg`.
    """
    frames = _source_frames(volume)
    _check(Path(path), _numbered(labels, volume, structures), frames, structures)


def _check(path: Path, numbered: np.ndarray, frames: Sequence[Frame], structures: Sequence[Structure]) -> None:
    import highdicom

    try:
        _compare(highdicom.seg.segread(path), numbered, frames, structures)
    except UNREADABLE as error:
        raise _differs("it cannot be read back") from error


def _source_frames(volume: Volume) -> tuple[Frame, ...]:
    frames: tuple[Frame, ...] | None = getattr(volume.origin, "frames", None)
    if frames is None:
        raise RequestError(f"{volume.name} is no DICOM series, so a DICOM SEG has nothing to refer to.", hint=INSTEAD)
    return frames


def _numbered(labels: np.ndarray, volume: Volume, structures: Sequence[Structure]) -> np.ndarray:
    """(k, rows, columns) uint8 or uint16 with the segment's number for each structure's value."""
    if labels.shape != volume.grid.shape:
        raise RequestError(f"The labels {labels.shape} are not on the grid {volume.grid.shape} of {volume.name}.")
    values = sorted(structure.value for structure in structures)
    table = np.zeros(max(values, default=0) + 1, np.uint8 if len(values) < 256 else np.uint16)
    table[values] = np.arange(1, len(values) + 1)
    planes = np.ascontiguousarray(labels.T)  # slices of rows, as pixels are stored
    inside = values and planes.min() >= 0 and planes.max() < len(table)
    numbered = table[planes] if inside else planes
    if not inside or ((numbered == 0) & (planes != 0)).any():
        unknown = sorted(set(np.unique(planes).tolist()) - {0, *values})
        raise OutputError(f"The label map holds numbers of no structure: {unknown}.", hint="Give a structure for each.")
    return numbered


def _segmentation(
    numbered: np.ndarray,
    frames: Sequence[Frame],
    volume: Volume,
    structures: Sequence[Structure],
    made_by: tuple[str, str],
    by_hand: bool,
) -> highdicom.seg.Segmentation:
    import highdicom

    from hybrid.records import versions

    ordered = sorted(structures, key=lambda structure: structure.value)
    algorithm, version = (part[:_LONG_STRING] for part in made_by)
    software = versions()[PRODUCT]
    segmentation = highdicom.seg.Segmentation(
        source_images=_sources(frames, volume),
        pixel_array=numbered,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=[_description(at, one, algorithm, version, by_hand) for at, one in enumerate(ordered, 1)],
        series_instance_uid=highdicom.UID(),
        series_number=1000 + max(0, int(number(frames[0].header, "SeriesNumber") or 0)) % 1_000_000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=PRODUCT,
        manufacturer_model_name=PRODUCT,
        software_versions=software,
        device_serial_number=software,
        content_label="SEGMENTATION",
        content_description=RESEARCH_USE,
        content_creator_name=f"{PRODUCT}^medical",
        specific_character_set="ISO_IR 192",  # names of structures and patients in any script
        series_description=f"{algorithm[: _LONG_STRING - len(RESEARCH_USE) - 2]}: {RESEARCH_USE}",
    )
    _refer_to_frames(segmentation, frames)
    return segmentation


def _sources(frames: Sequence[Frame], volume: Volume) -> list[Dataset]:
    """A header for each slice, as of a file of its own, with what a SEG needs and the read headers unchanged.

    So frames of multi-frame files, too, keep their order along k and exactly their own position.
    """
    step = np.linalg.norm(volume.grid.affine[:3, 2])
    column, row = (volume.grid.affine[:3, axis] / volume.grid.spacing[axis] for axis in (0, 1))
    apart = abs(float(np.cross(column, row) @ volume.grid.affine[:3, 2]))
    sources = []
    for frame in frames:
        source = Dataset()
        for tag in frame.header.keys():  # noqa: SIM118 - a data set iterates over elements
            if tag.group in _GROUPS and not tag.is_private:
                try:
                    source.add(copy.copy(frame.header[tag]))
                except UNREADABLE_VALUE:
                    continue  # a damaged tag that is needed is made anew below
        source.pop("NumberOfFrames", None)
        for keyword in _TYPE_2:
            said = text(source, keyword)
            if not said or not re.fullmatch(_FORMS.get(keyword, ".*"), said, re.DOTALL):
                source.pop(keyword, None)
                setattr(source, keyword, "")
        if frame.multiframe:
            source.SOPClassUID = MRImageStorage  # a class of single slices; `_refer_to_frames` puts it right
        # One direction and spacing for all: they may differ in their last digits.
        source.ImageOrientationPatient = _decimals(frames[0].orientation)
        source.PixelSpacing = _decimals(frames[0].pixel_spacing)
        source.ImagePositionPatient = _decimals(frame.position)
        thickness = number(frame.header, "SliceThickness")
        source.SliceThickness = thickness if thickness and thickness > 0 else round(float(step), 6)
        source.SpacingBetweenSlices = round(apart, 6)
        sources.append(source)
    return sources


def _decimals(values: Sequence[float] | None) -> list[Any]:
    from pydicom.valuerep import DS

    return [DS(value, auto_format=True) for value in values or ()]


def _refer_to_frames(segmentation: Dataset, frames: Sequence[Frame]) -> None:
    """Name the frames of multi-frame files in the references to them, and each file once."""
    if not any(frame.multiframe for frame in frames):
        return
    positions = np.array([frame.position for frame in frames])
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        frame = frames[_slice_of(item, positions)[0]]
        (source,) = item.DerivationImageSequence[0].SourceImageSequence
        source.ReferencedSOPClassUID, source.ReferencedFrameNumber = uid(frame.header, "SOPClassUID"), frame.number
    files = {uid(frame.header, "SOPInstanceUID"): uid(frame.header, "SOPClassUID") for frame in frames}
    references = []
    for instance, kind in files.items():
        reference = Dataset()
        reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = kind, instance
        references.append(reference)
    segmentation.SourceImageSequence = references
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = references


def _description(at: int, structure: Structure, algorithm: str, version: str, by_hand: bool) -> highdicom.seg.SegmentDescription:
    import highdicom
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code as Coded

    kind = structure.category if structure.code is None else structure.code
    return highdicom.seg.SegmentDescription(
        segment_number=at,
        segment_label=structure.name[:_LONG_STRING],
        segmented_property_category=Coded(structure.category.value, structure.category.scheme, structure.category.meaning),
        segmented_property_type=_known(structure) or Coded(kind.value, kind.scheme, kind.meaning),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues["SEMIAUTOMATIC" if by_hand else "AUTOMATIC"],
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=algorithm, version=version, family=codes.DCM.ArtificialIntelligence
        ),
        display_color=highdicom.color.CIELabColor.from_rgb(*structure.rgb),
    )


def _known(structure: Structure) -> Any:
    """The code that the standard's list of segmented anatomy (CID 7192) has under the structure's name, where it has none."""
    from pydicom.sr.codedict import codes

    if structure.code is not None:
        return None
    name = "".join(word.capitalize() for word in re.findall(r"[A-Za-z]+", structure.name))
    return getattr(codes.cid7192, name) if name and name in codes.cid7192.dir(name) else None


def _compare(segmentation: Any, numbered: np.ndarray, frames: Sequence[Frame], structures: Sequence[Structure]) -> None:
    """Compare frame by frame, so that no second label map is in memory."""
    segments = len(structures)
    names = [one.name[:_LONG_STRING] for one in sorted(structures, key=lambda one: one.value)]
    if [(item.SegmentNumber, item.SegmentLabel) for item in segmentation.SegmentSequence] != list(enumerate(names, 1)):
        raise _differs("its segments are not the structures")
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    direction = np.array(shared.PlaneOrientationSequence[0].ImageOrientationPatient, dtype=float)
    if np.abs(direction - np.array(frames[0].orientation)).max() > SAME_POSITION:
        raise _differs("its slices have another direction than the scan's")
    positions = np.array([frame.position for frame in frames])
    found = np.zeros((segments + 1, len(frames)), np.int64)
    for at, item in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        k, gap = _slice_of(item, positions)
        owner = item if "SegmentIdentificationSequence" in item else shared  # a single segment is said once for all
        segment = int(owner.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        if gap > SAME_POSITION:
            raise _differs(f"frame {at + 1} lies {gap:.3g} mm beside its slice")
        if not _refers(item, frames[k]):
            raise _differs(f"frame {at + 1} refers to another image than the slice that it lies on")
        pixels = segmentation.get_stored_frame(at + 1)
        if not np.array_equal(pixels.astype(bool), numbered[k] == segment):
            raise _differs(f"frame {at + 1} holds other pixels than the label map")
        found[segment, k] += int(pixels.sum())
    for k, plane in enumerate(numbered):
        counts = np.bincount(plane.ravel(), minlength=segments + 1)
        if not np.array_equal(counts[1:], found[1:, k]):
            raise _differs(f"slice {k + 1} lacks a structure, or has one twice")


def _slice_of(item: Dataset, positions: np.ndarray) -> tuple[int, float]:
    """The slice that a frame lies on, and how far from it in mm."""
    gaps = np.linalg.norm(positions - numbers(item.PlanePositionSequence[0], "ImagePositionPatient", 3), axis=1)
    k = int(gaps.argmin())
    return k, float(gaps[k])


def _refers(item: Dataset, frame: Frame) -> bool:
    references = [source for derivation in item.DerivationImageSequence for source in derivation.SourceImageSequence]
    return (
        len(references) == 1
        and references[0].ReferencedSOPClassUID == uid(frame.header, "SOPClassUID")
        and references[0].ReferencedSOPInstanceUID == uid(frame.header, "SOPInstanceUID")
        and references[0].get("ReferencedFrameNumber") == (frame.number if frame.multiframe else None)
    )


def _differs(how: str) -> OutputError:
    return OutputError(f"The DICOM SEG that was written is not the label map: {how}.", hint="Report this; write NIfTI meanwhile.")
