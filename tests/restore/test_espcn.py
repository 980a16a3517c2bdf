"""ESPCN: its layers by formula, the order of the sub-pixel step, its files, and the way of luma through a picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor
from torch.nn import functional as F

from hybrid.errors import RequestError, WeightsError
from restore import load_model
from restore.evaluation.metrics import rgb_to_y
from restore.images import Picture
from restore.images.colour import enlarge_bicubic, enlarge_by_luma, rgb_to_ycbcr, ycbcr_to_rgb
from restore.images.resize import imresize
from restore.models.espcn import ESPCN, FAMILY, KEYS, ESPCNConfig, read_config
from restore.restoration.run import RunSettings, restore_picture

COUNTS = {(1, 2): 21_284, (1, 3): 22_729, (1, 4): 24_752, (3, 2): 26_796, (3, 3): 31_131, (3, 4): 37_200}


def network(channels: int = 1, scale: int = 4, **options: bool) -> ESPCN:
    torch.manual_seed(channels * scale)
    made = ESPCN(ESPCNConfig(channels, scale, **options)).eval()
    torch.nn.init.normal_(made.conv3.weight, std=0.05)  # fresh ones give nearly zero
    return made.requires_grad_(False)


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"params": state}, folder / "x.pth")
    return folder / "x.pth"


@pytest.mark.parametrize(("channels", "scale"), COUNTS)
def test_parameter_counts(channels: int, scale: int) -> None:
    assert sum(p.numel() for p in ESPCN(ESPCNConfig(channels, scale)).parameters()) == COUNTS[channels, scale]


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (24, 9)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(scale: int, height: int, width: int, channels: int) -> None:
    assert network(channels, scale)(torch.rand(2, channels, height, width)).shape == (2, channels, height * scale, width * scale)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_sub_pixels_read_row_by_row(scale: int) -> None:
    made = network(1, scale)
    made.conv3.weight.zero_()
    made.conv3.bias.copy_(torch.arange(float(scale**2)))  # type: ignore[union-attr]
    tile = torch.arange(float(scale**2)).view(scale, scale)
    assert torch.equal(made(torch.rand(1, 1, 2, 3))[0, 0], tile.repeat(2, 3))


def test_layers_by_formula() -> None:
    """Convolutions by SciPy, and the place of each output pixel by the paper's index formula."""
    made, x, scale = network(3, 2), torch.rand(1, 3, 6, 5), 2
    maps = x[0].double().numpy()
    for layer in (made.conv1, made.conv2, made.conv3):
        weight, bias = layer.weight.double().numpy(), layer.bias.double().numpy()  # type: ignore[union-attr]
        sums = [sum(correlate(m, k, mode="constant") for m, k in zip(maps, kernels, strict=True)) for kernels in weight]
        maps = np.stack(sums) + bias[:, None, None]
        maps = maps if layer is made.conv3 else np.tanh(maps)
    k, row, column = np.indices((3, 12, 10))
    expected = maps[k * scale**2 + scale * (row % scale) + column % scale, row // scale, column // scale]
    np.testing.assert_allclose(made(x)[0].numpy(), expected, atol=1e-5)


def test_strips_are_not_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = network(3, 3), torch.rand(1, 3, 70, 11)
    whole = made(x)  # with gradients the whole is run at once
    monkeypatch.setattr("restore.models.espcn.STRIP_PIXELS", 1)
    with torch.inference_mode():
        torch.testing.assert_close(made(x), whole, atol=1e-6, rtol=1e-6)


def test_constant_stays_constant_away_from_the_border() -> None:
    """One value for each place within a tile; the rim of four pixels is darker, unless the border is repeated."""
    x, scale = torch.full((1, 1, 12, 13), 0.4), 2
    for options, rim in (({}, 4), ({"replicate_border": True}, 0)):
        y = network(1, scale, **options)(x)[0, 0]
        tiles = y.view(12, scale, 13, scale).permute(0, 2, 1, 3)
        inside = tiles[rim : 12 - rim, rim : 13 - rim]
        torch.testing.assert_close(inside, inside[:1, :1].expand_as(inside), atol=1e-6, rtol=1e-6)
        assert bool(((tiles - tiles[6, 6]).abs().amax((2, 3)) > 1e-4)[0].all()) is (rim > 0)


def test_repeated_border_is_an_extended_picture(tmp_path: Path) -> None:
    plain, x = network(3, 4), torch.rand(1, 3, 9, 7)
    extended = np.pad(x.numpy(), [(0, 0), (0, 0), (4, 4), (4, 4)], mode="edge")
    expected = plain(torch.from_numpy(extended))[..., 16:-16, 16:-16]
    loaded = load_model(saved(plain.state_dict(), tmp_path), device="cpu", replicate_border=True)
    torch.testing.assert_close(loaded(x), expected, atol=1e-6, rtol=1e-6)


def test_learns_one_patch() -> None:
    torch.manual_seed(0)
    made, x = ESPCN(ESPCNConfig(1, 2)), torch.rand(1, 1, 8, 8)
    y = F.interpolate(x, scale_factor=2, mode="bicubic").clamp(0, 1)
    optimizer = torch.optim.Adam(made.parameters(), lr=3e-3)
    for _ in range(500):
        optimizer.zero_grad()
        loss = F.mse_loss(made(x), y)
        loss.backward()
        optimizer.step()
    assert loss.item() < 1e-4


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "scale"), [(1, 3), (3, 2), (1, 8)])
def test_files_of_both_namings(channels: int, scale: int, tmp_path: Path) -> None:
    made = network(channels, scale)
    state = made.state_dict()
    other = {"conv1": "first_part.0", "conv2": "first_part.2", "conv3": "last_part.0"}
    community = {f"{other[layer]}.{part}": state[f"{layer}.{part}"] for layer in other for part in ("weight", "bias")}
    x = torch.rand(1, channels, 6, 9)
    for names in (state, community):
        assert FAMILY.matches(names) and read_config(names) == ESPCNConfig(channels, scale)
        loaded = load_model(saved(names, tmp_path), device="cpu", scale=scale)
        assert loaded.card.luma is (channels == 1) and torch.equal(loaded(x), made(x))
    assert [KEYS.to_published(key) for key in state] == list(state)


