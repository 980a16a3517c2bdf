"""Degradation of scans: Rician noise of MR, noise of low-dose CT, undersampled k-space.

    low = RicianNoise(sigma=(0.02, 0.1)).draw(np.random.default_rng(0)).apply(volume.values[0])

Axes are i, j, k: scans are (i, j, k) float arrays, in their own units, and stay as they are; results are float32. Steps
(`RicianNoise`, `LowDose`, `Undersampling`) have ranges, a value that a YAML file can hold; `draw` turns one into an
operation (`Rician`, `Dose`, `CartesianSampling`) with all its numbers and the seed of its noise, so that scan and seed give
the same values at every call. Research use, not a medical device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field

from hybrid.errors import RequestError
from hybrid.training.recipes import Part

Values = NDArray[np.float32]
Axis = Literal[0, 1, 2]
Reference = Literal["p99", "maximum"]

WATER = 0.0206
"""Linear attenuation of water at 60 keV, per millimetre; a mean energy of tubes at 120 kV."""

ELECTRONIC = 10.0
"""Standard deviation of the noise of a detector's electronics, in photons."""


class Operation(Protocol):
    """What is done to a scan. `str()` is a short label."""

    def apply(self, values: np.ndarray) -> Values:
        """Return a new (i, j, k) float32 scan.

        Raises:
            RequestError: Another shape, values that are not finite, or that the operation has no meaning for.
        """
        ...


@dataclass(frozen=True)
class Rician:
    """The noise of magnitude MR: |x + n1 + i n2| with n1, n2 normal. Background gets a mean of sigma sqrt(pi / 2).

    Source: Gudbjartsson and Patz, "The Rician Distribution of Noisy MRI Data", Magnetic Resonance in Medicine 34, 1995.

    Attributes:
        sigma: Standard deviation of each part, as a share of `reference`.
        seed: Of the generator.
        reference: The scan's 99th percentile, which single bright voxels (vessels, artefacts) do not move, or its
            maximum, as the literature's noise in per cent has it.
    """

    sigma: float
    seed: int
    reference: Reference = "p99"

    def apply(self, values: np.ndarray) -> Values:
        """Raises RequestError for values below zero too."""
        scan = _checked(values)
        if scan.size and scan.min() < 0:
            message = f"Magnitudes of MR are not below 0, but the scan has {scan.min():g}."
            raise RequestError(message, hint="Degrade the scan before it is normalised.")
        return rician(scan, self.sigma * reference_level(scan, self.reference), np.random.default_rng(self.seed))

    def __str__(self) -> str:
        return f"Rician noise, {100 * self.sigma:.1f} % of the {'99th percentile' if self.reference == 'p99' else 'maximum'}"


@dataclass(frozen=True)
class Dose:
    """The noise of CT at a low dose, made where it arises: in the number of photons that reach the detector.

    Each slice across k is projected in parallel beams, photons are counted with Poisson noise and that of the electronics,
    and the change of the line integrals, reconstructed by filtered back-projection with a ramp, is added to the slice. So
    noise is stronger behind much bone and makes its streaks, which noise added to pixels does not, and the slice itself
    is not resampled. A fan or cone beam, a bowtie filter and scatter are left out.

    A slice of 512 x 512 takes about 20 s on one core, in proportion to the views.

    Source: the counts are those of Žabić et al., "A Low Dose Simulation Tool for CT Systems with Energy Integrating
    Detectors", Medical Physics 40, 2013; ours have one energy.

    Attributes:
        photons: For each ray, without a body in the way: 1e6 is a good routine scan, 1e4 a poor one.
        pixel: Distance of pixels in the slice, along i and j, in mm.
        seed: Of the generator.
        views: Angles over half a turn.
    """

    photons: float
    pixel: float
    seed: int
    views: int = 360

    def apply(self, values: np.ndarray) -> Values:
        """Hounsfield units; what is below -1000 counts as air."""
        from skimage.transform import iradon, radon

        scan, rng = _checked(values), np.random.default_rng(self.seed)
        rows, columns, slices = scan.shape
        side = max(rows, columns)
        angles = np.arange(self.views) * (180 / self.views)
        result = np.empty_like(scan)
        for k in range(slices):
            attenuation = np.zeros((side, side))
            attenuation[:rows, :columns] = WATER * (1 + np.maximum(scan[..., k], -1000) / 1000.0)
            integrals = radon(attenuation, angles, circle=False) * self.pixel
            counted = rng.poisson(self.photons * np.exp(-integrals)) + rng.normal(0, ELECTRONIC, integrals.shape)
            noisy = np.log(self.photons) - np.log(np.maximum(counted, 1))  # no ray is darker than one photon
            change = iradon((noisy - integrals) / self.pixel, angles, circle=False, output_size=side)
            result[..., k] = scan[..., k] + change[:rows, :columns] * (1000 / WATER)
        return result

    def __str__(self) -> str:
        return f"low-dose CT, {self.photons:.1e} photons a ray"


