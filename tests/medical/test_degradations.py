"""Degradations of scans: moments and distributions by SciPy, k-space by numpy, CT by the theory of back-projection."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError
from scipy import stats
from skimage.transform import iradon, radon

from hybrid.errors import RequestError
from medical.restoration.degradation_sheet import scan_degradation_sheet
from medical.restoration.degradations import (
    ELECTRONIC,
    WATER,
    CartesianSampling,
    Dose,
    LowDose,
    Operation,
    Rician,
    RicianNoise,
    ScanDegradation,
    Undersampling,
    reference_level,
)

KINDS: list[Operation] = [Rician(0.05, 3), Dose(1e4, 0.8, 3, views=24), CartesianSampling(3.0, 0.1, 3)]


def scan(shape: tuple[int, int, int] = (20, 17, 3), seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).gamma(2, 100, shape).astype(np.float32)


# Rician noise ----------------------------------------------------------------------------------------------------


def fields(*levels: float) -> NDArray[np.float32]:
    """Slices of one value each; the last is 1000, which more than one voxel in a hundred has."""
    return np.stack([np.full((128, 128), level, np.float32) for level in (*levels, 1000.0)], -1)


def test_rician_noise_has_the_moments_and_the_distribution_of_scipy() -> None:
    sigma, levels = 50.0, (0.0, 20.0, 75.0, 400.0)
    noisy = Rician(0.05, 1).apply(fields(*levels))
    for k, level in enumerate(levels):
        values, expected = noisy[..., k].ravel().astype(float), stats.rice(level / sigma, scale=sigma)
        assert abs(values.mean() - expected.mean()) < 4.5 * expected.std() / math.sqrt(values.size)
        assert values.var() == pytest.approx(expected.var(), rel=0.06)
        assert stats.kstest(values, expected.cdf).pvalue > 1e-3
    assert noisy[..., 0].mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.01)
    assert noisy.dtype == np.float32 and noisy.min() >= 0


def test_strength_refers_to_the_99th_percentile_or_the_maximum() -> None:
    volume = np.zeros((100, 100, 4), np.float32)
    volume[:, :, 0] = 100
    volume[0, 0, 0] = 5000
    assert reference_level(volume, "p99") == 100 and reference_level(volume, "maximum") == 5000
    for reference, sigma in (("p99", 10.0), ("maximum", 500.0)):
        step = RicianNoise.model_validate({"sigma": (0.1, 0.1), "reference": reference})
        background = step.draw(np.random.default_rng(0)).apply(volume)[..., 1:]
        assert background.mean() == pytest.approx(sigma * math.sqrt(math.pi / 2), rel=0.02)
    assert "10.0 % of the maximum" in str(Rician(0.1, 0, "maximum"))


def test_scans_that_were_normalised_are_refused() -> None:
    with pytest.raises(RequestError, match=r"not below 0, but the scan has -1.*before it is normalised"):
        Rician(0.1, 0).apply(scan() - scan().min() - 1)


# CT --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("photons", [2e4, 1e6])
def test_noise_of_air_has_the_variance_of_filtered_back_projection(photons: float) -> None:
    pixel, views = 0.7, 180
    air = np.full((72, 72, 1), -1000, np.float32)
    noise = (Dose(photons, pixel, 1, views).apply(air) - air)[18:54, 18:54]
    # A ray's logarithm has variance 1 / N + e^2 / N^2. The ramp |f| has the autocorrelation 1/12 at 0 and -1 / (2 pi^2) at 1;
    # linear interpolation at even places between takes 2/3 of the first and 1/3 of the second (Kak and Slaney, chapter 5).
    ray = 1 / photons + (ELECTRONIC / photons) ** 2
    water = 0.02059  # per mm at 60 keV, from the tables of NIST
    expected = math.sqrt(ray * math.pi**2 / views * (2 / 3 / 12 - 1 / 3 / (2 * math.pi**2))) / pixel / water * 1000
    assert noise.std() == pytest.approx(expected, rel=0.1)
    assert abs(noise.mean()) < 0.05 * expected


def body(bone: float = 0.0) -> NDArray[np.float32]:
    """A disk of water in air, 96 pixels wide, with two disks of bone at its sides."""
    y, x = np.mgrid[:96, :80] - np.array([47.5, 39.5])[:, None, None]
    values = np.where(np.hypot(x, y) < 36, 0.0, -1000.0)
    for side in (-24, 24):
        values[np.hypot(x, y - side) < 7] = bone
    return values[..., None].astype(np.float32)


def test_noise_is_what_the_whole_chain_adds_and_the_slice_is_not_resampled() -> None:
    operation, image = Dose(1e5, 2.0, 5, views=60), body(1000)
    change = operation.apply(image) - image
    square = np.zeros((96, 96))
    square[:, :80] = WATER * (1 + image[..., 0] / 1000.0)
    angles = np.linspace(0, 180, 60, endpoint=False)
    clean, rng = radon(square, angles, circle=False) * 2.0, np.random.default_rng(5)
    counts = rng.poisson(1e5 * np.exp(-clean)) + ELECTRONIC * rng.standard_normal(clean.shape)
    noisy = -np.log(np.maximum(counts, 1) / 1e5)
    both = [iradon(each / 2.0, angles, circle=False, output_size=96)[:, :80] * 1000 / WATER for each in (noisy, clean)]
    np.testing.assert_allclose(change[..., 0], both[0] - both[1], atol=0.02)


def test_more_photons_and_thinner_bodies_have_less_noise_and_bone_makes_streaks() -> None:
    centre = slice(38, 58), slice(30, 50)

    def noise(photons: float, pixel: float, image: NDArray[np.float32]) -> NDArray[np.float32]:
        return (Dose(photons, pixel, 2, 90).apply(image) - image)[..., 0]

    few, many = noise(1e5, 2, body())[centre].std(), noise(1e6, 2, body())[centre].std()
    assert few / many == pytest.approx(math.sqrt(10), rel=0.1)
    # Rays along the first axis go through both disks of bone: more noise, which is alike along them.
    bony = noise(1e5, 2, body(2000))[centre]
    assert bony.std() > 1.3 * few
    assert bony.mean(0).std() > 2 * bony.mean(1).std()
    # Behind 1.4 m of water there is no photon left, and the result is finite all the same.
    assert np.isfinite(noise(1e3, 20, body())).all()


# k-space ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(20, 17, 3), (15, 8, 2), (1, 6, 1)])
@pytest.mark.parametrize("phase", [0, 1, 2])
def test_undersampling_is_that_of_numpy_on_each_slice(shape: tuple[int, int, int], phase: Any) -> None:
    volume, operation = scan(shape), CartesianSampling(2.5, 0.1, 4, phase)
    mask = operation.mask(shape[phase])
    slices = 2 if phase != 2 else 0  # the axis across slices, which hold the phase axis
    planes, along = np.moveaxis(volume.astype(float), slices, 0), (phase if slices == 2 else 1)
    wanted = mask[:, None] if along == 0 else mask[None]
    expected = []
    for plane in planes:
        spectrum = np.fft.fftshift(np.fft.fft2(plane))
        expected.append(np.abs(np.fft.ifft2(np.fft.ifftshift(spectrum * wanted))))
    result = operation.apply(volume)
    assert result.dtype == np.float32
    np.testing.assert_allclose(np.moveaxis(result, slices, 0), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("count", [1, 2, 15, 16, 35, 256])
@pytest.mark.parametrize("acceleration", [1.0, 2.0, 4.0, 8.0])
def test_masks_have_their_lines_and_the_whole_centre(count: int, acceleration: float) -> None:
    masks = np.array([CartesianSampling(acceleration, 0.08, seed).mask(count) for seed in range(60)])
    low = max(1, round(0.08 * count))
    assert set(masks.sum(1)) == {max(low, round(count / acceleration))}
    middle = np.abs(np.fft.fftshift(np.fft.fftfreq(count, 1 / count)))
    assert masks[:, middle <= (low - 1) // 2].all()
    if acceleration == 2.0 and count == 256:  # the others come alike often
        outside = masks.mean(0)[middle > low]
        assert abs(outside.mean() - (128 - low) / (256 - low)) < 0.02 and outside.min() > 0.2 and outside.max() < 0.75
    if acceleration == 1.0:
        assert masks.all()


def test_all_lines_give_the_scan_and_few_give_its_mean() -> None:
    volume = scan()
    np.testing.assert_allclose(CartesianSampling(1, 0.1, 0).apply(volume), volume, rtol=1e-5, atol=1e-3)
    mean = CartesianSampling(64, 1e-6, 0).apply(volume)
    np.testing.assert_allclose(mean, np.broadcast_to(volume.mean(0), volume.shape), rtol=1e-5)


# All -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", KINDS, ids=str)
def test_scan_and_seed_give_the_same_values_and_the_scan_stays(operation: Operation) -> None:
    for given in (scan(), np.asfortranarray(scan()), (scan() * 10).astype(np.int16), scan().astype(np.float64)):
        kept = given.copy()
        first, second = operation.apply(given), operation.apply(given)
        assert first.dtype == np.float32 and first.shape == given.shape and np.isfinite(first).all()
        np.testing.assert_array_equal(first, second)
        np.testing.assert_array_equal(given, kept)
        assert not np.array_equal(first, given) and str(operation) and hash(operation)


@pytest.mark.parametrize("operation", KINDS, ids=str)
def test_what_is_no_scan_is_refused(operation: Operation) -> None:
    with pytest.raises(RequestError, match=r"shape \(4, 4\).*\(i, j, k\)"):
        operation.apply(np.ones((4, 4)))
    with pytest.raises(RequestError, match=r"not finite"):
        operation.apply(np.full((4, 4, 1), np.nan))


def test_steps_draw_within_their_ranges_and_a_recipe_names_them() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ScanDegradation)
    fields = (("rician-noise", "sigma", 0.01, 0.1), ("low-dose", "photons", 1e4, 1e6), ("undersampling", "acceleration", 2, 4))
    for kind, field, least, largest in fields:
        step, rng = adapter.validate_python({"kind": kind}), np.random.default_rng(7)
        assert isinstance(step, RicianNoise | LowDose | Undersampling)
        drawn = [step.draw(rng) for _ in range(300)]
        strengths = np.array([getattr(each, field) for each in drawn])
        assert least <= strengths.min() < 1.1 * least and 0.9 * largest < strengths.max() <= largest
        assert len({each.seed for each in drawn}) == 300
        assert drawn[0] == step.draw(np.random.default_rng(7))
    photons = [LowDose().draw(np.random.default_rng(s)).photons for s in range(300)]
    assert 120 < sum(each < 1e5 for each in photons) < 180  # the logarithm is even


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"kind": "rician-noise", "sigma": [0.2, 0.1]}, "lower end 0.2 exceeds"),
        ({"kind": "rician-noise", "reference": "mean"}, "'p99' or 'maximum'"),
        ({"kind": "low-dose", "photons": [1, 1e5]}, "greater than or equal to 10"),
        ({"kind": "low-dose", "pixel": 0}, "greater than 0"),
        ({"kind": "undersampling", "acceleration": [0.5, 2]}, "greater than or equal to 1"),
        ({"kind": "undersampling", "phase": 3}, "0, 1 or 2"),
        ({"kind": "fog"}, "rician-noise"),
    ],
)
def test_faults_are_named(step: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        TypeAdapter(ScanDegradation).validate_python(step)


def test_another_process_makes_the_same_values() -> None:
    script = (
        "import hashlib, numpy as np\nfrom medical.restoration.degradations import CartesianSampling, Rician\n"
        "v = np.arange(12 * 9 * 2, dtype=np.float32).reshape(12, 9, 2)\n"
        "made = [o.apply(v).tobytes() for o in (Rician(0.1, 4), CartesianSampling(2, 0.1, 4))]\n"
        "print(hashlib.sha256(b''.join(made)).hexdigest())"
    )
    root = Path(__file__).resolve().parents[2]
    outputs = {subprocess.run([sys.executable, "-c", script], cwd=root, check=True, capture_output=True).stdout for _ in range(2)}
    assert len(outputs) == 1


def test_the_sheet_shows_all_three() -> None:
    figure = scan_degradation_sheet(scan((24, 30, 1))[..., 0])
    titles = " ".join(axes.get_title() for axes in figure.axes)
    assert all(word in titles for word in ("Rician", "photons", "k-space")) and sum(len(a.images) for a in figure.axes) == 7
