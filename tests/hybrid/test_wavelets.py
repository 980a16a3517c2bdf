"""Haar wavelets against PyWavelets and against loops in numpy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hybrid.blocks.wavelets import haar, inverse_haar, mirrored_signs


def grid(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def by_pywavelets(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Bands by their letters in alphabetical order, which is the order that `haar` promises."""
    found = pywt.dwtn(x, "haar", mode="symmetric", axes=[axis + 1 for axis in axes])
    return np.concatenate([found[name] for name in sorted(found)], axis=-1)


def by_loops(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Every coefficient by its definition, where all sides are even."""
    dims = x.ndim - 2
    steps = [2 if axis in axes else 1 for axis in range(dims)]
    sides = [side // step for side, step in zip(x.shape[1:-1], steps, strict=True)]
    bands = []
    for letters in itertools.product("ad", repeat=len(axes)):
        band = np.zeros((len(x), *sides, x.shape[-1]))
        for place in np.ndindex(*sides):
            for offsets in itertools.product((0, 1), repeat=len(axes)):
                at = [p * step for p, step in zip(place, steps, strict=True)]
                sign = 1.0
                for axis, letter, offset in zip(axes, letters, offsets, strict=True):
                    at[axis] += offset
                    sign *= -1 if letter == "d" and offset else 1
                band[(slice(None), *place)] += sign * x[(slice(None), *at)] / 2 ** (len(axes) / 2)
        bands.append(band)
    return np.concatenate(bands, axis=-1)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 8, 3), (0,)),
        ((1, 7, 2), (0,)),
        ((2, 6, 4, 1), (0, 1)),
        ((1, 5, 8, 3), (0, 1)),
        ((1, 5, 7, 2), (1,)),
        ((2, 4, 6, 8, 1), (0, 1, 2)),
        ((1, 3, 5, 7, 4), (0, 1, 2)),
        ((1, 3, 6, 8, 2), (1, 2)),
        ((1, 4, 5, 8, 2), (0, 2)),
        ((1, 1, 1, 1, 2), (0, 1, 2)),
    ],
)
def test_same_as_pywavelets(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = grid(*shape)
    np.testing.assert_allclose(haar(x, axes).numpy(), by_pywavelets(x.numpy(), axes), atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "axes"), [((2, 4, 3), (0,)), ((1, 4, 6, 2), (0, 1)), ((1, 2, 4, 2, 2), (0, 1, 2)), ((1, 3, 4, 2, 2), (1, 2))]
)
def test_same_as_the_definition(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    x = grid(*shape)
    np.testing.assert_allclose(haar(x, axes).numpy(), by_loops(x.numpy(), axes), atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_perfect_reconstruction(data: st.DataObject) -> None:
    dims = data.draw(st.integers(1, 3))
    sides = data.draw(st.lists(st.integers(1, 9), min_size=dims, max_size=dims))
    axes = sorted(data.draw(st.sets(st.integers(0, dims - 1))))
    x = grid(2, *sides, data.draw(st.integers(1, 3)))
    torch.testing.assert_close(inverse_haar(haar(x, axes), axes, sides), x, atol=1e-12, rtol=0)
    even = [side + side % 2 if axis in axes else side for axis, side in enumerate(sides)]
    assert inverse_haar(haar(x, axes), axes).shape[1:-1] == tuple(even)


def test_bands_are_named_in_the_order_of_the_axes() -> None:
    """However the axes are given."""
    x = grid(1, 4, 6, 2, 1)
    assert torch.equal(haar(x, (2, 0)), haar(x, (0, 2)))
    assert torch.equal(inverse_haar(haar(x), (2, 0, 1)), inverse_haar(haar(x)))


def test_energy_is_kept() -> None:
    x = grid(2, 6, 4, 8, 3)
    assert haar(x).square().sum().item() == pytest.approx(x.square().sum().item(), rel=1e-12)


def test_approximation_comes_first_and_grows() -> None:
    bands = haar(torch.full((1, 4, 4, 4, 2), 3.0))
    torch.testing.assert_close(bands[..., :2], torch.full((1, 2, 2, 2, 2), 3 * 2**1.5))
    assert bands[..., 2:].abs().max() == 0


@pytest.mark.parametrize("mirrored", [m for n in range(4) for m in itertools.combinations(range(3), n)])
def test_bands_of_mirror_images(mirrored: tuple[int, ...]) -> None:
    x, axes = grid(1, 4, 6, 8, 2), (1, 2)
    turned = [axis + 1 for axis in mirrored]
    signs = torch.tensor(mirrored_signs(axes, mirrored)).repeat_interleave(2)
    torch.testing.assert_close(haar(x.flip(turned), axes), haar(x, axes).flip(turned) * signs)


def test_gradient() -> None:
    x = grid(1, 3, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(haar, (x,))
    assert torch.autograd.gradcheck(inverse_haar, (x.detach()[..., :2].repeat(1, 1, 1, 2).requires_grad_(),))


def test_transforms_the_input_in_its_type_and_leaves_it() -> None:
    x = grid(1, 4, 4, 1).to(torch.bfloat16)
    before = x.clone()
    assert haar(x).dtype == torch.bfloat16 and torch.equal(x, before)


@pytest.mark.parametrize("axes", [(0, 0), (2,), (-1,)])
def test_axes_that_are_not_there(axes: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="2 spatial axes cannot be halved along"):
        haar(grid(1, 4, 4, 1), axes)
