"""The engine of the benchmarks: every method on every picture of every set, by the protocol of the papers.

A set at one level (a scale, a noise strength, a quality) is a `TestSet`, which reads its pictures and scores results:
`restore.evaluation.sr` has those of super-resolution, `restore.evaluation.restoration` those at the picture's own size.
Both plan first, which finds all files and fails early; `run_benchmark` then runs, and `restore.evaluation.report` writes
what came out.
"""

from __future__ import annotations

import logging
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from data_specs import Checked, DataSpec
from hybrid.batch.engine import Engine, Local, Made, Tell, answers
from hybrid.devices import set_threads
from hybrid.errors import HybridError, RequestError
from restore.evaluation.files import write_png
from restore.evaluation.metrics_multi import output_scores

log = logging.getLogger(__name__)

Picture = NDArray[np.uint8]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Method:
    """One row of a benchmark: something that restores pictures, or the reason why it can not.

    Attributes:
        name: Name in the report; no two methods of a benchmark share one.
        run: Takes what `takes` says and returns the restored picture. None for a method that is skipped.
        skipped: Why the method cannot run, such as weights that are absent. It is never replaced by another.
        parameters: Number of parameters of the network; None if it has none.
        published: Key of the method in the tables of published numbers.
        takes: ``picture``: the degraded picture, for super-resolution the LR picture (H, W, 3) uint8, which becomes
            (H * s, W * s, 3). ``luma``: the HR luma plane (H, W), which it shrinks and enlarges itself and returns, as the
            classical baselines do. ``case``: all that is known of the picture, as classical methods that are told the
            strength of the noise or the kernel take it.
        outputs: How many pictures it returns, as a further first axis; 1: one picture, no such axis.
        select: Of several outputs (outputs, H, W, C) and the degraded picture, the one to use, without a reference.
        timed: Whether its time says anything; not of what returns its input.
        facts: What else a report should record: weights file, its sha256, device, precision, tiles.
    """

    name: str
    run: Callable[[Any], np.ndarray] | None = None
    skipped: str | None = None
    parameters: int | None = None
    published: str | None = None
    takes: Literal["picture", "luma", "case"] = "picture"
    outputs: int = 1
    select: Callable[[np.ndarray, np.ndarray], int] | None = None
    timed: bool = True
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.run is None) == (self.skipped is None):
            raise ValueError(f"method {self.name!r} needs either something to run or a reason why it is skipped")


@dataclass(frozen=True)
class ImageScore:
    """PSNR and PSNR-B in dB, SSIM and seconds of one method on one picture; or the error that kept it from a score."""

    image: str
    psnr: float | None = None
    ssim: float | None = None
    seconds: float | None = None
    psnr_b: float | None = None
    grey: bool = False
    cut: bool = False
    error: str | None = None


@dataclass(frozen=True)
class PublishedScore:
    """What a paper or its repository reports, and where."""

    method: str
    psnr: float
    ssim: float | None
    source: str
    psnr_b: float | None = None


class TestSet(ABC):
    """A data set at one level, whose files are found.

    Attributes:
        spec: Its description.
        checked: Whether the files are the known ones; None: no sums known.
        base: Title of what the sheet shows as the starting point.
        base_method: The method that scores just that.
    """

    __test__ = False  # not a test for pytest
    spec: DataSpec
    checked: Checked | None
    base: str
    base_method: str

    @property
    @abstractmethod
    def level(self) -> str:
        """The level, such as ``x4`` or ``sigma 25``; empty where there is none."""

    @property
    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """The pictures, in order."""

    @property
    def title(self) -> str:
        """Name and level in print."""
        return f"{self.spec.title} {self.level}".strip()

    @property
    def folder(self) -> str:
        """Name of the folder of its result pictures."""
        return "_".join(filter(None, (folder_name(self.spec.name), self.level.replace(" ", ""))))

    @property
    def scored(self) -> bool:
        """Whether there is a reference to score against."""
        return True

    @abstractmethod
    def read(self, index: int) -> Any:
        """The case of one picture. Raises InputError if its files cannot be used."""

    @abstractmethod
    def given(self, case: Any, method: Method) -> Any:
        """What the method's `run` takes."""

    @abstractmethod
    def score(self, name: str, result: np.ndarray, case: Any, method: Method) -> ImageScore:
        """Score one result, (H, W, C). Raises OutputError if it is no picture of the case's size and type."""

    @abstractmethod
    def as_file(self, result: np.ndarray) -> Picture:
        """A result (H, W, C) as it is kept: uint8."""

    @abstractmethod
    def shown(self, case: Any) -> tuple[Picture, Picture]:
        """The reference and the starting point of the sheet, (H, W, 3) of one size."""

    @abstractmethod
    def published(self, method: str | None) -> PublishedScore | None:
        """The published row of a method, by its key in the table; None if there is none."""

    @abstractmethod
    def facts(self, scores: Sequence[ImageScore]) -> list[str]:
        """Every choice behind the scores, one sentence each; `scores` are those of the pictures that could be read."""

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """Name, protocol and layout as plain values."""

    def keep(self, output: Path, method: Method, index: int, case: Any, result: np.ndarray) -> None:
        """Write what is kept of a result, (H, W, C)."""
        write_png(self.path(output, method.name, self.names[index]), self.as_file(result))

    def path(self, output: Path, method: str, image: str) -> Path:
        """Where the result of a method on a picture lies."""
        return output / self.folder / folder_name(method) / f"{image}.png"


