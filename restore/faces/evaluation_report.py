"""The report of a face benchmark: table, Markdown, CSV, JSON and a before-and-after sheet. Reports name files, never folders."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hybrid.records import replacing, timestamp, versions, without_folders
from restore.evaluation.files import read_8_bits, write_text
from restore.faces.evaluation import GIVEN, FaceBenchmark, FacePlan, FaceRow, FaceScore, result_path
from restore.faces.identity import INVENTED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {
    "psnr": ("PSNR", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "sharpness": ("sharpness", ".2f"),
    "landmarks": ("landmarks %", ".2f"),
    "structure": ("structure deg", ".1f"),
    "lpips": ("LPIPS", ".4f"),
    "identity": ("identity rad", ".4f"),
    "fid": ("FID", ".2f"),
    "seconds": ("s / face", ".3g"),
}
"""Scores with their heads and forms, in the order of the table."""
SHEET_FACES = 16
_PANEL = 1.25  # inches


def write_report(benchmark: FaceBenchmark, output: Path) -> tuple[Path, ...]:
    """Write ``report.md``, ``report.json``, ``scores.csv`` and ``sheet.jpg``; return their paths, report first.

    Args:
        benchmark: The result.
        output: The folder that `restore.faces.evaluation.run_face_benchmark` was given, so that the sheet finds the faces.

    Raises:
        OutputError: The folder does not take a file.
    """
    files = (output / "report.md", output / "report.json", output / "scores.csv", output / "sheet.jpg")
    write_text(files[1], json.dumps(to_dict(benchmark), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(files[2], to_csv(benchmark))
    write_text(files[0], to_markdown(benchmark) + "\n![before and after](sheet.jpg)\n")
    figure = draw_sheet(benchmark, output)
    with replacing(files[3]) as part:
        figure.savefig(part, format="jpg", dpi=110, pil_kwargs={"quality": 88})
    return files


def table(benchmark: FaceBenchmark) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns that have a number, and one row of text for each method."""
    values = [[_mean(row, name) for name in COLUMNS] for row in benchmark.rows]
    used = [place for place, column in enumerate(zip(*values, strict=True)) if any(value is not None for value in column)]
    heads = [list(COLUMNS.values())[place] for place in used]
    rows = []
    for row, numbers in zip(benchmark.rows, values, strict=True):
        parameters = "" if row.method.parameters is None else f"{row.method.parameters:,}"
        cells = ["" if numbers[p] is None else format(numbers[p], form) for p, (_, form) in zip(used, heads, strict=True)]
        rows.append((row.method.name, parameters, *cells, _note(row)))
    return ("method", "parameters", *(head for head, _ in heads), "note"), rows


def to_markdown(benchmark: FaceBenchmark) -> str:
    """Table, what the scores are, what is left out, published numbers."""
    spec = benchmark.plan.spec
    header, rows = table(benchmark)
    lines = [f"# {spec.title}", "", f"| {' | '.join(header)} |", "|" + " --- |" * len(header)]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    lines += ["", *(f"- {fact}" for fact in facts(benchmark))]
    if spec.published:
        lines += ["", "Published numbers:", ""]
        names = ("fid", "psnr", "ssim", "lpips", "identity")
        for row in spec.published:
            scores = ", ".join(f"{COLUMNS[name][0]} {value}" for name in names if (value := getattr(row, name)) is not None)
            lines.append(f"- {row.method}: {scores} ({row.source})")
    return "\n".join(lines) + "\n"


def facts(benchmark: FaceBenchmark) -> list[str]:
    """Every choice behind the scores, one sentence each."""
    plan = benchmark.plan
    spec = plan.spec
    stored = plan.found.layout.degraded is not None
    rule = f"made by RestoreFormer's validation degradation at {spec.size} pixels, seed {spec.seed} plus the face's number"
    found = [
        f"Faces: {len(plan.found.items)}, layout: {plan.found.layout.name}; degraded ones {'as stored' if stored else rule}.",
        "PSNR and SSIM: all channels of 8 bits, no border. Means over the faces.",
        "Sharpness: root of the ratio of the Laplacians' variances, 1 as the reference; it does not say that details are right.",
        "Landmarks: mean distance of five landmarks from the reference's in per cent of the distance of the eyes, by YuNet.",
        "Structure: angle between histograms of gradient directions of the inner faces, in degrees; it recognises no person.",
    ]
    for row in benchmark.rows:
        lost = row.missing("landmarks") if row.scores and "landmarks" not in benchmark.left_out else 0
        if lost:
            found.append(
                f"{row.method.name}: landmarks were not found on {lost} of {len(row.scores)} faces, which its mean leaves out."
            )
    found += [f"{COLUMNS[name][0]}: left out; {without_folders(reason)}" for name, reason in benchmark.left_out.items()]
    return [*found, *spec.notes, INVENTED]


