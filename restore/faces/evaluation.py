"""Benchmarks of face restoration: networks on aligned faces, by the papers' scores and by some that need no weights.

A set is planned first, which finds all files and fails early; `run_face_benchmark` then runs every method on every face, and
`restore.faces.evaluation_report` writes what came out. Scores whose networks are not there are left out, with the reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from data_specs import FaceItem, FaceSpec, FoundFaces, find_faces
from hybrid.errors import HybridError, InputError, RequestError, ResourceError, WeightsError
from restore.evaluation.engine import Method, Progress, check_names, folder_name
from restore.evaluation.files import read_8_bits, write_png
from restore.evaluation.metrics import psnr, ssim
from restore.faces import metrics as face_metrics
from restore.faces.data import as_batch, as_picture, coded
from restore.faces.degradation import base
from restore.faces.identity import identity_distance
from restore.faces.metrics import Face, FeatureStatistics
from restore.loading import catalogue, load_model

log = logging.getLogger(__name__)
GIVEN = "degraded"
"""The row of what the methods are given."""


@dataclass(frozen=True)
class FaceCase:
    """One test face: what a method is given, and the sharp face where there is one; (S, S, 3) uint8."""

    name: str
    given: Face
    reference: Face | None


@dataclass(frozen=True)
class FaceScore:
    """Scores of one method on one face; None where a score cannot be had, and why in `error` where nothing can.

    Attributes:
        psnr, ssim: All channels of 8 bits, no border; dB and the unit.
        sharpness: As a share of the sharp face's, see `restore.faces.metrics.sharpness`.
        landmarks: Mean distance of five landmarks from the sharp face's in per cent of the distance of the eyes.
        structure: Angle between histograms of gradient directions of the inner faces in degrees; see `restore.faces.identity`.
        lpips, identity: See `restore.faces.metrics`; the angle is in radians and as published.
        seconds: Of the network.
    """

    face: str
    psnr: float | None = None
    ssim: float | None = None
    sharpness: float | None = None
    landmarks: float | None = None
    structure: float | None = None
    lpips: float | None = None
    identity: float | None = None
    seconds: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class FaceRow:
    """One method on one set; FID is of the whole set."""

    method: Method
    scores: tuple[FaceScore, ...]
    fid: float | None = None

    def mean(self, name: str) -> float | None:
        """Mean of a score over the faces that have it; None as soon as one face failed."""
        if any(score.error for score in self.scores):
            return None
        values = [value for score in self.scores if (value := getattr(score, name)) is not None]
        return fmean(values) if values else None

    def missing(self, name: str) -> int:
        """Faces that lack a score which others have."""
        return sum(getattr(score, name) is None for score in self.scores)


@dataclass(frozen=True)
class FacePlan:
    """A set whose files are found, and what will run on it."""

    spec: FaceSpec
    found: FoundFaces
    methods: tuple[Method, ...]
    device: str = "cpu"

    @property
    def runs(self) -> int:
        """Number of faces to be restored."""
        return len(self.found.items) * sum(method.run is not None for method in self.methods)

    def read(self, index: int) -> FaceCase:
        """One test face. Raises InputError if a file cannot be used or has another size than the set's."""
        item, size = self.found.items[index], self.spec.size
        clean, degraded = (None if path is None else _read(path, item, size) for path in (item.clean, item.degraded))
        if degraded is None:
            assert clean is not None and self.spec.seed is not None
            rule = base(size).model_copy(update={"mirror": 0.0})
            degraded = rule.apply(clean, np.random.default_rng(self.spec.seed + index)).image
        return FaceCase(item.name, degraded, clean)


