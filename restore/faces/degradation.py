"""Degradation of aligned faces, as RestoreFormer and RestoreFormer++ were trained with.

    low = extending().apply(face, np.random.default_rng(0))
    low.image, low.target, low.lines()

What happens to the sharp face too (mirrored, shifted, in gray) is drawn beside what happens to the degraded one alone. The
plan of numbers does the rest, so that face and seed give the same pair at every call. Networks take `image / 127.5 - 1`.

Sources: Wang et al., "RestoreFormer", CVPR 2022, after GFPGAN (Wang et al., CVPR 2021); the extending degradation model of
"RestoreFormer++", TPAMI 2023. Lengths are those for faces of 512 pixels; for other sizes the presets scale them, so that a
face loses the same share of its detail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from hybrid.errors import RequestError
from restore.degradations.operations import LUMA, Operation, Pixels
from restore.degradations.pipeline import to_float
from restore.degradations.steps import (
    AnyStep,
    Blur,
    Compression,
    Frame,
    GaussianNoise,
    Haze,
    Probability,
    Resize,
    Shrink,
    ordered,
    run,
)
from restore.images.resize import round_to_uint8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PUBLISHED_SIZE = 512
Edges = Annotated[tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]], AfterValidator(ordered)]


@dataclass(frozen=True)
class Square:
    """A square of the picture: its first row and column, and its edge."""

    top: int
    left: int
    edge: int

    def __str__(self) -> str:
        return f"square of {self.edge} px at {self.left}, {self.top}"


@dataclass(frozen=True)
class FacePlan:
    """One realisation, with all its numbers.

    Attributes:
        mirrored: Left and right change places.
        shift: Rows down and columns to the right by which the face moves; what comes in is mirrored in the edge.
        versions: Operations of the degraded face; of two versions where they are uneven.
        square: Where the first version lies upon the second; None for one version.
        gray: No colours, in the sharp face either.
    """

    mirrored: bool
    shift: tuple[int, int]
    versions: tuple[tuple[Operation, ...], ...]
    square: Square | None
    gray: bool

    def moved(self, points: np.ndarray, width: int) -> np.ndarray:
        """Where points (N, 2), x and y in pixels of the given face, lie in the pair; a left eye stays the first of its list."""
        x, y = np.asarray(points, float).T
        x = width - 1 - x if self.mirrored else x
        return np.stack((x + self.shift[1], y + self.shift[0]), 1)

    def lines(self) -> list[str]:
        """What is done, in words."""
        both = ["mirrored"] * self.mirrored + ["in gray"] * self.gray
        if any(self.shift):
            both.append(f"shifted by {self.shift[1]}, {self.shift[0]}")
        steps = [str(operation) for operation in self.versions[0]]
        if self.square is not None:
            steps = [*steps, f"in a {self.square}; beside it:", *map(str, self.versions[1])]
        return both + steps


@dataclass(frozen=True)
class FacePair:
    """A degraded face and the sharp one that belongs to it.

    Attributes:
        image: (H, W, 3) uint8, the degraded face at the sharp one's size.
        target: (H, W, 3) float32 in [0, 1], not rounded.
        plan: What was done.
    """

    image: NDArray[np.uint8]
    target: Pixels
    plan: FacePlan


class FaceDegradation(BaseModel):
    """A random degradation of aligned faces that keeps their size; a value that a YAML file can hold.

    Attributes:
        steps: What happens to the degraded face; the last leads back to the size of the given one. None leave it as it is.
        mirror, gray: How often the whole pair is mirrored, or loses its colours.
        shift: How often the whole pair is moved, by at most `reach` pixels along each axis.
        uneven: How often a square of one realisation is laid upon another, with a hard border.
        square: Least and greatest edge of that square.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: tuple[AnyStep, ...] = ()
    mirror: Probability = 0.5
    shift: Probability = 0.0
    reach: Annotated[int, Field(ge=0)] = 32
    uneven: Probability = 0.0
    square: Edges = (128, 256)
    gray: Probability = 0.0

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> FacePlan:
        """The plan for a face of `size`, rows and columns.

        Raises:
            RequestError: The face is smaller than the largest square, or no larger than the shift reaches.
        """
        if min(size) < self.square[1] * (self.uneven > 0) or min(size) <= self.reach * (self.shift > 0):
            raise RequestError(
                f"A face of {size[1]} x {size[0]} pixels is too small to be shifted by {self.reach}, "
                f"or for squares of {self.square[1]}.",
                hint="Give larger faces, or a degradation for their size, such as extending(256).",
            )
        mirrored, shift = bool(rng.random() < self.mirror), (0, 0)
        if rng.random() < self.shift:
            down, right = rng.integers(-self.reach, self.reach, 2, endpoint=True)
            shift = int(down), int(right)
        square = None
        if rng.random() < self.uneven:
            edge = int(rng.integers(*self.square, endpoint=True))
            top, left = (int(rng.integers(side - edge, endpoint=True)) for side in size)
            square = Square(top, left, edge)
        gray = bool(rng.random() < self.gray)
        frame = Frame(size, size)
        versions = [tuple(o for step in self.steps for o in step.draw(rng, frame)) for _ in range(2 if square else 1)]
        return FacePlan(mirrored, shift, tuple(versions), square, gray)

    def apply(self, face: np.ndarray, rng: np.random.Generator) -> FacePair:
        """Degrade one face, which stays as it is.

        Args:
            face: (H, W, 3) RGB, uint8 or float32 in [0, 1], aligned and sharp.
            rng: All randomness comes from it.

        Raises:
            RequestError: Another shape or type, a face that is too small, or steps that do not lead back to its size.
        """
        plan = self.draw((face.shape[0], face.shape[1]), rng)
        target = _shifted(to_float(face)[:, :: -1 if plan.mirrored else 1], plan.shift)
        versions = [run(operations, target) for operations in plan.versions]
        if any(version.shape != target.shape for version in versions):
            raise RequestError(
                "The degradation does not end at the size of the face.", hint="Add a last step `kind: resize`, which leads there."
            )
        low = versions[-1]
        if plan.square is not None:
            rows = slice(plan.square.top, plan.square.top + plan.square.edge)
            columns = slice(plan.square.left, plan.square.left + plan.square.edge)
            low = low.copy()
            low[rows, columns] = versions[0][rows, columns]
        if plan.gray:
            low, target = _in_gray(low), _in_gray(target)
        return FacePair(round_to_uint8(low * 255), np.ascontiguousarray(target), plan)


