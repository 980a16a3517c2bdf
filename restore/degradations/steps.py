"""Random degradations as data: what a YAML recipe holds, and how each draws the operations that it stands for.

A step has ranges and probabilities; `draw` turns it into operations with numbers, from one generator. Steps are
validated when they are made, and an unknown or impossible field is named.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeAlias, TypeVar

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from restore.degradations import operations
from restore.degradations.blur_kernels import GaussianKernel, Profile, SincKernel
from restore.degradations.motion_kernels import DefocusKernel, MotionKernel, ShakeKernel
from restore.degradations.operations import Chroma, Operation
from restore.images.interpolation import METHODS, Method

Value = TypeVar("Value", int, float)


def ordered(values: tuple[Value, Value]) -> tuple[Value, Value]:
    """The two ends of a range. Raises ValueError if the lower one exceeds the upper one."""
    if values[0] > values[1]:
        raise ValueError(f"the lower end {values[0]:g} exceeds the upper end {values[1]:g}")
    return values


def _odd(values: tuple[int, int]) -> tuple[int, int]:
    if not values[0] % 2 or not values[1] % 2:
        raise ValueError("sizes of kernels must be odd")
    return values


def _some(weights: Sequence[float]) -> Sequence[float]:
    if not sum(weights) > 0:
        raise ValueError("one weight at least must be above 0")
    return weights


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Photon = Annotated[float, Field(ge=1e-9, le=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1)]
Range = Annotated[tuple[Positive, Positive], AfterValidator(ordered)]
FromZero = Annotated[tuple[Weight, Weight], AfterValidator(ordered)]
Length = Annotated[tuple[Annotated[float, Field(gt=0, le=200)], Annotated[float, Field(gt=0, le=200)]], AfterValidator(ordered)]
Roll = Annotated[tuple[Annotated[float, Field(ge=-30, le=30)], Annotated[float, Field(ge=-30, le=30)]], AfterValidator(ordered)]
Grid = Annotated[int, Field(ge=1, le=32)]
Sizes = Annotated[tuple[Annotated[int, Field(ge=1, le=101)], Annotated[int, Field(ge=1, le=101)]],
                  AfterValidator(ordered), AfterValidator(_odd)]  # fmt: skip
Quality = Annotated[tuple[Annotated[int, Field(ge=1, le=100)], Annotated[int, Field(ge=1, le=100)]], AfterValidator(ordered)]

Shape = Literal["isotropic", "anisotropic", "generalised", "generalised-anisotropic", "plateau", "plateau-anisotropic"]

RING_SIZE, RING_CUTOFF = 13, math.pi / 3
"""Sinc kernels smaller than this draw no lower cutoff: they would not hold one ring of it (Real-ESRGAN's rule)."""


@dataclass(frozen=True)
class Frame:
    """Rows and columns at both ends of the whole pipeline; sizes of resizing refer to one of them."""

    input: tuple[int, int]
    output: tuple[int, int]


class Step(BaseModel, ABC):
    """One random degradation. With `probability` below 1 it is left out at times."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    probability: Probability = 1.0

    def draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        """The operations of one realisation, in order; all randomness comes from `rng`."""
        if self.probability < 1 and rng.random() >= self.probability:
            return ()
        return self._draw(rng, frame)

    @abstractmethod
    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]: ...

    def apply(self, image: operations.Pixels, rng: np.random.Generator) -> operations.Pixels:
        """One realisation on (H, W, 3) float32 alone, where the size of input and output is the picture's."""
        size = image.shape[0], image.shape[1]
        return run(self.draw(rng, Frame(size, size)), image)


def run(plan: Sequence[Operation], image: operations.Pixels) -> operations.Pixels:
    """Apply operations one after the other."""
    for operation in plan:
        image = operation.apply(image)
    return image


class Blur(Step):
    """Gaussian, generalised Gaussian and plateau kernels.

    Standard deviations and size (odd) are drawn evenly. An anisotropic kernel draws two and an angle. The exponent is
    drawn below or above 1 with the same chance, and evenly there.
    """

    kind: Literal["blur"] = "blur"
    shapes: Annotated[dict[Shape, Weight], Field(description="how often each shape comes, in any unit")] = {
        "isotropic": 0.45,
        "anisotropic": 0.25,
        "generalised": 0.12,
        "generalised-anisotropic": 0.03,
        "plateau": 0.12,
        "plateau-anisotropic": 0.03,
    }
    sizes: Sizes = (7, 21)
    sigma: Annotated[Range, Field(description="standard deviation in pixels")] = (0.2, 3.0)
    generalised_beta: Range = (0.5, 4.0)
    plateau_beta: Range = (1.0, 2.0)

    @model_validator(mode="after")
    def _shapes_have_weight(self) -> Blur:
        _some(list(self.shapes.values()))
        return self

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        shape = list(self.shapes)[_choice(rng, list(self.shapes.values()))]
        size = _odd_size(rng, self.sizes)
        first = second = float(rng.uniform(*self.sigma))
        angle = 0.0
        if shape.endswith("anisotropic"):
            second, angle = float(rng.uniform(*self.sigma)), float(rng.uniform(0, math.pi))
        profile: Profile = "plateau" if shape.startswith("plateau") else "gaussian"
        beta = 1.0
        if shape.startswith(("generalised", "plateau")):
            beta = _beta(rng, self.plateau_beta if profile == "plateau" else self.generalised_beta)
        return (operations.Blur(GaussianKernel(size, (first, second), angle, beta, profile)),)


class Sinc(Step):
    """The ringing low-pass. Kernels under 13 pixels draw their cutoff from pi / 3 on."""

    kind: Literal["sinc"] = "sinc"
    sizes: Sizes = (7, 21)
    cutoff: Annotated[Range, Field(description="radians a pixel")] = (math.pi / 5, math.pi)

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        size = _odd_size(rng, self.sizes)
        low, high = self.cutoff
        if size < RING_SIZE:
            low = min(max(low, RING_CUTOFF), high)
        return (operations.Blur(SincKernel(size, float(rng.uniform(low, high)))),)


class CameraShake(Step):
    """The blur of a hand-held camera; see `restore.degradations.motion_kernels.ShakeKernel`. All numbers are drawn evenly.

    With a roll, `grid` x `grid` kernels of the one movement hold over the picture, the camera's axis being its middle: the
    step then has to come before all resizing.
    """

    kind: Literal["camera-shake"] = "camera-shake"
    length: Annotated[Length, Field(description="of the path, in pixels")] = (5.0, 40.0)
    jitter: Annotated[FromZero, Field(description="change of direction over a pixel, in radians")] = (0.05, 0.5)
    pull: FromZero = (0.0, 0.02)
    jolts: Annotated[FromZero, Field(description="sudden reversals along the path")] = (0.0, 1.0)
    roll: Annotated[Roll, Field(description="turn of the camera, in degrees")] = (0.0, 0.0)
    grid: Grid = 5
    linear: Annotated[bool, Field(description="in linear light")] = True

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        length, jitter, pull, jolts = (float(rng.uniform(*each)) for each in (self.length, self.jitter, self.pull, self.jolts))
        roll = math.radians(rng.uniform(*self.roll))
        kernel = ShakeKernel(length, jitter, pull, jolts, _seed(rng), roll)
        if not roll:
            return (operations.Blur(kernel, self.linear),)
        rows, columns = ((np.linspace(-0.5, 0.5, self.grid) * (side - 1)).tolist() for side in frame.input)
        kernels = tuple(tuple(replace(kernel, place=(row, column)) for column in columns) for row in rows)
        return (operations.VaryingBlur(kernels, self.linear),)


class ObjectMotion(Step):
    """Even movement along a line, or along an arc of a circle, in any direction."""

    kind: Literal["object-motion"] = "object-motion"
    length: Annotated[Length, Field(description="of the path, in pixels")] = (5.0, 40.0)
    turn: Annotated[FromZero, Field(description="change of direction, in degrees, to either side")] = (0.0, 90.0)
    linear: Annotated[bool, Field(description="in linear light")] = True

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        length, angle, turn = rng.uniform(*self.length), rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(*self.turn))
        kernel = MotionKernel(float(length), float(angle), turn if rng.random() < 0.5 else -turn)
        return (operations.Blur(kernel, self.linear),)


