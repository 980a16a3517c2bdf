"""NIfTI files: the header read and judged, and the values read in pieces.

What the header means follows the NIfTI-1.1 standard (Cox et al., 2004) and NIfTI-2. Nothing of the header travels on but
its geometry: its free texts may hold names.
"""

from __future__ import annotations

import gzip
import logging
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
from nibabel.filebasedimages import ImageFileError
from nibabel.imageglobals import logger as nibabel_logger
from nibabel.spatialimages import HeaderDataError, HeaderTypeError

from hybrid.errors import InputError, ResourceError
from hybrid.records import without_folders
from medical.volumes.geometry import Grid

UNITS = {0: "unknown", 1: "meter", 2: "mm", 3: "micron"}
"""NIfTI's codes of spatial units, by nibabel's names."""
MILLIMETRES = {"unknown": 1.0, "meter": 1000.0, "mm": 1.0, "micron": 0.001}
"""How many mm each unit is; files that state none are in mm."""

_QFORM_FIELDS = ("pixdim", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_PIECE = 1 << 24
_DEFLATE_LIMIT = 1032  # no deflate stream unpacks to more than this many times its size
_MOST_EXTENSIONS = 64 << 20
_SAME_AFFINE = 1e-3  # mm
_ONE_AT_A_TIME = threading.Lock()  # filters of warnings and logs belong to the process
_UNREADABLE = (ImageFileError, HeaderDataError, HeaderTypeError)
_OUT_OF_RANGE = (HeaderDataError, ValueError, struct.error, OverflowError)


@dataclass(frozen=True, eq=False)
class NiftiOrigin:
    """What the header of a NIfTI file says beyond the grid; kept so that a result can say the same.

    Attributes:
        path: The file.
        version: 1 or 2.
        sform, qform: The two affines as stored, in the file's own unit; None where the code is 0.
        sform_code, qform_code: Their codes.
        unit: ``mm``, ``meter``, ``micron`` or ``unknown``.
        stored: The header's fields that q-form and voxel sizes are worked out from, by their names: they cannot be told
            from a matrix to the last digit. Where one is missing it is taken from the matrix.
    """

    path: Path
    version: int
    sform: np.ndarray | None
    sform_code: int
    qform: np.ndarray | None
    qform_code: int
    unit: str
    stored: Mapping[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """A NIfTI file whose header has been read and found sound; its values are not read yet.

    Attributes:
        path: The file that was named.
        data: The file that holds the values: another one for .hdr and .img.
        grid: Where voxels lie, in mm.
        count: Volumes on that grid.
        dtype: Type of the stored numbers, with their byte order.
        offset: Where they begin in `data`, unpacked.
        slope, inter: Real value = stored * slope + inter.
        origin: What a result written from it must say.
        extensions: Code and content of each header extension.
        warnings: What a user should be told.
    """

    path: Path
    data: Path
    grid: Grid
    count: int
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    origin: NiftiOrigin
    extensions: tuple[tuple[int, bytes], ...]
    warnings: tuple[str, ...]

    @property
    def compressed(self) -> bool:
        """Whether the values are packed by gzip."""
        return self.data.name.lower().endswith(".gz")

    def read(self, first: int = 0, count: int = 1) -> np.ndarray:
        """Real values of `count` volumes from `first` on: (count, i, j, k), stored integers or float32.

        Read and converted in pieces, so that the values are in memory once.

        Raises:
            InputError: The file is damaged or holds voxels that are no finite numbers.
            ResourceError: The memory at hand does not hold them.
        """
        plain = self.dtype.kind in "iu" and (self.slope, self.inter) == (1, 0)
        dtype = self.dtype.newbyteorder("=") if plain else np.dtype(np.float32)
        size = math.prod(self.grid.shape)
        needed = size * count * dtype.itemsize
        if needed > psutil.virtual_memory().available:
            raise ResourceError(
                f"{self.path.name} takes {needed / 1e9:.1f} GB of memory, more than there is.", hint="Crop or resample the scan."
            )
        values = np.empty(size * count, dtype=dtype)
        try:
            self._read_into(values, self.offset + first * size * self.dtype.itemsize, plain)
        except EOFError as error:
            raise _damaged(self.path, "it ends in the midst of the voxels") from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise _damaged(self.path, "its compressed data cannot be unpacked") from error
        except OSError as error:
            raise InputError(f"{self.path.name} could not be read: {error.strerror}.", hint="Check the file.") from error
        if dtype.kind == "f" and not np.isfinite([values.min(), values.max()]).all():
            nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
            raise InputError(
                f"{self.path.name} holds {nan} NaN and {infinite} infinite voxels, which no network can take.",
                hint="Replace them by the value of the background, and try again.",
            )
        # NIfTI's first index runs fastest.
        return np.moveaxis(values.reshape((*self.grid.shape, count), order="F"), -1, 0)

    def _read_into(self, values: np.ndarray, start: int, plain: bool) -> None:
        rows = _PIECE // self.dtype.itemsize
        with gzip.open(self.data) if self.compressed else self.data.open("rb") as stream:
            stream.seek(start)
            for first in range(0, values.size, rows):
                target = values[first : first + rows]
                content = stream.read(target.size * self.dtype.itemsize)
                if len(content) < target.size * self.dtype.itemsize:
                    raise EOFError
                piece = np.frombuffer(content, dtype=self.dtype)
                with np.errstate(over="ignore"):  # what overflows is found as infinite
                    target[:] = piece if plain else piece.astype(np.float64) * self.slope + self.inter
            if self.compressed:
                stream.read(1)  # at its end gzip compares its checksum


def open_nifti(path: Path) -> NiftiFile:
    """Read and check the header of a NIfTI file, as `read_volume` says.

    Raises:
        InputError: As `read_volume`, as far as the header tells.
    """
    image = _load(path)
    header = image.header
    data = _data_path(image)
    shape, count = _checked_shape(path, image.shape)
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        kind = "colours" if dtype.kind == "V" else "complex numbers"
        raise InputError(f"{path.name} holds {kind} where one number a voxel is needed.", hint="Export the scan itself.")
    offset = int(image.dataobj.offset)
    if offset < 0:
        raise _damaged(path, f"its voxels begin at byte {offset}")
    _check_size(path, data, offset + math.prod(shape) * count * dtype.itemsize)
    origin, affine, remarks = _geometry(path, image)
    try:
        grid = Grid(shape, affine)
    except InputError as error:
        raise InputError(f"{path.name}: {error.message}", hint=error.hint) from error
    if not grid.orthogonal:
        remarks.append(f"The axes of {path.name} are sheared.")
    return NiftiFile(
        path, data, grid, count, dtype, offset,
        float(image.dataobj.slope), float(image.dataobj.inter), origin,
        tuple((int(extension.get_code()), extension.content) for extension in header.extensions), tuple(remarks),
    )  # fmt: skip


def _load(path: Path) -> Any:
    """The nibabel image of a file, its values not read."""
    if path.is_dir():
        raise InputError(f"{path.name} is a folder, and a NIfTI file is needed.", hint="Name the file in it.")
    if not path.is_file():
        raise InputError(f"There is no file {path.name}.", hint="Check the path.")
    try:
        path.open("rb").close()  # of what may not be read nibabel says that it is no image
        with _quiet():
            _check_extensions(path)
            image = nib.load(path)
    except FileNotFoundError as error:
        raise InputError(f"{path.name} lacks the other file of its pair.", hint="Keep .hdr and .img together.") from error
    except EOFError as error:
        raise _damaged(path, "it ends in the midst of the header") from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise _damaged(path, "its compressed data cannot be unpacked") from error
    except OSError as error:
        raise InputError(f"{path.name} could not be read: {error.strerror or error}.", hint="Check the file.") from error
    except _UNREADABLE as error:
        reason = without_folders((str(error) or "its header is damaged").splitlines()[0]).rstrip(".")
        raise InputError(
            f"{path.name} is no NIfTI file that can be read: {reason}.", hint="Check its ending, or export the scan again."
        ) from error
    except _OUT_OF_RANGE as error:
        raise _damaged(path, f"a field of its header, such as the q-form, is out of range ({error})") from error
    if not isinstance(image, nib.Nifti1Pair | nib.Nifti2Pair):
        raise InputError(
            f"{path.name} is an Analyze file or another kind that does not say where the patient's left is.",
            hint="Convert the original to NIfTI, such as by dcm2niix.",
        )
    if not _data_path(image).is_file():
        raise InputError(f"{path.name} has no {_data_path(image).name} beside it.", hint="Keep .hdr and .img together.")
    return image


def _check_extensions(path: Path) -> None:
    """Refuse a packed header whose extensions would unpack to more than texts are; nibabel reads them at once."""
    name = path.name.lower()
    if not name.endswith(".gz"):
        return  # they cannot be larger than the file
    try:
        with gzip.open(path) as stream:
            head = stream.read(540).ljust(540, b"\0")
            if name.endswith(".hdr.gz"):
                stream.seek(_MOST_EXTENSIONS)
                offset = _MOST_EXTENSIONS + len(stream.read(1))
            elif 348 in (int.from_bytes(head[:4], "little"), int.from_bytes(head[:4], "big")):
                offset = struct.unpack_from("<f" if head[0] == 0x5C else ">f", head, 108)[0]
            else:
                offset = struct.unpack_from("<q" if head[0] == 0x1C else ">q", head, 168)[0]
    except (OSError, EOFError, zlib.error):
        return  # nibabel says what it is
    if offset > _MOST_EXTENSIONS:
        raise _damaged(path, f"its header promises extensions of more than {_MOST_EXTENSIONS >> 20} MB")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep nibabel from writing to the screen what it mends in a header; what matters of it is told in our own words."""
    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nibabel_logger.addFilter(_mute)
        try:
            yield
        finally:
            nibabel_logger.removeFilter(_mute)


def _mute(record: logging.LogRecord) -> bool:
    return False


def _data_path(image: Any) -> Path:
    return Path(image.file_map["image"].filename)


def _checked_shape(path: Path, shape: tuple[int, ...]) -> tuple[tuple[int, int, int], int]:
    """Edges (i, j, k), and the number of volumes."""
    said = " x ".join(map(str, shape))
    if len(shape) < 3:
        raise InputError(f"{path.name} is {len(shape)}-D ({said}), and a volume is needed.", hint="Stack slices to one 3-D file.")
    if min(shape) < 1:
        raise _damaged(path, f"its shape is {said}")
    further = tuple(n for n in shape[3:] if n > 1)
    if len(further) > 1:
        raise InputError(f"{path.name} is {len(shape)}-D ({said}), and 3-D or 4-D is needed.", hint="Split it into 4-D files.")
    return shape[:3], math.prod(further)  # type: ignore[return-value]


def _check_size(path: Path, data: Path, claimed: int) -> None:
    """Refuse a header that claims more than its file can hold, before memory is taken for it."""
    size = data.stat().st_size
    packed = data.name.lower().endswith(".gz")
    if claimed > size * (_DEFLATE_LIMIT if packed else 1):
        raise _damaged(path, f"its header promises {claimed:,} bytes, and {size:,} {'packed ' if packed else ''}bytes are there")


def _geometry(path: Path, image: Any) -> tuple[NiftiOrigin, np.ndarray, list[str]]:
    """What to keep of the header, the affine in mm, and remarks for the user."""
    header = image.header
    remarks: list[str] = []
    sform, sform_code = header.get_sform(coded=True)
    qform, qform_code = _qform(header)
    if qform is None and qform_code > 0:
        if sform is None:
            raise _damaged(path, "its q-form is no rotation")
        remarks.append(f"The q-form of {path.name} is no rotation; the s-form is taken.")
        qform_code = 0
    unit = UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        remarks.append(f"{path.name} states a unit that NIfTI does not know; mm are taken.")
        unit = "unknown"
    scale = np.diag([MILLIMETRES[unit]] * 3 + [1.0])
    if sform is not None and not np.isfinite(sform).all():
        raise _damaged(path, "its affine is not finite")
    if sform is not None:
        affine = scale @ sform
        if qform is not None and (gap := _distance(affine, scale @ qform, header.get_data_shape())) > _SAME_AFFINE:
            remarks.append(f"The two affines of {path.name} differ by up to {gap:.3g} mm; the s-form is taken.")
    elif qform is not None:
        affine = scale @ qform
    else:
        affine = scale @ np.diag([*_stored_sizes(image), 1.0])
        remarks.append(
            f"{path.name} does not say how the patient lies; its axes are taken to run to the right, the front and the head."
        )
    stored = {name: np.array(header[name]) for name in _QFORM_FIELDS}
    version = 2 if isinstance(header, nib.Nifti2Header) else 1
    origin = NiftiOrigin(path, version, sform, int(sform_code), qform, int(qform_code), unit, stored)
    return origin, affine, remarks


def _qform(header: Any) -> tuple[np.ndarray | None, int]:
    """The q-form, None where it is no rotation with sizes, and its code."""
    with np.errstate(all="ignore"):
        try:
            qform, code = header.get_qform(coded=True)
        except _OUT_OF_RANGE:
            return None, int(header["qform_code"])
        usable = code > 0 and np.isfinite(qform).all() and np.linalg.norm(qform[:3, :3], axis=0).min() > 0
    return (qform if usable else None), int(code)


def _stored_sizes(image: Any) -> np.ndarray:
    """Sizes of a voxel as they stand in the file: nibabel makes 1 of those that are 0."""
    name = str(image.file_map.get("header", image.file_map["image"]).filename)
    with gzip.open(name) if name.lower().endswith(".gz") else open(name, "rb") as stream:
        header = type(image.header).from_fileobj(stream, check=False)
    return np.abs(np.asarray(header["pixdim"][1:4], dtype=np.float64))


def _distance(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest distance of a corner between two affines; infinite where one of them is damaged."""
    corners = np.stack(np.meshgrid(*([0, n - 1] for n in shape[:3]), [1], indexing="ij"), -1).reshape(-1, 4)
    with np.errstate(all="ignore"):
        gaps = np.linalg.norm(corners @ (affine - other).T, axis=1)
    return float(gaps.max()) if np.isfinite(gaps).all() else math.inf


def _damaged(path: Path, how: str) -> InputError:
    return InputError(f"{path.name} is damaged: {how}.", hint="Copy or export it again.")
