"""What the YAML of a restoration benchmark says: deblurring, denoising, removal of JPEG's traces, all at the picture's own size.

A set either holds pairs of files (`Stored`), or its degraded pictures are made from the clean ones by a rule that every
reader can repeat: `Noise`, `Compressed`, `Blurred`. The rules are carried out by `restore.evaluation.degraded`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from data_specs.schema import Channel, DataSpec, Strict

Task = Literal["deblurring", "denoising", "jpeg"]


class PictureLayout(Strict):
    """One way in which picture files lie below the data set's folder.

    Attributes:
        name: The layout in words, for reports.
        clean: Pattern of the sharp, noise-free or uncompressed pictures. ``{name}`` stands for the picture's name, and
            ``{scene}`` for any folder above; the suffix is left out, any picture format will do.
        degraded: Pattern of their partners; None where they are made. Where both patterns have a ``{scene}`` it is part
            of the picture's name.
    """

    name: str
    clean: str
    degraded: str | None = None

    @field_validator("clean", "degraded")
    @classmethod
    def _one_name(cls, pattern: str | None) -> str | None:
        if pattern is None:
            return None
        if pattern.rpartition("/")[2].count("{name}") != 1 or pattern.count("{name}") != 1:
            raise ValueError(f"{pattern!r} needs {{name}} once, in its last part")
        if [part for part in pattern.split("/")[:-1] if "{scene}" in part and part != "{scene}"] or pattern.count("{scene}") > 1:
            raise ValueError(f"{pattern!r} may name one folder {{scene}}, alone between slashes")
        if pattern.startswith("/") or ".." in Path(pattern).parts:
            raise ValueError(f"{pattern!r} must stay below the data set's folder")
        return pattern


class BlockLayout(Strict):
    """Pictures as one MATLAB array (scenes, blocks, H, W, 3) uint8 in a file, as SIDD's validation blocks are.

    Attributes:
        name: The layout in words.
        clean_blocks, degraded_blocks: The files. The array's name is the file's, without suffix.
    """

    name: str
    clean_blocks: str
    degraded_blocks: str


class BoxLayout(Strict):
    """Noisy photographs in MATLAB files (HDF5) with boxes to be cut out, as DND's are; there is no clean side to compare with.

    Attributes:
        name: The layout in words.
        noisy: Pattern of the photographs. variable: Name of the array in each, (H, W, 3) float in [0, 1].
        boxes: The file with the cells ``info.boundingboxes``, one a photograph: rows of first row, first column, last row,
            last column, counted from 1.
    """

    name: str
    noisy: str
    variable: str
    boxes: str


class Stored(Strict):
    """The degraded pictures are files."""

    kind: Literal["stored"]


class Noise(Strict):
    """White Gaussian noise, made anew for each picture by ``numpy.random.RandomState(seed).normal(0, sigma / 255, (H, W, C))``.

    Added to values in [0, 1] and neither rounded nor clipped: what the network gets is no picture of 8 bits. It is the rule
    of Restormer's test scripts, which seed before every picture.
    """

    kind: Literal["noise"]
    sigmas: tuple[PositiveFloat, ...] = Field(min_length=1)
    seed: NonNegativeInt = 0


class Compressed(Strict):
    """Baseline JPEG by libjpeg(-turbo), whose quality scale and tables MATLAB's ``imwrite`` and OpenCV use too.

    Attributes:
        colour: ``luma``: the BT.601 luma plane (16 to 235, rounded) is compressed as a gray picture, and all else is done on
            it; networks of colour get three equal channels. ``rgb``: the colour picture is compressed.
        chroma: Of colour pictures, at half the resolution or whole.
    """

    kind: Literal["jpeg"]
    qualities: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(min_length=1)
    colour: Literal["luma", "rgb"]
    chroma: Literal["4:2:0", "4:4:4"] = "4:2:0"


class Blurred(Strict):
    """Convolution in linear light with kernels that ship with the set, then noise, then 8 bits; see `data_specs.kernels`.

    Attributes:
        kernels: JSON file of the kernels, beside the YAML. Picture number k, by name, is blurred by kernel k modulo their number.
        sigma: Standard deviation of the noise on the sRGB values, in 1/255.
        seed: Of the noise; picture number k has seed + k.
    """

    kind: Literal["blur"]
    kernels: Path
    sigma: NonNegativeFloat
    seed: NonNegativeInt


Degradation = Annotated[Stored | Noise | Compressed | Blurred, Field(discriminator="kind")]


class RestorationProtocol(Strict):
    """How a restored picture is scored. Values are clipped to black and white before all else.

    Attributes:
        border: Pixels left out on each side.
        channel: ``rgb`` all channels together (SSIM: their mean), ``y`` unrounded BT.601 luma; gray pictures as they are.
        values: ``8-bit``: the result is rounded as in a file; ``float``: it is not.
        ssim: ``2-d``: the window lies inside each plane; ``3-d``: colour counts as a third axis, as MATLAB's ``ssim`` has it
            and NAFNet's code, which reads higher.
        align: ``ecc``: the result is scaled in brightness and warped onto the reference before it is scored, as RealBlur
            asks; needs OpenCV.
        psnr_b: Whether PSNR-B, which counts block edges, is scored too.
    """

    border: NonNegativeInt = 0
    channel: Channel = "rgb"
    values: Literal["8-bit", "float"] = "8-bit"
    ssim: Literal["2-d", "3-d"] = "2-d"
    align: Literal["none", "ecc"] = "none"
    psnr_b: bool = False


class PublishedRestoration(Strict):
    """A score that a paper or its repository reports.

    Attributes:
        method: The catalogue's name of the network, or that of a baseline.
        level: Sigma or quality; None for sets that have none.
        psnr, ssim, psnr_b: Means over the set, dB and the unit.
        source: Where it is printed.
    """

    method: str
    level: PositiveFloat | None = None
    psnr: PositiveFloat
    ssim: float | None = Field(None, ge=-1, le=1)
    psnr_b: PositiveFloat | None = None
    source: str


class RestorationSpec(DataSpec):
    """A test set of one task at the picture's own size."""

    task: Task
    layouts: tuple[PictureLayout | BlockLayout | BoxLayout, ...] = Field(min_length=1)
    degradation: Degradation
    protocol: RestorationProtocol = RestorationProtocol()
    gray: bool = False
    blocks: PositiveInt | None = None
    published: tuple[PublishedRestoration, ...] = ()

    @property
    def levels(self) -> tuple[float | None, ...]:
        """Sigmas or qualities of the set's benchmark; one None where there is no such choice."""
        if isinstance(self.degradation, Noise):
            return self.degradation.sigmas
        if isinstance(self.degradation, Compressed):
            return self.degradation.qualities
        return (None,)

    @property
    def scored(self) -> bool:
        """Whether there is anything to score against; without, results are exported for the authors' server."""
        return not any(isinstance(layout, BoxLayout) for layout in self.layouts)

    def published_for(self, method: str | None, level: float | None) -> PublishedRestoration | None:
        """The published row of a method at one level; None if there is none."""
        return next((row for row in self.published if row.method == method and row.level == level), None)

    @model_validator(mode="after")
    def _fits_together(self) -> RestorationSpec:
        rows = [(row.method, row.level) for row in self.published]
        twice = sorted({str(row) for row in rows if rows.count(row) > 1})
        if twice:
            raise ValueError(f"published numbers given twice for {', '.join(twice)}")
        stored = isinstance(self.degradation, Stored)
        pictures = [layout for layout in self.layouts if isinstance(layout, PictureLayout)]
        if any((layout.degraded is None) == stored for layout in pictures):
            raise ValueError("layouts name degraded files just where the degradation is stored")
        if not stored and len(pictures) < len(self.layouts):
            raise ValueError("blocks and boxes are stored degradations")
        return self
