"""Window attention on grids of any size, against a plain loop over the windows of a filled grid (Swin UNETR's rules)."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch

from hybrid.blocks import attention
from hybrid.blocks.attention import WindowAttention
from hybrid.blocks.swin import SwinBlock
from hybrid.blocks.windows import from_windows, plan_windows, to_windows

CPU = torch.device("cpu")

# (batch, shape, window, shift): filled up, one window along some axes, fewer tokens than a window, several of these.
GRIDS = [
    (2, (5, 7), (3, 4), (1, 2)),
    (1, (4, 3), (4, 4), (2, 2)),
    (2, (3, 9), (4, 4), (2, 2)),
    (1, (2, 3, 5), (3, 3, 3), (1, 1, 1)),
    (1, (5, 4, 1), (3, 3, 3), (0, 0, 0)),
    (1, (1, 1, 2), (3, 3, 3), (1, 1, 1)),
    (1, (2, 2), (3, 3), (1, 1)),
]


def softmax(logits: np.ndarray) -> np.ndarray:
    grown = np.exp(logits - logits.max(-1, keepdims=True))
    return grown / grown.sum(-1, keepdims=True)


def slow(block: WindowAttention, x: np.ndarray, shift: tuple[int, ...]) -> np.ndarray:
    """Fill up, roll, and attend window by window with the corner of the whole window's bias; roll back and crop."""
    shape = x.shape[1:-1]
    window = tuple(min(n, w) for n, w in zip(shape, block.window, strict=True))
    shift = tuple(0 if n <= w else s for n, w, s in zip(shape, block.window, shift, strict=True))
    axes = tuple(range(1, len(shape) + 1))
    filled = np.pad(x, [(0, 0), *((0, -n % w) for n, w in zip(shape, window, strict=True)), (0, 0)])
    sides = filled.shape[1:-1]
    rolled = np.roll(filled, [-s for s in shift], axes)
    regions = np.zeros(sides, dtype=int)
    for position in np.ndindex(*sides):
        for n, w, s, i in zip(sides, window, shift, position, strict=True):
            regions[position] = 3 * regions[position] + (2 if i >= n - s else 1 if i >= n - w else 0)
    table, whole = block.bias.table.detach().numpy(), list(np.ndindex(*block.window))
    weight, bias = block.qkv.weight.detach().numpy(), block.qkv.bias.detach().numpy()
    out, heads = np.zeros_like(rolled), block.num_heads
    for image, corner in product(range(len(x)), np.ndindex(*(n // w for n, w in zip(sides, window, strict=True)))):
        box = tuple(slice(c * w, (c + 1) * w) for c, w in zip(corner, window, strict=True))
        tokens, region = rolled[(image, *box)].reshape(prod(window), -1), regions[box].ravel()
        q, k, v = (tokens @ weight.T + bias).reshape(len(tokens), 3, heads, -1).transpose(1, 2, 0, 3)
        logits = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        for i, j in product(range(len(tokens)), repeat=2):
            row = 0
            for w, a, b in zip(block.window, whole[i], whole[j], strict=True):
                row = row * (2 * w - 1) + a - b + w - 1
            logits[:, i, j] += table[row] + (0 if region[i] == region[j] else -100)
        out[(image, *box)] = (softmax(logits) @ v).transpose(1, 0, 2).reshape(*window, -1)
    back = np.roll(out, shift, axes)[(slice(None), *(slice(n) for n in shape))]
    return back @ block.proj.weight.detach().numpy().T + block.proj.bias.detach().numpy()


@pytest.mark.parametrize(("batch", "shape", "window", "shift"), GRIDS)
@pytest.mark.parametrize("chunk", [4096, 5])
def test_attention(batch, shape, window, shift, chunk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.blocks.chunks.CHUNK_TOKENS", chunk)
    torch.manual_seed(0)
    block = WindowAttention(6, window, 2, any_size=True).double().eval()
    torch.nn.init.normal_(block.bias.table)
    x = torch.randn(batch, *shape, 6, dtype=torch.float64)
    expected = slow(block, x.numpy(), shift)
    np.testing.assert_allclose(block(x, shift).detach(), expected, atol=1e-10)
    with torch.inference_mode():
        np.testing.assert_allclose(block(x, shift), expected, atol=1e-10)


@pytest.mark.parametrize(("batch", "shape", "window", "shift"), GRIDS[:3])
def test_filling_up_is_undone_and_has_gradients(batch, shape, window, shift) -> None:
    x = torch.randn(batch, *shape, 2, dtype=torch.float64, requires_grad=True)
    plan = plan_windows(batch, shape, window, shift, CPU, pad=True)
    windows = to_windows(x, plan, plan.tokens)
    assert torch.equal(from_windows(windows, plan, x.shape), x)
    missing = 0 if plan.absent is None else len(plan.absent)
    assert missing == windows.shape[0] * windows.shape[1] - batch * prod(shape)
    if plan.absent is not None:
        assert windows.reshape(-1, 2)[plan.absent].abs().max() == 0
    assert torch.autograd.gradcheck(lambda t: to_windows(t, plan, plan.tokens), (x,))
    assert torch.autograd.gradgradcheck(lambda t: from_windows(to_windows(t, plan, plan.tokens) ** 2, plan, t.shape), (x,))


def test_sides_must_still_fit_unless_asked_otherwise() -> None:
    x = torch.zeros(1, 5, 8, 6)
    with pytest.raises(ValueError, match=r"\(5, 8\) is not a multiple of the window \(4, 4\)"):
        SwinBlock(6, (4, 4), 2, 12, (2, 2))(x)
    assert SwinBlock(6, (4, 4), 2, 12, (2, 2), any_size=True)(x).shape == x.shape


def test_a_grid_of_one_window_rolls_unless_of_any_size() -> None:
    """HAT and its kin roll a grid of one window, Swin UNETR does not: the same class does both."""
    torch.manual_seed(0)
    fixed = WindowAttention(4, (4, 4), 1).eval()
    free = WindowAttention(4, (4, 4), 1, any_size=True).eval()
    free.load_state_dict(fixed.state_dict())
    x = torch.randn(1, 4, 4, 4)
    assert attention.plan_windows(1, (4, 4), (4, 4), (2, 2), CPU).groups[0][1] is not None
    assert torch.equal(free(x, (2, 2)), fixed(x, (0, 0)))
    assert not torch.allclose(free(x, (2, 2)), fixed(x, (2, 2)))
