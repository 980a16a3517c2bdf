"""Faces put back: where the mask ends, what a network that changes nothing leaves, and what becomes of depth, gray and alpha."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor

from hybrid.cards import ModelCard
from hybrid.errors import RequestError
from restore.faces.alignment import apply, enlarged, fit_similarity, inverse, template, warp_face
from restore.faces.detection import Face
from restore.faces.paste import keeps_detail, mask_of, match_colour, paste, soft_mask
from restore.faces.restoration import (
    FaceSettings,
    enlarged_background,
    notes_on,
    restore_aligned,
    restore_faces,
)
from restore.images import Picture, from_unit
from restore.images.interpolation import resize
from restore.models.base import RestorationNetwork

SIZE = 64


class Changed(RestorationNetwork):
    """Faces of 64 pixels in [-1, 1], each value moved by `by`."""

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        self.by = by
        self.card = ModelCard(
            "f", "F", "none", "none", 1, 3, 1, 0, True, 10, value_range=(-1.0, 1.0), face_size=SIZE, tasks=("face restoration",)
        )
        self.register_parameter("none", _parameter())

    def restore(self, x: Tensor) -> Tensor:
        return x + 2 * self.by


def _parameter() -> object:
    from torch import nn, zeros

    return nn.Parameter(zeros(1), requires_grad=False)


def textured(height: int = 150, width: int = 130, channels: int = 3) -> NDArray[np.float32]:
    """Waves of 12 pixels and more."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    waves = [0.5 + 0.2 * np.sin(x / (2.2 + k) + y / 4) + 0.15 * np.cos(y / (2.4 + k) - x / 6) for k in range(channels)]
    return np.stack(waves, -1).astype(np.float32)


def placed(eyes: float, degrees: float = 12.0, middle: tuple[float, float] = (65.0, 75.0)) -> Face:
    """A face whose eyes are so far apart."""
    turn = np.exp(1j * np.radians(degrees)) * eyes / (template(SIZE)[1, 0] - template(SIZE)[0, 0])
    z = (template(SIZE) @ (1, 1j) - (SIZE - 1) * (0.5 + 0.55j)) * turn + complex(*middle)
    points = np.stack((z.real, z.imag), -1)
    low, high = points.min(axis=0) - eyes / 2, points.max(axis=0) + eyes / 2
    return Face((low[0], low[1], high[0], high[1]), points, 1.0)


@pytest.mark.parametrize("scale", [1, 2, 4])
@pytest.mark.parametrize("eyes", [9.0, 15.0, 30.0], ids=["small", "even", "large"])
def test_a_network_that_changes_nothing_leaves_the_picture(scale: int, eyes: float) -> None:
    """Warp there, warp back: less than one of 255 gray levels on the mean."""
    picture = textured()
    matrix = fit_similarity(placed(eyes).landmarks, SIZE)
    ground = picture if scale == 1 else resize(picture, (150 * scale, 130 * scale), "bicubic", False)
    result = ground.copy()
    aligned = warp_face(picture, matrix, SIZE)
    paste(result, aligned, aligned, matrix, scale)
    y, x = np.mgrid[: len(ground), : ground.shape[1]].astype(np.float64)
    inside = soft_mask(apply(inverse(enlarged(inverse(matrix), scale)), np.stack((x, y), -1)), SIZE) == 1
    assert inside.sum() > 100
    assert np.abs(result - ground)[inside].mean() * 255 < 1
    if not keeps_detail(matrix):  # half a pixel of the result beside, and it shows
        paste(shifted := ground.copy(), aligned, aligned, matrix + [[0, 0, 0.5 / scale]] * 2, scale)
        assert np.abs(shifted - ground)[inside].mean() > 2 * np.abs(result - ground)[inside].mean()


def test_the_mask_ends_softly_inside_the_face() -> None:
    mask = mask_of(256)[..., 0]
    assert mask.max() == 1 and mask[138, 128] == 1
    assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) == 0
    assert np.abs(np.diff(mask, axis=0)).max() < 0.06 and np.abs(np.diff(mask, axis=1)).max() < 0.06
    points = np.rint(template(256)).astype(int)
    assert mask[points[:, 1], points[:, 0]].min() == 1


def test_only_the_face_changes_and_it_changes_by_what_the_network_does() -> None:
    before = Picture(from_unit(textured(), "uint8"))
    result = restore_faces(Changed(0.1), before, known=[placed(15.0)])
    change = result.picture.colour.astype(float) - before.colour
    assert 24 < change[75, 65].mean() < 28  # 0.1 of 255, and what interpolation adds
    assert (change == 0).mean() > 0.5 and not change[:20].any() and not change[:, -15:].any()
    assert change.min() >= -8 and np.array_equal(before.colour, from_unit(textured(), "uint8"))


