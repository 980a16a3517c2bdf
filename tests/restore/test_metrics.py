"""PSNR, SSIM and luma, judged by parity values and scikit-image."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from hybrid.errors import RequestError
from restore.evaluation.metrics import Channel, psnr, rgb_to_y, ssim

PARITY = np.load(Path(__file__).parent.parent / "data" / "protocol_metrics.npz")
RESTORED, REFERENCE = PARITY["restored"], PARITY["reference"]

# border, channel, PSNR, SSIM of the two parity pictures
COLOUR = [
    (0, "rgb", 28.654347923675797, 0.954965201529877),
    (0, "y", 32.89350576686579, 0.9492322313981527),
    (2, "rgb", 28.582949166571957, 0.9545323831632629),
    (2, "y", 32.81778677271237, 0.9479685550407445),
    (3, "rgb", 28.544424315744998, 0.9542618873925542),
    (3, "y", 32.85474308792605, 0.9474216612097094),
    (4, "rgb", 28.542204596300635, 0.954164266998514),
    (4, "y", 32.86790748850385, 0.9471754272241455),
]
GREEN = [
    (0, 28.595345880912987, 0.9393864361203637),
    (2, 28.547868164715922, 0.9388948682342902),
    (4, 28.581372122644204, 0.9381306126348322),
]
Y_ROUNDED = [(0, 32.8693635523569, 0.9491533486748868), (4, 32.8586344546815, 0.9472517895686603)]


@pytest.mark.parametrize(("border", "channel", "decibel", "similarity"), COLOUR)
def test_colour_agrees_with_reference(border: int, channel: Channel, decibel: float, similarity: float) -> None:
    assert psnr(RESTORED, REFERENCE, border=border, channel=channel) == pytest.approx(decibel, abs=1e-5)
    assert ssim(RESTORED, REFERENCE, border=border, channel=channel) == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize(("border", "decibel", "similarity"), GREEN)
def test_one_channel_is_taken_as_it_is(border: int, decibel: float, similarity: float) -> None:
    for pick in (np.s_[..., 1], np.s_[..., 1:2]):
        assert psnr(RESTORED[pick], REFERENCE[pick], border=border) == pytest.approx(decibel, abs=1e-5)
        assert ssim(RESTORED[pick], REFERENCE[pick], border=border) == pytest.approx(similarity, abs=1e-6)


@pytest.mark.parametrize(("border", "decibel", "similarity"), Y_ROUNDED)
def test_rounded_luma_agrees_with_reference(border: int, decibel: float, similarity: float) -> None:
    planes = rgb_to_y(RESTORED, rounded=True), rgb_to_y(REFERENCE, rounded=True)
    assert psnr(*planes, border=border) == pytest.approx(decibel, abs=1e-5)
    assert ssim(*planes, border=border) == pytest.approx(similarity, abs=1e-6)


def test_luma_agrees_with_reference_and_skimage() -> None:
    np.testing.assert_allclose(rgb_to_y(REFERENCE), PARITY["reference_y_float"], rtol=0, atol=2e-5)
    np.testing.assert_array_equal(rgb_to_y(REFERENCE, rounded=True), PARITY["reference_ycbcr_uint8"][..., 0])
    np.testing.assert_allclose(rgb_to_y(REFERENCE), rgb2ycbcr(REFERENCE)[..., 0], atol=1e-9)


def test_skimage_agrees() -> None:
    rng = np.random.default_rng(3)
    reference = rng.integers(0, 256, (37, 52, 3), dtype=np.uint8)
    restored = np.clip(reference + rng.normal(0, 20, reference.shape), 0, 255).astype(np.uint8)
    judge = structural_similarity(
        restored, reference, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert ssim(restored, reference, channel="rgb") == pytest.approx(judge, abs=5e-9)
    assert psnr(restored, reference, channel="rgb") == pytest.approx(peak_signal_noise_ratio(reference, restored), abs=1e-9)


def test_equal_pictures() -> None:
    assert psnr(REFERENCE, REFERENCE) == math.inf
    assert ssim(REFERENCE, REFERENCE) == pytest.approx(1)


def test_inputs_are_unchanged() -> None:
    before = RESTORED.copy()
    ssim(RESTORED, REFERENCE, border=4)
    np.testing.assert_array_equal(RESTORED, before)


def test_grey_read_as_colour_scores_higher_by_the_luma_range() -> None:
    a, b = RESTORED[..., :1].repeat(3, axis=2), REFERENCE[..., :1].repeat(3, axis=2)
    assert psnr(a, b) - psnr(a[..., 0], b[..., 0]) == pytest.approx(20 * math.log10(255 / 219), abs=1e-3)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: psnr(RESTORED, REFERENCE[1:]), "Crop the reference"),
        (lambda: psnr(RESTORED, REFERENCE, border=20), "smaller border"),
        (lambda: psnr(RESTORED, REFERENCE, border=-1), "border"),
        (lambda: psnr(RESTORED, REFERENCE, channel="luma"), "y or rgb"),  # type: ignore[arg-type]
        (lambda: ssim(RESTORED[:10], REFERENCE[:10]), "11 x 11"),
        (lambda: ssim(RESTORED[:18], REFERENCE[:18], border=4), "smaller border"),
        (lambda: psnr(np.zeros((4, 4, 2)), np.zeros((4, 4, 2))), "H, W"),
        (lambda: rgb_to_y(np.zeros((4, 4))), "grey"),
    ],
)
def test_errors_say_the_repair(call: Callable, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        call()
