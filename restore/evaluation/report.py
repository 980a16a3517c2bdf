"""The report of a benchmark: table, Markdown, CSV, JSON; with the figures of `restore.evaluation.figures`.

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
from restore.evaluation.engine import Benchmark, ImageScore, PublishedScore, Row, TestSet
from restore.evaluation.figures import write_figures
from restore.evaluation.files import write_text

HEADER = ("set", "method", "parameters", "PSNR", "SSIM", "s / picture", "published", "difference", "note")
CSV_HEADER = ("set", "level", "method", "image", "psnr", "ssim", "psnr_b", "seconds", "grey", "hr_cut", "error")


def write_report(benchmark: Benchmark, output: Path) -> tuple[Path, ...]:
    """Write ``report.md``, ``report.json``, ``scores.csv`` and the figures; return their paths, report first.

    Args:
        benchmark: The result.
        output: The folder that `restore.evaluation.engine.run_benchmark` was given, so that the sheets find the pictures.

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


def table(benchmark: Benchmark) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The columns of `HEADER`, with PSNR-B where it was scored, and one row of text for each set and method."""
    rows = [_table_row(row) for row in benchmark.rows]
    if all(row.psnr_b is None for row in benchmark.rows):
        return HEADER, rows
    at = HEADER.index("SSIM") + 1
    cells = [(*row[:at], _number(each.psnr_b, ".2f"), *row[at:]) for row, each in zip(rows, benchmark.rows, strict=True)]
    return (*HEADER[:at], "PSNR-B", *HEADER[at:]), cells


def to_markdown(benchmark: Benchmark) -> str:
    """Table, protocol and the scores of each picture."""
    lines = ["# Benchmark", "", *_markdown_table(*table(benchmark))]
    published = [(row.test_set.title, row.published) for row in benchmark.rows if row.published is not None]
    sources = [f"{row.method}, {title}: {row.source}" for title, row in published]
    if sources:
        lines += ["", "Published numbers:", "", *(f"- {source}" for source in sources)]
    for test_set in benchmark.plan.sets:
        lines += ["", f"## {test_set.title}", "", *(f"- {fact}" for fact in protocol_facts(benchmark, test_set)), ""]
        lines += _markdown_table(*_image_table(benchmark, test_set))
    return "\n".join(lines) + "\n"


def to_csv(benchmark: Benchmark) -> str:
    """One line for each picture and method; a skipped method has one line without a picture."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in benchmark.rows:
        start = (row.test_set.spec.name, row.test_set.level, row.method.name)
        if row.method.skipped is not None:
            writer.writerow((*start, *[""] * (len(CSV_HEADER) - 4), _note(row)))
        for score in row.scores:
            numbers = (score.psnr, score.ssim, score.psnr_b, score.seconds)
            flags = (int(score.grey), int(score.cut)) if score.error is None else ("", "")
            writer.writerow((*start, score.image, *("" if x is None else repr(x) for x in numbers), *flags, _error(score) or ""))
    return text.getvalue()


def to_dict(benchmark: Benchmark) -> dict[str, Any]:
    """Everything as plain JSON types. An infinite PSNR (equal pictures) is the text "inf", a missing score is null."""
    return {
        "finished": timestamp(),
        "versions": versions() | {"scipy": scipy.__version__},
        "failures": benchmark.failures,
        "sets": [_set_dict(benchmark, test_set) for test_set in benchmark.plan.sets],
    }


def protocol_facts(benchmark: Benchmark, test_set: TestSet) -> list[str]:
    """Every choice behind the scores of a set, one sentence each."""
    facts = test_set.facts(_first_scores(benchmark, test_set))
    if test_set.checked is not None:
        known, total = test_set.checked.known, test_set.checked.known + len(test_set.checked.unknown)
        facts.append(f"Checksums: {known} of {total} files are known ones.")
    if any(row.derived for row in _rows_of(benchmark, test_set)):
        facts.append(
            "Several outputs: a row of a network's name alone takes the output that is chosen without the reference; the output "
            "best on this set was chosen on it; the best output of each picture needs the reference, each metric by itself."
        )
    return facts


def _table_row(row: Row) -> tuple[str, ...]:
    published = row.published
    return (
        row.test_set.title,
        row.method.name,
        "" if row.method.parameters is None else f"{row.method.parameters:,}",
        _number(row.psnr, ".2f"),
        _number(row.ssim, ".4f"),
        _number(row.seconds, ".3g"),
        "" if published is None else _published(published),
        "" if published is None or row.psnr is None else _pair(*_difference(row), "+", "+"),
        _note(row),
    )


def _note(row: Row) -> str:
    if row.method.skipped is not None:
        return f"skipped: {without_folders(row.method.skipped)}"
    if not row.test_set.scored and not row.failures:
        return "no reference: see the files"
    if row.failures:
        first = row.failures[0]
        return f"{len(row.failures)} of {len(row.scores)} failed, first {first.image}: {_error(first)}"
    return ""


def _difference(row: Row) -> tuple[float, float | None]:
    """Ours less published, rounded as the published numbers are printed."""
    assert row.published is not None and row.psnr is not None and row.ssim is not None
    ssim = None if row.published.ssim is None else round(round(row.ssim, 4) - row.published.ssim, 4) + 0.0
    return round(round(row.psnr, 2) - row.published.psnr, 2) + 0.0, ssim  # + 0.0 makes 0.0 of -0.0


def _published(row: PublishedScore) -> str:
    return _pair(row.psnr, row.ssim, "", "") + ("" if row.psnr_b is None else f" / {row.psnr_b:.2f}")


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
    cells = [
        ["failed" if s.error else "" if s.psnr is None else _pair(s.psnr, s.ssim, "", "") for s in row.scores] for row in rows
    ]
    return header, [(name, *(column[index] for column in cells)) for index, name in enumerate(test_set.names)] if rows else []


def _markdown_table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|" + " --- |" * len(header), *lines[1:]]


def _set_dict(benchmark: Benchmark, test_set: TestSet) -> dict[str, Any]:
    return {
        **test_set.described(),
        "protocol_facts": protocol_facts(benchmark, test_set),
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
        "psnr_b": _json(row.psnr_b),
        "seconds": row.seconds,
        "published": None if row.published is None else asdict(row.published),
        "images": [
            asdict(score) | {"psnr": _json(score.psnr), "psnr_b": _json(score.psnr_b), "error": _error(score)}
            for score in row.scores
        ],
    }


def _json(value: float | None) -> float | str | None:
    return "inf" if value == math.inf else value
