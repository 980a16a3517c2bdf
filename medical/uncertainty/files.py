"""The files of an uncertain segmentation, named after its label map NAME.nii.gz:

NAME_probabilities.nii.gz           mean of the members
NAME_entropy.nii.gz                 three maps on the scan's grid, from 0 to 1
NAME_mutual_information.nii.gz
NAME_disagreement.nii.gz
NAME_uncertainty.csv, NAME_uncertainty.json    figures of each structure; the JSON has members and slices too
NAME_uncertainty_slices.csv         slices that want a look
NAME_uncertainty.png                the three that want it most
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from html import escape
from pathlib import Path
from typing import Any

from hybrid.records import timestamp, versions, write_bytes
from medical.notice import RESEARCH_USE
from medical.results.statistics import ml_text
from medical.uncertainty.ensemble import UncertainSegmentation, members_words
from medical.uncertainty.figures import SliceToSee, StructureUncertainty, UncertaintyFigures
from medical.volumes.label_maps import write_probabilities
from medical.volumes.volume import Volume

MAPS = ("_entropy.nii.gz", "_mutual_information.nii.gz", "_disagreement.nii.gz")
REPORTS = ("_uncertainty.csv", "_uncertainty_slices.csv", "_uncertainty.json", "_uncertainty.png")
MEANING = {
    "entropy": "of the mean of the members' probabilities, over its greatest value: 0 is sure, 1 is every class as likely. Of "
    "networks for overlapping regions it is the mean over the regions.",
    "mutual_information": "the part of the entropy that comes of members contradicting each other: entropy of the mean less mean "
    "of the members' entropies, on the same scale.",
    "disagreement": "share of the members whose label is another than that of their mean.",
    "border": "voxels of a structure that share a face with another label, and these others.",
    "dice": "of each pair of members with each other, not with the truth, before any tidying of the label map; volumes likewise. "
    "Their spread is less than the error.",
    "area": "entropy, or disagreement, summed over a slice times the area of a pixel, in mm2; usual: its mean over the slices of "
    "that axis; excess: what it is above that, over the mean of all entropy in them.",
}
CAUTION = "Members that err alike are sure and wrong: a low entropy is no proof that the label map is right."


def write_maps(folder: Path, name: str, result: UncertainSegmentation, volume: Volume) -> None:
    """Write the three maps; each is read back and compared, voxels and place.

    Raises:
        OutputError: The folder does not take a file, or it was read back otherwise than written.
    """
    for ending, values in zip(MAPS, (result.entropy, result.mutual_information, result.disagreement), strict=True):
        write_probabilities(folder / f"{name}{ending}", values, volume)


def write_figures(
    folder: Path, name: str, result: UncertainSegmentation, volume: Volume, figures: UncertaintyFigures,
    inputs: Sequence[tuple[str, str]],
) -> str:  # fmt: skip
    """Write the tables and the picture, and return the section of the report that shows them, HTML.

    Raises:
        OutputError: The folder does not take a file.
    """
    from medical.uncertainty.overlay import overlay_png

    picture = overlay_png(volume.values[0], result, volume.grid, figures.slices, title=volume.name)
    write_bytes(folder / f"{name}_uncertainty.csv", to_csv(StructureUncertainty, figures.structures).encode())
    write_bytes(folder / f"{name}_uncertainty_slices.csv", to_csv(SliceToSee, figures.slices).encode())
    write_bytes(folder / f"{name}_uncertainty.json", to_json(result, figures, inputs).encode())
    write_bytes(folder / f"{name}_uncertainty.png", picture)
    return to_html(result, figures, picture)


def to_csv(kind: type[StructureUncertainty] | type[SliceToSee], rows: Sequence[StructureUncertainty | SliceToSee]) -> str:
    """One line for each; what is undefined is an empty cell. Slices count from 0."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*(field.name for field in fields(kind)), "note"])
    for row in rows:
        writer.writerow(["" if value is None else value for value in asdict(row).values()] + [RESEARCH_USE])
    return text.getvalue()


def to_json(result: UncertainSegmentation, figures: UncertaintyFigures, inputs: Sequence[tuple[str, str]]) -> str:
    """All figures, with members, meaning and origin."""
    facts: dict[str, Any] = {
        "note": RESEARCH_USE,
        "caution": CAUTION,
        "inputs": [{"file": name, "sha256": digest} for name, digest in inputs],
        "members": [member.to_dict() for member in result.members],
        "meaning": MEANING,
        "structures": [asdict(row) for row in figures.structures],
        "slices": [asdict(row) for row in figures.slices],
        "finished": timestamp(),
        "versions": versions(),
    }
    return json.dumps(facts, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def to_html(result: UncertainSegmentation, figures: UncertaintyFigures, picture: bytes) -> str:
    """Picture and tables; `picture` is PNG."""
    source = base64.b64encode(picture).decode()
    head = (
        "structure", "entropy inside", "at the border", "mutual information inside", "at the border",
        "Dice between members, mean", "least", "volume by members (ml), mean", "least", "most", "variation",
    )  # fmt: skip
    rows = [
        (
            row.name,
            *(_number(value) for value in (row.entropy_inside, row.entropy_border)),
            *(_number(value) for value in (row.information_inside, row.information_border)),
            *(_number(value) for value in (row.dice_mean, row.dice_least)),
            *(ml_text(value) for value in (row.ml_mean, row.ml_least, row.ml_most)),
            "-" if row.ml_variation is None else f"{100 * row.ml_variation:.1f} %",
        )
        for row in figures.structures
    ]
    seen = [
        (
            f"{each.rank}. {each.plane}, {each.axis} = {each.index}", f"{each.place:.1f}", each.reason, f"{each.area:.3g}",
            f"{each.usual:.3g}",
        )
        for each in figures.slices
    ]  # fmt: skip
    listed = _table(("slice, voxels from 0", "place (mm)", "reason", "area (mm²)", "usual"), seen, "area")
    return (
        "<h2>Uncertainty</h2>"
        f"<p>{escape(f'Members: {members_words(result.members)}. {CAUTION}')}</p>"
        f'<img alt="The slices that are most unsure, with their entropy in colour" src="data:image/png;base64,{source}">'
        + _table(head, rows, "entropy", "mutual_information", "border", "dice")
        + (f"<h2>Slices that want a look</h2>{listed}" if seen else "<p>No slice is more unsure than the others.</p>")
    )


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *meanings: str) -> str:
    words = " ".join(f"{name.replace('_', ' ').capitalize()}: {MEANING[name]}" for name in meanings)
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    table = f"<caption>{escape(words)}</caption><thead><tr>{header}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{table}</table></div>'


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