def base(size: int = PUBLISHED_SIZE) -> FaceDegradation:
    """RestoreFormer's, GFPGAN's: wide blur, shrinking by up to eight, noise, JPEG, enlarged again.

    Without mirroring, `base(size).model_copy(update={"mirror": 0})`, it is the degradation of both papers' validation.
    """
    return FaceDegradation(steps=_steps(size, haze=0))


def extending(size: int = PUBLISHED_SIZE) -> FaceDegradation:
    """RestoreFormer++'s extending degradation model: haze, shift, uneven degradation and gray, each at times, over `base`.

    The paper's exposure step is left out: its published configuration has it off.
    """
    square, steps = (_scaled(128, size), _scaled(256, size)), _steps(size, haze=0.008)
    return FaceDegradation(steps=steps, shift=0.2, reach=_scaled(32, size), uneven=0.1, square=square, gray=0.008)


def sharp(size: int = PUBLISHED_SIZE) -> FaceDegradation:
    """What the auto-encoder of the dictionary learns from: faces mirrored, shifted or in gray at times, and not degraded."""
    return FaceDegradation(shift=0.2, reach=_scaled(32, size), gray=0.008)


FACE_PRESETS: dict[str, Callable[[int], FaceDegradation]] = {"face-base": base, "face-extending": extending, "face-sharp": sharp}
"""By the edge of the faces."""


def face_sheet(faces: Sequence[NDArray[np.uint8]], seeds: Sequence[int], degradation: FaceDegradation) -> Figure:
    """Draw each face beside what it is degraded to, with what was done.

    Args:
        faces: (H, W, 3) uint8, taken in turn.
        seeds: One pair for each.
    """
    from restore.degradations.sheet import Panel, draw_sheet, wrapped

    panels = []
    for place, seed in enumerate(seeds):
        pair = degradation.apply(faces[place % len(faces)], np.random.default_rng(seed))
        lines = [part for line in pair.plan.lines() for part in wrapped(line)]
        panels += [Panel(round_to_uint8(pair.target * 255), ("sharp",)), Panel(pair.image, (f"seed {seed}", *lines))]
    return draw_sheet([("Pairs of faces, drawn at random", panels)])


def _steps(size: int, haze: float) -> tuple[AnyStep, ...]:
    share = size / PUBLISHED_SIZE
    middle = 2 * round(20 * share)
    shrink = Shrink(divisors=(0.8, max(0.8, 8 * share)))
    blur = Blur(
        shapes={"isotropic": 0.5, "anisotropic": 0.5},
        sizes=(max(1, middle - 1), middle + 1),
        sigma=(0.1 * share, 10 * share),
    )
    noise, compression = GaussianNoise(sigma=(0, 20), gray=0), Compression(kind="jpeg", quality=(60, 100))
    return (blur, *((Haze(probability=haze),) if haze else ()), shrink, noise, compression, Resize(methods=("bilinear",)))


def _scaled(length: int, size: int) -> int:
    return max(1, round(length * size / PUBLISHED_SIZE))


def _shifted(image: Pixels, shift: tuple[int, int]) -> Pixels:
    """The picture moved down and to the right; what comes in is mirrored in the edge, the edge pixel repeated."""
    if not any(shift):
        return image
    down, right = shift
    padded = np.pad(image, ((abs(down),) * 2, (abs(right),) * 2, (0, 0)), "symmetric")
    top, left = abs(down) - down, abs(right) - right
    return padded[top : top + image.shape[0], left : left + image.shape[1]]


def _in_gray(image: Pixels) -> Pixels:
    return np.repeat((image @ LUMA)[..., None], 3, axis=2)
