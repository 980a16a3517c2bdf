"""What the YAML of a face benchmark says: aligned faces, degraded ones as files or made from sharp ones by a seeded rule."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from data_specs.schema import DataSpec, Strict


class FaceLayout(Strict):
    """One way in which the files lie below the data set's folder.

    Attributes:
        name: The layout in words, for reports.
        degraded, clean: Patterns of the two sides; ``{name}`` stands for the picture's name, the suffix is left out. Without a
            degraded side it is made, without a clean one there is no reference.
    """

    name: str
    degraded: str | None = None
    clean: str | None = None

    @field_validator("degraded", "clean")
    @classmethod
    def _one_name(cls, pattern: str | None) -> str | None:
        if pattern is not None and (pattern.rpartition("/")[2].count("{name}") != 1 or pattern.count("{name}") != 1):
            raise ValueError(f"{pattern!r} needs {{name}} once, in its last part")
        if pattern is not None and (pattern.startswith("/") or ".." in Path(pattern).parts):
            raise ValueError(f"{pattern!r} must stay below the data set's folder")
        return pattern

    @model_validator(mode="after")
    def _some_side(self) -> FaceLayout:
        if self.degraded is None and self.clean is None:
            raise ValueError("a layout names degraded faces, clean ones, or both")
        return self


class PublishedFaces(Strict):
    """Scores that a paper or its repository reports.

    Attributes:
        method: The catalogue's name of the network.
        fid, psnr, ssim, lpips: Means over the set; FID of the set.
        identity: Mean angle of ArcFace's features in radians, as the authors' script has it.
        source: Where it is printed, and whether that was checked.
    """

    method: str
    fid: PositiveFloat | None = None
    psnr: PositiveFloat | None = None
    ssim: float | None = Field(None, ge=-1, le=1)
    lpips: float | None = Field(None, ge=0)
    identity: float | None = Field(None, ge=0)
    source: str


class FaceSpec(DataSpec):
    """A test set of aligned faces.

    Attributes:
        size: Edge of the faces in pixels.
        layouts: How the files may lie.
        seed: Where degraded faces are made: face number k, by name, is degraded by RestoreFormer's validation rule with seed + k.
        fid: What the restored faces are compared with: the set's own ``references``, or the statistics of ``ffhq-512``.
        published: What papers report.
    """

    task: Literal["face"]
    size: PositiveInt
    layouts: tuple[FaceLayout, ...] = Field(min_length=1)
    seed: NonNegativeInt | None = None
    fid: Literal["references", "ffhq-512"] = "ffhq-512"
    published: tuple[PublishedFaces, ...] = ()

    @model_validator(mode="after")
    def _fits_together(self) -> FaceSpec:
        methods = [row.method for row in self.published]
        if twice := sorted({method for method in methods if methods.count(method) > 1}):
            raise ValueError(f"published numbers given twice for {', '.join(twice)}")
        if any((layout.degraded is None) != (self.seed is not None) for layout in self.layouts):
            raise ValueError("a seed is given just where degraded faces are made")
        if self.fid == "references" and any(layout.clean is None for layout in self.layouts):
            raise ValueError("fid: references needs clean faces")
        return self

    def published_for(self, method: str | None) -> PublishedFaces | None:
        """The published row of a method, by its key in the table; None if there is none."""
        return next((row for row in self.published if row.method == method), None)
