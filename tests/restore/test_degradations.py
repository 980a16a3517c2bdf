"""Real-world degradation: noise by its statistics, files by Pillow, presets by what they draw, and the same bytes again."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from collections import Counter
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from skimage.color import rgb2xyz
from skimage.color.colorconv import xyz_from_rgb

from hybrid.errors import RequestError
from restore.degradations import operations
from restore.degradations.blur_kernels import GaussianKernel, SincKernel
from restore.degradations.operations import Operation, linear_to_srgb, srgb_to_linear
from restore.degradations.pipeline import PRESETS, REAL_WORLD_X4, Pipeline
from restore.degradations.sheet import degradation_sheet, single_degradations
from restore.degradations.steps import AnyOrder, AnyStep, Blur, Compression, Frame, OneOf, Resize, Shape, Sinc, run
from restore.images.resize import imresize, round_to_uint8

DEVIATIONS = 4.5
"""Standard errors that a statistic may be off; the seeds are fixed, so a test that passes always passes."""


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random colours with some grain."""
    rng = np.random.default_rng(seed)
    smooth = imresize(rng.integers(40, 216, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8), 8, "uint8")
    return smooth[:height, :width] + rng.integers(-20, 21, (height, width, 3)).astype(np.uint8)


def as_floats(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return image.astype(np.float32) / np.float32(255)


def flat(value: float, edge: int = 128) -> NDArray[np.float32]:
    return np.full((edge, edge, 3), value, np.float32)


def assert_moments(noise: NDArray[Any], variance: float) -> None:
    """Mean 0 and the variance given, within the confidence that the number of independent samples allows."""
    n = noise.size
    assert abs(noise.mean()) < DEVIATIONS * math.sqrt(variance / n)
    assert noise.var() == pytest.approx(variance, rel=DEVIATIONS * math.sqrt(2.5 / n))


# Noise -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 20.0])
def test_gaussian_noise_has_its_mean_and_variance(sigma: float) -> None:
    colour = operations.GaussianNoise(sigma, False, 3).apply(flat(0.5)) - 0.5
    assert_moments(colour, (sigma / 255) ** 2)
    correlation = np.corrcoef(colour.reshape(-1, 3).T)
    assert np.abs(correlation[~np.eye(3, dtype=bool)]).max() < DEVIATIONS / 128
    gray = operations.GaussianNoise(sigma, True, 4).apply(flat(0.5)) - 0.5
    assert_moments(gray[..., 0], (sigma / 255) ** 2)
    np.testing.assert_array_equal(gray, gray[..., :1].repeat(3, axis=2))


def patches(*values: float) -> NDArray[np.float32]:
    """Flat fields below one another, and a first row of all 256 values."""
    row = np.arange(256, dtype=np.float32) / np.float32(255)
    fields = np.repeat(np.array(values, np.float32), 64)[:, None].repeat(256, 1)
    return np.concatenate((row[None], fields))[..., None].repeat(3, 2)


@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_poisson_noise_follows_brightness(scale: float) -> None:
    values = (51 / 255, 153 / 255)
    image = patches(*values)
    noise = operations.PoissonNoise(scale, False, 5).apply(image) - image
    for k, value in enumerate(values):
        assert_moments(noise[1 + 64 * k : 65 + 64 * k], scale**2 * value / 256)
    gray = operations.PoissonNoise(scale, True, 5).apply(image) - image
    np.testing.assert_allclose(gray[1:], gray[1:, :, :1].repeat(3, 2), atol=1e-6)
    assert_moments(gray[1:65, :, 0], scale**2 * values[0] / 256)


def test_gray_poisson_noise_is_that_of_the_luma() -> None:
    image = patches(0.5) * np.array([1.0, 0.5, 0.25], np.float32)
    noise = (operations.PoissonNoise(1.0, True, 6).apply(image) - image)[1:]
    luma = 0.299 * 0.5 + 0.587 * 0.25 + 0.114 * 0.125  # the ramp then has 256 * 0.62 values, which make 256 levels
    assert_moments(noise[..., 1], luma / 256)


@pytest.mark.parametrize(("values", "levels"), [((0.6,), 1), ((0.4, 0.6), 2), ((0.2, 0.4, 0.6), 4), ((0, 0.2, 0.4, 0.6, 0.8), 8)])
def test_poisson_levels_are_the_next_power_of_two(values: tuple[float, ...], levels: int) -> None:
    image = np.repeat(np.array(values, np.float32), 2000)[None, :, None].repeat(3, 2)
    noisy = operations.PoissonNoise(1.0, False, 7).apply(image)
    np.testing.assert_allclose(np.unique(np.rint(noisy * 1e6)), np.rint(np.arange(levels + 1) / levels * 1e6), atol=1)


@pytest.mark.parametrize(("value", "shot", "read"), [(0.5, 2e-4, 1e-7), (0.7, 1e-3, 4e-4), (0.25, 5e-5, 2e-5)])
def test_camera_noise_is_poisson_gaussian_in_linear_light(value: float, shot: float, read: float) -> None:
    noisy = operations.CameraNoise(shot, read, 8).apply(flat(value))
    linear = rgb2xyz(noisy) @ np.linalg.inv(xyz_from_rgb).T  # scikit-image's way to linear RGB
    expected = rgb2xyz(flat(value, 1)) @ np.linalg.inv(xyz_from_rgb).T
    assert_moments(linear - expected, shot * expected.mean() + read)


def test_srgb_there_and_back() -> None:
    values = np.linspace(0, 1, 256)
    np.testing.assert_allclose(linear_to_srgb(srgb_to_linear(values)), values, atol=1e-7)


# Compression -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quality", [1, 30, 61, 95])
@pytest.mark.parametrize(("kind", "options"), [("jpeg", {"subsampling": 2}), ("webp", {"method": 4})])
def test_files_are_those_of_pillow(kind: Any, options: dict[str, int], quality: int) -> None:
    image = photograph(37, 51)
    file = io.BytesIO()
    Image.fromarray(image).save(file, kind, quality=quality, **options)
    with Image.open(file) as stored:
        expected = np.asarray(stored.convert("RGB"))
    result = operations.Compression(kind, quality).apply(as_floats(image))
    np.testing.assert_array_equal(round_to_uint8(result * 255), expected)


def test_what_a_format_does_not_hold_is_refused() -> None:
    with pytest.raises(RequestError, match=r"WebP 80 does not hold a picture of 16384 x 1 pixels.*in pieces"):
        operations.Compression("webp", 80).apply(np.zeros((1, 16384, 3), np.float32))


# Pipelines -------------------------------------------------------------------------------------------------------


@given(st.sampled_from(sorted(PRESETS)), st.integers(1, 4), st.tuples(st.integers(4, 45), st.integers(4, 45)), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_any_size_gives_its_part(preset: str, scale: int, size: tuple[int, int], seed: int) -> None:
    image = photograph(*size)
    kept = image.copy()
    low = PRESETS[preset](scale).apply(image, np.random.default_rng(seed))
    assert low.image.shape == (size[0] // scale, size[1] // scale, 3) and low.image.dtype == np.uint8
    np.testing.assert_array_equal(image, kept)
    # The record is the whole truth: the same operations on the same picture give the same bytes.
    again = round_to_uint8(run(low.steps, as_floats(image)) * 255)
    np.testing.assert_array_equal(again, low.image)
    assert all(str(step) and hash(step) for step in low.steps)


def test_the_seed_alone_decides() -> None:
    image = photograph(64, 64)
    first = REAL_WORLD_X4.apply(image, np.random.default_rng(11))
    np.random.seed(5)
    expected = np.random.RandomState(5).random()
    second = REAL_WORLD_X4.apply(as_floats(image), np.random.default_rng(11))
    assert np.random.random() == expected
    np.testing.assert_array_equal(first.image, second.image)
    assert first.steps == second.steps
    assert REAL_WORLD_X4.apply(image, np.random.default_rng(12)).steps != first.steps
    with pytest.raises(FrozenInstanceError):
        first.steps = ()  # type: ignore[misc]


def test_another_process_makes_the_same_bytes() -> None:
    script = (
        "import hashlib, numpy as np; from restore.degradations.pipeline import REAL_WORLD_X4 as p\n"
        "image = np.arange(48 * 48 * 3).reshape(48, 48, 3).astype(np.uint8)\n"
        "r = [p.apply(image, np.random.default_rng(s)) for s in range(6)]\n"
        "print(hashlib.sha256(b''.join(d.image.tobytes() for d in r)).hexdigest(), r[0].steps)"
    )
    root = Path(__file__).resolve().parents[2]
    outputs = {
        subprocess.run(
            [sys.executable, "-c", script], cwd=root, env={"PYTHONHASHSEED": seed}, check=True, capture_output=True
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


def near(count: int, n: int, share: float) -> bool:
    return abs(count - n * share) < DEVIATIONS * math.sqrt(n * share * (1 - share)) + 1e-9


def test_blur_draws_shapes_and_ranges_as_asked() -> None:
    step, rng, n = Blur(), np.random.default_rng(0), 4000
    kernels = [op.kernel for _ in range(n) for op in step.draw(rng, Frame((9, 9), (9, 9))) if isinstance(op, operations.Blur)]
    assert all(isinstance(k, GaussianKernel) for k in kernels) and len(kernels) == n
    gaussians = [k for k in kernels if isinstance(k, GaussianKernel)]
    assert {k.size for k in gaussians} == set(range(7, 22, 2))
    sigmas = np.array([k.sigma for k in gaussians])
    assert 0.2 <= sigmas.min() < 0.25 and 2.95 < sigmas.max() <= 3
    shares = Counter((k.profile, k.beta != 1, k.sigma[0] != k.sigma[1]) for k in gaussians)
    assert near(shares["gaussian", False, False], n, 0.45) and near(shares["gaussian", False, True], n, 0.25)
    assert near(shares["gaussian", True, False], n, 0.12) and near(shares["gaussian", True, True], n, 0.03)
    assert near(sum(k.profile == "plateau" for k in gaussians), n, 0.15)
    betas = np.array([k.beta for k in gaussians if k.profile == "gaussian" and k.beta != 1])
    assert betas.min() >= 0.5 and betas.max() <= 4 and near(int((betas < 1).sum()), len(betas), 0.5)
    plateaus = np.array([k.beta for k in gaussians if k.profile == "plateau"])
    assert plateaus.min() == 1 and plateaus.max() <= 2 and near(int((plateaus == 1).sum()), len(plateaus), 0.5)


def test_sinc_cutoffs_rise_for_small_kernels() -> None:
    rng = np.random.default_rng(1)
    kernels = [op.kernel for _ in range(600) for op in Sinc().draw(rng, Frame((9, 9), (9, 9))) if isinstance(op, operations.Blur)]
    cutoff = {
        small: [k.cutoff for k in kernels if isinstance(k, SincKernel) and (k.size < 13) is small] for small in (True, False)
    }
    assert math.pi / 3 <= min(cutoff[True]) < 1.1 and math.pi / 5 <= min(cutoff[False]) < 0.68
    assert max(cutoff[True] + cutoff[False]) <= math.pi


Plan = tuple[Operation, ...]


def test_the_real_world_preset_is_the_published_one() -> None:
    n, rng = 3000, np.random.default_rng(2)
    plans: list[Plan] = [REAL_WORLD_X4.draw((400, 400), rng) for _ in range(n)]
    count = Counter[str]()
    for plan in plans:
        blur, resize, noise, jpeg, *second = plan
        assert isinstance(blur, operations.Blur) and isinstance(resize, operations.Resize)
        count["sinc first"] += isinstance(blur.kernel, SincKernel)
        factor = resize.size[0] / 400
        assert 0.147 <= factor <= 1.5 and resize.size[0] == resize.size[1]
        count["up"] += factor > 1
        count["keep"] += factor == 1
        count[resize.method] += 1
        count["gaussian"] += in_range(noise, 30, 3)
        count["gray"] += noise.gray  # type: ignore[attr-defined]
        assert isinstance(jpeg, operations.Compression) and jpeg.format == "jpeg" and 30 <= jpeg.quality <= 95
        count["second blur"] += isinstance(second[0], operations.Blur)
        resize, noise, *end = second[isinstance(second[0], operations.Blur) :]
        assert isinstance(resize, operations.Resize) and 29 <= resize.size[0] <= 120
        count["second up"] += resize.size[0] > 100
        count["second keep"] += resize.size[0] == 100
        in_range(noise, 25, 2.5)
        kinds = [type(op).__name__ for op in end]
        assert [kind for kind in kinds if kind != "Blur"] in (["Resize", "Compression"], ["Compression", "Resize"])
        assert "Blur" not in kinds or kinds[kinds.index("Resize") + 1] == "Blur"
        count["final sinc"] += "Blur" in kinds
        count["JPEG last"] += kinds[-1] == "Compression"
    shares = {"sinc first": 0.1, "up": 0.2, "keep": 0.1, "area": 1 / 3, "bilinear": 1 / 3, "bicubic": 1 / 3, "gaussian": 0.5}
    shares |= {"gray": 0.4, "second blur": 0.8, "final sinc": 0.8, "JPEG last": 0.5}
    shares |= {"second up": 0.3 * 0.95, "second keep": 0.3 + 0.3 * 0.05}  # factors up to 1.01 leave 100 pixels 100
    wrong = {name: count[name] / n for name, share in shares.items() if not near(count[name], n, share)}
    assert not wrong


def in_range(noise: Operation, sigma: float, scale: float) -> bool:
    if isinstance(noise, operations.GaussianNoise):
        assert 1 <= noise.sigma <= sigma
        return True
    assert isinstance(noise, operations.PoissonNoise) and 0.05 <= noise.scale <= scale
    return False


def test_combined_steps_are_drawn_by_weight_and_order() -> None:
    rng, frame, n = np.random.default_rng(3), Frame((8, 8), (8, 8)), 1000
    choice = OneOf(steps=(Compression(kind="jpeg"), Compression(kind="webp")), weights=(3, 1), probability=0.5)
    drawn = Counter("".join(str(op)[0] for op in choice.draw(rng, frame)) for _ in range(n))
    assert near(drawn["J"], n, 0.375) and near(drawn["W"], n, 0.125) and near(drawn[""], n, 0.5)
    order = AnyOrder(groups=((Compression(kind="jpeg"), Resize()), (Compression(kind="webp"),)))
    kinds = Counter("".join(str(op)[0] for op in order.draw(rng, frame)) for _ in range(n))
    assert set(kinds) == {"JaW", "JbW", "WJa", "WJb"}  # the resize, by area, bilinear or bicubic, stays behind the JPEG
    assert near(kinds["JaW"] + kinds["JbW"], n, 0.5)


def test_a_step_alone() -> None:
    image = flat(0.5, 20)
    result = Compression(kind="jpeg", quality=(5, 5)).apply(image, np.random.default_rng(0))
    np.testing.assert_array_equal(result, operations.Compression("jpeg", 5).apply(image))


# Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "field", "why"),
    [
        ({"kind": "blur", "sigma": [3, 0.2]}, "sigma", "lower end 3 exceeds"),
        ({"kind": "blur", "sizes": [7, 20]}, "sizes", "odd"),
        ({"kind": "blur", "shapes": {"round": 1}}, "shapes.round", "isotropic"),
        ({"kind": "blur", "shapes": {"plateau": 0}}, "blur", "above 0"),
        ({"kind": "sinc", "cutoff": [0, 1]}, "cutoff.0", "greater than 0"),
        ({"kind": "resize", "factors": [0.2, 0.8]}, "resize", "at least 1"),
        ({"kind": "resize", "methods": ["lanczos"]}, "methods.0", "area"),
        ({"kind": "gaussian-noise", "gray": 1.5}, "gray", "less than or equal to 1"),
        ({"kind": "camera-noise", "shot": [0.1, 2]}, "shot.1", "less than or equal to 1"),
        ({"kind": "jpeg", "quality": [30, 101]}, "quality.1", "100"),
        ({"kind": "webp", "qualities": [30, 90]}, "qualities", "not permitted"),
        ({"kind": "one-of", "steps": [{"kind": "sinc"}], "weights": [1, 2]}, "one-of", "1 steps and 2 weights"),
        ({"kind": "fog"}, "steps.0", "camera-noise"),
        ({"kind": "blur", "probability": -0.1}, "probability", "greater than or equal to 0"),
    ],
)
def test_faults_are_named(step: dict[str, Any], field: str, why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Pipeline.model_validate({"scale": 2, "steps": [step]})
    places = {".".join(map(str, error["loc"])): error["msg"] for error in refused.value.errors()}
    assert any(place.endswith(field) or f"{field}." in place for place in places) and why in " ".join(places.values())


@pytest.mark.parametrize(
    ("image", "match"),
    [
        (np.zeros((8, 8), np.uint8), r"uint8 values of shape \(8, 8\).*\(H, W, 3\)"),
        (np.zeros((8, 8, 3), np.uint16), "uint16 values"),
        (np.full((8, 8, 3), 1.5, np.float32), r"leave \[0, 1\]"),
        (np.full((8, 8, 3), np.nan, np.float32), r"leave \[0, 1\]"),
        (np.zeros((3, 8, 3), np.uint8), "8 x 3 pixels is smaller than the scale 4"),
    ],
)
def test_pictures_that_are_none_are_refused(image: NDArray[Any], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        REAL_WORLD_X4.apply(image, np.random.default_rng(0))


def test_steps_must_lead_to_the_output() -> None:
    with pytest.raises(RequestError, match=r"ends at 8 x 12 pixels, not at 4 x 6.*kind: resize"):
        Pipeline(scale=2, steps=(Blur(),)).apply(np.zeros((12, 8, 3), np.uint8), np.random.default_rng(0))


def test_pipelines_go_through_yaml() -> None:
    for preset in PRESETS.values():
        text = yaml.safe_dump(preset(3).model_dump(mode="json"))
        assert Pipeline.model_validate(yaml.safe_load(text)) == preset(3)
    for kind in TypeAdapter(AnyStep).json_schema()["discriminator"]["mapping"]:
        assert f"`{kind}`" in (Path(__file__).parents[2] / "docs" / "degradations.md").read_text()
    assert set(Blur().shapes) == set(get_args(Shape))


def test_the_sheet_shows_every_kind_and_what_was_drawn() -> None:
    image = photograph(61, 50)
    figure = degradation_sheet(image, seeds=[3, 4, 5], pipeline=PRESETS["first-order"](2))
    panels = [axes for axes in figure.axes if axes.images and axes.texts]
    texts = [panel.texts[0].get_text() for panel in panels]
    kinds = single_degradations((61, 50))
    assert len(panels) == 1 + len(kinds) + 3
    assert {type(op) for op in kinds} == {
        operations.Blur, operations.Resize, operations.Compression, operations.GaussianNoise, operations.PoissonNoise,
        operations.CameraNoise,
    }  # fmt: skip
    degraded = PRESETS["first-order"](2).apply(image[:60], np.random.default_rng(4))
    np.testing.assert_array_equal(panels[-2].images[0].get_array(), degraded.image)
    assert texts[-2].replace("\n   ", " ").split("\n") == ["seed 4", *map(str, degraded.steps)]
