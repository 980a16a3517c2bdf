"""Alignment of faces, judged by scikit-image's similarity and by functions whose resampled values are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.transform import SimilarityTransform

from hybrid.errors import InputError
from restore.faces.alignment import (
    FILL,
    OVERSAMPLED,
    TEMPLATE,
    apply,
    corners,
    enlarged,
    fit_similarity,
    inverse,
    scale_of,
    template,
    warp,
    warp_face,
)


def turned(scale: float, degrees: float, shift: tuple[float, float]) -> NDArray[np.float64]:
    return SimilarityTransform(scale=scale, rotation=np.radians(degrees), translation=shift).params[:2]


def ramp(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """A linear picture at points x, y."""
    return 0.2 + 0.003 * points[..., 0] + 0.002 * points[..., 1]


def grid(height: int, width: int) -> NDArray[np.float64]:
    y, x = np.mgrid[:height, :width].astype(np.float64)
    return np.stack((x, y), -1)


@pytest.mark.parametrize("seed", range(5))
def test_the_similarity_is_the_least_squares_one(seed: int) -> None:
    rng = np.random.default_rng(seed)
    points = apply(turned(0.3, 25, (80, 40)), TEMPLATE) + rng.normal(0, 4, (5, 2))
    judge = SimilarityTransform()
    judge.estimate(points, TEMPLATE)
    np.testing.assert_allclose(fit_similarity(points, 512), judge.params[:2], atol=1e-8)


def test_lmeds_leaves_out_the_landmark_that_does_not_fit() -> None:
    way = turned(0.4, -10, (30, 60))
    points = apply(way, TEMPLATE)
    points[2] += (25, -18)
    np.testing.assert_allclose(fit_similarity(points, 512, "lmeds"), inverse(way), atol=1e-6)
    assert np.abs(fit_similarity(points, 512) - inverse(way)).max() > 1
    clean = apply(way, TEMPLATE) + np.random.default_rng(0).normal(0, 1, (5, 2))
    np.testing.assert_allclose(fit_similarity(clean, 512, "lmeds"), fit_similarity(clean, 512), atol=0.2)


def test_landmarks_in_one_place_are_refused() -> None:
    with pytest.raises(InputError, match="five different points"):
        fit_similarity(np.full((5, 2), 7.0), 512)


def test_templates_of_all_sizes_share_their_outer_edges() -> None:
    small = np.column_stack((np.eye(2) / 2, (-0.25, -0.25)))  # pixel 0 of 256 lies between pixels 0 and 1 of 512
    np.testing.assert_allclose(template(256), apply(small, TEMPLATE))


@pytest.mark.parametrize("scale", [1, 2, 3.5, 4])
def test_an_enlarged_picture_keeps_its_outer_edges(scale: float) -> None:
    identity = np.column_stack((np.eye(2), (0, 0)))
    np.testing.assert_allclose(apply(enlarged(identity, scale), corners(10)), corners(1) * (10 * scale) + (10 * scale - 1) / 2)


@pytest.mark.parametrize("scale", [0.2, 0.5, 0.9, 1.0, 2.3])
def test_a_warp_reads_the_picture_where_the_matrix_says(scale: float) -> None:
    """Also where it shrinks, which goes by way of a smaller picture. Torch's cubic, a = -0.75, is up to 0.048 pixels beside."""
    size = 48
    matrix = turned(scale, 17, (0, 0))
    matrix[:, 2] = 24.3 - apply(matrix, np.array([160.0, 150.0]))
    picture = ramp(grid(300, 320))[..., None].astype(np.float32)
    read = apply(inverse(matrix), grid(size, size))
    inside = ((read > 12) & (read < (308, 288))).all(axis=-1)
    assert inside.sum() > 100
    face = warp(picture, matrix, (size, size), (0.0,))[..., 0]
    tolerance = 0.075 * (0.003 + 0.002) * max(1, 1 / (OVERSAMPLED * scale)) + 2e-5
    assert np.abs(face - ramp(read))[inside].max() < tolerance


def test_a_warp_is_cubic_convolution() -> None:
    """Against the kernel of Keys, written out, with torch's a = -0.75."""
    picture = np.random.default_rng(3).random((40, 44))
    matrix = turned(1.3, -21, (6.7, 21.2))
    read = apply(inverse(matrix), grid(36, 36))
    inside = ((read > 2) & (read < (41, 37))).all(axis=-1)
    face = warp(picture[..., None].astype(np.float32), matrix, (36, 36), (0.0,))[..., 0]
    expected = np.zeros((36, 36))
    base = np.floor(read)
    for down in range(-1, 3):
        for right in range(-1, 3):
            tap = base + np.array([right, down])
            place = np.clip(tap, 0, (43, 39)).astype(int)
            distance = np.abs(read - tap)
            near = (1.25 * distance - 2.25) * distance**2 + 1
            far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
            expected += np.where(distance <= 1, near, far).prod(axis=-1) * picture[place[..., 1], place[..., 0]]
    assert inside.sum() > 300
    np.testing.assert_allclose(face[inside], expected[inside], atol=1e-5)


def test_a_face_that_reaches_beyond_the_picture_is_gray_there() -> None:
    picture = np.zeros((60, 60, 3), np.float32)
    matrix = np.array([[1.0, 0, 40], [0, 1, 40]])
    face = warp_face(picture, matrix, 128)
    np.testing.assert_allclose(face[5, 5], FILL, atol=1e-6)
    assert np.abs(face[45:95, 45:95]).max() < 1e-6


def test_a_warp_of_a_part_is_that_of_the_whole() -> None:
    picture = np.random.default_rng(1).random((200, 180, 3)).astype(np.float32)
    matrix = turned(0.9, 8, (-60, -50))
    np.testing.assert_allclose(warp_face(picture, matrix, 40), warp(picture, matrix, (40, 40), FILL), atol=1e-6)
    assert scale_of(matrix) == pytest.approx(0.9)
