"""Cross-shaped attention against plain numpy loops over bars, heads and queries, and what its plans promise."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid.blocks import chunks
from hybrid.blocks.cross_shaped import CrossShapedAttention, CSWinBlock, plan_bars


def randomised(module: CSWinBlock) -> CSWinBlock:
    """float64 weights that are all different, biases included."""
    generator = torch.Generator().manual_seed(0)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4)
    return module


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    return np.einsum("...i,oi->...o", x, layer.weight.detach().numpy()) + layer.bias.detach().numpy()


def normed(x: np.ndarray, layer: nn.LayerNorm) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return scaled * layer.weight.detach().numpy() + layer.bias.detach().numpy()


def slow_bar(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """One bar, (*sides, c) each: attention head by head, and the 3x3 convolution tap by tap with zeros outside the bar."""
    sides, width = q.shape[:-1], q.shape[-1] // heads
    out = np.zeros_like(v)
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        queries, keys, values = (t[..., part].reshape(-1, width) for t in (q, k, v))
        logits = np.einsum("id,jd->ij", queries, keys) / np.sqrt(width)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        out[..., part] = np.einsum("ij,jd->id", weights / weights.sum(1, keepdims=True), values).reshape(*sides, width)
    ringed = np.pad(v, [(1, 1)] * len(sides) + [(0, 0)])
    tap: Any
    for tap in product(range(3), repeat=len(sides)):
        shifted = ringed[tuple(slice(t, t + n) for t, n in zip(tap, sides, strict=True))]
        out += shifted * kernel[:, 0, *tap]
    return out + bias


def slow_attention(block: CrossShapedAttention, x: np.ndarray) -> np.ndarray:
    """As section 3 of the paper has it: each kind of bar takes its share of channels, and the shares are joined."""
    shape, channels, kinds = x.shape[1:-1], x.shape[-1], len(block.directions)
    share = channels // kinds
    q, k, v = np.split(linear(x, block.qkv), 3, axis=-1)
    joined = np.zeros_like(x)
    for kind, along in enumerate(block.directions):
        part = slice(kind * share, (kind + 1) * share)
        bar = [n if along in (None, axis) else block.split for axis, n in enumerate(shape)]
        missing = [-n % b for n, b in zip(shape, bar, strict=True)]
        pads = [(0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)]
        kernel, bias = (t.detach().numpy() for t in block.local[kind].folded())  # type: ignore[operator]
        filled = [np.pad(t[..., part], pads) for t in (q, k, v)]
        out = np.zeros_like(filled[0])
        counts = [(n + m) // b for n, m, b in zip(shape, missing, bar, strict=True)]
        for b, corner in product(range(len(x)), np.ndindex(*counts)):
            place: Any = (b, *(slice(c * w, (c + 1) * w) for c, w in zip(corner, bar, strict=True)))
            q_bar, k_bar, v_bar = (t[place] for t in filled)
            out[place] = slow_bar(q_bar, k_bar, v_bar, block.num_heads, kernel, bias)
        inside = tuple(slice(before, before + n) for (before, _), n in zip(pads[1:-1], shape, strict=True))
        joined[..., part] = out[(slice(None), *inside)]
    return linear(joined, block.proj)


CASES = [
    ((6, 8), 2, False),
    ((7, 9), 1, False),
    ((5, 11), 4, False),  # filled up by 3 and by 1
    ((2, 3), 5, False),  # bars wider than the grid
    ((1, 1), 2, False),
    ((5, 4), 3, True),
    ((4, 6, 2), 2, False),
    ((5, 3, 7), 1, False),
    ((3, 7, 4), 3, False),
    ((3, 2, 4), 2, True),
]


@pytest.mark.parametrize(("shape", "split", "whole"), CASES)
@pytest.mark.parametrize("chunk", [1, 20, 4096])
def test_same_as_plain_loops(
    shape: tuple[int, ...], split: int, whole: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", chunk)
    block = randomised(CSWinBlock(24, 12, split, 30, len(shape), whole)).attention
    x = random(2, *shape, 24)
    expected = slow_attention(block, x.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(block(x).numpy(), expected, atol=1e-11)
    np.testing.assert_allclose(block(x).detach().numpy(), expected, atol=1e-11)


def test_block_has_two_residual_branches() -> None:
    block, x = randomised(CSWinBlock(12, 2, 2, 20)), random(2, 4, 6, 12)
    total = x.numpy() + slow_attention(block.attention, normed(x.numpy(), block.norm1))
    hidden = linear(normed(total, block.norm2), block.mlp.fc1)
    from scipy.special import erf

    total = total + linear(hidden * (1 + erf(hidden / np.sqrt(2))) / 2, block.mlp.fc2)
    with torch.inference_mode():
        np.testing.assert_allclose(block(x.clone()).numpy(), total, atol=1e-10)


def test_input_is_left_alone() -> None:
    block, x = randomised(CSWinBlock(12, 2, 2, 20)), random(1, 3, 5, 12)
    before = x.clone()
    with torch.inference_mode():
        block(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("shape", [(6, 8), (7, 5), (4, 6, 5)])
def test_a_token_reaches_the_bars_through_it_and_no_others(shape: tuple[int, ...]) -> None:
    """Also the convolution of the values does not cross from bar to bar."""
    dims, split = len(shape), 2
    block = randomised(CSWinBlock(12, 2 * dims, split, 20, dims)).attention
    with torch.no_grad():
        block.proj.weight.copy_(torch.eye(12))  # keeps the shares of channels apart
    x = random(1, *shape, 12)
    other, token = x.clone(), tuple(n // 2 for n in shape)
    other[(0, *token)] += 1.0
    with torch.inference_mode():
        changed = (block(x) != block(other))[0].unflatten(-1, (dims, -1)).any(-1).numpy()
    for kind in range(dims):
        expected = np.ones(shape, bool)
        for axis, n in enumerate(shape):
            if axis != kind:
                first = (-n % split) // 2
                same = (np.arange(n) + first) // split == (token[axis] + first) // split
                expected &= same.reshape([-1 if a == axis else 1 for a in range(dims)])
        np.testing.assert_array_equal(changed[..., kind], expected)


@pytest.mark.parametrize("along", [0, 1, 2, None])
@pytest.mark.parametrize("bars", [1, 3, 7, 1000])
def test_slabs_cover_the_grid_once(along: int | None, bars: int) -> None:
    shape = (5, 8, 3)
    plan = plan_bars(shape, along, 3)
    seen = np.zeros(shape, int)
    for slab in plan.slabs(bars):
        place = [slice(None)] * 3
        place[plan.axis] = slab.rows
        seen[tuple(place)] += 1
        sides = seen[tuple(place)].shape
        whole = [n + b + a for n, b, a in zip(sides, slab.before, slab.after, strict=True)]
        assert all(n % b == 0 for n, b in zip(whole, plan.bar, strict=True))
    assert (seen == 1).all()


def test_gradients() -> None:
    block, x = randomised(CSWinBlock(12, 6, 2, 8, 3)), random(1, 3, 2, 3, 12).requires_grad_()
    assert torch.autograd.gradcheck(block, (x,), fast_mode=True)


@pytest.mark.parametrize(("dim", "heads", "split", "dims"), [(10, 4, 2, 2), (12, 3, 2, 2), (16, 4, 1, 3), (8, 2, 0, 2)])
def test_impossible_shares_are_refused(dim: int, heads: int, split: int, dims: int) -> None:
    with pytest.raises(ValueError, match=f"{dim} channels and {heads} heads cannot be shared by {dims} kinds of bars"):
        CrossShapedAttention(dim, heads, split, dims)


def test_gradients_in_bf16_are_those_of_float32_where_bars_are_thinner_than_the_kernel() -> None:
    """oneDNN leaves a part of such a kernel's bf16 gradient as the memory was before."""
    torch.manual_seed(0)
    attention = CrossShapedAttention(36, 3, 2, 3)
    x = torch.randn(2, 8, 12, 8, 36)
    gradients = []
    for low in (False, True):
        attention.zero_grad()
        freed = [torch.full((size,), float("nan")) for size in (100, 1000, 10_000, 100_000) for _ in range(8)]
        del freed  # so that what is read before it was written is seen
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = attention(x)
        y.float().square().sum().backward()
        gradients.append({name: p.grad.clone() for name, p in attention.named_parameters() if p.grad is not None})
    for name, wanted in gradients[0].items():
        assert (gradients[1][name] - wanted).norm() < 0.05 * wanted.norm() + 1e-3, name
