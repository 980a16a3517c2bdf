"""The report of a benchmark: table, Markdown, CSV, JSON; with the figures of `restore.evaluation_figures`.

Reports name files, never the folders of the machine.
"""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import scipy

from hybrid.records import timestamp, versions, without_folders
from restore.evaluation import Benchmark, ImageScore, Row, TestSet
from restore.evaluation_figures import write_figures
from restore.evaluation_files import write_text

HEADER = ("set", "method", "parameters", "PSNR", "SSIM", "s / picture", "published", "difference", "note")
CSV_HEADER = ("set", "scale", "method", "image", "psnr", "ssim", "seconds", "grey", "hr_cut", "error")


def write_report(benchmark: Benchmark, output: Path) -> tuple[Path, ...]:
    """Write ``report.md``, ``report.json``, ``scores.csv`` and the figures; return their paths, report first.

    Args:
        benchmark: The result.
        output: The folder that `restore.evaluation.run_benchmark` was given, so that the sheets find the pictures.

    Raises:
        OutputError: The folder does not take a file.
    """
    files = [output / "report.md", output / "report.json", output / "scores.csv"]
    write_text(files[1], json.dumps(to_dict(benchmark), indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(files[2], to_csv(benchmark))
    figures = write_figures(benchmark, output)
    links = "".join(f"\n![{path.stem}]({path.name})\n" for path in figures)
    write_text(files[0], to_markdown(benchmark) + links)
    return (*files, *figures)


def table_rows(benchmark: Benchmark) -> list[tuple[str, ...]]:
    """One row of text for each set and method, in the columns of `HEADER`."""
    return [_table_row(row) for row in benchmark.rows]


def to_markdown(benchmark: Benchmark) -> str:
    """Table, protocol and the scores of each picture."""
    lines = [f"# Benchmark x{benchmark.plan.scale}", "", *_markdown_table(HEADER, table_rows(benchmark))]
    published = [(row.test_set.spec.title, row.published) for row in benchmark.rows if row.published is not None]
    sources = [f"{row.method}, {title}: {row.source}" for title, row in published]
    if sources:
        lines += ["", "Published numbers:", "", *(f"- {source}" for source in sources)]
    for test_set in benchmark.plan.sets:
        lines += ["", f"## {test_set.spec.title}", "", *(f"- {fact}" for fact in protocol_facts(benchmark, test_set)), ""]
        lines += _markdown_table(*_image_table(benchmark, test_set))
    return "\n".join(lines) + "\n"


def to_csv(benchmark: Benchmark) -> str:
    """One line for each picture and method; a skipped method has one line without a picture."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in benchmark.rows:
        start = (row.test_set.spec.name, benchmark.plan.scale, row.method.name)
        if row.method.skipped is not None:
            writer.writerow((*start, "", "", "", "", "", "", _note(row)))
        for score in row.scores:
            numbers = (score.psnr, score.ssim, score.seconds)
            flags = (int(score.grey), int(score.cut)) if score.error is None else ("", "")
            writer.writerow((*start, score.image, *("" if x is None else repr(x) for x in numbers), *flags, _error(score) or ""))
    return text.getvalue()


def to_dict(benchmark: Benchmark) -> dict[str, Any]:
    """Everything as plain JSON types. An infinite PSNR (equal pictures) is the text "inf", a missing score is null."""
    return {
        "scale": benchmark.plan.scale,
        "finished": timestamp(),
        "versions": versions() | {"scipy": scipy.__version__},
        "failures": benchmark.failures,
        "sets": [_set_dict(benchmark, test_set) for test_set in benchmark.plan.sets],
    }


def protocol_facts(benchmark: Benchmark, test_set: TestSet) -> list[str]:
    """Every choice behind the scores of a set, one sentence each."""
    spec, scale = test_set.spec, benchmark.plan.scale
    protocol, pairs = spec.protocol, test_set.found.pairs
    made = sum(pair.lr is None for pair in pairs)
    scores = _first_scores(benchmark, test_set)
    cut = sum(score.cut for score in scores)
    grey = sum(score.grey for score in scores)
    multiple = math.lcm(protocol.crop_at(scale), scale)
    channel = "unrounded BT.601 luma (16 to 235)" if protocol.channel == "y" else "RGB"
    facts = [
        f"Files: {len(pairs)} pictures, layout: {test_set.found.layout.name}.",
        f"LR: made from HR by MATLAB bicubic, mode {protocol.lr}." if made else "LR: as stored.",
        f"HR: {cut} of {len(scores)} pictures cut, to a multiple of {multiple}."
        if made
        else f"HR: {cut} of {len(scores)} pictures cut to LR size times scale.",
        f"Scored on {channel} without {protocol.border_at(scale)} pixels on each side; plain mean over the pictures.",
        "Row bicubic: uint8 luma plane alone, shrunk and enlarged in double precision, rounded once.",
    ]
    if grey:
        facts.append(f"{grey} grey: networks get three equal channels, 1.32 dB above the plane itself; row bicubic the plane.")
    if test_set.checked is not None:
        known, total = test_set.checked.known, test_set.checked.known + len(test_set.checked.unknown)
        facts.append(f"Checksums: {known} of {total} files are known ones.")
    return facts + list(spec.notes)


def _table_row(row: Row) -> tuple[str, ...]:
    published = row.published
    return (
        row.test_set.spec.title,
        row.method.name,
        "" if row.method.parameters is None else f"{row.method.parameters:,}",
        _number(row.psnr, ".2f"),
        _number(row.ssim, ".4f"),
        _number(row.seconds, ".3g"),
        "" if published is None else _pair(published.psnr, published.ssim, "", ""),
        "" if published is None or row.psnr is None else _pair(*_difference(row), "+", "+"),
        _note(row),
    )


def _note(row: Row) -> str:
    if row.method.skipped is not None:
        return f"skipped: {without_folders(row.method.skipped)}"
    if row.failures:
        first = row.failures[0]
        return f"{len(row.failures)} of {len(row.scores)} failed, first {first.image}: {_error(first)}"
    return ""


def _difference(row: Row) -> tuple[float, float | None]:
    """Ours less published, rounded as the published numbers are printed."""
    assert row.published is not None and row.psnr is not None and row.ssim is not None
    ssim = None if row.published.ssim is None else round(round(row.ssim, 4) - row.published.ssim, 4) + 0.0
    return round(round(row.psnr, 2) - row.published.psnr, 2) + 0.0, ssim  # + 0.0 makes 0.0 of -0.0


def _pair(psnr: float, ssim: float | None, *signs: str) -> str:
    first = _number(psnr, f"{signs[0]}.2f")
    return first if ssim is None else f"{first} / {_number(ssim, f'{signs[1]}.4f')}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _error(score: ImageScore) -> str | None:
    return None if score.error is None else without_folders(score.error)


def _rows_of(benchmark: Benchmark, test_set: TestSet) -> list[Row]:
    return [row for row in benchmark.rows if row.test_set is test_set]


def _first_scores(benchmark: Benchmark, test_set: TestSet) -> list[ImageScore]:
    """What was seen of the pictures: by the first method that could be scored on each."""
    seen: dict[str, ImageScore] = {}
    for row in _rows_of(benchmark, test_set):
        for score in row.scores:
            if score.error is None:
                seen.setdefault(score.image, score)
    return list(seen.values())


def _image_table(benchmark: Benchmark, test_set: TestSet) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    rows = [row for row in _rows_of(benchmark, test_set) if row.scores]
    header = ("picture", *(row.method.name for row in rows))
    cells = [["failed" if s.error else _pair(s.psnr or 0.0, s.ssim, "", "") for s in row.scores] for row in rows]
    names = [pair.name for pair in test_set.found.pairs]
    return header, [(name, *(column[index] for column in cells)) for index, name in enumerate(names)] if rows else []


def _markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|" + " --- |" * len(header), *lines[1:]]


def _set_dict(benchmark: Benchmark, test_set: TestSet) -> dict[str, Any]:
    spec = test_set.spec
    return {
        "name": spec.name,
        "title": spec.title,
        "protocol": spec.protocol.model_dump(),
        "protocol_facts": protocol_facts(benchmark, test_set),
        "layout": test_set.found.layout.model_dump(),
        "unknown_files": None if test_set.checked is None else [path.name for path in test_set.checked.unknown],
        "methods": [_row_dict(row) for row in _rows_of(benchmark, test_set)],
    }


def _row_dict(row: Row) -> dict[str, Any]:
    return {
        "name": row.method.name,
        "skipped": None if row.method.skipped is None else without_folders(row.method.skipped),
        "parameters": row.method.parameters,
        "takes": row.method.takes,
        "facts": {key: without_folders(value) for key, value in row.method.facts.items()},
        "psnr": _json(row.psnr),
        "ssim": row.ssim,
        "seconds": row.seconds,
        "published": None if row.published is None else row.published.model_dump(),
        "images": [asdict(score) | {"psnr": _json(score.psnr), "error": _error(score)} for score in row.scores],
    }


def _json(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value
