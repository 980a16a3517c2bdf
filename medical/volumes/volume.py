"""Scans in memory: values, the grid they lie on, and what is needed to write results beside them.

Values are (C, i, j, k) in the order of the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hybrid.errors import InputError, RequestError
from medical.volumes.geometry import Grid
from medical.volumes.nifti import NiftiFile, NiftiOrigin, open_nifti

if TYPE_CHECKING:
    from medical.dicom.volume import DicomOrigin
    from medical.pictures.reading import PictureOrigin

__all__ = ["NIFTI_ENDINGS", "NiftiOrigin", "Volume", "is_nifti", "read_volume", "stack", "stem"]

NIFTI_ENDINGS = (".nii.gz", ".hdr.gz", ".img.gz", ".nii", ".hdr", ".img")
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".avif")
_OTHER_ENDINGS = (".dcm", ".dicom", ".ima", ".zip", *PICTURE_ENDINGS)


@dataclass(frozen=True, eq=False)
class Volume:
    """A scan.

    Attributes:
        values: (C, i, j, k), scaled to the file's real values: integers as stored where the scaling is trivial, else
            float32. C is 1 for ordinary scans.
        grid: Where the voxels lie.
        name: The name of the input without its endings; never a patient's.
        origin: Where it came from.
        warnings: What a user should be told about it.
    """

    values: np.ndarray
    grid: Grid
    name: str
    origin: NiftiOrigin | DicomOrigin | PictureOrigin
    warnings: tuple[str, ...] = field(default=())

    @property
    def file_name(self) -> str:
        """The name of the input as its user knows it, with its endings."""
        path: Path | None = getattr(self.origin, "path", None)
        return path.name if path is not None and path.name not in ("", "..") else self.name


def is_nifti(path: str | Path) -> bool:
    """Whether a name ends as NIfTI files do: .nii, .nii.gz, or .hdr and .img.

    >>> is_nifti("scan.NII.gz"), is_nifti("scan.dcm")
    (True, False)
    """
    return Path(path).name.lower().endswith(NIFTI_ENDINGS)


def stem(path: str | Path) -> str:
    """The name of a scan without folders and endings; a folder's name stays whole.

    >>> stem("scans/case.01.nii.gz"), stem("1.2.840.1")
    ('case.01', '1.2.840.1')
    """
    name = Path(path).name
    ending = next((e for e in NIFTI_ENDINGS + _OTHER_ENDINGS if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(ending)]


def read_volume(path: str | Path, *, volume: int | None = None, channels: int = 1) -> Volume:
    """Read a NIfTI-1 or NIfTI-2 file.

    A 4-D file (or a 5-D one whose fourth edge is 1) gives one of its volumes; or all of them as channels, where exactly
    so many are wanted. The s-form goes before the q-form.

    Args:
        path: .nii, .nii.gz, or either file of a .hdr and .img pair.
        volume: Which volume of a 4-D file to take, from 0.
        channels: How many channels the network takes.

    Returns:
        The scan, its values (channels, i, j, k), its grid in mm.

    Raises:
        InputError: The file is missing, damaged, of a kind that holds no scan (2-D, colour, complex numbers), lacks a
            usable affine, holds other channels than wanted, or voxels that are no finite numbers.
        RequestError: A 4-D file and no volume chosen, or one that it does not hold.
        ResourceError: The scan is larger than the memory at hand.
    """
    file = open_nifti(Path(path))
    first = _chosen(file, volume, channels)
    values = file.read(first, channels)
    warnings = list(file.warnings)
    if min(file.grid.shape) == 1:
        warnings.append(f"{file.path.name} is a single slice.")
    if any(channel.min() == channel.max() for channel in values):
        warnings.append(f"{file.path.name} holds one value alone: the image is empty.")
    return Volume(values, file.grid, stem(path), file.origin, tuple(warnings))


def stack(volumes: Sequence[Volume]) -> Volume:
    """Scans of one patient on one grid as the channels of one, in their order; name and origin are the first's.

    Raises:
        InputError: Their grids differ.
        ValueError: There is none.
    """
    if not volumes:
        raise ValueError("no volumes to stack")
    first = volumes[0]
    for other in volumes[1:]:
        if not first.grid.matches(other.grid):
            raise InputError(
                f"The channels {first.name} {first.grid.shape} and {other.name} {other.grid.shape} lie on different grids.",
                hint="Register and resample them to one grid first.",
            )
    if len(volumes) == 1:
        return first
    warnings = tuple(dict.fromkeys(warning for volume in volumes for warning in volume.warnings))
    said = dict.fromkeys(found for volume in volumes if (found := getattr(volume.origin, "modality", None)))
    if len(said) > 1:
        warnings = (*warnings, f"The channels are of several modalities, as their headers say: {', '.join(said)}.")
    values = np.concatenate([volume.values for volume in volumes])
    return Volume(values, first.grid, first.name, first.origin, warnings)


def _chosen(file: NiftiFile, volume: int | None, channels: int) -> int:
    """The first volume to read."""
    name, count = file.path.name, file.count
    if channels > 1:
        if volume is not None:
            raise RequestError(f"The network takes {channels} channels, not one volume.", hint="Leave --volume out.")
        if count != channels:
            raise InputError(
                f"{name} holds {count} channel{'s' * (count > 1)}, and the network takes {channels}.",
                hint=f"Give a 4-D file of {channels} volumes, or {channels} files, in the network's order.",
            )
        return 0
    if volume is None and count > 1:
        raise RequestError(f"{name} is 4-D and holds {count} volumes.", hint=f"Choose one with --volume 0 to {count - 1}.")
    if not 0 <= (volume or 0) < count:
        raise RequestError(f"{name} has no volume {volume}: it holds {count}.", hint=f"Choose --volume 0 to {count - 1}.")
    return volume or 0
