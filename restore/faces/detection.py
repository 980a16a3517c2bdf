"""Where the faces of a picture are: boxes and five landmarks, found at several sizes and agreed upon.

One pass of a small detector misses faces that are very small or very large, takes a knob for a face now and then, and places
landmarks with a noise of some per cent of the face. So the picture is looked at in several sizes; then each candidate is cut
out and looked at again in five sizes, as it is and mirrored; where it proves to be turned, once more and upright. Its landmarks
are the medians of these ten, and so is its score, which a thing that looks like a face in one size only does not keep.

Coordinates are x, y in pixels of the picture, centres of pixels at integers. Landmarks in order: the eye, and later the mouth
corner, that the viewer sees on the left come first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.errors import RequestError
from restore.faces.alignment import TEMPLATE, apply, similarity, warp
from restore.faces.yunet import COLUMNS, MULTIPLE, find
from restore.images.interpolation import resize

Detector = Literal["yunet", "cascade"]
DETECTORS: tuple[Detector, ...] = ("yunet", "cascade")
THRESHOLD = 0.9
"""Score from which a box is taken for a face."""
LOOKS = (160, 320, 640, 1280, 2560)
"""Longest sides at which a picture is looked at; YuNet knows faces of about 10 to 300 pixels."""
LARGEST_LOOK = 1.5
"""No look but the first enlarges a picture by more."""
CANDIDATE = 0.45
"""Least score of a look that is worth a second one."""
GLANCE = (64,)
"""Size in pixels at which a candidate is glanced at, so that many doubtful ones cost little."""
GLANCED = 0.5
"""Least score of a glance."""
SECOND_LOOKS = (48, 64, 80, 96, 112)
"""Sizes in pixels to which a candidate's box is brought."""
SURROUNDINGS = 2.0
"""Sides of the square that is cut out around a candidate, in sides of its box."""
ASKEW = 0.1
"""Radians from which a face is turned upright and looked at once more: YuNet's landmarks suffer from a turned face."""
LEAST = 0.2
"""Least score of a second look that counts as seen."""
BATCH = 16
"""Candidates that are looked at together."""
OVERLAP = 0.35
"""Two boxes that share more than this part of their union are one face."""
INSIDE = 0.6
"""And so are two of which the smaller has more than this part of its area in the other."""
MIRRORED = (1, 0, 2, 4, 3)
"""Places of the landmarks in a mirrored picture."""


@dataclass(frozen=True, eq=False)
class Face:
    """A face that was found.

    Attributes:
        box: x0, y0, x1, y1.
        landmarks: (5, 2) x, y: left eye, right eye, nose, left and right mouth corner, as the viewer sees them; None where
            the detector gives none.
        score: How sure the detector is, up to 1.
    """

    box: tuple[float, float, float, float]
    landmarks: NDArray[np.float64] | None
    score: float

    @property
    def size(self) -> float:
        """The longer side of its box."""
        return max(self.box[2] - self.box[0], self.box[3] - self.box[1])


def detect_faces(
    picture: NDArray[np.float32], *, detector: Detector = "yunet", threshold: float = THRESHOLD, device: str = "cpu"
) -> list[Face]:
    """The faces of a picture, from left to right.

    Args:
        picture: (H, W, 3) float32 RGB in [0, 1].
        detector: "yunet", or "cascade": scikit-image's bundled cascade, which finds frontal faces without landmarks.
        threshold: Least score of a face, 0 to 1; the cascade has no score and takes no notice.
        device: Where YuNet runs.

    Raises:
        RequestError: There is no such detector, or the threshold is no score.
        ValueError: The picture has another shape.
    """
    if detector not in DETECTORS:
        raise RequestError(f"There is no detector {detector!r}.", hint=f"Choose one of {', '.join(DETECTORS)}.")
    if not 0 < threshold <= 1:
        raise RequestError(f"A threshold of {threshold:g} is no score.", hint="Give a number above 0 and up to 1, such as 0.9.")
    if picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
        raise ValueError(f"a picture is (H, W, 3), not {picture.shape}")
    if detector == "cascade":
        from restore.faces.cascade import find_by_cascade

        boxes = find_by_cascade(picture)
        faces = [Face(_box(row), None, float(row[4])) for row in distinct(boxes)]
    else:
        agreed = second_look(picture, _candidates(picture, min(threshold, CANDIDATE), device), device)
        faces = [face_of(row) for row in distinct(agreed) if row[-1] >= threshold]
    return sorted(faces, key=lambda face: (face.box[0] + face.box[2], face.box[1]))


