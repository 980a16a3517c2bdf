"""NIfTI files on exactly the grid of a scan: its header's geometry repeated, written whole or not at all, read back.

A result repeats the scan's shape, s-form, q-form, their codes and its unit; nothing else of the scan's header, which may
hold names. What was written is read anew by nibabel and compared before it takes its place.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
from nibabel.arrayproxy import ArrayProxy

from hybrid.errors import OutputError, RequestError
from hybrid.records import replacing
from medical.notice import RESEARCH_USE
from medical.volumes.geometry import Grid
from medical.volumes.nifti import MILLIMETRES, NiftiOrigin, open_nifti
from medical.volumes.volume import Volume

_PLANES = 1 << 22
_NIFTI_1_EDGE = 32767
_NARROW = 2

Blocks = Callable[[int], np.ndarray]
"""Gives volume number n, (i, j, k), in the type it is stored in."""


@dataclass(frozen=True)
class Storage:
    """How real values lie in a file: stored number = (value - inter) / slope, rounded where the type holds whole numbers.

    Attributes:
        dtype: Of the stored numbers.
        slope, inter: Real value = stored * slope + inter.
    """

    dtype: np.dtype
    slope: float = 1.0
    inter: float = 0.0

    @property
    def plain(self) -> bool:
        """Whether stored numbers are the values."""
        return (self.slope, self.inter) == (1, 0)

    @classmethod
    def of(cls, volume: Volume) -> Storage:
        """As the file of a scan has it.

        Whole numbers stay such, with the scaling of their file up to 16 bits: values of more are read as float32, which
        does not hold all of them. Floating-point numbers are float32, as they are read.
        """
        if volume.values.dtype.kind in "iu" or not isinstance(volume.origin, NiftiOrigin):
            return cls(volume.values.dtype)
        file = open_nifti(volume.origin.path)
        if file.dtype.kind in "iu" and file.dtype.itemsize <= _NARROW:
            return cls(file.dtype.newbyteorder("="), file.slope, file.inter)
        return cls(np.dtype(np.float32))

    def stored(self, values: np.ndarray) -> np.ndarray:
        """(i, j, k) values as the file holds them."""
        if self.plain and values.dtype == self.dtype:
            return values
        result = np.empty_like(values, dtype=self.dtype)
        for planes in planes_of(values.shape):
            numbers = (values[..., planes].astype(np.float64) - self.inter) / self.slope
            if self.dtype.kind in "iu":
                numbers = np.clip(np.rint(numbers), *(np.iinfo(self.dtype).min, np.iinfo(self.dtype).max))
            result[..., planes] = numbers
        return result

    def describe(self) -> str:
        """One line for people.

        >>> Storage(np.dtype(np.int16), 0.5, 0).describe()
        'int16, scaled by 0.5'
        """
        scaled = f", scaled by {self.slope:g}" if self.slope != 1 else ""
        return f"{self.dtype.name}{scaled}{f' from {self.inter:g} on' if self.inter else ''}"


def write_scan(path: str | Path, values: np.ndarray, volume: Volume, storage: Storage) -> Path:
    """Write values of the kind of a scan on its grid, whole or not at all.

    Args:
        path: .nii or .nii.gz.
        values: (i, j, k) real values, in the order of the scan's axes.
        volume: The scan.
        storage: How they are stored.

    Returns:
        The path.

    Raises:
        RequestError: The name ends otherwise.
        OutputError: The values do not lie on the scan's grid, the folder does not take the file, or what was read back is
            not what was written.
    """
    path = checked_path(path)
    if values.shape != volume.grid.shape:
        raise OutputError(f"Values {values.shape} do not fit the scan {volume.grid.shape}.")
    stored = storage.stored(values)
    header = blank_header(volume, stored.dtype)
    header.set_slope_inter(storage.slope, storage.inter)
    try:
        write_image(path, header, lambda _: stored, 1, volume.grid)
    except OSError as error:
        raise not_written(path, error) from error
    return path


def checked_path(path: str | Path) -> Path:
    """The path, if its name is that of a NIfTI file that can be written.

    Raises:
        RequestError: It ends otherwise.
    """
    path = Path(path)
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise RequestError(f"{path.name} does not end in .nii.gz or .nii.", hint="Name the output so, such as labels.nii.gz.")
    return path


def blank_header(volume: Volume, dtype: np.dtype) -> nib.Nifti1Header:
    """A blank header with the scan's geometry, as its file stated it."""
    origin, grid = volume.origin, volume.grid
    large = origin.version == 2 if isinstance(origin, NiftiOrigin) else max(grid.shape) > _NIFTI_1_EDGE
    header = (nib.Nifti2Header if large else nib.Nifti1Header)()  # type: ignore[no-untyped-call]
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


def write_image(path: Path, header: nib.Nifti1Header, blocks: Blocks, count: int, grid: Grid) -> None:
    """Write the volumes one by one, read them back, and put the file in its place.

    Raises:
        OutputError: What was read back is not what was written.
    """
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
        for planes in planes_of(block.shape):
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
        for planes in planes_of(block.shape):
            if not np.array_equal(stored[:, :, planes, number], block[..., planes]):
                raise _altered(name, "values")


def planes_of(shape: tuple[int, ...]) -> list[slice]:
    """The last axis in pieces of a few million voxels."""
    rows = max(1, _PLANES // math.prod(shape[:-1]))
    return [slice(first, first + rows) for first in range(0, shape[-1], rows)]


def not_written(path: Path, error: OSError) -> OutputError:
    """What is to be told of a folder that does not take a file."""
    return OutputError(f"{path.name} could not be written: {error.strerror}.", hint="Choose another output folder with -o.")


def _altered(name: str, what: str) -> OutputError:
    return OutputError(
        f"{name} was read back with another {what} than it was written with.", hint="Check the disk and try again."
    )
