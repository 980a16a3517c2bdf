"""The report of an evaluation: table, Markdown, CSV with the scores of each case, JSON with every choice behind them.

Reports name files, never the folders of the machine.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import scipy

from hybrid.console import folder_of
from hybrid.memory import peak_bytes
from hybrid.records import timestamp, versions, without_folders, write_bytes
from medical.evaluation import calibration
from medical.evaluation.aggregation import RESAMPLES, SEED, Summary, summarise
from medical.evaluation.boundary_report import BOUNDARIES, boundary_csv, boundary_facts, boundary_facts_json, boundary_rows
from medical.evaluation.boundary_report import HEADER as BOUNDARY_HEADER
from medical.evaluation.boundary_report import TITLE as BOUNDARY_TITLE
from medical.evaluation.calibration import Reliability
from medical.evaluation.calibration_plot import reliability_plot
from medical.evaluation.comparison import Comparison
from medical.evaluation.engine import METRICS, CaseResult, Evaluation, Made, Metric, Target
from medical.evaluation.figures import score_plot
from medical.evaluation.metrics import Conventions
from medical.notice import RESEARCH_USE
from medical.volumes.staging import staged

REPORT, FACTS, SCORES, PLOT = "report.md", "report.json", "scores.csv", "scores.png"
RELIABILITY, CALIBRATION = "reliability.png", "calibration.csv"
CSV_HEADER = (
    "case", "structure", "dice", "hd95_mm", "nsd", "reference_voxels", "predicted_voxels", "spacing_mm", "seconds", "error",
)  # fmt: skip
MEAN = "mean"


def write_report(
    evaluation: Evaluation, output: Path, *, comparison: Comparison | None = None, reliability: Sequence[Reliability] = ()
) -> tuple[Path, ...]:
    """Write ``report.md``, ``report.json``, ``scores.csv`` and ``scores.png``; return their paths, report first.

    The figure is left out where there is nothing to draw; ``boundaries.csv`` is added for pictures,
    ``reliability.png`` and ``calibration.csv`` where there is something to say of probabilities.

    Raises:
        OutputError: The folder does not take a file.
        ResourceError: matplotlib is not installed.
    """
    picture = score_plot(evaluation)
    link = f"\n![Scores of each case]({PLOT})\n" if picture is not None else ""
    files = {
        REPORT: (to_markdown(evaluation, comparison) + link + _calibration_section(reliability)).encode(),
        FACTS: (
            json.dumps(to_dict(evaluation, comparison, reliability), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        ).encode(),
        SCORES: to_csv(evaluation).encode(),
    }
    if picture is not None:
        files[PLOT] = picture
    if (boundaries := boundary_csv(evaluation)) is not None:
        files[BOUNDARIES] = boundaries.encode()
    if reliability:
        title = f"{evaluation.plan.title}, {len(reliability[0].scans.counts)} scans"
        files |= {RELIABILITY: reliability_plot(reliability, title), CALIBRATION: calibration.to_csv(reliability).encode()}
    paths = tuple(output / name for name in files)
    orphans = [output / name for name in (PLOT, BOUNDARIES, RELIABILITY, CALIBRATION) if name not in files]
    with folder_of(paths[0]), staged(paths, overwrite=True, orphans=orphans) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)
    return paths


def summaries(evaluation: Evaluation) -> dict[str, dict[Metric, Summary]]:
    """Summary of each metric for each target, and for ``mean``, their mean."""
    rows: dict[str, dict[Metric, Summary]] = {name: {} for name in (*_names(evaluation), MEAN)}
    for metric in METRICS:
        each, overall = summarise(evaluation.table(metric))
        for target, summary in zip(evaluation.targets, each, strict=True):
            rows[target.name][metric] = summary
        rows[MEAN][metric] = overall
    return rows


def header(conventions: Conventions) -> tuple[str, ...]:
    """Columns of `table_rows`."""
    unit = conventions.unit
    return ("structure", "cases", "Dice", f"HD95 ({unit})", f"NSD ({conventions.tolerance:g} {unit})", "left out")


def table_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """One row of text for each target, and one for their mean: mean ± standard deviation [95 % interval]."""
    return [
        (name, str(len(evaluation.scored)), *(_cell(metric, row[metric]) for metric in METRICS), _left_out(row))
        for name, row in summaries(evaluation).items()
    ]


def to_markdown(evaluation: Evaluation, comparison: Comparison | None = None) -> str:
    """Table, conventions, published numbers, failures and notes."""
    lines = [f"# {evaluation.plan.title}", "", *markdown_table(header(evaluation.plan.conventions), table_rows(evaluation)), ""]
    lines += [f"- {fact}" for fact in protocol_facts(evaluation)]
    if measured := boundary_rows(evaluation):
        lines += ["", f"## {BOUNDARY_TITLE}", "", *markdown_table(BOUNDARY_HEADER, measured)]
    if comparison is not None:
        lines += ["", f"## {comparison.title}", "", *markdown_table(comparison.header, comparison.table_rows())]
    if published := _published(evaluation):
        columns = ("method", "structure", "published Dice", "ours", "difference", "measured on", "source")
        lines += ["", "## Published numbers", "", *markdown_table(columns, published)]
    if evaluation.failures:
        lines += ["", "## Failed cases", "", *(f"- {result.name}: {_error(result)}" for result in evaluation.failures)]
    noted = [f"- {result.name}: {without_folders(note)}" for result in evaluation.scored for note in result.notes]
    if noted:
        lines += ["", "## Notes", "", *noted]
    return "\n".join([*lines, "", RESEARCH_USE + "."]) + "\n"


def to_csv(evaluation: Evaluation) -> str:
    """One line for each case and target; a failed case has one line. Scores that are left out are empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(column.replace("hd95_mm", f"hd95_{evaluation.plan.conventions.unit}") for column in CSV_HEADER)
    for result in evaluation.results:
        if result.error is not None:
            writer.writerow((result.name, *[""] * (len(CSV_HEADER) - 2), _error(result)))
            continue
        spacing, seconds = " ".join(f"{each:.6g}" for each in result.spacing), f"{result.seconds or 0:.4g}"
        for target in evaluation.targets:
            score = result.scores[target]
            numbers = ("" if math.isnan(each) else repr(each) for each in (score.dice, score.hd95, score.nsd))
            writer.writerow(
                (result.name, target.name, *numbers, score.reference_voxels, score.predicted_voxels, spacing, seconds, "")
            )
    return text.getvalue()


