"""Real-world degradation, which makes the low-resolution pictures that restoration networks are trained on.

    low = REAL_WORLD_X4.apply(photograph, np.random.default_rng(0))
    low.image, [str(step) for step in low.steps]

A `Pipeline` is a list of random steps, a value that a YAML file can hold. It draws a plan from one generator, and the plan
(operations with all their numbers, the seeds of the noise among them) does the rest, so that picture and seed give the
same bytes at every call.

Source of the presets: Wang et al., "Real-ESRGAN", ICCVW 2021, with the settings of HAT's real-world models (Chen et al.,
arXiv 2309.05239).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from hybrid.errors import RequestError
from restore.degradation_operations import Operation, Pixels
from restore.degradation_operations import Resize as ResizeOperation
from restore.degradation_steps import (
    AnyOrder,
    AnyStep,
    Blur,
    CameraNoise,
    Compression,
    Frame,
    GaussianNoise,
    OneOf,
    PoissonNoise,
    Resize,
    Sinc,
    run,
)
from restore.resize import round_to_uint8


@dataclass(frozen=True)
class Degraded:
    """A degraded picture and what was done to it.

    Attributes:
        image: (h, w, 3) uint8.
        steps: The operations in order, with all their numbers.
    """

    image: NDArray[np.uint8]
    steps: tuple[Operation, ...]


class Pipeline(BaseModel):
    """Random steps from a picture to one smaller by `scale`, rounded to 8 bits at the end.

    >>> shrink = Pipeline.model_validate({"scale": 4, "steps": [{"kind": "blur"}, {"kind": "resize"}]})
    >>> shrink.apply(np.zeros((64, 48, 3), np.uint8), np.random.default_rng(0)).image.shape
    (16, 12, 3)
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    scale: Annotated[int, Field(ge=1)]
    steps: tuple[AnyStep, ...]

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> tuple[Operation, ...]:
        """The plan of one realisation for a picture of `size`, height and width.

        Raises:
            RequestError: The picture is smaller than the scale, or the steps do not lead to a size of input / scale.
        """
        output = size[0] // self.scale, size[1] // self.scale
        if 0 in output:
            raise RequestError(
                f"A picture of {size[1]} x {size[0]} pixels is smaller than the scale {self.scale}.", hint="Give a larger one."
            )
        frame = Frame(size, output)
        plan = tuple(operation for step in self.steps for operation in step.draw(rng, frame))
        sizes = [size] + [operation.size for operation in plan if isinstance(operation, ResizeOperation)]
        if sizes[-1] != output:
            raise RequestError(
                f"The degradation ends at {sizes[-1][1]} x {sizes[-1][0]} pixels, not at {output[1]} x {output[0]}.",
                hint="Add a last step `kind: resize`, which by itself leads to the size of the output.",
            )
        return plan

    def apply(self, image: NDArray, rng: np.random.Generator) -> Degraded:
        """Degrade one picture, which stays as it is.

        Args:
            image: (H, W, 3) RGB, uint8 or float32 in [0, 1]. The result has H // scale x W // scale pixels; a pair for
                training needs multiples of the scale, see `restore.resize.mod_crop`.
            rng: All randomness comes from it.

        Raises:
            RequestError: Another shape or type, or steps that do not lead to the size of the output.
        """
        pixels = _to_float(image)
        plan = self.draw((image.shape[0], image.shape[1]), rng)
        return Degraded(round_to_uint8(run(plan, pixels) * 255), plan)


def first_order(scale: int) -> Pipeline:
    """Blur, resizing, noise of an editor or a camera, and one compression, each once."""
    noise = OneOf(steps=(GaussianNoise(sigma=(1, 25)), PoissonNoise(scale=(0.05, 2.5)), CameraNoise()), probability=0.8)
    compression = OneOf(steps=(Compression(kind="jpeg"), Compression(kind="webp")))
    return Pipeline(scale=scale, steps=(_blur((0.2, 3.0)), Resize(antialias=True), noise, compression))


def second_order(scale: int) -> Pipeline:
    """The two-order model of Real-ESRGAN with HAT's settings: all happens twice, and a sinc filter rings at the end."""
    first = (
        _blur((0.2, 3.0)),
        Resize(relative_to="input", up=0.2, down=0.7, keep=0.1, factors=(0.15, 1.5)),
        OneOf(steps=(GaussianNoise(sigma=(1, 30)), PoissonNoise(scale=(0.05, 3.0)))),
        Compression(kind="jpeg", quality=(30, 95)),
    )
    second = (
        _blur((0.2, 1.5), probability=0.8),
        Resize(relative_to="output", up=0.3, down=0.4, keep=0.3, factors=(0.3, 1.2)),
        OneOf(steps=(GaussianNoise(sigma=(1, 25)), PoissonNoise(scale=(0.05, 2.5)))),
    )
    ringing = (Resize(), Sinc(cutoff=(math.pi / 3, math.pi), probability=0.8))
    end = AnyOrder(groups=(ringing, (Compression(kind="jpeg", quality=(30, 95)),)))
    return Pipeline(scale=scale, steps=(*first, *second, end))


def _blur(sigma: tuple[float, float], probability: float = 1.0) -> OneOf:
    return OneOf(steps=(Sinc(), Blur(sigma=sigma)), weights=(0.1, 0.9), probability=probability)


def _to_float(image: NDArray) -> Pixels:
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape or image.dtype not in (np.uint8, np.float32):
        raise RequestError(
            f"Cannot degrade {image.dtype} values of shape {image.shape}.", hint="Give (H, W, 3) as uint8, or float32 in [0, 1]."
        )
    if image.dtype == np.uint8:
        return image.astype(np.float32) / np.float32(255)
    if not (image.min() >= 0 and image.max() <= 1):
        raise RequestError("The values of the picture leave [0, 1].", hint="Divide by its white, and clip.")
    return image


REAL_WORLD_X4 = second_order(4)
"""From a photograph to what HAT's published x4 real-world networks were trained to undo."""

PRESETS: dict[str, Callable[[int], Pipeline]] = {"first-order": first_order, "real-world": second_order}
