"""`convolve`: torch's own convolution, in double, is the judge of its numbers; which kernel runs is watched."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from hybrid.blocks.convolution import added_over_row_strips, convolve, in_row_strips
from hybrid.blocks.cross_d import CrossDConv


class Watch(TorchFunctionMode):
    """Counts how often oneDNN is asked by name."""

    asked = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.asked += func is torch.mkldnn_convolution
        return func(*args, **(kwargs or {}))


def numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


def grid(batch: int, channels: int, *sides: int) -> Tensor:
    """In channels-last memory."""
    return numbers(batch, *sides, channels).movedim(-1, 1)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("edge", "stride"), [((3, 3, 3), (1, 1, 1)), ((1, 3, 3), (1, 2, 2)), ((5, 5, 5), (1, 1, 1))])
@pytest.mark.parametrize("side", [2, 12])
def test_numbers_of_torch(side: int, edge: tuple[int, ...], stride: tuple[int, ...], batch: int) -> None:
    x, weight, bias = grid(batch, 6, side, side, side), numbers(4, 6, *edge) - 0.5, numbers(4)
    expected = F.conv3d(x.double(), weight.double(), bias.double(), stride, [n // 2 for n in edge])
    torch.testing.assert_close(convolve(x, weight, bias, stride).double(), expected, atol=1e-4, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolve(x, weight, bias, stride).dtype == torch.bfloat16


@pytest.mark.parametrize(("padding", "groups"), [((0, 0, 0), 1), ((2, 0, 1), 1), ((1, 1, 1), 3)])
def test_padding_and_groups(padding: tuple[int, ...], groups: int) -> None:
    x, weight = grid(1, 6, 10, 9, 8), numbers(12, 6 // groups, 3, 3, 3) - 0.5
    expected = F.conv3d(x.double(), weight.double(), padding=padding, groups=groups)
    torch.testing.assert_close(convolve(x, weight, None, None, padding, groups).double(), expected, atol=1e-4, rtol=1e-5)


def test_slices() -> None:
    x, weight = grid(2, 3, 20, 30), numbers(5, 3, 3, 3) - 0.5
    torch.testing.assert_close(convolve(x, weight), F.conv2d(x, weight, padding=1))


@pytest.mark.parametrize("network", ["plain", "cross_d"])
def test_gradients_are_those_of_torch(network: str) -> None:
    x, weight = grid(1, 4, 8, 8, 8), numbers(6, 4, 3, 3, 3) - 0.5
    step = CrossDConv(4, 6, 3, padding=1, spatial_dims=3)
    found, judge = (t.clone().requires_grad_() for t in (weight, weight.double()))
    if network == "plain":
        convolve(x, found).square().sum().backward()
        gradient = found.grad
    else:
        step.weights_3d.data.copy_(weight)
        step(x).square().sum().backward()
        gradient = step.weights_3d.grad
    F.conv3d(x.double(), judge, padding=1).square().sum().backward()
    assert gradient is not None and judge.grad is not None
    torch.testing.assert_close(gradient.double(), judge.grad, atol=1e-2, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch was built without oneDNN")
@pytest.mark.parametrize(
    ("shape", "kernel", "asked"),
    [
        ((1, 4, 12, 12, 12), 3, True),  # torch would unfold
        ((1, 4, 4, 4, 4), 3, False),  # too small to gain
        ((2, 4, 12, 12, 12), 3, False),  # torch asks oneDNN itself
        ((1, 4, 12, 12, 12), 1, False),  # a matrix product
    ],
)
def test_when_onednn_is_asked(shape: tuple[int, ...], kernel: int, asked: bool) -> None:
    x, weight = numbers(*shape), numbers(4, 4, kernel, kernel, kernel)
    with Watch() as watch:
        convolve(x, weight)
        assert bool(watch.asked) is asked
        convolve(x.double(), weight.double())  # not a type for oneDNN
        with torch.autocast("cpu", torch.bfloat16):
            convolve(x, weight)
        with torch.backends.mkldnn.flags(enabled=False):  # the user says no
            convolve(x, weight)
    assert watch.asked == asked


@pytest.mark.parametrize("onto", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 23, 5, 4), (2, 12, 3, 3, 4)])
def test_strips_added_in_place_are_the_whole(shape: tuple[int, ...], onto: torch.dtype) -> None:
    """A step that looks two rows up and down, and must see the rows as they were before any strip was added."""

    def step(x: Tensor) -> Tensor:
        rows = F.pad(x, [0, 0] * (x.ndim - 2) + [2, 2])
        return rows[:, :-4] + 3 * rows[:, 4:]

    x = numbers(*shape).to(onto)
    wanted = x + step(x)
    with torch.inference_mode():
        grid = x.clone()
        assert added_over_row_strips(step, grid, halo=2, pixels=1) is grid
        assert torch.equal(grid, wanted)
    assert torch.equal(added_over_row_strips(step, x, halo=2, pixels=1), wanted)


def test_strips_have_the_type_of_the_step() -> None:
    x = numbers(1, 23, 5, 4)
    with torch.inference_mode():
        for pixels in (1, 10**6):
            assert in_row_strips(lambda strip: strip.bfloat16(), x, halo=1, pixels=pixels).dtype == torch.bfloat16
