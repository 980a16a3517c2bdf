"""What a user sends, made a scan: received, looked at before it is opened, its series or volumes listed, one of them read.

Files keep their names, since results are named after them, but for what could be more than a name. Archives are never unpacked
to disk.
"""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from apps.scans.window import Window, windows_of
from hybrid.errors import HybridError, InputError, RequestError
from hybrid.memory import format_size
from medical.dicom.files import UNSOUND_ZIP
from medical.dicom.volume import DicomOrigin, list_series, read_series
from medical.files.inputs import read_scan
from medical.pictures.reading import is_picture
from medical.volumes.nifti import open_nifti
from medical.volumes.volume import Volume, is_nifti

MOST_FILES = 5000
ALL_VOLUMES = "all"
"""Choice of a 4-D file that takes its volumes as the channels of one scan."""
_KEPT = re.compile(r"[^\w.+-]+")
_LONGEST = 80
_PAIR = (".hdr", ".img", ".hdr.gz", ".img.gz")


@dataclass(frozen=True)
class Choice:
    """A series, or a volume of a 4-D file.

    Attributes:
        key: What names it to `medical segment`: the number of a series, or of a volume.
        words: What people read.
    """

    key: str
    words: str


@dataclass(frozen=True)
class Received:
    """What a user sent, known to be NIfTI or DICOM.

    Attributes:
        source: The file, or the folder of DICOM files.
        dicom: Whether it is DICOM.
        choices: Series or volumes; empty where there is only one.
        channels: Volumes of a 4-D file.
    """

    source: Path
    dicom: bool
    choices: tuple[Choice, ...] = ()
    channels: int = 1


@dataclass(frozen=True, eq=False)
class Scan:
    """A scan that was read.

    Attributes:
        received: Where it came from.
        key: Which choice was read; None where there was none.
        volume: The scan; of several channels the first is shown.
        modality: Such as ``CT``; empty where the file does not say it.
        windows: To see it in.
    """

    received: Received
    key: str | None
    volume: Volume
    modality: str
    windows: tuple[Window, ...]


def receive(files: Sequence[Path], folder: Path, *, unpacked: int) -> Received:
    """Take in what was sent, and say what it holds.

    Args:
        files: The files: one NIfTI file (or a .hdr with its .img), one zip of DICOM files, or DICOM files.
        folder: An empty folder of the user's, which takes them.
        unpacked: Bytes that a scan may have once it is unpacked.

    Raises:
        InputError: They are something else, damaged, or hostile.
    """
    if not files:
        raise InputError("No file came.", hint="Choose a .nii or .nii.gz file, a zip of DICOM files, or DICOM files.")
    if len(files) > MOST_FILES:
        raise InputError(f"{len(files)} files are too many at once.", hint="Pack them into a zip.")
    source = _moved(files, folder)
    try:
        return _looked_at(source, unpacked)
    except HybridError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read(received: Received, key: str | None = None, *, on_progress: Callable[[int, int], None] | None = None) -> Scan:
    """Read the scan, or the one of several that a key names.

    Raises:
        RequestError: It holds several, and none such was chosen.
        InputError: It makes no volume, or its values are damaged.
        ResourceError: It does not fit the memory.
    """
    keys = [choice.key for choice in received.choices]
    if keys and key not in keys:
        raise RequestError(f"{received.source.name} holds {len(keys)} of them.", hint="Choose one from the list.")
    if not received.dicom:
        volume = read_scan(
            [received.source],
            channels=received.channels if key == ALL_VOLUMES else 1,
            volume=int(key) if key not in (None, ALL_VOLUMES) else None,
        )
        return Scan(received, key, volume, "", windows_of(volume.values[0]))
    series = list_series(received.source)
    chosen = next((one for one in series if str(one.number) == key), series[0])
    volume = read_series(chosen, on_progress=on_progress)
    return Scan(received, key, volume, chosen.modality, windows_of(volume.values[0], modality=chosen.modality))


def modality_words(scan: Scan) -> str:
    """What is known of the modality."""
    if isinstance(scan.volume.origin, DicomOrigin):
        return scan.modality or "not said in the headers"
    ct = scan.windows[0].name == "soft tissue"
    return "not said in NIfTI files; " + ("the values look like CT (HU)" if ct else "the values do not look like CT")


