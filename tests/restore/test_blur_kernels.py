"""Blur kernels and interpolation, against SciPy, torch, and the formulas written out with matrices."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage
from scipy.special import j1
from torch.nn import functional as F

from restore.degradations.blur_kernels import GaussianKernel, Kernel, Profile, SincKernel
from restore.degradations.operations import Blur
from restore.images.interpolation import METHODS, Method, resize
from restore.images.resize import imresize

SIZES = st.integers(0, 15).map(lambda half: 2 * half + 1)
SIGMAS = st.floats(0.2, 4.0)
KERNELS = st.one_of(
    st.builds(
        GaussianKernel, SIZES, st.tuples(SIGMAS, SIGMAS), st.floats(0, math.pi), st.floats(0.3, 4.0),
        st.sampled_from(["gaussian", "plateau"]),
    ),
    st.builds(SincKernel, SIZES, st.floats(math.pi / 5, math.pi)),
)  # fmt: skip


def offsets(size: int) -> NDArray[np.float64]:
    """(size, size, 2) columns and rows from the middle."""
    reach = np.arange(size) - size // 2
    return np.stack(np.meshgrid(reach, reach, indexing="xy"), axis=-1).astype(float)


def covariance(sigma: tuple[float, float], angle: float) -> NDArray[np.float64]:
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return turn @ np.diag(np.square(sigma)) @ turn.T


@given(KERNELS)
@settings(max_examples=80, deadline=None)
def test_every_kernel_sums_to_one_and_is_the_same_turned_by_180_degrees(kernel: Kernel) -> None:
    array = kernel.array()
    assert array.shape == (kernel.size, kernel.size) and np.isfinite(array).all()
    assert array.sum() == pytest.approx(1)
    np.testing.assert_allclose(array, array[::-1, ::-1], atol=1e-12)
    assert str(kernel)
    if isinstance(kernel, GaussianKernel):
        assert array.min() >= 0 and array.argmax() == array.size // 2


@pytest.mark.parametrize(
    "kernel", [GaussianKernel(9, (1.7, 1.7), 0.4, 2.0), GaussianKernel(9, (2, 2), 0, 1.5, "plateau"), SincKernel(9, 1.3)]
)
def test_round_kernels_have_all_symmetries_of_the_square(kernel: Kernel) -> None:
    array = kernel.array()
    for other in (array.T, array[::-1], np.rot90(array)):
        np.testing.assert_allclose(array, other, atol=1e-14)


@pytest.mark.parametrize(("size", "sigma"), [(7, 0.3), (7, 3.0), (21, 1.6), (13, 2.2)])
def test_isotropic_equals_the_separable_gaussian_of_scipy(size: int, sigma: float) -> None:
    impulse = np.zeros((size, size))
    impulse[size // 2, size // 2] = 1
    expected = ndimage.gaussian_filter(impulse, sigma, radius=size // 2, mode="constant")
    np.testing.assert_allclose(GaussianKernel(size, (sigma, sigma)).array(), expected, atol=1e-15)


@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.5])
def test_the_covariance_measured_from_a_kernel_is_the_one_asked_for(angle: float) -> None:
    sigma = (2.6, 1.1)
    array, x = GaussianKernel(41, sigma, angle).array(), offsets(41)
    measured = np.einsum("hw,hwi,hwj->ij", array, x, x)
    np.testing.assert_allclose(measured, covariance(sigma, angle), atol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 1.0, 3.2])
@pytest.mark.parametrize("profile", ["gaussian", "plateau"])
def test_generalised_and_plateau_follow_their_formulas(profile: Profile, beta: float) -> None:
    sigma, angle = (2.0, 0.9), 0.7
    array, x = GaussianKernel(15, sigma, angle, beta, profile).array(), offsets(15)
    q = np.einsum("hwi,ij,hwj->hw", x, np.linalg.inv(covariance(sigma, angle)), x)
    expected = np.exp(-(q**beta) / 2) if profile == "gaussian" else 1 / (1 + q**beta)
    np.testing.assert_allclose(array / array[7, 7], expected, rtol=1e-9, atol=1e-14)


def test_sinc_is_the_formula_and_passes_the_frequencies_of_a_disc() -> None:
    cutoff = 1.4
    array, r = SincKernel(15, cutoff).array(), np.linalg.norm(offsets(15), axis=-1)
    away = r > 0
    expected = cutoff / (2 * np.pi * r[away]) * j1(cutoff * r[away])
    np.testing.assert_allclose(array[away] / array[7, 7], expected / (cutoff**2 / (4 * np.pi)), rtol=1e-12)

    response = np.abs(np.fft.fft2(np.fft.ifftshift(SincKernel(101, cutoff).array())))
    omega = 2 * np.pi * np.fft.fftfreq(101)
    frequency = np.hypot(omega[:, None], omega)
    assert np.abs(response[frequency < cutoff - 0.3] - 1).max() < 0.05
    assert response[frequency > cutoff + 0.3].max() < 0.05


@pytest.mark.parametrize("size", [0, 4])
def test_even_kernels_are_refused(size: int) -> None:
    with pytest.raises(ValueError, match="must be odd"):
        SincKernel(size, 1.0).array()


@pytest.mark.parametrize("shape", [(12, 17), (1, 9), (5, 3)])
@pytest.mark.parametrize("kernel", [GaussianKernel(9, (2, 0.7), 0.5), SincKernel(21, 1.1)])
def test_blur_is_the_mirrored_convolution_of_scipy(kernel: Kernel, shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((*shape, 3), np.float32)
    expected = np.stack([ndimage.convolve(image[..., c], kernel.array(), mode="mirror") for c in range(3)], -1)
    result = Blur(kernel).apply(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6)


# Interpolation ---------------------------------------------------------------------------------------------------


@given(st.tuples(*[st.integers(1, 40)] * 4), st.sampled_from(METHODS))
@settings(max_examples=60, deadline=None)
def test_plain_resizing_is_that_of_torch(sizes: tuple[int, int, int, int], method: Method) -> None:
    image = np.random.default_rng(1).random((*sizes[:2], 3), np.float32)
    options = {} if method == "area" else {"align_corners": False}
    x = torch.from_numpy(image).double().permute(2, 0, 1)[None]  # torch places its taps in the type of the picture
    expected = F.interpolate(x, size=sizes[2:], mode=method, **options)
    result = resize(image, sizes[2:], method)
    assert result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_allclose(result, expected[0].permute(1, 2, 0), atol=2e-6)


def test_antialiased_bicubic_is_that_of_matlab_away_from_the_edges() -> None:
    image = np.random.default_rng(2).random((48, 36, 3), np.float32)
    for factor, rim in ((1 / 3, 2), (1 / 4, 2), (1.5, 4)):
        expected = imresize(image, factor, "double")[rim:-rim, rim:-rim]
        result = resize(image, (round(48 * factor), round(36 * factor)), "bicubic", antialias=True)
        np.testing.assert_allclose(result[rim:-rim, rim:-rim], expected, atol=2e-6)


def test_antialiased_bilinear_is_that_of_torch_away_from_the_edges() -> None:
    image = np.random.default_rng(3).random((30, 41, 3), np.float32)
    x = torch.from_numpy(image).permute(2, 0, 1)[None]
    expected = F.interpolate(x, size=(11, 17), mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    result = resize(image, (11, 17), "bilinear", antialias=True)
    np.testing.assert_allclose(result[1:-1, 1:-1], expected[1:-1, 1:-1], atol=2e-6)
