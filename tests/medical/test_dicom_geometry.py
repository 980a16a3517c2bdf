"""Slices to grids: the definition of the standard (PS3.3 C.7.6.2.1.1) is the judge, over any direction, tilt and order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from hybrid.errors import InputError
from medical.dicom.geometry import position_of, repeated, stack_slices

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def line(distances: list[float], tilt: float = 0.0) -> np.ndarray:
    return np.array([(0.0, tilt * d, d) for d in distances])


@settings(max_examples=60, deadline=None)
@given(
    turn=st.tuples(*[st.floats(-180, 180)] * 3),
    tilt=st.floats(-25, 25),
    step=st.floats(0.5, 9),
    slices=st.integers(2, 9),
    seed=st.integers(0, 999),
)
def test_every_pixel_lies_where_the_standard_says(turn: tuple, tilt: float, step: float, slices: int, seed: int) -> None:
    """Position + PixelSpacing times the directions, for each pixel of each slice, and from LPS to RAS."""
    axes = Rotation.from_euler("xyz", turn, degrees=True).as_matrix()
    row, column, normal = axes.T
    way = normal + np.tan(np.radians(tilt)) * column
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(slices)
    positions = rng.uniform(-200, 200, 3) + shuffled[:, None] * step * way
    stack = stack_slices(positions, (*row, *column), (0.9, 0.4), (7, 5))
    assert stack.order == tuple(np.argsort(shuffled))
    assert stack.grid.shape == (7, 5, slices)
    assert stack.tilt == pytest.approx(abs(tilt), abs=1e-5)
    for k, index in enumerate(stack.order):
        for i, j in ((0, 0), (6, 0), (0, 4), (6, 4)):
            lps = positions[index] + row * 0.4 * i + column * 0.9 * j
            np.testing.assert_allclose(stack.grid.to_world(np.array((i, j, k))), lps * (-1, -1, 1), atol=1e-6)
        np.testing.assert_allclose(position_of(stack.grid, k), positions[index], atol=1e-6)


@pytest.mark.parametrize(
    ("distances", "said"),
    [
        ([0, 2, 4, 8, 10], r"1 slice is missing, at 6\.00 mm"),
        ([0, 2, 4, 10, 12, 16, 18], r"3 slices are missing, at 6\.00, 8\.00, 14\.00 mm"),
        ([0, 2, 4, 4.0002, 6], r"Several slices lie at one place \(4\.00 mm"),
        ([0, 2, 4, 7, 9], r"non-uniform spacing: 2\.000 to 3\.000 mm"),
        ([0, 2, 4, 6.05, 8], "non-uniform spacing"),
        ([3], "single slice"),
    ],
)
def test_what_is_no_even_stack_is_refused_by_name(distances: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        stack_slices(line(distances)[::-1], AXIAL, (1, 1), (4, 4))
    assert caught.value.hint


def test_slow_drift_of_the_spacing_is_refused() -> None:
    """Each gap is within 1 % of the median, and yet the last slice would be half a slice off."""
    gaps = np.repeat([1.992, 2.008], 150)
    with pytest.raises(InputError, match="non-uniform spacing: they drift"):
        stack_slices(line([0, *np.cumsum(gaps)]), AXIAL, (1, 1), (4, 4))


def test_rounded_positions_are_taken() -> None:
    stack = stack_slices(line([0, 0.62, 1.25, 1.88, 2.5]), AXIAL, (1, 1), (4, 4))
    assert stack.grid.spacing[2] == pytest.approx(0.625)


def test_a_slice_pushed_aside_is_refused() -> None:
    positions = line([0, 2, 4, 6])
    positions[2, 0] += 0.3
    with pytest.raises(InputError, match=r"shifted against each other by up to 0\.300 mm"):
        stack_slices(positions, AXIAL, (1, 1), (4, 4))


@pytest.mark.parametrize("orientation", [(1, 0, 0, 1, 0, 0), (0, 0, 0, 0, 1, 0), (1, 0, 0, 0, 0.5, 0)])
def test_directions_that_are_none_are_refused(orientation: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="ImageOrientationPatient"):
        stack_slices(line([0, 1]), orientation, (1, 1), (4, 4))


def test_each_repeated_place_is_named_once() -> None:
    np.testing.assert_allclose(repeated(np.array([5.0, 1, 1, 3, 1, 5])), [1, 5])
