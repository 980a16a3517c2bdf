"""MATLAB's resize, judged by parity arrays, by torch, and by its own algebra."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hybrid.errors import RequestError
from restore.images import read_picture
from restore.images.resize import downscale, imresize, mod_crop, round_to_uint8

PARITY = np.load(Path(__file__).parent.parent / "data" / "protocol_resize.npz")
FLOAT_CASES = {
    "down2": 1 / 2,
    "down3": 1 / 3,
    "down4": 1 / 4,
    "up2": 2,
    "down2_no_antialias": 1 / 2,
    "down0.7": 0.7,
    "grey_down2": 1 / 2,
}
UINT8_CASES = {"down2": 1 / 2, "down3": 1 / 3, "down4": 1 / 4, "up2": 2}


@pytest.mark.parametrize("case", FLOAT_CASES)
def test_float_agrees_with_reference(case: str) -> None:
    image = PARITY["float_grey" if case.startswith("grey") else "float_image"]
    result = imresize(image, FLOAT_CASES[case], antialias="no_antialias" not in case)
    assert result.shape == PARITY[f"float_{case}"].shape
    np.testing.assert_allclose(result, PARITY[f"float_{case}"], rtol=0, atol=5e-6)


@pytest.mark.parametrize("case", UINT8_CASES)
@pytest.mark.parametrize(("mode", "edge"), [("uint8", "symmetric"), ("uint8-legacy", "replicate"), ("double", "double")])
def test_uint8_is_bit_exact(case: str, mode: str, edge: str) -> None:
    result = imresize(PARITY["uint8_image"], UINT8_CASES[case], mode)  # type: ignore[arg-type]
    if mode == "double":
        result = round_to_uint8(result)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, PARITY[f"uint8_{case}_{edge}"])


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_interior_agrees_with_torch(factor: int) -> None:
    image = np.random.default_rng(factor).random((24 * factor, 20 * factor))
    judge = torch.nn.functional.interpolate(
        torch.from_numpy(image)[None, None], scale_factor=1 / factor, mode="bicubic", antialias=True, align_corners=False
    )[0, 0].numpy()
    inner = slice(3, -3)
    np.testing.assert_allclose(imresize(image, 1 / factor)[inner, inner], judge[inner, inner], atol=1e-12)


def test_every_stored_lr_of_the_matlab_files_is_reproduced(shared: Path) -> None:
    """SelfExSR's LR files were written by MATLAB itself."""
    compared = 0
    for scale in (2, 3, 4):
        for hr in sorted((shared / "data" / "benchmarks").glob(f"Set*/x{scale}/HR/*.png")):
            lr = read_picture(hr.parent.parent / "LR" / hr.name).colour
            np.testing.assert_array_equal(downscale(read_picture(hr).colour, scale, "uint8-legacy"), lr, err_msg=str(hr))
            compared += 1
    assert compared == 57


def test_wide_picture_needs_no_dense_matrix_and_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 4000, 3), dtype=np.uint8)
    whole = downscale(image, 4)
    monkeypatch.setattr("restore.images.resize._BLOCK_VALUES", 5000)
    np.testing.assert_array_equal(downscale(image, 4), whole)
    # The left part alone gives the same pixels, away from the cut.
    np.testing.assert_array_equal(downscale(image[:, :400], 4)[:, :90], whole[:, :90])


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([1 / 4, 1 / 3, 0.5, 0.7, 1, 1.5, 2, 3]))
def test_constant_stays_constant_at_any_size(height: int, width: int, scale: float) -> None:
    result = imresize(np.full((height, width), 77, np.uint8), scale, "uint8")
    assert result.shape == (np.ceil(height * scale), np.ceil(width * scale))
    assert (result == 77).all()


def test_mirrored_input_gives_mirrored_output() -> None:
    image = np.random.default_rng(1).random((12, 16, 3))
    np.testing.assert_allclose(imresize(image[::-1, ::-1], 1 / 4), imresize(image, 1 / 4)[::-1, ::-1], atol=1e-12)


def test_transposed_input_gives_transposed_output() -> None:
    image = np.random.default_rng(1).random((12, 18))
    np.testing.assert_allclose(imresize(image.T, 0.5), imresize(image, 0.5).T, atol=1e-12)


def test_overshoot_is_kept_in_double_and_clipped_in_uint8() -> None:
    step = np.repeat([[0, 255]], 8, axis=1).astype(np.uint8).repeat(8, axis=0)
    assert imresize(step, 2).min() < -1 and imresize(step, 2).max() > 256
    assert imresize(step, 2, "uint8").max() == 255


def test_halves_round_up() -> None:
    np.testing.assert_array_equal(round_to_uint8(np.array([0.5, 1.5, 2.5, -3.0, 300.0])), [1, 2, 3, 0, 255])


def test_mod_crop_keeps_top_left() -> None:
    image = np.arange(7 * 9).reshape(7, 9)
    np.testing.assert_array_equal(mod_crop(image, 4), image[:4, :8])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: imresize(np.zeros((4, 4)), 0.5, "uint8"), "double"),
        (lambda: imresize(np.zeros((4, 4)), 0.0), "positive"),
        (lambda: imresize(np.zeros((4, 4)), float("nan")), "positive"),
        (lambda: imresize(np.zeros((4, 4)), 2, "matlab"), "uint8-legacy"),  # type: ignore[arg-type]
        (lambda: imresize(np.zeros(4), 2), "H, W"),
        (lambda: imresize(np.zeros((0, 4)), 2), "H, W"),
        (lambda: downscale(np.zeros((4, 4), np.uint8), 0), "whole number"),
        (lambda: mod_crop(np.zeros((3, 9)), 4), "smaller scale"),
    ],
)
def test_errors_say_the_repair(call: Callable, text: str) -> None:
    with pytest.raises(RequestError, match=text):
        call()
