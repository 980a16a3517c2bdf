"""Several models on the same cases as one table, with how they were trained: from the folders that evaluations wrote.

Only what was evaluated alike is put beside each other: the same cases, conventions of the measures, and structures.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from hybrid.console import folder_of
from hybrid.errors import InputError, RequestError
from hybrid.records import write_bytes
from hybrid.training.loop import read_log
from medical.evaluation.aggregation import Paired, paired
from medical.evaluation.engine import METRICS, Metric
from medical.evaluation.report import FACTS, MEAN, markdown_table
from medical.notice import RESEARCH_USE
from medical.volumes.staging import staged

TABLE, NUMBERS, CURVES = "systems.md", "systems.csv", "curves.png"
_UNITS: dict[Metric, str] = {"dice": "Dice", "hd95": "HD95 (mm)", "nsd": "NSD"}


@dataclass(frozen=True)
class Run:
    """How a network came about, from the record beside its weights.

    Attributes:
        name: Of the recipe.
        weights_sha256: Of the weights that it made.
        steps, seconds: Updates, and how long they took with the validations between them.
        seed: Of everything random.
        log: Rows of its log.
    """

    name: str
    weights_sha256: str
    steps: int
    seconds: float
    seed: int
    log: tuple[Mapping[str, float], ...]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """From the folder of a training that has ended.

        Raises:
            InputError: No record, or several, or no log beside it.
        """
        records = [path for path in sorted(folder.glob("*.json")) if path.with_suffix(".csv").is_file()]
        try:
            [record] = records
            facts = json.loads(record.read_text(encoding="utf-8"))
            training = facts["recipe"]["training"]
            log = tuple(read_log(record.with_suffix(".csv")))
            return cls(record.stem, facts["weights_sha256"], training["steps"], facts["seconds"], training["seed"], log)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{folder} does not hold one training that has ended.", hint="Name the output folder of `medical train`."
            ) from error


@dataclass(frozen=True)
class System:
    """One model as an evaluation found it.

    Attributes:
        name: Of the model, as in the evaluation; of the evaluation's folder where label maps were scored.
        title: Of the architecture.
        facts: The evaluation's `report.json`.
        run: How it was trained, where that is known.
    """

    name: str
    title: str
    facts: Mapping[str, Any]
    run: Run | None = None

    @classmethod
    def read(cls, folder: Path, runs: Sequence[Run] = ()) -> System:
        """From the folder of an evaluation; its training is found among `runs` by the hash of the weights.

        Raises:
            InputError: It holds no report of an evaluation.
        """
        try:
            facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
            model = facts["model"] or {}
            known = [run for run in runs if run.weights_sha256 == model.get("sha256")]
            name = known[0].name if known else model.get("name") or folder.resolve().name
            facts["means"][MEAN], facts["cases"], facts["conventions"], facts["results"]
            return cls(name, model.get("title") or "label maps", facts, known[0] if known else None)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(
                f"{folder} holds no {FACTS} of an evaluation.", hint="Name the output folder of `medical evaluate`."
            ) from error

    @property
    def parameters(self) -> int | None:
        """Number of parameters of the network; None where the results do not say it."""
        return (self.facts["model"] or {}).get("parameters")

    @property
    def seconds(self) -> float:
        """Median over the cases, from file to labels."""
        seconds: float = median([row["seconds"] for row in self.facts["results"] if row.get("seconds")] or [math.nan])
        return seconds

    def mean(self, structure: str, metric: Metric) -> float | None:
        """Over the cases."""
        found: float | None = self.facts["means"][structure][metric]["mean"]
        return found

    def cases(self, metric: Metric) -> list[float]:
        """Mean over the structures of each case; NaN where there is none."""
        values = [[score[metric] for score in (row.get("scores") or {}).values()] for row in self.facts["results"]]
        numbers = [[value for value in row if value is not None] for row in values]
        return [sum(row) / len(row) if row else math.nan for row in numbers]


def read_systems(folders: Sequence[Path], runs: Sequence[Path] = ()) -> list[System]:
    """The systems of several evaluations, in their order.

    Raises:
        InputError: A folder holds no evaluation, or a run no training.
        RequestError: Fewer than two, or not evaluated alike; or a run made none of the weights.
    """
    known = [Run.read(run) for run in runs]
    systems = _told_apart([System.read(folder, known) for folder in folders], folders)
    for path, made in zip(runs, known, strict=True):
        if all(system.run is not made for system in systems):
            raise RequestError(f"{path} made none of the weights that were evaluated.", hint="Leave this --run out.")
    if len(systems) < 2:
        raise RequestError("A comparison takes two evaluations at least.", hint="Name the folders that they wrote.")
    first, *others = systems
    for other in others:
        for key, what in {"cases": "cases", "conventions": "measures", "means": "structures"}.items():
            ours, theirs = first.facts[key], other.facts[key]
            if (list(ours) != list(theirs)) if key == "means" else (ours != theirs):
                raise RequestError(
                    f"{other.name} was evaluated on other {what} than {first.name}.",
                    hint="Evaluate both with the same --data, --spec, --split and options.",
                )
    return systems


def _told_apart(systems: list[System], folders: Sequence[Path]) -> list[System]:
    """Systems of one name, such as trainings of one recipe, with the folder of their evaluation beside it."""
    names = [system.name for system in systems]
    return [
        replace(system, name=f"{system.name} ({folder.resolve().name})") if names.count(system.name) > 1 else system
        for system, folder in zip(systems, folders, strict=True)
    ]


def header(systems: Sequence[System]) -> tuple[str, ...]:
    """Columns of `rows`."""
    structures = [name for name in systems[0].facts["means"] if name != MEAN]
    return (
        "system", "architecture", "parameters", "steps", "training (min)", *(f"Dice, {name}" for name in structures),
        *(_UNITS[metric] for metric in METRICS), "p (Dice)", "s / case", "peak memory (MB)",
    )  # fmt: skip


def rows(systems: Sequence[System]) -> list[tuple[str, ...]]:
    """One row of text for each system; p is of a paired Wilcoxon test of Dice against the system with the best."""
    best = max(systems, key=lambda system: system.mean(MEAN, "dice") or -math.inf)
    structures = [name for name in systems[0].facts["means"] if name != MEAN]
    found = []
    for system in systems:
        run, test = system.run, None if system is best else paired(system.cases("dice"), best.cases("dice"))
        found.append((
            system.name, system.title, f"{system.parameters:,}" if system.parameters else "",
            f"{run.steps:,}" if run else "", f"{run.seconds / 60:.0f}" if run else "",
            *(_number(system.mean(name, "dice"), 4) for name in structures),
            *(_number(system.mean(MEAN, metric), 2 if metric == "hd95" else 4) for metric in METRICS),
            _p(test), _number(system.seconds, 3), f"{system.facts['peak_memory_bytes'] / 1e6:.0f}",
        ))  # fmt: skip
    return found


def write_table(systems: Sequence[System], output: Path) -> tuple[Path, ...]:
    """Write ``systems.md``, ``systems.csv`` and, where a training is known, ``curves.png``; return their paths.

    Raises:
        OutputError: The folder does not take a file.
    """
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header(systems), *rows(systems)])
    files = {TABLE: to_markdown(systems).encode(), NUMBERS: text.getvalue().encode()}
    if any(system.run for system in systems):
        files[CURVES] = learning_curves(systems)
    paths = tuple(output / name for name in files)
    orphans = [] if CURVES in files else [output / CURVES]
    with folder_of(paths[0]), staged(paths, overwrite=True, orphans=orphans) as folder:
        for name, content in files.items():
            write_bytes(folder / name, content)
    return paths


def to_markdown(systems: Sequence[System]) -> str:
    """The table, and what holds for all of its rows."""
    facts = systems[0].facts
    lines = markdown_table(header(systems), rows(systems))
    seeds = sorted({system.run.seed for system in systems if system.run})
    said = f"{len(facts['cases'])} cases" + (f" of {facts['data_set']}, {facts['split']}" if facts["data_set"] else "")
    return "\n".join([
        *lines, "", f"- {said}; HD95 and NSD at {facts['conventions']['tolerance']:g} mm are means over the structures.",
        "- p: paired Wilcoxon signed-rank test over the cases, two-sided, against the system with the best Dice.",
        "- s / case: median from file to labels; peak memory: of the whole process that evaluated.",
        *([f"- Seeds of the trainings: {', '.join(map(str, seeds))}."] if seeds else []), "", RESEARCH_USE + ".", "",
    ])  # fmt: skip


def learning_curves(systems: Sequence[System]) -> bytes:
    """PNG: loss and mean validation Dice against the share of the steps, one line a system: minutes depend on the machine."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.8), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2)
    for system in systems:
        if system.run is None:
            continue
        log = system.run.log
        done = [row["step"] / system.run.steps for row in log]
        [line] = left.plot(done, [row["loss"] for row in log], linewidth=1, label=system.name)
        points = [(share, row["dice"]) for share, row in zip(done, log, strict=True) if "dice" in row]
        right.plot([x for x, _ in points], [y for _, y in points], marker=".", color=line.get_color())
    left.set(xlabel="share of the steps", ylabel="training loss", yscale="log")
    right.set(xlabel="share of the steps", ylabel="Dice, validation during training")
    left.legend(fontsize="small")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    FigureCanvasAgg(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _number(value: float | None, digits: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def _p(test: Paired | None) -> str:
    return "best" if test is None else f"{test.p:.1g}" if test.p >= 1e-4 else "< 1e-4"
