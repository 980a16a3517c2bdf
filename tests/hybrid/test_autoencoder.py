"""The blocks of auto-encoders against plain formulas, channels first, with and without gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks import autoencoder, convolution, normalisation
from hybrid.blocks.autoencoder import Downsample, GlobalAttention, GroupNorm, ResidualBlock, Upsample, activated_convolution
from tests.restore.parity import draw

SIDES = [(6, 10), (4, 6, 8)]


Block = TypeVar("Block", bound=nn.Module)


def noisy(block: Block) -> Block:
    block.load_state_dict({key: draw(key, list(value.shape), 1) for key, value in block.state_dict().items()})
    return block


def normed(x: Tensor, norm: GroupNorm) -> Tensor:
    """Group norm by its definition, in float64."""
    groups = x.double().unflatten(1, (norm.num_groups, -1))
    axes = list(range(2, groups.ndim))
    mean, variance = groups.mean(axes, keepdim=True), groups.var(axes, correction=0, keepdim=True)
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = ((groups - mean) / (variance + 1e-6).sqrt()).flatten(1, 2)
    return (y * norm.weight.double().view(shape) + norm.bias.double().view(shape)).float()


def convolved(x: Tensor, module: Any, **options: int) -> Tensor:
    return (F.conv2d, F.conv3d)[x.ndim - 4](x, module.weight, module.bias, **options)


def both_ways(block: Callable[..., Tensor], expected: Tensor, *grids: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """With gradients, in inference, and there in strips of a row or a few."""
    given = [grid.movedim(1, -1).contiguous() for grid in grids]
    torch.testing.assert_close(block(*given).detach(), expected.movedim(1, -1).detach(), atol=2e-5, rtol=1e-5)
    for _ in range(2):
        with torch.inference_mode():
            found = block(*[grid.clone() for grid in given])
        torch.testing.assert_close(found, expected.movedim(1, -1).detach(), atol=2e-5, rtol=1e-5)
        for module in (autoencoder, convolution):
            monkeypatch.setattr(module, "STRIP_PIXELS", 1)
        monkeypatch.setattr(normalisation, "CHUNK_VALUES", 64)


@pytest.mark.parametrize("sides", SIDES)
def test_group_norm(sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    norm = noisy(GroupNorm(4, 12))
    x = 2 + torch.randn(2, 12, *sides, generator=torch.Generator().manual_seed(0))
    both_ways(norm, normed(x, norm), x, monkeypatch=monkeypatch)


@pytest.mark.parametrize("outputs", [8, 12])
@pytest.mark.parametrize("sides", SIDES)
def test_residual_block(sides: tuple[int, ...], outputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block = noisy(ResidualBlock(8, outputs, 4, len(sides)))
    x = draw("x", [2, 8, *sides], 0)
    y = convolved(F.silu(normed(x, block.norm1)), block.conv1, padding=1)
    y = convolved(F.silu(normed(y, block.norm2)), block.conv2, padding=1)
    shortcut = x if outputs == 8 else convolved(x, block.shortcut)
    both_ways(block, shortcut + y, x, monkeypatch=monkeypatch)


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("sides", SIDES)
def test_attention_is_asked_by_the_context(sides: tuple[int, ...], asked: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    block = noisy(GlobalAttention(12, 3, 4, asked, len(sides)))
    x, context = draw("x", [2, 12, *sides], 0), draw("context", [2, 12, *sides], 0)
    answering = normed(x, block.norm1)
    asking = normed(context, block.norm2) if asked else answering
    q, k, v = (convolved(*pair).flatten(2) for pair in ((asking, block.q), (answering, block.k), (answering, block.v)))
    parts = []
    for head in range(3):
        own = slice(4 * head, 4 * head + 4)
        weights = torch.softmax(q[:, own].transpose(1, 2) @ k[:, own] / 2, -1)
        parts.append(v[:, own] @ weights.transpose(1, 2))
    expected = x + convolved(torch.cat(parts, 1).view(x.shape), block.proj)
    both_ways(block, expected, *([x, context] if asked else [x]), monkeypatch=monkeypatch)
    assert block.norm2.weight.requires_grad == asked


def test_attention_leaves_its_input_alone() -> None:
    block, x = noisy(GlobalAttention(8, 2, 4)), draw("x", [1, 3, 5, 8], 0)
    before = x.clone()
    with torch.inference_mode():
        block(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("sides", SIDES)
def test_halving(sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    block = noisy(Downsample(5, len(sides)))
    x = draw("x", [2, 5, *sides], 0)
    both_ways(block, convolved(F.pad(x, [0, 1] * len(sides)), block.conv, stride=2), x, monkeypatch=monkeypatch)


@pytest.mark.parametrize("sides", SIDES)
def test_doubling(sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    block = noisy(Upsample(5, len(sides)))
    x = draw("x", [2, 5, *sides], 0)
    doubled = x
    for axis in range(2, x.ndim):
        doubled = doubled.repeat_interleave(2, axis)
    both_ways(block, convolved(doubled, block.conv, padding=1), x, monkeypatch=monkeypatch)


def test_sum_takes_the_place_of_what_it_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    norm, conv = noisy(GroupNorm(2, 4)), noisy(nn.Conv2d(4, 6, 3, padding=1))
    x, onto = draw("x", [1, 9, 5, 4], 0), draw("onto", [1, 9, 5, 6], 0)
    expected = (onto + activated_convolution(x, norm, conv)).detach()
    for pixels in (convolution.STRIP_PIXELS, 1):
        monkeypatch.setattr(convolution, "STRIP_PIXELS", pixels)
        total = onto.clone()
        with torch.inference_mode():
            assert activated_convolution(x, norm, conv, onto=total) is total
        torch.testing.assert_close(total, expected, atol=1e-5, rtol=1e-5)


def test_channels_must_divide_among_heads() -> None:
    with pytest.raises(ValueError, match="10 channels cannot be shared by 4 heads"):
        GlobalAttention(10, 4, 2)