@dataclass(frozen=True)
class CartesianSampling:
    """Lines of k-space that were not measured, taken for zero: magnitude of the zero-filled reconstruction.

    The middle of k-space is measured wholly, lines outside at random, n / acceleration of n in all, the same for every
    slice. As whole lines are left out, it does not matter in which of the two planes along the phase axis slices lie.

    Source: Zbontar et al., "fastMRI", arXiv:1811.08839 (random masks), here with a fixed number of lines.

    Attributes:
        acceleration: Lines there are, for each one measured.
        centre: Share of lines around zero frequency that are all measured.
        seed: Of the generator.
        phase: Axis along which the lines are encoded.
    """

    acceleration: float
    centre: float
    seed: int
    phase: Axis = 0

    def mask(self, count: int) -> NDArray[np.bool_]:
        """Which of `count` lines are measured, zero frequency in the middle, at count // 2.

        >>> int(CartesianSampling(4, 0.1, seed=0).mask(16).sum())
        4
        """
        low = max(1, round(count * self.centre))
        mask = np.zeros(count, bool)
        start = (count - low + 1) // 2
        mask[start : start + low] = True
        outside = np.flatnonzero(~mask)
        wanted = min(max(0, round(count / self.acceleration) - low), len(outside))
        mask[np.random.default_rng(self.seed).choice(outside, wanted, replace=False)] = True
        return mask

    def apply(self, values: np.ndarray) -> Values:
        """Any finite values; the result is a magnitude."""
        scan = _checked(values)
        if not scan.size:
            return scan.copy()
        # The mask knows one frequency alone: the transforms along the other axes and back cancel.
        mask = np.fft.ifftshift(self.mask(scan.shape[self.phase]))
        lines = np.moveaxis(np.fft.fft(scan, axis=self.phase), self.phase, -1) * mask
        return np.moveaxis(np.abs(np.fft.ifft(lines, axis=-1)), -1, self.phase).astype(np.float32)

    def __str__(self) -> str:
        return f"k-space {self.acceleration:.1f} times undersampled, centre {100 * self.centre:.0f} %"


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _ordered(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError(f"the lower end {values[0]:g} exceeds the upper end {values[1]:g}")
    return values


Range = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]


class RicianNoise(Part):
    """Rician noise of a strength drawn evenly; both ends the same for a known one. See `Rician`."""

    kind: Literal["rician-noise"] = "rician-noise"
    sigma: Range = (0.01, 0.1)
    reference: Reference = "p99"

    def draw(self, rng: np.random.Generator) -> Rician:
        """One realisation; all randomness comes from `rng`."""
        return Rician(float(rng.uniform(*self.sigma)), _seed(rng), self.reference)


class LowDose(Part):
    """Noise of low-dose CT; the logarithm of the number of photons is drawn evenly. See `Dose`.

    Attributes:
        photons: For each ray.
        pixel: Distance of pixels in the slice, in mm.
        views: Angles over half a turn.
    """

    kind: Literal["low-dose"] = "low-dose"
    photons: Annotated[tuple[Annotated[float, Field(ge=10, le=1e9)], Annotated[float, Field(ge=10, le=1e9)]],
                       AfterValidator(_ordered)] = (1e4, 1e6)  # fmt: skip
    pixel: Positive = 0.7
    views: Annotated[int, Field(ge=8)] = 360

    def draw(self, rng: np.random.Generator) -> Dose:
        """One realisation; all randomness comes from `rng`."""
        return Dose(math.exp(rng.uniform(*np.log(self.photons))), self.pixel, _seed(rng), self.views)


class Undersampling(Part):
    """Undersampled k-space of an acceleration drawn evenly. See `CartesianSampling`."""

    kind: Literal["undersampling"] = "undersampling"
    acceleration: Annotated[tuple[Annotated[float, Field(ge=1, le=64)], Annotated[float, Field(ge=1, le=64)]],
                            AfterValidator(_ordered)] = (2.0, 4.0)  # fmt: skip
    centre: Annotated[float, Field(gt=0, le=1)] = 0.08
    phase: Axis = 0

    def draw(self, rng: np.random.Generator) -> CartesianSampling:
        """One realisation; all randomness comes from `rng`."""
        return CartesianSampling(float(rng.uniform(*self.acceleration)), self.centre, _seed(rng), self.phase)


ScanDegradation: TypeAlias = Annotated[RicianNoise | LowDose | Undersampling, Field(discriminator="kind")]
"""What a recipe can name."""


def rician(values: np.ndarray, sigma: float, rng: np.random.Generator) -> Values:
    """Magnitude of values of any shape with complex normal noise, `sigma` in their units for each of its two parts."""
    real = values + sigma * rng.standard_normal(values.shape, np.float32)
    magnitudes: Values = np.hypot(real, sigma * rng.standard_normal(values.shape, np.float32)).astype(np.float32)
    return magnitudes


def reference_level(values: np.ndarray, reference: Reference) -> float:
    """The level of a whole scan that strengths of noise refer to, background included."""
    return float(np.percentile(values, 99) if reference == "p99" else np.max(values)) if values.size else 0.0


def _checked(values: np.ndarray) -> Values:
    if values.ndim != 3:
        raise RequestError(f"Cannot degrade values of shape {values.shape}.", hint="Give one scan, (i, j, k).")
    scan = values.astype(np.float32)
    if not np.isfinite(scan).all():
        raise RequestError("The scan has values that are not finite.", hint="Replace them before, by zero for example.")
    return scan


def _seed(rng: np.random.Generator) -> int:
    return int(rng.integers(2**63))
