"""Blur kernels of the real-world recipes: Gaussian, generalised Gaussian, plateau, and the sinc that rings.

A kernel is a (size, size) float64 array of odd size that sums to 1, rows downwards and columns to the right. All are
the same when turned by 180 degrees, so that convolution and correlation are one. With Sigma the covariance and
q = x^T Sigma^-1 x the squared distance in standard deviations:

    Gaussian              exp(-q / 2)
    generalised Gaussian  exp(-q^beta / 2)      beta < 1: peaked with long tails; beta > 1: flat top, short tails
    plateau               1 / (1 + q^beta)
    sinc                  w / (2 pi r) J1(w r)  ideal low-pass of the circular cutoff w, in radians a pixel

Source: Wang et al., "Real-ESRGAN: Training Real-World Blind Super-Resolution with Pure Synthetic Data", ICCVW 2021,
section 3, and what it cites: Liu et al., "Estimating Generalized Gaussian Blur Kernels for Out-of-Focus Image
Deblurring", 2020 (both shapes).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import j1

from restore.degradations.motion_kernels import DefocusKernel, MotionKernel, ShakeKernel

Profile = Literal["gaussian", "plateau"]


@dataclass(frozen=True)
class GaussianKernel:
    """A kernel that falls with the distance q in standard deviations.

    Attributes:
        size: Pixels along each side, odd. What lies beyond is cut off before the sum becomes 1.
        sigma: Standard deviations along the two axes of the ellipse, in pixels. For a beta other than 1, and for the
            plateau, they are the lengths at which q = 1.
        angle: From the direction of increasing column to the first axis, towards increasing row, in radians.
        beta: Exponent of q; 1 is the plain shape.
        profile: exp(-q^beta / 2), or the plateau 1 / (1 + q^beta).
    """

    size: int
    sigma: tuple[float, float]
    angle: float = 0.0
    beta: float = 1.0
    profile: Profile = "gaussian"

    def array(self) -> NDArray[np.float64]:
        """The kernel.

        >>> GaussianKernel(3, (0.5, 0.5)).array().round(3).tolist()
        [[0.011, 0.084, 0.011], [0.084, 0.619, 0.084], [0.011, 0.084, 0.011]]
        """
        y, x = _grid(self.size)
        along = x * math.cos(self.angle) + y * math.sin(self.angle)
        across = y * math.cos(self.angle) - x * math.sin(self.angle)
        q = ((along / self.sigma[0]) ** 2 + (across / self.sigma[1]) ** 2) ** self.beta
        values = np.exp(-q / 2) if self.profile == "gaussian" else 1 / (1 + q)
        kernel: NDArray[np.float64] = values / values.sum()
        return kernel

    def __str__(self) -> str:
        first, second = self.sigma
        shape = "plateau" if self.profile == "plateau" else "Gaussian" if self.beta == 1 else "generalised"
        beta = "" if self.profile == "gaussian" and self.beta == 1 else f", beta {self.beta:.2g}"
        if first == second:
            return f"{shape} {self.size} px, sigma {first:.2g}{beta}"
        turn = math.degrees(self.angle) % 180
        return f"{shape} {self.size} px, sigma {first:.2g}/{second:.2g} at {turn:.0f}°{beta}"


@dataclass(frozen=True)
class SincKernel:
    """The ideal low-pass, cut to a square: it overshoots at edges, as careless sharpening and compression do.

    Attributes:
        size: Pixels along each side, odd.
        cutoff: Highest frequency that passes, in radians a pixel; pi is the highest that pixels hold.
    """

    size: int
    cutoff: float

    def array(self) -> NDArray[np.float64]:
        """The kernel; it has negative values."""
        y, x = _grid(self.size)
        r = np.hypot(x, y)
        r[r == 0] = 1.0  # the middle is set apart: J1(w r) / r tends to w / 2
        values = self.cutoff * j1(self.cutoff * r) / (2 * math.pi * r)
        values[self.size // 2, self.size // 2] = self.cutoff**2 / (4 * math.pi)
        kernel: NDArray[np.float64] = values / values.sum()
        return kernel

    def __str__(self) -> str:
        return f"sinc {self.size} px, cutoff {self.cutoff / math.pi:.2f} pi"


Kernel = GaussianKernel | SincKernel | ShakeKernel | MotionKernel | DefocusKernel
"""Those of this file, and those of `restore.degradations.motion_kernels`."""


def _grid(size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if size < 1 or size % 2 == 0:
        raise ValueError(f"the size of a kernel must be odd, not {size}")
    y, x = np.mgrid[:size, :size] - float(size // 2)
    return y, x
