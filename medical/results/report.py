"""The report of a segmentation: one HTML file with picture, figures and origin, that needs nothing beside it.

It holds no script and asks for nothing from outside, and every text in it is escaped.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import scipy

from hybrid.errors import InputError
from hybrid.records import timestamp, versions, without_folders, write_bytes
from medical.notice import RESEARCH_USE
from medical.protocol import Protocol
from medical.results.statistics import COORDINATES, StructureFigures, ml_text, share_text
from medical.volumes.geometry import Grid
from medical.volumes.volume import Volume

Facts = Mapping[str, object]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --line: #c8c8c8; --soft: #f2f2f2; --alarm: #a00000; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #161616; --line: #484848; --soft: #242424; --alarm: #ff9a8a; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 84rem; padding: 1rem 1.5rem 3rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
.notice { border: 2px solid var(--alarm); color: var(--alarm); padding: .4rem .8rem; font-weight: 700; }
h1 { font-size: 1.5rem; margin: 1rem 0 .2rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 1.8rem 0 .5rem; border-bottom: 1px solid var(--line); }
img { display: block; width: 100%; height: auto; background: #ffffff; border: 1px solid var(--line); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .85em; }
caption { caption-side: bottom; text-align: left; padding-top: .4rem; font-size: .95em; }
th, td { padding: .25rem .5rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; }
th:first-child, td:first-child { text-align: left; white-space: normal; overflow-wrap: anywhere; }
thead th { background: var(--soft); vertical-align: bottom; }
tbody th { font-weight: 600; min-width: 16rem; padding-left: 1.9em; text-indent: -1.3em; }
.remark td:first-child { border-bottom: 1px solid var(--line); padding: 0 .5rem .25rem 1.9em; color: var(--alarm); }
.noted > * { border-bottom: 0; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .5em; border: 1px solid #555555;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
dl { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .15rem 1.2rem; margin: 0; font-size: .93em; }
dt { font-weight: 600; }
dd { margin: 0; overflow-wrap: anywhere; }
ul { margin: .3rem 0; padding-left: 1.2rem; }
@media print {
  :root { --ink: #000000; --paper: #ffffff; --line: #999999; --soft: #eeeeee; --alarm: #a00000; }
  @page { size: A4 landscape; margin: 12mm; }
  body { max-width: none; padding: 0; font-size: 10px; }
  th, td { padding: .15rem .4rem; }
  .wide { overflow: visible; }
  img { width: auto; max-width: 100%; max-height: 145mm; }
  h2, tr, img, .notice { break-inside: avoid; }
  h2, .noted { break-after: avoid; }
}
"""
# Even a name that slipped through unescaped could load or run nothing.
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_ABSENT = 5  # structures that were not found have rows, if no more than this, and else one line
_HEADER = (
    "structure", "volume (ml)", "voxels", "mean", "SD", "median", "centroid x, y, z (mm)", "extent x, y, z (mm)", "pieces",
    "largest piece",
)  # fmt: skip


@dataclass(frozen=True)
class ScanFacts:
    """What was segmented or measured.

    Attributes:
        name: The name of the input without its endings; never a patient's.
        grid: Where its voxels lie.
        channels: How many values each voxel has.
        sha256: Hash of the file; empty where the input is no single file.
        warnings: What was odd about it.
    """

    name: str
    grid: Grid
    channels: int = 1
    sha256: str = ""
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, volume: Volume, sha256: str = "") -> ScanFacts:
        """The facts of a scan that was read."""
        return cls(volume.name, volume.grid, volume.values.shape[0], sha256, volume.warnings)


@dataclass(frozen=True)
class ModelFacts:
    """What made the label map.

    Attributes:
        name: As it was asked for, such as ``hippocampus``.
        title: Its architecture in print.
        paper: Citation.
        weights: File name of the weights.
        weights_sha256: Hash of their bytes.
        licence: Licence of the weights; "unknown" is a value.
        training_data: What they were trained on.
        protocol: What the network asks of a scan.
    """

    name: str
    title: str = ""
    paper: str = ""
    weights: str = ""
    weights_sha256: str = ""
    licence: str = "unknown"
    training_data: str = "unknown"
    protocol: Protocol | None = None


@dataclass(frozen=True)
class RunFacts:
    """How a label map or its figures came about.

    Attributes:
        model: The network; None for a mask that was there before.
        settings: What was asked for, by name; values are written as text.
        notes: What else the reader must know, such as a fallback that took place.
        started: ISO 8601 time with its zone.
        seconds: Time of the run; None is not said.
        versions: Names and versions of the software.
    """

    model: ModelFacts | None = None
    settings: Facts = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    started: str = field(default_factory=timestamp)
    seconds: float | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: versions() | {"scipy": scipy.__version__})


def write_report(
    path: Path,
    *,
    scan: ScanFacts,
    figures: Sequence[StructureFigures],
    preview: bytes | Path,
    facts: RunFacts,
    more: str = "",
) -> Path:
    """Write the report as one HTML file, whole or not at all.

    Args:
        path: The file.
        scan: What was segmented or measured.
        figures: From `medical.results.statistics.structure_statistics`.
        preview: The picture, PNG, as bytes or as a file.
        facts: How they came about.
        more: HTML of further findings, to stand behind the figures; its texts are escaped.

    Raises:
        InputError: The picture is no PNG.
        OutputError: The folder does not take the file.
    """
    picture = preview if isinstance(preview, bytes) else preview.read_bytes()
    if not picture.startswith(b"\x89PNG\r\n\x1a\n"):
        raise InputError("The picture for the report is no PNG file.", hint="Give what medical.results.preview wrote.")
    write_bytes(path, to_html(scan, figures, picture, facts, more).encode())
    return path


