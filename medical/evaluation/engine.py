"""Scores of segmentations against references, case by case: a folder of label maps, or a network on a data set.

`plan_folders` and `plan_data_set` say what is scored; `Folder` and `medical.evaluation.network.Network` give the label
maps; `run_evaluation` scores them on the grid of the reference, and `medical.evaluation.report` writes what came out.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import find_objects

from data_specs import SegmentationSpec, find_volumes
from data_specs.volume_files import VOLUME_SUFFIXES, volume_stem
from hybrid.batch import engine as batch
from hybrid.errors import HybridError, InputError
from medical.evaluation.boundaries import boundary_figures
from medical.evaluation.metrics import Conventions, Scores, score, score_labels
from medical.pictures.label_maps import label_maps_in, read_any_label_map
from medical.volumes.geometry import Grid

log = logging.getLogger(__name__)

Labels = NDArray[np.integer]
Progress = Callable[[int, int], None]
Metric = Literal["dice", "hd95", "nsd"]
METRICS: tuple[Metric, ...] = ("dice", "hd95", "nsd")


@dataclass(frozen=True)
class Target:
    """What is scored as one: a structure, or several that make a region."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class EvaluationCase:
    """A reference, and what a segmentation of it is made or found by.

    Attributes:
        name: Name in the report.
        reference: Its label map.
        images: The scan; several files where each channel has its own. Empty where no scan is needed.
    """

    name: str
    reference: Path
    images: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class Prediction:
    """A label map to be scored, (i, j, k) on its grid, what a reader should know of it, and (outputs, i, j, k) probabilities."""

    labels: Labels
    grid: Grid
    notes: tuple[str, ...] = ()
    probabilities: NDArray[np.float32] | None = None


Predict = Callable[[EvaluationCase], Prediction]


@dataclass(frozen=True)
class EvaluationPlan:
    """All that will be scored.

    Attributes:
        title: What is evaluated on what.
        cases: In order of their names.
        targets: What is scored in each; empty: each value that the label maps hold.
        conventions: How it is scored.
        names: Names of values, for targets that are yet to be found.
        split: Name of the part of the data set; None for folders.
        spec: The data set, where one was named.
    """

    title: str
    cases: tuple[EvaluationCase, ...]
    targets: tuple[Target, ...]
    conventions: Conventions
    names: Mapping[int, str] = field(default_factory=dict)
    split: str | None = None
    spec: SegmentationSpec | None = None


