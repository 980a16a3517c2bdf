"""DICOM files wherever they lie: in folders, in zip archives, alone. Headers read, nothing written, nothing unpacked to disk."""

from __future__ import annotations

import logging
import os
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import psutil
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import BytesLengthException, InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from hybrid.bounded_files import open_bounded
from hybrid.errors import InputError, ResourceError

UNREADABLE = (
    InvalidDicomError, BytesLengthException, struct.error, zlib.error, EOFError, ValueError, TypeError, KeyError,
    AttributeError, NotImplementedError, OverflowError, RecursionError,
)  # fmt: skip
"""What pydicom raises on files that are damaged; it documents none of it."""
UNREADABLE_VALUE = (*UNREADABLE, OSError)
"""The same for values in memory, parsed when they are asked for; it says OSError where they end too early."""
UNSOUND_ZIP = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, KeyError, NotImplementedError, ValueError, OverflowError,
)  # fmt: skip
"""What zipfile raises on archives that are damaged or made up: versions of the format, names and places that there are not."""

MAX_MEMBERS = 200_000
MAX_UNPACKED = 64 << 30
_DEFLATE_LIMIT = 1032  # no deflate stream unpacks to more than this many times its size
_SNIFF = 132
_META = 4096  # bytes within which file meta information says the transfer syntax
# Old files begin without the preamble: with the group length, or another first tag of groups 2 or 8, little endian.
_BARE = tuple(
    bytes((group, 0, element, 0))
    for group, elements in ((2, (0x00, 0x01, 0x02, 0x10)), (8, (0x00, 0x01, 0x05, 0x08, 0x12, 0x13, 0x16, 0x18)))
    for element in elements
)