def to_html(scan: ScanFacts, figures: Sequence[StructureFigures], picture: bytes, facts: RunFacts, more: str = "") -> str:
    """The report's text; `picture` is PNG."""
    found = sum(each.voxels > 0 for each in figures)
    summary = f"{found} of {len(figures)} structures found" if found else "Nothing found: the label map is empty"
    source = base64.b64encode(picture).decode()
    parts = [
        f'<p class="notice">{escape(RESEARCH_USE)}</p>',
        f"<h1>{escape(scan.name)}</h1>",
        f"<p>{escape(summary)}. {escape(facts.started)}</p>",
        f'<img alt="Slices of the scan with the outlines of the structures" src="data:image/png;base64,{source}">',
        f"<h2>Structures</h2>{_figures_table(figures)}",
        more,
        _section("Scan", scan_facts(scan)),
        _warnings("Warnings about the scan", scan.warnings),
        _section("Model", model_facts(facts.model)) if facts.model else "",
        _section("Settings", facts.settings) if facts.settings else "",
        _warnings("Notes", facts.notes),
        _section("Run", _run_facts(facts)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(scan.name)}: segmentation report</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body>\n</html>\n"
    )


def scan_facts(scan: ScanFacts) -> dict[str, str]:
    """Shape, spacing and orientation in words."""
    grid = scan.grid
    facts = {
        "Name": scan.name,
        "Shape": f"{_times(grid.shape)} voxels" + (f", {scan.channels} channels" if scan.channels > 1 else ""),
        "Spacing": f"{_times(grid.spacing)} mm, {grid.voxel_ml * 1000:.4g} mm³ a voxel",
        "Orientation": f"{grid.codes}, the nearest direction of each axis" + ("" if grid.orthogonal else "; not at right angles"),
        "First voxel": f"{_place(grid.affine[:3, 3])} mm",
    }
    return facts | ({"SHA-256": scan.sha256} if scan.sha256 else {})


def model_facts(model: ModelFacts) -> dict[str, str]:
    """Name, origin and protocol of a model in words; what is not known is left out, the licence and the data never."""
    facts = {
        "Name": model.name,
        "Network": model.title,
        "Paper": model.paper,
        "Weights": model.weights,
        "SHA-256 of the weights": model.weights_sha256,
    }
    facts = {name: text for name, text in facts.items() if text}
    facts |= {"Licence of the weights": model.licence, "Trained on": model.training_data}
    if (protocol := model.protocol) is None:
        return facts
    return facts | {
        "Takes": f"{protocol.modality}: {', '.join(protocol.channels)}",
        "Works at": f"{_times(protocol.spacing)} mm" if protocol.spacing else "the spacing of the scan",
        "Orientation": protocol.orientation,
        "Intensity": protocol.intensity.words,
        "Window": f"{_times(protocol.patch)} voxels, overlap {protocol.overlap:g}",
    }


def _run_facts(facts: RunFacts) -> dict[str, str]:
    run = {"Started": facts.started}
    if facts.seconds is not None:
        run["Time"] = f"{facts.seconds:.1f} s"
    return run | dict(facts.versions)


def _figures_table(figures: Sequence[StructureFigures]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in _HEADER)
    absent = [each.name for each in figures if not each.voxels]
    apart = len(absent) > _ABSENT
    body = "".join(_figures_row(each) for each in figures if each.voxels or not apart)
    words = f"Coordinates: {COORDINATES}. The extent reaches to the outer edges of the outermost voxels. "
    words += "Mean, SD and median are of the scan's values. Voxels of one piece share at least a corner."
    table = f"<caption>{escape(words)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    rest = f"Not found, no voxel bears their value ({len(absent)}): {', '.join(absent)}."
    return f'<div class="wide"><table>{table}</table></div>' + (f"<p>{escape(rest)}</p>" if apart else "")


def _figures_row(row: StructureFigures) -> str:
    """A row, and below it what to look at; a structure that was not found has dashes and no numbers."""
    cells = [
        ml_text(row.ml) if row.voxels else "-",
        f"{row.voxels:,}",
        *(_number(value) for value in (row.mean, row.sd, row.median)),
        _place(row.centroid) if row.centroid else "-",
        _span(row),
        str(row.components) if row.voxels else "-",
        share_text(row.largest_share) or "-",
    ]
    swatch = f'<span class="swatch" style="background: rgb{row.rgb}"></span>'
    noted = ' class="noted"' if row.remarks else ""
    text = f'<tr{noted}><th scope="row">{swatch}{escape(row.name)}</th>'
    text += "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    if row.remarks:
        text += f'<tr class="remark"><td colspan="{len(_HEADER)}">{escape(" ".join(row.remarks))}</td></tr>'
    return text


def _section(title: str, facts: Facts) -> str:
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(without_folders(str(value)))}</dd>" for name, value in facts.items())
    return f"<h2>{escape(title)}</h2><dl>{pairs}</dl>"


def _warnings(title: str, lines: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(without_folders(line))}</li>" for line in lines)
    return f"<h2>{escape(title)}</h2><ul>{items}</ul>" if lines else ""


def _span(row: StructureFigures) -> str:
    if row.box is None:
        return "-"
    return ", ".join(f"{low:.1f} to {high:.1f}" for low, high in zip(row.box.low, row.box.high, strict=True))


def _place(point: Iterable[float]) -> str:
    return ", ".join(f"{value:.1f}" for value in point)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10000 else f"{value:.4g}"


def _times(lengths: Iterable[float]) -> str:
    return " x ".join(f"{length:.4g}" if isinstance(length, float) else str(length) for length in lengths)
