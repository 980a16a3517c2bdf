"""Blur of movement and focus, noise and JPEG at the picture's own size: judged by SciPy, Pillow, geometry and statistics."""

from __future__ import annotations

import hashlib
import io
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from scipy import ndimage
from skimage.color import rgb2xyz
from skimage.color.colorconv import xyz_from_rgb

from restore.degradations import operations
from restore.degradations.blur_kernels import GaussianKernel, Kernel
from restore.degradations.blur_sheet import KERNELS, blur_sheet
from restore.degradations.motion_kernels import DefocusKernel, MotionKernel, ShakeKernel, rasterise
from restore.degradations.pipeline import SAME_SIZE_PRESETS, Degraded, Pipeline, gaussian_noise, jpeg, motion_blur
from restore.degradations.steps import CameraShake, Compression, Defocus, Frame, ObjectMotion, run
from restore.images.resize import imresize, round_to_uint8

SHAKE = ShakeKernel(30, 0.3, 0.02, 1.0, 5)
MOVING: list[ShakeKernel | MotionKernel] = [
    SHAKE,
    ShakeKernel(12.3, 0.6, 0.0, 0.0, 8),
    ShakeKernel(9, 0.1, 0.0, 0.0, 2, roll=0.05, place=(40.0, -90.0)),
    MotionKernel(7.0, math.radians(200)),
    MotionKernel(20.5, 0.3, math.radians(-120)),
]


