"""What the viewer in the browser asks of the server, and the answers: plain JSON values both ways, checked at this edge.

Places are voxels of the turned scan or parts of a picture, as in `apps.scans.view`.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from apps.scans.brush import LARGEST_RADIUS, Stroke
from apps.scans.session import Session
from apps.scans.surface import surfaces
from apps.scans.tables import OBLIQUE
from apps.scans.view import (
    AGREED,
    DIFFERENCE_COLOURS,
    OTHERWISE,
    OURS,
    PLANES,
    THEIRS,
    Convention,
    Look,
    Overlay,
    Plane,
    caption,
    draw,
    frame_of,
    heat_table,
    obliquity,
)
from apps.serving.words import complaint
from hybrid.errors import HybridError, RequestError
from medical.structures import Structure

Answer = dict[str, Any]
Part = Annotated[float, Field(ge=-1, le=2, allow_inf_nan=False)]
Number = Annotated[float, Field(allow_inf_nan=False)]
At = tuple[int, int, int]
_DIFFERENCES = {AGREED: "alike in both", OURS: "here alone", THEIRS: "in the mask alone", OTHERWISE: "another structure"}


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Click(_Asked):
    """A place in a picture."""

    plane: Plane
    x: Part
    y: Part


class ViewAsked(_Asked):
    """Slices to draw; see `apps.scans.view.Look`."""

    at: At
    window: tuple[Number, Number]
    convention: Convention = "radiological"
    overlay: Overlay = "labels"
    opacity: Annotated[float, Field(ge=0, le=1)] = 0.4
    hidden: tuple[int, ...] = ()
    outlines: bool = True
    zoom: Annotated[float, Field(ge=1, le=16)] = 1.0
    sizes: dict[Plane, tuple[int, int]]
    click: Click | None = None

    def look(self, plane: Plane, shape: At) -> Look:
        """At a voxel that is there."""
        i, j, k = (min(max(at, 0), edge - 1) for at, edge in zip(self.at, shape, strict=True))
        low, high = self.window
        return Look(
            (i, j, k), (low, max(high, low + 1e-9)), self.convention, self.overlay, self.opacity, frozenset(self.hidden),
            self.outlines, self.zoom, self.sizes.get(plane, (512, 512)),
        )  # fmt: skip


class StrokeAsked(_Asked):
    """A drag of the brush through a picture."""

    view: ViewAsked
    plane: Plane
    points: Annotated[tuple[tuple[Part, Part], ...], Field(min_length=1, max_length=4000)]
    radius: Annotated[float, Field(ge=0, le=LARGEST_RADIUS)]
    value: Annotated[int, Field(ge=0, le=65535)]


class GotoAsked(_Asked):
    """A slice by the axis and index of the file."""

    at: At
    axis: Literal["i", "j", "k"]
    index: Annotated[int, Field(ge=0)]


def answered(work: Callable[[], Answer]) -> Answer:
    """What work returns; or, where it cannot, why, in words for the page."""
    try:
        return work()
    except ValidationError:
        return {"error": "The request is not understood. Load the page again."}
    except HybridError as error:
        return {"error": complaint(error)}


def opened(session: Session) -> Answer:
    """What the viewer needs to know of a scan before it draws."""
    scan, scene = session.opened, session.scene
    grid, values = scan.volume.grid, scan.volume.values[0]
    low, high = float(values.min()), float(values.max())
    angle = obliquity(grid)
    notes = [f"Oblique: slices follow the scan's axes, up to {angle:.1f}° off the patient's."] * (angle >= OBLIQUE)
    notes += ["The axes are not at right angles; they are drawn as if they were."] * (not grid.orthogonal)
    return {
        "shape": scene.shape,
        "at": session.begin_at(),
        "range": [low, high if high > low else low + 1],
        "windows": [{"name": each.name, "low": each.low, "high": each.high} for each in scan.windows],
        "labels": [_label(each) for each in session.structures],
        "paintable": [each.value for each in session.structures_found],
        "overlays": _overlays(session),
        "orientation": " ".join(notes),
        "legend": {
            "difference": [{"rgb": rgb, "name": _DIFFERENCES[kind]} for kind, rgb in DIFFERENCE_COLOURS.items()],
            "uncertainty": heat_table()[::32].tolist(),
        },
    }


def view(session: Session, asked: Mapping[str, Any]) -> Answer:
    """Slices as pictures, and what is at the crosshair. A click moves the crosshair first."""
    request = ViewAsked.model_validate(asked)
    with session.lock:
        scene = session.scene
        if request.click is not None:
            click = request.click
            at = frame_of(scene, click.plane, request.look(click.plane, scene.shape)).voxel(click.x, click.y)
            request = request.model_copy(update={"at": at, "click": None})
        at = request.look("axial", scene.shape).at
        views = {plane: _picture(session, plane, request) for plane in PLANES if plane in request.sizes}
        return {"at": at, "views": views, **_under(session, at)}


def stroke(session: Session, asked: Mapping[str, Any]) -> Answer:
    """Correct the label map, and say how much changed and how often it can be undone."""
    request = StrokeAsked.model_validate(asked)
    with session.lock:
        scene = session.scene
        frame = frame_of(scene, request.plane, request.view.look(request.plane, scene.shape))
        points = tuple(dict.fromkeys(frame.voxel(x, y) for x, y in request.points))
        changed = session.paint(Stroke(request.plane, points, request.radius, request.value))
        return {"changed": changed, "undo": len(session.corrected.steps)}


def undo(session: Session) -> Answer:
    """Take the last stroke back."""
    with session.lock:
        return {"changed": int(session.undo()), "undo": len(session.corrected.steps)}


def goto(session: Session, asked: Mapping[str, Any]) -> Answer:
    """The crosshair on a slice of the file.

    Raises:
        RequestError: The scan does not have it.
    """
    request = GotoAsked.model_validate(asked)
    turn, axis = session.scene.turn, "ijk".index(request.axis)
    edge = session.opened.volume.grid.shape[axis]
    if request.index >= edge:
        raise RequestError("The scan has no such slice.", hint="Choose another.")
    new = turn.axes.index(axis)
    at = list(request.at)
    at[new] = edge - 1 - request.index if turn.flips[new] else request.index
    return {"at": at}


def surface(session: Session) -> Answer:
    """The structures' surfaces as triangles: float32 and uint32, little endian, base64."""
    with session.lock:
        labels, grid = session.scene.labels, session.opened.volume.grid
        if labels is None:
            raise RequestError("There is nothing to show yet.", hint="Segment the scan first.")
        labels = labels.copy()
        structures = session.structures
    found = list(surfaces(labels, grid, structures))
    if not found:
        return {"meshes": [], "centre": [0, 0, 0], "radius": 1}
    points = np.concatenate([each.points for each in found])
    low, high = points.min(0), points.max(0)
    meshes = [
        _label(each.structure)
        | {"points": _packed(each.points, "<f4"), "normals": _packed(each.normals, "<f4"), "faces": _packed(each.faces, "<u4")}
        for each in found
    ]
    return {"meshes": meshes, "centre": ((low + high) / 2).tolist(), "radius": float(np.linalg.norm(high - low) / 2)}