@dataclass(frozen=True)
class DicomFile:
    """A DICOM file.

    Attributes:
        path: The file, or the zip that it is in.
        member: Its name in the zip.
    """

    path: Path
    member: str | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom and highdicom from warning: their words quote values of tags, which may be a patient's name.

    They parse a value when it is asked for, so this goes around all that looks at a header.
    """
    loggers = [logging.getLogger(name) for name in ("pydicom", "highdicom")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def is_dicom(path: str | Path) -> bool:
    """Whether a file is DICOM, or a folder or zip holds a file that is; told from what files begin with, not from names."""
    path = Path(path)
    try:
        return next(_candidates(path), None) is not None
    except (InputError, ResourceError, OSError):
        return False


def is_other_zip(path: Path) -> bool:
    """Whether a zip is sound and holds no DICOM file; one that is damaged or locked may hold some."""
    try:
        return zipfile.is_zipfile(path) and next(_candidates(path), None) is None
    except (InputError, ResourceError, OSError):
        return False


def find_files(path: Path) -> list[DicomFile]:
    """The DICOM files of a folder and its sub-folders, of a zip, or the one file, in order of their names.

    Raises:
        InputError: There is no such path, no DICOM file in it, or the zip is damaged, locked, or a bomb.
    """
    if not path.exists():
        raise InputError(f"There is no {path.name}.", hint="Check the path.")
    try:
        found = list(_candidates(path))
    except OSError as error:
        raise InputError(f"{path.name} could not be read: {error.strerror}.", hint="Check its permissions.") from error
    if not found and path.suffix.lower() == ".zip" and path.is_file() and not zipfile.is_zipfile(path):
        raise InputError(f"{path.name} is a damaged zip.", hint="Copy or pack it again.")
    if not found:
        raise InputError(f"{path.name} holds no DICOM file.", hint="Check the path, or export the series again.")
    return found


def contents(files: Iterable[DicomFile]) -> Iterator[tuple[DicomFile, BinaryIO]]:
    """Each file with a stream of its bytes; each zip is opened once, and its members are unpacked in memory alone.

    Raises:
        InputError: A file is gone, or a zip is damaged.
        ResourceError: A member of a zip does not fit the memory.
    """
    archive: zipfile.ZipFile | None = None
    try:
        for file in files:
            if file.member is None:
                with _reading(file.path), open_bounded(file.path) as stream:
                    yield file, stream
                continue
            if archive is None or archive.filename != str(file.path):
                archive = _open_zip(file.path)
            with _reading(file.path):
                info = archive.getinfo(file.member)
                if info.file_size > psutil.virtual_memory().available:
                    raise ResourceError(f"A file in {file.path.name} does not fit the memory.", hint="Unpack the zip.")
                unpacked = archive.read(info)
            yield file, BytesIO(unpacked)
    finally:
        if archive is not None:
            archive.close()


def read_dataset(stream: BinaryIO, *, pixels: bool = False) -> Dataset:
    """Parse a DICOM file, with its pixels or without.

    Raises:
        One of `UNREADABLE`: It is damaged.
    """
    _check_deflated(stream)
    try:
        dataset = pydicom.dcmread(stream, stop_before_pixels=not pixels, force=True)
    except OSError as error:
        if error.errno is not None:
            raise
        raise ValueError("an element ends too early") from error
    if "TransferSyntaxUID" not in dataset.file_meta:
        # Files without the preamble do not say it, and pydicom has found it out.
        implicit, little = dataset.original_encoding
        known = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = known
    return dataset


def _check_deflated(stream: BinaryIO) -> None:
    """Refuse a deflated file that unpacks to more than memory holds; pydicom would unpack it at once."""
    begin = stream.tell()
    try:
        head = stream.read(_META)
        if DeflatedExplicitVRLittleEndian.encode() not in head:
            return
        stream.seek(begin)
        pydicom.filereader.read_preamble(stream, True)
        pydicom.filereader._read_file_meta_info(stream)  # stops where the deflated part begins
        inflate, unpacked, most = zlib.decompressobj(-zlib.MAX_WBITS), 0, psutil.virtual_memory().available // 4
        while chunk := inflate.unconsumed_tail or stream.read(1 << 16):
            unpacked += len(inflate.decompress(chunk, 1 << 20))
            if unpacked > most:
                raise ResourceError(
                    "A deflated DICOM file unpacks to more than the memory holds.", hint="Export it uncompressed."
                )
    finally:
        stream.seek(begin)


def read_headers(files: Iterable[DicomFile]) -> tuple[list[tuple[DicomFile, Dataset]], int]:
    """Headers without pixels, and how many files could not be parsed.

    Raises:
        InputError: A file could not be read from the disk.
    """
    headers, damaged = [], 0
    for file, stream in contents(files):
        try:
            header = read_dataset(stream)
        except UNREADABLE:
            header = Dataset()
        except OSError as error:
            raise InputError(f"{file.path.name} could not be read: {error.strerror}.", hint="Check the disk.") from error
        # pydicom reads on where it can, and what is left of a damaged file may be next to nothing.
        if "SOPClassUID" in header or "Modality" in header:
            headers.append((file, header))
        else:
            damaged += 1
    return headers, damaged


def _candidates(path: Path) -> Iterator[DicomFile]:
    if path.is_dir():
        for folder, folders, names in os.walk(path):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                file = Path(folder, name)
                if not name.startswith(".") and file.is_file() and _begins_as_dicom(file):
                    yield DicomFile(file)
    elif path.is_file() and _begins_as_dicom(path):
        yield DicomFile(path)
    elif path.is_file() and zipfile.is_zipfile(path):
        with _open_zip(path) as archive, _reading(path):
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                if not info.is_dir() and not _is_hidden(info.filename):
                    with archive.open(info) as member:
                        if _is_head(member.read(_SNIFF)):
                            yield DicomFile(path, info.filename)


def _is_hidden(member: str) -> bool:
    parts = [part for part in member.split("/") if part.strip(".")]  # `..` leads nowhere, as nothing is unpacked to disk
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _begins_as_dicom(path: Path) -> bool:
    with path.open("rb") as stream:
        return _is_head(stream.read(_SNIFF))


def _is_head(head: bytes) -> bool:
    return head[128:132] == b"DICM" or head[:4] in _BARE


def _open_zip(path: Path) -> zipfile.ZipFile:
    with _reading(path):
        archive = zipfile.ZipFile(path)
        try:
            _check_zip(path, archive.infolist())
        except InputError:
            archive.close()
            raise
        return archive


def _check_zip(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse what is not honestly a zip of scans, before anything is unpacked."""
    if any(info.flag_bits & 1 for info in members):
        raise InputError(f"{path.name} is locked by a password.", hint="Unpack it first.")
    if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in members):
        raise InputError(f"{path.name} is packed by an unusual method.", hint="Unpack it first.")
    if sum(info.compress_size for info in members) > path.stat().st_size:
        raise InputError(f"{path.name} is a damaged zip: it claims more than it holds.", hint="Copy or pack it again.")
    bomb = any(info.file_size > (info.compress_size + 1) * _DEFLATE_LIMIT for info in members)
    if bomb or len(members) > MAX_MEMBERS or sum(info.file_size for info in members) > MAX_UNPACKED:
        raise InputError(f"{path.name} claims to hold more than a scan does.", hint="Unpack it first, if you trust it.")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What goes wrong in reading a file, in words."""
    try:
        yield
    except UNSOUND_ZIP as error:
        raise InputError(f"{path.name} is a damaged zip.", hint="Copy or pack it again.") from error
    except OSError as error:
        raise InputError(f"{path.name} could not be read: {error.strerror or error}.", hint="Check the file.") from error
