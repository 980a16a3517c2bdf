"""Where the faces of a picture are, and what restoring them would take, with nothing restored or written."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from hybrid.console import format_duration
from restore.faces.detection import Face, detect_faces
from restore.faces.files import FaceRun
from restore.faces.restoration import chosen_faces, face_size, unit_colours
from restore.images import read_picture
from restore.models.base import RestorationNetwork
from restore.restoration.final_size import FinalSize


@dataclass(frozen=True, eq=False)
class FacePlan:
    """Faces with their numbers, from left to right.

    Attributes:
        faces: All that are there.
        chosen: Numbers of those to be restored.
        size: Width and height of the result.
        seconds: About how long the network takes for them.
    """

    faces: tuple[Face, ...]
    chosen: tuple[int, ...]
    size: tuple[int, int]
    seconds: float

    def lines(self) -> list[str]:
        """For people."""
        boxes = [", ".join(f"{edge:.0f}" for edge in face.box) for face in self.faces]
        found = [
            f"face {number}: box {box}, score {face.score:.2f}{'' if number in self.chosen else ', left alone'}"
            for number, (face, box) in enumerate(zip(self.faces, boxes, strict=True), 1)
        ]
        width, height = self.size
        total = f"{len(self.chosen)} of {len(self.faces)} faces; result {width} x {height}; about {format_duration(self.seconds)}"
        return [*found, total]

    def to_dict(self) -> dict[str, object]:
        """As plain values."""
        faces = [
            {
                "number": number,
                "box": [round(edge, 1) for edge in face.box],
                "landmarks": None if face.landmarks is None else face.landmarks.round(1).tolist(),
                "score": round(face.score, 3),
            }
            for number, face in enumerate(self.faces, 1)
        ]
        return {"faces": faces, "chosen": list(self.chosen), "size": self.size, "seconds": round(self.seconds, 3)}


def plan_faces(network: RestorationNetwork, source: Path, run: FaceRun, known: Sequence[Face] | None = None) -> FacePlan:
    """Find the faces of a picture file, and time the network on one."""
    picture = read_picture(source, max_pixels=run.max_pixels)
    values, _, _ = unit_colours(picture)
    settings, device = run.settings, str(next(network.parameters()).device)
    height, width = values.shape[:2]
    if run.aligned:
        faces: Sequence[Face] = (Face((-0.5, -0.5, width - 0.5, height - 0.5), None, 1.0),)
        size = face_size(network), face_size(network)
    else:
        size = FinalSize(run.scale).of(width, height)
        found = detect_faces(values, detector=settings.detector, threshold=settings.threshold, device=device)
        faces = found if known is None else known
    chosen = tuple(chosen_faces(len(faces), settings.only))
    return FacePlan(tuple(faces), chosen, size, len(chosen) * _seconds(network) if chosen else 0.0)


def _seconds(network: RestorationNetwork) -> float:
    edge = face_size(network)
    x = torch.zeros(1, 3, edge, edge, device=next(network.parameters()).device)
    started = time.perf_counter()
    with torch.inference_mode():
        np.asarray(network.result(x).cpu())
    return time.perf_counter() - started
