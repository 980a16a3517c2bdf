"""Degradation of faces: what is drawn against the published ranges, and pairs against numpy, SciPy and torch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray
from pydantic import ValidationError
from scipy import ndimage
from torch.nn import functional as F

from hybrid.errors import RequestError
from restore.degradations import operations
from restore.degradations.blur_kernels import GaussianKernel
from restore.degradations.steps import GaussianNoise, Haze, Shrink, run
from restore.faces.degradation import FACE_PRESETS, FaceDegradation, FacePlan, base, extending, face_sheet, sharp
from restore.images.resize import imresize, round_to_uint8

DRAWS = 4000


def face(edge: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random colours, darker on the left."""
    rng = np.random.default_rng(seed)
    smooth = imresize(rng.integers(60, 196, (edge // 8, edge // 8, 3), dtype=np.uint8), 8, "uint8")
    return (smooth * np.linspace(0.5, 1, edge)[:, None]).astype(np.uint8)


def plans(degradation: FaceDegradation, size: int = 512, count: int = DRAWS) -> list[FacePlan]:
    rng = np.random.default_rng(1)
    return [degradation.draw((size, size), rng) for _ in range(count)]


def assert_share(found: int, probability: float, count: int = DRAWS) -> None:
    assert abs(found - probability * count) < 4.5 * np.sqrt(probability * (1 - probability) * count)


# What is drawn ---------------------------------------------------------------------------------------------------


def test_base_is_the_published_order_and_ranges() -> None:
    drawn = plans(base())
    names = [operations.Blur, operations.Resize, operations.GaussianNoise, operations.Compression, operations.Resize]
    assert all([type(operation) for operation in plan.versions[0]] == names and len(plan.versions) == 1 for plan in drawn)
    assert_share(sum(plan.mirrored for plan in drawn), 0.5)
    assert not any(plan.gray or plan.square or any(plan.shift) for plan in drawn)
    kernels, small, noise, files, last = zip(*(plan.versions[0] for plan in drawn), strict=True)
    gaussians = [blur.kernel for blur in kernels]
    assert all(isinstance(kernel, GaussianKernel) and kernel.beta == 1 and kernel.profile == "gaussian" for kernel in gaussians)
    assert set(Counter(kernel.size for kernel in gaussians)) == {39, 41}
    assert_share(sum(kernel.size == 39 for kernel in gaussians), 0.5)
    assert_share(sum(kernel.sigma[0] == kernel.sigma[1] for kernel in gaussians), 0.5)
    for values, low, high in (
        ([kernel.sigma[0] for kernel in gaussians], 0.1, 10),
        ([512 / resize.size[0] for resize in small], 0.8, 8.0),
        ([each.sigma for each in noise], 0, 20),
        ([each.quality for each in files], 60, 100),
    ):
        assert low - 1e-9 <= min(values) < low + 0.02 * (high - low) and high - 0.02 * (high - low) < max(values) < high * 1.016
        assert np.mean(values) == pytest.approx((low + high) / 2, abs=4.5 * (high - low) / np.sqrt(12 * DRAWS) + 0.03)
    assert {(each.format, each.chroma) for each in files} == {("jpeg", "4:2:0")} and not any(each.gray for each in noise)
    assert {(resize.method, resize.antialias) for resize in small + last} == {("bilinear", False)}
    assert {resize.size for resize in last} == {(512, 512)}


def test_extending_adds_its_four_at_their_rates() -> None:
    drawn = plans(extending(), count=10 * DRAWS)
    shifts = np.array([plan.shift for plan in drawn if any(plan.shift)])
    assert_share(len(shifts), 0.2 * (1 - 1 / 65**2), 10 * DRAWS)
    assert shifts.min() == -32 and shifts.max() == 32
    squares = [plan.square for plan in drawn if plan.square]
    assert_share(len(squares), 0.1, 10 * DRAWS)
    assert {min(square.edge for square in squares), max(square.edge for square in squares)} == {128, 256}
    assert min(square.top for square in squares) == 0 and max(square.left + square.edge for square in squares) == 512
    assert_share(sum(plan.gray for plan in drawn), 0.008, 10 * DRAWS)
    versions = [version for plan in drawn for version in plan.versions]
    hazes = [version[1].clear for version in versions if isinstance(version[1], operations.Haze)]
    assert_share(len(hazes), 0.008, len(versions))
    assert 0.75 <= min(hazes) < 0.77 and 0.93 < max(hazes) <= 0.95
    assert all(len(plan.versions) == (2 if plan.square else 1) for plan in drawn)
    assert all(plan.versions[0] != plan.versions[1] for plan in drawn if plan.square)


def test_lengths_follow_the_size_of_the_face() -> None:
    drawn = plans(extending(256), 256)
    assert np.abs([plan.shift for plan in drawn]).max() == 16
    assert max(plan.square.edge for plan in drawn if plan.square) <= 128
    assert {plan.versions[0][0].kernel.size for plan in drawn} == {19, 21}  # type: ignore[attr-defined]
    small = [next(o for o in plan.versions[0] if isinstance(o, operations.Resize)).size[0] for plan in drawn]
    assert 64 <= min(small) < 66 and 315 < max(small) <= 320


# Pairs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", FACE_PRESETS)
def test_same_pair_from_the_same_seed(preset: str) -> None:
    degradation, given = FACE_PRESETS[preset](64), face()
    before = given.copy()
    first, second = (degradation.apply(given, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first.image, second.image) and np.array_equal(first.target, second.target)
    assert first.plan == second.plan and np.array_equal(given, before)
    assert first.image.dtype == np.uint8 and first.target.dtype == np.float32 and first.image.shape == first.target.shape
    other = degradation.apply(given, np.random.default_rng(8))
    assert other.plan != first.plan


def test_steps_against_scipy_and_torch() -> None:
    """All but the noise and the file, which have tests of their own."""
    degradation = FaceDegradation(mirror=0, steps=tuple(s for s in base(64).steps if s.kind not in ("gaussian-noise", "jpeg")))
    pair = degradation.apply(face(), np.random.default_rng(2))
    blur, small, _ = pair.plan.versions[0]
    assert isinstance(blur, operations.Blur) and isinstance(small, operations.Resize)
    blurred = np.stack(
        [ndimage.convolve(plane, blur.kernel.array(), mode="mirror") for plane in np.moveaxis(face() / 255.0, 2, 0)]
    )
    x = F.interpolate(torch.from_numpy(blurred)[None], size=small.size, mode="bilinear", align_corners=False)
    expected = F.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False)[0].numpy().transpose(1, 2, 0)
    assert np.abs(pair.image - expected * 255).max() <= 0.51


def test_haze_lays_white_over_the_picture() -> None:
    pair = FaceDegradation(mirror=0, steps=(Haze(clear=(0.8, 0.8)),)).apply(face(), np.random.default_rng(0))
    assert np.abs(pair.image - (0.8 * face() + 0.2 * 255)).max() <= 0.51


def test_shift_is_a_crop_of_the_padded_face() -> None:
    """Offsets 0 to 64 in a face padded by 32, as the published code has it; marked pixels are where `moved` says."""
    given, seen = face(96), set()
    given[40, 30] = (255, 0, 255)
    for seed in range(12):
        pair = FaceDegradation(shift=1, reach=32).apply(given, np.random.default_rng(seed))
        source = given[:, ::-1] if pair.plan.mirrored else given
        padded = np.pad(source, ((32, 32), (32, 32), (0, 0)), "symmetric")
        top, left = 32 - pair.plan.shift[0], 32 - pair.plan.shift[1]
        np.testing.assert_array_equal(pair.image, padded[top : top + 96, left : left + 96])
        x, y = pair.plan.moved(np.array([[30, 40]]), 96)[0].astype(int)
        if 0 <= x < 96 and 0 <= y < 96:
            assert tuple(pair.image[y, x]) == (255, 0, 255)
        seen.add(pair.plan.mirrored)
    assert seen == {True, False}


def test_uneven_faces_are_two_versions() -> None:
    degradation = extending(64).model_copy(update={"uneven": 1.0, "shift": 0.0, "mirror": 0.0, "gray": 0.0})
    pair = degradation.apply(face(), np.random.default_rng(5))
    square = pair.plan.square
    assert square is not None
    inside = np.zeros((64, 64), bool)
    inside[square.top : square.top + square.edge, square.left : square.left + square.edge] = True
    first, second = (round_to_uint8(run(version, pair.target) * 255) for version in pair.plan.versions)
    np.testing.assert_array_equal(pair.image, np.where(inside[..., None], first, second))
    assert (first != second).any()


def test_gray_pairs_have_the_luma_of_both() -> None:
    pair = FaceDegradation(mirror=0, gray=1).apply(face(), np.random.default_rng(0))
    expected = face() @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(pair.target * 255, expected[..., None].repeat(3, 2), atol=1e-3)
    assert np.abs(pair.image - expected[..., None]).max() <= 0.51


def test_sharp_faces_are_not_degraded() -> None:
    pair = sharp(64).apply(face(), np.random.default_rng(3))
    np.testing.assert_array_equal(pair.image, round_to_uint8(pair.target * 255))


def test_target_is_not_rounded() -> None:
    given = face().astype(np.float32) / 255 * np.float32(0.9)
    pair = base(64).model_copy(update={"mirror": 0.0}).apply(given, np.random.default_rng(3))
    np.testing.assert_array_equal(pair.target, given)


# Edges -----------------------------------------------------------------------------------------------------------


def test_degradations_go_through_yaml() -> None:
    for preset in FACE_PRESETS.values():
        text = yaml.safe_dump(preset(256).model_dump(mode="json"))
        assert FaceDegradation.model_validate(yaml.safe_load(text)) == preset(256)
    with pytest.raises(ValidationError, match="mirrored"):
        FaceDegradation.model_validate({"mirrored": 0.5})
    with pytest.raises(ValidationError, match="the lower end 30 exceeds the upper end 20"):
        FaceDegradation(square=(30, 20))


def test_faces_that_cannot_be_degraded_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(
        RequestError, match=r"A face of 64 x 64 pixels is too small to be shifted by 32, .* such as extending\(256\)"
    ):
        extending().apply(face(), rng)
    with pytest.raises(RequestError, match="Cannot degrade uint8 values of shape"):
        base(64).apply(face()[..., 0], rng)
    with pytest.raises(RequestError, match="kind: resize"):
        FaceDegradation(steps=(Shrink(divisors=(2, 2)), GaussianNoise())).apply(face(), rng)


def test_sheet_shows_the_pairs_and_what_was_drawn() -> None:
    figure = face_sheet([face(), face(seed=1)], [3, 4, 5], extending(64))
    panels = [axes for axes in figure.axes if axes.images]
    assert len(panels) == 6
    pair = extending(64).apply(face(seed=1), np.random.default_rng(4))
    np.testing.assert_array_equal(panels[3].images[0].get_array(), pair.image)
    text = panels[3].texts[0].get_text().replace("\n   ", " ")
    assert text.split("\n") == ["seed 4", *pair.plan.lines()]