def to_dict(
    evaluation: Evaluation, comparison: Comparison | None = None, reliability: Sequence[Reliability] = ()
) -> dict[str, Any]:
    """Everything as plain JSON types; a number that cannot be had is null."""
    plan, rows = evaluation.plan, summaries(evaluation)
    return {
        "note": RESEARCH_USE,
        "title": plan.title,
        "finished": timestamp(),
        "seconds": round(evaluation.seconds, 3),
        "peak_memory_bytes": peak_bytes(),
        "versions": versions() | {"scipy": scipy.__version__},
        "data_set": None if plan.spec is None else plan.spec.name,
        "split": plan.split,
        "split_source": _split_source(evaluation),
        "cases": [case.name for case in plan.cases],
        "conventions": asdict(plan.conventions) | {"hd95_unit": plan.conventions.unit, "aggregation": "cases, then structures"},
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "over": "cases", "interval": 0.95},
        "model": None if evaluation.made is None else evaluation.made.model,
        "inference": None if evaluation.made is None else evaluation.made.inference,
        "notes": [] if evaluation.made is None else list(evaluation.made.notes),
        "failures": len(evaluation.failures),
        "means": {name: {metric: plain(asdict(row[metric])) for metric in METRICS} for name, row in rows.items()},
        "boundaries": plain(boundary_facts_json(evaluation)),
        "calibration": {each.name: plain(each.to_dict()) for each in reliability},
        "empty": {target.name: _emptiness(evaluation, target) for target in evaluation.targets},
        "comparison": None if comparison is None else plain(comparison.to_dict()),
        "published": [] if plan.spec is None else [row.model_dump() for row in plan.spec.published],
        "results": [_result_dict(result) for result in evaluation.results],
    }


def _calibration_section(reliability: Sequence[Reliability]) -> str:
    if not reliability:
        return ""
    facts = [f"- {fact}" for fact in calibration.facts_of(reliability[0].bins)]
    table = markdown_table(calibration.HEADER, calibration.table_rows(reliability))
    return "\n".join(["", "## Calibration", "", *table, "", *facts, "", f"![Reliability]({RELIABILITY})", ""])