def landmarks_in(picture: NDArray[np.float32], box: tuple[float, float, float, float], device: str = "cpu") -> Face | None:
    """The face in a box (x0, y0, x1, y1) of a picture (H, W, 3), with its landmarks; None where YuNet sees none there."""
    row = np.zeros((1, COLUMNS))
    row[0, :4] = np.asarray(box) + 0.5
    agreed = second_look(picture, row, device)
    return face_of(agreed[0]) if len(agreed) else None


def second_look(picture: NDArray[np.float32], rows: NDArray[np.float64], device: str) -> NDArray[np.float64]:
    """Each candidate seen ten times, upright: medians of its box, its landmarks and its score, 0 standing for not seen.

    Candidates that fewer than half of the ten saw are left out.

    Args:
        picture: (H, W, 3).
        rows: (N, COLUMNS) with boxes at least.
        device: Where YuNet runs.
    """
    if not len(rows):
        return rows
    rows = _looked_at(picture, rows, np.zeros(len(rows)), device)
    rows = rows[rows[:, -1] > 0]
    turns = np.array([_turn(row) for row in rows])
    askew = np.flatnonzero(np.abs(turns) > ASKEW)
    upright = _looked_at(picture, rows[askew], turns[askew], device)
    rows[askew[upright[:, -1] > 0]] = upright[upright[:, -1] > 0]
    return rows


def _looked_at(
    picture: NDArray[np.float32], rows: NDArray[np.float64], turns: NDArray[np.float64], device: str
) -> NDArray[np.float64]:
    """The medians of ten views of each candidate, turned upright by `turns` radians; a score of 0 where half saw nothing."""
    agreed = np.zeros((len(rows), COLUMNS))
    for start in range(0, len(rows), BATCH):
        part = slice(start, start + BATCH)
        for index, views in enumerate(_seen(picture, rows[part], turns[part], device), start):
            seen = views[:, -1] > 0
            if seen.sum() * 2 >= len(views):
                agreed[index] = [*np.median(views[seen, :-1], axis=0), np.median(views[:, -1])]
    return agreed


def _seen(
    picture: NDArray[np.float32],
    rows: NDArray[np.float64],
    turns: NDArray[np.float64],
    device: str,
    sizes: tuple[int, ...] = SECOND_LOOKS,
) -> NDArray[np.float64]:
    """What each view of each candidate shows, (N, views, COLUMNS) in the picture; zeros where it shows no face.

    The views are the sizes, each as it is and mirrored.
    """
    squares = [_square(row) for row in rows]
    cuts = [_upright(_cut(picture, *square), turn) for square, turn in zip(squares, turns, strict=True)]
    seen = np.zeros((len(rows), 2 * len(sizes), COLUMNS))
    for place, face_size in enumerate(sizes):
        side = round(SURROUNDINGS * face_size)
        crops = np.stack([resize(cut, (side, side), "bilinear", antialias=True) for cut in cuts])
        both = np.concatenate((crops, crops[:, :, ::-1])).transpose(0, 3, 1, 2)
        for index, found in enumerate(find(torch.from_numpy(both.copy()).to(device), LEAST)):
            turn, which = divmod(index, len(rows))
            best = _central(found, side)
            if best is not None:
                best = _turned_back(_mirror(best, side) if turn else best, side, turns[which])
                left, top, edge = squares[which]
                seen[which, 2 * place + turn] = _moved(best, edge / side, left, top)
    return seen


