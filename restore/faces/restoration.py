"""A photograph with faces to the same photograph with restored faces: found, aligned, restored, put back.

    network = restore.load_model("restoreformer++")
    result = restore_faces(network, read_picture("photo.jpg"))

The network sees one aligned face at a time, at the size that it was trained on; the rest of the picture is left alone, or
enlarged. What comes out holds invented details, and its record says so. Axes: H, W rows and columns, C colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.errors import RequestError
from restore.faces.alignment import Fit, fit_similarity, template, warp_face
from restore.faces.detection import THRESHOLD, Detector, Face, detect_faces, landmarks_in
from restore.faces.identity import Distance, identity_distance
from restore.faces.paste import Pixels, keeps_detail, match_colour, paste
from restore.images import Picture, fill_transparent, from_unit, to_unit
from restore.images.interpolation import resize
from restore.models.base import RestorationNetwork
from restore.restoration.plan import unit_range

FACE_SIZE = 256
"""Edge of the faces of networks whose cards name none."""
BOX = (0.235, 0.194, 0.764, 0.909)
"""Where the box of a face lies in the aligned face, in its edges: the mean of YuNet's boxes of aligned faces."""

OnProgress = Callable[[int, int], None]


@dataclass(frozen=True)
class FaceSettings:
    """How faces are found and restored.

    Attributes:
        detector, threshold: As of `detect_faces`.
        fit: As of `fit_similarity`.
        only: Numbers of the faces to restore, from 1, left to right; empty for all.
        fidelity: 0 for the network's face, 1 for the face as it was, between them a blend.
        match_colour: Whether a restored face takes the colours and the contrast of the face before.
    """

    detector: Detector = "yunet"
    threshold: float = THRESHOLD
    fit: Fit = "least-squares"
    only: tuple[int, ...] = ()
    fidelity: float = 0.0
    match_colour: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.fidelity <= 1:
            raise RequestError(f"--fidelity {self.fidelity:g} is no blend.", hint="Give 0 (the network) to 1 (the input).")
        if not 0 < self.threshold <= 1:
            raise RequestError(f"--threshold {self.threshold:g} is no score.", hint="Give a number above 0 and up to 1.")


@dataclass(frozen=True, eq=False)
class RestoredFace:
    """A face before and after.

    Attributes:
        number: Its place among the faces found, from 1, left to right.
        face: Where it is; its landmarks are those that were used.
        landmarks_from: What they come from: "detector", "given" or "box" where only the box is known.
        before, after: The aligned face (S, S, 3) in [0, 1], as the network was given it and as it is put back.
        matrix: From the picture to the aligned face.
        distance: Between before and after.
    """

    number: int
    face: Face
    landmarks_from: str
    before: Pixels
    after: Pixels
    matrix: NDArray[np.float64]
    distance: Distance

    def to_dict(self) -> dict[str, object]:
        """For records: places in pixels of the input."""
        assert self.face.landmarks is not None
        return {
            "number": self.number,
            "box": [round(edge, 1) for edge in self.face.box],
            "landmarks": self.face.landmarks.round(1).tolist(),
            "landmarks_from": self.landmarks_from,
            "score": round(self.face.score, 3),
            "distance": dict(self.distance.to_dict()),
        }


@dataclass(frozen=True, eq=False)
class RestoredPicture:
    """A picture with its faces restored.

    Attributes:
        picture: It.
        faces: The faces that were restored.
        found: How many there are in it.
    """

    picture: Picture
    faces: list[RestoredFace] = field(default_factory=list)
    found: int = 0


def check_face_network(network: RestorationNetwork) -> None:
    """Make sure that a network makes one RGB picture of one.

    Raises:
        RequestError: It takes or gives other channels, or several pictures.
    """
    card = network.card
    if (card.channels, card.out_channels, card.outputs) != (3, 3, 1):
        raise RequestError(
            f"{card.title} takes {card.channels} channels and gives {card.outputs} x {card.out_channels}.",
            hint="Give a network that makes one RGB face of one.",
        )


def face_size(network: RestorationNetwork) -> int:
    """Edge in pixels of the aligned faces that a network takes."""
    return network.card.face_size or FACE_SIZE


