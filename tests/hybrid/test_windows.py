"""Windows against plain loops over pixels: partition, shift, mask, overlapping windows, relative positions."""

from __future__ import annotations

from itertools import product
from math import prod

import numpy as np
import pytest
import torch

from hybrid.blocks.windows import (
    from_windows,
    merge,
    overlapping,
    overlapping_index,
    partition,
    plan_windows,
    relative_index,
    to_windows,
)

CPU = torch.device("cpu")

# (batch, shape, window, shift): several windows, unequal ones, one window alone, a shift along some axes only.
GRIDS = [
    (1, (8, 8), (4, 4), (2, 2)),
    (2, (6, 12), (3, 4), (1, 2)),
    (2, (4, 4), (4, 4), (2, 2)),
    (2, (4, 8), (4, 4), (0, 2)),
    (1, (9, 6), (3, 2), (0, 0)),
    (2, (4, 6, 4), (2, 3, 4), (1, 1, 2)),
    (1, (4, 4, 4), (2, 2, 2), (1, 0, 1)),
    (1, (2, 2, 2), (2, 2, 2), (1, 1, 1)),
    (2, (12,), (4,), (2,)),
]


def boxes(shape: tuple[int, ...], window: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """The windows of one grid, row-major."""
    counts = [n // w for n, w in zip(shape, window, strict=True)]
    places = product(*map(range, counts))
    return [tuple(slice(i * w, (i + 1) * w) for i, w in zip(place, window, strict=True)) for place in places]


def window_labels(shape: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> np.ndarray:
    """A label for each pixel of the rolled grid; pixels of one window attend to each other where labels agree.

    Along each axis 0 before the last window, 1 in it before the seam, 2 after the seam (the formula of the HAT paper's
    reference for shifted blocks); axes that are not shifted have one label.
    """
    labels = np.zeros(shape, dtype=int)
    for position in np.ndindex(*shape):
        for n, w, s, i in zip(shape, window, shift, position, strict=True):
            along = 0 if s == 0 or i < n - w else 1 if i < n - s else 2
            labels[position] = 3 * labels[position] + along
    return labels


@pytest.mark.parametrize(("batch", "shape", "window", "shift"), GRIDS)
def test_partition_cuts_row_major_and_merge_undoes_it(batch, shape, window, shift) -> None:
    x = np.random.default_rng(0).normal(size=(batch, *shape, 3))
    expected = np.stack([image[box].reshape(-1, 3) for image in x for box in boxes(shape, window)])
    windows = partition(torch.from_numpy(x), window)
    np.testing.assert_array_equal(windows, expected)
    np.testing.assert_array_equal(merge(windows, window, x.shape), x)


@pytest.mark.parametrize(("batch", "shape", "window", "shift"), GRIDS)
def test_plan_puts_each_rolled_window_with_its_mask(batch, shape, window, shift) -> None:
    """Windows come in the plan's own order: match them to the slow ones by the pixels that they hold."""
    x = np.arange(batch * prod(shape)).reshape(batch, *shape, 1).astype(np.float32)
    axes = tuple(range(len(shape)))
    labels = window_labels(shape, window, shift)
    expected = {}
    for image in x:
        rolled = np.roll(image[..., 0], [-s for s in shift], axes)
        for box in boxes(shape, window):
            label = labels[box].ravel()
            expected[tuple(rolled[box].ravel())] = np.where(label[:, None] == label[None, :], 0.0, -100.0)
    plan = plan_windows(batch, shape, window, shift, CPU)
    windows = to_windows(torch.from_numpy(x), plan, prod(window))
    masks = [mask for count, mask in plan.groups for _ in range(count)]
    assert len(masks) == len(windows) == len(expected)
    for tokens, mask in zip(windows, masks, strict=True):
        slow = expected.pop(tuple(tokens[:, 0].tolist()))
        np.testing.assert_array_equal(np.zeros_like(slow) if mask is None else mask, slow)
    np.testing.assert_array_equal(from_windows(windows, plan, x.shape), x)


def test_interior_windows_carry_no_mask() -> None:
    assert [count for count, mask in plan_windows(2, (16, 24), (4, 4), (0, 0), CPU).groups if mask is None] == [48]
    shifted = plan_windows(2, (16, 24), (4, 4), (2, 2), CPU).groups
    assert [(count, mask is None) for count, mask in shifted] == [(30, True), (10, False), (6, False), (2, False)]


def test_plan_refuses_sides_that_are_no_multiple() -> None:
    with pytest.raises(ValueError, match=r"\(8, 9\) is not a multiple of the window \(4, 4\)"):
        plan_windows(1, (8, 9), (4, 4), (0, 0), CPU)


def test_plan_made_in_inference_mode_serves_training() -> None:
    shape = (1, 6, 10, 2)  # of this test alone, so that no other has planned it before
    with torch.inference_mode():
        plan_windows(1, shape[1:3], (2, 5), (1, 2), CPU)
    x = torch.randn(shape, requires_grad=True)
    plan = plan_windows(1, shape[1:3], (2, 5), (1, 2), CPU)
    from_windows(to_windows(x, plan, 10) * 2, plan, shape).sum().backward()
    torch.testing.assert_close(x.grad, torch.full(shape, 2.0))


def test_gradients_of_the_reordering() -> None:
    x = torch.randn(2, 4, 6, 2, dtype=torch.float64, requires_grad=True)
    plan = plan_windows(2, (4, 6), (2, 3), (1, 1), CPU)
    assert torch.autograd.gradcheck(lambda t: to_windows(t, plan, 6), (x,))
    assert torch.autograd.gradgradcheck(lambda t: from_windows(to_windows(t, plan, 6) ** 2, plan, t.shape), (x,))


@pytest.mark.parametrize("window", [(4, 4), (3, 5), (2, 3, 4), (1, 2), (6,)])
def test_relative_index_is_query_minus_key(window) -> None:
    positions = list(np.ndindex(*window))
    expected = []
    for i, j in product(positions, positions):
        row = 0
        for w, a, b in zip(window, i, j, strict=True):
            row = row * (2 * w - 1) + (a - b + w - 1)
        expected.append(row)
    index = relative_index(window)
    assert index.tolist() == expected
    assert set(expected) == set(range(prod(2 * w - 1 for w in window)))  # every row of the table is used


@pytest.mark.parametrize(
    ("window", "overlap"), [((4, 4), (6, 6)), ((3, 2), (5, 6)), ((2, 2, 3), (4, 2, 5)), ((16, 16), (24, 24))]
)
def test_overlapping_index_is_key_minus_query_modulo_the_table(window, overlap) -> None:
    rows = prod(w + o - 1 for w, o in zip(window, overlap, strict=True))
    inner, outer = (np.indices(edges).reshape(len(edges), -1) for edges in (window, overlap))
    expected = np.zeros((prod(window), prod(overlap)), dtype=int)
    for w, o, query, key in zip(window, overlap, inner, outer, strict=True):
        expected = expected * (w + o - 1) + (key[None, :] - query[:, None] + w - o + 1)
    if window == (16, 16):
        assert (expected.min(), expected.max()) == (-880, 640)  # as stated for the published HAT
    index = overlapping_index(window, overlap)
    np.testing.assert_array_equal(index, (expected % rows).ravel())
    assert set(index.tolist()) == set(range(rows))


@pytest.mark.parametrize(
    ("shape", "window", "overlap"), [((8, 4), (4, 4), (6, 6)), ((6, 4), (3, 2), (5, 6)), ((4, 4, 2), (2, 4, 1), (4, 6, 3))]
)
def test_overlapping_windows_are_zero_outside(shape, window, overlap) -> None:
    x = np.random.default_rng(0).normal(size=(2, *shape, 3))
    counts = [n // w for n, w in zip(shape, window, strict=True)]
    expected = np.zeros((2, *counts, 3, *overlap))
    for place in np.ndindex(*counts):
        for offset in np.ndindex(*overlap):
            pixel = tuple(i * w - (o - w) // 2 + k for i, w, o, k in zip(place, window, overlap, offset, strict=True))
            if all(0 <= p < n for p, n in zip(pixel, shape, strict=True)):
                expected[(slice(None), *place, slice(None), *offset)] = x[(slice(None), *pixel)]
    np.testing.assert_array_equal(overlapping(torch.from_numpy(x), window, overlap), expected)


def test_index_tables_are_built_on_the_cpu_even_for_networks_without_memory() -> None:
    """They are shared by all networks of a process: one that is built on the meta device must not leave empty ones."""
    with torch.device("meta"):
        assert relative_index((5, 3)).device == overlapping_index((5, 3), (7, 5)).device == CPU
    assert relative_index((5, 3)).max() == 44
