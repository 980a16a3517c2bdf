"""From a scan to what a network sees of it, and back: every geometric step in one object that can undo it.

Axes: (C, i, j, k) in the order of the file, then of the protocol's orientation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hybrid.errors import InputError
from medical.pictures.reading import PictureOrigin, of_picture
from medical.protocol import Intensity, Protocol, ZScore
from medical.segmentation.normalisation import normalise, training_grid
from medical.volumes.geometry import Grid, Reorientation, resample
from medical.volumes.modality import other_modality
from medical.volumes.volume import Volume

PARALLEL = 1e-5
"""Largest part of a voxel step along one axis that may lie along another, for grids that count as parallel."""

COARSE = 3.0
"""How many times as long as the network's a scan's voxels may be before its result is to be doubted."""

Box = tuple[slice, slice, slice]


@dataclass(frozen=True, eq=False)
class Preparation:
    """The way from a scan's grid to a network's.

    Attributes:
        scan: The grid of the scan.
        box: The part of it that is segmented, in its voxels.
        reorientation: From that part to the protocol's orientation.
        model: The grid that the network sees; the reorientation's own where nothing is resampled.
        picture: Where the scan came from if it is a picture.
    """

    scan: Grid
    box: Box
    reorientation: Reorientation
    model: Grid
    picture: PictureOrigin | None = None

    @property
    def oriented(self) -> Grid:
        """The part of the scan, in the protocol's orientation."""
        return self.reorientation.grid

    @property
    def resampled(self) -> bool:
        """Whether the network sees another grid than the scan's."""
        return self.model is not self.oriented

    @property
    def parallel(self) -> bool:
        """Whether the axes of both grids are parallel, as they are unless the scan is sheared."""
        steps = self._to_model[:3, :3]
        return bool(np.abs(steps - np.diag(np.diag(steps))).max() <= PARALLEL * np.abs(steps).max())

    @property
    def positions(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For grids that are parallel: where the oriented scan's voxels lie, in voxels of the model's grid, for each axis."""
        matrix = self._to_model
        i, j, k = (matrix[axis, axis] * np.arange(n) + matrix[axis, 3] for axis, n in enumerate(self.oriented.shape))
        return i, j, k

    @property
    def _to_model(self) -> np.ndarray:
        matrix: np.ndarray = np.linalg.inv(self.model.affine) @ self.oriented.affine
        return matrix

    def prepared_bytes(self, channels: int) -> int:
        """Memory that `apply` takes."""
        return 4 * channels * math.prod(self.model.shape) * (2 if self.resampled else 1)

    def apply(self, volume: Volume, protocol: Protocol) -> np.ndarray:
        """What the network sees, (C, i, j, k) float32: oriented, resampled linearly (as published Swin UNETR do), and scaled."""
        values = self.reorientation.apply(volume.values[(slice(None), *self.box)])
        if self.resampled:
            values = resample(values, self.oriented, self.model, order=1)
        return normalise(values, _in_values(protocol.intensity, self.picture))

    def undo(self, array: np.ndarray) -> np.ndarray:
        """(..., i, j, k) in the protocol's orientation to the scan's grid, with 0 outside the part that was segmented."""
        part = self.reorientation.undo(array)
        if part.shape[-3:] == self.scan.shape:
            return part
        whole = np.zeros((*array.shape[:-3], *self.scan.shape), array.dtype)
        whole[(..., *self.box)] = part
        return whole

    def describe(self) -> str:
        """One line for people and records."""
        steps = [f"{_mm(self.scan.spacing)} mm, axes {self.scan.codes}"]
        if self.picture is not None:
            rows, columns, _ = self.scan.shape
            mm = f" of {_mm(self.picture.pixel_mm)} mm" if self.picture.pixel_mm else ""
            steps = [f"picture of {columns} x {rows} pixels{mm}"]
        if self.oriented.shape != self.scan.shape and self.box != whole(self.scan):
            steps.append("cut to " + ", ".join(f"{part.start}:{part.stop}" for part in self.box))
        if self.oriented.codes != self.scan.codes:
            steps.append(f"turned to {self.oriented.codes}")
        if self.resampled:
            sheared = "" if self.oriented.orthogonal else " at right angles"
            steps.append(f"resampled{sheared} to {_mm(self.model.spacing[: 2 if self.picture else 3])} mm")
        return ", ".join(steps)


def prepare(volume: Volume, protocol: Protocol, box: Box | None = None) -> Preparation:
    """Plan the way from a scan to a network.

    Args:
        volume: The scan.
        protocol: What the network asks for.
        box: The part to segment, as if the file had been cut to it; None for the whole.
    """
    box = box or whole(volume.grid)
    part = _cut(volume.grid, box)
    picture = volume.origin if isinstance(volume.origin, PictureOrigin) else None
    oriented = Reorientation.between(part, protocol.orientation if picture is None else part.codes)
    sized = picture is None or picture.pixel_mm is not None
    return Preparation(volume.grid, box, oriented, training_grid(oriented.grid, protocol) if sized else oriented.grid, picture)


def whole(grid: Grid) -> Box:
    """The box of all voxels."""
    i, j, k = (slice(0, n) for n in grid.shape)
    return i, j, k


def check_scan(volume: Volume, protocol: Protocol) -> None:
    """Refuse what no network can segment.

    Raises:
        InputError: Other channels than the protocol's, no volume, values that are not finite, or a constant channel.
    """
    values, wanted, scan = volume.values, protocol.channels, volume.file_name
    flat, thinnest = of_picture(volume), sorted(volume.grid.shape)[3 - protocol.spatial_dims]
    if flat and protocol.spatial_dims == 3:
        raise InputError(
            f"{scan} is a picture, and this network segments volumes.",
            hint="Choose a network for slices, or give the whole series.",
        )
    if len(values) != len(wanted):
        names = ", ".join(wanted)
        raise InputError(
            f"{scan} has {_count(len(values), 'channel')}, and this network takes {len(wanted)}: {names}.",
            hint="Pick one volume of the file with --volume N." if len(wanted) == 1 else f"Give one file with {names}, in order.",
        )
    if thinnest < 2:
        raise InputError(
            f"{scan} has {' x '.join(map(str, volume.grid.shape))} voxels: it is no {'picture' if flat else 'volume'}.",
            hint=f"Give a {'picture' if flat else 'scan'} of at least 2 {'pixels' if flat else 'voxels'} along each axis.",
        )
    for name, channel in zip(wanted, values, strict=True):
        where = scan + (f", channel {name}," if len(wanted) > 1 else "")
        low, high = float(channel.min()), float(channel.max())  # NaN spreads to both
        if not np.isfinite((low, high)).all():
            bad = sum(int(np.count_nonzero(~np.isfinite(row))) for row in channel)
            raise InputError(
                f"{where} has {_count(bad, 'voxel')} whose value is not finite (NaN or infinity).",
                hint="Replace them, for example by 0 or by the value of air.",
            )
        if low == high:
            raise InputError(f"{where} has the value {low:g} everywhere: there is nothing to segment.", hint="Check the file.")


def doubts(volume: Volume, protocol: Protocol, preparation: Preparation) -> tuple[str, ...]:
    """What a user should be told before trusting a result: values or a modality that do not look like the network's."""
    return tuple(_doubts(volume, protocol, preparation))


def _doubts(volume: Volume, protocol: Protocol, preparation: Preparation) -> Iterator[str]:
    low = float(volume.values.min())
    if said := other_modality(volume.origin, protocol.modality):
        yield f"The network was trained on {protocol.modality}, and the scan says that it is {said}."
    elif protocol.modality == "CT" and low > -200:
        yield f"The network was trained on CT in HU, where air is about -1000; the lowest value here is {low:g}."
    elif protocol.modality == "MR" and low < -500:
        yield f"The network was trained on MR, and values down to {low:g} look like CT in HU."
    if preparation.picture is not None and preparation.picture.pixel_mm is None and protocol.spacing is not None:
        yield (
            f"The picture does not say how large its pixels are; they were taken as {_mm(protocol.spacing)} mm, like those "
            "that the network was trained on."
        )
    oriented, model = preparation.oriented, preparation.model
    if preparation.resampled and max(np.array(oriented.spacing) / model.spacing) > COARSE:
        yield (
            f"The scan's voxels of {_mm(oriented.spacing)} mm are far coarser than those that the network was trained on, "
            f"{_mm(model.spacing)} mm."
        )
    if not preparation.oriented.orthogonal:
        yield "The scan is sheared (a tilted gantry): it was resampled to right angles for the network, and its labels back."


def _cut(grid: Grid, box: Box) -> Grid:
    affine = np.array(grid.affine)
    affine[:3, 3] = grid.to_world(np.array([part.start for part in box]))
    i, j, k = (part.stop - part.start for part in box)
    return Grid((i, j, k), affine)


def _in_values(intensity: Intensity, picture: PictureOrigin | None) -> Intensity:
    """A protocol's scaling in the values of a picture, of which its constants name shares of white."""
    if picture is None or isinstance(intensity, ZScore):
        return intensity
    constants = intensity.model_dump(exclude={"kind"})
    return type(intensity)(**{name: value * picture.white for name, value in constants.items()})


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{step:.4g}" for step in spacing)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