def restore_faces(
    network: RestorationNetwork,
    picture: Picture,
    settings: FaceSettings | None = None,
    *,
    background: Picture | None = None,
    known: Sequence[Face] | None = None,
    on_progress: OnProgress | None = None,
) -> RestoredPicture:
    """Restore the faces of a picture in memory.

    Args:
        network: For aligned faces, at one size, of three channels.
        picture: Gray or RGB, of any sample type, with or without alpha.
        settings: How.
        background: The same picture at its final size, at least as large, on which the faces are put; None for the picture.
        known: Faces that need not be searched; landmarks that are None are looked for in their boxes.
        on_progress: Called with faces done and faces in all.

    Raises:
        RequestError: The settings name faces that there are not.
        InputError: The picture is not finite.
    """
    settings = settings or FaceSettings()
    ground = picture if background is None else background
    values, low, high = unit_colours(picture)
    device = str(next(network.parameters()).device)
    faces = (
        detect_faces(values, detector=settings.detector, threshold=settings.threshold, device=device) if known is None else known
    )
    chosen = chosen_faces(len(faces), settings.only)
    canvas = (to_unit(ground.colour) - np.float32(low)) / np.float32(high - low)
    scale = canvas.shape[1] / values.shape[1], canvas.shape[0] / values.shape[0]
    done = []
    for place, number in enumerate(chosen):
        if on_progress is not None:
            on_progress(place, len(chosen))
        done.append(restore_one(network, values, faces[number - 1], number, settings, given=known is not None))
        _put(canvas, done[-1], scale)
    if on_progress is not None:
        on_progress(len(chosen), len(chosen))
    result = from_unit(canvas * np.float32(high - low) + np.float32(low), picture.colour.dtype) if done else ground.colour
    return RestoredPicture(Picture(result, ground.alpha, picture.metadata), done, len(faces))


def restore_one(
    network: RestorationNetwork, values: Pixels, face: Face, number: int, settings: FaceSettings, *, given: bool = False
) -> RestoredFace:
    """Align and restore one face of a picture (H, W, 3) float32 in [0, 1]."""
    size = face_size(network)
    origin = "given" if given else "detector"
    if face.landmarks is None:
        seen = landmarks_in(values, face.box, str(next(network.parameters()).device))
        points = template_in(face.box) if seen is None or seen.landmarks is None else seen.landmarks
        origin = "box" if seen is None else "detector"
        face = Face(face.box, points, face.score)
    assert face.landmarks is not None
    matrix = fit_similarity(face.landmarks, size, settings.fit)
    before = np.clip(warp_face(values, matrix, size), 0, 1)
    after = restored_face(network, before, settings)
    return RestoredFace(number, face, origin, before, after, matrix, identity_distance(before, after))


def restored_face(network: RestorationNetwork, face: Pixels, settings: FaceSettings) -> Pixels:
    """What is put back for an aligned face (S, S, 3) float32 in [0, 1].

    Raises:
        RequestError: The network makes no RGB picture of one.
    """
    check_face_network(network)
    low, high = network.card.value_range
    x = torch.from_numpy(face.transpose(2, 0, 1).copy())[None].to(next(network.parameters()).device)
    with torch.inference_mode():
        y = network.result(x * (high - low) + low)
    after = ((y - low) / (high - low)).clamp(0, 1)[0].float().cpu().numpy().transpose(1, 2, 0)
    if settings.match_colour:
        after = match_colour(after, face)
    return np.ascontiguousarray(after + np.float32(settings.fidelity) * (face - after))


def restore_aligned(network: RestorationNetwork, picture: Picture, settings: FaceSettings | None = None) -> RestoredPicture:
    """Restore a picture that is one aligned face and nothing else; the result has the size of the network's faces."""
    settings, size = settings or FaceSettings(), face_size(network)
    values, low, high = unit_colours(picture)
    before = np.clip(resize(values, (size, size), "bilinear", antialias=True), 0, 1)
    after = restored_face(network, before, settings)
    height, width, channels = picture.colour.shape
    matrix = np.array([[size / width, 0, (size / width - 1) / 2], [0, size / height, (size / height - 1) / 2]])
    ratio = np.array([width, height]) / size
    face = Face((-0.5, -0.5, width - 0.5, height - 0.5), (template(size) + 0.5) * ratio - 0.5, 1.0)
    one = RestoredFace(1, face, "given", before, after, matrix, identity_distance(before, after))
    planes = after if channels == 3 else after.mean(axis=2, keepdims=True)
    alpha = None if picture.alpha is None else enlarged_plane(picture.alpha, (size, size))
    result = from_unit(planes * np.float32(high - low) + np.float32(low), picture.colour.dtype)
    return RestoredPicture(Picture(result, alpha, picture.metadata), [one], 1)


