"""Token mixers: what of a grid each can see, what it does not depend on, and that it takes any grid."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid.blocks.mixers import (
    HEAD_CHANNELS,
    MIXERS,
    Mixer,
    MixerBlock,
    WaveletMixer,
    heads_of,
    mixer,
    mixer_name,
    width_step,
)
from hybrid.mixer_names import MIXER_NAMES
from hybrid.parameter_budget import parameters_of, widths_for
from tests.restore.parity import draw

NAMES = list(MIXERS)
EVERY = [(name, dims) for name in NAMES for dims in (2, 3)]
SIZES = {2: [(1, 1), (16, 16), (5, 19), (33, 8)], 3: [(1, 1, 1), (8, 8, 8), (3, 9, 5), (6, 1, 10)]}
DIM = 24


def drawn(name: str, dims: int, index: int = 0, dim: int = DIM) -> Mixer:
    """A mixer whose numbers are all different, norms and scales included."""
    made = mixer(name, dim, index, dims)
    state = made.state_dict()
    made.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return made.eval()


def grid(*sides: int, batch: int = 1, dim: int = DIM) -> Tensor:
    generator = torch.Generator().manual_seed(sum(sides))
    return torch.randn(batch, *sides, dim, generator=generator)


def test_the_names_are_those_of_the_recipes() -> None:
    assert list(MIXERS) == NAMES


@pytest.mark.parametrize(("name", "dims"), EVERY)
@pytest.mark.parametrize("index", [0, 1])
def test_any_size_with_and_without_gradients(name: str, dims: int, index: int) -> None:
    made = drawn(name, dims, index)
    for sides in SIZES[dims]:
        x = grid(*sides, batch=2)
        before = x.clone()
        learning = made(x).detach()
        with torch.inference_mode():
            y = made(x)
        assert y.shape == x.shape and bool(y.isfinite().all()) and torch.equal(x, before)
        torch.testing.assert_close(y, learning, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_grids_of_a_batch_do_not_meet(name: str, dims: int) -> None:
    made, x = drawn(name, dims, 1), grid(*SIZES[dims][2], batch=3)
    with torch.inference_mode():
        torch.testing.assert_close(made(x), torch.cat([made(each[None]) for each in x]), atol=2e-5, rtol=1e-5)


# What each sees ----------------------------------------------------------------------------------------------------


def seen(made: nn.Module, sides: tuple[int, ...], at: tuple[int, ...]) -> np.ndarray:
    """Which tokens the result at one place depends on, by the gradient of the sum of its channels' squares; (*sides,)."""
    x = grid(*sides).double().requires_grad_()
    made.double()(x)[(0, *at)].square().sum().backward()
    assert x.grad is not None
    found = x.grad[0].abs().sum(-1).numpy()
    return found > 1e-20 * found.max()  # masks of windows are finite, and leave exp(-100)


