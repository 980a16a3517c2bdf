"""Makes the degraded pictures of a restoration benchmark, the same everywhere: noise, JPEG, blur with kernels that ship.

Pictures are ``(H, W, 1 or 3)`` in RGB order, uint8 or float32 with 1 as white.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray
from scipy.special import ndtri

from hybrid.errors import InputError
from restore.degradations.operations import srgb_to_linear

Picture = NDArray[np.uint8]

KERNEL_SUM = 1 << 16
"""Kernels of a benchmark are whole numbers of this sum."""
LIGHT_WHITE = 1 << 24
"""Linear light of white. A blurred value is a whole number up to 2^40, which float64 adds without error in any order."""
FINE = 16
"""Steps between two 8-bit values, in which noise is added."""


@dataclass(frozen=True)
class BenchmarkKernel:
    """A kernel with its name; `weights` is (size, size) int64 of odd size, sum `KERNEL_SUM`, what a bright point becomes."""

    name: str
    weights: NDArray[np.int64]

    @property
    def array(self) -> NDArray[np.float64]:
        """The kernel with sum 1."""
        return self.weights / KERNEL_SUM


def noisy(picture: Picture, sigma: float, seed: int) -> NDArray[np.float32]:
    """White Gaussian noise by the rule of Restormer's test scripts, neither clipped nor rounded; see `data_specs` `Noise`.

    Args:
        picture: ``(H, W, C)`` uint8.
        sigma: Standard deviation in 1/255.
        seed: Of a fresh generator, as theirs is seeded before every picture.
    """
    noise = np.random.RandomState(seed).normal(0, sigma / 255, picture.shape)
    return (picture.astype(np.float32) / np.float32(255) + noise).astype(np.float32)


def compressed(picture: Picture, quality: int, chroma: str = "4:2:0") -> Picture:
    """There and back through a JPEG file in memory; one channel makes a gray JPEG."""
    mode = "on" if chroma == "4:2:0" else "off"
    interpretation = "b-w" if picture.shape[2] == 1 else "srgb"
    image = pyvips.Image.new_from_array(np.ascontiguousarray(picture)).copy(interpretation=interpretation)
    file = image.jpegsave_buffer(Q=quality, subsample_mode=mode, keep="none")
    decoded: Picture = pyvips.Image.new_from_buffer(file, "").numpy()
    return decoded.reshape(picture.shape)


def blurred(picture: Picture, kernel: BenchmarkKernel, sigma: float, seed: int) -> Picture:
    """Blur in linear light, noise on the sRGB values, 8 bits: the same bytes on every machine.

    The model is that of `restore.degradations.operations.Blur` with ``linear``, then Gaussian noise, in whole numbers: sums
    are exact, tables stand in for the curves, and the noise comes from raw bits of PCG64 through a table of the normal
    distribution's quantiles (it ends at 4.3 standard deviations).

    Args:
        picture: ``(H, W, C)`` uint8, larger than half the kernel; it is mirrored at its edges, the edge pixel not repeated.
        kernel: Of the benchmark.
        sigma: Standard deviation of the noise in 1/255.
        seed: Of the noise.
    """
    light = _light_table()[picture]
    reach = len(kernel.weights) // 2
    padded = np.pad(light, ((reach, reach), (reach, reach), (0, 0)), "reflect")
    height, width = picture.shape[:2]
    total = np.zeros(light.shape)
    for row, column in np.argwhere(kernel.weights):
        top, left = 2 * reach - row, 2 * reach - column  # convolution: the kernel is turned round
        total += padded[top : top + height, left : left + width] * float(kernel.weights[row, column])
    fine = np.searchsorted(_fine_steps(), total.ravel(), side="right").reshape(total.shape)
    if sigma:
        words = np.random.PCG64(seed).random_raw(total.size) >> np.uint64(48)
        fine = fine + _normal_table(sigma)[words].reshape(total.shape)
    return np.clip((fine + FINE // 2) // FINE, 0, 255).astype(np.uint8)


def read_kernels(path: Path) -> tuple[BenchmarkKernel, ...]:
    """The kernels of a benchmark.

    Raises:
        InputError: The file cannot be read, or holds no kernels of whole numbers and the right sum.
    """
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["kernels"]
        kernels = tuple(BenchmarkKernel(str(each["name"]), np.array(each["weights"], np.int64)) for each in entries)
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} holds no kernels: {error}.", hint="See data_specs/kodak24-blur.json.") from error
    for kernel in kernels:
        size = kernel.weights.shape
        if len(size) != 2 or size[0] != size[1] or size[0] % 2 == 0 or kernel.weights.sum() != KERNEL_SUM:
            raise InputError(
                f"{path}: {kernel.name} is no kernel.", hint=f"Odd squares of whole numbers with the sum {KERNEL_SUM} are needed."
            )
    return kernels


def whole_kernel(array: NDArray[np.float64]) -> NDArray[np.int64]:
    """A kernel of sum 1 in whole numbers of sum `KERNEL_SUM`: what rounding down leaves goes to the largest remainders."""
    scaled = array * KERNEL_SUM
    weights = np.floor(scaled).astype(np.int64)
    missing = KERNEL_SUM - int(weights.sum())
    order = np.argsort((weights - scaled).ravel(), kind="stable")[:missing]
    weights.ravel()[order] += 1
    return weights


@cache
def _light_table() -> NDArray[np.float64]:
    """Linear light of each 8-bit value, whole numbers up to `LIGHT_WHITE`."""
    return np.rint(srgb_to_linear(np.arange(256) / 255) * LIGHT_WHITE)


@cache
def _fine_steps() -> NDArray[np.float64]:
    """Linear light times `KERNEL_SUM` halfway between neighbouring sixteenths of an 8-bit value."""
    halves = (np.arange(255 * FINE) + 0.5) / (255 * FINE)
    return np.rint(srgb_to_linear(halves) * (LIGHT_WHITE * KERNEL_SUM))


@cache
def _normal_table(sigma: float) -> NDArray[np.int64]:
    """Noise, in sixteenths of an 8-bit value, of each 16-bit word."""
    quantiles: NDArray[np.int64] = np.rint(ndtri((np.arange(1 << 16) + 0.5) / (1 << 16)) * sigma * FINE).astype(np.int64)
    return quantiles
