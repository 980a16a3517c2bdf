"""Degradation, which makes the low-resolution, blurred, noisy and compressed pictures that networks are trained on.

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
from restore.degradations.operations import Chroma, Operation, Pixels
from restore.degradations.operations import Resize as ResizeOperation
from restore.degradations.steps import (
    AnyOrder,
    AnyStep,
    Blur,
    CameraNoise,
    CameraShake,
    Compression,
    Defocus,
    Frame,
    GaussianNoise,
    ObjectMotion,
    OneOf,
    PoissonNoise,
    Resize,
    Sinc,
    run,
)
from restore.images.resize import round_to_uint8


@dataclass(frozen=True)
class Degraded:
    """A degraded picture and what was done to it.

    Attributes:
        image: (h, w, 3) uint8.
        steps: The operations in order, with all their numbers.
        values: (h, w, 3) float32, `image` before it was rounded and clipped.
    """

    image: NDArray[np.uint8]
    steps: tuple[Operation, ...]
    values: Pixels


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

    def apply(self, image: np.ndarray, rng: np.random.Generator) -> Degraded:
        """Degrade one picture, which stays as it is.

        Args:
            image: (H, W, 3) RGB, uint8 or float32 in [0, 1]. The result has H // scale x W // scale pixels; a pair for
                training needs multiples of the scale, see `restore.images.resize.mod_crop`.
            rng: All randomness comes from it.

        Raises:
            RequestError: Another shape or type, or steps that do not lead to the size of the output.
        """
        pixels = to_float(image)
        plan = self.draw((image.shape[0], image.shape[1]), rng)
        values = run(plan, pixels)
        return Degraded(round_to_uint8(values * 255), plan, values)


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


def motion_blur(roll: float = 0.5, noise: float = 2.0) -> Pipeline:
    """A shaken camera or a moving object, at times out of focus, in linear light, with faint noise that is always there.

    Args:
        roll: Greatest turn of the camera to either side, in degrees; 0 is the same blur all over the picture.
        noise: Greatest standard deviation, in 1/255.
    """
    shake = CameraShake(roll=(-roll, roll))
    movement = OneOf(steps=(shake, ObjectMotion(), Defocus(radius=(1, 5))), weights=(0.7, 0.2, 0.1))
    return Pipeline(scale=1, steps=(movement, GaussianNoise(sigma=(0, noise), gray=0)))


def gaussian_noise(sigma: float | tuple[float, float] = (0.0, 50.0), clip: bool = False) -> Pipeline:
    """White noise on each channel, as colour denoisers are trained and judged with: in `Degraded.values`, not clipped.

    Args:
        sigma: Standard deviation in 1/255; a range for networks that are not told (blind), drawn evenly.
        clip: Back into [0, 1].
    """
    between = sigma if isinstance(sigma, tuple) else (sigma, sigma)
    return Pipeline(scale=1, steps=(GaussianNoise(sigma=between, gray=0, clip=clip),))


def jpeg(quality: int | tuple[int, int] = (10, 95), chroma: tuple[Chroma, ...] = ("4:2:0", "4:4:4")) -> Pipeline:
    """One JPEG compression, of a quality or a range of them."""
    between = quality if isinstance(quality, tuple) else (quality, quality)
    return Pipeline(scale=1, steps=(Compression(kind="jpeg", quality=between, chroma=chroma),))


def _blur(sigma: tuple[float, float], probability: float = 1.0) -> OneOf:
    return OneOf(steps=(Sinc(), Blur(sigma=sigma)), weights=(0.1, 0.9), probability=probability)


def to_float(image: np.ndarray) -> Pixels:
    """(H, W, 3) uint8, or float32 in [0, 1], as float32 in [0, 1].

    Raises:
        RequestError: It is neither.
    """
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
"""Those that shrink, by a scale."""

SAME_SIZE_PRESETS: dict[str, Callable[[], Pipeline]] = {
    "motion-blur": motion_blur,
    "gaussian-noise": gaussian_noise,
    "jpeg": jpeg,
}
"""Those of scale 1, for deblurring, denoising and the removal of JPEG's traces."""
