"""Pixels of slices to values: decoded whatever compresses them, each frame rescaled by its own slope and intercept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psutil
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, get_decoder
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from hybrid.errors import InputError, ResourceError
from medical.dicom.codecs import decode_frame
from medical.dicom.files import UNREADABLE, UNREADABLE_VALUE, DicomFile, contents, quiet, read_dataset
from medical.dicom.frames import Frame, number, text

AIR = -1024
"""Hounsfield units that CT pixels outside of the scanned circle are given."""

OnProgress = Callable[[int, int], None]

_INTEGERS = (np.uint8, np.int16, np.uint16, np.int32, np.uint32)
# pydicom documents RuntimeError for pixels that none of its decoders could read.
_UNDECODABLE = (*UNREADABLE_VALUE, RuntimeError, IndexError)


@quiet()
def read_frames(frames: Sequence[Frame], on_progress: OnProgress | None = None) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode and rescale slices.

    Integers stay integers where all slices share the slope 1 and a whole intercept; else values are float32. Padding
    becomes the lowest value of real pixels, or -1024 in CT. MONOCHROME1 is not inverted: that is for display.

    Args:
        frames: In order along k.
        on_progress: Called with slices done and slices in all.

    Returns:
        (1, i, j, k) values, that is (1, columns, rows, slices), and what a user should be told.

    Raises:
        InputError: A slice is damaged, holds values that are no finite numbers, or nothing here can decode it.
        ResourceError: The values do not fit the memory.
    """
    for name in sorted({_syntax(frame.header) for frame in frames}):
        _check_decoder(name)
    plan = _plan(frames)
    columns, rows = frames[0].size
    needed = columns * rows * len(frames) * plan.dtype.itemsize
    if needed > psutil.virtual_memory().available:
        raise ResourceError(f"The series takes {needed / 1e9:.1f} GB of memory, more than there is.", hint="Crop or resample it.")
    slices = np.empty((0, rows, columns), plan.dtype)
    lowest, padding = np.inf, []
    for done, (k, dataset) in enumerate(_datasets(frames), 1):
        stored = _decode(dataset, frames[k], k)
        if not slices.size:  # headers claim sizes: no memory is taken before one slice has the size that it says
            slices = np.empty((len(frames), rows, columns), plan.dtype)
        slices[k] = _rescale(stored, dataset, frames[k], plan, k)
        if plan.dtype.kind == "f" and not np.isfinite(slices[k]).all():
            raise InputError(f"Slice {k + 1} holds values that are no finite numbers.", hint="Export the series again.")
        pad = _padding(stored, dataset)
        if pad is not None:
            padding.append((k, pad))
        real = slices[k] if pad is None else slices[k][~pad]
        lowest = min(lowest, float(real.min())) if real.size else lowest
        if on_progress:
            on_progress(done, len(frames))
    if padding:
        # A CT whose numbers cannot be negative is in no Hounsfield units.
        fill = AIR if plan.modality == "CT" and plan.dtype.kind in "if" else lowest
        for k, pad in padding:
            slices[k][pad] = fill if np.isfinite(fill) else slices[k].min()
    # Stored by rows; its transpose is (columns, rows, slices).
    return slices.T[None], _doubts(frames, plan, slices)


@dataclass(frozen=True)
class _Plan:
    """How all slices of a series become numbers: `offset` is added to stored integers, None rescales each slice."""

    dtype: np.dtype
    offset: int | None
    modality: str


def _plan(frames: Sequence[Frame]) -> _Plan:
    modality = text(frames[0].header, "Modality")
    intercept = frames[0].intercept
    shared = all(frame.slope == 1 and frame.intercept == intercept for frame in frames) and intercept == int(intercept)
    table = any("ModalityLUTSequence" in frame.header for frame in frames)
    bits = [number(frame.header, "BitsStored") for frame in frames]  # files of float pixels have none
    if not shared or table or None in bits:
        return _Plan(np.dtype(np.float32), None, modality)
    if (k := next((k for k, stored in enumerate(bits) if not 1 <= (stored or 0) <= 64), None)) is not None:
        raise _damaged(k)
    low, high = 0, 0
    for frame, stored in zip(frames, bits, strict=True):
        signed = number(frame.header, "PixelRepresentation") == 1
        low = min(low, -(1 << int(stored or 0) - 1) if signed else 0)
        high = max(high, (1 << int(stored or 0) - (1 if signed else 0)) - 1)
    low, high = low + int(intercept), high + int(intercept)
    fits = (t for t in _INTEGERS if np.iinfo(t).min <= low and high <= np.iinfo(t).max)
    return _Plan(np.dtype(next(fits, np.int64)), int(intercept), modality)