def test_relatives_are_refused(tmp_path: Path) -> None:
    state = network(1, 3).state_dict()
    four = {f"conv{i}.{part}": torch.ones(shape if part == "weight" else shape[:1])
            for i, shape in enumerate([(64, 1, 5, 5), (64, 64, 3, 3), (32, 64, 3, 3), (9, 32, 3, 3)], 1)
            for part in ("weight", "bias")}  # fmt: skip
    wider = state | {"conv2.weight": torch.ones(48, 64, 3, 3)}
    odd = state | {"conv3.weight": torch.ones(7, 32, 3, 3), "conv3.bias": torch.ones(7)}
    flat = state | {"conv1.weight": torch.ones(64)}
    for relative in (four, wider, odd, flat, {k: v for k, v in state.items() if k != "conv2.bias"}):
        assert not FAMILY.matches(relative)
        with pytest.raises(WeightsError, match="no supported network"):
            load_model(saved(relative, tmp_path), device="cpu")
    with pytest.raises(RequestError, match=r"espcn has no option channels.*replicate_border"):
        load_model(saved(state, tmp_path), device="cpu", channels=3)


# Luma ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width", "factor"), [(1, 1, 2), (2, 3, 4), (17, 5, 3), (9, 12, 8)])
def test_bicubic_is_that_of_the_protocol(height: int, width: int, factor: int) -> None:
    picture = np.random.default_rng(0).random((height, width, 2))
    y = enlarge_bicubic(torch.from_numpy(picture.transpose(2, 0, 1))[None], factor)
    np.testing.assert_allclose(y[0].permute(1, 2, 0).numpy(), imresize(picture, factor), atol=1e-13)


def test_colours_there_and_back() -> None:
    rgb = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    ycbcr = rgb_to_ycbcr(rgb)
    pixels = 255 * rgb[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(255 * ycbcr[0, 0].numpy(), rgb_to_y(pixels), atol=1e-10)
    torch.testing.assert_close(ycbcr_to_rgb(ycbcr), rgb)
    named = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 0, 1]]).t().view(1, 3, 1, 4)
    expected = [[16, 128, 128], [235, 128, 128], [81.481, 90.203, 240], [40.966, 240, 109.786]]  # BT.601
    torch.testing.assert_close(255 * rgb_to_ycbcr(named)[0, :, 0].t(), torch.tensor(expected), atol=1e-3, rtol=0)


def test_luma_that_is_enlarged_by_bicubic_gives_bicubic() -> None:
    rgb = torch.rand(1, 3, 8, 7)
    y = enlarge_by_luma(lambda luma: enlarge_bicubic(luma, 3), rgb, 3)
    expected = imresize(rgb[0].permute(1, 2, 0).numpy(), 3)
    clipped = np.abs(y[0].permute(1, 2, 0).numpy() - expected).max(-1) > 1e-5  # luma beyond [0, 1] is clamped
    assert clipped.mean() < 0.05


def by_hand(made: ESPCN, rgb: np.ndarray, scale: int) -> np.ndarray:
    """RGB uint8 through the network by the steps of the paper's protocol, in double precision."""
    matrix = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]]) / 255
    ycbcr = rgb @ matrix.T + [16, 128, 128]
    luma = made(torch.from_numpy(ycbcr[..., 0] / 255).float()[None, None])[0, 0].clamp(0, 1).numpy() * 255
    joined = np.dstack((luma, imresize(ycbcr[..., 1:], scale))) - [16, 128, 128]
    return np.clip(joined @ np.linalg.inv(matrix).T, 0, 255)


@pytest.mark.parametrize("tile", [None, 32])
def test_colour_picture_through_a_network_of_luma(tile: int | None) -> None:
    made = network(1, 3)
    rgb = np.random.default_rng(0).integers(0, 256, (40, 75, 3), np.uint8)
    result = restore_picture(made, Picture(rgb), RunSettings(tile=tile))
    assert result.colour.dtype == np.uint8
    np.testing.assert_allclose(result.colour, by_hand(made, rgb, 3), atol=0.501)


def test_gray_picture_and_alpha_go_straight_in() -> None:
    made = network(1, 2)
    rng = np.random.default_rng(0)
    gray, alpha = rng.integers(0, 256, (9, 12, 1), np.uint8), rng.integers(1, 256, (9, 12), np.uint8)
    result = restore_picture(made, Picture(gray, alpha))
    planes = torch.from_numpy(np.stack((gray[..., 0], alpha)))[:, None].float() / 255
    expected = 255 * made(planes)[:, 0].clamp(0, 1).numpy()
    np.testing.assert_allclose(result.colour[..., 0], expected[0], atol=0.501)
    assert result.alpha is not None
    np.testing.assert_allclose(result.alpha, expected[1], atol=0.501)


def test_network_of_rgb_gets_rgb() -> None:
    made = network(3, 2)
    rgb = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    expected = 255 * made(torch.from_numpy(rgb).permute(2, 0, 1)[None].float() / 255)[0].permute(1, 2, 0).clamp(0, 1).numpy()
    np.testing.assert_allclose(restore_picture(made, Picture(rgb)).colour, expected, atol=0.501)
