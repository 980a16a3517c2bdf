"""NAFNet, Baseline and local means against recorded outputs of the published networks, plain formulas and NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.blocks import channel_gates
from hybrid.blocks.channel_gates import ActivationFreeBlock, local_mean, spread_edges
from hybrid.errors import WeightsError
from hybrid.initialisation import SkipRandomFill
from restore import load_model
from restore.loading import catalogue
from restore.models.nafnet import KEYS, NAFNet, NAFNetConfig, matches, read_config
from restore.restoration.planes import AnyPlanes
from tests.restore.parity import SMALL_CASES, draw, fill, largest_difference, load_case, write_checkpoint

TOLERANCE = 2e-5
"""Tighter than the cases' own."""

DEBLURRING = NAFNetConfig(tlc_train_size=(256, 256))
DENOISING = NAFNetConfig(encoder_depths=(2, 2, 4, 8), middle_depth=12, decoder_depths=(2, 2, 2, 2))
PUBLISHED = {
    "nafnet-gopro-width32": (17_111_907, DEBLURRING),
    "nafnet-gopro-width64": (67_888_835, replace(DEBLURRING, width=64)),
    "nafnet-reds-width64": (67_888_835, replace(DEBLURRING, width=64)),
    "nafnet-sidd-width32": (29_159_715, DENOISING),
    "nafnet-sidd-width64": (115_982_915, replace(DENOISING, width=64)),
    "baseline-gopro-width32": (17_023_875, replace(DEBLURRING, plain=True, expand=1)),
    "baseline-gopro-width64": (112_036_291, replace(DEBLURRING, plain=True, width=64)),
    "baseline-sidd-width32": (29_056_227, replace(DENOISING, plain=True, expand=1)),
    "baseline-sidd-width64": (194_419_779, replace(DENOISING, plain=True, width=64)),
}


