"""De-identified DICOM SEG: the headers that a segmentation repeats, without the patient, and UIDs under other numbers.

By the Basic Application Level Confidentiality Profile of DICOM PS3.15 (Annex E, Table E.1-1), for the attributes that our
SEG has; a SEG repeats of its source the patient and study modules and the UIDs, and nothing else. UIDs are replaced by a keyed
hash (HMAC-SHA256, RFC 2104): under one key the same UID always gets the same number, so that a SEG still refers to the images
which were de-identified under that key, and who lacks the key cannot tell which they are.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.uid import UID

from hybrid.errors import RequestError
from medical.dicom.files import UNREADABLE_VALUE, quiet
from medical.dicom.frames import text, uid
from medical.volumes.volume import Volume

LEAST_KEY = 16
"""Bytes of a key; a shorter one can be guessed from a UID and its number."""
KEPT = ("SOPClassUID", "Modality", "ImageType", "SpecificCharacterSet", "SeriesNumber", "InstanceNumber", "NumberOfFrames")
"""Beside the image's size and values (group 0028) what may stay; nothing in it is about a person."""
EMPTIED = (
    "PatientName", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
    "ReferringPhysicianName",
)  # fmt: skip
"""Action Z: attributes that must be there and may be empty."""
RENUMBERED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID")
"""Action U."""
NO_DATE, NO_TIME = "19000101", "000000"
"""Action D, of dates that must not be empty."""
METHOD = "DICOM PS3.15 Basic Profile; UIDs by keyed hash"


@dataclass(frozen=True)
class Pseudonyms:
    """Numbers in place of UIDs and of patients' identifiers.

    Attributes:
        key: What they depend on; whoever has it can find out which number a known UID got.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @classmethod
    def read(cls, path: Path) -> Pseudonyms:
        """Take the contents of a file as key.

        Raises:
            RequestError: It cannot be read, or is too short.
        """
        try:
            with path.open("rb") as stream:
                key = stream.read(1 << 16).strip()
        except OSError as error:
            raise RequestError(
                f"The key {path.name} cannot be read: {error.strerror}.", hint="Check --deidentify-key."
            ) from error
        if len(key) < LEAST_KEY:
            raise RequestError(
                f"The key {path.name} has {len(key)} bytes, and {LEAST_KEY} are needed.",
                hint=f'Make one: python -c "import secrets; print(secrets.token_hex(32))" > {path.name}',
            )
        return cls(key)

    def uid(self, known: str) -> str:
        """The UID that stands for another: 2.25. and 128 bits (PS3.5, B.2); empty for an empty one.

        >>> one = Pseudonyms(b"k" * 16)
        >>> one.uid("1.2.3") == one.uid("1.2.3") != one.uid("1.2.4"), one.uid("")
        (True, '')
        """
        return str(UID(f"2.25.{int.from_bytes(self._digest('uid', known)[:16], 'big')}")) if known else ""

    def patient(self, known: str) -> str:
        """What stands for a patient's identifier: the same for all results of one patient; empty for an empty one."""
        return self._digest("patient", known)[:8].hex().upper() if known else ""

    def _digest(self, kind: str, known: str) -> bytes:
        return hmac.new(self.key, f"{kind}:{known}".encode(), hashlib.sha256).digest()


@quiet()
def deidentified(volume: Volume, pseudonyms: Pseudonyms) -> Volume:
    """A DICOM scan whose headers hold what a SEG needs and nobody's identity; any other scan as it is.

    The headers are new ones; those that were read are not changed, and nor are the voxels, which may show a face.
    """
    from medical.dicom.volume import DicomOrigin

    if not isinstance(volume.origin, DicomOrigin):
        return volume
    frames = volume.origin.frames
    headers = {id(frame.header): _header(frame.header, pseudonyms) for frame in frames}
    clean = tuple(replace(frame, header=headers[id(frame.header)]) for frame in frames)
    return replace(volume, origin=replace(volume.origin, frames=clean, uid=pseudonyms.uid(volume.origin.uid)))


def is_deidentified(header: Dataset) -> bool:
    """Whether a header is one of ours without an identity."""
    return text(header, "DeidentificationMethod") == METHOD


def finish(segmentation: Dataset) -> None:
    """Take out of a SEG what it was given anew: when it was made, and its description."""
    for keyword in ("InstanceCreationDate", "InstanceCreationTime", "SeriesDate", "SeriesTime", "SeriesDescription"):
        segmentation.pop(keyword, None)  # action X
    for equipment in segmentation.get("ContributingEquipmentSequence", ()):
        for keyword in ("ContributionDateTime", "ContributionDescription"):
            equipment.pop(keyword, None)
    segmentation.ContentDate, segmentation.ContentTime = NO_DATE, NO_TIME
    segmentation.LongitudinalTemporalInformationModified = "REMOVED"


def _header(source: Dataset, pseudonyms: Pseudonyms) -> Dataset:
    header = Dataset()
    for tag in source.keys():  # noqa: SIM118 - a data set iterates over elements
        try:
            if (tag.group == 0x0028 and not tag.is_private) or source[tag].keyword in KEPT:
                header.add(source[tag])
        except UNREADABLE_VALUE:
            continue
    for keyword in RENUMBERED:
        setattr(header, keyword, pseudonyms.uid(uid(source, keyword)))
    for keyword in EMPTIED:
        setattr(header, keyword, "")
    header.PatientID = pseudonyms.patient(text(source, "PatientID"))
    header.PatientIdentityRemoved, header.DeidentificationMethod = "YES", METHOD
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator = "113100", "DCM"
    code.CodeMeaning = "Basic Application Confidentiality Profile"
    header.DeidentificationMethodCodeSequence = [code]
    return header
