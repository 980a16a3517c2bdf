"""What a data set's YAML says: where its files are from, how they lie, how it is scored, what papers report.

Sets of scans are described by `data_specs.segmentation_schema`. One file a data set. Unknown keys are refused, so that a
slip of the pen is found when the file is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

Channel = Literal["y", "rgb"]
Mode = Literal["double", "uint8", "uint8-legacy"]
"""Ways of MATLAB's bicubic shrinking; see `restore.images.resize`."""


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(Strict):
    """Where the files are from, in words, and an address if there is one."""

    where: str
    url: str | None = None


class Layout(Strict):
    """One way in which the files lie below the data set's folder.

    Attributes:
        name: The layout in words, for reports.
        hr: Pattern of the high-resolution pictures. ``{name}`` stands for the picture's name and ``{scale}`` for the
            scale; the suffix is left out, any picture format will do.
        lr: Pattern of the low-resolution pictures; None: made from the high-resolution ones.
        scales: The scales for which the files lie so; None: all.
    """

    name: str
    hr: str
    lr: str | None = None
    scales: tuple[PositiveInt, ...] | None = None

    @field_validator("hr", "lr")
    @classmethod
    def _one_name(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        if pattern.rpartition("/")[2].count("{name}") != 1 or pattern.count("{name}") != 1:
            raise ValueError(f"{pattern!r} needs {{name}} once, in its last part")
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise ValueError(f"{pattern!r} must stay below the data set's folder")
        return pattern


class Protocol(Strict):
    """How the set is scored in the papers; ``scale`` stands for the scale of the run.

    Attributes:
        border: Pixels left out on each side.
        channel: Scored channel: ``y`` luma, ``rgb`` all three.
        crop: The high-resolution picture is cut to multiples of this before it is shrunk.
        lr: Resize mode in which missing low-resolution pictures are made.
    """

    border: NonNegativeInt | Literal["scale"] = "scale"
    channel: Channel = "y"
    crop: PositiveInt | Literal["scale"] = "scale"
    lr: Mode = "uint8"

    def border_at(self, scale: int) -> int:
        return scale if self.border == "scale" else self.border

    def crop_at(self, scale: int) -> int:
        return scale if self.crop == "scale" else self.crop


class Published(Strict):
    """A score that a paper or its repository reports: mean PSNR in dB and mean SSIM over the set."""

    method: str
    scale: PositiveInt
    psnr: PositiveFloat
    ssim: float | None = Field(None, ge=-1, le=1)
    source: str


class DataSpec(Strict):
    """What every data set says of itself.

    Attributes:
        name: Name to type, the file's name without suffix.
        title: Name in print.
        task: Selects the kind of description; see `data_specs.KINDS`.
        citation: The paper that introduces the set.
        images: Number of pictures, or of scans with a reference; None: not fixed.
        folders: Names of the set's folder below the user's data folder, capitals aside.
        pictures: Folder of the pictures themselves if they lie beside the YAML file.
        checksums: A file beside the YAML in the format of ``sha256sum``, listing known good files.
    """

    name: str
    title: str
    task: str
    source: Source
    licence: str
    citation: str
    notes: tuple[str, ...] = ()
    images: PositiveInt | None
    folders: tuple[str, ...] = ()
    pictures: Path | None = None
    checksums: Path | None


class SuperResolutionSpec(DataSpec):
    """A test set of high-resolution pictures, with or without their low-resolution partners."""

    task: Literal["super-resolution"]
    scales: tuple[PositiveInt, ...]
    layouts: tuple[Layout, ...] = Field(min_length=1)
    protocol: Protocol = Protocol()
    published: tuple[Published, ...] = ()

    @model_validator(mode="after")
    def _no_row_twice(self) -> SuperResolutionSpec:
        rows = [(row.method, row.scale) for row in self.published]
        twice = sorted({row for row in rows if rows.count(row) > 1})
        if twice:
            raise ValueError(f"published numbers given twice for {twice}")
        return self

    def published_for(self, method: str | None, scale: int) -> Published | None:
        """The published row of a method, by its key in the table; None if there is none."""
        return next((row for row in self.published if row.method == method and row.scale == scale), None)
