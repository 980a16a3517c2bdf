"""Scores of denoising on scans with known noise: a network, and classical methods that are told how strong the noise is.

Originals of a data set are given Rician noise of stated strengths, the same in every run; every method restores the same
volumes, and all are scored by `medical.restoration.scores` against the originals. Axes: (i, j, k) in the order of the file.
"""

from __future__ import annotations

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hybrid.errors import RequestError
from hybrid.records import versions, write_bytes
from medical.notice import RESEARCH_USE
from medical.restoration.degradations import Rician, reference_level
from medical.restoration.loading import Restorer
from medical.restoration.run import RestoreSettings, plan_slices, restore
from medical.restoration.scores import psnr, ssim
from medical.training.cases import Folder
from medical.volumes.volume import Volume, read_volume

Split = Literal["train", "val"]
Denoise = Callable[[np.ndarray, float], np.ndarray]
"""Restores (i, j, k) float32 values with noise of a standard deviation in their units."""

NOISY = "noisy"
NEEDS: Mapping[str, str] = {"nl-means": "skimage", "bm4d": "bm4d"}
"""Module of each classical method."""
PACKAGES: Mapping[str, str] = {"nl-means": "scikit-image", "bm4d": "bm4d"}
STRENGTH = 0.4
"""`h` of non-local means over the noise's standard deviation: best on scans of the train split of the hippocampus data."""


@dataclass(frozen=True)
class Score:
    """One volume restored by one method.

    Attributes:
        case: Its name.
        sigma: Strength of the noise, a share of the original's 99th percentile.
        method: ``noisy``, the network's name, or a classical method.
        psnr, ssim: See `medical.restoration.scores`.
        seconds: Time of the method.
    """

    case: str
    sigma: float
    method: str
    psnr: float
    ssim: float
    seconds: float


@dataclass(frozen=True)
class Mean:
    """Means over the cases; `network_ahead` says in how many the network's PSNR is the higher."""

    sigma: float
    method: str
    psnr: float
    ssim: float
    seconds: float
    network_ahead: int | None
    cases: int


@dataclass(frozen=True)
class Shown:
    """What the figure shows: a slice of one volume, by each method, with its PSNR.

    Attributes:
        case, sigma: Which volume.
        original: (rows, columns).
        methods: Name to slice and PSNR of the volume.
    """

    case: str
    sigma: float
    original: np.ndarray
    methods: Mapping[str, tuple[np.ndarray, float]]


