"""Any final size: judged by resizing whole results, by Pillow's resize, and by a plain numpy version of the kernel."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hybrid.cards import ModelCard
from hybrid.errors import RequestError
from restore import load_model
from restore.images import Picture, PictureInfo, read_picture
from restore.images.interpolation import resize
from restore.models.base import RestorationNetwork
from restore.restoration.final_size import FinalSize, RowResizer, asked_size, suitable_scales
from restore.restoration.record import DETAILS
from restore.restoration.run import RunSettings, plan_picture, restore_file, restore_picture
from tests.command import COMPACT, files, restore


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.delenv("RESTORE_MIRROR", raising=False)


class Repeat(RestorationNetwork):
    """Each pixel becomes `scale` x `scale` equal ones."""

    def __init__(self, scale: int = 4) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)
        self.card = ModelCard("repeat", "Repeat", "none", "none", scale, 3, 4, 8, False, 100)

    def restore(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=self.card.scale) * self.weight


def noise(*shape: int, seed: int = 4) -> np.ndarray:
    return np.random.default_rng(seed).random(shape, np.float32)


def by_hand(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Dense antialiased Keys cubic, a = -1/2, edge pixels repeated; axis after axis in float64."""
    result = image.astype(np.float64)
    for axis, outputs in enumerate(size):
        length = image.shape[axis]
        stretch = max(1.0, length / outputs)
        far = int(2 * stretch) + 2
        taps = np.arange(-far, length + far)
        centres = (np.arange(outputs) + 0.5) * length / outputs - 0.5
        t = np.abs(centres[:, None] - taps) / stretch
        near, rim = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
        weights = np.where(t <= 1, near, np.where(t < 2, rim, 0))
        weights /= weights.sum(1, keepdims=True)
        extended = np.take(result, np.clip(taps, 0, length - 1), axis)
        result = np.moveaxis(np.tensordot(weights, extended, (1, axis)), 0, axis)
    return result


def streamed(image: np.ndarray, size: tuple[int, int], heights: list[int]) -> np.ndarray:
    """The result of `RowResizer`, fed blocks of these heights in turn."""
    out: list[np.ndarray] = []

    def write(top: int, rows: np.ndarray) -> None:
        assert top == sum(map(len, out)) and len(rows)
        out.append(rows.copy())

    resizer = RowResizer(image.shape[:2], size, image.shape[2], write)
    top = 0
    while top < len(image):
        rows = image[top : top + heights[len(out) % len(heights)]]
        resizer.add(top, rows)
        top += len(rows)
    return np.concatenate(out)


# The stream of rows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(27, 41), (40, 52), (13, 17), (1, 1), (100, 30), (80, 104), (39, 51), (41, 300)])
@pytest.mark.parametrize("heights", [[40], [1], [7, 2, 11]])
def test_rows_as_they_come_give_what_the_whole_gives(size: tuple[int, int], heights: list[int]) -> None:
    image = noise(40, 52, 3)
    result = streamed(image, size, heights)
    assert result.shape == (*size, 3) and result.dtype == np.float32
    np.testing.assert_allclose(result, resize(image, size, "bicubic", antialias=True), atol=1e-5)
    np.testing.assert_allclose(result, by_hand(image, size), atol=1e-5)


def test_it_agrees_with_pillow() -> None:
    image = noise(64, 80, 1)
    judge = Image.fromarray(image[..., 0]).resize((55, 43), Image.Resampling.BICUBIC)
    # Pillow leaves out what lies beyond the edge, where the edge pixel is repeated here.
    np.testing.assert_allclose(streamed(image, (43, 55), [5])[4:-4, 4:-4, 0], np.asarray(judge)[4:-4, 4:-4], atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.tuples(st.integers(1, 70), st.integers(1, 70)),
    st.lists(st.integers(1, 9), min_size=1, max_size=4),
)
def test_any_size_from_any_size(source: tuple[int, int], size: tuple[int, int], heights: list[int]) -> None:
    image = noise(*source, 2)
    np.testing.assert_allclose(streamed(image, size, heights), by_hand(image, size), atol=2e-5)


