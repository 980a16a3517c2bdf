"""Attention blocks against plain numpy loops over windows, heads, queries and keys."""

from __future__ import annotations

import pickle
from itertools import product
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid.blocks import attention, chunks
from hybrid.blocks.attention import ChannelAttention, OverlappingCrossAttention, PositionBias, WindowAttention, attend
from hybrid.blocks.windows import relative_index

Network = TypeVar("Network", bound=nn.Module)


def randomised(module: Network, seed: int = 0) -> Network:
    """float64 weights that are all different, biases and tables included."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.5)
    return module


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def linear(x: np.ndarray, layer: nn.Linear) -> np.ndarray:
    y = x @ layer.weight.detach().numpy().T
    return y if layer.bias is None else y + layer.bias.detach().numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits - logits.max())
    return grown / grown.sum()


def seam_label(position: tuple[int, ...], shape: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> tuple:
    """Where a pixel of the rolled grid lies: before the last window, in it before the seam, or after the seam."""
    axes = zip(position, shape, window, shift, strict=True)
    return tuple(0 if s == 0 or i < n - w else 1 if i < n - s else 2 for i, n, w, s in axes)


def slow_window_attention(block: WindowAttention, x: np.ndarray, shift: tuple[int, ...]) -> np.ndarray:
    """Roll, then for each window, head and query: logits with bias and mask, softmax, weighted sum; project; roll back."""
    shape, window, heads = x.shape[1:-1], block.window, block.num_heads
    width = x.shape[-1] // heads
    axes = tuple(range(1, len(shape) + 1))
    rolled = np.roll(x, [-s for s in shift], axes)
    q, k, v = np.split(linear(rolled, block.qkv), 3, axis=-1)
    table = block.bias.table.detach().numpy()
    attended = np.zeros_like(x)
    offsets = list(np.ndindex(*window))
    for b, corner in product(range(len(x)), np.ndindex(*[n // w for n, w in zip(shape, window, strict=True)])):
        pixels = [tuple(c * w + o for c, w, o in zip(corner, window, offset, strict=True)) for offset in offsets]
        for head, (i, pixel) in product(range(heads), enumerate(pixels)):
            channels = slice(head * width, (head + 1) * width)
            logits = np.empty(len(pixels))
            for j, other in enumerate(pixels):
                row = 0
                for w, here, there in zip(window, offsets[i], offsets[j], strict=True):
                    row = row * (2 * w - 1) + here - there + w - 1
                agree = seam_label(pixel, shape, window, shift) == seam_label(other, shape, window, shift)
                logits[j] = q[(b, *pixel)][channels] @ k[(b, *other)][channels] / np.sqrt(width) + table[row, head]
                logits[j] += 0.0 if agree else -100.0
            values = np.stack([v[(b, *other)][channels] for other in pixels])
            attended[(b, *pixel)][channels] = softmax(logits) @ values
    return np.roll(linear(attended, block.proj), shift, axes)


WINDOWED = [
    (2, (4, 8), (4, 4), (0, 0), 2),
    (2, (8, 4), (4, 4), (2, 2), 2),
    (1, (4, 4), (4, 4), (2, 2), 1),
    (1, (6, 6), (3, 2), (1, 0), 3),
    (2, (4, 2, 4), (2, 2, 2), (1, 1, 1), 2),
    (1, (2, 6, 2), (2, 3, 1), (0, 1, 0), 2),
]


@pytest.mark.parametrize(("batch", "shape", "window", "shift", "heads"), WINDOWED)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_window_attention_equals_loops(batch, shape, window, shift, heads, qkv_bias) -> None:
    block = randomised(WindowAttention(6, window, heads, qkv_bias))
    x = random(batch, *shape, 6)
    expected = slow_window_attention(block, x.numpy(), shift)
    with torch.inference_mode():
        np.testing.assert_allclose(block(x, shift), expected, atol=1e-12)
    np.testing.assert_allclose(block(x, shift).detach(), expected, atol=1e-12)  # the path with gradients


def slow_overlapping_attention(block: OverlappingCrossAttention, x: np.ndarray) -> np.ndarray:
    """For each window, head and query: logits to all keys of the larger window, exact zeros outside the grid included."""
    shape, window, overlap, heads = x.shape[1:-1], block.window, block.overlap, block.num_heads
    width = x.shape[-1] // heads
    q, k, v = np.split(linear(x, block.qkv), 3, axis=-1)
    table = block.bias.table.detach().numpy()
    attended = np.zeros_like(x)
    reach = list(np.ndindex(*overlap))
    for b, pixel, head in product(range(len(x)), np.ndindex(*shape), range(heads)):
        channels = slice(head * width, (head + 1) * width)
        corner = [i // w * w - (o - w) // 2 for i, w, o in zip(pixel, window, overlap, strict=True)]
        logits, values = np.empty(len(reach)), np.zeros((len(reach), width))
        for j, offset in enumerate(reach):
            row = 0
            for i, w, o, there in zip(pixel, window, overlap, offset, strict=True):
                row = row * (w + o - 1) + there - i % w + w - o + 1
            other = tuple(c + o for c, o in zip(corner, offset, strict=True))
            logits[j] = table[row, head]  # a negative row counts from the end, as published
            if all(0 <= p < n for p, n in zip(other, shape, strict=True)):
                logits[j] += q[(b, *pixel)][channels] @ k[(b, *other)][channels] / np.sqrt(width)
                values[j] = v[(b, *other)][channels]
        attended[(b, *pixel)][channels] = softmax(logits) @ values
    return linear(attended, block.proj)


OVERLAPPING = [
    (2, (8, 4), (4, 4), (6, 6), 2),
    (1, (4, 4), (4, 4), (6, 6), 1),
    (2, (4, 6), (2, 3), (4, 3), 3),
    (1, (2, 4, 2), (2, 2, 2), (4, 4, 2), 2),
]


@pytest.mark.parametrize(("batch", "shape", "window", "overlap", "heads"), OVERLAPPING)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_overlapping_attention_equals_loops(batch, shape, window, overlap, heads, qkv_bias) -> None:
    block = randomised(OverlappingCrossAttention(6, window, overlap, heads, qkv_bias))
    x = random(batch, *shape, 6)
    expected = slow_overlapping_attention(block, x.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(block(x), expected, atol=1e-12)
    np.testing.assert_allclose(block(x).detach(), expected, atol=1e-12)


def test_overlapping_window_must_exceed_by_an_even_number() -> None:
    for overlap in ((7, 6), (2, 4)):
        with pytest.raises(ValueError, match="even number"):
            OverlappingCrossAttention(4, (4, 4), overlap, 2)


def test_heads_must_share_the_channels() -> None:
    with pytest.raises(ValueError, match="10 channels cannot be shared by 4 heads"):
        WindowAttention(10, (4, 4), 4)
    with pytest.raises(ValueError, match="10 channels cannot be shared by 4 heads"):
        OverlappingCrossAttention(10, (4, 4), (6, 6), 4)


@pytest.mark.parametrize("tokens", [1, 16, 40, 64, 10_000])
@pytest.mark.parametrize(("shape", "window", "overlap"), [((20, 12), (4, 4), (6, 6)), ((6, 4, 2), (2, 2, 1), (4, 2, 3))])
def test_chunks_change_nothing(tokens, shape, window, overlap, monkeypatch) -> None:
    """Any number of windows at a time, also ones that do not divide evenly; two images."""
    windowed = randomised(WindowAttention(4, window, 2))
    overlapped = randomised(OverlappingCrossAttention(4, window, overlap, 2))
    shift = tuple(w // 2 for w in window)
    x = random(2, *shape, 4)
    whole = windowed(x, shift), overlapped(x)  # with gradients nothing is chunked
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", tokens)
    monkeypatch.setattr(attention, "STRIP_TOKENS", 2 * tokens)
    with torch.inference_mode():
        torch.testing.assert_close(windowed(x, shift), whole[0], atol=1e-12, rtol=0)
        torch.testing.assert_close(overlapped(x), whole[1], atol=1e-12, rtol=0)


def test_attend_with_and_without_gradients() -> None:
    q, k, v, bias = random(3, 2, 4, 5), random(3, 2, 6, 5, seed=2), random(3, 2, 6, 5, seed=3), random(1, 2, 4, 6, seed=4)
    logits = np.einsum("mhnd,mhkd->mhnk", q, k) / np.sqrt(5) + bias.numpy()
    expected = np.apply_along_axis(softmax, -1, logits) @ v.numpy()
    np.testing.assert_allclose(attend(q, k, v, bias), expected, atol=1e-12)
    np.testing.assert_allclose(attend(q, k, v, bias.requires_grad_()).detach(), expected, atol=1e-12)


def test_gradients_are_those_of_the_numbers() -> None:
    x = random(1, 4, 4, 4).requires_grad_()
    windowed = randomised(WindowAttention(4, (2, 2), 2))
    overlapped = randomised(OverlappingCrossAttention(4, (2, 2), (4, 4), 2))
    channels = randomised(ChannelAttention(4, 2))
    for run, block in [
        (lambda t: windowed(t, (1, 1)), windowed),
        (overlapped, overlapped),
        (lambda t: channels(t, 0.5), channels),
    ]:
        parameters = list(block.parameters())
        assert torch.autograd.gradcheck(lambda t, *_, run=run: run(t), (x, *parameters))


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_channel_attention_equals_its_formula(spatial_dims) -> None:
    block = randomised(ChannelAttention(6, 3, spatial_dims))
    x = random(2, 6, *(4, 5, 3)[:spatial_dims])
    squeeze, expand = (layer.weight.detach().numpy().reshape(layer.weight.shape[:2]) for layer in (block.squeeze, block.expand))
    pooled = x.numpy().reshape(2, 6, -1).mean(-1)
    hidden = np.maximum(pooled @ squeeze.T + block.squeeze.bias.detach().numpy(), 0)
    gate = 1 / (1 + np.exp(-(hidden @ expand.T + block.expand.bias.detach().numpy())))
    expected = x.numpy() * (0.25 * gate).reshape(2, 6, *[1] * spatial_dims)
    np.testing.assert_allclose(block(x, 0.25).detach(), expected, atol=1e-12)
    with torch.inference_mode():
        np.testing.assert_allclose(block(x.clone(), 0.25), expected, atol=1e-12)


# The bias read from its table --------------------------------------------------------------------------------------


def position_bias() -> PositionBias:
    return PositionBias(relative_index((2, 3)), 15, 2, 6)


def expanded(bias: PositionBias) -> np.ndarray:
    table, index = bias.table.detach().numpy(), relative_index((2, 3)).numpy()
    return np.stack([table[index, head].reshape(6, 6) for head in range(2)])


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_is_that_of_the_table_whatever_changed_it(dtype: torch.dtype) -> None:
    bias = position_bias()

    def check() -> None:
        np.testing.assert_allclose(bias(dtype).float(), expanded(bias), rtol=0 if dtype == torch.float32 else 2**-8)
        assert bias(dtype).dtype == dtype

    check()
    bias.table.mul_(2)
    check()
    bias.table.data = torch.randn(15, 2)
    check()
    bias.load_state_dict(position_bias().state_dict())
    check()


def test_gradients_of_the_table_are_summed_in_its_own_precision() -> None:
    bias = position_bias()
    bias(torch.bfloat16).sum().backward()
    counts = np.bincount(relative_index((2, 3)).numpy(), minlength=15)
    np.testing.assert_array_equal(bias.table.grad, np.stack([counts, counts], 1))


@torch.no_grad()
def test_nothing_is_kept_of_a_bias() -> None:
    """Kept for all blocks they would take more memory than all else."""
    bias = position_bias()
    before = set(vars(bias)), len(pickle.dumps(bias))
    bias(torch.float32)
    assert (set(vars(bias)), len(pickle.dumps(bias))) == before


def test_network_that_was_made_in_inference_mode_runs() -> None:
    with torch.inference_mode():
        block = WindowAttention(4, (2, 2), 2)
        x = torch.randn(1, 4, 4, 4)
        first = block(x, (0, 0)).clone()
        block.bias.table.add_(torch.linspace(0, 5, 9)[:, None])
        assert not torch.equal(block(x, (0, 0)), first)