@dataclass(frozen=True)
class FaceBenchmark:
    """The result: a row a method, and why scores are left out."""

    plan: FacePlan
    rows: tuple[FaceRow, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> int:
        """1 if a face has no score, else 0."""
        return int(any(score.error for row in self.rows for score in row.scores))


def face_method(name: str, device: str, precision: str) -> Method:
    """The row of a network; skipped where its weights are absent.

    Raises:
        RequestError: There is no such model, or it enlarges.
    """
    known = name.lower() in catalogue()
    title = name.lower() if known else Path(name).stem
    try:
        network = load_model(name, device=device, precision=precision)
    except (WeightsError, ResourceError) as error:
        return Method(title, skipped=str(error), published=title)
    if network.card.scale != 1 or network.card.channels != 3:
        raise RequestError(f"{title} does not restore colour faces at their size.", hint="Take a model of the task face.")

    def run(face: Face) -> Face:
        with torch.inference_mode():
            return as_picture(coded(network, as_batch(face, network))[0])

    assert network.source is not None
    facts = {"weights": network.source.file, "sha256": network.source.sha256, "precision": network.precision}
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Method(title, run, parameters=parameters, published=title, facts=facts)


def plan_faces(spec: FaceSpec, methods: Sequence[Method], *, data_dir: str | Path | None, device: str = "cpu") -> FacePlan:
    """Find all faces before anything is run; the degraded faces are the first row.

    Raises:
        RequestError: Nothing to do, or a name given twice.
        InputError: Faces are missing; the message lists what was looked for.
    """
    check_names([spec.name], methods, reserved=GIVEN)
    given = Method(GIVEN, lambda face: face, timed=False)
    return FacePlan(spec, find_faces(spec, data_dir), (given, *methods), device)


def run_face_benchmark(plan: FacePlan, *, output: Path | None = None, on_progress: Progress | None = None) -> FaceBenchmark:
    """Score every method on every face.

    Args:
        plan: From `plan_faces`.
        output: Folder for the restored faces; None: keep none.
        on_progress: Called as ``on_progress(done, total)`` after each face.

    A face that fails for a reason of the project's own errors becomes a score with an error; other errors are raised.
    """
    left_out = _left_out(plan)
    target = None if "fid" in left_out else _target(plan)
    rows, done = [], 0
    for method in plan.methods:
        scores: list[FaceScore] = []
        results: list[Face] = []
        for index, item in enumerate(plan.found.items if method.run is not None else ()):
            try:
                score, result = _score(plan, method, index, left_out)
            except HybridError as error:
                log.warning("%s failed on %s: %s", method.name, item.name, error)
                scores.append(FaceScore(item.name, error=str(error)))
            else:
                scores.append(score)
                if target is not None:
                    results.append(result)
                if output is not None:
                    write_png(result_path(output, method.name, item.name), result)
            done += 1
            if on_progress is not None:
                on_progress(done, plan.runs)
        fid = None
        if target is not None and len(results) == len(plan.found.items):
            fid = face_metrics.frechet_distance(face_metrics.inception_statistics(results, plan.device), target)
        rows.append(FaceRow(method, tuple(scores), fid))
    return FaceBenchmark(plan, tuple(rows), left_out)


def result_path(output: Path, method: str, face: str) -> Path:
    """Where the result of a method on a face lies."""
    return output / folder_name(method) / f"{face}.png"


def _score(plan: FacePlan, method: Method, index: int, left_out: dict[str, str]) -> tuple[FaceScore, Face]:
    assert method.run is not None
    case = plan.read(index)
    start = time.perf_counter()
    result = method.run(case.given)
    seconds = time.perf_counter() - start if method.timed else None
    if case.reference is None:
        return FaceScore(case.name, seconds=seconds), result
    sharp = case.reference
    moved = identity_distance(_unit(sharp), _unit(result), plan.device)
    needing: dict[str, Callable[[], float]] = {
        "lpips": lambda: face_metrics.lpips(result, sharp, plan.device),
        "identity": lambda: face_metrics.arcface_distance(result, sharp, plan.device, as_published=True),
    }
    score = FaceScore(
        case.name,
        psnr=psnr(result, sharp, channel="rgb"),
        ssim=ssim(result, sharp, channel="rgb"),
        sharpness=face_metrics.sharpness(result, sharp),
        landmarks=moved.landmarks,
        structure=moved.structure,
        seconds=seconds,
    )
    judged: dict[str, Any] = {name: measure() for name, measure in needing.items() if name not in left_out}
    return replace(score, **judged), result


def _left_out(plan: FacePlan) -> dict[str, str]:
    """Scores that cannot be had, and why."""
    from restore.faces import metrics_weights as weights

    reasons: dict[str, str] = {}
    loaders: dict[str, Callable[[str], Any]] = {
        "lpips": weights.perceptual_distance,
        "identity": weights.arcface,
        "fid": weights.inception,
    }
    for name, load in loaders.items():
        try:
            load(plan.device)
            if name == "fid" and plan.spec.fid == "ffhq-512":
                weights.ffhq_statistics()
        except (WeightsError, ResourceError) as error:
            reasons[name] = str(error)
    if plan.found.layout.clean is None:
        alone = "there are no references"
        reasons |= dict.fromkeys(("psnr", "ssim", "sharpness", "landmarks", "structure", "lpips", "identity"), alone)
    return reasons


def _target(plan: FacePlan) -> FeatureStatistics:
    if plan.spec.fid == "ffhq-512":
        from restore.faces.metrics_weights import ffhq_statistics

        return ffhq_statistics()
    return face_metrics.inception_statistics(_references(plan), plan.device)


def _references(plan: FacePlan) -> Iterator[Face]:
    for index in range(len(plan.found.items)):
        reference = plan.read(index).reference
        assert reference is not None
        yield reference


def _read(path: Path, item: FaceItem, size: int) -> Face:
    face = read_8_bits(path)
    if face.shape[:2] != (size, size):
        raise InputError(
            f"{path.name} has {face.shape[1]} x {face.shape[0]} pixels, the set's faces have {size} x {size}.",
            hint=f"Check that {item.name} is the published file.",
        )
    return np.ascontiguousarray(np.broadcast_to(face, (size, size, 3)))


def _unit(face: Face) -> np.ndarray:
    return face.astype(np.float32) / np.float32(255)