class Defocus(Step):
    """A disk of a radius drawn evenly. With a `grid` above 1 the radius changes over the picture, as depth does."""

    kind: Literal["defocus"] = "defocus"
    radius: Annotated[Length, Field(description="of the disk, in pixels")] = (1.0, 8.0)
    grid: Grid = 1
    linear: Annotated[bool, Field(description="in linear light")] = True

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        radii = rng.uniform(*self.radius, (self.grid, self.grid)).tolist()
        kernels = tuple(tuple(DefocusKernel(radius) for radius in row) for row in radii)
        if self.grid == 1:
            return (operations.Blur(kernels[0][0], self.linear),)
        return (operations.VaryingBlur(kernels, self.linear),)


class Resize(Step):
    """Resizing up, down or not, by a factor of the size at one end of the pipeline; by itself, to exactly that size.

    Factors are drawn evenly from (least, 1) or (1, greatest), the method evenly from those given.
    """

    kind: Literal["resize"] = "resize"
    relative_to: Literal["input", "output"] = "output"
    up: Weight = 0.0
    down: Weight = 0.0
    keep: Weight = 1.0
    factors: Range = (1.0, 1.0)
    methods: Annotated[tuple[Method, ...], Field(min_length=1)] = METHODS
    antialias: Annotated[bool, Field(description="see `restore.images.interpolation.resize`")] = False

    @model_validator(mode="after")
    def _factors_embrace_one(self) -> Resize:
        _some((self.up, self.down, self.keep))
        if not self.factors[0] <= 1 <= self.factors[1]:
            raise ValueError("factors must reach from at most 1 to at least 1")
        return self

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        least, greatest = self.factors
        low, high = ((1.0, greatest), (least, 1.0), (1.0, 1.0))[_choice(rng, (self.up, self.down, self.keep))]
        factor = float(rng.uniform(low, high))
        base = frame.input if self.relative_to == "input" else frame.output
        method = self.methods[int(rng.integers(len(self.methods)))]
        height, width = (max(1, int(side * factor)) for side in base)
        return (operations.Resize((height, width), method, self.antialias),)