def to_csv(benchmark: FaceBenchmark) -> str:
    """One line for each face and method."""
    names = [each.name for each in fields(FaceScore)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("method", *names))
    for row in benchmark.rows:
        for score in row.scores:
            values = [getattr(score, name) for name in names]
            writer.writerow(
                (row.method.name, *("" if v is None else without_folders(v) if isinstance(v, str) else repr(v) for v in values))
            )
    return text.getvalue()


def to_dict(benchmark: FaceBenchmark) -> dict[str, Any]:
    """Everything as plain JSON types; an infinite PSNR is the text "inf"."""
    return {
        "finished": timestamp(),
        "versions": versions(),
        "set": benchmark.plan.spec.name,
        "facts": facts(benchmark),
        "methods": [
            {
                "name": row.method.name,
                "skipped": None if row.method.skipped is None else without_folders(row.method.skipped),
                "parameters": row.method.parameters,
                "facts": {key: without_folders(value) for key, value in row.method.facts.items()},
                "means": {name: _plain(_mean(row, name)) for name in COLUMNS},
                "faces": [{key: _plain(value) for key, value in asdict(score).items()} for score in row.scores],
            }
            for row in benchmark.rows
        ],
    }


def draw_sheet(benchmark: FaceBenchmark, output: Path, number: int = SHEET_FACES) -> Figure:
    """Draw faces spread over the set: degraded, of each method, and the reference where there is one; two faces a row."""
    from matplotlib.figure import Figure

    plan = benchmark.plan
    shown = [row.method.name for row in benchmark.rows if row.scores and row.method.name != GIVEN]
    places = sorted({int(place) for place in np.linspace(0, len(plan.found.items) - 1, min(number, len(plan.found.items)))})
    strips = [_strip(plan, place, shown, output) for place in places]
    titles = [GIVEN, *shown, "reference"][: len(strips[0])]
    rows, columns = -(-len(strips) // 2), 2 * len(titles)
    figure = Figure(figsize=(columns * _PANEL + 0.15, rows * _PANEL + 0.3))
    width, height = figure.get_size_inches()
    for place, strip in enumerate(strips):
        row, half = divmod(place, 2)
        for column, picture in enumerate(strip):
            left = (half * len(titles) + column) * _PANEL + 0.15 * half
            box = (left / width, 1 - (0.3 + (row + 1) * _PANEL) / height, _PANEL / width, _PANEL / height)
            axes = figure.add_axes(box)
            axes.set_axis_off()
            axes.imshow(picture, interpolation="lanczos", aspect="auto")
            if row == 0:
                axes.set_title(titles[column], fontsize=7, pad=2)
    return figure


def _strip(plan: FacePlan, place: int, methods: list[str], output: Path) -> list[np.ndarray]:
    case = plan.read(place)
    files = [result_path(output, method, case.name) for method in methods]
    results = [read_8_bits(path) if path.is_file() else np.zeros_like(case.given) for path in files]
    return [case.given, *results, *(() if case.reference is None else (case.reference,))]


def _mean(row: FaceRow, name: str) -> float | None:
    return row.fid if name == "fid" else row.mean(name)


def _note(row: FaceRow) -> str:
    if row.method.skipped is not None:
        return f"skipped: {without_folders(row.method.skipped)}"
    failed = [score for score in row.scores if score.error]
    return (
        f"{len(failed)} of {len(row.scores)} failed, first {failed[0].face}: {without_folders(failed[0].error or '')}"
        if failed
        else ""
    )


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return without_folders(value)
    return "inf" if value == float("inf") else value
