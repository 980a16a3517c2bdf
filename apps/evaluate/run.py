"""Benchmarks of the Evaluate tab: what there is to choose from, and a run by the functions of `restore bench`."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apps.serving.jobs import Report
from data_specs import KINDS, available, load_spec
from data_specs.files import set_folder
from hybrid.errors import HybridError, RequestError
from hybrid.weights.find import Store
from restore.cli.bench import enlargement_plan, same_size_plan
from restore.evaluation.baselines import names
from restore.evaluation.engine import run_benchmark
from restore.evaluation.report import table, write_report
from restore.loading import catalogue
from restore.restoration.choice import JUDGE

Task = Literal["super-resolution", "deblurring", "denoising", "jpeg"]
TASKS: dict[str, Task] = {
    "Enlarge": "super-resolution",
    "Remove blur": "deblurring",
    "Remove noise": "denoising",
    "Remove JPEG traces": "jpeg",
}
SCALES = (2, 3, 4)
BICUBIC = "bicubic"
MINI = "mini"
ARCHIVE = "benchmark.zip"


@dataclass(frozen=True)
class Asked:
    """A benchmark as the page asks for it.

    Attributes:
        task: What is scored.
        sets: Names of data sets.
        methods: Names of models and of classical methods.
        scale: Of super-resolution.
        levels: Sigmas or qualities; none for those of each set.
        data: Folder that holds the folders of the sets.
        device: Where networks compute.
    """

    task: Task
    sets: tuple[str, ...]
    methods: tuple[str, ...]
    scale: int = 4
    levels: tuple[float, ...] = ()
    data: Path | None = None
    device: str = "auto"


@dataclass(frozen=True)
class Evaluated:
    """What came of it.

    Attributes:
        header, rows: The table, as text.
        report, json, csv: Files.
        plots: PNG files.
        archive: All of them, and the result pictures.
        failures: Pictures without a score.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    report: Path
    json: Path
    csv: Path
    plots: tuple[Path, ...]
    archive: Path
    failures: int


def sets_for(task: Task, data: Path | None) -> list[tuple[str, str]]:
    """Titles and names of the data sets whose pictures are here; the shipped one first."""
    found = []
    for name in available(KINDS[task], task):
        try:
            spec = load_spec(name, KINDS[task], task)
            set_folder(spec, data)
        except HybridError:
            continue
        found.append((f"{spec.title} ({spec.images} pictures)" if spec.images else spec.title, name))
    return sorted(found, key=lambda pair: (pair[1] != MINI, pair[1] != JUDGE, pair[0]))


def methods_for(task: Task, scale: int) -> list[tuple[str, str]]:
    """Titles and names of classical methods, and of networks whose weights are on this computer."""
    classical = (BICUBIC,) if task == "super-resolution" else names(task)
    known, store = catalogue(), Store.from_environment()
    networks = []
    for entry in known:
        wanted = scale if task == "super-resolution" else 1
        if entry.task != task or wanted not in entry.files:
            continue
        try:
            here = known.shipped_path(entry, wanted) or store.find(entry, wanted)
        except HybridError:
            continue  # damaged: `restore models verify` says so
        if here:
            networks.append((f"{entry.title} ({entry.name})", entry.name))
    return networks + [(f"{name}, classical", name) for name in classical]


def evaluate(asked: Asked, folder: Path, report: Report) -> Evaluated:
    """Score every method on every picture, and write table, plots and result pictures into a folder.

    Raises:
        HybridError: There is nothing to do, or the pictures are not here.
    """
    if not asked.sets or not asked.methods:
        raise RequestError("A benchmark needs a data set and a method.", hint="Choose at least one of each.")
    allowed = {name for _, name in methods_for(asked.task, asked.scale)}, {name for _, name in sets_for(asked.task, asked.data)}
    if not (allowed[0].issuperset(asked.methods) and allowed[1].issuperset(asked.sets)):
        raise RequestError("A method or data set is not here any more.", hint="Choose again.")
    sets, methods, rest = list(asked.sets), list(asked.methods), (asked.data, asked.device, "float32")
    if asked.task == "super-resolution":
        plan = enlargement_plan(sets, methods, asked.scale, *rest)
    else:
        plan = same_size_plan(asked.task, sets, methods, list(asked.levels), *rest)
    report(0, plan.runs)
    result = run_benchmark(plan, output=folder, on_progress=report)
    header, rows = table(result)
    markdown, json, csv, *plots = write_report(result, folder)
    archive = _archive(folder)
    return Evaluated(header, tuple(rows), markdown, json, csv, tuple(plots), archive, result.failures)


def read_levels(text: str, task: Task) -> tuple[float, ...]:
    """Sigmas or qualities as typed.

    >>> read_levels("15, 25", "denoising"), read_levels("", "jpeg")
    ((15.0, 25.0), ())

    Raises:
        RequestError: Something else was typed.
    """
    if task not in ("denoising", "jpeg") or not text.strip():
        return ()
    try:
        levels = tuple(float(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise RequestError(f"{text} are no numbers.", hint="Type numbers, such as 15, 25, 50.") from error
    high = 100 if task == "jpeg" else 255
    if not all(0 < level <= high for level in levels):
        raise RequestError(f"{text} is out of range.", hint=f"Type numbers above 0, up to {high}.")
    return levels


def _archive(folder: Path) -> Path:
    path = folder / ARCHIVE
    files: Sequence[Path] = sorted(file for file in folder.rglob("*") if file.is_file())
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(file, file.relative_to(folder))
    return path