def protocol_facts(evaluation: Evaluation) -> list[str]:
    """Every choice behind the scores, one sentence each."""
    plan = evaluation.plan
    chosen = plan.conventions
    hausdorff = {
        "max": "the larger of the two directed 95th percentiles",
        "pooled": "the 95th percentile of both directions' distances together",
    }[chosen.hausdorff]
    surface = {"subvoxel": "areas of sub-voxel surface elements", "voxel": "numbers of surface voxels"}[chosen.surface]
    facts = [
        f"Cases: {len(evaluation.scored)} of {len(plan.cases)} scored, each on the grid of its reference.",
        "Means over the cases for each structure, then over the structures; in brackets the 95 % bootstrap interval over the "
        f"cases ({RESAMPLES} resamples, seed {SEED}).",
        f"Empty masks: convention {chosen.empty}.",
        f"HD95: {hausdorff}, in {chosen.unit}.",
        f"NSD: surface Dice at {chosen.tolerance:g} {chosen.unit} by {surface}.",
        *boundary_facts(evaluation),
    ]
    if (source := _split_source(evaluation)) is not None:
        facts.append(f"Split {plan.split}: {source}.")
    facts += made_facts(evaluation.made)
    for target in evaluation.targets:
        counts = _emptiness(evaluation, target)
        if counts["missed"] or counts["false_alarms"]:
            facts.append(f"{target.name}: {counts['missed']} missed, {counts['false_alarms']} false alarms.")
    return facts


def made_facts(made: Made | None) -> list[str]:
    """How what is scored was made, one sentence each."""
    if made is None:
        return []
    model = made.model
    return [
        f"Model: {model['name']}, {_listed(model, 'weights', 'sha256')}; {_listed(model['options'])}.",
        f"Inference: {_listed(made.inference)}.",
        *made.notes,
    ]


def _listed(facts: Mapping[str, Any], *keys: str) -> str:
    """``overlap 0.5, device cpu``: some facts or all, without those that say nothing."""
    shown = {key: facts[key] for key in keys or facts}
    texts = {key: " x ".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in shown.items()}
    return ", ".join(f"{key.replace('_', ' ')} {text}" for key, text in texts.items() if shown[key] not in (None, [], False))


def _emptiness(evaluation: Evaluation, target: Target) -> dict[str, int]:
    """Cases in which a mask is empty: both, the prediction alone (missed), the reference alone (false alarms)."""
    scores = [result.scores[target] for result in evaluation.scored]
    seen = [(score.reference_voxels > 0, score.predicted_voxels > 0) for score in scores]
    return {"both": seen.count((False, False)), "missed": seen.count((True, False)), "false_alarms": seen.count((False, True))}


def _split_source(evaluation: Evaluation) -> str | None:
    spec = evaluation.plan.spec
    splits = spec.splits if spec is not None else ()
    return next((split.source for split in splits if split.name == evaluation.plan.split), None)


def _names(evaluation: Evaluation) -> list[str]:
    return [target.name for target in evaluation.targets]


def _cell(metric: Metric, summary: Summary) -> str:
    """``0.8945 ± 0.0312 [0.8851, 0.9034]``, in mm to two digits."""
    if math.isnan(summary.mean):
        return "none"
    form = ".2f" if metric == "hd95" else ".4f"
    spread = "" if math.isnan(summary.sd) else f" ± {summary.sd:{form}}"
    return f"{summary.mean:{form}}{spread} [{summary.low:{form}}, {summary.high:{form}}]"


def _left_out(row: dict[Metric, Summary]) -> str:
    words = {"dice": "Dice", "hd95": "HD95", "nsd": "NSD"}
    return ", ".join(f"{words[metric]} {row[metric].left_out}" for metric in METRICS if row[metric].left_out)


def _published(evaluation: Evaluation) -> list[tuple[str, ...]]:
    if evaluation.plan.spec is None or not evaluation.scored:
        return []
    ours = {name: 100 * row["dice"].mean for name, row in summaries(evaluation).items()}
    return [
        (
            row.method,
            row.structure,
            f"{row.dice:.2f}",
            f"{ours[row.structure]:.2f}",
            f"{ours[row.structure] - row.dice:+.2f}",
            row.measured,
            row.source,
        )
        for row in evaluation.plan.spec.published
    ]


def _result_dict(result: CaseResult) -> dict[str, Any]:
    return {
        "case": result.name,
        "spacing_mm": [round(each, 6) for each in result.spacing],
        "seconds": None if result.seconds is None else round(result.seconds, 4),
        "scores": {target.name: plain(asdict(score)) for target, score in result.scores.items()},
        "notes": [without_folders(note) for note in result.notes],
        "error": _error(result),
    }


def _error(result: CaseResult) -> str | None:
    return None if result.error is None else without_folders(result.error)


def plain(values: Any) -> Any:
    """JSON has no NaN: null in its place."""
    if isinstance(values, dict):
        return {key: plain(value) for key, value in values.items()}
    if isinstance(values, list):
        return [plain(value) for value in values]
    return None if isinstance(values, float) and not math.isfinite(values) else values


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a table in Markdown."""
    escaped = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (columns, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in escaped]
    return [lines[0], "|" + " --- |" * len(columns), *lines[1:]]