def test_a_strip_is_held_and_not_the_picture() -> None:
    written: list[int] = []
    resizer = RowResizer((40_000, 300), (27_000, 203), 3, lambda top, rows: written.append(len(rows)))
    most = 0
    for top in range(0, 40_000, 500):
        resizer.add(top, np.zeros((500, 300, 3), np.float32))
        most = max(most, len(resizer.held))
    assert sum(written) == 27_000 and most < 20
    assert resizer.bytes < 40 * 2**20  # the picture itself takes 144 MB
    with pytest.raises(ValueError, match="row 40000 is next"):
        resizer.add(0, np.zeros((1, 300, 3), np.float32))


# Sizes ------------------------------------------------------------------------------------------------------------------


def test_sizes_and_scales_are_read() -> None:
    assert FinalSize.parse("3840x2160") == FinalSize(width=3840, height=2160)
    assert FinalSize.parse("x2160").of(400, 300) == (2880, 2160) and FinalSize.parse("10X").of(400, 300) == (10, 8)
    assert FinalSize(2.7).of(41, 33) == (111, 89) and FinalSize(0.001).of(41, 33) == (1, 1)
    assert FinalSize.parse("800x300").wanted(400, 300) == 2.0
    assert asked_size(None, None) == (None, None) and asked_size(3.0, None) == (3, None)
    assert suitable_scales(2.0, (4, 2, 3)) == (2, 3, 4) and suitable_scales(2.01, (4, 2, 3)) == (3, 4)


@pytest.mark.parametrize("text", ["", "x", "0x5", "5", "5x0", "-5x5", "5.5x3", "5x5x5", "ax5", "٣x٣"])
def test_sizes_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--size"):
        FinalSize.parse(text)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -2.5])
def test_scales_that_make_no_sense_are_refused(scale: float) -> None:
    with pytest.raises(RequestError, match="--scale"):
        asked_size(scale, None)


# Pictures ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tile", [None, 24])
@pytest.mark.parametrize("final", [FinalSize(2.7), FinalSize(width=70), FinalSize(width=31, height=200), FinalSize(6.3)])
@pytest.mark.parametrize("alpha", [False, True])
def test_a_picture_is_run_and_then_resized(tile: int | None, final: FinalSize, alpha: bool) -> None:
    colour = noise(37, 41, 3)
    veil = np.clip(noise(37, 41, seed=9) * 1.4, 0.01, 1).astype(np.float32) if alpha else None
    result = restore_picture(Repeat(), Picture(colour, veil), RunSettings(tile=tile, final=final))
    width, height = final.of(41, 37)
    np.testing.assert_allclose(result.colour, by_hand(colour.repeat(4, 0).repeat(4, 1), (height, width)), atol=1e-5)
    if veil is not None:
        assert result.alpha is not None and result.alpha.min() >= 0 and result.alpha.max() <= 1
        expected = by_hand(veil.repeat(4, 0).repeat(4, 1)[..., None], (height, width))[..., 0]
        np.testing.assert_allclose(result.alpha, np.clip(expected, 0, 1), atol=1e-5)


def test_the_network_s_own_size_is_bit_identical() -> None:
    picture = Picture(np.round(noise(20, 24, 3) * 255).astype(np.uint8))
    network = load_model("hat-compact", scale=4, device="cpu")
    plain = restore_picture(network, picture).colour
    np.testing.assert_array_equal(
        restore_picture(network, picture, RunSettings(final=FinalSize(width=96, height=80))).colour, plain
    )


def test_a_plan_leaves_room_for_the_resize() -> None:
    info = PictureInfo(Path(), 3000, 2000, 3, False, "uint8", "", "")
    limit = 4 * 2**30
    plain = plan_picture(Repeat(), info, RunSettings(memory=limit))
    resized = plan_picture(Repeat(), info, RunSettings(memory=limit, final=FinalSize(2.7)))
    assert resized.memory_bytes <= plain.memory_bytes and resized.tile <= plain.tile


