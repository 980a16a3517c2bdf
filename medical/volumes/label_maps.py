"""Label maps and probability maps as NIfTI files, on exactly the grid of the scan they belong to.

A result repeats the scan's shape, s-form, q-form, their codes and its unit; nothing else of the scan's header, which may
hold names. What was written is read anew by nibabel and compared before it takes its place (`medical.volumes.nifti_writing`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from nibabel.nifti1 import Nifti1Extension
from pydantic import ValidationError

from hybrid.errors import InputError, OutputError
from hybrid.records import replacing
from medical.notice import RESEARCH_USE
from medical.structures import Structure, unnamed
from medical.volumes.geometry import Grid
from medical.volumes.nifti import open_nifti
from medical.volumes.nifti_writing import blank_header, checked_path, not_written, planes_of, write_image
from medical.volumes.volume import Volume, stem

PROBABILITY_STEP = 1 / 65535
"""Probabilities are stored as uint16 of this step: half the size of float32, and finer than any network's error."""

_LOG = logging.getLogger(__name__)
_COMMENT, _XML = 6, 0  # codes of header extensions: plain text, and where Connectome Workbench and others keep label tables
_NEAR_INTEGER = 1e-3


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
    path = checked_path(path)
    if labels.shape != volume.grid.shape or labels.dtype.kind not in "iub":
        raise OutputError(f"Labels {labels.shape} of type {labels.dtype} do not fit the scan {volume.grid.shape}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high > 65535:
        raise OutputError(f"Labels from {low} to {high} do not fit the range 0 to 65535.")
    stored = labels.astype(np.uint8 if high < 256 else np.uint16, copy=False)
    names = names_to_json(structures)
    header = blank_header(volume, stored.dtype)
    header.set_intent("label", allow_unknown=True)
    header.extensions.append(Nifti1Extension("comment", json.dumps(names, ensure_ascii=False).encode()))
    try:
        with replacing(names_path(path)) as part:
            part.write_text(json.dumps(names, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
            write_image(path, header, lambda _: stored, 1, volume.grid)
    except OSError as error:
        raise not_written(path, error) from error
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
    path = checked_path(path)
    if array.ndim not in (3, 4) or array.shape[-3:] != volume.grid.shape:
        raise OutputError(f"Probabilities {array.shape} do not fit the scan {volume.grid.shape}.")
    channels = array if array.ndim == 4 else array[None]
    for channel in channels:
        low, high = float(channel.min()), float(channel.max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):  # false for NaN too
            raise OutputError(f"Values from {low:g} to {high:g} are no probabilities.")

    def stored(number: int) -> np.ndarray:
        scaled = channels[number] * np.float32(65535)
        stored: np.ndarray = np.clip(np.rint(scaled, out=scaled), 0, 65535, out=scaled).astype(np.uint16)
        return stored

    header = blank_header(volume, np.dtype(np.uint16))
    if array.ndim == 4:
        header.set_data_shape((*volume.grid.shape, len(array)))
    header.set_slope_inter(PROBABILITY_STEP, 0)
    try:
        write_image(path, header, stored, len(channels), volume.grid)
    except OSError as error:
        raise not_written(path, error) from error
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
        InputError: As `medical.volumes.volume.read_volume`; or the file is 4-D, holds values further than 1e-3 from an integer,
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
    for planes in planes_of(values.shape):
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
    for planes in planes_of(labels.shape):
        counts += np.bincount(labels[..., planes].ravel(order="K"), minlength=65536)
    return counts
