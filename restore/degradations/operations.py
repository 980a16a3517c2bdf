"""The operations that spoil a picture, each with all its numbers: applied to the same picture it gives the same values.

Pictures are (H, W, 3) float32 RGB with 1 as white. Filters and bicubic resizing may leave [0, 1]; noise and compression
come back inside. `restore.degradations.pipeline` draws operations at random; a list of them is a full record of what was done.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pyvips
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from hybrid.errors import RequestError
from restore.degradations.blur_kernels import Kernel
from restore.images import interpolation
from restore.images.resize import round_to_uint8

Pixels = NDArray[np.float32]
Chroma = Literal["4:2:0", "4:4:4"]

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of full-range BT.601 luma, the gray of JPEG."""


class Operation(Protocol):
    """What is done to a picture. `str()` is a short label for a sheet."""

    def apply(self, image: Pixels) -> Pixels:
        """Return a new (H, W, 3) float32 picture; the input stays as it is."""
        ...


@dataclass(frozen=True)
class Blur:
    """Convolution with a kernel; the picture is mirrored at its edges, the edge pixel not repeated.

    The published recipes pad their kernels with zeros to 21 pixels, to stack them in a batch; the result is the same.

    Attributes:
        kernel: What a point becomes.
        linear: Mix light, as lenses and sensors do, instead of sRGB values; the result is then inside [0, 1].
    """

    kernel: Kernel
    linear: bool = False

    def apply(self, image: Pixels) -> Pixels:
        if self.linear:
            return _to_srgb(Blur(self.kernel).apply(_to_light(image)))
        reach = self.kernel.size // 2
        padded = np.pad(image, ((reach, reach), (reach, reach), (0, 0)), "reflect")
        return _convolve(padded, self.kernel.array())

    def __str__(self) -> str:
        return str(self.kernel)


@dataclass(frozen=True)
class VaryingBlur:
    """Blur that changes over the picture: at each pixel the kernel is the bilinear mean of four out of a grid.

    The outermost kernels lie on the picture's outermost pixels, the others evenly between; edges as in `Blur`. It is what
    one gets by mixing whole blurred pictures, done where each has a part.

    Source: Nagy and O'Leary, "Restoring Images Degraded by Spatially Variant Blur", SIAM Journal on Scientific Computing
    19(4), 1998, with the linear weights.

    Attributes:
        kernels: Rows of the grid, all equally long.
        linear: As in `Blur`.
    """

    kernels: tuple[tuple[Kernel, ...], ...]
    linear: bool = False

    def apply(self, image: Pixels) -> Pixels:
        if self.linear:
            return _to_srgb(VaryingBlur(self.kernels).apply(_to_light(image)))
        arrays = [[kernel.array() for kernel in row] for row in self.kernels]
        far = max(len(array) for row in arrays for array in row) // 2
        padded = np.pad(image, ((far, far), (far, far), (0, 0)), "reflect")
        result = np.zeros_like(image)
        for row, down in zip(arrays, _hats(image.shape[0], len(arrays)), strict=True):
            for array, right in zip(row, _hats(image.shape[1], len(row)), strict=True):
                if not (down.any() and right.any()):
                    continue  # more kernels than pixels
                place = _held(down), _held(right)
                around = far - len(array) // 2
                window = tuple(slice(part.start + around, part.stop + 2 * far - around) for part in place)
                weights = np.outer(down[place[0]], right[place[1]])[..., None]
                result[place] += weights * _convolve(padded[window], array)
        return result

    def __str__(self) -> str:
        by_size = sorted((kernel for row in self.kernels for kernel in row), key=lambda kernel: kernel.size)
        least, largest = str(by_size[0]), str(by_size[-1])
        named = least if least == largest else f"{least} to {largest}"
        return f"{named}, {len(self.kernels)} x {len(self.kernels[0])} kernels"


@dataclass(frozen=True)
class Resize:
    """Resizing to (height, width); see `restore.images.interpolation.resize`."""

    size: tuple[int, int]
    method: interpolation.Method
    antialias: bool = False

    def apply(self, image: Pixels) -> Pixels:
        return interpolation.resize(image, self.size, self.method, self.antialias)

    def __str__(self) -> str:
        return f"{self.method} to {self.size[1]} x {self.size[0]}{', antialiased' if self.antialias else ''}"


@dataclass(frozen=True)
class Haze:
    """White laid over the picture, of which `clear` comes through: clear v + 1 - clear."""

    clear: float

    def apply(self, image: Pixels) -> Pixels:
        return image * np.float32(self.clear) + np.float32(1 - self.clear)

    def __str__(self) -> str:
        return f"haze {1 - self.clear:.2f}"


@dataclass(frozen=True)
class GaussianNoise:
    """White noise of one strength everywhere.

    Attributes:
        sigma: Standard deviation in units of 1/255.
        gray: The same noise in all channels.
        seed: Of the generator of this noise.
        clip: Back into [0, 1], as in a file; without, the noise stays Gaussian in dark and bright places too.
    """

    sigma: float
    gray: bool
    seed: int
    clip: bool = True

    def apply(self, image: Pixels) -> Pixels:
        shape = (*image.shape[:2], 1 if self.gray else image.shape[2])
        noise = np.random.default_rng(self.seed).standard_normal(shape, np.float32)
        noisy = image + noise * np.float32(self.sigma / 255)
        return np.clip(noisy, 0, 1) if self.clip else noisy

    def __str__(self) -> str:
        return f"Gaussian noise {self.sigma:.1f}{', gray' if self.gray else ''}"


