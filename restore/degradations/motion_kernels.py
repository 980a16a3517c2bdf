"""Blur kernels of movement and of focus: a shaken camera, a moving object, a lens out of focus.

A kernel is a (size, size) float64 array of odd size that sums to 1, rows downwards and columns to the right, and is what
a single bright point becomes (it is convolved, not correlated). Its centre of mass is its middle, so that a blurred
picture lies on the sharp one. Paths are (n, 2) arrays of rows and columns in pixels, at even steps of the exposure.

Sources: the shaken camera is the particle of Boracchi and Foi, "Modeling the Performance of Image Restoration from Motion
Blur", IEEE Transactions on Image Processing 21(8), 2012, in the form of Kupyn et al., "DeblurGAN", CVPR 2018, algorithm 1.
Here its numbers belong to a pixel of the path, not to one of 2000 steps. The roll that makes the blur vary over the
picture is that of Whyte et al., "Non-uniform Deblurring for Shaken Images", CVPR 2010.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

STEPS_PER_PIXEL = 16
"""Points of a path; between them bilinear weights are all but linear."""

Path = NDArray[np.float64]


@dataclass(frozen=True)
class ShakeKernel:
    """The path of a hand-held camera: constant speed, a direction that wanders, is pulled back, and at times turns round.

    Attributes:
        length: Of the path, in pixels.
        jitter: Standard deviation of the change of direction over one pixel of path, in radians (while small).
        pull: Pull towards the start, for each pixel of path and of distance.
        jolts: Sudden reversals to be expected along the whole path.
        seed: Of the generator of the path.
        roll: By how much the camera turns about its axis during the exposure, in radians.
        place: Where the kernel holds: rows and columns from the axis, in pixels. It matters with a roll alone.
    """

    length: float
    jitter: float
    pull: float
    jolts: float
    seed: int
    roll: float = 0.0
    place: tuple[float, float] = (0.0, 0.0)

    def path(self) -> Path:
        """Rows and columns, (n, 2), around their mean."""
        path = _shaken(self.length, self.jitter, self.pull, self.jolts, self.seed)
        if self.roll:
            turn = self.roll * np.linspace(-0.5, 0.5, len(path))
            row, column = self.place
            aside = np.stack((row * np.cos(turn) + column * np.sin(turn), column * np.cos(turn) - row * np.sin(turn)), 1)
            path = path + aside
        centred: Path = path - path.mean(0)
        return centred

    @property
    def size(self) -> int:
        """Pixels along each side: the smallest odd number that holds the path."""
        return _extent(self.path())

    def array(self) -> NDArray[np.float64]:
        """The kernel."""
        return rasterise(self.path())

    def __str__(self) -> str:
        turned = f", roll {math.degrees(self.roll):.2g}°" if self.roll else ""
        return f"camera shake {self.length:.1f} px, jitter {self.jitter:.2f}{turned}"


@dataclass(frozen=True)
class MotionKernel:
    """An object that moves evenly along a straight line or an arc of a circle.

    Attributes:
        length: Of the path, in pixels.
        angle: Of the movement in the middle of the exposure, from the direction of increasing column towards increasing
            row, in radians.
        turn: By how much the direction changes in all; 0 is a straight line, 2 pi a full circle.
    """

    length: float
    angle: float
    turn: float = 0.0

    def path(self) -> Path:
        """Rows and columns, (n, 2), around their mean."""
        count = _count(self.length)
        # Directions are taken in the middles of the steps, so that an arc keeps its length.
        direction = self.angle + self.turn * ((np.arange(count - 1) + 0.5) / (count - 1) - 0.5)
        steps = np.stack((np.sin(direction), np.cos(direction)), 1) * (self.length / (count - 1))
        path = np.concatenate((np.zeros((1, 2)), np.cumsum(steps, 0)))
        centred: Path = path - path.mean(0)
        return centred

    @property
    def size(self) -> int:
        """Pixels along each side: the smallest odd number that holds the path."""
        return _extent(self.path())

    def array(self) -> NDArray[np.float64]:
        """The kernel.

        >>> MotionKernel(2.0, 0.0).array().round(2).tolist()[1]
        [0.26, 0.48, 0.26]
        """
        return rasterise(self.path())

    def __str__(self) -> str:
        curve = f", turning {math.degrees(self.turn):.0f}°" if self.turn else ""
        return f"motion {self.length:.1f} px at {math.degrees(self.angle) % 360:.0f}°{curve}"


@dataclass(frozen=True)
class DefocusKernel:
    """A lens out of focus: a disk of even light. Pixels at the rim have the share of them that it covers.

    Attributes:
        radius: Of the disk, in pixels.
    """

    radius: float

    @property
    def size(self) -> int:
        """Pixels along each side: the smallest odd number that holds the disk."""
        return 2 * math.ceil(self.radius - 0.5) + 1 if self.radius > 0.5 else 1

    def array(self) -> NDArray[np.float64]:
        """The kernel.

        >>> DefocusKernel(1.0).array().round(3).tolist()
        [[0.025, 0.145, 0.025], [0.145, 0.318, 0.145], [0.025, 0.145, 0.025]]
        """
        fine = 64  # strips across each pixel: the chord is exact along them, their sum is good to 1e-4 of a pixel
        reach = self.size // 2
        strips = (np.arange(self.size * fine) + 0.5) / fine - reach - 0.5
        half = np.sqrt(np.clip(self.radius**2 - strips**2, 0, None))[:, None]
        left = np.arange(self.size) - reach - 0.5
        covered = np.clip(np.minimum(left + 1, half) - np.maximum(left, -half), 0, None)
        values = covered.reshape(self.size, fine, self.size).mean(1)
        values = values + values.T  # both ways of cutting into strips, so that rows and columns are alike
        kernel: NDArray[np.float64] = values / values.sum()
        return kernel

    def __str__(self) -> str:
        return f"defocus, radius {self.radius:.1f} px"


def rasterise(path: Path) -> NDArray[np.float64]:
    """The kernel of a path around its mean: each point falls on four pixels with bilinear weights.

    To convolve with it is to take the mean of the picture moved along the path with linear interpolation.

    Args:
        path: (n, 2) rows and columns from the middle, in pixels.
    """
    size = _extent(path)
    whole = np.floor(path).astype(int)
    part = path - whole
    kernel = np.zeros((size, size))
    for down in (0, 1):
        for right in (0, 1):
            weights = np.abs(1 - down - part[:, 0]) * np.abs(1 - right - part[:, 1])
            held = weights > 0  # a point on a whole number asks for no pixel beyond, which may not be there
            places = tuple((whole[held] + (down, right) + size // 2).T)
            np.add.at(kernel, places, weights[held])
    return kernel / len(path)


def _extent(path: Path) -> int:
    side: int = 2 * math.ceil(np.abs(path).max()) + 1
    return side


def _count(length: float) -> int:
    return max(2, math.ceil(length * STEPS_PER_PIXEL)) + 1


@lru_cache(maxsize=256)
def _shaken(length: float, jitter: float, pull: float, jolts: float, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    count = _count(length)
    step = length / (count - 1)
    pushes = rng.standard_normal((count, 2)) * (jitter * math.sqrt(step))
    jolted = rng.random(count) < jolts / count
    turns = rng.normal(math.pi, 0.5, count)
    start = rng.uniform(0, 2 * math.pi)
    # One pass of plain complex numbers, rows as the real part: each step needs the one before.
    place, velocity, places = 0j, complex(math.sin(start), math.cos(start)), [0j]
    for push, jolt, turn in zip((pushes[:, 0] + 1j * pushes[:, 1]).tolist()[1:], jolted[1:], turns[1:], strict=True):
        velocity += push - pull * step * place
        if jolt:
            velocity *= complex(math.cos(turn), math.sin(turn))
        velocity /= abs(velocity) or 1.0
        place += velocity * step
        places.append(place)
    path = np.array(places)
    path = np.stack((path.real, path.imag), 1)
    path.setflags(write=False)  # it is kept for the other kernels of the same shake
    return path