def box(sides: tuple[int, ...], *ranges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(sides, bool)
    mask[tuple(slice(max(0, first), last) for first, last in ranges)] = True
    return mask


def around(sides: tuple[int, ...], at: tuple[int, ...], reach: int) -> np.ndarray:
    return box(sides, *((place - reach, place + reach + 1) for place in at))


CASES = {2: ((24, 16), (9, 6)), 3: ((12, 8, 8), (5, 3, 6))}
"""Sides, and the place whose result is looked at."""
EDGE = {2: 8, 3: 4}


@pytest.mark.parametrize("dims", [2, 3])
def test_windows_see_their_window_and_the_next_block_another(dims: int) -> None:
    (sides, at), edge = CASES[dims], EDGE[dims]
    plain = [(place // edge * edge, place // edge * edge + edge) for place in at]
    np.testing.assert_array_equal(seen(drawn("window", dims, 0), sides, at), box(sides, *plain))
    half = edge // 2
    moved = [((place - half) // edge * edge + half, (place - half) // edge * edge + half + edge) for place in at]
    np.testing.assert_array_equal(seen(drawn("window", dims, 1), sides, at), box(sides, *moved))
    assert not np.array_equal(box(sides, *plain), box(sides, *moved))


@pytest.mark.parametrize("dims", [2, 3])
def test_overlapping_windows_see_half_of_an_edge_more(dims: int) -> None:
    (sides, at), edge = CASES[dims], EDGE[dims]
    margin = edge // 4
    ranges = [(place // edge * edge - margin, place // edge * edge + edge + margin) for place in at]
    np.testing.assert_array_equal(seen(drawn("overlapping", dims), sides, at), box(sides, *ranges))


@pytest.mark.parametrize("dims", [2, 3])
def test_crosses_see_bars_along_each_axis(dims: int) -> None:
    (sides, at), split = CASES[dims], {2: 4, 3: 2}[dims]
    expected = np.zeros(sides, bool)
    for along in range(dims):
        bar = [(0, n) if axis == along else (p // split * split, p // split * split + split) for axis, (n, p) in
               enumerate(zip(sides, at, strict=True))]  # fmt: skip
        expected |= box(sides, *bar)
    np.testing.assert_array_equal(seen(drawn("cross-shaped", dims), sides, at), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_large_kernels_see_their_kernel(dims: int) -> None:
    sides, at = CASES[dims]
    expected = around(sides, at, {2: 4, 3: 2}[dims])
    np.testing.assert_array_equal(seen(drawn("large-kernel", dims), sides, at), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_wavelets_see_three_pairs_along_each_axis(dims: int) -> None:
    sides, at = CASES[dims]
    pairs = [(2 * (place // 2 - 1), 2 * (place // 2 + 2)) for place in at]
    np.testing.assert_array_equal(seen(drawn("wavelet", dims), sides, at), box(sides, *pairs))


@pytest.mark.parametrize("name", ["channel", "transposed", "rwkv"])
@pytest.mark.parametrize("dims", [2, 3])
def test_the_others_see_all(name: str, dims: int) -> None:
    assert seen(drawn(name, dims), *CASES[dims]).all()
    assert MIXERS[name].global_context


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_what_is_said_of_a_mixer_is_true(name: str, dims: int) -> None:
    """Those that are not global depend on nothing far away, and the result of a shift by `multiple` is the shifted result."""
    made = drawn(name, dims)
    sides = (48,) * 2 if dims == 2 else (24, 8, 8)
    far = bool(seen(made, sides, (0,) * dims)[sides[0] // 2 :].any())
    assert made.global_context == far, (
        f"{name}: global_context is {made.global_context}, far tokens are{'' if far else ' not'} seen"
    )
    if made.global_context:
        return
    x = grid(*sides).double()
    step = made.multiple
    moved = made(x.roll(step, 1)).roll(-step, 1)
    middle = slice(16, -16) if dims == 2 else slice(8, -8)
    torch.testing.assert_close(moved[:, middle], made(x)[:, middle])


# What they do not depend on ----------------------------------------------------------------------------------------


def permuted(made: Mixer, x: Tensor) -> tuple[Tensor, Tensor]:
    """The result of a grid whose tokens were put in another order, in that order, and the result of the grid."""
    places = torch.randperm(x[0, ..., 0].numel(), generator=torch.Generator().manual_seed(0))

    def reorder(grid: Tensor) -> Tensor:
        return grid.flatten(1, -2)[:, places].view_as(grid)

    with torch.inference_mode():
        return made(reorder(x)), reorder(made(x))


@pytest.mark.parametrize("dims", [2, 3])
def test_the_channel_gate_does_not_know_where_a_token_is(dims: int) -> None:
    torch.testing.assert_close(*permuted(drawn("channel", dims), grid(*SIZES[dims][2])), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dims", [2, 3])
def test_transposed_attention_knows_places_by_its_kernel_alone(dims: int) -> None:
    made, x = drawn("transposed", dims), grid(*SIZES[dims][2])
    apart, together = permuted(made, x)
    assert (apart - together).abs().max() > 0.01
    weight = made.attention.qkv_dwconv.weight  # type: ignore[union-attr]
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        centre = weight[(..., *[1] * dims)].clone()
        weight.zero_()[(..., *[1] * dims)] = centre
    torch.testing.assert_close(*permuted(made, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sides", [(8, 12), (7, 9), (1, 2), (6, 4, 8), (5, 3, 1)])
def test_sub_bands_through_the_identity_are_the_grid(sides: tuple[int, ...]) -> None:
    dims = len(sides)
    made, x = mixer("wavelet", DIM, 0, dims), grid(*sides)
    assert isinstance(made, WaveletMixer)
    with torch.no_grad():
        made.bands.bias.zero_()
        made.bands.weight.zero_()[(..., *[1] * dims)] = 1
    torch.testing.assert_close(made.in_bands(x), x)


def test_sub_bands_scale_apart() -> None:
    """Without the details a grid is the mean of each pair, by numpy."""
    made, x = mixer("wavelet", DIM, 0, 2), grid(6, 8)
    assert isinstance(made, WaveletMixer)
    with torch.no_grad():
        made.bands.bias.zero_()
        made.bands.weight.zero_()[:DIM, :, 1, 1] = 1  # the approximation comes first
    values = x[0].numpy()
    means = values.reshape(3, 2, 4, 2, DIM).mean((1, 3))
    np.testing.assert_allclose(made.in_bands(x)[0].detach(), means.repeat(2, 0).repeat(2, 1), atol=1e-6)


# Names, heads and sizes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "dims"), EVERY)
def test_every_parameter_of_a_block_learns(name: str, dims: int) -> None:
    block = MixerBlock(name, DIM, 30, 1, dims)
    block.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in block.state_dict().items()})
    block(grid(*SIZES[dims][2])).square().mean().backward()
    for key, parameter in block.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key
    state = {f"groups.0.{key}": value for key, value in block.state_dict().items()}
    assert mixer_name(state, "groups.0.") == name and mixer_name(state, "groups.1.") is None


def test_heads_are_shared_by_the_axes_and_have_channels() -> None:
    for dims, dim in product((2, 3), range(12, 400, 12)):
        heads = heads_of(dim, dims)
        assert dim % heads == 0 and heads % dims == 0
        assert dim // heads >= HEAD_CHANNELS or heads == dims


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="no mixer 'windows', only window, cross-shaped"):
        mixer("windows", 24, 0)
    with pytest.raises(ValueError, match="32 channels cannot be shared by 3 axes"):
        mixer("window", 32, 0, 3)


def test_widths_follow_from_the_number_of_parameters() -> None:
    """By trying all of them."""

    def make(dim: int, hidden: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim))

    def count(dim: int, hidden: int) -> int:
        return dim * dim + dim + dim * hidden + hidden + hidden * dim + dim

    for parameters in (2000, 10_000, 77_777):
        dim, hidden = widths_for(parameters, make, step=8)
        assert dim == max(d for d in range(8, 400, 8) if count(d, 2 * d) <= parameters)
        assert hidden == max(h for h in range(2 * dim, 4000) if count(dim, h) <= parameters)
        assert parameters_of(make(dim, hidden)) == count(dim, hidden)
    with pytest.raises(ValueError, match=r"10 parameters are too few: the smallest network has \d+"):
        widths_for(10, make, step=8)
    assert width_step(2) == 8 and width_step(3) == 12


def test_the_names_of_helps_and_documents_are_those_there_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "mixers.md").read_text()
    assert list(MIXER_NAMES) == NAMES and re.findall(r"^\| `([a-z-]+)` \|", page, re.MULTILINE) == NAMES