def _datasets(frames: Sequence[Frame]) -> Iterator[tuple[int, Dataset]]:
    """Each slice's index and its file with pixels; every file is read once."""
    wanted: dict[DicomFile, list[int]] = {}
    for k, frame in enumerate(frames):
        wanted.setdefault(frame.file, []).append(k)
    for file, stream in contents(wanted):
        try:
            dataset = read_dataset(stream, pixels=True)
        except UNREADABLE as error:
            raise _damaged(wanted[file][0]) from error
        for k in wanted[file]:
            yield k, dataset


def _decode(dataset: Dataset, frame: Frame, k: int) -> np.ndarray:
    """(rows, columns) stored numbers of a slice."""
    syntax = UID(_syntax(dataset))
    try:
        if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
            stored = decode_frame(dataset, frame.number - 1)
        else:
            stored = get_decoder(syntax).as_array(dataset, index=frame.number - 1, raw=True)[0]
    except _UNDECODABLE as error:
        raise _damaged(k) from error
    if stored.shape != (frame.size[1], frame.size[0]):
        raise _damaged(k)
    return stored


def _rescale(stored: np.ndarray, dataset: Dataset, frame: Frame, plan: _Plan, k: int) -> np.ndarray:
    """(rows, columns) values of a slice."""
    if plan.offset is not None:
        return stored.astype(np.int64) + plan.offset if plan.offset else stored
    if "ModalityLUTSequence" in dataset:
        try:
            return np.asarray(apply_modality_lut(stored, dataset))
        except _UNDECODABLE as error:
            raise _damaged(k) from error
    return stored * frame.slope + frame.intercept


def _padding(stored: np.ndarray, dataset: Dataset) -> np.ndarray | None:
    """(rows, columns) of pixels that are no measurement; None where there is none."""
    value = number(dataset, "PixelPaddingValue")
    if value is None or stored.dtype.kind not in "iu":
        return None
    limit = number(dataset, "PixelPaddingRangeLimit")
    ends = [_as_stored(end, stored.dtype) for end in (value, value if limit is None else limit)]
    mask = (stored >= min(ends)) & (stored <= max(ends))
    return mask if mask.any() else None


def _as_stored(value: float, dtype: np.dtype) -> int:
    """Some files write the value of signed pixels as unsigned, or the other way round: 63536 for -2000."""
    bits, low = dtype.itemsize * 8, np.iinfo(dtype).min
    return (int(value) - low) % (1 << bits) + low


def _doubts(frames: Sequence[Frame], plan: _Plan, slices: np.ndarray) -> tuple[str, ...]:
    warnings = []
    low, high = slices.min(), slices.max()
    if low == high:
        warnings.append("The series holds one value alone: the image is empty.")
    elif plan.modality == "CT" and low >= 0:
        stated = "its slices say" if frames[0].rescaled else "its slices say no rescale"
        warnings.append(f"The lowest value of this CT is {low:g}, and air has about -1000 HU; {stated}.")
    return tuple(warnings)


def _syntax(dataset: Dataset) -> str:
    return str(dataset.file_meta.get("TransferSyntaxUID", ""))


def _check_decoder(name: str) -> None:
    """Refuse slices that nothing here can decode, before any is read."""
    syntax = UID(name)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise InputError(
            f"The pixels are stored as {syntax.name or 'nothing that DICOM knows'}, which cannot be decoded.",
            hint="Export the series uncompressed, or as JPEG 2000.",
        ) from error
    if not decoder.is_available:
        raise InputError(
            f"The pixels are compressed by {syntax.name}, and no decoder of it is installed.",
            hint=f"pip install {' '.join(_packages(decoder.missing_dependencies)) or 'pylibjpeg'}",
        )


def _packages(missing: list[str]) -> list[str]:
    """Of pydicom's first line such as ``plugin - requires a>=2.0 and b>=2.0`` the packages."""
    needs = missing[0].partition("requires ")[2] if missing else ""
    return [part.partition(">")[0].strip(" ,") for part in needs.replace(" and ", ",").split(",") if part.strip(" ,")]


def _damaged(k: int) -> InputError:
    return InputError(f"The pixels of slice {k + 1} are damaged and cannot be decoded.", hint="Copy or export the series again.")
