"""Enlarging pictures in memory and files on disk, with networks whose right answer is known and with the shipped one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hybrid.cards import ModelCard
from hybrid.console import format_duration
from hybrid.errors import InputError, OutputError, RequestError, ResourceError
from restore import load_model
from restore.images import Picture, PictureInfo, PictureMetadata
from restore.models.base import RestorationNetwork
from restore.restoration.run import (
    RunSettings,
    check_target,
    expected_seconds,
    plan_picture,
    restore_file,
    restore_picture,
)
from tests.command import files, smooth

WHOLE = RunSettings(tile=None)


class Repeat(RestorationNetwork):
    """Each pixel becomes 2 x 2 equal ones, so that every right answer is known: `np.repeat`."""

    def __init__(self, channels: int = 3, floats: int = 10) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()), requires_grad=False)  # tells the device
        self.seen: list[tuple[float, float]] = []
        self.card = ModelCard("repeat", "Repeat", "none", "none", 2, channels, 4, 8, False, floats)

    def restore(self, x: Tensor) -> Tensor:
        self.seen.append((float(x.min()), float(x.max())))
        return F.interpolate(x, scale_factor=2) * self.weight


def repeated(array: np.ndarray) -> np.ndarray:
    return array.repeat(2, 0).repeat(2, 1)


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    rng = np.random.default_rng(11)
    if dtype == "float32":
        return rng.random(shape, np.float32)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.fixture(scope="module")
def compact() -> RestorationNetwork:
    return load_model("hat-compact", scale=4, device="cpu")


# Planes and ranges ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("network_channels", [1, 3])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("tile", [None, 24])
def test_every_kind_of_picture_keeps_its_kind(
    dtype: str, channels: int, network_channels: int, alpha: bool, tile: int | None
) -> None:
    colour = noise(37, 41, channels, dtype=dtype)
    veil = np.maximum(noise(37, 41, dtype=dtype), np.ones((), dtype)) if alpha else None  # nothing fully transparent
    metadata = PictureMetadata(dpi=(300, 300))
    result = restore_picture(Repeat(network_channels), Picture(colour, veil, metadata), RunSettings(tile=tile))
    assert result.metadata is metadata and result.colour.dtype == colour.dtype and result.colour.flags.c_contiguous
    tolerance = 1e-6 if dtype == "float32" else 0
    np.testing.assert_allclose(result.colour.astype(float), repeated(colour).astype(float), rtol=0, atol=tolerance)
    if veil is None:
        assert result.alpha is None
    else:
        assert result.alpha is not None and result.alpha.dtype == veil.dtype
        np.testing.assert_allclose(result.alpha.astype(float), repeated(veil).astype(float), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 3.0), (0.0, 40.0), (-2.0, 0.5)])
@pytest.mark.parametrize("tile", [None, 24])
def test_floats_beyond_the_unit_range_are_neither_clipped_nor_shown_to_the_network(
    low: float, high: float, tile: int | None
) -> None:
    colour = noise(30, 33, 3, dtype="float32") * np.float32(high - low) + np.float32(low)
    network = Repeat()
    result = restore_picture(network, Picture(colour), RunSettings(tile=tile)).colour
    np.testing.assert_allclose(result, repeated(colour), rtol=0, atol=1e-6 * (high - low))
    assert min(seen[0] for seen in network.seen) >= 0 and max(seen[1] for seen in network.seen) <= 1 + 1e-6


def test_floats_within_the_unit_range_are_not_stretched() -> None:
    network = Repeat()
    restore_picture(network, Picture(np.full((4, 4, 3), 0.25, np.float32)), WHOLE)
    assert network.seen == [(0.25, 0.25)]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    colour = noise(8, 8, 3, dtype="float32")
    colour[3, 4, 1] = value
    with pytest.raises(InputError, match=r"not finite.*Replace"):
        restore_picture(Repeat(), Picture(colour), WHOLE)


@pytest.mark.parametrize("value", [0, 1, 128, 254, 255])
def test_constant_alpha_stays_exact(compact: RestorationNetwork, value: int) -> None:
    picture = Picture(noise(17, 9, 3), np.full((17, 9), value, np.uint8))
    result = restore_picture(compact, picture, WHOLE)
    assert result.alpha is not None and result.alpha.shape == (68, 36) and (result.alpha == value).all()


def test_alpha_does_not_change_the_colour_where_all_shows(compact: RestorationNetwork) -> None:
    colour = noise(16, 12, 3)
    opaque = restore_picture(compact, Picture(colour), WHOLE).colour
    veiled = restore_picture(compact, Picture(colour, noise(16, 12) // 2 + 1), WHOLE).colour
    assert np.array_equal(opaque, veiled)


def test_gray_is_what_a_colour_network_makes_of_three_equal_channels(compact: RestorationNetwork) -> None:
    gray = noise(13, 18, 1)
    result = restore_picture(compact, Picture(gray), WHOLE).colour
    unit = torch.from_numpy(gray).permute(2, 0, 1)[None].float().expand(-1, 3, -1, -1) / 255
    expected = compact(unit)[0].mean(0).clamp(0, 1).numpy() * 255
    assert result.shape == (52, 72, 1) and np.abs(result[..., 0] - expected).max() <= 0.51


def test_the_input_is_not_changed(compact: RestorationNetwork) -> None:
    colour, veil = noise(12, 12, 3), noise(12, 12)
    veil[3:6] = 0
    before = colour.copy(), veil.copy()
    restore_picture(compact, Picture(colour, veil), WHOLE)
    assert np.array_equal(colour, before[0]) and np.array_equal(veil, before[1])


def test_what_lies_below_transparency_does_not_show(compact: RestorationNetwork) -> None:
    colour, veil = noise(16, 16, 3), np.full((16, 16), 255, np.uint8)
    veil[:, 8:] = 0
    other = colour.copy()
    other[:, 8:] = 255 - other[:, 8:]
    first, second = (restore_picture(compact, Picture(each, veil), WHOLE) for each in (colour, other))
    assert np.array_equal(first.colour, second.colour)


def test_tiles_and_whole_agree(compact: RestorationNetwork) -> None:
    colour = np.round(smooth(72, 64) * 235).astype(np.uint8) + noise(72, 64, 3) // 13
    whole = restore_picture(compact, Picture(colour), WHOLE).colour.astype(int)
    done: list[tuple[int, int]] = []
    settings = RunSettings(tile=40)
    tiled = restore_picture(compact, Picture(colour), settings, on_progress=lambda *at: done.append(at)).colour.astype(int)
    difference = np.abs(whole - tiled)
    assert difference.max() <= 4 and difference.mean() < 0.1
    assert len(done) > 1 and done == [(i + 1, len(done)) for i in range(len(done))]


# Plans ----------------------------------------------------------------------------------------------------------------


def facts(width: int, height: int, channels: int = 3, dtype: str = "uint8") -> PictureInfo:
    return PictureInfo(Path("in.png"), width, height, channels, False, dtype, "png", "rgb")


def test_a_budget_that_is_too_small_names_the_flag() -> None:
    for tile in ("auto", None, 32):
        with pytest.raises(ResourceError, match="--memory"):
            plan_picture(Repeat(), facts(300, 200), RunSettings(tile=tile, memory=1000))
    with pytest.raises(ResourceError, match="--memory"):
        restore_picture(Repeat(), Picture(noise(8, 8, 3)), RunSettings(memory=1000))


def test_less_memory_makes_smaller_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restore.restoration.plan.activation_budget", lambda limit, device, reserve: limit or 10**12)
    network = Repeat(floats=10_000)
    plans = [plan_picture(network, facts(1000, 700), RunSettings(memory=size)) for size in (10**12, 10**10, 10**9)]
    assert plans[0].whole and plans[0].count < plans[1].count < plans[2].count
    assert all(plan.memory_bytes <= size for plan, size in zip(plans[1:], (10**10, 10**9), strict=True))


def test_without_a_limit_half_of_what_is_free_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restore.restoration.plan.activation_budget", lambda limit, device, reserve: 10**9)
    network = Repeat(floats=1000)
    largest = plan_picture(network, facts(1000, 1000), RunSettings()).memory_bytes
    assert 0.2 * 10**9 < largest <= 0.5 * 10**9
    assert plan_picture(network, facts(1000, 1000), WHOLE).whole  # asked for by name: no limit but the machine's own


def test_colours_count_for_a_network_of_one_channel() -> None:
    gray = plan_picture(Repeat(1), facts(64, 64, 1), WHOLE).memory_bytes
    assert plan_picture(Repeat(1), facts(64, 64, 3), WHOLE).memory_bytes >= 3 * gray


def test_the_time_of_overlaps_is_counted() -> None:
    whole = plan_picture(Repeat(), facts(100, 50), WHOLE)
    tiled = plan_picture(Repeat(), facts(100, 50), RunSettings(tile=24))
    assert expected_seconds(whole, 0.5) == 2500
    pixels = sum((box[0].stop - box[0].start) * (box[1].stop - box[1].start) for _, box in tiled.boxes())
    assert expected_seconds(tiled, 0.5) == 0.5 * pixels > 2500


@pytest.mark.parametrize(("seconds", "text"), [(0, "0.0 s"), (59.96, "60.0 s"), (60, "1 min 00 s"), (3599.7, "1 h 00 min")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


# Files ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_a_file_is_enlarged_to_a_file(photo: Path) -> None:
    outcome = restore_file(Repeat(), photo, photo.with_name("out.png"), notes=("told by the caller",))
    with Image.open(photo) as before, Image.open(outcome.output) as judge:
        assert np.array_equal(np.asarray(judge), repeated(np.asarray(before)))
    assert outcome.size == (60, 40) and outcome.input == photo and outcome.notes == ()
    assert "told by the caller" in photo.with_name("out.png.json").read_text()


def test_a_file_that_is_too_large_is_refused_with_the_flag_that_allows_it(photo: Path) -> None:
    before = files(photo.parent)
    with pytest.raises(InputError, match=r"30 x 20 pixels.*--max-pixels 600"):
        restore_file(Repeat(), photo, photo.with_name("out.png"), RunSettings(max_pixels=599))
    assert files(photo.parent) == before
    restore_file(Repeat(), photo, photo.with_name("out.png"), RunSettings(max_pixels=600))


class Broken(Repeat):
    """Fails in the middle of the work."""

    def __init__(self, fault: BaseException | float) -> None:
        super().__init__()
        self.fault = fault

    def restore(self, x: Tensor) -> Tensor:
        if len(self.seen) == 1:  # the second tile of two
            if isinstance(self.fault, float):
                return super().restore(x) * self.fault
            raise self.fault
        return super().restore(x)


@pytest.mark.parametrize(
    ("fault", "error"), [(KeyboardInterrupt(), KeyboardInterrupt), (ValueError("odd"), ValueError), (float("nan"), OutputError)]
)
def test_a_run_that_fails_in_the_middle_leaves_what_was_there(
    photo: Path, fault: BaseException | float, error: type[BaseException]
) -> None:
    photo.with_name("out.png").write_bytes(b"the one from before")
    before = files(photo.parent)
    with pytest.raises(error):
        restore_file(Broken(fault), photo, photo.with_name("out.png"), RunSettings(tile=24, overwrite=True))
    assert files(photo.parent) == before


def test_targets_are_checked_before_work(photo: Path) -> None:
    check_target(photo, photo.with_name("out.png"), WHOLE)
    with pytest.raises(RequestError, match="is the input"):
        check_target(photo, photo, RunSettings(overwrite=True))
    photo.with_name("out.png.json").touch()
    with pytest.raises(OutputError, match=r"out\.png\.json, where the record would go, is there already.*--overwrite"):
        check_target(photo, photo.with_name("out.png"), WHOLE)
    check_target(photo, photo.with_name("out.png"), RunSettings(overwrite=True))
