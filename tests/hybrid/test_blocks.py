"""Resampling, feed-forward, stochastic depth, the table of names, and building without random fills."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import erf
from torch import nn
from torch.nn import functional as F

from hybrid.blocks import chunks
from hybrid.blocks.feedforward import FeedForward, StochasticDepth
from hybrid.blocks.resampling import in_strips, pad_to_multiple, sub_pixel_stages
from hybrid.initialisation import SkipRandomFill, initialise_linears
from hybrid.weights.keys import KeyMap

# Padding ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 7), (8, 16), (9, 8), (1, 70), (1, 1), (2, 3), (13,), (3, 1, 5)])
@pytest.mark.parametrize("multiple", [1, 2, 8, 16])
def test_pad_to_multiple_reflects_as_numpy_does(shape, multiple) -> None:
    """NumPy too reflects back and forth where the padding exceeds the size, and repeats one pixel."""
    x = np.random.default_rng(0).normal(size=(2, 3, *shape))
    widths = [(0, 0), (0, 0), *((0, -n % multiple) for n in shape)]
    np.testing.assert_array_equal(pad_to_multiple(torch.from_numpy(x), multiple), np.pad(x, widths, mode="reflect"))


def test_nothing_is_copied_where_nothing_is_padded() -> None:
    x = torch.rand(1, 3, 16, 32)
    assert pad_to_multiple(x, 16) is x


# Enlarging -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8])
def test_sub_pixel_stages_equal_their_indices(scale) -> None:
    """Stage by stage: out[c, y s + i, x s + j] = convolved[c s^2 + i s + j, y, x]."""
    tail = sub_pixel_stages(4, scale).double()
    x = torch.rand(2, 4, 3, 5, dtype=torch.float64)
    expected = x.numpy()
    for convolution in list(tail)[::2]:
        assert isinstance(convolution, nn.Conv2d)
        low = convolution(torch.from_numpy(expected)).detach().numpy()
        step = math.isqrt(low.shape[1] // 4)
        expected = np.empty((2, 4, low.shape[2] * step, low.shape[3] * step))
        for c in range(4):
            for i in range(step):
                for j in range(step):
                    expected[:, c, i::step, j::step] = low[:, c * step * step + i * step + j]
    assert expected.shape == (2, 4, 3 * scale, 5 * scale)
    np.testing.assert_array_equal(tail(x).detach(), expected)
    stages = 0 if scale == 1 else 1 if scale == 3 else int(math.log2(scale))
    assert [key for key in tail.state_dict() if key.endswith("weight")] == [f"{2 * i}.weight" for i in range(stages)]


@pytest.mark.parametrize("scale", [0, -2, 5, 6, 12])
def test_sub_pixel_stages_refuse_other_scales(scale) -> None:
    with pytest.raises(ValueError, match=f"not by {scale}$"):
        sub_pixel_stages(4, scale)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize(("height", "rows"), [(23, 5), (24, 8), (7, 1), (5, 8)])
def test_strips_equal_the_whole(scale, height, rows) -> None:
    """A tail of four convolutions at most, the first two at the input's resolution: it reaches less than four rows."""
    torch.manual_seed(0)
    tail = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.LeakyReLU(), sub_pixel_stages(4, scale), nn.Conv2d(4, 2, 3, padding=1)
    ).double()
    x = torch.rand(2, 3, height, 9, dtype=torch.float64)
    with torch.inference_mode():
        strips = in_strips(tail, x, scale=scale, halo=4, rows=rows)
        torch.testing.assert_close(strips, tail(x), atol=1e-12, rtol=0)
        if rows < height:
            torn = in_strips(tail, x, scale=scale, halo=0, rows=rows)
            assert not torch.allclose(torn, tail(x))  # the halo is what makes them equal


def test_strips_hold_one_strip_at_a_time_and_leave_gradients_alone() -> None:
    seen = []

    def tail(x: torch.Tensor) -> torch.Tensor:
        seen.append(x.shape[2])
        return x

    x = torch.rand(1, 1, 20, 2, requires_grad=True)
    with torch.no_grad():
        in_strips(tail, x, scale=1, halo=2, rows=6)
    assert seen == [8, 10, 10, 4]
    in_strips(tail, x, scale=1, halo=2, rows=6).sum().backward()
    assert seen[4:] == [20] and x.grad is not None