@dataclass(frozen=True)
class PoissonNoise:
    """Noise that grows with the brightness v: its variance is scale^2 v / levels.

    `levels` is the number of different 8-bit values in the picture, raised to a power of two, as the real-world recipes
    have it: at most 256, and few in flat pictures, which so become noisier.

    Attributes:
        scale: Factor of the noise; 1 is Poisson noise proper.
        gray: The noise of the luma, in all channels.
        seed: Of the generator of this noise.
    """

    scale: float
    gray: bool
    seed: int

    def apply(self, image: Pixels) -> Pixels:
        source = (image @ LUMA)[..., None] if self.gray else image
        values = round_to_uint8(source * 255)
        levels = 1 << (len(np.unique(values)) - 1).bit_length()
        signal = values / 255.0
        noise = np.random.default_rng(self.seed).poisson(signal * levels) / levels - signal
        return np.clip(image + self.scale * noise, 0, 1).astype(np.float32)

    def __str__(self) -> str:
        return f"Poisson noise {self.scale:.2f}{', gray' if self.gray else ''}"


@dataclass(frozen=True)
class CameraNoise:
    """Noise of a sensor: shot noise and read noise in linear light, of variance shot x + read, seen through sRGB.

    Dark tones suffer more than in the other two models. Each pixel and channel is drawn on its own: the colour filter
    array and its interpolation are left out. Source: Foi et al., "Practical Poissonian-Gaussian Noise Modeling and
    Fitting for Single-Image Raw-Data", 2008.

    Attributes:
        shot: Linear value of one photon, white being 1.
        read: Variance of the read noise, in linear values squared.
        seed: Of the generator of this noise.
    """

    shot: float
    read: float
    seed: int

    def apply(self, image: Pixels) -> Pixels:
        rng = np.random.default_rng(self.seed)
        linear = srgb_to_linear(np.clip(image, 0, 1))
        linear = rng.poisson(linear / self.shot) * self.shot + rng.standard_normal(image.shape) * self.read**0.5
        return linear_to_srgb(np.clip(linear, 0, 1)).astype(np.float32)

    def __str__(self) -> str:
        return f"camera noise, shot {self.shot:.1e}, read {self.read:.1e}"


@dataclass(frozen=True)
class Compression:
    """There and back through a JPEG or WebP file in memory.

    Attributes:
        format: Of the file.
        quality: 1 to 100, of libjpeg's or libwebp's scale.
        chroma: At half the resolution both ways (4:2:0, the default of both), or whole (4:4:4, in JPEG alone).
    """

    format: Literal["jpeg", "webp"]
    quality: int
    chroma: Chroma = "4:2:0"

    def apply(self, image: Pixels) -> Pixels:
        """Return what the file holds, (H, W, 3) float32.

        Raises:
            RequestError: The format takes no picture of so many pixels along a side.
        """
        picture = pyvips.Image.new_from_array(round_to_uint8(image * 255)).copy(interpretation="srgb")
        try:
            if self.format == "jpeg":
                mode = "on" if self.chroma == "4:2:0" else "off"
                file = picture.jpegsave_buffer(Q=self.quality, subsample_mode=mode)
            else:
                file = picture.webpsave_buffer(Q=self.quality)
        except pyvips.Error as error:  # 65535 pixels along a side are the limit of JPEG, 16383 that of WebP
            message = f"{self} does not hold a picture of {picture.width} x {picture.height} pixels."
            raise RequestError(message, hint="Degrade it in pieces.") from error
        decoded: Pixels = pyvips.Image.new_from_buffer(file, "").numpy().astype(np.float32) / np.float32(255)
        return decoded

    def __str__(self) -> str:
        return f"{'JPEG' if self.format == 'jpeg' else 'WebP'} {self.quality}{'' if self.chroma == '4:2:0' else ' 4:4:4'}"


def srgb_to_linear(values: np.ndarray) -> NDArray[np.float64]:
    """Linear light in [0, 1] of sRGB values in [0, 1] (IEC 61966-2-1).

    >>> srgb_to_linear(np.array([0.0, 0.5, 1.0])).round(4).tolist()
    [0.0, 0.214, 1.0]
    """
    values = np.asarray(values, np.float64)
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(linear: NDArray[np.float64]) -> NDArray[np.float64]:
    """The inverse of `srgb_to_linear`."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)


def _to_light(image: Pixels) -> Pixels:
    return srgb_to_linear(image).astype(np.float32)


def _to_srgb(light: Pixels) -> Pixels:
    return linear_to_srgb(np.clip(light, 0, 1).astype(np.float64)).astype(np.float32)


def _convolve(padded: Pixels, kernel: NDArray[np.float64]) -> Pixels:
    result = fftconvolve(padded, kernel.astype(np.float32)[..., None], mode="valid", axes=(0, 1))
    values: Pixels = result.astype(np.float32, copy=False)
    return values


def _hats(size: int, count: int) -> NDArray[np.float32]:
    """Linear weights, (count, size), of nodes spread evenly from the first pixel to the last; they sum to 1."""
    places = np.linspace(0, count - 1, size)
    weights: NDArray[np.float32] = np.clip(1 - np.abs(places - np.arange(count)[:, None]), 0, 1).astype(np.float32)
    return weights


def _held(weights: NDArray[np.float32]) -> slice:
    held = np.flatnonzero(weights)
    return slice(int(held[0]), int(held[-1]) + 1)