def unit_colours(picture: Picture) -> tuple[Pixels, float, float]:
    """The colours (H, W, 3) that show, brought to [0, 1], and the values that 0 and 1 stand for.

    Raises:
        InputError: Values are not finite.
    """
    colour = picture.colour if picture.alpha is None else fill_transparent(picture.colour, picture.alpha)
    low, high = unit_range(float(colour.min()), float(colour.max())) if colour.dtype == np.float32 else (0.0, 1.0)
    values = (to_unit(colour) - np.float32(low)) / np.float32(high - low)
    return (values if values.shape[2] == 3 else np.repeat(values, 3, axis=2)), low, high


def enlarged_background(picture: Picture, size: tuple[int, int]) -> Picture:
    """A picture at another size (height, width) by the antialiased bicubic; alpha along with it."""
    unit = to_unit(picture.colour)
    colour = from_unit(resize(unit, size, "bicubic", antialias=True), picture.colour.dtype)
    alpha = None if picture.alpha is None else enlarged_plane(picture.alpha, size)
    return Picture(colour, alpha, picture.metadata)


def enlarged_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Alpha (H, W) at another size."""
    unit = np.clip(resize(to_unit(plane)[..., None], size, "bicubic", antialias=True), 0, 1)
    return from_unit(unit[..., 0], plane.dtype)


def template_in(box: tuple[float, float, float, float]) -> NDArray[np.float64]:
    """Where the landmarks (5, 2) of a face are likely, of which only the box is known: the mean face placed in it.

    >>> template_in((100, 100, 200, 220)).round().tolist()[0]
    [128.0, 145.0]
    """
    x0, y0, x1, y1 = box
    middle = np.array([x0 + x1, y0 + y1]) / 2
    edge = ((x1 - x0) / (BOX[2] - BOX[0]) + (y1 - y0) / (BOX[3] - BOX[1])) / 2
    centre = np.array([BOX[0] + BOX[2], BOX[1] + BOX[3]]) / 2
    return ((template(512) + 0.5) / 512 - centre) * edge + middle


def notes_on(result: RestoredPicture, size: int) -> tuple[str, ...]:
    """What a user should know of a result, one sentence each."""
    notes = []
    if result.found == 0:
        notes.append("No face was found: nothing was restored. A lower --threshold finds less certain ones; --boxes names them.")
    elif len(result.faces) < result.found:
        notes.append(f"{len(result.faces)} of {result.found} faces were restored, as asked.")
    guessed = [str(each.number) for each in result.faces if each.landmarks_from == "box"]
    if guessed:
        notes.append(f"No landmarks were seen in face {', '.join(guessed)}: it was aligned by its box alone.")
    large = [str(each.number) for each in result.faces if keeps_detail(each.matrix)]
    if large:
        notes.append(
            f"Face {', '.join(large)} has more pixels than the {size} x {size} of the network: detail finer than the "
            "network's pixels was kept as it was."
        )
    return tuple(notes)


def _put(canvas: Pixels, one: RestoredFace, scale: tuple[float, float]) -> None:
    gray = canvas.shape[2] == 1
    before, after = ((each.mean(axis=2, keepdims=True) if gray else each) for each in (one.before, one.after))
    paste(canvas, after, before, one.matrix, scale)


def chosen_faces(found: int, only: tuple[int, ...]) -> list[int]:
    """Numbers of the faces to restore.

    Raises:
        RequestError: There are not so many.
    """
    if not only:
        return list(range(1, found + 1))
    if bad := [number for number in only if not 1 <= number <= found]:
        raise RequestError(
            f"There is no face {', '.join(map(str, bad))}: {found or 'none'} found.", hint="Look at the numbers with --plan."
        )
    return sorted(set(only))