# Feed-forward ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 7, 4096])
def test_feed_forward_uses_the_exact_gelu(tokens, monkeypatch) -> None:
    """The usual tanh formula is off by 4e-4. In inference a few tokens are taken at a time."""
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", tokens)
    block = FeedForward(6, 10).double()
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64) * 3
    w1, b1, w2, b2 = (p.detach().numpy() for p in block.parameters())
    hidden = x.numpy() @ w1.T + b1
    expected = (0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))) @ w2.T + b2
    np.testing.assert_allclose(block(x).detach(), expected, atol=1e-12)
    with torch.inference_mode():
        np.testing.assert_allclose(block(x), expected, atol=1e-12)


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = StochasticDepth(0.25)
    x = torch.rand(4000, 2, 3) + 1
    y = block(x)
    kept = (y != 0).flatten(1)
    assert bool((kept.all(1) | ~kept.any(1)).all())  # a sample is dropped whole or not at all
    torch.testing.assert_close(y[kept[:, 0]], x[kept[:, 0]] / 0.75)
    assert 0.72 < kept[:, 0].float().mean() < 0.78
    assert block.eval()(x) is x
    assert StochasticDepth(0.0).train()(x) is x


# Names -----------------------------------------------------------------------------------------------------------

TABLE = KeyMap(("layers.{}.blocks.{}.attn.", "groups.{}.steps.{}.attention."), ("layers.{}.", "groups.{}."), ("a.b", "c"))


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("layers.0.blocks.11.attn.qkv.weight", "groups.0.steps.11.attention.qkv.weight"),
        ("layers.12.conv.bias", "groups.12.conv.bias"),
        ("a.b.weight", "c.weight"),
        ("other.layers.0.weight", "other.layers.0.weight"),
        ("layers.x.weight", "layers.x.weight"),
        ("aXb.weight", "aXb.weight"),  # the dot is a dot
    ],
)
def test_names_there_and_back(published, ours) -> None:
    assert TABLE.to_ours(published) == ours
    assert TABLE.to_published(ours) == published


# Building --------------------------------------------------------------------------------------------------------


def build() -> nn.Module:
    filled = nn.Linear(4, 4)
    nn.init.trunc_normal_(filled.weight, std=0.02)
    nn.init.xavier_uniform_(filled.weight)
    nn.init.zeros_(filled.bias)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv3d(1, 2, 3), nn.ConvTranspose2d(2, 2, 2), nn.BatchNorm2d(8), filled)


def test_networks_are_built_without_drawing_numbers() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with SkipRandomFill():
        network = build()
    assert torch.equal(torch.get_rng_state(), before)
    state = network.state_dict()
    assert bool((state["3.weight"] == 1).all()) and not state["4.bias"].any()  # what is not random is filled as ever
    build()
    assert not torch.equal(torch.get_rng_state(), before)
    F.dropout(torch.ones(4), 0.5)  # outside of the context all is as before


@pytest.mark.parametrize("options", [{"std": 0.02}, {"std": 1.0}, {"std": 1.0, "a": -0.2, "b": 0.3}])
def test_truncated_normals_end_where_nothing_is_drawn(options: dict[str, Any]) -> None:
    """torch draws them until all are within bounds: left as the memory was, some never would be."""
    held = torch.full((64,), 1e9)
    with SkipRandomFill():
        nn.init.trunc_normal_(held, **options)
    assert not held.any()


def test_linears_are_as_published() -> None:
    torch.manual_seed(0)
    first, second, convolution = nn.Linear(400, 300), nn.Linear(300, 9, bias=False), nn.Conv2d(3, 8, 3)
    before = convolution.weight.clone()
    initialise_linears(nn.Sequential(first, nn.Sequential(second), convolution))
    assert first.weight.std().item() == pytest.approx(0.02, rel=0.02) and not first.bias.any()
    assert second.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(convolution.weight, before)
    drawn, judge = first.weight.detach().clone(), torch.empty(300, 400)
    torch.manual_seed(1)
    initialise_linears(first)
    torch.manual_seed(1)
    nn.init.trunc_normal_(judge, std=0.02)
    assert torch.equal(first.weight, judge) and not torch.equal(first.weight, drawn)
