"""Slices of a scan drawn as pictures: what lies where in them, gray values, labels and maps over them.

Axes: a scan is turned to (left, posterior, inferior) first, as in `medical.results.preview`; `at` and `index` count
voxels of that turned scan from 0. A slice's picture has columns (x, to its right) and rows (y, down):

    plane      lies across    columns run to          rows run to
    axial      inferior       left (radiological)     posterior
    coronal    posterior      left (radiological)     inferior
    sagittal   left           posterior               inferior

In the neurological convention the columns of axial and coronal pictures run the other way, to the patient's right.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from PIL import Image

from apps.scans.window import to_gray
from medical.results.preview import AXES, EDGES, ORIENTATION, bar_length
from medical.volumes.geometry import Grid, Reorientation

Plane = Literal["axial", "coronal", "sagittal"]
PLANES: tuple[Plane, ...] = get_args(Plane)
Convention = Literal["radiological", "neurological"]
Overlay = Literal["labels", "uncertainty", "difference", "none"]
Index = tuple[int, int, int]

AGREED, OURS, THEIRS, OTHERWISE = 1, 2, 3, 4
"""Values of a difference map: labelled alike, in this mask alone, in the other alone, in both but of other structures."""
DIFFERENCE_COLOURS = {AGREED: (130, 130, 130), OURS: (86, 180, 233), THEIRS: (230, 159, 0), OTHERWISE: (204, 121, 167)}

SIDES = 64, 1600
"""Least and largest edge in pixels of a picture that is drawn."""
_FAINT = 0.05  # of the map's scale: below it nothing is coloured, so that the anatomy stays to be seen


@dataclass(frozen=True)
class Look:
    """How slices are drawn.

    Attributes:
        at: Voxel of the turned scan that all three slices go through.
        window: Values drawn black and white.
        convention: Which side of axial and coronal pictures is the patient's right.
        overlay: What is drawn over the gray values.
        opacity: Of the overlay, from 0 to 1.
        hidden: Labels that are not drawn.
        outlines: Draw the labels' borders in full colour.
        zoom: 1 shows the whole slice, 2 half its height and width, around `at`.
        size: Room for a picture in pixels: width and height.
    """

    at: Index
    window: tuple[float, float]
    convention: Convention = "radiological"
    overlay: Overlay = "labels"
    opacity: float = 0.4
    hidden: frozenset[int] = frozenset()
    outlines: bool = True
    zoom: float = 1.0
    size: tuple[int, int] = (512, 512)


@dataclass(frozen=True)
class Frame:
    """What a picture shows of a slice.

    Attributes:
        plane, index: The slice.
        box: Left, top, right and bottom edge of what is shown, in voxels of the slice's picture: column 0 reaches from 0 to 1.
        size: Pixels of the picture: width and height.
        flipped: Whether the columns run against the turned scan's axis.
        shape: Columns and rows of the whole slice.
        letters: What lies at its left, right, top and bottom, of R L A P S I.
        millimetres: Width of the picture in mm.
        bar: Length of the scale bar in mm.
    """

    plane: Plane
    index: int
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    flipped: bool
    shape: tuple[int, int]
    letters: str
    millimetres: float
    bar: float

    def voxel(self, x: float, y: float) -> Index:
        """The voxel of the turned scan at a place of the picture, given in parts of its width and height from top left."""
        left, top, right, bottom = self.box
        column = min(max(int(np.floor(left + x * (right - left))), 0), self.shape[0] - 1)
        row = min(max(int(np.floor(top + y * (bottom - top))), 0), self.shape[1] - 1)
        if self.flipped:
            column = self.shape[0] - 1 - column
        found = [column, row]
        found.insert(AXES[self.plane], self.index)
        return found[0], found[1], found[2]

    def place(self, at: Index) -> tuple[float, float]:
        """Where the middle of a voxel lies in the picture, in parts of its width and height."""
        column, row = (at[axis] for axis in range(3) if axis != AXES[self.plane])
        if self.flipped:
            column = self.shape[0] - 1 - column
        left, top, right, bottom = self.box
        return (column + 0.5 - left) / (right - left), (row + 0.5 - top) / (bottom - top)


@dataclass(frozen=True, eq=False)
class Scene:
    """A scan to be drawn, and what lies over it; arrays are (i, j, k) on the scan's own grid.

    Attributes:
        values: The scan.
        grid: Where it lies.
        labels: Label map, or None.
        colours: sRGB of each label.
        uncertainty: From 0 to 1, or None.
        difference: Of `AGREED`, `OURS`, `THEIRS`, `OTHERWISE`, or None.
    """

    values: np.ndarray
    grid: Grid
    labels: np.ndarray | None = None
    colours: Mapping[int, tuple[int, int, int]] = field(default_factory=dict)
    uncertainty: np.ndarray | None = None
    difference: np.ndarray | None = None

    @cached_property
    def turn(self) -> Reorientation:
        """To (left, posterior, inferior)."""
        return Reorientation.between(self.grid, ORIENTATION)

    @property
    def shape(self) -> Index:
        """Of the turned scan."""
        return self.turn.grid.shape


def frame_of(scene: Scene, plane: Plane, look: Look) -> Frame:
    """What the picture of a slice shows, in true proportions, as large as the room for it allows."""
    axis = AXES[plane]
    across, down = (other for other in range(3) if other != axis)
    grid = scene.turn.grid
    shape = grid.shape[across], grid.shape[down]
    steps = grid.spacing[across], grid.spacing[down]
    flipped = look.convention == "neurological" and plane != "sagittal"
    room = [min(max(int(edge), SIDES[0]), SIDES[1]) for edge in look.size]
    whole = shape[0] * steps[0], shape[1] * steps[1]
    pixels = min(room[0] / whole[0], room[1] / whole[1]) * look.zoom  # to a millimetre
    shown = [min(whole[side], room[side] / pixels) for side in (0, 1)]
    middle = [look.at[across] + 0.5, look.at[down] + 0.5]
    if flipped:
        middle[0] = shape[0] - middle[0]
    starts = [
        float(np.clip(middle[side] * steps[side] - shown[side] / 2, 0, whole[side] - shown[side])) / steps[side]
        for side in (0, 1)
    ]
    ends = [starts[side] + shown[side] / steps[side] for side in (0, 1)]
    size = max(1, round(shown[0] * pixels)), max(1, round(shown[1] * pixels))
    letters = EDGES[plane]
    if flipped:
        letters = letters[1] + letters[0] + letters[2:]
    box = (starts[0], starts[1], ends[0], ends[1])
    return Frame(plane, look.at[axis], box, size, flipped, shape, letters, shown[0], bar_length(shown[0]))


def draw(scene: Scene, plane: Plane, look: Look) -> tuple[Frame, bytes]:
    """A slice as PNG, and what it shows.

    Gray values and uncertainty are interpolated linearly, labels are not: their voxels are seen as they are.
    """
    frame = frame_of(scene, plane, look)
    gray = _scaled(to_gray(_cut(scene, scene.values, frame), *look.window), frame, Image.Resampling.BILINEAR)
    over = _overlay(scene, frame, look)
    if over is None:
        return frame, png(gray)
    colours, share = (Image.fromarray(part) for part in over)
    return frame, png(Image.composite(colours, gray.convert("RGB"), share))


def png(picture: Image.Image) -> bytes:
    """A picture as a PNG that is packed fast rather than small."""
    data = io.BytesIO()
    picture.save(data, "PNG", compress_level=1)
    return data.getvalue()


def obliquity(grid: Grid) -> float:
    """Largest angle between an axis of a grid and the patient's axis nearest to it, in degrees.

    >>> obliquity(Grid((4, 4, 4), np.diag([-1.0, -1.0, 2.0, 1.0])))
    0.0
    """
    turned = Reorientation.between(grid, "RAS").grid
    cosine = np.diag(turned.affine[:3, :3] / np.array(turned.spacing)).min()
    return round(float(np.degrees(np.arccos(np.clip(cosine, -1, 1)))), 3)


def caption(scene: Scene, frame: Frame) -> str:
    """Such as ``axial 12 of 35, z = -4.5 mm``: counted as the slider counts, at the slice's middle in RAS+ mm."""
    axis = AXES[frame.plane]
    point = (np.array(scene.shape) - 1) / 2
    point[axis] = frame.index
    place = float(scene.turn.grid.to_world(point)[axis])
    return f"{frame.plane} {frame.index + 1} of {scene.shape[axis]}, {'xyz'[axis]} = {place:.1f} mm"