@dataclass(frozen=True)
class DenoisingEvaluation:
    """What came out.

    Attributes:
        scores: Of each case, strength and method.
        facts: What was scored and how, as plain values.
        shown: For the figure.
    """

    scores: tuple[Score, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    shown: Shown | None = None

    def methods(self) -> list[str]:
        """In the order in which they ran."""
        return list(dict.fromkeys(score.method for score in self.scores))

    def sigmas(self) -> list[float]:
        """In ascending order."""
        return sorted({score.sigma for score in self.scores})

    def of(self, method: str, sigma: float) -> list[Score]:
        """In the order of the cases."""
        return [score for score in self.scores if (score.method, score.sigma) == (method, sigma)]

    def means(self) -> list[Mean]:
        """Of each strength and method."""
        network = self.methods()[1]
        rows = []
        for sigma in self.sigmas():
            ours = self.of(network, sigma)
            for method in self.methods():
                found = self.of(method, sigma)
                ahead = sum(one.psnr > other.psnr for one, other in zip(ours, found, strict=True))
                decibel, similar, seconds = np.mean([(score.psnr, score.ssim, score.seconds) for score in found], axis=0).tolist()
                none = None if method == network else ahead
                rows.append(Mean(sigma, method, decibel, similar, seconds, none, len(found)))
        return rows

    def table(self) -> list[list[str]]:
        """`means` for people, under `HEADER`."""
        rows = []
        for mean in self.means():
            ahead = "" if mean.network_ahead is None else f"{mean.network_ahead} of {mean.cases}"
            figures = (f"{mean.psnr:.2f}", f"{mean.ssim:.4f}", f"{mean.seconds:.2f}")
            rows.append([f"{100 * mean.sigma:g} %", mean.method, *figures, ahead])
        return rows


HEADER = ("noise", "method", "PSNR dB", "SSIM", "seconds", "network ahead in")


def check_classical(methods: Sequence[str]) -> None:
    """Refuse methods that are not known, or whose packages are not installed.

    Raises:
        RequestError: Says what there is, or what to install.
    """
    if unknown := [method for method in methods if method not in METHODS]:
        raise RequestError(f"There is no method {unknown[0]!r}.", hint=f"Choose {' or '.join(METHODS)}.")
    missing = [PACKAGES[method] for method in methods if find_spec(NEEDS[method]) is None]
    if missing:
        raise RequestError(
            f"{' and '.join(missing)} is not installed.", hint=f"pip install {' '.join(missing)}, or leave it out."
        )


def nl_means(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """Non-local means of scikit-image over the volume, told the noise: patches of 3, searched 3 voxels around."""
    from skimage.restoration import denoise_nl_means

    found = denoise_nl_means(noisy, patch_size=3, patch_distance=3, h=STRENGTH * sigma, sigma=sigma, fast_mode=True)
    return without_bias(found, sigma)


def bm4d(noisy: np.ndarray, sigma: float) -> np.ndarray:
    """BM4D by its authors (Maggioni et al., IEEE TIP 2013), told the noise."""
    from bm4d import bm4d as run

    return without_bias(run(noisy, sigma), sigma)


def without_bias(mean: np.ndarray, sigma: float) -> np.ndarray:
    """What a mean of Rician magnitudes is the magnitude of: sqrt(m^2 - sigma^2), right where it is three times sigma or more.

    Source: Gudbjartsson and Patz, "The Rician Distribution of Noisy MRI Data", 1995.
    """
    unbiased: np.ndarray = np.sqrt(np.maximum(np.square(mean, dtype=np.float64) - sigma**2, 0)).astype(np.float32)
    return unbiased


METHODS: Mapping[str, Denoise] = {"nl-means": nl_means, "bm4d": bm4d}


def evaluate_denoising(
    restorer: Restorer,
    data: Path,
    split: Split,
    *,
    sigmas: Sequence[float] = (0.03, 0.06, 0.1),
    classical: Sequence[str] = (),
    cases: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> DenoisingEvaluation:
    """Score a network and classical methods on the scans of a split.

    Args:
        restorer: From `medical.restoration.loading.load_restorer`.
        data: A folder with `dataset.json` and `imagesTr`.
        split: ``train`` or ``val``.
        sigmas: Strengths of the noise, as shares of each original's 99th percentile.
        classical: Methods to compare with.
        cases: How many scans, the first of the split; None for all.
        on_progress: Called with volumes done and volumes in all.

    Raises:
        InputError: The folder holds no data set, or scans that cannot be used.
        RequestError: A method is not installed, or a strength makes no sense.
    """
    check_classical(classical)
    if not sigmas or min(sigmas) <= 0 or max(sigmas) > 1:
        raise RequestError("Strengths of noise are shares of the brightness.", hint="Give --sigma such as 0.05 for 5 %.")
    names = getattr(Folder.read(data), split)[:cases]
    network = restorer.network.source.name if restorer.network.source else restorer.network.card.title
    scores: list[Score] = []
    shown: Shown | None = None
    for number, name in enumerate(names):
        original = read_volume(data / "imagesTr" / f"{name}.nii.gz")
        for place, sigma in enumerate(sigmas):
            found = _restored(restorer, network, original, sigma, number, classical)
            truth = original.values[0].astype(np.float32)
            axis = _file_axis(restorer, original)
            these = [
                Score(name, sigma, method, psnr(values, truth), ssim(values, truth, axis), seconds)
                for method, (values, seconds) in found.items()
            ]
            scores += these
            if number == 0 and place == len(sigmas) // 2:
                middle = truth.shape[2] // 2
                slices = {score.method: (found[score.method][0][..., middle], score.psnr) for score in these}
                shown = Shown(name, sigma, truth[..., middle], slices)
            if on_progress is not None:
                on_progress(number * len(sigmas) + place + 1, len(names) * len(sigmas))
    return DenoisingEvaluation(tuple(scores), _facts(restorer, split, names, sigmas, classical), shown)


def write_evaluation(result: DenoisingEvaluation, folder: Path) -> tuple[Path, ...]:
    """Write `scores.csv` (a row for each case, strength and method), `denoising.json` and `denoising.png` into a folder.

    Raises:
        OutputError: The folder does not take a file.
    """
    table, facts, figure = (folder / name for name in ("scores.csv", "denoising.json", "denoising.png"))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("case", "sigma", "method", "psnr", "ssim", "seconds"))
    writer.writerows((s.case, s.sigma, s.method, f"{s.psnr:.4f}", f"{s.ssim:.5f}", f"{s.seconds:.3f}") for s in result.scores)
    write_bytes(table, text.getvalue().encode())
    whole = {
        **result.facts,
        "means": [asdict(mean) for mean in result.means()],
        "versions": versions(),
        "research_use": RESEARCH_USE,
    }
    write_bytes(facts, (json.dumps(whole, indent=2, ensure_ascii=False) + "\n").encode())
    if result.shown is not None:
        write_bytes(figure, figure_png(result.shown))
        return table, facts, figure
    return table, facts


def figure_png(shown: Shown) -> bytes:
    """Draw the slice by each method, and below it what each leaves of the difference to the original."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = {"original": (shown.original, None), **shown.methods}
    figure = Figure(figsize=(2.3 * len(panels), 5.4), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    low, high = np.percentile(shown.original, (1, 99))
    spread = 3 * float(np.std(shown.methods[NOISY][0] - shown.original))
    rows = figure.subplots(2, len(panels))
    for (above, below), (name, (values, decibel)) in zip(rows.T, panels.items(), strict=True):
        above.imshow(np.rot90(values), cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        above.set_title(name if decibel is None else f"{name}\n{decibel:.2f} dB", fontsize=10)
        below.imshow(np.rot90(values - shown.original), cmap="gray", vmin=-spread, vmax=spread, interpolation="nearest")
        for axes in (above, below):
            axes.set(xticks=[], yticks=[])
    rows[1, 0].set_ylabel("error")
    figure.suptitle(f"{shown.case}, Rician noise of {100 * shown.sigma:g} %. {RESEARCH_USE}.", fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png")
    return data.getvalue()


def _restored(
    restorer: Restorer, network: str, original: Volume, sigma: float, seed: int, classical: Sequence[str]
) -> dict[str, tuple[np.ndarray, float]]:
    """Values and seconds by each method."""
    truth = original.values[0].astype(np.float32)
    noisy = replace(original, values=Rician(sigma, seed).apply(truth)[None])
    level = sigma * reference_level(truth, "p99")
    found = {NOISY: (noisy.values[0], 0.0)}
    started = time.perf_counter()
    values = restore(noisy, restorer).values
    found[network] = (values, time.perf_counter() - started)
    for method in classical:
        started = time.perf_counter()
        values = METHODS[method](noisy.values[0], level)
        found[method] = (values, time.perf_counter() - started)
    return found


def _file_axis(restorer: Restorer, volume: Volume) -> int:
    """The axis of the file across which the network's slices lie."""
    plan = plan_slices(volume, restorer, RestoreSettings())
    return plan.turn.axes[plan.axis]


def _facts(
    restorer: Restorer, split: str, names: Sequence[str], sigmas: Sequence[float], classical: Sequence[str]
) -> dict[str, Any]:
    source = restorer.network.source
    return {
        "model": source.name if source else restorer.network.card.title,
        "weights_sha256": source.sha256 if source else "",
        "protocol": restorer.protocol.model_dump(mode="json"),
        "split": split,
        "cases": list(names),
        "noise": "Rician, its standard deviation a share of the original's 99th percentile; seeds are the cases' numbers",
        "sigmas": list(sigmas),
        "peak": "the original's 99th percentile",
        "ssim": "11 x 11 Gaussian windows in slices, the mean over the slices",
        "classical": dict.fromkeys(classical, "told the true standard deviation; sqrt(m^2 - sigma^2) of its result m"),
    }
