"""Largest pieces and holes, against a slow flood fill."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from medical.segmentation.postprocess import fill_holes, keep_largest

SMALL = arrays(np.uint8, st.tuples(*[st.integers(1, 6)] * 3), elements=st.integers(0, 3))


def pieces(mask: np.ndarray) -> list[set[tuple[int, ...]]]:
    """Sets of voxels that hang together by faces, in the order of their first voxels."""
    left, found = {tuple(int(n) for n in index) for index in np.argwhere(mask)}, []
    for start in sorted(left):
        if start not in left:
            continue
        front, piece = [start], {start}
        left.discard(start)
        while front:
            voxel = front.pop()
            for axis in range(3):
                for step in (-1, 1):
                    other = (*voxel[:axis], voxel[axis] + step, *voxel[axis + 1 :])
                    if other in left:
                        left.discard(other)
                        piece.add(other)
                        front.append(other)
        found.append(piece)
    return found


@given(SMALL)
@settings(deadline=None, max_examples=60)
def test_the_largest_piece_stays(labels: np.ndarray) -> None:
    expected = labels.copy()
    for value in (1, 2, 3):
        found = pieces(labels == value)
        for piece in found:
            if piece is not max(found, key=len):  # the first of equally large ones
                expected[tuple(np.transpose(list(piece)))] = 0
    removed = int((expected != labels).sum())
    assert keep_largest(labels, [1, 2, 3]) == removed
    np.testing.assert_array_equal(labels, expected)


@given(SMALL)
@settings(deadline=None, max_examples=60)
def test_enclosed_background_is_filled(labels: np.ndarray) -> None:
    expected = labels.copy()
    for value in (1, 2, 3):
        outside = np.pad(expected != value, 1, constant_values=True)
        enclosed = np.zeros(outside.shape, bool)
        for piece in pieces(outside):
            if (0, 0, 0) not in piece:
                enclosed[tuple(np.transpose(list(piece)))] = True
        expected[enclosed[1:-1, 1:-1, 1:-1] & (expected == 0)] = value
    filled = int((expected != labels).sum())
    assert fill_holes(labels, [1, 2, 3]) == filled
    np.testing.assert_array_equal(labels, expected)


@pytest.mark.parametrize("tidy", [keep_largest, fill_holes])
def test_nothing_to_do(tidy) -> None:  # type: ignore[no-untyped-def]
    empty = np.zeros((3, 4, 5), np.uint8)
    assert tidy(empty, [1, 4]) == 0 and not empty.any()
    assert tidy(np.zeros((2, 2, 2), np.uint16), []) == 0
    sparse = np.zeros((9, 9, 9), np.uint16)
    sparse[3, 3, 3] = 300
    assert tidy(sparse, [300, 7]) == 0 and sparse[3, 3, 3] == 300


def test_views_are_changed_in_place() -> None:
    labels = np.zeros((5, 5, 5), np.uint8)
    labels[0, 0, :3] = labels[4, 4, 4] = 1
    assert keep_largest(labels[::-1].transpose(2, 0, 1), [1]) == 1
    assert labels.sum() == 3 and labels[4, 4, 4] == 0
