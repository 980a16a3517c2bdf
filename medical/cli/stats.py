"""The command `medical stats`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from medical.results.statistics import StructureFigures
    from medical.volumes.volume import Volume


def stats(
    mask: Annotated[Path, typer.Argument(help="A label map, NIfTI.")],
    scan: Annotated[Path | None, typer.Argument(help="The scan it was drawn on, NIfTI or DICOM; adds intensities.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for CSV, JSON, preview and report.")] = None,
    volume: Annotated[int | None, typer.Option(min=0, help="Which volume of a 4-D scan, from 0.")] = None,
    series: Annotated[str | None, typer.Option(help="Which series of a DICOM folder.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace outputs that are there.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON in place of the table.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")] = False,
) -> None:
    """Volume, place and intensity of the structures in any label map.

    Research use, not a medical device.
    """
    from medical.results.statistics import check_same_grid, structure_statistics, to_json
    from medical.volumes.label_maps import read_label_map

    targets = _targets(mask, output, overwrite) if output is not None else ()
    _check_mask(mask)
    found = read_label_map(mask)
    labels, grid = found.labels, found.grid
    read = _read_scan(scan, volume, series) if scan is not None else None
    if read is not None:
        check_same_grid(grid, read.grid)
    values = read.values[0] if read is not None else None
    figures = structure_statistics(labels, grid, values, found.structures)
    inputs = _hashed([mask, scan])
    notes = tuple(dict.fromkeys((*found.warnings, *(read.warnings if read is not None else ()))))
    if targets:
        from hybrid.console import folder_of
        from hybrid.records import write_bytes
        from medical.results.preview import preview_png
        from medical.results.report import RunFacts, ScanFacts, write_report
        from medical.results.statistics import write_statistics
        from medical.volumes.staging import staged

        title = _title(mask)
        picture = preview_png(values, labels, grid, found.structures, figures=figures, title=title)
        facts = RunFacts(settings=_settings(mask, scan, inputs))
        facts_of_scan = ScanFacts(title, grid, warnings=notes)
        with folder_of(targets[0]), staged(targets, overwrite=overwrite) as folder:
            write_statistics(folder / targets[0].name, figures, inputs=inputs, notes=notes)
            write_bytes(folder / targets[2].name, picture)
            write_report(folder / targets[3].name, scan=facts_of_scan, figures=figures, preview=picture, facts=facts)
    if json:
        typer.echo(to_json(figures, inputs=inputs, notes=notes), nl=False)
    elif not quiet:
        _show(figures, targets)
        for note in notes:
            typer.echo(f"note: {note}", err=True)


def _targets(mask: Path, output: Path, overwrite: bool) -> tuple[Path, ...]:
    """CSV, JSON, preview and report, named after the mask; checked before anything is read."""
    from hybrid.errors import OutputError

    if output.exists() and not output.is_dir():
        raise OutputError(f"{output} is a file, and four files are written.", hint="Name a folder with -o.")
    endings = ("statistics.csv", "statistics.json", "preview.png", "report.html")
    targets = tuple(output / f"{_title(mask)}_{ending}" for ending in endings)
    for path in targets:
        if path.exists() and not overwrite:
            raise OutputError(f"{path} is there already.", hint="Pass --overwrite or choose another --output.")
    return targets


def _check_mask(path: Path) -> None:
    from hybrid.errors import InputError
    from medical.volumes.volume import is_nifti

    if path.exists() and not is_nifti(path):
        raise InputError(
            f"{path} is no NIfTI file, and masks are read from those alone.",
            hint="Convert a DICOM SEG to .nii.gz, in 3D Slicer or with highdicom.",
        )


def _read_scan(path: Path, volume: int | None, series: str | None) -> Volume:
    from hybrid.errors import RequestError
    from medical.volumes.volume import is_nifti, read_volume

    if is_nifti(path):
        if series is not None:
            raise RequestError(f"{path.name} is no DICOM and has no series.", hint="Leave --series out.")
        return read_volume(path, volume=volume)
    from medical.dicom.volume import read_dicom

    if volume is not None:
        raise RequestError(f"--volume is for 4-D NIfTI, and {path.name} is none.", hint="Choose with --series.")
    return read_dicom(path, series=series)


def _hashed(paths: Sequence[Path | None]) -> list[tuple[str, str]]:
    """File names and SHA-256; a folder of slices has none of its own."""
    from hybrid.records import sha256_file

    return [(path.name, sha256_file(path)) for path in paths if path is not None and path.is_file()]


def _settings(mask: Path, scan: Path | None, inputs: Sequence[tuple[str, str]]) -> dict[str, object]:
    facts: dict[str, object] = {"Mask": mask.name, "Scan": scan.name if scan is not None else "none: no intensities"}
    return facts | {"SHA-256": ", ".join(f"{name} {digest}" for name, digest in inputs)}


def _title(mask: Path) -> str:
    from medical.volumes.volume import stem

    return stem(mask)


def _show(figures: Sequence[StructureFigures], targets: Sequence[Path]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from medical.notice import RESEARCH_USE
    from medical.results.statistics import COORDINATES, ml_text

    table = Table(caption=f"{RESEARCH_USE}. Centroid: {COORDINATES}.", caption_justify="left")
    for name in ("value", "structure", "ml", "voxels", "mean", "SD", "median", "centroid", "pieces", "look at"):
        table.add_column(name, justify="left" if name in ("structure", "look at") else "right", overflow="fold")
    for row in figures:
        measured = ["" if value is None else f"{value:.4g}" for value in (row.mean, row.sd, row.median)]
        place = " ".join(f"{value:.1f}" for value in row.centroid or ())
        size = [ml_text(row.ml) if row.voxels else "", str(row.voxels)]
        remarks = ", ".join(row.flags).replace("touches border", f"touches border ({', '.join(row.border)})")
        table.add_row(str(row.value), escape(row.name), *size, *measured, place, str(row.components), remarks)
    Console(width=None if Console().is_terminal else 160).print(table)
    if not any(row.voxels for row in figures):
        typer.echo("nothing found: the label map is empty", err=True)
    for path in targets:
        typer.echo(str(path))