@dataclass(frozen=True)
class CaseResult:
    """Scores of a case, or the error that kept it from them.

    Attributes:
        name: The case.
        scores: By target.
        spacing: Of the reference, in mm; pictures have none.
        seconds: Reading and segmenting.
        notes: What a reader should know.
        error: Why there are no scores.
        boundaries: Of pictures: measures of `medical.evaluation.boundaries`, by name.
    """

    name: str
    scores: Mapping[Target, Scores] = field(default_factory=dict)
    spacing: tuple[float, ...] = ()
    seconds: float | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    boundaries: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """How label maps were made, for the report, as plain JSON types.

    Attributes:
        model: Name, weights and their hash, options, protocol.
        inference: Windows, overlap, mirror images, device, precision.
        notes: What a reader should know, one sentence each.
    """

    model: Mapping[str, Any]
    inference: Mapping[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """What came out.

    Attributes:
        plan: What was asked.
        targets: What was scored.
        results: One for each case, in order.
        made: How the label maps were made; None where they lay in a folder.
        seconds: Wall time of the whole.
    """

    plan: EvaluationPlan
    targets: tuple[Target, ...]
    results: tuple[CaseResult, ...]
    made: Made | None
    seconds: float

    @property
    def scored(self) -> tuple[CaseResult, ...]:
        """Cases with scores."""
        return tuple(result for result in self.results if result.error is None)

    @property
    def failures(self) -> tuple[CaseResult, ...]:
        """Cases without."""
        return tuple(result for result in self.results if result.error is not None)

    @property
    def exit_code(self) -> int:
        """1 if a case has no scores, else 0."""
        return 1 if self.failures else 0

    def table(self, metric: Metric) -> NDArray[np.float64]:
        """One metric, shape (cases with scores, targets)."""
        rows = [[getattr(result.scores[target], metric) for target in self.targets] for result in self.scored]
        return np.array(rows, np.float64).reshape(len(self.scored), len(self.targets))


class Folder:
    """Label maps in a folder, found by the name of the case, of the reference or of the scan. Raises InputError without it."""

    holds = "label map"

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise InputError(f"{folder} is not a folder.", hint="Name the folder of the label maps to be scored.")
        self.folder = folder
        self.files = label_maps_in(folder)

    def find(self, case: EvaluationCase) -> Path | None:
        """The file of a case, None where there is none."""
        return next((self.files[name] for name in file_names(case) if name in self.files), None)

    def __call__(self, case: EvaluationCase) -> Prediction:
        path = self.find(case)
        if path is None:
            ending = case.reference.suffix if of_picture(case) else ".nii.gz"
            raise InputError(f"There is no prediction {case.name}{ending} in {self.folder.name}.", hint="Segment that scan too.")
        found = read_any_label_map(path)
        return Prediction(found.labels, found.grid, tuple(f"Prediction: {warning}" for warning in found.warnings))


def plan_folders(predictions: Folder, references: Path, conventions: Conventions) -> EvaluationPlan:
    """Plan to score a folder of label maps against a folder of references of the same names.

    Raises:
        InputError: A folder is missing or empty, or no name of one is in the other.
    """
    if not references.is_dir():
        raise InputError(f"{references} is not a folder.", hint="Name the folder of the reference label maps.")
    cases = tuple(EvaluationCase(name, path) for name, path in label_maps_in(references).items())
    if not cases:
        raise InputError(
            f"{references} holds no .nii.gz or .nii files, and no pictures.", hint="Name the folder of the reference label maps."
        )
    first = next((path for case in cases if (path := predictions.find(case)) is not None), None)
    if first is None:
        raise InputError(
            f"No {predictions.holds} in {predictions.folder} has the name of one in {references}, "
            f"such as {cases[0].reference.name}.",
            hint="Give predictions the names of their references.",
        )
    title = f"{predictions.folder.resolve().name} against {references.resolve().name}"
    conventions = replace(conventions, unit="px" if of_picture(cases[0]) else "mm")
    return EvaluationPlan(title, cases, (), conventions, _names([cases[0].reference, first]))


def plan_data_set(
    spec: SegmentationSpec, data: Path, split: str, *, title: str, conventions: Conventions | None = None
) -> EvaluationPlan:
    """Plan to score on a split of a data set.

    Args:
        spec: Its description.
        data: Folder that holds the data set's folder, or that folder itself.
        split: Name of the split; ``all`` for all cases.
        title: What is scored, such as the name of a model.
        conventions: None for those of the description.

    Raises RequestError and InputError as `data_specs.find_volumes`.
    """
    found = find_volumes(spec, data, split)
    cases = tuple(EvaluationCase(case.name, case.labels, case.images) for case in found.cases)
    targets = tuple(Target(each.name, each.values) for each in spec.scored)
    conventions = conventions or Conventions(**spec.scoring.model_dump())
    return EvaluationPlan(f"{title} on {spec.title}, {split}", cases, targets, conventions, split=split, spec=spec)


@dataclass(frozen=True)
class EvaluationWorker:
    """Scores one case after the other.

    Attributes:
        plan, predict: As of `run_evaluation`.
    """

    plan: EvaluationPlan
    predict: Predict

    def run(self, work: EvaluationCase, *, replace: bool = False, tell: batch.Tell | None = None) -> batch.Made:
        """The report: the `CaseResult`."""
        return batch.Made((), _evaluate(self.plan, work, self.predict))


def run_evaluation(
    plan: EvaluationPlan,
    predict: Predict,
    *,
    made: Made | None = None,
    on_progress: Progress | None = None,
    engine: batch.Engine | None = None,
) -> Evaluation:
    """Score every case.

    A case that fails for a reason of the project's own errors (damaged file, another grid, too little memory) becomes a
    result with an error, the others go on, and `Evaluation.exit_code` is 1. Other errors are raised.

    Args:
        plan: From `plan_folders` or `plan_data_set`.
        predict: Gives the label map of a case: a `Folder`, or `medical.evaluation.network.Network`.
        made: How the label maps are made, for the report.
        on_progress: Called as (cases done, cases in all).
        engine: Where cases are done, by an `EvaluationWorker` or what makes one; None: one after another here.
    """
    start = time.perf_counter()
    results: dict[int, CaseResult] = {}
    for place, answer in batch.answers(plan.cases, engine or batch.Local(EvaluationWorker(plan, predict))):
        case = plan.cases[place]
        results[place] = CaseResult(case.name, error=str(answer)) if isinstance(answer, HybridError) else answer
        if on_progress is not None:
            on_progress(len(results), len(plan.cases))
    return _evaluation(plan, [results[place] for place in range(len(plan.cases))], made, time.perf_counter() - start)


def _evaluation(plan: EvaluationPlan, results: Sequence[CaseResult], made: Made | None, seconds: float) -> Evaluation:
    targets = plan.targets or tuple(sorted({target for result in results for target in result.scores}, key=lambda t: t.values))
    filled = tuple(_filled(result, targets, plan.conventions) for result in results)
    return Evaluation(plan, targets, filled, made, seconds)


def file_names(case: EvaluationCase) -> list[str]:
    """What a file of a case may be called, without its ending."""
    return [case.name, volume_stem(case.reference), *(volume_stem(image) for image in case.images)]


def of_picture(case: EvaluationCase) -> bool:
    """Whether the case is a picture, by the name of its reference."""
    return not case.reference.name.lower().endswith(VOLUME_SUFFIXES)


def _evaluate(plan: EvaluationPlan, case: EvaluationCase, predict: Predict) -> CaseResult:
    found = read_any_label_map(case.reference, plan.spec.label_values if plan.spec is not None else None)
    grid = found.grid
    reference, notes = without_strays(found.labels, plan.spec)
    start = time.perf_counter()
    prediction = predict(case)
    seconds = time.perf_counter() - start
    check_grid(prediction.grid, grid)
    told = tuple(f"Reference: {warning}" for warning in found.warnings)
    notes = (*notes, *told, *prediction.notes, *_unknown(prediction.labels, plan))
    targets = plan.targets or tuple(
        Target(plan.names.get(value, f"label {value}"), (value,))
        for value in sorted({*_values(prediction.labels), *_values(reference)})
    )
    values = [target.values for target in targets]
    if not of_picture(case):
        scores = score_labels(prediction.labels, reference, grid.spacing, values, plan.conventions)
        return CaseResult(case.name, dict(zip(targets, scores, strict=True)), grid.spacing, seconds, notes)
    ours, theirs = prediction.labels[..., 0], reference[..., 0]
    scores = score_labels(ours, theirs, (1.0, 1.0), values, plan.conventions)
    boundaries = boundary_figures(ours, theirs, {target.name: target.values for target in targets}, plan.conventions)
    return CaseResult(case.name, dict(zip(targets, scores, strict=True)), (), seconds, notes, boundaries=boundaries)


def without_strays(labels: Labels, spec: SegmentationSpec | None) -> tuple[Labels, tuple[str, ...]]:
    """A reference (i, j, k) without values that are no structure, and what was done. Raises InputError if they are refused."""
    if spec is None or spec.stray_labels == "ignore":
        return labels, ()
    known = [structure.value for structure in spec.structures]
    stray = [value for value in _values(labels) if value not in known]
    if not stray:
        return labels, ()
    if spec.stray_labels == "refuse":
        raise InputError(
            f"The reference holds the values {_listed(stray)}, which {spec.title} does not know.",
            hint="Check that the label map belongs to this data set.",
        )
    count = int(np.isin(labels, stray).sum())
    note = f"Voxels of the reference with the stray values {_listed(stray)} were clamped to {max(known)}: {count}."
    log.warning("%s", note)
    return np.minimum(labels, max(known)).astype(labels.dtype), (note,)


def _unknown(prediction: Labels, plan: EvaluationPlan) -> tuple[str, ...]:
    """What a reader should know of values that are not scored."""
    if plan.spec is None or plan.spec.stray_labels == "ignore":
        return ()
    known = {structure.value for structure in plan.spec.structures}
    unknown = [value for value in _values(prediction) if value not in known]
    return (f"The prediction holds the values {_listed(unknown)}, which are no structure and not scored.",) if unknown else ()


def check_grid(prediction: Grid, reference: Grid) -> None:
    """Refuse to compare what lies at different places. Raises InputError if the grids differ."""
    if prediction.matches(reference):
        return
    sides = [" x ".join(map(str, grid.shape)) for grid in (prediction, reference)]
    differ = f"{sides[0]} voxels against {sides[1]}" if sides[0] != sides[1] else "their voxels lie at other places"
    raise InputError(
        f"The prediction lies on another grid than the reference: {differ}.",
        hint="Bring it onto the grid of the reference before it is scored.",
    )


def _values(labels: Labels) -> list[int]:
    """Values above 0 that a label map holds, found without sorting it."""
    return [value for value, box in enumerate(find_objects(labels), 1) if box is not None]


def _names(label_maps: Iterable[Path]) -> dict[int, str]:
    """Names of values, each from the first label map that states one; a damaged one is reported when it is scored."""
    known: dict[int, str] = {}
    for path in label_maps:
        try:
            structures = read_any_label_map(path).structures
        except HybridError:
            continue
        for each in structures:
            if each.name != f"label {each.value}":
                known.setdefault(each.value, each.name)
    names = list(known.values())
    return {value: name if names.count(name) == 1 else f"{name} ({value})" for value, name in known.items()}


def _filled(result: CaseResult, targets: Sequence[Target], conventions: Conventions) -> CaseResult:
    """A result with scores of the targets too that other cases alone hold: there both masks are empty."""
    if result.error is not None:
        return result
    nothing = np.zeros((1, 1, 1), bool)
    empty = score(nothing, nothing, (1.0, 1.0, 1.0), conventions)
    return replace(result, scores={target: result.scores.get(target, empty) for target in targets})


def _listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:8])) + (", ..." if len(values) > 8 else "")
