"""Label maps and probability maps as NIfTI files, on exactly the grid of the scan they belong to.

A result repeats the scan's shape, s-form, q-form, their codes and its unit; nothing else of the scan's header, which may
hold names. What was written is read anew by nibabel and compared before it takes its place.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy
from nibabel.nifti1 import Nifti1Extension
from pydantic import ValidationError

from hybrid.errors import InputError, OutputError, RequestError
from hybrid.records import replacing
from medical.geometry import Grid
from medical.nifti import MILLIMETRES, NiftiOrigin, open_nifti
from medical.notice import RESEARCH_USE
from medical.structures import Structure, unnamed
from medical.volumes import Volume, stem

PROBABILITY_STEP = 1 / 65535
"""Probabilities are stored as uint16 of this step: half the size of float32, and finer than any network's error."""

_LOG = logging.getLogger(__name__)
_COMMENT, _XML = 6, 0  # codes of header extensions: plain text, and where Connectome Workbench and others keep label tables
_NEAR_INTEGER = 1e-3
_PLANES = 1 << 22
_NIFTI_1_EDGE = 32767

Blocks = Callable[[int], np.ndarray]
"""Gives volume number n, (i, j, k), in the type it is stored in."""


def names_path(path: Path) -> Path:
    """Where the names of a label map's structures lie: beside it, named after it.

    >>> names_path(Path("out/case_01.nii.gz")).name
    'case_01.labels.json'
    """
    return path.with_name(f"{stem(path)}.labels.json")