class Shrink(Step):
    """Resizing to the whole part of the input's sides divided by a number drawn evenly; below 1 it enlarges."""

    kind: Literal["shrink"] = "shrink"
    divisors: Range
    method: Method = "bilinear"

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        divisor = float(rng.uniform(*self.divisors))
        height, width = (max(1, int(side / divisor)) for side in frame.input)
        return (operations.Resize((height, width), self.method),)


class Haze(Step):
    """Haze; what comes through is drawn evenly."""

    kind: Literal["haze"] = "haze"
    clear: Annotated[tuple[Photon, Photon], AfterValidator(ordered), Field(description="share that comes through")] = (0.75, 0.95)

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        return (operations.Haze(float(rng.uniform(*self.clear))),)


class GaussianNoise(Step):
    """White noise of a strength drawn evenly; both ends the same for a known one."""

    kind: Literal["gaussian-noise"] = "gaussian-noise"
    sigma: Annotated[FromZero, Field(description="standard deviation in units of 1/255")] = (1.0, 30.0)
    gray: Annotated[Probability, Field(description="how often all channels get the same noise")] = 0.4
    clip: Annotated[bool, Field(description="back into [0, 1]")] = True

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        sigma, gray = float(rng.uniform(*self.sigma)), bool(rng.random() < self.gray)
        return (operations.GaussianNoise(sigma, gray, _seed(rng), self.clip),)


class PoissonNoise(Step):
    """Noise that grows with brightness; see `restore.degradations.operations.PoissonNoise`."""

    kind: Literal["poisson-noise"] = "poisson-noise"
    scale: Range = (0.05, 3.0)
    gray: Annotated[Probability, Field(description="how often all channels get the noise of the luma")] = 0.4

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        return (operations.PoissonNoise(float(rng.uniform(*self.scale)), bool(rng.random() < self.gray), _seed(rng)),)