def safe_name(name: str) -> str:
    """A file's name without folders, and without what is special to a shell, a page or a path.

    >>> safe_name("../../a b<c>.nii.gz"), safe_name("...")
    ('a_b_c_.nii.gz', 'scan')
    """
    plain = _KEPT.sub("_", name.replace("\\", "/").rsplit("/", 1)[-1]).lstrip(".")
    return plain[-_LONGEST:].lstrip(".") or "scan"


def _moved(files: Sequence[Path], folder: Path) -> Path:
    """The files in the folder: a single one, a pair of .hdr and .img, or a folder of slices."""
    names = [safe_name(file.name) for file in files]
    pair = len(files) == 2 and all(name.lower().endswith(_PAIR) for name in names)
    if len(files) > 1 and not pair and (scans := [name for name in names if is_nifti(name) or name.lower().endswith(".zip")]):
        raise InputError(
            f"{len(files)} files came, and {scans[0]} is a scan of its own.",
            hint="Send one scan at a time, or DICOM files alone.",
        )
    place = folder if len(files) == 1 or pair else folder / "dicom"
    place.mkdir(exist_ok=True)
    for number, (file, name) in enumerate(zip(files, names, strict=True)):
        target = place / name
        _taken(file, target if not target.exists() else place / f"{number:05d}_{name}")
    if pair:
        return place / next(name for name in names if ".hdr" in name.lower())
    return place / names[0] if len(files) == 1 else place


def _taken(file: Path, target: Path) -> None:
    """The file at its new place, without a second copy of its bytes where the disk allows that."""
    try:
        os.link(file, target)
    except OSError:
        shutil.copyfile(file, target)


def _looked_at(source: Path, unpacked: int) -> Received:
    if is_nifti(source) and not source.is_dir():
        return _nifti(source, unpacked)
    if source.is_file() and is_picture(source):
        raise InputError(f"{source.name} is a picture, not a volume.", hint="Send a NIfTI file or a whole DICOM series.")
    if source.suffix.lower() == ".zip":
        _check_archive(source, unpacked)
    elif source.is_file() and zipfile.is_zipfile(source):
        raise InputError(f"{source.name} is a zip by another name.", hint="Name it .zip.")
    series = list_series(source)
    usable = [one for one in series if one.grid is not None]
    if not usable:
        problem = series[0].problem
        raise InputError(problem.message if problem else "These slices make no volume.", hint=problem.hint if problem else None)
    largest = max(one.slices * one.size[0] * one.size[1] * 4 for one in usable)
    _check_size(source.name, largest, unpacked)
    choices = tuple(Choice(str(one.number), str(one)) for one in usable) if len(series) > 1 else ()
    return Received(source, True, choices)


def _nifti(source: Path, unpacked: int) -> Received:
    file = open_nifti(source)
    _check_size(source.name, int(np.prod(file.grid.shape, dtype=object)) * file.count * max(4, file.dtype.itemsize), unpacked)
    if file.count == 1:
        return Received(source, False)
    volumes = [Choice(str(number), f"volume {number} of 0 to {file.count - 1}") for number in range(file.count)]
    return Received(source, False, (*volumes, Choice(ALL_VOLUMES, f"all {file.count} as channels")), file.count)


def _check_size(name: str, size: int, unpacked: int) -> None:
    if size > unpacked:
        raise InputError(
            f"{name} would take {format_size(size)} once it is read; {format_size(unpacked)} are allowed here.",
            hint="Crop or resample it, or ask whoever runs this server.",
        )


def _check_archive(path: Path, unpacked: int) -> None:
    """Refuse archives that are not what a clinic sends; what else can be wrong with them `medical.dicom.files` says."""
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path.name} is a damaged zip, or none.", hint="Pack the series again.")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (*UNSOUND_ZIP, OSError) as error:
        raise InputError(f"{path.name} is a damaged zip.", hint="Pack the series again.") from error
    if any(_leads_out(info.filename) for info in members):
        raise InputError(f"{path.name} holds names that lead out of it.", hint="Do not trust it; pack the series again.")
    _check_size(path.name, sum(info.file_size for info in members), unpacked)


def _leads_out(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return ".." in parts or parts[0] == "" or ":" in parts[0]
