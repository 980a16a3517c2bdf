"""Choosing among outputs with no true picture: against plain NumPy and SciPy, on pictures that were blurred here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, signal

from restore.restoration.selection import AGREEMENT, RADIUS, REBLUR, Criterion, fit_kernel, regions, score_outputs, score_picture
from restore.restoration.selection import _gradients as gradients
from restore.restoration.selection import _noise as noise_of

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "colosseum.png"


@pytest.fixture(scope="module")
def sharp() -> np.ndarray:
    with Image.open(EXAMPLE) as picture:
        wide = picture.convert("RGB").resize((288, 288 * picture.height // picture.width), Image.Resampling.LANCZOS)
    return np.asarray(wide, float)[:216] / 255


def shake(length: float, angle: float) -> np.ndarray:
    """A straight stroke as a kernel of 25 x 25."""
    kernel = np.zeros((25, 25))
    for t in np.linspace(-length / 2, length / 2, 201):
        kernel[round(12 + t * np.sin(angle)), round(12 + t * np.cos(angle))] += 1
    kernel = ndimage.gaussian_filter(kernel, 0.6)
    return kernel / kernel.sum()


def blur(picture: np.ndarray, kernel: np.ndarray, sigma: float = 0.0) -> np.ndarray:
    padded = np.pad(picture, ((12, 12), (12, 12), (0, 0)), mode="edge")
    blurred = np.stack([signal.fftconvolve(padded[..., c], kernel, "valid") for c in range(3)], -1)
    noisy = blurred + np.random.default_rng(0).normal(0, sigma, blurred.shape)
    return np.round(np.clip(noisy, 0, 1) * 255) / 255


def test_agreement_is_the_distance_to_the_mean() -> None:
    rng = np.random.default_rng(1)
    observed, outputs = rng.random((300, 270, 3)), rng.random((5, 300, 270, 3))
    expected = [np.mean((output - sum(outputs) / 5) ** 2) for output in outputs]
    np.testing.assert_allclose(score_picture(observed, outputs, AGREEMENT), expected, rtol=1e-12)


@pytest.mark.parametrize(("length", "angle"), [(9, 0.3), (15, 1.2), (0, 0)])
def test_the_kernel_of_a_blur_is_found(sharp: np.ndarray, length: float, angle: float) -> None:
    true = shake(length, angle)
    found = fit_kernel(gradients(sharp.mean(-1)), gradients(blur(sharp, true).mean(-1)))
    assert found.shape == true.shape == (2 * RADIUS + 1, 2 * RADIUS + 1)
    assert found.min() >= 0 and found.sum() == pytest.approx(1)
    smooth = [ndimage.gaussian_filter(kernel, 1.0) for kernel in (found, true)]  # gradients were smoothed, too
    assert np.corrcoef(smooth[0].ravel(), smooth[1].ravel())[0, 1] > 0.97


@pytest.mark.parametrize("sigma", [0.0, 0.01])
@pytest.mark.parametrize("angle", [0.3, 1.2, 2.4])
def test_reblur_prefers_the_truth_to_what_cannot_be_or_did_nothing(sharp: np.ndarray, angle: float, sigma: float) -> None:
    observed = blur(sharp, shake(13, angle), sigma)
    other = blur(sharp, shake(13, angle + np.pi / 2))  # sharp where it should not be, and the other way round
    outputs = np.stack([observed, ndimage.gaussian_filter(observed, (1.5, 1.5, 0)), other, sharp, np.roll(sharp, 30, 0)])
    scores = score_picture(observed, outputs, REBLUR)
    assert scores.argmin() == 3, scores


def test_reblur_looks_away_from_regions_without_structure(sharp: np.ndarray) -> None:
    flat = np.full_like(sharp, 0.5)
    assert not score_picture(flat, np.stack([flat, flat + 0.01]), REBLUR).any()
    observed = blur(sharp, shake(9, 0.3))
    alone = score_picture(observed, np.stack([sharp, observed]), Criterion("re-blur", REBLUR.score, edge=288))
    beside = np.concatenate([observed, np.full_like(observed, 0.5)], 1), np.concatenate([sharp, np.full_like(sharp, 0.5)], 1)
    found = score_picture(beside[0], np.stack([beside[1], beside[0]]), Criterion("re-blur", REBLUR.score, edge=288))
    np.testing.assert_allclose(found, alone, rtol=0.2)
    assert found.argmin() == alone.argmin() == 0


@pytest.mark.parametrize("sigma", [0.005, 0.02, 0.08])
def test_noise_is_estimated(sigma: float) -> None:
    slope = np.add.outer(np.linspace(0, 0.6, 200), np.linspace(0, 0.4, 220))
    noisy = slope + np.random.default_rng(2).normal(0, sigma, slope.shape)
    assert noise_of(noisy) == pytest.approx(sigma, rel=0.05)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (256, 257), (1000, 300)])
def test_regions_cover_the_picture_once(height: int, width: int) -> None:
    seen = np.zeros((height, width), int)
    for box in regions(height, width, AGREEMENT):
        seen[box] += 1
        assert max(seen[box].shape) <= AGREEMENT.edge
    assert (seen == 1).all()


def test_large_pictures_are_looked_at_in_places() -> None:
    boxes = list(regions(6000, 8000, REBLUR))
    assert REBLUR.most // 2 < len(boxes) <= REBLUR.most == 24
    for axis in (0, 1):  # all over the picture
        assert len({box[axis].start for box in boxes}) >= 4


def test_one_region_at_a_time_is_asked_for() -> None:
    rng = np.random.default_rng(3)
    observed, outputs = rng.random((520, 300, 1)), rng.random((2, 520, 300, 1))
    asked = []

    def read(box: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        asked.append(box)
        return observed[box], outputs[:, box[0], box[1]]

    np.testing.assert_allclose(score_outputs(read, 520, 300, AGREEMENT), score_picture(observed, outputs, AGREEMENT))
    assert len(asked) == 3 * 2