def test_a_file_and_its_record(tmp_path: Path) -> None:
    Image.fromarray(np.round(noise(30, 40, 3) * 255).astype(np.uint8)).save(tmp_path / "in.png")
    outcome = restore_file(Repeat(), tmp_path / "in.png", tmp_path / "out.png", RunSettings(final=FinalSize(2.7)))
    with Image.open(tmp_path / "out.png") as judge:
        assert judge.size == outcome.size == (108, 81)
    notes = json.loads((tmp_path / "out.png.json").read_text(encoding="utf-8"))["notes"]
    resized = "The network's result of 160 x 120 was resized to 108 x 81 by antialiased bicubic."
    assert notes == [resized, f"{DETAILS}."]


# The command ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, (height, width) in {"a": (24, 20), "b": (16, 32)}.items():
        Image.fromarray(np.round(noise(height, width, 3) * 255).astype(np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.mark.parametrize(
    ("options", "tag", "size", "scale"),
    [
        (("--scale", "2.7"), "_x2.7", (54, 65), 3),
        (("--size", "50x"), "_50x", (50, 60), 3),
        (("--size", "x33"), "_x33", (28, 33), 2),
        (("--size", "61x47"), "_61x47", (61, 47), 4),
        (("--scale", "4.5"), "_x4.5", (90, 108), 4),
    ],
)
def test_the_command_makes_the_size(options: tuple[str, str], tag: str, size: tuple[int, int], scale: int, folder: Path) -> None:
    assert restore("sr", folder / "a.png", *COMPACT, *options, "-q").code == 0
    with Image.open(folder / f"a{tag}.png") as judge:
        assert judge.size == size
    plain = restore_picture(
        load_model("hat-compact", scale=scale, device="cpu"),
        Picture(read_picture(folder / "a.png").colour.astype(np.float32) / 255),
    )
    expected = np.clip(by_hand(plain.colour, size[::-1]), 0, 1) * 255
    assert np.abs(read_picture(folder / f"a{tag}.png").colour - expected).max() < 2.5  # the network may compute in bfloat16


def test_whole_scales_go_the_plain_way(folder: Path) -> None:
    options = (*COMPACT, "--device", "cpu", "--precision", "float32", "-q", "-o")
    assert restore("sr", folder / "a.png", "--scale", "4", *options, folder / "x4.png").code == 0
    assert restore("sr", folder / "a.png", "--size", "80x96", *options, folder / "size.png").code == 0
    expected = restore_picture(load_model("hat-compact", scale=4, device="cpu"), read_picture(folder / "a.png")).colour
    for name in ("x4.png", "size.png"):
        np.testing.assert_array_equal(read_picture(folder / name).colour, expected)
        assert json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["notes"] == [f"{DETAILS}."]


def test_a_folder_gets_one_size_and_a_stand_in_may_run_at_a_larger_scale(folder: Path, tmp_path: Path) -> None:
    (folder / "broken.png").write_bytes(b"no picture")
    said = restore("sr", folder, "--model", "hat", "--size", "48x48", "-o", tmp_path / "out")
    assert said.code == 1 and "broken.png" in said.err and "cfsr-compact" in said.err and "in place of hat" in said.err
    assert sorted(files(tmp_path / "out")) == ["a.png", "a.png.json", "b.png", "b.png.json", "run.jsonl"]
    for name in ("a.png", "b.png"):
        with Image.open(tmp_path / "out" / name) as judge:
            assert judge.size == (48, 48)


def test_a_plan_names_the_final_size(folder: Path) -> None:
    said = restore("sr", folder / "a.png", *COMPACT, "--scale", "2.7", "--plan")
    assert said.code == 0 and "result 54 x 65" in said.out
    assert json.loads(restore("sr", folder / "a.png", *COMPACT, "--size", "50x", "--plan", "--json").out)["size"] == [50, 60]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--scale", "2", "--size", "9x9"), "two ways"),
        (("--size", "big"), "3840x2160"),
        (("--scale", "-2.5"), "positive"),
        (("--scale", "nan"), "positive"),
    ],
)
def test_requests_that_make_no_sense_are_refused(options: tuple[str, ...], words: str, folder: Path) -> None:
    before = files(folder)
    said = restore("sr", folder / "a.png", *COMPACT, *options)
    assert said.code == 2 and words in said.err and files(folder) == before
