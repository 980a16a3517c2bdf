"""What a trained segmentation network asks of a scan, and what its outputs mean: data that travels with its weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medical.structures import Structure

Positive = Annotated[float, Field(gt=0)]
Edge = Annotated[int, Field(gt=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ZScore(_Part):
    """(v - mean) / standard deviation, for each channel of each scan; over its voxels that are not 0 if `nonzero`.

    With `nonzero`, voxels of value 0 stay 0.
    """

    kind: Literal["z-score"] = "z-score"
    nonzero: bool = False


class Window(_Part):
    """Values from `low` to `high` (HU in CT) to [0, 1], clipped."""

    kind: Literal["window"] = "window"
    low: float
    high: float

    @model_validator(mode="after")
    def _rising(self) -> Window:
        if self.low >= self.high:
            raise ValueError(f"the window from {self.low:g} to {self.high:g} is empty")
        return self


class Region(_Part):
    """An output channel of its own probability, and the label that it paints; later regions paint over earlier ones."""

    channel: int = Field(ge=0)
    value: int = Field(gt=0)


class Protocol(_Part):
    """How scans are made ready for a network, and its outputs made a label map.

    Attributes:
        modality: ``CT``, ``MR``, or another DICOM modality.
        channels: What each input channel is, such as ("FLAIR", "T1w", "T1gd", "T2w").
        orientation: Anatomical directions of the array axes that the network was trained on.
        spacing: Voxel size in mm along those axes; None takes scans as they are.
        intensity: How values are scaled, after resampling.
        patch: Window that the network sees, in voxels along those axes.
        overlap: Share of the window that neighbouring windows have in common.
        mirror: Axes along which the network was trained on mirrored scans, and may be mirrored for averaging.
        structures: Meaning of the label map's values.
        regions: For networks whose channels are overlapping regions (sigmoid > 0.5), in the order of painting. Empty for
            networks with one channel a class, background first (arg-max).
    """

    modality: str
    channels: tuple[str, ...] = Field(min_length=1)
    orientation: str = Field(
        "RAS", pattern=r"^(?:[RL][AP][SI]|[RL][SI][AP]|[AP][RL][SI]|[AP][SI][RL]|[SI][RL][AP]|[SI][AP][RL])$"
    )
    spacing: tuple[Positive, Positive, Positive] | None = None
    intensity: Annotated[ZScore | Window, Field(discriminator="kind")]
    patch: tuple[Edge, Edge, Edge]
    overlap: float = Field(0.5, ge=0, lt=1)
    mirror: tuple[Literal[0, 1, 2], ...] = ()
    structures: tuple[Structure, ...]
    regions: tuple[Region, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if sorted("RAS".find(letter) if letter in "RAS" else "LPI".find(letter) for letter in self.orientation) != [0, 1, 2]:
            raise ValueError(f"{self.orientation!r} is no orientation such as RAS or LPS")
        values = [structure.value for structure in self.structures]
        if len(set(values)) != len(values):
            raise ValueError("two structures have one value")
        if not self.regions and values != list(range(1, len(values) + 1)):
            raise ValueError("structures of an arg-max network are numbered 1, 2, ... in the order of its channels")
        return self

    @property
    def outputs(self) -> int:
        """Output channels that the network must have."""
        return max(region.channel for region in self.regions) + 1 if self.regions else len(self.structures) + 1
