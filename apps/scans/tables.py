"""What is known of a scan and its segmentation, as HTML for the page; every text in it is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from apps.scans.compare import Agreement
from apps.scans.reading import Scan, modality_words
from apps.scans.view import obliquity
from apps.serving.words import said
from medical.results.report import ScanFacts, scan_facts
from medical.results.statistics import StructureFigures, ml_text, share_text
from medical.uncertainty.figures import UncertaintyFigures

_SWATCH = "display: inline-block; width: .8em; height: .8em; margin-right: .5em; border: 1px solid #555"
_CAPTION = "caption-side: bottom; text-align: left"
_LINK = "all: unset; cursor: pointer; text-decoration: underline"
OBLIQUE = 1.0
"""Degrees from which on a scan is called oblique."""
_WORDS = {
    ".nii.gz": "Label map, NIfTI",
    ".nii": "Label map, NIfTI",
    ".labels.json": "Names of its structures, JSON",
    ".dcm": "Label map, DICOM SEG",
    "_probabilities.nii.gz": "Probability of each class, NIfTI",
    "_entropy.nii.gz": "Uncertainty (entropy), NIfTI",
    "_mutual_information.nii.gz": "What members contradict each other in, NIfTI",
    "_disagreement.nii.gz": "Share of members outvoted, NIfTI",
    "_statistics.csv": "Volumes and intensities, CSV",
    "_statistics.json": "Volumes and intensities, JSON",
    "_uncertainty.csv": "Uncertainty of each structure, CSV",
    "_uncertainty_slices.csv": "Slices that want a look, CSV",
    "_uncertainty.json": "All figures of uncertainty, JSON",
    "_uncertainty.png": "Picture of the slices that want a look, PNG",
    "_preview.png": "Preview, PNG",
    "_report.html": "Report, HTML",
    ".nii.gz.json": "Record of the run, JSON",
}


def scan_html(scan: Scan) -> str:
    """What was read."""
    grid = scan.volume.grid
    facts = {"Modality": modality_words(scan)} | scan_facts(ScanFacts.of(scan.volume))
    if (angle := obliquity(grid)) >= OBLIQUE:
        facts["Orientation"] += f"; oblique: its axes are up to {angle:.1f} degrees off the patient's"
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts.items())
    return f'<dl class="facts">{rows}</dl>{_listed(scan.volume.warnings)}'


def figures_html(figures: Sequence[StructureFigures], *, corrected: bool = False) -> str:
    """Volume and intensity of each structure, with what to look at."""
    if not figures:
        return ""
    body = "".join(_figures_row(row) for row in figures)
    head = ("structure", "volume (ml)", "voxels", "mean ± SD", "pieces", "look at")
    words = "Volumes of the label map " + ("as corrected by hand." if corrected else "of the network.")
    return _table(head, body, words + " Mean and SD are of the scan's values. Research use, not a medical device.")


def uncertainty_html(figures: UncertaintyFigures | None) -> str:
    """How sure the members are of each structure, and the slices that want a look; each of these leads there."""
    if figures is None:
        return said("Tick Uncertainty and segment again to see where the network is unsure.")
    rows = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>'
        + _cells(row.dice_mean, row.dice_least, row.entropy_inside, row.entropy_border, form=".3f")
        + f"<td>{ml_text(row.ml_least)} to {ml_text(row.ml_most)}</td></tr>"
        for row in figures.structures
    )
    head = ("structure", "Dice of members, mean", "least", "entropy inside", "at its border", "volume (ml)")
    first = _table(head, rows, "Of mirror images of the scan. Members that err alike are sure and wrong.")
    if not figures.slices:
        return first + said("No slice stands out from the others.")
    looks = "".join(
        f'<tr><th scope="row"><button type="button" class="scan-goto" style="{_LINK}" '
        f'data-axis="{each.axis}" data-index="{each.index}">'
        f"{each.rank}. {escape(each.plane)}, {each.place:.1f} mm</button></th>"
        f"<td>{escape(each.reason)}</td><td>{each.area:.1f}</td></tr>"
        for each in figures.slices
    )
    return first + _table(("slice that wants a look", "why", "area (mm²)"), looks, "Press one to see it in the viewer.")


def agreement_html(rows: Sequence[Agreement], name: str = "") -> str:
    """Scores against a mask."""
    body = "".join(
        f'<tr><th scope="row">{escape(row.name)}</th>{_cells(row.dice, form=".3f")}{_cells(row.hd95, form=".2f")}'
        f"<td>{ml_text(row.ours_ml)}</td><td>{ml_text(row.theirs_ml)}</td></tr>"
        for row in rows
    )
    head = ("structure", "Dice", "HD95 (mm)", "volume here (ml)", "in the mask (ml)")
    return _table(head, body, f"Against {name}. In the viewer: Overlay, Difference.") if rows else ""


def titled(files: Iterable[Path], name: str) -> list[tuple[str, str]]:
    """Paths with what people call them, for links; all are named after the label map `name`.

    >>> titled([Path("a_seg_report.html")], "a_seg")
    [('a_seg_report.html', 'Report, HTML')]
    """
    return [(str(path), _WORDS.get(path.name.removeprefix(name), path.name)) for path in files]


def _figures_row(row: StructureFigures) -> str:
    measured = "-" if row.mean is None else f"{_number(row.mean)} ± {_number(row.sd or 0.0)}"
    pieces = f"{row.components}" + (f" (largest {share_text(row.largest_share)})" if row.components > 1 else "")
    cells = (ml_text(row.ml) if row.voxels else "-", f"{row.voxels:,}", measured, pieces if row.voxels else "-")
    swatch = f'<span style="{_SWATCH}; background: rgb{row.rgb}"></span>'
    text = "".join(f'<td class="number">{escape(cell)}</td>' for cell in cells)
    flags = f"<td>{escape(' '.join(row.remarks))}</td>"
    return f'<tr><th scope="row">{swatch}{escape(row.name)}</th>{text}{flags}</tr>'


def _table(head: Sequence[str], body: str, caption: str) -> str:
    cells = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    return (
        f'<div class="scroll"><table class="plain"><caption class="quiet" style="{_CAPTION}">{escape(caption)}</caption>'
        f"<thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cells(*values: float | None, form: str) -> str:
    return "".join(f'<td class="number">{"-" if value is None else format(value, form)}</td>' for value in values)


def _listed(lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f'<ul class="quiet">{items}</ul>' if lines else ""


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