@dataclass(frozen=True)
class BenchmarkPlan:
    """All that will be run: every method on every picture of every set."""

    sets: tuple[TestSet, ...]
    methods: tuple[Method, ...]

    @property
    def runs(self) -> int:
        """Number of pictures to be restored."""
        return sum(len(each.names) for each in self.sets) * sum(method.run is not None for method in self.methods)


@dataclass(frozen=True)
class Row:
    """One method on one set. The means are None for a skipped method, and as soon as one picture failed.

    Attributes:
        derived: The row reads several outputs in another way than the method itself, and has no pictures of its own.
    """

    test_set: TestSet
    method: Method
    scores: tuple[ImageScore, ...]
    published: PublishedScore | None
    derived: bool = False

    @property
    def failures(self) -> tuple[ImageScore, ...]:
        """Pictures without a score."""
        return tuple(score for score in self.scores if score.error is not None)

    @property
    def psnr(self) -> float | None:
        """Mean in dB; None as soon as one picture failed."""
        return self._mean([score.psnr for score in self.scores])

    @property
    def ssim(self) -> float | None:
        """Mean; None as soon as one picture failed."""
        return self._mean([score.ssim for score in self.scores])

    @property
    def psnr_b(self) -> float | None:
        """Mean in dB, where it was scored; None as soon as one picture failed."""
        return self._mean([score.psnr_b for score in self.scores])

    @property
    def seconds(self) -> float | None:
        """Mean seconds per picture, without reading and scoring."""
        return self._mean([score.seconds for score in self.scores])

    def _mean(self, values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return fmean(numbers) if numbers and not self.failures else None


@dataclass(frozen=True)
class Benchmark:
    """The result: the rows of each set and method, in the order of the plan."""

    plan: BenchmarkPlan
    rows: tuple[Row, ...]

    @property
    def failures(self) -> int:
        """Pictures without a score, over all rows; skipped methods do not count."""
        return sum(len(row.failures) for row in self.rows if not row.derived)

    @property
    def exit_code(self) -> int:
        """1 if a picture has no score, else 0."""
        return 1 if self.failures else 0


def check_names(sets: Sequence[str], methods: Sequence[Method], reserved: str | None = None) -> None:
    """Raises RequestError for a benchmark without anything to do, and for names that would share a row or a folder."""
    if not sets or not methods:
        raise RequestError("A benchmark needs at least one data set and one method.")
    kept = [] if reserved is None else [reserved]
    for what, names in (("data set", list(sets)), ("method", kept + [folder_name(method.name) for method in methods])):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RequestError(f"The {what} {' and '.join(twice)} is named twice.", hint="Name each once.")


Place = tuple[int, int, int]
"""A picture to be restored: the places of its set and of the method in the plan, and of the picture in the set."""


@dataclass(frozen=True)
class BenchmarkWorker:
    """Scores one method on one picture after the other.

    Attributes:
        plan, output: As of `run_benchmark`.
    """

    plan: BenchmarkPlan
    output: Path | None = None

    def run(self, work: Place, *, replace: bool = False, tell: Tell | None = None) -> Made:
        """The report: the scores of all outputs, and the place of the one to use."""
        test_set, method, index = work
        return Made((), _try_score(self.plan.sets[test_set], self.plan.methods[method], index, self.output))


@dataclass(frozen=True)
class BenchmarkRecipe:
    """What another process makes a `BenchmarkWorker` of.

    Attributes:
        plan: Makes the plan, with its networks, from names and paths that all machines see.
        output: As of `run_benchmark`.
        threads: To compute with.
    """

    plan: Callable[[], BenchmarkPlan]
    output: Path | None
    threads: int

    def make(self, room: int | None = None) -> BenchmarkWorker:
        """Find the files and load the networks."""
        set_threads(self.threads)
        return BenchmarkWorker(self.plan(), self.output)


def run_benchmark(
    plan: BenchmarkPlan, *, output: Path | None = None, on_progress: Progress | None = None, engine: Engine | None = None
) -> Benchmark:
    """Score every method on every picture.

    Args:
        plan: From `plan_super_resolution` or `plan_restoration`.
        output: Folder for the result pictures (`TestSet.path`) and for LR pictures that were made; None: keep none.
        on_progress: Called as ``on_progress(done, total)`` after each picture.
        engine: Where pictures are run, by a `BenchmarkWorker` or a `BenchmarkRecipe`; None: one after another here.

    A picture that fails for a reason of the project's own errors (damaged file, too little memory, wrong result)
    becomes a score with an error, its row has no mean and `Benchmark.exit_code` is 1. Other errors are raised.
    """
    places = [
        (number, kind, index)
        for number, test_set in enumerate(plan.sets)
        for kind, method in enumerate(plan.methods)
        for index in range(len(test_set.names) if method.run is not None else 0)
    ]
    found: dict[Place, tuple[tuple[ImageScore, ...], int]] = {}
    for done, (at, answer) in enumerate(answers(places, engine or Local(BenchmarkWorker(plan, output))), 1):
        number, _, index = places[at]
        lost = isinstance(answer, HybridError)
        found[places[at]] = ((ImageScore(plan.sets[number].names[index], error=str(answer)),), 0) if lost else answer
        if on_progress is not None:
            on_progress(done, plan.runs)
    rows: list[Row] = []
    for number, test_set in enumerate(plan.sets):
        for kind, method in enumerate(plan.methods):
            of_row = [found[place] for place in places if place[:2] == (number, kind)]
            rows += _rows(test_set, method, [scores for scores, _ in of_row], [choice for _, choice in of_row])
    return Benchmark(plan, tuple(rows))


def as_rgb(picture: Picture) -> Picture:
    """A grey picture (H, W, 1) as three equal channels; colour as it is."""
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def folder_name(name: str) -> str:
    """A name that every file system takes.

    >>> folder_name("bicubic (stored LR)")
    'bicubic-stored-lr'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "method"


def _try_score(test_set: TestSet, method: Method, index: int, output: Path | None) -> tuple[tuple[ImageScore, ...], int]:
    """The scores of all outputs of a method on one picture, and the place of the one to use."""
    try:
        return _score(test_set, method, index, output)
    except HybridError as error:
        name = test_set.names[index]
        log.warning("%s failed on %s of %s: %s", method.name, name, test_set.title, error)
        return (ImageScore(name, error=str(error)),), 0


def _score(test_set: TestSet, method: Method, index: int, output: Path | None) -> tuple[tuple[ImageScore, ...], int]:
    assert method.run is not None
    name = test_set.names[index]
    case = test_set.read(index)
    given = test_set.given(case, method)
    start = time.perf_counter()
    result = method.run(given)
    choice = method.select(result, given) if method.select is not None else 0
    seconds = time.perf_counter() - start if method.timed else None
    outputs = result if method.outputs > 1 else result[None]
    scores = tuple(replace(test_set.score(name, each, case, method), seconds=seconds) for each in outputs)
    if output is not None:
        test_set.keep(output, method, index, case, outputs[choice])
    return scores, choice


def _rows(test_set: TestSet, method: Method, scores: list[tuple[ImageScore, ...]], chosen: list[int]) -> list[Row]:
    """One row, and of several outputs two more: the best of each picture, and the output that is best on the whole set."""
    published = test_set.published(method.published)
    rows = [Row(test_set, method, tuple(every[k] for every, k in zip(scores, chosen, strict=True)), published)]
    if method.outputs == 1 or rows[0].failures or not scores or not test_set.scored:
        return rows
    # Each metric is read by itself, as the paper does.
    tables = {key: np.array([[getattr(each, key) for each in every] for every in scores]) for key in ("psnr", "ssim")}
    best = output_scores(tables["psnr"]).best_output
    oracle = [
        replace(every[0], psnr=float(p.max()), ssim=float(s.max()), psnr_b=None)
        for every, p, s in zip(scores, tables["psnr"], tables["ssim"], strict=True)
    ]
    readings = {f"output {best + 1}, best on this set": [every[best] for every in scores], "best output of each picture": oracle}
    for title, read in readings.items():
        rows.append(Row(test_set, replace(method, name=f"{method.name} ({title})", published=None), tuple(read), None, True))
    return rows
