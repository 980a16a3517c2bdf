"""The report of a detection: figures with their intervals, cases, lesions and candidates, and every choice behind them.

Reports name files, never the folders of the machine.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hybrid.console import folder_of
from hybrid.memory import peak_bytes
from hybrid.records import timestamp, versions, without_folders, write_bytes
from medical.detection.evaluation import DetectionEvaluation, DetectionResult
from medical.detection.figures import curve_plot
from medical.detection.lesions import FACTOR, FLOOR, MOST, Candidate, DetectionRules, Detections, Lesion
from medical.detection.scores import RATES, Figure
from medical.evaluation.aggregation import RESAMPLES, SEED
from medical.evaluation.report import made_facts, markdown_table, plain
from medical.notice import RESEARCH_USE
from medical.volumes.staging import staged

REPORT, FACTS, CASES, LESIONS, PLOT = "detection.md", "detection.json", "cases.csv", "lesions.csv", "detection.png"
HEADER = ("figure", "value", "95 % interval")
CASES_HEADER = (
    "case", "lesions", "hits", "missed", "candidates", "false_positives", "not_counted", "confidence", "seconds", "error",
)  # fmt: skip
LESIONS_HEADER = (
    "case", "outcome", "lesion", "lesion_voxels", "lesion_ml", "lesion_x_mm", "lesion_y_mm", "lesion_z_mm", "candidate",
    "confidence", "candidate_voxels", "candidate_ml", "candidate_x_mm", "candidate_y_mm", "candidate_z_mm", "iou",
    "distance_mm",
)  # fmt: skip


def write_detection(evaluation: DetectionEvaluation, output: Path) -> tuple[Path, ...]:
    """Write ``detection.md``, ``detection.json``, ``cases.csv``, ``lesions.csv`` and ``detection.png``; return their paths.

    The figure is left out where there is nothing to draw.

    Raises:
        OutputError: The folder does not take a file.
        ResourceError: matplotlib is not installed.
    """
    picture = curve_plot(evaluation)
    link = f"\n![FROC, precision and ROC]({PLOT})\n" if picture is not None else ""
    files = {
        REPORT: (to_markdown(evaluation) + link).encode(),
        FACTS: (json.dumps(to_dict(evaluation), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode(),
        CASES: _csv(CASES_HEADER, map(_case_row, evaluation.results)).encode(),
        LESIONS: _csv(LESIONS_HEADER, (row for each in evaluation.results for row in _lesion_rows(each))).encode(),
    }
    if picture is not None:
        files[PLOT] = picture
    paths = tuple(output / name for name in files)
    orphans = [] if PLOT in files else [output / PLOT]
    with folder_of(paths[0]), staged(paths, overwrite=True, orphans=orphans) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)
    return paths


def table_rows(evaluation: DetectionEvaluation) -> list[tuple[str, str, str]]:
    """Each figure as text: name, value, interval."""
    return [(name, *_cells(figure)) for name, figure in _figures(evaluation).items()]


def facts(evaluation: DetectionEvaluation) -> list[str]:
    """Every choice behind the figures, one sentence each."""
    plan, scans, rules = evaluation.plan, evaluation.scans, evaluation.plan.rules
    values = ", ".join(map(str, plan.lesion)) or "all above 0"
    counts = counted(scans)
    return [
        f"Scans: {len(scans)} of {len(plan.cases.cases)} scored, {counts['scans_with_lesions']} with lesions; values that are "
        f"lesions: {values}.",
        f"Lesions: {counts['lesions']}, of which {counts['hits']} are hit by a candidate of any confidence. "
        f"False positives: {counts['false_positives']}, not counted: {counts['not_counted']}.",
        *rule_facts(rules),
        "Sensitivity at a rate: at the lowest confidence with at most so many false positives a scan, over all scans.",
        "AP: sensitivity is a share of all lesions, so missed ones add nothing.",
        "AUROC: a scan's confidence is that of its highest candidate, 0 without candidates; ties count half.",
        f"Intervals: 95 % percentile bootstrap over scans ({RESAMPLES} resamples, seed {SEED}).",
        *made_facts(evaluation.made),
    ]


def rule_facts(rules: DetectionRules) -> list[str]:
    """What a candidate is, and what a hit."""
    size = f"candidates of fewer than {rules.min_voxels} voxels dropped"
    extraction = {
        "dynamic": f"from a peak of at least {FLOOR:g} down to its confidence / {FACTOR:g}, at most {MOST} a scan; {size}",
        "dynamic-fast": f"connected voxels of at least the scan's highest / {FACTOR:g}; {size}",
        "static": f"connected voxels of at least {rules.threshold:g}; {size}",
        "map": "connected voxels above 0",
    }[rules.extraction]
    near = f"an intersection over union of at least {rules.overlap:g}"
    near = near if rules.distance is None else f"centres of mass at most {rules.distance:g} mm apart"
    extra = {"ignore": "are not counted", "false-positive": "are false positives"}[rules.extra]
    return [
        f"Candidates, {rules.extraction}: {extraction}.",
        f"Hit: {near}; one to one, as many as can be. Further candidates on a lesion {extra}.",
    ]


def counted(scans: Sequence[Detections]) -> dict[str, int]:
    """Scans, lesions and candidates by what they count."""
    hits = sum(scan.count("hit") for scan in scans)
    lesions = sum(len(scan.lesions) for scan in scans)
    return {
        "scans": len(scans),
        "scans_with_lesions": sum(bool(scan.lesions) for scan in scans),
        "scans_without_candidates": sum(not scan.candidates for scan in scans),
        "lesions": lesions,
        "hits": hits,
        "missed": lesions - hits,
        "false_positives": sum(scan.count("false positive") for scan in scans),
        "not_counted": sum(scan.count("not counted") for scan in scans),
    }


def to_markdown(evaluation: DetectionEvaluation) -> str:
    """Table, choices, failures and notes."""
    lines = [f"# Detection: {evaluation.plan.cases.title}", "", *markdown_table(HEADER, table_rows(evaluation)), ""]
    lines += [f"- {fact}" for fact in facts(evaluation)]
    if evaluation.failures:
        lines += ["", "## Failed cases", "", *(f"- {each.name}: {_error(each)}" for each in evaluation.failures)]
    noted = [f"- {each.name}: {without_folders(note)}" for each in evaluation.results for note in each.notes]
    if noted:
        lines += ["", "## Notes", "", *noted]
    return "\n".join([*lines, "", RESEARCH_USE + "."]) + "\n"


def to_dict(evaluation: DetectionEvaluation) -> dict[str, Any]:
    """Everything as plain JSON types; a number that cannot be had is null."""
    plan, scores = evaluation.plan, evaluation.scores
    spec = plan.cases.spec
    return {
        "note": RESEARCH_USE,
        "title": plan.cases.title,
        "finished": timestamp(),
        "seconds": round(evaluation.seconds, 3),
        "peak_memory_bytes": peak_bytes(),
        "versions": versions(),
        "data_set": None if spec is None else spec.name,
        "split": plan.cases.split,
        "lesion_values": list(plan.lesion) or "all above 0",
        "rules": asdict(plan.rules) | {"distance_unit": "mm", "rules": rule_facts(plan.rules)},
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED, "over": "scans", "interval": 0.95},
        "model": None if evaluation.made is None else evaluation.made.model,
        "inference": None if evaluation.made is None else evaluation.made.inference,
        "counts": counted(evaluation.scans) | {"failures": len(evaluation.failures)},
        "figures": {
            "sensitivity": {f"{rate:g}": plain(asdict(each)) for rate, each in zip(RATES, scores.sensitivity, strict=True)},
            "mean_sensitivity": plain(asdict(scores.mean_sensitivity)),
            "average_precision": plain(asdict(scores.average_precision)),
            "auroc": plain(asdict(scores.auroc)),
            "ranking": plain(asdict(scores.ranking)),
        },
        "results": [
            {
                "case": each.name,
                "confidence": None if each.detections is None else each.detections.confidence,
                "lesions": [asdict(lesion) for lesion in each.detections.lesions] if each.detections else [],
                "candidates": [plain(asdict(found)) for found in each.detections.candidates] if each.detections else [],
                "notes": [without_folders(note) for note in each.notes],
                "error": _error(each),
            }
            for each in evaluation.results
        ],
    }


def _figures(evaluation: DetectionEvaluation) -> dict[str, Figure]:
    scores, words = evaluation.scores, ("1/8", "1/4", "1/2", "1", "2", "4", "8")
    return {
        "AP (lesions)": scores.average_precision,
        "AUROC (scans)": scores.auroc,
        "mean of AP and AUROC": scores.ranking,
        **{f"sensitivity at {rate} FP a scan": each for rate, each in zip(words, scores.sensitivity, strict=True)},
        "mean sensitivity": scores.mean_sensitivity,
    }


def _cells(figure: Figure) -> tuple[str, str]:
    if math.isnan(figure.value):
        return "none", ""
    return f"{figure.value:.4f}", "" if math.isnan(figure.low) else f"[{figure.low:.4f}, {figure.high:.4f}]"


def _case_row(result: DetectionResult) -> tuple[object, ...]:
    found = result.detections
    if found is None:
        return (result.name, *[""] * (len(CASES_HEADER) - 2), _error(result))
    hits = found.count("hit")
    counts = (len(found.lesions), hits, len(found.lesions) - hits, len(found.candidates))
    others = (found.count("false positive"), found.count("not counted"))
    return (result.name, *counts, *others, f"{found.confidence:.6g}", f"{result.seconds or 0:.4g}", "")


def _lesion_rows(result: DetectionResult) -> Iterator[tuple[object, ...]]:
    """A row for each candidate, with the lesion that it hits or overlaps most, then one for each lesion that was missed."""
    found = result.detections
    if found is None:
        return
    blank = [""] * 6
    for number, each in enumerate(found.candidates):
        lesion = blank if each.lesion is None else _sized(each.lesion, found.lesions[each.lesion])
        place, *size = _sized(number, each)
        distance = "" if math.isnan(each.distance) else f"{each.distance:.4g}"
        row = (result.name, each.outcome, *lesion, place, f"{each.confidence:.6g}", *size)
        yield (*row, f"{each.overlap:.4g}", distance)
    for number, missed in enumerate(found.lesions):
        if missed.candidate is None:
            yield (result.name, "missed", *_sized(number, missed), "", *blank, "", "")


def _sized(number: int, part: Lesion | Candidate) -> list[str]:
    """Number from 1, voxels, ml and centre of a lesion or candidate."""
    return [str(number + 1), str(part.voxels), f"{part.ml:.6g}", *(f"{each:.2f}" for each in part.centre)]


def _error(result: DetectionResult) -> str | None:
    return None if result.error is None else without_folders(result.error)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows((header, *rows))
    return text.getvalue()