def _picture(session: Session, plane: Plane, request: ViewAsked) -> Answer:
    scene = session.scene
    look = request.look(plane, scene.shape)
    frame, data = draw(scene, plane, look)
    return {
        "src": "data:image/png;base64," + base64.b64encode(data).decode(),
        "size": frame.size,
        "letters": list(frame.letters),
        "cross": frame.place(look.at),
        "caption": caption(scene, frame),
        "millimetres": frame.millimetres,
        "bar": frame.bar,
    }


def _under(session: Session, at: At) -> Answer:
    """Place, value and label at the crosshair, in words."""
    scene = session.scene
    x, y, z = (float(place) for place in scene.turn.grid.to_world(np.array(at)))
    value = float(scene.turn.apply(scene.values)[at])
    words = [f"x {x:.1f}, y {y:.1f}, z {z:.1f} mm", f"value {value:.5g}"]
    if scene.labels is not None and (number := int(scene.turn.apply(scene.labels)[at])):
        words.append(next((each.name for each in session.structures if each.value == number), f"label {number}"))
    if scene.uncertainty is not None:
        words.append(f"uncertainty {float(scene.turn.apply(scene.uncertainty)[at]):.2f}")
    return {"under": "; ".join(words)}


def _overlays(session: Session) -> list[str]:
    scene = session.scene
    there = {"labels": scene.labels, "uncertainty": scene.uncertainty, "difference": scene.difference}
    return [name for name, array in there.items() if array is not None]


def _label(structure: Structure) -> Answer:
    return {"value": structure.value, "name": structure.name, "rgb": list(structure.rgb)}


def _packed(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype=kind).tobytes()).decode()