class CameraNoise(Step):
    """Poisson-Gaussian noise in linear light, from bright day to a dark room.

    The logarithm of `shot` is drawn evenly. Read noise follows it as it does in real cameras: the logarithm of its
    variance is normal around 2.18 ln(shot) + 1.20 with deviation 0.26 (Brooks et al., "Unprocessing Images for Learned
    Raw Denoising", CVPR 2019).
    """

    kind: Literal["camera-noise"] = "camera-noise"
    shot: Annotated[
        tuple[Photon, Photon], AfterValidator(ordered), Field(description="linear value of one photon, white being 1")
    ] = (1e-4, 0.012)

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        log_shot = rng.uniform(*np.log(self.shot))
        log_read = rng.normal(2.18 * log_shot + 1.20, 0.26)
        return (operations.CameraNoise(math.exp(log_shot), math.exp(log_read), _seed(rng)),)


class Compression(Step):
    """JPEG or WebP of a quality drawn evenly from whole numbers, both ends included."""

    kind: Literal["jpeg", "webp"]
    quality: Quality = (30, 95)
    chroma: Annotated[tuple[Chroma, ...], Field(min_length=1, description="drawn evenly; WebP has 4:2:0 alone")] = ("4:2:0",)

    @model_validator(mode="after")
    def _held_by_the_format(self) -> Compression:
        if self.kind == "webp" and "4:4:4" in self.chroma:
            raise ValueError("WebP has no 4:4:4")
        return self

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        quality = int(rng.integers(self.quality[0], self.quality[1], endpoint=True))
        # One choice takes no draw, so that recipes from before there were two give the same pictures.
        chroma = self.chroma[int(rng.integers(len(self.chroma)))] if len(self.chroma) > 1 else self.chroma[0]
        return (operations.Compression(self.kind, quality, chroma),)


class OneOf(Step):
    """One of several steps, drawn by weight (all the same if none are given)."""

    kind: Literal["one-of"] = "one-of"
    steps: Annotated[tuple[AnyStep, ...], Field(min_length=1)]
    weights: Annotated[tuple[Weight, ...], AfterValidator(_some)] | None = None

    @model_validator(mode="after")
    def _a_weight_for_each(self) -> OneOf:
        if self.weights is not None and len(self.weights) != len(self.steps):
            raise ValueError(f"there are {len(self.steps)} steps and {len(self.weights)} weights")
        return self

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        return self.steps[_choice(rng, self.weights or [1.0] * len(self.steps))].draw(rng, frame)


class AnyOrder(Step):
    """Groups of steps whose order among one another is drawn; inside a group it is kept."""

    kind: Literal["any-order"] = "any-order"
    groups: Annotated[tuple[tuple[AnyStep, ...], ...], Field(min_length=2)]

    def _draw(self, rng: np.random.Generator, frame: Frame) -> tuple[Operation, ...]:
        order = rng.permutation(len(self.groups))
        return tuple(operation for k in order for step in self.groups[k] for operation in step.draw(rng, frame))


AnyStep: TypeAlias = Annotated[
    Blur
    | Sinc
    | CameraShake
    | ObjectMotion
    | Defocus
    | Resize
    | Shrink
    | Haze
    | GaussianNoise
    | PoissonNoise
    | CameraNoise
    | Compression
    | OneOf
    | AnyOrder,
    Field(discriminator="kind"),
]
OneOf.model_rebuild()
AnyOrder.model_rebuild()


def _choice(rng: np.random.Generator, weights: Sequence[float]) -> int:
    shares = np.asarray(weights, float)
    return int(rng.choice(len(shares), p=shares / shares.sum()))


def _odd_size(rng: np.random.Generator, sizes: tuple[int, int]) -> int:
    return 2 * int(rng.integers(sizes[0] // 2, sizes[1] // 2, endpoint=True)) + 1


def _beta(rng: np.random.Generator, limits: tuple[float, float]) -> float:
    low, high = limits
    if low <= 1 <= high:
        low, high = (low, 1.0) if rng.random() < 0.5 else (1.0, high)
    return float(rng.uniform(low, high))


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))