def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of one or two rows, so that what is done piece by piece is."""
    monkeypatch.setattr(channel_gates, "STRIP_VALUES", 1)
    monkeypatch.setattr(channel_gates, "LEAST_ROWS", 2)


def published(network: torch.nn.Module) -> dict[str, Tensor]:
    return {KEYS.to_published(key): value for key, value in network.state_dict().items()}


def filled(block: torch.nn.Module) -> torch.nn.Module:
    block.load_state_dict({key: draw(key, list(value.shape), 1) for key, value in block.state_dict().items()})
    return block.eval()


# Recorded outputs ------------------------------------------------------------------------------------------------


def check(folder: Path, scratch: Path, tolerance: float | None = None) -> None:
    case = load_case(folder)
    network = load_model(write_checkpoint(case, scratch), device="cpu", **case.given)
    assert isinstance(network, NAFNet) and sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < (tolerance or case.tolerance)


@pytest.mark.parametrize("name", ["reduced_width16", "local_reduced_train32", "baseline_reduced_dw1"])
def test_recorded_outputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(SMALL_CASES / "nafnet" / name, tmp_path, TOLERANCE)
    small_strips(monkeypatch)
    monkeypatch.setattr(channel_gates, "MEAN_STRIP", 3)
    check(SMALL_CASES / "nafnet" / name, tmp_path, TOLERANCE)


def test_recorded_outputs_with_gradients(tmp_path: Path) -> None:
    """Nothing is in strips or in place: the same numbers by the other path."""
    case = load_case(SMALL_CASES / "nafnet" / "local_reduced_train32")
    network = load_model(write_checkpoint(case, tmp_path), device="cpu", **case.given)
    assert largest_difference(network(torch.from_numpy(case.input)).detach(), case) < TOLERANCE


@pytest.mark.parametrize("name", ["gopro_width32", "sidd_width32", "baseline_sidd_width32"])
def test_more_recorded_outputs(name: str, shared: Path, tmp_path: Path) -> None:
    check(shared / "parity" / "nafnet" / name, tmp_path)


def test_first_and_last_steps_are_float32_whatever_the_others_compute_in() -> None:
    """Without levels and with a block that does nothing, they are all that there is."""
    network = NAFNet(NAFNetConfig(width=4, encoder_depths=(), decoder_depths=())).eval()
    x = torch.rand(1, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = network(x)
        network.precision = "bf16"
        torch.testing.assert_close(network(x), expected, atol=1e-6, rtol=0)


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_are_told_from_their_files(name: str) -> None:
    parameters, config = PUBLISHED[name]
    with torch.device("meta"), SkipRandomFill():
        network = NAFNet(config)
    state = published(network)
    assert sum(value.numel() for value in state.values()) == parameters == catalogue().entry(name).files[1].parameters
    assert matches(state) and read_config(state) == config
    card = network.card
    assert (card.title, card.scale, card.multiple, card.padding) == ("Baseline" if config.plain else "NAFNet", 1, 16, "zeros")
    assert card.tasks == (("denoising",) if "sidd" in name else ("deblurring",))


@pytest.mark.parametrize("depths", [((1, 2), 0, (1, 1)), ((0, 0), 0, (0, 1)), ((1,), 0, (0,))])
@pytest.mark.parametrize("plain", [False, True])
def test_levels_without_blocks(depths: tuple, plain: bool, tmp_path: Path) -> None:
    """Against the network written down step by step from its file."""
    encoder, middle, decoder = depths
    options = {"encoder_depths": encoder, "middle_depth": middle, "decoder_depths": decoder, "plain": plain, "widen": 4}
    network = NAFNet(NAFNetConfig(width=6, **options)).eval()
    state = {key: draw(key, list(value.shape), 0) for key, value in published(network).items()}
    torch.save(state, tmp_path / "x.pth")
    loaded = load_model(tmp_path / "x.pth", device="cpu")
    assert isinstance(loaded, NAFNet) and loaded.config == network.config

    def blocks(level: torch.nn.Module, y: Tensor) -> Tensor:
        for block in level.children():
            assert isinstance(block, ActivationFreeBlock)
            y = plain_block(block, y)
        return y

    x, kept = draw("x", [2, 3, 8, 12], 0), []
    y = F.conv2d(x, state["intro.weight"], state["intro.bias"], padding=1)
    for level, steps in enumerate(loaded.encoders):
        kept.append(blocks(steps, y))
        y = F.conv2d(kept[-1], state[f"downs.{level}.weight"], state[f"downs.{level}.bias"], stride=2)
    for level, steps in enumerate(loaded.decoders):
        y = blocks(steps, F.pixel_shuffle(F.conv2d(y, state[f"ups.{level}.0.weight"]), 2) + kept.pop())
    expected = F.conv2d(y, state["ending.weight"], state["ending.bias"], padding=1) + x
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), expected.detach(), atol=1e-4, rtol=1e-4)


def test_names_of_the_published_entries() -> None:
    state = published(NAFNet(NAFNetConfig(width=2, encoder_depths=(1,), middle_depth=2, decoder_depths=(1,))))
    names = {entry["key"] for entry in load_case(SMALL_CASES / "nafnet" / "reduced_width16").entries}
    assert set(state) <= names and {"middle_blks.1.sca.1.weight", "ups.0.0.weight", "decoders.0.0.beta"} <= set(state)
    assert list(state["encoders.0.0.gamma"].shape) == [1, 2, 1, 1]


def test_file_of_another_network_is_not_taken_for_one() -> None:
    state = published(NAFNet(NAFNetConfig(width=2, encoder_depths=(1,), decoder_depths=(1,))))
    assert matches(state) and read_config(state).n_heads == 1
    assert read_config(state | {"ending.weight": torch.zeros(12, 2, 3, 3)}).n_heads == 4
    assert not matches(state | {"ending.weight": torch.zeros(5, 2, 3, 3)})
    assert not matches({"intro.weight": state["intro.weight"]})


def test_incomplete_file_is_refused(tmp_path: Path) -> None:
    state = fill(load_case(SMALL_CASES / "nafnet" / "reduced_width16"))
    torch.save({"params": {key: value for key, value in state.items() if key != "encoders.0.0.sca.1.bias"}}, tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="missing"):
        load_model(tmp_path / "x.pth", device="cpu")


# Local means -----------------------------------------------------------------------------------------------------


def test_windows_of_the_published_training_size() -> None:
    assert [DEBLURRING.window(level) for level in range(5)] == [(384, 384), (192, 192), (96, 96), (48, 48), (24, 24)]
    assert NAFNetConfig(tlc_train_size=(100, 250)).window(1) == (84, 192)  # of 112 x 256: 56 * 150 // 100, 128 * 375 // 250
    assert DENOISING.window(0) is None


@pytest.fixture
def deblurring_file(tmp_path: Path) -> Path:
    network = filled(NAFNet(NAFNetConfig(width=2)))
    torch.save({"params": published(network)}, tmp_path / "x.pth")
    return tmp_path / "x.pth"


@pytest.mark.parametrize(
    ("given", "size"),
    [({}, (256, 256)), (0, None), (None, None), (64, (64, 64)), ((48, 32), (48, 32)), ([48, 32], (48, 32)),
     (np.int64(64), (64, 64)), (np.array([48, 32]), (48, 32)), ((np.int32(48), np.int32(32)), (48, 32)), (np.int64(0), None)],
)  # fmt: skip
def test_option_of_the_training_size(given: object, size: object, deblurring_file: Path) -> None:
    network = load_model(deblurring_file, device="cpu", **({} if isinstance(given, dict) else {"tlc_train_size": given}))
    assert isinstance(network, NAFNet) and network.config.tlc_train_size == size


def test_windows_that_cover_the_picture_are_the_whole_picture(deblurring_file: Path) -> None:
    x = torch.rand(1, 3, 80, 96, generator=torch.Generator().manual_seed(0))
    local, wide, whole = (load_model(deblurring_file, device="cpu", tlc_train_size=size) for size in (32, 64, 0))
    with torch.inference_mode():
        torch.testing.assert_close(wide(x), whole(x), atol=1e-6, rtol=1e-6)
        assert (local(x) - whole(x)).abs().max() > 1e-3


@pytest.mark.parametrize(("sides", "window"), [((9, 14), (4, 5)), ((9, 14), (9, 3)), ((6, 7), (20, 2)), ((5, 6, 7), (2, 6, 3))])
def test_local_mean_against_sliding_windows(sides: tuple[int, ...], window: tuple[int, ...], monkeypatch) -> None:
    monkeypatch.setattr(channel_gates, "MEAN_STRIP", 4)
    x = draw("x", [2, *sides, 3], 0)
    edges = tuple(min(edge, side) for edge, side in zip(window, sides, strict=True))
    axes = tuple(range(1, x.ndim - 1))
    views = np.lib.stride_tricks.sliding_window_view(x.numpy().astype(np.float64), edges, axes)
    expected = views.mean(tuple(range(-len(edges), 0)))
    with torch.inference_mode():
        np.testing.assert_allclose(local_mean(x, window).numpy(), expected, atol=1e-6)
    np.testing.assert_allclose(local_mean(x, window).numpy(), expected, atol=1e-6)


def test_local_mean_keeps_its_digits_over_a_long_axis() -> None:
    """float32 sums of 40,000 values around 1000 have a grain of 4, which a window of 4 places would show."""
    x = 1000 + draw("x", [1, 40_000, 1], 0)
    expected = np.lib.stride_tricks.sliding_window_view(x.numpy().astype(np.float64), 4, 1).mean(-1)
    np.testing.assert_allclose(local_mean(x, [4]).numpy(), expected, atol=2e-4)


@pytest.mark.parametrize(("places", "sides"), [((3, 4), (8, 9)), ((1, 4), (8, 7)), ((5, 5), (5, 8))])
def test_spread_edges_against_numpy(places: tuple[int, int], sides: tuple[int, int]) -> None:
    x = draw("x", [2, *places, 3], 0)
    margins = [((n - p) // 2, (n - p + 1) // 2) if p > 1 else (0, 0) for p, n in zip(places, sides, strict=True)]
    expected = np.pad(x.numpy(), [(0, 0), *margins, (0, 0)], mode="edge")
    np.testing.assert_array_equal(spread_edges(x, sides).numpy(), expected)
    rows = expected if places[0] == 1 else expected[:, 2:5]
    np.testing.assert_array_equal(spread_edges(x, sides, slice(2, 5)).numpy(), rows)


# The block -------------------------------------------------------------------------------------------------------


def plain_block(block: ActivationFreeBlock, x: Tensor) -> Tensor:
    """The formulas of the paper, channels first: section 3.4 for NAFNet, 3.2 for Baseline."""
    dims = x.ndim - 2
    convolve = (F.conv2d, F.conv3d)[dims - 2]

    def convolution(name: str, t: Tensor, **options: int) -> Tensor:
        module = block.get_submodule(name)
        return convolve(t, module.weight, module.bias, **options)

    def norm(module: torch.nn.LayerNorm, t: Tensor) -> Tensor:
        centred = t - t.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        shape = [1, -1] + [1] * dims
        return centred / (variance + 1e-6).sqrt() * module.weight.view(shape) + module.bias.view(shape)

    def gate(t: Tensor) -> Tensor:
        half = t.shape[1] // 2
        return F.gelu(t) if block.plain else t[:, :half] * t[:, half:]

    t = gate(convolution("conv2", convolution("conv1", norm(block.norm1, x)), padding=1, groups=len(block.conv2.weight)))
    means = t.mean(list(range(2, t.ndim)), keepdim=True)
    if block.plain:
        t = t * torch.sigmoid(convolution("attention.expand", F.relu(convolution("attention.squeeze", means))))
    else:
        t = t * convolution("attention.conv", means)
    y = x + convolution("conv3", t) * block.beta
    return y + convolution("conv5", gate(convolution("conv4", norm(block.norm2, y)))) * block.gamma


@pytest.mark.parametrize("options", [{}, {"expand": 1, "plain": True}, {"expand": 4, "widen": 3, "plain": True}, {"widen": 4}])
@pytest.mark.parametrize("sides", [(7, 5), (4, 3, 5)])
def test_block_against_the_formulas(options: dict, sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    small_strips(monkeypatch)
    block = filled(ActivationFreeBlock(4, spatial_dims=len(sides), **options))
    assert isinstance(block, ActivationFreeBlock)
    x = draw("x", [2, 4, *sides], 0)
    grid = x.movedim(1, -1).contiguous()
    expected = plain_block(block, x).detach().movedim(1, -1)
    torch.testing.assert_close(block(grid).detach(), expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        result = block(grid)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert result is grid  # as its docstring says


def test_untrained_block_is_the_identity() -> None:
    x = draw("x", [1, 5, 6, 4], 0)
    assert torch.equal(ActivationFreeBlock(4)(x), x)


def test_pictures_go_on_as_their_mirror_image_where_published_inference_goes_on_with_zeros() -> None:
    network = NAFNet(NAFNetConfig(width=8, encoder_depths=(1, 1), middle_depth=1, decoder_depths=(1, 1))).eval()
    network.load_state_dict({name: draw(name, list(value.shape), 0) for name, value in network.state_dict().items()})
    x = torch.rand(1, 3, 22, 13, generator=torch.Generator().manual_seed(0))
    whole = torch.from_numpy(np.pad(x.numpy(), ((0, 0), (0, 0), (0, -22 % 4), (0, -13 % 4)), mode="reflect"))
    with torch.inference_mode():
        expected = network(whole)[..., :22, :13]
        torch.testing.assert_close(network.mirrored(x), expected)
        torch.testing.assert_close(AnyPlanes(network, 3)(x), expected)
        assert (network(x) - expected)[..., -2:].abs().max() > 0.01  # zeros are seen, mirrored or not
        assert torch.equal(network.mirrored(whole), network(whole))
