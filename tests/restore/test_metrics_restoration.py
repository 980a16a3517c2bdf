"""SSIM with colour as a third axis, PSNR-B and aligned scores, judged by plain forms and cases that one can work out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from skimage.metrics import structural_similarity

from hybrid.errors import RequestError, ResourceError
from restore.evaluation import alignment
from restore.evaluation.alignment import align, masked_scores
from restore.evaluation.metrics import psnr, ssim
from restore.evaluation.metrics_restoration import psnr_b, similarity_map, ssim_3d


def pair(height: int = 23, width: int = 19, channels: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    reference = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
    restored = np.clip(reference + rng.normal(0, 25, reference.shape), 0, 255).round().astype(np.uint8)
    return restored, reference


def plain_ssim_3d(a: np.ndarray, b: np.ndarray) -> float:
    """Every window by itself, with all three axes padded by repetition."""
    line = [math.exp(-(k * k) / (2 * 1.5**2)) for k in range(-5, 6)]
    window = np.einsum("i,j,k->ijk", line, line, line)
    window /= window.sum()
    padded = [np.pad(each.astype(float), 5, "edge") for each in (a, b)]
    values = []
    for place in np.ndindex(a.shape):
        x, y = (each[tuple(slice(p, p + 11) for p in place)] for each in padded)
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        c1, c2 = 2.55**2, 7.65**2
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return float(np.mean(values))


def test_colour_as_a_third_axis_agrees_with_the_plain_form() -> None:
    restored, reference = pair()
    assert ssim_3d(restored, reference) == pytest.approx(plain_ssim_3d(restored, reference), abs=1e-9)
    inner = np.s_[2:-2, 2:-2]
    assert ssim_3d(restored, reference, border=2) == pytest.approx(plain_ssim_3d(restored[inner], reference[inner]), abs=1e-9)


def test_scikit_image_agrees_where_windows_lie_inside() -> None:
    restored, reference = pair(21, 22, 21)  # a volume: scikit-image filters all axes of what it is not told is colour
    _, full = structural_similarity(
        restored, reference, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, full=True
    )
    ours = similarity_map(restored.astype(float), reference.astype(float))
    inner = np.s_[5:-5, 5:-5, 5:-5]
    np.testing.assert_allclose(ours[inner], full[inner], atol=1e-9)
    assert ours.mean() == pytest.approx(ssim_3d(restored, reference))


def test_it_is_another_number_than_the_usual_one() -> None:
    restored, reference = pair(64, 48)
    assert ssim_3d(reference, reference) == pytest.approx(1)
    assert abs(ssim_3d(restored, reference) - ssim(restored, reference, channel="rgb")) > 1e-3


def plain_psnr_b(restored: np.ndarray, reference: np.ndarray) -> float:
    """Neighbours one by one."""
    height, width = restored.shape
    across, other = [], []
    for y in range(height):
        for x in range(width - 1):
            step = (float(restored[y, x]) - float(restored[y, x + 1])) ** 2
            (across if (x + 1) % 8 == 0 else other).append(step)
    for y in range(height - 1):
        for x in range(width):
            step = (float(restored[y, x]) - float(restored[y + 1, x])) ** 2
            (across if (y + 1) % 8 == 0 else other).append(step)
    excess = sum(across) / len(across) - sum(other) / len(other)
    weight = 3 / math.log2(min(height, width)) if excess > 0 else 0
    mse = sum((float(p) - float(q)) ** 2 for p, q in zip(restored.ravel(), reference.ravel(), strict=True)) / restored.size
    return 10 * math.log10(255**2 / (mse + weight * excess))


@pytest.mark.parametrize("shape", [(32, 40), (27, 35), (17, 64)])
def test_psnr_b_agrees_with_the_plain_form(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    reference = rng.integers(90, 160, shape, dtype=np.uint8)
    blocks = rng.integers(-20, 20, (shape[0] // 8 + 1, shape[1] // 8 + 1)).repeat(8, 0).repeat(8, 1)[: shape[0], : shape[1]]
    flat = np.full(shape, 128, int) + blocks
    for restored in (flat, np.clip(reference + blocks, 0, 255)):
        restored = restored.astype(np.uint8)
        assert psnr_b(restored, reference) == pytest.approx(plain_psnr_b(restored, reference), abs=1e-9)


def test_psnr_b_counts_blocks_of_the_result_alone() -> None:
    smooth = np.tile(np.linspace(50, 200, 64), (64, 1))
    stairs = smooth.reshape(64, 8, 8).mean(2).repeat(8, 1)
    assert psnr_b(stairs, smooth) < psnr(stairs, smooth) - 1
    assert psnr_b(smooth, stairs) == pytest.approx(psnr(smooth, stairs), abs=1e-9)
    moved = np.roll(stairs, 4, 1)  # steps, but none where JPEG's blocks meet
    assert psnr_b(moved, moved + 3) == pytest.approx(psnr(moved, moved + 3), abs=1e-9)
    assert psnr_b(smooth, smooth) == math.inf
    colour = np.stack((stairs, smooth, moved), -1)
    other = np.stack((smooth, smooth + 1, moved + 1), -1)
    # Of colours: the mean of the raised errors, told back from the values of each channel.
    errors = [255**2 / 10 ** (psnr_b(colour[..., k], other[..., k]) / 10) for k in range(3)]
    assert psnr_b(colour, other) == pytest.approx(10 * math.log10(255**2 / np.mean(errors)))
    assert psnr_b(colour, other) <= psnr(colour, other, channel="rgb")


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ssim_3d(np.zeros((20, 20, 3)), np.zeros((20, 21, 3))), "one shape"),
        (lambda: ssim_3d(np.zeros((20, 20)), np.zeros((20, 20))), "one shape"),
        (lambda: ssim_3d(np.zeros((20, 20, 3)), np.zeros((20, 20, 3)), border=10), "smaller border"),
        (lambda: psnr_b(np.zeros((8, 20)), np.zeros((8, 20))), "larger than a block"),
        (lambda: psnr_b(np.zeros((20, 20)), np.zeros((20, 24))), "one shape"),
    ],
)
def test_errors_say_what_is_needed(call: object, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        call()  # type: ignore[operator]


def test_masked_scores_are_the_usual_ones_where_nothing_is_masked() -> None:
    restored, reference = pair(40, 50)
    whole = np.ones((40, 50))
    assert masked_scores(restored, reference, whole) == pytest.approx(
        (psnr(restored, reference, channel="rgb"), ssim(restored, reference, channel="rgb")), abs=1e-9
    )
    part = whole.copy()
    part[:, 30:] = 0
    hidden = [each * part[..., None] for each in (restored, reference)]
    assert masked_scores(*hidden, part)[0] == pytest.approx(psnr(restored[:, :30], reference[:, :30], channel="rgb"), abs=1e-9)


def test_alignment_undoes_a_shift_and_a_change_of_brightness() -> None:
    pytest.importorskip("cv2", reason="RealBlur's protocol needs opencv-python-headless")
    from scipy.ndimage import gaussian_filter

    scene = gaussian_filter(np.random.default_rng(2).random((140, 160, 3)), (3, 3, 0))
    scene = 40 + 150 * (scene - scene.min()) / np.ptp(scene)
    reference, restored = scene[10:110, 10:130], 0.8 * scene[12:112, 13:133]
    assert psnr(restored, reference, channel="rgb") < 21
    aligned, shown, mask = align(restored, reference)
    assert masked_scores(aligned, shown, mask)[0] > 40
    assert 0.9 < mask.mean() < 1


def test_without_opencv_the_repair_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ResourceError, match="opencv-python-headless"):
        alignment.require_opencv("RealBlur-J")