def _cut(scene: Scene, array: np.ndarray, frame: Frame) -> np.ndarray:
    """(rows, columns) of a slice as its picture has them."""
    index: list[slice | int] = [slice(None)] * 3
    index[AXES[frame.plane]] = frame.index
    cut = scene.turn.apply(array)[tuple(index)].T
    return cut[:, ::-1] if frame.flipped else cut


def _scaled(cut: np.ndarray, frame: Frame, how: Image.Resampling) -> Image.Image:
    """What is shown of a slice at the size of its picture."""
    return Image.fromarray(np.ascontiguousarray(cut)).resize(frame.size, how, box=frame.box)


def _nearest(cut: np.ndarray, frame: Frame) -> np.ndarray:
    """The same without interpolation, of any type."""
    left, top, right, bottom = frame.box
    width, height = frame.size
    columns = np.minimum((left + (np.arange(width) + 0.5) * (right - left) / width).astype(np.intp), cut.shape[1] - 1)
    rows = np.minimum((top + (np.arange(height) + 0.5) * (bottom - top) / height).astype(np.intp), cut.shape[0] - 1)
    shown: np.ndarray = cut[rows[:, None], columns]
    return shown


def _overlay(scene: Scene, frame: Frame, look: Look) -> tuple[np.ndarray, np.ndarray] | None:
    """Colours (rows, columns, 3) and their share of 255 (rows, columns), uint8; None where nothing lies over the slice."""
    if look.overlay == "uncertainty" and scene.uncertainty is not None:
        sure = _scaled(_cut(scene, scene.uncertainty, frame).astype(np.float32), frame, Image.Resampling.BILINEAR)
        return _heat(np.asarray(sure), look.opacity)
    if look.overlay == "difference" and scene.difference is not None:
        return _flat(_nearest(_cut(scene, scene.difference, frame), frame), DIFFERENCE_COLOURS, look)
    if look.overlay == "labels" and scene.labels is not None:
        return _flat(_nearest(_cut(scene, scene.labels, frame), frame), scene.colours, look)
    return None


