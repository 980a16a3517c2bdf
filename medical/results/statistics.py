"""Figures of the structures in a label map: size, place, intensity, and what a reader should be warned of.

Axes: label maps and scans are (i, j, k) in the order of their file; places in the patient are RAS+ millimetres (x to the
patient's right, y to the front, z to the head).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from hybrid.errors import InputError
from hybrid.records import timestamp, versions, write_bytes
from medical.notice import RESEARCH_USE
from medical.structures import PALETTE, Structure
from medical.volumes.geometry import Grid

COORDINATES = "RAS+ mm: x to the patient's right, y to the front, z to the head"

FACES = {"R": "right", "L": "left", "A": "anterior", "P": "posterior", "S": "superior", "I": "inferior"}
STRAY_SHARE, STRAY_ML = 0.01, 1.0
"""A structure counts as fragmented where more than this lies off its largest piece: a share of its voxels, or so much
volume. A voxel or two astray are no reason to look again; a millilitre of liver somewhere else is, though it is 0.1 %."""
_OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))
_NEIGHBOURS = np.ones((3, 3, 3), dtype=bool)  # voxels that share a corner hang together
_BLOCK = 1 << 22  # voxels that are taken at once, so that temporary arrays stay small
_CODES = 1 << 16  # find_objects makes a list as long as the largest value

Index = tuple[int, int, int]
Point = tuple[float, float, float]


@dataclass(frozen=True)
class Box:
    """Where a structure lies.

    Attributes:
        first, last: Its outermost voxels along (i, j, k), both part of it.
        low, high: The smallest box along the patient's axes, RAS+ mm, that holds those voxels to their outer edges.
    """

    first: Index
    last: Index
    low: Point
    high: Point


@dataclass(frozen=True)
class StructureFigures:
    """What was measured of one structure.

    Attributes:
        value: Its number in the label map.
        name: Its name; ``label 7`` for a value that the label map does not name.
        named: Whether the label map names it.
        rgb: Colour that it is drawn in, sRGB.
        voxels: How many voxels bear its value.
        ml: Their volume in millilitres.
        mean, sd, median: Of the scan's values in it (population standard deviation); None without a scan or a voxel.
        unmeasured: Voxels left out of those three because the scan has no finite value there.
        box: Its bounding box; None if it is empty.
        centroid: Mean place of its voxels in the patient, RAS+ mm; None if it is empty.
        components: Pieces that do not even share a corner.
        largest_share: Share of its voxels that the largest piece holds, (0, 1]; None if it is empty.
        border: Faces of the scan that it reaches, such as ("left", "inferior"): the closest anatomical directions.
    """

    value: int
    name: str
    named: bool
    rgb: tuple[int, int, int]
    voxels: int = 0
    ml: float = 0.0
    mean: float | None = None
    sd: float | None = None
    median: float | None = None
    unmeasured: int = 0
    box: Box | None = None
    centroid: Point | None = None
    components: int = 0
    largest_share: float | None = None
    border: tuple[str, ...] = ()

    @property
    def amount(self) -> str:
        """How much of it there is, for people."""
        return f"{ml_text(self.ml)} ml" if self.voxels else "not found"

    @property
    def flags(self) -> tuple[str, ...]:
        """What to look at: ``empty``, ``touches border``, ``fragmented``, ``unnamed``, ``unmeasured voxels``.

        Fragmented is what has more than `STRAY_SHARE` or `STRAY_ML` off its largest piece.
        """
        return tuple(flag for flag, _ in self._remarks())

    @property
    def remarks(self) -> tuple[str, ...]:
        """The flags in words, one sentence each."""
        return tuple(words for _, words in self._remarks())

    @property
    def _fragmented(self) -> bool:
        stray = 1 - (1.0 if self.largest_share is None else self.largest_share)
        return stray > STRAY_SHARE or stray * self.ml > STRAY_ML

    def _remarks(self) -> Iterator[tuple[str, str]]:
        if self.voxels == 0:
            yield "empty", "Not found: no voxel bears its value."
        if self.border:
            yield "touches border", f"Reaches the {_listed(self.border)} border of the scan: the figures are of the part inside."
        if self._fragmented:
            yield "fragmented", f"In {self.components} pieces; the largest holds {share_text(self.largest_share)} of its voxels."
        if not self.named:
            yield "unnamed", f"The label map does not say what value {self.value} is."
        if self.unmeasured:
            yield "unmeasured voxels", f"{self.unmeasured} voxels without a finite intensity are left out of mean, SD and median."

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is undefined is None."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)} | {"rgb": list(self.rgb), "border": list(self.border)}
        plain["centroid"] = None if self.centroid is None else list(self.centroid)
        plain["box"] = None if self.box is None else {f.name: list(getattr(self.box, f.name)) for f in fields(self.box)}
        return plain | {"flags": list(self.flags)}


def structure_statistics(
    labels: np.ndarray, grid: Grid, values: np.ndarray | None, structures: Sequence[Structure]
) -> list[StructureFigures]:
    """Measure every structure, and every value other than 0 that no structure names.

    A structure at the border has the figures of what is inside, and says so. Besides the inputs, memory for the crop of
    one structure is taken at a time (about 12 bytes for each of its voxels and 5 for each of the crop's).

    Args:
        labels: (i, j, k) whole numbers; 0 is the background.
        grid: Where they lie.
        values: (i, j, k) scan on the same grid, in its own unit; None measures size and place alone.
        structures: What the numbers mean.

    Returns:
        The structures in their order, then the unnamed values in rising order.

    Raises:
        InputError: Labels are not whole numbers, or the shapes differ from the grid's.

    >>> labels = np.zeros((4, 4, 4), np.uint8)
    >>> labels[1:3, 1:3, 1:3] = 1
    >>> (row,) = structure_statistics(labels, Grid((4, 4, 4), np.diag([2, 2, 2, 1.0])), None, [Structure(value=1, name="a")])
    >>> row.voxels, ml_text(row.ml), row.centroid, row.flags
    (8, '0.0640', (3.0, 3.0, 3.0), ())
    """
    _check(labels, grid, values)
    labels = labels.view(np.uint8) if labels.dtype.kind == "b" else labels
    codes, code_of = _coded(labels)
    boxes = ndimage.find_objects(codes)
    named = [(structure.value, structure.name, True, structure.rgb) for structure in structures]
    known = {structure.value for structure in structures}
    rest = [(value, f"label {value}", False, PALETTE[(value - 1) % len(PALETTE)]) for value in code_of if value not in known]
    rows = []
    for value, name, is_named, rgb in named + rest:
        found: dict[str, Any] = {}
        if (code := code_of.get(value)) is not None:
            box = boxes[code - 1]
            mask = codes[box] == code
            found = _shape_figures(mask, box, grid) | _intensity_figures(mask, values[box] if values is not None else None)
        rows.append(StructureFigures(value, name, is_named, rgb, **found))
    return rows


def check_same_grid(mask: Grid, scan: Grid) -> None:
    """Refuse a mask that does not lie on the scan's voxels, saying how the two differ.

    Raises:
        InputError: Shape, spacing, direction or place differ.
    """
    if mask.matches(scan):
        return
    differences = []
    if mask.shape != scan.shape:
        differences.append(f"shape {_numbers(mask.shape)} against {_numbers(scan.shape)}")
    if not np.allclose(mask.spacing, scan.spacing, rtol=0, atol=1e-4):
        differences.append(f"spacing {_numbers(mask.spacing)} against {_numbers(scan.spacing)} mm")
    directions = [grid.affine[:3, :3] / np.array(grid.spacing) for grid in (mask, scan)]
    angle = float(np.degrees(np.arccos(np.clip((directions[0] * directions[1]).sum(0), -1, 1).min())))
    if mask.codes != scan.codes:
        differences.append(f"axes stored as {mask.codes} against {scan.codes}")
    elif angle > 0.01:
        differences.append(f"axes turned by {angle:.2f} degrees")
    corner = float(np.linalg.norm(mask.affine[:3, 3] - scan.affine[:3, 3]))
    if corner > 1e-3:
        differences.append(f"first voxels {corner:.4g} mm apart")
    raise InputError(
        f"The mask lies on another grid than the scan: {'; '.join(differences) or 'voxels more than 0.001 mm apart'}.",
        hint="Give the scan that the mask was drawn on, bring the mask onto the scan's grid "
        "(medical.volumes.geometry.resample_labels), or leave the scan out for sizes and places alone.",
    )


def write_statistics(
    path: Path, figures: Sequence[StructureFigures], *, inputs: Sequence[tuple[str, str]] = (), notes: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write the figures as CSV and as JSON, each whole or not at all.

    Args:
        path: A folder, which takes ``statistics.csv`` and ``statistics.json``; or a name that ends in .csv or .json, and
            the other file is named alike.
        figures: From `structure_statistics`.
        inputs: File names and SHA-256 of what was measured, for the JSON.
        notes: What a reader should be told of them, likewise.

    Returns:
        The paths of the CSV and the JSON.

    Raises:
        OutputError: The folder does not take the files.
    """
    if path.is_dir() or path.suffix.lower() not in (".csv", ".json"):
        path = path / "statistics.csv"
    files = path.with_suffix(".csv"), path.with_suffix(".json")
    write_bytes(files[0], to_csv(figures).encode())
    write_bytes(files[1], to_json(figures, inputs=inputs, notes=notes).encode())
    return files


def to_json(figures: Sequence[StructureFigures], *, inputs: Sequence[tuple[str, str]] = (), notes: Sequence[str] = ()) -> str:
    """The figures with units and origin; undefined ones are null."""
    facts = {
        "note": RESEARCH_USE,
        "coordinates": COORDINATES,
        "inputs": [{"file": name, "sha256": digest} for name, digest in inputs],
        "notes": list(notes),
        "finished": timestamp(),
        "versions": versions(),
        "structures": [row.to_dict() for row in figures],
    }
    return json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_csv(figures: Sequence[StructureFigures]) -> str:
    """One line for each structure; undefined figures are empty cells. Voxels count from 0, lengths are mm."""
    header = ["value", "name", "voxels", "ml", "mean", "sd", "median"]
    header += [f"{name}_{axis}" for name in ("first", "last") for axis in "ijk"]
    header += [f"{name}_{axis}_mm" for name in ("low", "high", "centroid") for axis in "xyz"]
    header += ["components", "largest_share", "border", "flags", "unmeasured", "note"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in figures:
        box: tuple[float | str, ...] = ("",) * 12
        if row.box is not None:
            box = (*row.box.first, *row.box.last, *row.box.low, *row.box.high)
        measured = ["" if value is None else value for value in (row.mean, row.sd, row.median)]
        share = "" if row.largest_share is None else row.largest_share
        tail = [row.components, share, " ".join(row.border), "; ".join(row.flags), row.unmeasured, RESEARCH_USE]
        writer.writerow([row.value, _cell(row.name), row.voxels, row.ml, *measured, *box, *(row.centroid or ("",) * 3), *tail])
    return text.getvalue()


def share_text(share: float | None) -> str:
    """A share in percent that says 100 % of the whole alone.

    >>> share_text(0.99996), share_text(1.0), share_text(None)
    ('99.9 %', '100 %', '')
    """
    if share is None:
        return ""
    return "100 %" if share == 1 else f"{min(share * 100, 99.9):.1f} %"


def ml_text(ml: float) -> str:
    """Millilitres to three digits or more, and no more than four places.

    >>> ml_text(1234.5), ml_text(1.6184), ml_text(0.01234), ml_text(0.0)
    ('1234', '1.62', '0.0123', '0')
    """
    if ml == 0:
        return "0"
    return f"{ml:.{min(4, max(0, 2 - int(np.floor(np.log10(ml)))))}f}"


def _check(labels: np.ndarray, grid: Grid, values: np.ndarray | None) -> None:
    if labels.dtype.kind not in "biu":
        raise InputError(f"The label map holds {labels.dtype} and no whole numbers.", hint="Round it to whole numbers first.")
    for what, array in (("label map", labels), ("scan", values)):
        if array is not None and array.shape != grid.shape:
            raise InputError(
                f"The {what} has the shape {_numbers(array.shape)}, and its grid {_numbers(grid.shape)}.",
                hint="Give one channel of the scan, on the grid of the label map.",
            )


def _coded(labels: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
    """The label map in numbers that `find_objects` takes, and the number of each value but 0: values that suit it stay."""
    present = sorted(set().union(*(_distinct(labels[block]) for block in _blocks(labels))) - {0})
    if not present or (present[0] > 0 and present[-1] < _CODES):
        return labels, {value: value for value in present}
    sought = np.array(present, dtype=labels.dtype)
    codes = np.zeros(labels.shape, dtype=np.uint32)
    for block in _blocks(labels):
        part = labels[block]
        codes[block] = np.where(part == 0, 0, np.searchsorted(sought, part) + 1)
    return codes, {value: code for code, value in enumerate(present, 1)}


def _distinct(part: np.ndarray) -> set[int]:
    low, high = int(part.min()), int(part.max())
    if high - low >= _CODES:
        return {int(value) for value in np.unique(part)}
    # Counting is many times faster than the sorting of np.unique; int64 holds the difference of any two that come here.
    return {int(value) + low for value in np.flatnonzero(np.bincount((part.astype(np.int64) - low).ravel()))}


def _blocks(array: np.ndarray) -> Iterator[tuple[slice, ...]]:
    """Slabs of about `_BLOCK` voxels along the axis whose steps in memory are longest."""
    axis = int(np.argmax(np.abs(array.strides)))
    rows = max(1, _BLOCK * array.shape[axis] // max(1, array.size))
    for start in range(0, array.shape[axis], rows):
        yield (slice(None),) * axis + (slice(start, start + rows),)


def _shape_figures(mask: np.ndarray, box: tuple[slice, ...], grid: Grid) -> dict[str, Any]:
    """Size, place and pieces of a structure from its crop."""
    first = np.array([part.start for part in box])
    last = np.array([part.stop for part in box]) - 1
    voxels = int(np.count_nonzero(mask))
    profiles = [np.count_nonzero(mask, axis=others) for others in ((1, 2), (0, 2), (0, 1))]
    middle = first + [float(profile @ np.arange(len(profile))) / voxels for profile in profiles]
    corners = np.stack(np.meshgrid(*zip(first - 0.5, last + 0.5, strict=True), indexing="ij"), -1).reshape(-1, 3)
    places = grid.to_world(corners)
    pieces, components = ndimage.label(mask, structure=_NEIGHBOURS)
    largest = int(np.bincount(pieces[mask]).max()) if components > 1 else voxels
    reached = {_OPPOSITE[code] for code, start in zip(grid.codes, first, strict=True) if start == 0}
    reached |= {code for code, end, n in zip(grid.codes, last, grid.shape, strict=True) if end == n - 1}
    return {
        "voxels": voxels,
        "ml": voxels * grid.voxel_ml,
        "box": Box(_index(first), _index(last), _point(places.min(0)), _point(places.max(0))),
        "centroid": _point(grid.to_world(middle)),
        "components": int(components),
        "largest_share": largest / voxels,
        "border": tuple(word for letter, word in FACES.items() if letter in reached),
    }


def _intensity_figures(mask: np.ndarray, values: np.ndarray | None) -> dict[str, Any]:
    if values is None:
        return {}
    inside = values[mask]
    finite = inside[np.isfinite(inside)] if inside.dtype.kind == "f" else inside
    figures: dict[str, Any] = {"unmeasured": int(inside.size - finite.size)}
    if finite.size:
        parts = [finite[start : start + _BLOCK] for start in range(0, finite.size, _BLOCK)]
        mean = sum(float(part.sum(dtype=np.float64)) for part in parts) / finite.size
        squares = sum(float(np.square(part - np.float64(mean)).sum()) for part in parts)
        figures |= {"mean": mean, "sd": float(np.sqrt(squares / finite.size)), "median": _median(finite)}
    return figures


def _median(values: np.ndarray) -> float:
    """The median in float64: two middle integers or float16 values are not added in their own type."""
    middle = (values.size - 1) // 2, values.size // 2
    low, high = np.partition(values, middle)[list(middle)]
    return (float(low) + float(high)) / 2


def _index(array: np.ndarray) -> Index:
    i, j, k = (int(value) for value in array)
    return i, j, k


def _point(array: np.ndarray) -> Point:
    x, y, z = (float(value) for value in array)
    return x, y, z


def _numbers(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.6g}" for number in numbers)


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _cell(text: str) -> str:
    """A name that a spreadsheet would take for a formula, made text."""
    return f"'{text}" if text[:1] in "=+-@\t\r" else text
