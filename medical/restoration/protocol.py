"""What a trained restoration network asks of a scan: data that travels with its weights.

Axes: scans are (i, j, k) in the protocol's orientation.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from medical.volumes.geometry import Grid

SAMPLED = 1 << 24
"""From so many voxels on percentiles are taken of an even sample, since they would take a copy of the scan."""

_ORIENTATION = r"^(?:[RL][AP][SI]|[RL][SI][AP]|[AP][RL][SI]|[AP][SI][RL]|[SI][RL][AP]|[SI][AP][RL])$"
Percent = Annotated[float, Field(ge=0, le=100)]
Positive = Annotated[float, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Percentiles(_Part):
    """The scan's own range: percentile `low` becomes 0 and `high` 1; values beyond go on evenly.

    Without `low` zero stays zero, as the noise of MR magnitudes asks.
    """

    kind: Literal["percentiles"] = "percentiles"
    low: Percent | None = None
    high: Percent = 99.0

    def bounds(self, values: np.ndarray) -> tuple[float, float]:
        """The values that become 0 and 1.

        >>> Percentiles(high=50).bounds(np.array([0, 1, 4, 9, 90]))
        (0.0, 4.0)
        """
        flat = values.ravel(order="K")
        sample = flat[:: math.ceil(flat.size / SAMPLED)]
        low = 0.0 if self.low is None else float(np.percentile(sample, self.low))
        return low, float(np.percentile(sample, self.high))

    @property
    def words(self) -> str:
        """For people."""
        return f"{'0' if self.low is None else f'percentile {self.low:g}'} to percentile {self.high:g} as 0 to 1"


class FixedRange(_Part):
    """`low` to `high`, in the unit of the values (HU in CT), as 0 to 1; values beyond go on evenly."""

    kind: Literal["range"] = "range"
    low: float
    high: float

    @model_validator(mode="after")
    def _rising(self) -> FixedRange:
        if self.low >= self.high:
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty")
        return self

    def bounds(self, values: np.ndarray) -> tuple[float, float]:
        """The values that become 0 and 1, whatever the scan's."""
        return self.low, self.high

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.low:g} to {self.high:g} as 0 to 1"


class RestorationProtocol(_Part):
    """How scans are handed to a network for pictures, slice by slice, and its pictures made a scan again.

    Scans are never resampled: a restored scan lies on its own grid.

    Attributes:
        modality: ``CT``, ``MR`` or another DICOM modality.
        orientation: Anatomical directions of the array axes: rows and columns of a slice and the order of slices follow them.
        axis: Across which slices lie, of those axes; ``thickest`` takes that of the longest voxels, as most scans were
            acquired, and the last one of equal ones.
        neighbours: Slices on each side that the network sees beside the one that it restores, as channels, in their order.
            At the ends the scan is mirrored.
        intensity: How values become the network's range, and back.
        spacing: Shortest and longest edge, in mm, of the pixels that it was trained on.
    """

    modality: str
    orientation: str = Field("RAS", pattern=_ORIENTATION)
    axis: Literal[0, 1, 2, "thickest"] = "thickest"
    neighbours: int = Field(0, ge=0, le=16)
    intensity: Annotated[Percentiles | FixedRange, Field(discriminator="kind")]
    spacing: tuple[Positive, Positive] | None = None

    @property
    def channels(self) -> int:
        """Slices that the network sees at a time."""
        return 2 * self.neighbours + 1

    def slice_axis(self, oriented: Grid) -> int:
        """Across which axis of a scan in the protocol's orientation slices lie."""
        if self.axis != "thickest":
            return self.axis
        longest = max(oriented.spacing)
        return max(axis for axis, step in enumerate(oriented.spacing) if step >= 0.99 * longest)


def seen_slices(number: int, count: int, neighbours: int) -> list[int]:
    """The slices that a network sees to restore one of `count`: mirrored at the ends, its own in the middle.

    >>> seen_slices(0, 5, 2), seen_slices(4, 5, 1), seen_slices(1, 2, 2)
    ([2, 1, 0, 1, 2], [3, 4, 3], [1, 0, 1, 0, 1])
    """
    period = max(1, 2 * (count - 1))
    places = (abs(place) % period for place in range(number - neighbours, number + neighbours + 1))
    return [min(place, period - place) if count > 1 else 0 for place in places]