def _flat(labels: np.ndarray, colours: Mapping[int, tuple[int, int, int]], look: Look) -> tuple[np.ndarray, np.ndarray] | None:
    """Each label in its colour."""
    most = int(labels.max(initial=0))
    if most == 0:
        return None
    table, share = np.full((most + 1, 3), 255, np.uint8), np.full(most + 1, round(255 * look.opacity), np.uint8)
    for value, colour in colours.items():
        if value <= most:
            table[value] = colour
    share[[0, *(value for value in look.hidden if 0 < value <= most)]] = 0
    if look.overlay == "difference":
        share[AGREED] = share[AGREED] // 2
    shares = share[labels]
    if look.outlines:
        seen = np.where(shares > 0, labels, 0)
        shares[_borders(seen) & (seen > 0)] = 255
    return table[labels], shares


def _borders(labels: np.ndarray) -> np.ndarray:
    """Pixels beside a pixel of another label."""
    found = np.zeros(labels.shape, bool)
    level, upright = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    found[1:] |= level
    found[:-1] |= level
    found[:, 1:] |= upright
    found[:, :-1] |= upright
    return found


def _heat(values: np.ndarray, opacity: float) -> tuple[np.ndarray, np.ndarray]:
    """Uncertainty from violet over orange to yellow; what is nearly sure is left as it is."""
    code = np.clip(values * 255, 0, 255).astype(np.uint8)
    share = np.clip((np.arange(256) / 255 - _FAINT) / 0.2, 0, 1) * min(1.0, 2 * opacity) * 255
    return heat_table()[code], share.astype(np.uint8)[code]


def heat_table() -> np.ndarray:
    """(256, 3) uint8 colours of uncertainty from 0 to 1, as the report draws them."""
    import matplotlib

    return (matplotlib.colormaps["plasma"](np.arange(256))[:, :3] * 255).round().astype(np.uint8)
