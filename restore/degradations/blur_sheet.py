"""A picture sheet of blur by movement and focus: the kernels, what they make of a picture, and blur that varies over it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from restore.degradations.blur_kernels import Kernel
from restore.degradations.motion_kernels import DefocusKernel, MotionKernel, ShakeKernel
from restore.degradations.operations import Blur, Compression, Operation
from restore.degradations.sheet import Panel, draw_sheet, wrapped
from restore.degradations.steps import CameraShake, Defocus, Frame
from restore.images.resize import round_to_uint8

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DETAIL = 112
"""Pixels of the picture along each side of a panel that shows one kernel."""

KERNELS: tuple[Kernel, ...] = (
    ShakeKernel(15, 0.05, 0.0, 0.0, 1),
    ShakeKernel(25, 0.2, 0.01, 0.0, 3),
    ShakeKernel(40, 0.3, 0.02, 0.0, 4),
    ShakeKernel(40, 0.5, 0.02, 1.0, 9),
    ShakeKernel(60, 0.4, 0.01, 1.0, 6),
    MotionKernel(15, math.radians(20)),
    MotionKernel(25, math.radians(140), math.radians(90)),
    MotionKernel(30, 0.0, math.radians(200)),
    DefocusKernel(2.5),
    DefocusKernel(5.0),
)

STAR_GRID = 9
"""Bright points along each side of the picture that shows how blur varies."""


def blur_sheet(image: NDArray[np.uint8]) -> Figure:
    """Draw the kernels on the middle of a picture, and below them what varies over the whole of it.

    Args:
        image: (H, W, 3) uint8.
    """
    top, left = ((side - min(side, DETAIL)) // 2 for side in image.shape[:2])
    detail = image[top : top + DETAIL, left : left + DETAIL]
    single = [_panel(detail, Blur(kernel, linear=True), kernel.array()) for kernel in KERNELS]
    beside = [_panel(detail, Blur(KERNELS[4]), KERNELS[4].array(), "the same, sRGB values mixed: ")]
    frame = Frame((image.shape[0], image.shape[1]), (image.shape[0], image.shape[1]))
    varying: list[Panel] = []
    for step, seed in ((CameraShake(length=(15, 15), roll=(4, 4)), 3), (Defocus(radius=(0.5, 6), grid=3), 2)):
        (operation,) = step.draw(np.random.default_rng(seed), frame)
        varying += [_panel(image, operation), _stars(frame.input, operation)]
    chroma = [_panel(detail, Compression("jpeg", 10, each)) for each in ("4:2:0", "4:4:4")]
    return draw_sheet(
        [
            ("Kernels, in linear light", [Panel(detail, ("the original",)), *single, *beside]),
            (
                "Blur that varies over the picture, and what it makes of points; JPEG with chroma at half resolution, and whole",
                [*varying, *chroma],
            ),
        ]
    )


def _panel(image: NDArray[np.uint8], operation: Operation, kernel: np.ndarray | None = None, lead: str = "") -> Panel:
    blurred = operation.apply(image.astype(np.float32) / np.float32(255))
    return Panel(round_to_uint8(blurred * 255), tuple(wrapped(f"{lead}{operation}")), kernel)


def _stars(size: tuple[int, int], operation: Operation) -> Panel:
    stars = np.zeros((*size, 3), np.float32)
    rows, columns = (np.linspace(0, side - 1, 2 * STAR_GRID + 1)[1::2].astype(int) for side in size)
    stars[np.ix_(rows, columns)] = 1
    blurred = operation.apply(stars)
    return Panel(round_to_uint8(np.minimum(blurred * (2 / blurred.max()), 1) * 255), ("points, brightened",))