def write_labels(path: str | Path, labels: np.ndarray, volume: Volume, structures: Sequence[Structure]) -> Path:
    """Write a label map on the grid of its scan, whole or not at all, with the names of its structures.

    The type is uint8, or uint16 where a label is above 255. The names lie in a header extension (JSON, code 6) and in
    `names_path` beside the file.

    Args:
        path: .nii or .nii.gz.
        labels: (i, j, k) integers from 0 (background) to 65535, in the order of the scan's axes.
        volume: The scan.
        structures: What the labels mean.

    Returns:
        The path.

    Raises:
        RequestError: The name ends otherwise.
        OutputError: The labels do not lie on the scan's grid, the folder does not take the files, or what was read back
            is not what was written.
    """
    path = _checked_path(path)
    if labels.shape != volume.grid.shape or labels.dtype.kind not in "iub":
        raise OutputError(f"Labels {labels.shape} of type {labels.dtype} do not fit the scan {volume.grid.shape}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise OutputError(f"Labels from {low} to {high} do not fit the range 0 to 65535.")
    stored = labels.astype(np.uint8 if high < 256 else np.uint16, copy=False)
    names = names_to_json(structures)
    header = _header(volume, stored.dtype)
    header.set_intent("label", allow_unknown=True)
    header.extensions.append(Nifti1Extension("comment", json.dumps(names, ensure_ascii=False).encode()))
    try:
        with replacing(names_path(path)) as part:
            part.write_text(json.dumps(names, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            _write(path, header, lambda _: stored, 1, volume.grid)
    except OSError as error:
        raise _not_written(path, error) from error
    return path


def write_probabilities(path: str | Path, array: np.ndarray, volume: Volume) -> Path:
    """Write a probability map for each class, whole or not at all: a 4-D file, classes last; or one map, a 3-D file.

    Stored as uint16 with the slope 1/65535, which readers apply by themselves.

    Args:
        path: .nii or .nii.gz.
        array: (C, i, j, k) or (i, j, k) from 0 to 1, in the order of the scan's axes.
        volume: The scan.

    Returns:
        The path.

    Raises:
        RequestError: The name ends otherwise.
        OutputError: The array does not lie on the scan's grid or is no probability, the folder does not take the file,
            or what was read back is not what was written.
    """
    path = _checked_path(path)
    if array.ndim not in (3, 4) or array.shape[-3:] != volume.grid.shape:
        raise OutputError(f"Probabilities {array.shape} do not fit the scan {volume.grid.shape}.")
    channels = array if array.ndim == 4 else array[None]
    for channel in channels:
        low, high = float(channel.min()), float(channel.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too
            raise OutputError(f"Values from {low:g} to {high:g} are no probabilities.")

    def stored(number: int) -> np.ndarray:
        scaled = channels[number] * np.float32(65535)
        return np.clip(np.rint(scaled, out=scaled), 0, 65535, out=scaled).astype(np.uint16)

    header = _header(volume, np.dtype(np.uint16))
    if array.ndim == 4:
        header.set_data_shape((*volume.grid.shape, len(array)))
    header.set_slope_inter(PROBABILITY_STEP, 0)
    try:
        _write(path, header, stored, len(channels), volume.grid)
    except OSError as error:
        raise _not_written(path, error) from error
    return path


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map that was read.

    Attributes:
        labels: (i, j, k) uint8, or uint16 where a label is above 255; 0 is the background and no structure.
        grid: Where they lie.
        structures: What they mean, in ascending order.
        warnings: What a user should be told.
    """

    labels: np.ndarray
    grid: Grid
    structures: tuple[Structure, ...]
    warnings: tuple[str, ...] = ()


def read_labels(path: str | Path) -> tuple[np.ndarray, Grid, tuple[Structure, ...]]:
    """Labels, grid and structures of `read_label_map`; what a user should be told is logged."""
    found = read_label_map(path)
    for warning in found.warnings:
        _LOG.warning("%s", warning)
    return found.labels, found.grid, found.structures


def read_label_map(path: str | Path) -> LabelMap:
    """Read a label map.

    Names are looked for in the header extension of `write_labels`, in a label table as Connectome Workbench and
    TotalSegmentator write it, and in `names_path` beside the file; labels without a name are ``label 7`` and so on.
    Negative values, which stray into some published data sets, become background, and a warning says so.

    Raises:
        InputError: As `medical.volumes.read_volume`; or the file is 4-D, holds values further than 1e-3 from an integer,
            or labels above 65535.
    """
    path = Path(path)
    file = open_nifti(path)
    if file.count > 1:
        raise InputError(f"{path.name} holds {file.count} volumes, and a label map is one.", hint="Take them apart first.")
    values = file.read()[0]
    low, high = values.min(), values.max()
    if high > 65535:
        raise InputError(f"{path.name} holds {high:g}, which is no label.", hint="Number the labels from 0 to 65535.")
    labels = np.empty(values.shape, dtype=np.uint8 if round(float(high)) < 256 else np.uint16, order="F")
    negative = 0
    for planes in _planes(values.shape):
        piece = values[..., planes]
        whole = np.rint(piece)
        if values.dtype.kind == "f" and np.abs(piece - whole).max() > _NEAR_INTEGER:
            raise InputError(
                f"{path.name} holds values between the integers, so it is no label map.", hint="Give a map of whole numbers."
            )
        if low < 0:
            negative += int((whole < 0).sum())
            whole = np.maximum(whole, 0)
        labels[..., planes] = whole
    strays = (f"{path.name} has {negative} voxel{'s' * (negative > 1)} with negative labels: taken as background.",)
    return LabelMap(labels, file.grid, _structures(path, file.extensions, labels), (*file.warnings, *strays * (negative > 0)))


def _checked_path(path: str | Path) -> Path:
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise RequestError(f"{path.name} does not end in .nii.gz or .nii.", hint="Name the output so, such as labels.nii.gz.")
    return path


def _header(volume: Volume, dtype: np.dtype) -> nib.Nifti1Header:
    """A blank header with the scan's geometry, as its file stated it."""
    origin, grid = volume.origin, volume.grid
    large = origin.version == 2 if isinstance(origin, NiftiOrigin) else max(grid.shape) > _NIFTI_1_EDGE
    header = (nib.Nifti2Header if large else nib.Nifti1Header)()
    header.set_data_dtype(dtype)
    header.set_data_shape(grid.shape)
    header.set_slope_inter(1, 0)
    header["descrip"] = RESEARCH_USE.encode()
    if isinstance(origin, NiftiOrigin):
        header.set_xyzt_units(origin.unit)
        header["pixdim"][1:4] = np.array(grid.spacing) / MILLIMETRES[origin.unit]
        header.set_qform(origin.qform, origin.qform_code)
        header.set_sform(origin.sform, origin.sform_code)
        for name, value in origin.stored.items():
            header[name] = value
        return header
    header.set_xyzt_units("mm")
    header["pixdim"][1:4] = grid.spacing
    header.set_sform(grid.affine, code=1)
    header.set_qform(grid.affine, code=1)
    if not grid.matches(Grid(grid.shape, header.get_qform())):
        header.set_qform(None, code=0)  # a rotation and three steps hold no shear
    return header


def _write(path: Path, header: nib.Nifti1Header, blocks: Blocks, count: int, grid: Grid) -> None:
    """Write the volumes one by one, read them back, and put the file in its place."""
    packed = path.name.lower().endswith(".gz")
    with replacing(path) as part:
        with part.open("wb") as raw:
            if packed:
                # Without name and time, so that one result is always the same bytes; level 1, as nibabel, since label
                # maps hardly shrink further.
                with gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=raw, mtime=0) as stream:
                    _write_volumes(stream, header, blocks, count)
            else:
                _write_volumes(raw, header, blocks, count)
        with gzip.open(part) if packed else part.open("rb") as stream:
            _compare(path.name, stream, header, blocks, count, grid)


def _write_volumes(stream: Any, header: nib.Nifti1Header, blocks: Blocks, count: int) -> None:
    header.write_to(stream)
    stream.write(bytes(int(header["vox_offset"]) - stream.tell()))
    for number in range(count):
        block = blocks(number)
        for planes in _planes(block.shape):
            stream.write(block[..., planes].tobytes(order="F"))


def _compare(name: str, stream: Any, header: nib.Nifti1Header, blocks: Blocks, count: int, grid: Grid) -> None:
    """Read a written file by nibabel, and hold its geometry, type and every voxel against what was to be written.

    Raises:
        OutputError: They differ.
    """
    image = (nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image).from_stream(stream)
    found, proxy = image.header, cast(ArrayProxy, image.dataobj)
    unit = MILLIMETRES[found.get_xyzt_units()[0]]
    # Where neither form is set, NIfTI has the sizes of the voxels alone.
    affine = image.affine if found["sform_code"] > 0 or found["qform_code"] > 0 else np.diag([*found["pixdim"][1:4], 1.0])
    agreements = {
        "shape": image.shape == header.get_data_shape(),
        "type": found.get_data_dtype() == header.get_data_dtype(),
        "scaling": (proxy.slope, proxy.inter) == (float(header["scl_slope"]), float(header["scl_inter"])),
        "s-form code": found["sform_code"] == header["sform_code"],
        "q-form code": found["qform_code"] == header["qform_code"],
        "affine": grid.matches(Grid(grid.shape, np.diag([unit] * 3 + [1.0]) @ affine)),
    }
    for what, agreed in agreements.items():
        if not agreed:
            raise _altered(name, what)
    stored = ArrayProxy(stream, ((*grid.shape, count), found.get_data_dtype(), proxy.offset, 1, 0))
    for number in range(count):
        block = blocks(number)
        for planes in _planes(block.shape):
            if not np.array_equal(stored[:, :, planes, number], block[..., planes]):
                raise _altered(name, "labels" if count == 1 else "values")


def _planes(shape: tuple[int, ...]) -> list[slice]:
    """The last axis in pieces of a few million voxels."""
    rows = max(1, _PLANES // math.prod(shape[:-1]))
    return [slice(first, first + rows) for first in range(0, shape[-1], rows)]


def names_to_json(structures: Sequence[Structure]) -> dict[str, object]:
    """What `names_path` holds."""
    listed = [structure.model_dump(mode="json", exclude_none=True) for structure in structures]
    return {"notice": RESEARCH_USE, "background": 0, "structures": listed}


def _structures(path: Path, extensions: tuple[tuple[int, bytes], ...], labels: np.ndarray) -> tuple[Structure, ...]:
    """The first names that can be read, and plain ones for labels that they leave out."""
    texts = [content.decode("utf-8", "replace") for code, content in extensions if code in (_COMMENT, _XML)]
    if names_path(path).is_file():
        texts.append(names_path(path).read_text(encoding="utf-8", errors="replace"))
    named = next((found for text in texts if (found := names_of(text))), ())
    known = {structure.value for structure in named}
    others = [value for value in np.flatnonzero(_counts(labels)).tolist() if value not in known]
    return tuple(sorted((*named, *unnamed(others)), key=lambda structure: structure.value))


def names_of(text: str) -> tuple[Structure, ...]:
    """Structures that a text lists, or none where it is about something else."""
    try:
        if text.lstrip().startswith("{"):
            found = [Structure.model_validate(entry) for entry in json.loads(text)["structures"]]
        elif "<LabelTable" in text:
            found = [
                Structure(value=int(label.attrib["Key"]), name=(label.text or "").strip(), colour=_colour(label.attrib))
                for label in ElementTree.fromstring(text.strip()).iter("Label")
                if label.attrib["Key"] != "0"
            ]
        else:
            return ()
    except (ValueError, KeyError, TypeError, ElementTree.ParseError, ValidationError, RecursionError):
        return ()
    return tuple({structure.value: structure for structure in found}.values())


def _colour(attributes: dict[str, str]) -> tuple[int, int, int] | None:
    """sRGB bytes of a label table's Red, Green and Blue from 0 to 1."""
    try:
        red, green, blue = (round(255 * min(1.0, max(0.0, float(attributes[name])))) for name in ("Red", "Green", "Blue"))
    except (KeyError, ValueError):
        return None
    return red, green, blue


def _counts(labels: np.ndarray) -> np.ndarray:
    """Voxels of each label, in little memory."""
    counts = np.zeros(65536, dtype=np.int64)
    for planes in _planes(labels.shape):
        counts += np.bincount(labels[..., planes].ravel(order="K"), minlength=65536)
    return counts


def _altered(name: str, what: str) -> OutputError:
    return OutputError(
        f"{name} was read back with another {what} than it was written with.", hint="Check the disk and try again."
    )


def _not_written(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path.name} could not be written: {error.strerror}.", hint="Choose another output folder with -o.")