def distinct(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows (N, 5 + n), box first and score last, without those that show a face of a better score again; the best first."""
    rows = rows[np.argsort(-rows[:, -1], kind="stable")]
    kept: list[int] = []
    for index, row in enumerate(rows):
        if not any(_same(row, rows[other]) for other in kept):
            kept.append(index)
    return rows[kept]


def face_of(row: NDArray[np.float64]) -> Face:
    """A row (15,) of YuNet as a face: centres of pixels at integers."""
    return Face(_box(row), row[4:14].reshape(5, 2) - 0.5, float(row[-1]))


def _candidates(picture: NDArray[np.float32], least: float, device: str) -> NDArray[np.float64]:
    """What looks like a face at one size or another, and again at a glance."""
    rows = [np.empty((0, COLUMNS))]
    for look, ratio in _looks(picture):
        batch = torch.from_numpy(look.transpose(2, 0, 1)[None].copy()).to(device)
        found = distinct(find(batch, least)[0])
        found[:, :-1] *= ratio
        rows.append(found)
    candidates = distinct(np.concatenate(rows))
    parts = [candidates[start : start + BATCH] for start in range(0, len(candidates), BATCH)]
    best = [_seen(picture, part, np.zeros(len(part)), device, GLANCE)[..., -1].max(axis=1) for part in parts]
    return candidates[np.concatenate(best) >= min(least, GLANCED)] if best else candidates


def _looks(picture: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.float32], float]]:
    """The picture at the sizes of `LOOKS`, sides padded to `MULTIPLE`, each with its pixels per pixel of the picture."""
    height, width = picture.shape[:2]
    longest = max(height, width)
    for side in LOOKS:
        if side > LARGEST_LOOK * longest and side > LOOKS[0]:
            return
        ratio = longest / side
        size = max(1, round(height / ratio)), max(1, round(width / ratio))
        small = resize(picture, size, "bilinear", antialias=True)
        # A gray margin: an edge pixel repeated would draw stripes, and black would cut faces at the border.
        yield np.pad(small, (*((0, -edge % MULTIPLE) for edge in size), (0, 0)), constant_values=0.5), ratio


def _square(row: NDArray[np.float64]) -> tuple[int, int, int]:
    """Left, top and edge of the square around a box, in whole pixels."""
    edge = max(8, round(SURROUNDINGS * max(row[2] - row[0], row[3] - row[1])))
    return round((row[0] + row[2] - edge) / 2), round((row[1] + row[3] - edge) / 2), edge


def _cut(picture: NDArray[np.float32], left: int, top: int, edge: int) -> NDArray[np.float32]:
    """A square of the picture, gray where it reaches beyond."""
    height, width = picture.shape[:2]
    x0, x1, y0, y1 = max(0, left), min(width, left + edge), max(0, top), min(height, top + edge)
    square = np.full((edge, edge, 3), 0.5, np.float32)
    if x0 < x1 and y0 < y1:
        square[y0 - top : y1 - top, x0 - left : x1 - left] = picture[y0:y1, x0:x1]
    return square


def _turn(row: NDArray[np.float64]) -> float:
    """Radians by which a face must be turned to be upright."""
    way = similarity(row[4:14].reshape(5, 2), TEMPLATE)
    return float(np.arctan2(way[1, 0], way[0, 0]))


def _upright(square: NDArray[np.float32], turn: float) -> NDArray[np.float32]:
    """A square turned about its middle; gray in the corners."""
    if turn == 0:
        return square
    return warp(square, _about((len(square) - 1) / 2, turn), square.shape[:2], (0.5,) * 3)


def _turned_back(row: NDArray[np.float64], side: int, turn: float) -> NDArray[np.float64]:
    """A row of a turned square as it is in the square; the box keeps its sides and goes along with its middle."""
    if turn == 0:
        return row
    back = _about(side / 2, -turn)
    half = (row[2:4] - row[:2]) / 2
    middle = apply(back, (row[:2] + row[2:4]) / 2)
    return np.concatenate((middle - half, middle + half, apply(back, row[4:14].reshape(5, 2)).ravel(), row[-1:]))


def _about(middle: float, turn: float) -> NDArray[np.float64]:
    """A turn about a point on the diagonal."""
    cosine, sine = np.cos(turn), np.sin(turn)
    linear = np.array([[cosine, -sine], [sine, cosine]])
    return np.column_stack((linear, middle - linear @ (middle, middle)))


def _central(found: NDArray[np.float64], side: int) -> NDArray[np.float64] | None:
    """The best box that covers the middle of a square and is neither a part of the face nor far more than it."""
    middle, expected = side / 2, side / SURROUNDINGS
    sizes = np.maximum(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1])
    centred = (np.abs((found[:, 0:2] + found[:, 2:4]) / 2 - middle) < expected / 3).all(axis=1)
    fits = found[centred & (sizes > expected / 2) & (sizes < expected * 2)]
    return fits[0] if len(fits) else None


def _mirror(row: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """A row of a mirrored square as it is in the square."""
    points = row[4:14].reshape(5, 2)[list(MIRRORED)] * (-1, 1) + (side, 0)
    return np.array([side - row[2], row[1], side - row[0], row[3], *points.ravel(), row[-1]])


def _moved(row: NDArray[np.float64], ratio: float, left: int, top: int) -> NDArray[np.float64]:
    """A row of a square as it is in the picture."""
    return np.append(row[:-1] * ratio + np.tile((left, top), 7), row[-1])


def _same(one: NDArray[np.float64], other: NDArray[np.float64]) -> bool:
    shared = np.clip(np.minimum(one[2:4], other[2:4]) - np.maximum(one[:2], other[:2]), 0, None).prod()
    areas = (one[2:4] - one[:2]).prod(), (other[2:4] - other[:2]).prod()
    return bool(shared > OVERLAP * (sum(areas) - shared) or shared > INSIDE * min(areas))


def _box(row: NDArray[np.float64]) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (float(edge) - 0.5 for edge in row[:4])
    return x0, y0, x1, y1