@pytest.mark.parametrize(("dtype", "tolerance"), [("uint8", 0.004), ("uint16", 1e-4), ("float32", 1e-4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_depth_gray_and_alpha_are_kept(dtype: str, tolerance: float, channels: int) -> None:
    alpha = from_unit(np.linspace(0.1, 1, 150 * 130).reshape(150, 130), dtype)
    before = Picture(from_unit(textured(channels=channels) * 0.9, dtype), alpha)
    result = restore_faces(Changed(0.05), before, known=[placed(30.0)]).picture
    assert result.colour.dtype == before.colour.dtype and result.colour.shape == before.colour.shape
    assert result.alpha is not None and np.array_equal(result.alpha, alpha)
    full = {"uint8": 255, "uint16": 65535, "float32": 1}[dtype]
    change = (result.colour.astype(float) - before.colour) / full
    assert abs(change[75, 65].mean() - 0.05) < tolerance + 0.001
    assert not change[0].any()


def test_floats_beyond_one_keep_their_range() -> None:
    before = Picture(textured() * 4)
    result = restore_faces(Changed(), before, known=[placed(30.0)]).picture
    np.testing.assert_allclose(result.colour, before.colour, atol=1e-4)


def test_a_face_cut_by_the_border_and_faces_over_each_other() -> None:
    before = Picture(from_unit(textured(), "uint8"))
    faces = [placed(15.0, middle=(4.0, 75.0)), placed(15.0, middle=(70.0, 70.0)), placed(15.0, middle=(82.0, 75.0))]
    result = restore_faces(Changed(0.1), before, known=faces)
    change = result.picture.colour.astype(float) - before.colour
    assert len(result.faces) == 3 and change[75, 2].mean() > 20 and change[70, 76].mean() > 20


def test_the_background_is_enlarged_and_faces_lie_on_it() -> None:
    before = Picture(from_unit(textured(), "uint16"), np.full((150, 130), 65535, np.uint16))
    ground = enlarged_background(before, (300, 260))
    result = restore_faces(Changed(), before, background=ground, known=[placed(15.0)])
    assert result.picture.colour.shape == (300, 260, 3) and result.picture.alpha is not None
    assert result.picture.alpha.shape == (300, 260) and result.picture.alpha.min() == 65535
    error = np.abs(result.picture.colour.astype(float) - ground.colour) / 257
    assert 0 < error[100:200, 90:170].mean() < 1.5 and not error[:30].any()


def test_fidelity_blends_and_colours_match() -> None:
    before = Picture(from_unit(textured(), "float32"))
    whole, half, none = (
        restore_faces(Changed(0.1), before, FaceSettings(fidelity=part), known=[placed(30.0)]).picture.colour
        for part in (0, 0.5, 1)
    )
    np.testing.assert_allclose(half - before.colour, (whole - before.colour) / 2, atol=1e-5)
    np.testing.assert_allclose(none, before.colour, atol=1e-5)
    matched = restore_faces(Changed(0.1), before, FaceSettings(match_colour=True), known=[placed(30.0)]).picture.colour
    assert abs((matched - before.colour)[60:90, 50:80].mean()) < 0.005
    face = textured(SIZE, SIZE)
    np.testing.assert_allclose(match_colour(face * 0.9 + 0.03, face), face, atol=1e-5)


def test_only_some_faces_and_none() -> None:
    before, faces = (
        Picture(from_unit(textured(), "uint8")),
        [placed(12.0, middle=(35.0, 60.0)), placed(12.0, middle=(95.0, 60.0))],
    )
    result = restore_faces(Changed(0.1), before, FaceSettings(only=(2,)), known=faces)
    change = result.picture.colour.astype(float) - before.colour
    assert [each.number for each in result.faces] == [2] and not change[:, :40].any() and change[60, 95].any()
    assert "1 of 2 faces" in notes_on(result, SIZE)[0]
    with pytest.raises(RequestError, match="no face 3: 2 found"):
        restore_faces(Changed(), before, FaceSettings(only=(3,)), known=faces)
    empty = restore_faces(Changed(), before, known=[])
    assert np.array_equal(empty.picture.colour, before.colour) and "No face was found" in notes_on(empty, SIZE)[0]


def test_a_box_alone_is_enough_and_it_is_said() -> None:
    box = replace(placed(15.0), landmarks=None)
    result = restore_faces(Changed(), Picture(from_unit(textured(), "uint8")), known=[box])
    assert result.faces[0].landmarks_from == "box" and "by its box alone" in " ".join(notes_on(result, SIZE))


def test_an_aligned_face_comes_back_at_the_size_of_the_network() -> None:
    before = Picture(from_unit(textured(100, 100, 1), "uint16"), np.full((100, 100), 40000, np.uint16))
    result = restore_aligned(Changed(), before).picture
    assert result.colour.shape == (SIZE, SIZE, 1) and result.colour.dtype == np.uint16
    assert result.alpha is not None and set(np.unique(result.alpha)) == {40000}
    expected = resize(textured(100, 100, 1), (SIZE, SIZE), "bilinear", antialias=True)
    np.testing.assert_allclose(result.colour / 65535, expected, atol=1e-4)


def test_distances_are_zero_for_no_change_and_are_told() -> None:
    result = restore_faces(Changed(), Picture(from_unit(textured(), "uint8")), known=[placed(30.0)])
    told = result.faces[0].to_dict()
    assert told["distance"]["structure"] < 0.1 and told["number"] == 1  # type: ignore[index]
    assert np.shape(told["landmarks"]) == (5, 2) and len(told["box"]) == 4  # type: ignore[arg-type]


@pytest.mark.parametrize("fault", [{"fidelity": 1.2}, {"fidelity": -0.1}, {"threshold": 0.0}])
def test_settings_without_sense_are_refused(fault: dict) -> None:
    with pytest.raises(RequestError, match=f"--{next(iter(fault))}"):
        FaceSettings(**fault)
