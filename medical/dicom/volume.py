"""DICOM series read as scans: a folder, a zip or a multi-frame file to one volume whose grid is proven by its slices.

Nothing of the patient's identity leaves the headers: no message, name or log line carries it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.errors import InputError, RequestError
from medical.dicom.files import is_dicom
from medical.dicom.frames import Frame
from medical.dicom.pixels import read_frames
from medical.dicom.series import Series, list_series
from medical.volumes.volume import Volume, stem

__all__ = ["DicomOrigin", "Series", "is_dicom", "list_series", "read_dicom", "read_series"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DicomOrigin:
    """Where a scan came from, and what a DICOM SEG of it needs.

    Attributes:
        path: The file, folder or zip.
        modality: Such as ``CT`` or ``MR``.
        uid: SeriesInstanceUID; empty where the files lack it.
        frames: The slices in order along k, with their headers.
    """

    path: Path
    modality: str
    uid: str
    frames: tuple[Frame, ...] = field(repr=False)


def read_series(series: Series, *, on_progress: Callable[[int, int], None] | None = None) -> Volume:
    """Read a series that `list_series` found.

    Args:
        series: The series.
        on_progress: Called with slices done and slices in all.

    Returns:
        The scan, its values (1, columns, rows, slices): integers where the rescaling leaves them such, else float32.

    Raises:
        InputError: Its slices make no volume, or their pixels are damaged or cannot be decoded.
        ResourceError: It does not fit the memory.
    """
    if series.grid is None:
        problem = series.problem or InputError("These slices make no volume.")
        raise InputError(f"{_name(series.path)}: {problem.message}", hint=problem.hint)
    try:
        values, warnings = read_frames(series.frames, on_progress)
    except InputError as error:
        raise InputError(f"{_name(series.path)}: {error.message}", hint=error.hint) from error
    origin = DicomOrigin(series.path, series.modality, series.uid, series.frames)
    return Volume(values, series.grid, _name(series.path), origin, (*series.warnings, *warnings))


SHORTEST_UID_ENDING = 5


def read_dicom(path: str | Path, *, series: str | None = None, on_progress: Callable[[int, int], None] | None = None) -> Volume:
    """Read the one series of a folder, zip or multi-frame file, or one of several.

    Args:
        path: A folder (its sub-folders are searched too), a zip, or a file.
        series: Which of several: its number in `list_series`, or its UID or the end of it, of five characters or more.
        on_progress: Called with slices done and slices in all.

    Raises:
        RequestError: There are several series and none is chosen, or there is none such.
        InputError: There is no series that makes a volume; see `list_series` and `read_series`.
        ResourceError: It does not fit the memory.
    """
    path = Path(path)
    found = list_series(path)
    chosen = _chosen(path, found, series)
    volume = read_series(chosen, on_progress=on_progress)
    if series is None and len(found) > 1:
        left = f"Left out, since no volumes: {'; '.join(str(other) for other in found if other is not chosen)}."
        return Volume(volume.values, volume.grid, volume.name, volume.origin, (*volume.warnings, left))
    return volume


def _chosen(path: Path, found: Sequence[Series], series: str | None) -> Series:
    listed = "Choose one with --series NUMBER:\n" + "\n".join(f"  {one}" for one in found)
    if series is None:
        stacks = [one for one in found if one.is_stack] or list(found)
        if len(stacks) > 1:
            raise RequestError(f"{_name(path)} holds mixed series: {len(found)} of them.", hint=listed)
        return stacks[0]
    by_number = [one for one in found if str(one.number) == series.strip()]
    # Few digits are a number in the list, and must not choose another series whose UID happens to end so.
    by_uid = [one for one in found if len(series.strip()) >= SHORTEST_UID_ENDING and one.uid.endswith(series.strip())]
    matching = by_number or by_uid
    if len(matching) != 1:
        how = f"{len(matching)} series whose UID ends so" if matching else "no such series"
        raise RequestError(f"{_name(path)} holds {how}: {series!r}.", hint=listed)
    return matching[0]


def _name(path: Path) -> str:
    """What a user calls it; also for `.` and `..`."""
    return stem(path if path.name not in ("", "..") else path.resolve()) or "scan"
