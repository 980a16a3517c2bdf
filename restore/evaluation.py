"""Benchmarks of super-resolution methods by the protocol of the papers.

`plan_benchmark` finds all files and fails early, `run_benchmark` scores every method on every picture, and
`restore.evaluation_report` writes what came out. Pictures are uint8 arrays ``(H, W, 3)`` in RGB order.

The protocol, unless a set's description says otherwise: the high-resolution (HR) picture is cut to a multiple of the
scale s; the low-resolution (LR) picture is MATLAB's bicubic one, stored in 8 bits; the result is quantised to 8 bits;
s pixels are left out on each side; PSNR and SSIM are taken on unrounded BT.601 luma; the score of the set is the plain
mean over its pictures. Grey files are read as three equal channels.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from data_specs import Checked, FoundImages, ImagePair, Published, SuperResolutionSpec, check_files, find_images
from hybrid.errors import HybridError, InputError, OutputError, RequestError
from restore.evaluation_files import write_png
from restore.images import read_picture
from restore.metrics import psnr, rgb_to_y, ssim
from restore.resize import downscale, imresize, mod_crop, round_to_uint8

log = logging.getLogger(__name__)

Picture = NDArray[np.uint8]
Progress = Callable[[int, int], None]

BICUBIC = "bicubic"
BICUBIC_8BIT = "bicubic (stored LR)"


@dataclass(frozen=True)
class Method:
    """One row of a benchmark: something that enlarges pictures, or the reason why it can not.

    Attributes:
        name: Name in the report; no two methods of a benchmark share one.
        run: Takes the input picture and returns the enlarged one, both uint8. None for a method that is skipped.
        skipped: Why the method cannot run, such as weights that are absent. It is never replaced by another.
        parameters: Number of parameters of the network; None if it has none.
        published: Key of the method in the tables of published numbers.
        takes: ``lr``: `run` takes the LR picture (H, W, 3) and returns (H * s, W * s, 3). ``luma``: it takes the HR
            luma plane (H, W), shrinks and enlarges it itself and returns (H, W), as the classical baselines do.
        facts: What else a report should record: weights file, its sha256, device, precision, tiles.
    """

    name: str
    run: Callable[[Picture], Picture] | None = None
    skipped: str | None = None
    parameters: int | None = None
    published: str | None = None
    takes: Literal["lr", "luma"] = "lr"
    facts: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.run is None) == (self.skipped is None):
            raise ValueError(f"method {self.name!r} needs either something to run or a reason why it is skipped")


def bicubic(scale: int) -> Method:
    """The bicubic baseline as the papers print it.

    It works on the luma plane alone: uint8 luma (a grey file's own plane), shrunk and enlarged without rounding in
    between, rounded to uint8 at the end.
    """

    def run(luma: Picture) -> Picture:
        return round_to_uint8(imresize(imresize(luma, 1 / scale), scale))

    return Method(BICUBIC, run, published="bicubic", takes="luma")


def bicubic_8bit(scale: int) -> Method:
    """MATLAB's bicubic enlargement of the 8-bit LR picture, fed and scored as a network is."""
    return Method(BICUBIC_8BIT, lambda lr: imresize(lr, scale, "uint8"))


@dataclass(frozen=True)
class TestSet:
    """A data set whose files are found. `checked` tells whether they are the known ones (None: no sums known)."""

    __test__ = False  # not a test for pytest

    spec: SuperResolutionSpec
    found: FoundImages
    checked: Checked | None


@dataclass(frozen=True)
class BenchmarkPlan:
    """All that will be run: every method on every picture of every set at one scale."""

    scale: int
    sets: tuple[TestSet, ...]
    methods: tuple[Method, ...]

    @property
    def runs(self) -> int:
        """Number of pictures to be enlarged."""
        return sum(len(each.found.pairs) for each in self.sets) * sum(method.run is not None for method in self.methods)


@dataclass(frozen=True)
class Case:
    """One test picture, ready to be scored.

    Attributes:
        hr: ``(h * s, w * s, 1 or 3)`` uint8.
        lr: ``(h, w, 1 or 3)`` uint8.
        cut: True if the stored HR picture was larger.
        made: True if the LR picture was made from the HR one.
    """

    hr: Picture
    lr: Picture
    cut: bool
    made: bool


@dataclass(frozen=True)
class ImageScore:
    """PSNR in dB, SSIM and seconds of one method on one picture; or the error that kept it from a score."""

    image: str
    psnr: float | None = None
    ssim: float | None = None
    seconds: float | None = None
    grey: bool = False
    cut: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Row:
    """One method on one set. The means are None for a skipped method, and as soon as one picture failed."""

    test_set: TestSet
    method: Method
    scores: tuple[ImageScore, ...]
    published: Published | None

    @property
    def failures(self) -> tuple[ImageScore, ...]:
        return tuple(score for score in self.scores if score.error is not None)

    @property
    def psnr(self) -> float | None:
        return self._mean([score.psnr for score in self.scores])

    @property
    def ssim(self) -> float | None:
        return self._mean([score.ssim for score in self.scores])

    @property
    def seconds(self) -> float | None:
        """Mean seconds per picture, without reading and scoring."""
        return self._mean([score.seconds for score in self.scores])

    def _mean(self, values: Sequence[float | None]) -> float | None:
        numbers = [value for value in values if value is not None]
        return fmean(numbers) if numbers and not self.failures else None


@dataclass(frozen=True)
class Benchmark:
    """The result: one row for each set and method, in the order of the plan."""

    plan: BenchmarkPlan
    rows: tuple[Row, ...]

    @property
    def failures(self) -> int:
        """Pictures without a score, over all rows; skipped methods do not count."""
        return sum(len(row.failures) for row in self.rows)

    @property
    def exit_code(self) -> int:
        return 1 if self.failures else 0


def plan_benchmark(
    specs: Sequence[SuperResolutionSpec], methods: Sequence[Method], *, scale: int, data_dir: str | Path | None = None
) -> BenchmarkPlan:
    """Find all pictures before anything is run.

    Args:
        specs: Data sets, see `data_specs.load_spec` and `data_specs.folder_spec`.
        methods: What to compare, see `bicubic`, `bicubic_8bit` and `Method`.
        scale: Scale of the benchmark.
        data_dir: Folder that holds the folders of the data sets; not needed for sets that bring their pictures.

    Raises:
        RequestError: Nothing to do, a name given twice, or a scale that a set lacks.
        InputError: Pictures are missing; the message lists what was looked for.
    """
    if not specs or not methods:
        raise RequestError("A benchmark needs at least one data set and one method.")
    _refuse_twice("data set", [spec.name for spec in specs])
    _refuse_twice("method", ["lr", *(folder_name(method.name) for method in methods)])  # lr: the folder of LR pictures
    sets = []
    for spec in specs:
        found = find_images(spec, data_dir, scale)
        sets.append(TestSet(spec, found, check_files(spec, found)))
    return BenchmarkPlan(scale, tuple(sets), tuple(methods))


def run_benchmark(plan: BenchmarkPlan, *, output: Path | None = None, on_progress: Progress | None = None) -> Benchmark:
    """Score every method on every picture. Methods run one after the other, so that each may load its weights late.

    Args:
        plan: From `plan_benchmark`.
        output: Folder for the result pictures (`picture_path`) and for LR pictures that were made; None: keep none.
        on_progress: Called as ``on_progress(done, total)`` after each picture.

    A picture that fails for a reason of the project's own errors (damaged file, too little memory, wrong result)
    becomes a score with an error, its row has no mean and `Benchmark.exit_code` is 1. Other errors are raised.
    """
    rows = []
    done = 0
    for test_set in plan.sets:
        for method in plan.methods:
            scores = []
            for pair in test_set.found.pairs if method.run is not None else ():
                scores.append(_try_score(plan, test_set.spec, method, pair, output))
                done += 1
                if on_progress is not None:
                    on_progress(done, plan.runs)
            published = test_set.spec.published_for(method.published, plan.scale)
            rows.append(Row(test_set, method, tuple(scores), published))
    return Benchmark(plan, tuple(rows))


def read_case(pair: ImagePair, spec: SuperResolutionSpec, scale: int) -> Case:
    """Read one test picture and bring its two sides to one size.

    A stored LR picture decides the size: the HR picture is cut to (LR height * s, LR width * s) at top left. Without
    one, the HR picture is mod-cropped and shrunk as the set's protocol says.

    Raises:
        InputError: A file cannot be read, has more than 8 bits, or the two sizes do not belong together.
    """
    stored = _read(pair.hr)
    crop = math.lcm(spec.protocol.crop_at(scale), scale)
    if pair.lr is None:
        hr = mod_crop(stored, crop)
        return Case(hr, downscale(hr, scale, spec.protocol.lr), hr.shape != stored.shape, made=True)
    lr = _read(pair.lr)
    height, width = lr.shape[0] * scale, lr.shape[1] * scale
    surplus = stored.shape[0] - height, stored.shape[1] - width
    # EDSR's download keeps the HR uncut; the rest of a division is the most that may be over.
    if not all(0 <= each < crop for each in surplus):
        raise InputError(
            f"{pair.lr} has {lr.shape[1]} x {lr.shape[0]} pixels, which x{scale} does not bring to the "
            f"{stored.shape[1]} x {stored.shape[0]} pixels of {pair.hr}.",
            hint="Check that both belong to this scale.",
        )
    return Case(stored[:height, :width], lr, surplus != (0, 0), made=False)


def as_rgb(picture: Picture) -> Picture:
    """A grey picture as three equal channels; colour as it is."""
    return np.repeat(picture, 3, axis=2) if picture.shape[2] == 1 else picture


def folder_name(name: str) -> str:
    """A name that every file system takes.

    >>> folder_name("bicubic (stored LR)")
    'bicubic-stored-lr'
    """
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.") or "method"


def picture_path(output: Path, spec: SuperResolutionSpec, scale: int, method: str, image: str) -> Path:
    """Where the result of a method on a picture lies; `method` ``LR`` is the LR picture that was made."""
    return output / f"{folder_name(spec.name)}_x{scale}" / folder_name(method) / f"{image}.png"


def _try_score(
    plan: BenchmarkPlan, spec: SuperResolutionSpec, method: Method, pair: ImagePair, output: Path | None
) -> ImageScore:
    try:
        return _score(plan, spec, method, pair, output)
    except HybridError as error:
        log.warning("%s failed on %s of %s: %s", method.name, pair.name, spec.title, error)
        return ImageScore(pair.name, error=str(error))


def _score(plan: BenchmarkPlan, spec: SuperResolutionSpec, method: Method, pair: ImagePair, output: Path | None) -> ImageScore:
    assert method.run is not None
    case = read_case(pair, spec, plan.scale)
    if method.takes == "luma":
        reference = case.hr[..., 0] if case.hr.shape[2] == 1 else rgb_to_y(case.hr, rounded=True)
        given = reference
    else:
        reference, given = as_rgb(case.hr), as_rgb(case.lr)
    start = time.perf_counter()
    result = method.run(given)
    seconds = time.perf_counter() - start
    if result.dtype != np.uint8 or result.shape != reference.shape:
        raise OutputError(
            f"{method.name} returned {result.dtype} of shape {result.shape} for {pair.name}; uint8 {reference.shape} is needed."
        )
    if output is not None:
        write_png(picture_path(output, spec, plan.scale, method.name, pair.name), result)
        if case.made:
            write_png(picture_path(output, spec, plan.scale, "LR", pair.name), case.lr)
    border, channel = spec.protocol.border_at(plan.scale), spec.protocol.channel
    return ImageScore(
        pair.name,
        psnr(result, reference, border=border, channel=channel),
        ssim(result, reference, border=border, channel=channel),
        seconds,
        grey=case.hr.shape[2] == 1,
        cut=case.cut,
    )


def _read(path: Path) -> Picture:
    picture = read_picture(path).colour
    if picture.dtype != np.uint8:
        raise InputError(f"{path} holds {picture.dtype}; the benchmark is defined on 8 bits.", hint="Convert it to 8 bits first.")
    return picture


def _refuse_twice(what: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RequestError(f"The {what} {' and '.join(twice)} is named twice.", hint="Name each once.")
