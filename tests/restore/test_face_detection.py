"""Finding faces, judged by kornia's own detector and by one synthetic person, moved about and mirrored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hybrid.errors import RequestError
from restore.faces.alignment import similarity
from restore.faces.detection import MIRRORED, Face, detect_faces, distinct, landmarks_in
from restore.faces.restoration import template_in
from restore.faces.yunet import find, yunet

SCENE = Path(__file__).parents[1] / "data" / "faces" / "scene.jpg"
BOX = (77, 54, 157, 159)  # of its face, by eye


@pytest.fixture(scope="module")
def scene() -> NDArray[np.float32]:
    return np.asarray(Image.open(SCENE), np.float32) / 255


@pytest.fixture(scope="module")
def face(scene: NDArray[np.float32]) -> Face:
    (found,) = detect_faces(scene)
    return found


def test_the_face_is_found_with_its_landmarks(face: Face) -> None:
    assert np.abs(np.subtract(face.box, BOX)).max() < 8
    assert face.landmarks is not None and 0.9 <= face.score <= 1
    left, right, nose, mouth_left, mouth_right = face.landmarks
    assert left[0] < nose[0] < right[0] and mouth_left[0] < nose[0] < mouth_right[0]
    assert max(left[1], right[1]) < nose[1] < min(mouth_left[1], mouth_right[1])


def test_one_pass_is_that_of_kornia(scene: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch) -> None:
    from kornia.contrib import face_detection

    monkeypatch.setattr(face_detection, "YuNet", lambda *_, **__: yunet())  # its constructor would download
    batch = torch.from_numpy(scene[24:216, 24:216].transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        theirs = face_detection.FaceDetector(confidence_threshold=0.5)(batch * 255)[0].numpy()
    ours = distinct(find(batch, 0.5)[0])
    assert len(theirs) and theirs[0, 14] == pytest.approx(ours[0, 14], abs=1e-5)
    np.testing.assert_allclose(ours[0, :14], theirs[0, :14], atol=1e-3)


def test_a_mirrored_picture_has_mirrored_landmarks(scene: NDArray[np.float32], face: Face) -> None:
    (mirrored,) = detect_faces(np.ascontiguousarray(scene[:, ::-1]))
    assert mirrored.landmarks is not None and face.landmarks is not None
    expected = (face.landmarks * (-1, 1) + (scene.shape[1] - 1, 0))[list(MIRRORED)]
    eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    assert np.linalg.norm(mirrored.landmarks - expected, axis=1).max() < 0.03 * eyes


def test_faces_are_listed_from_left_to_right_and_one_is_cut_by_the_border(scene: NDArray[np.float32]) -> None:
    small = scene[::2, ::2]
    picture = np.full((200, 420, 3), 0.4, np.float32)
    picture[20:140, 280:400] = small
    picture[60:180, 120:240] = small
    picture[20:140, :85] = small[:, 35:]  # a part of the cheek lies beyond
    found = detect_faces(picture)
    assert len(found) == 3
    for each, middle in zip(found, (24, 179, 339), strict=True):
        assert abs((each.box[0] + each.box[2]) / 2 - middle) < 8


def test_nothing_is_found_where_there_is_nothing() -> None:
    y, x = np.mgrid[:150, :130] / 150
    assert detect_faces(np.stack((x, y, x * y), -1).astype(np.float32)) == []
    assert detect_faces(np.random.default_rng(0).random((90, 110, 3)).astype(np.float32)) == []
    assert detect_faces(np.zeros((3, 5, 3), np.float32)) == []
    assert detect_faces(np.zeros((3, 5, 3), np.float32), detector="cascade") == []


def test_the_cascade_gives_boxes_alone(scene: NDArray[np.float32]) -> None:
    found = detect_faces(scene, detector="cascade")
    assert found and all(each.landmarks is None for each in found)
    best = max(found, key=lambda each: each.size)
    assert abs((best.box[0] + best.box[2]) / 2 - 117) < 15 and abs((best.box[1] + best.box[3]) / 2 - 108) < 20


def test_landmarks_are_seen_in_a_box_that_is_known(scene: NDArray[np.float32], face: Face) -> None:
    seen = landmarks_in(scene, (70, 60, 150, 150))
    assert seen is not None and seen.landmarks is not None and face.landmarks is not None
    assert np.linalg.norm(seen.landmarks - face.landmarks, axis=1).max() < 4
    assert landmarks_in(np.zeros_like(scene), (70, 60, 150, 150)) is None


def test_the_mean_face_in_a_box_is_near_the_landmarks(face: Face) -> None:
    points = template_in(face.box)
    assert face.landmarks is not None
    eyes = np.linalg.norm(face.landmarks[1] - face.landmarks[0])
    assert np.linalg.norm(points - face.landmarks, axis=1).mean() < 0.25 * eyes
    between = similarity(points, face.landmarks)
    assert 0.8 < np.hypot(*between[:, 0]) < 1.25


def test_one_face_is_one_box() -> None:
    boxes = np.array([(0, 0, 10, 10, 0.8), (1, 1, 11, 11, 0.9), (2, 2, 6, 6, 0.7), (30, 0, 40, 10, 0.6)], np.float64)
    assert distinct(boxes)[:, 4].tolist() == [0.9, 0.6]


@pytest.mark.parametrize(("options", "words"), [({"detector": "hog"}, "no detector 'hog'"), ({"threshold": 1.5}, "is no score")])
def test_what_cannot_be_meant_is_refused(options: dict, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        detect_faces(np.zeros((8, 8, 3), np.float32), **options)