def photograph(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Smooth random colours with some grain."""
    rng = np.random.default_rng(seed)
    smooth = imresize(rng.integers(40, 216, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8), 8, "uint8")
    return smooth[:height, :width] + rng.integers(-20, 21, (height, width, 3)).astype(np.uint8)


def as_floats(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    return image.astype(np.float32) / np.float32(255)


def convolved(image: NDArray[Any], kernel: NDArray[np.float64]) -> NDArray[Any]:
    """SciPy's, mirrored at the edges."""
    return np.stack([ndimage.convolve(image[..., c].astype(np.float64), kernel, mode="mirror") for c in range(3)], -1)


def centre_of_mass(kernel: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array(ndimage.center_of_mass(kernel)) - len(kernel) // 2


# Kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", KERNELS, ids=str)
def test_kernels_are_whole_centred_and_no_larger_than_they_need(kernel: Kernel) -> None:
    array = kernel.array()
    assert array.shape == (kernel.size, kernel.size) and kernel.size % 2 == 1 and array.dtype == np.float64
    assert array.min() >= 0 and array.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(centre_of_mass(array), 0, atol=1e-9)
    rim = np.ones_like(array, bool)
    rim[1:-1, 1:-1] = False
    assert array[rim].max() > 0


@pytest.mark.parametrize("kernel", MOVING, ids=str)
def test_convolution_is_the_mean_of_the_picture_moved_along_the_path(kernel: ShakeKernel | MotionKernel) -> None:
    image, path = np.random.default_rng(0).random((60, 70)), kernel.path()
    moved = np.mean([ndimage.shift(image, point, order=1, mode="mirror") for point in path], 0)
    reach = kernel.size
    result = operations.Blur(kernel).apply(np.repeat(image[..., None], 3, 2).astype(np.float32))[..., 1]
    inside = slice(reach, -reach)
    np.testing.assert_allclose(result[inside, inside], moved[inside, inside], atol=1e-6)


@pytest.mark.parametrize("kernel", MOVING[:2] + MOVING[3:], ids=str)
def test_paths_have_their_length(kernel: ShakeKernel | MotionKernel) -> None:
    steps = np.linalg.norm(np.diff(kernel.path(), axis=0), axis=1)
    assert steps.sum() == pytest.approx(kernel.length) and np.ptp(steps) < 1e-9


def test_motion_goes_where_it_is_told() -> None:
    line = MotionKernel(24, math.radians(30)).array()
    rows, columns = np.indices(line.shape) - len(line) // 2
    moments = [[(line * a * b).sum() for b in (columns, rows)] for a in (columns, rows)]
    values, vectors = np.linalg.eigh(moments)
    # An even line has variance length^2 / 12 along itself; bilinear weights add at most 1/4 on each axis.
    assert values[1] == pytest.approx(24**2 / 12, abs=0.5) and values[0] < 0.3
    direction = vectors[:, 1] * np.sign(vectors[0, 1])
    assert math.degrees(math.atan2(direction[1], direction[0])) == pytest.approx(30, abs=0.5)
    arc = MotionKernel(30, 0.7, math.radians(90)).path()
    radius = 30 / math.radians(90)
    assert np.linalg.norm(arc[-1] - arc[0]) == pytest.approx(2 * radius * math.sin(math.radians(45)), rel=1e-4)
    full = MotionKernel(40, 0.0, 2 * math.pi).path()
    np.testing.assert_allclose(np.linalg.norm(full - full[:-1].mean(0), axis=1), 40 / (2 * math.pi), rtol=1e-3)


def test_the_numbers_of_a_shake_do_what_they_say() -> None:
    def spread(**numbers: float) -> float:
        given = {"jitter": 0.3, "pull": 0.0, "jolts": 0.0} | numbers
        return float(np.mean([np.linalg.norm(ShakeKernel(40, seed=s, **given).path().std(0)) for s in range(40)]))  # type: ignore[arg-type]

    straight = ShakeKernel(40, 0, 0, 0, 3).path()
    assert np.linalg.norm(straight[-1] - straight[0]) == pytest.approx(40)
    assert spread(jitter=0.05) > 1.1 * spread() > 1.2 * spread(jitter=1.0)
    assert spread(pull=0.05) < 0.9 * spread() and spread(jitter=0.05, jolts=3) < 0.9 * spread(jitter=0.05)
    # Directions of a walk with jitter s per root of a pixel decorrelate as exp(-s^2 d / 2).
    turns = []
    for seed in range(400):
        path = ShakeKernel(8, 0.3, 0, 0, seed).path()
        first, last = path[1] - path[0], path[-1] - path[-2]
        turns.append(first @ last / np.linalg.norm(first) / np.linalg.norm(last))
    assert np.mean(turns) == pytest.approx(math.exp(-(0.3**2) * 8 / 2), abs=0.05)


def test_a_roll_turns_the_picture_about_its_middle() -> None:
    rolled = ShakeKernel(1e-3, 0, 0, 0, 1, roll=0.1, place=(0.0, 200.0)).path()
    assert np.ptp(rolled[:, 0]) == pytest.approx(2 * 200 * math.sin(0.05), rel=1e-3)  # at the right: up or down alone
    assert np.ptp(rolled[:, 1]) == pytest.approx(200 * (1 - math.cos(0.05)), rel=1e-2)
    # A clockwise turn, rows downwards, takes a point on the right downwards and one below to the left.
    assert rolled[-1, 0] > rolled[0, 0]
    below = ShakeKernel(1e-3, 0, 0, 0, 1, roll=0.1, place=(200.0, 0.0)).path()
    assert below[-1, 1] < below[0, 1]


def test_a_point_on_a_pixel_is_one_pixel() -> None:
    np.testing.assert_array_equal(rasterise(np.zeros((3, 2))), [[1.0]])
    np.testing.assert_allclose(rasterise(np.array([[0.25, 0.0], [-0.25, 0.0]]))[:, 1], [0.125, 0.75, 0.125])


@pytest.mark.parametrize("radius", [0.3, 0.5, 1.0, 2.5, 3.2, 7.9])
def test_defocus_covers_pixels_as_a_disk_does(radius: float) -> None:
    array = DefocusKernel(radius).array()
    fine = 400  # points along each side of a pixel
    reach = len(array) // 2
    places = (np.arange(len(array) * fine) + 0.5) / fine - reach - 0.5
    inside = (places[:, None] ** 2 + places**2 <= radius**2).reshape(len(array), fine, len(array), fine).mean((1, 3))
    np.testing.assert_allclose(array, inside / inside.sum(), atol=2e-3 / (math.pi * radius**2))
    assert inside.sum() == pytest.approx(math.pi * radius**2, rel=2e-3)  # the disk lies wholly in the array
    np.testing.assert_array_equal(array, array.T)
    np.testing.assert_allclose(array, np.rot90(array), atol=1e-12)


# Blur ------------------------------------------------------------------------------------------------------------


def test_a_point_becomes_the_kernel_and_not_its_mirror_image() -> None:
    image = np.zeros((61, 61, 3), np.float32)
    image[30, 30] = 1
    reach = SHAKE.size // 2
    result = operations.Blur(SHAKE).apply(image)[30 - reach : 31 + reach, 30 - reach : 31 + reach, 0]
    np.testing.assert_allclose(result, SHAKE.array(), atol=1e-6)
    assert np.abs(SHAKE.array() - SHAKE.array()[::-1, ::-1]).max() > 0.01


@pytest.mark.parametrize("kernel", [SHAKE, DefocusKernel(3.3), MotionKernel(9, 1.0, 0.5)], ids=str)
def test_linear_light_is_that_of_scikit_image(kernel: Kernel) -> None:
    image = as_floats(photograph(40, 50))
    image[10:14, 20:24] = 1
    to_light = np.linalg.inv(xyz_from_rgb).T
    expected = convolved(rgb2xyz(image) @ to_light, kernel.array())
    result = operations.Blur(kernel, linear=True).apply(image)
    assert result.dtype == np.float32 and result.min() >= 0 and result.max() <= 1
    np.testing.assert_allclose(rgb2xyz(result) @ to_light, expected, atol=2e-5)


@pytest.mark.parametrize("shape", [(40, 31), (5, 64), (1, 9), (2, 2)])
@pytest.mark.parametrize("linear", [False, True])
def test_varying_blur_is_the_bilinear_mixture_of_whole_blurred_pictures(shape: tuple[int, int], linear: bool) -> None:
    grid: tuple[tuple[Kernel, ...], ...] = (
        (SHAKE, DefocusKernel(2.2), GaussianKernel(5, (1.0, 1.0))),
        (MotionKernel(5, 0.2), MotionKernel(12, 2.0, 1.0), DefocusKernel(0.4)),
    )
    image = as_floats(photograph(*shape))
    kept = image.copy()
    light = operations.srgb_to_linear(image) if linear else image
    pictures = np.array([[convolved(light, kernel.array()) for kernel in row] for row in grid])
    rows, columns = (np.linspace(0, count - 1, side) for count, side in zip((2, 3), shape, strict=True))
    expected = np.empty(image.shape)
    for r, v in enumerate(rows):
        for c, u in enumerate(columns):
            expected[r, c] = [ndimage.map_coordinates(pictures[:, :, r, c, k], [[v], [u]], order=1)[0] for k in range(3)]
    if linear:
        expected = operations.linear_to_srgb(np.clip(expected, 0, 1))
    result = operations.VaryingBlur(grid, linear).apply(image)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=1e-5)
    np.testing.assert_array_equal(image, kept)


def test_one_kernel_everywhere_is_plain_blur() -> None:
    image = as_floats(photograph(33, 45))
    varying = operations.VaryingBlur(((SHAKE,) * 3,) * 2, True).apply(image)
    np.testing.assert_allclose(varying, operations.Blur(SHAKE, True).apply(image), atol=2e-6)


# Steps -----------------------------------------------------------------------------------------------------------


def test_steps_draw_what_they_are_asked_for() -> None:
    rng, frame = np.random.default_rng(0), Frame((81, 101), (81, 101))
    shakes = [op for _ in range(300) for op in CameraShake(length=(3, 9), jolts=(0, 2)).draw(rng, frame)]
    kernels = [op.kernel for op in shakes if isinstance(op, operations.Blur) and op.linear]
    paths = [k for k in kernels if isinstance(k, ShakeKernel)]
    assert len(paths) == 300 and len({k.seed for k in paths}) == 300
    lengths = np.array([k.length for k in paths])
    assert 3 <= lengths.min() < 3.2 and 8.8 < lengths.max() <= 9 and max(k.jolts for k in paths) > 1.9
    motions = [op.kernel for _ in range(300) for op in ObjectMotion().draw(rng, frame) if isinstance(op, operations.Blur)]
    turns = np.array([k.turn for k in motions if isinstance(k, MotionKernel)])
    assert np.abs(turns).max() <= math.pi / 2 and 100 < (turns < 0).sum() < 200
    (plain,) = Defocus(radius=(2, 2), linear=False).draw(rng, frame)
    assert plain == operations.Blur(DefocusKernel(2.0))
    (deep,) = Defocus(radius=(1, 3), grid=4).draw(rng, frame)
    assert isinstance(deep, operations.VaryingBlur) and len({k for row in deep.kernels for k in row}) == 16


def test_a_roll_makes_one_shake_seen_from_many_places() -> None:
    (rolled,) = CameraShake(roll=(1, 1), grid=3).draw(np.random.default_rng(1), Frame((81, 101), (81, 101)))
    assert isinstance(rolled, operations.VaryingBlur) and rolled.linear
    kernels = [[k for k in row if isinstance(k, ShakeKernel)] for row in rolled.kernels]
    assert [[k.place for k in row] for row in kernels] == [[(r, c) for c in (-50, 0, 50)] for r in (-40, 0, 40)]
    assert len({(k.seed, k.roll, k.length) for row in kernels for k in row}) == 1
    assert kernels[0][0].roll == pytest.approx(math.radians(1))


@pytest.mark.parametrize(
    ("step", "why"),
    [
        ({"kind": "camera-shake", "length": [0, 5]}, "greater than 0"),
        ({"kind": "camera-shake", "length": [5, 2000]}, "less than or equal to 200"),
        ({"kind": "camera-shake", "roll": [3, -3]}, "lower end 3 exceeds"),
        ({"kind": "camera-shake", "grid": 0}, "greater than or equal to 1"),
        ({"kind": "object-motion", "turn": [-10, 10]}, "greater than or equal to 0"),
        ({"kind": "defocus", "radii": [1, 2]}, "not permitted"),
        ({"kind": "jpeg", "chroma": ["4:2:2"]}, "'4:2:0' or '4:4:4'"),
        ({"kind": "jpeg", "chroma": []}, "at least 1"),
        ({"kind": "webp", "chroma": ["4:2:0", "4:4:4"]}, "WebP has no 4:4:4"),
        ({"kind": "gaussian-noise", "sigma": [-1, 5]}, "greater than or equal to 0"),
    ],
)
def test_faults_are_named(step: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Pipeline.model_validate({"scale": 1, "steps": [step]})


# Noise and JPEG --------------------------------------------------------------------------------------------------


def gray(value: float) -> NDArray[np.float32]:
    return np.full((160, 160, 3), value, np.float32)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_noise_of_known_sigma_keeps_its_mean_and_variance_at_black_and_white(value: float) -> None:
    degraded = gaussian_noise(25).apply(gray(value), np.random.default_rng(3))
    noise = (degraded.values - value) * 255
    assert abs(noise.mean()) < 4.5 * 25 / math.sqrt(noise.size)
    assert noise.var() == pytest.approx(25**2, rel=4.5 * math.sqrt(2 / noise.size))
    np.testing.assert_array_equal(degraded.image, round_to_uint8(degraded.values * 255))
    clipped = gaussian_noise(25, clip=True).apply(gray(value), np.random.default_rng(3))
    np.testing.assert_array_equal(clipped.values, np.clip(degraded.values, 0, 1))


def test_blind_noise_has_every_strength() -> None:
    rng = np.random.default_rng(4)
    measured = [np.std(gaussian_noise((0, 55)).apply(gray(0.5)[:64], rng).values) * 255 for _ in range(120)]
    share, _ = np.histogram(measured, 5, (0, 55.5))
    assert share.min() >= 10 and share.sum() == 120


@pytest.mark.parametrize("quality", [1, 10, 40, 95, 100])
@pytest.mark.parametrize(("chroma", "subsampling"), [("4:2:0", 2), ("4:4:4", 0)])
def test_jpeg_is_that_of_pillow(chroma: Any, subsampling: int, quality: int) -> None:
    image, file = photograph(45, 38), io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
    degraded = jpeg(quality, (chroma,)).apply(image, np.random.default_rng(0))
    with Image.open(file) as stored:
        np.testing.assert_array_equal(degraded.image, np.asarray(stored))
    assert str(degraded.steps[0]) == f"JPEG {quality}" + (" 4:4:4" if chroma == "4:4:4" else "")


def test_both_kinds_of_chroma_are_drawn_and_one_takes_no_draw() -> None:
    rng, frame = np.random.default_rng(5), Frame((8, 8), (8, 8))
    both = Compression(kind="jpeg", chroma=("4:2:0", "4:4:4"))
    drawn = [op.chroma for _ in range(200) for op in both.draw(rng, frame) if isinstance(op, operations.Compression)]
    assert 70 < drawn.count("4:4:4") < 130
    first, second = np.random.default_rng(6), np.random.default_rng(6)
    Compression(kind="jpeg").draw(first, frame)
    second.integers(30, 95, endpoint=True)
    assert first.random() == second.random()


# Presets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", SAME_SIZE_PRESETS)
def test_presets_keep_the_size_and_repeat_themselves(preset: str) -> None:
    pipeline, image = SAME_SIZE_PRESETS[preset](), photograph(52, 47)
    assert pipeline.scale == 1 and Pipeline.model_validate(pipeline.model_dump(mode="json")) == pipeline
    for seed in range(6):
        first, second = (pipeline.apply(image, np.random.default_rng(seed)) for _ in range(2))
        assert first.image.shape == image.shape and first.steps == second.steps and hash(first.steps)
        np.testing.assert_array_equal(first.values, second.values)
        np.testing.assert_array_equal(run(first.steps, as_floats(image)), first.values)
        assert not np.array_equal(first.image, pipeline.apply(image, np.random.default_rng(seed + 100)).image)


def test_another_process_makes_the_same_bytes() -> None:
    script = (
        "import hashlib, numpy as np; from restore.degradations.pipeline import SAME_SIZE_PRESETS as p\n"
        "image = np.arange(48 * 40 * 3).reshape(48, 40, 3).astype(np.uint8)\n"
        "r = [p[n]().apply(image, np.random.default_rng(s)).image.tobytes() for n in p for s in range(3)]\n"
        "print(hashlib.sha256(b''.join(r)).hexdigest())"
    )
    image = np.arange(48 * 40 * 3).reshape(48, 40, 3).astype(np.uint8)

    def here() -> list[Degraded]:
        return [SAME_SIZE_PRESETS[n]().apply(image, np.random.default_rng(s)) for n in SAME_SIZE_PRESETS for s in range(3)]

    root = Path(__file__).resolve().parents[2]
    there = subprocess.run([sys.executable, "-c", script], cwd=root, check=True, capture_output=True, text=True).stdout
    assert there.strip() == hashlib.sha256(b"".join(d.image.tobytes() for d in here())).hexdigest()


def test_motion_blur_without_roll_is_one_kernel_and_lies_on_the_original() -> None:
    image = photograph(96, 96)
    for seed in range(8):
        blurred = motion_blur(roll=0, noise=0).apply(image, np.random.default_rng(seed))
        blur = blurred.steps[0]
        assert isinstance(blur, operations.Blur) and blur.linear
        # Brightness stays: kernels sum to 1 in linear light.
        light = operations.srgb_to_linear
        assert light(blurred.values).mean() == pytest.approx(light(as_floats(image)).mean(), rel=0.03)


def test_the_sheet_shows_every_kernel() -> None:
    figure = blur_sheet(photograph(60, 70))
    labels = " ".join(" ".join(text.get_text() for text in axes.texts) for axes in figure.axes)
    assert len([axes for axes in figure.axes if axes.images and axes.texts]) == len(KERNELS) + 2 + 4 + 2
    assert "JPEG 10 4:4:4" in labels and "the original" in labels and labels.count("points, brightened") == 2
