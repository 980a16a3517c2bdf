"""What a trained segmentation network asks of a scan, and what its outputs mean: data that travels with its weights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medical.structures import Structure

Positive = Annotated[float, Field(gt=0)]
Edge = Annotated[int, Field(gt=0)]
Flat = tuple[Edge, Edge]
Solid = tuple[Edge, Edge, Edge]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ZScore(_Part):
    """(v - mean) / standard deviation, for each channel of each scan; over its voxels that are not 0 if `nonzero`.

    With `nonzero`, voxels of value 0 stay 0.
    """

    kind: Literal["z-score"] = "z-score"
    nonzero: bool = False

    @property
    def words(self) -> str:
        """For people."""
        return "z-score of each channel" + (", voxels of 0 left out" if self.nonzero else "")


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

    @property
    def words(self) -> str:
        """For people."""
        return f"{self.low:g} to {self.high:g} to [0, 1], clipped"


class Standardise(_Part):
    """(v - `mean`) / `std` of values clipped to [`low`, `high`], as nnU-Net scales CT (Isensee et al., Nature Methods 2021).

    All four are constants of the data set, in the unit of its values (HU in CT): there, percentiles 0.5 and 99.5, mean and
    standard deviation of the voxels within structures of all training scans.
    """

    kind: Literal["standardise"] = "standardise"
    low: float
    high: float
    mean: float
    std: Positive

    @model_validator(mode="after")
    def _rising(self) -> Standardise:
        if self.low >= self.high:
            raise ValueError(f"the range from {self.low:g} to {self.high:g} is empty")
        return self

    @property
    def words(self) -> str:
        """For people."""
        return f"clipped to {self.low:g} to {self.high:g}, less {self.mean:g}, divided by {self.std:g}"


class Region(_Part):
    """An output channel of its own probability, and the label that it paints; later regions paint over earlier ones.

    Attributes:
        channel: Which output.
        value: The label that it paints.
        name: What people call it; for training.
        values: The labels of which it consists, such as all labels of a tumour; for training.
    """

    channel: int = Field(ge=0)
    value: int = Field(gt=0)
    name: str = ""
    values: tuple[Annotated[int, Field(gt=0)], ...] = ()


Intensity = ZScore | Window | Standardise


class Protocol(_Part):
    """How scans are made ready for a network, and its outputs made a label map.

    A patch of two edges says that the network is for slices: it sees pictures, or volumes slice by slice along the last axis.

    Attributes:
        modality: ``CT``, ``MR``, another DICOM modality, or what else pictures come from.
        channels: What each input channel is, such as ("FLAIR", "T1w", "T1gd", "T2w").
        orientation: Anatomical directions of the array axes that the network was trained on; pictures are never turned.
        spacing: Voxel size in mm along those axes; None takes scans as they are.
        intensity: How values are scaled, after resampling. For pictures of whole numbers its constants are shares of white,
            so that pictures of 8 and 16 bits are alike.
        patch: Window that the network sees, in voxels along those axes; two edges, of rows and columns, for slices.
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
    spacing: tuple[Positive, Positive] | tuple[Positive, Positive, Positive] | None = None
    intensity: Annotated[Intensity, Field(discriminator="kind")]
    patch: Flat | Solid
    overlap: float = Field(0.5, ge=0, lt=1)
    mirror: tuple[Literal[0, 1, 2], ...] = ()
    structures: tuple[Structure, ...]
    regions: tuple[Region, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Protocol:
        if sorted("RAS".find(letter) if letter in "RAS" else "LPI".find(letter) for letter in self.orientation) != [0, 1, 2]:
            raise ValueError(f"{self.orientation!r} is no orientation such as RAS or LPS")
        if self.spacing is not None and len(self.spacing) != len(self.patch):
            raise ValueError(f"a spacing of {len(self.spacing)} axes does not go with a patch of {len(self.patch)}")
        if self.mirror and max(self.mirror) >= len(self.patch):
            raise ValueError(f"a patch of {len(self.patch)} axes has no axis {max(self.mirror)} to mirror along")
        values = [structure.value for structure in self.structures]
        if len(set(values)) != len(values):
            raise ValueError("two structures have one value")
        if not self.regions and values != list(range(1, len(values) + 1)):
            raise ValueError("structures of an arg-max network are numbered 1, 2, ... in the order of its channels")
        if all(region.values for region in self.regions):
            painted = {value: region.value for region in self.regions for value in region.values}
            wrong = next((value for value, paint in painted.items() if value != paint), None)
            if wrong is not None:
                raise ValueError(f"regions painted in this order make {painted[wrong]} of label {wrong}")
        return self

    @property
    def spatial_dims(self) -> int:
        """2 for networks for slices, 3 for those for volumes."""
        return len(self.patch)

    @property
    def window(self) -> Solid:
        """The patch along (i, j, k): one slice thick for slices."""
        return (*self.patch, 1) if len(self.patch) == 2 else self.patch

    @property
    def outputs(self) -> int:
        """Output channels that the network must have."""
        return max(region.channel for region in self.regions) + 1 if self.regions else len(self.structures) + 1
