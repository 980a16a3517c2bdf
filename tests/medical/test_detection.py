"""Detection of lesions: candidates, matching, FROC, AP and AUROC, with scikit-learn, SciPy and hand-made cases as judges."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve
from typer.testing import CliRunner

from hybrid.errors import InputError, RequestError
from medical.cli.app import app
from medical.detection.evaluation import (
    DetectionEvaluation,
    DetectionNetwork,
    DetectionPlan,
    MapFolder,
    lesion_channels,
    run_detection,
)
from medical.detection.figures import curve_plot
from medical.detection.lesions import Candidate, DetectionRules, Detections, Lesion, Outcome, candidates, detect, match
from medical.detection.report import to_markdown, write_detection
from medical.detection.scores import RATES, Marks, area, average_precision, score_scans, sensitivities
from medical.evaluation.engine import plan_data_set, plan_folders
from medical.evaluation.metrics import Conventions
from medical.evaluation.network import Network
from medical.volumes.geometry import Grid
from tests.medical.stubs import Stub, protocol
from tests.medical.test_evaluation import described

GRID = Grid((20, 20, 10), np.diag([0.5, 0.5, 3.0, 1.0]))
BOX = tuple[slice, slice, slice]


def box(i: int, j: int, k: int, *size: int) -> BOX:
    """Voxels from a corner on; 2 x 2 x 2 of them where no size is given."""
    di, dj, dk = size or (2, 2, 2)
    return slice(i, i + di), slice(j, j + dj), slice(k, k + dk)


def mask(*boxes: BOX) -> np.ndarray:
    found = np.zeros(GRID.shape, bool)
    for each in boxes:
        found[each] = True
    return found


def confidences(*parts: tuple[BOX, float]) -> np.ndarray:
    values = np.zeros(GRID.shape, np.float32)
    for where, value in parts:
        values[where] = value
    return values


GIVEN = DetectionRules("map")


# --- candidates


def test_static_candidates_are_scipys_components() -> None:
    values = ndimage.gaussian_filter(np.random.default_rng(3).random(GRID.shape), 0.8)
    values = (values - values.min()) / np.ptp(values)
    found, peaks = candidates(values, DetectionRules("static", threshold=0.6, min_voxels=5))
    parts, count = ndimage.label(values >= 0.6, np.ones((3, 3, 3)))
    wanted = [parts == n for n in range(1, count + 1) if (parts == n).sum() >= 5]
    assert 3 < len(wanted) < count  # some are too small
    assert found.max() == len(peaks) == len(wanted)
    for number, (part, peak) in enumerate(zip(wanted, peaks, strict=True), 1):
        assert ((found == number) == part).all() and peak == values[part].max()


def test_dynamic_candidates_reach_down_to_their_peak_over_two_and_a_half() -> None:
    # A peak of 0.9 reaches down to 0.36: its own rim of 0.4 belongs to it, that of 0.3 does not. What is left of the rim
    # (0.3) and the second lesion (0.35, down to 0.14) are candidates of their own, where they do not touch the first.
    values = confidences(
        (box(2, 2, 2, 7, 4, 4), 0.4), (box(4, 3, 3), 0.9), (box(14, 14, 5, 3, 3, 3), 0.35), (box(15, 15, 6), 0.2)
    )
    values[9:11, 2:6, 2:6] = 0.3
    found, peaks = candidates(values, DetectionRules(min_voxels=5))
    assert peaks == pytest.approx([0.9, 0.35])
    assert (found == 1).sum() == 7 * 4 * 4 and (found == 2).sum() == 27
    assert not found[9:11].any()  # 0.3 touches the first candidate: taken out, and none
    assert values.max() == np.float32(0.9)  # the map is not changed


def test_dynamic_candidates_end_after_five_below_the_floor_and_drop_the_small() -> None:
    corners = [box(i, j, 0) for i in (0, 6, 12) for j in (0, 6, 12)]
    values = confidences(*((corner, 0.9 - 0.05 * n) for n, corner in enumerate(corners)))
    assert candidates(values, DetectionRules(min_voxels=8))[1] == pytest.approx([0.9, 0.85, 0.8, 0.75, 0.7])
    values[0, 0, 9] = 0.99  # a single voxel is above all and counts for nothing
    assert candidates(values, DetectionRules(min_voxels=8))[1] == pytest.approx([0.9, 0.85, 0.8, 0.75, 0.7])
    assert candidates(values, DetectionRules(min_voxels=9))[1].size == 0
    low = confidences((box(2, 2, 2), 0.02), (box(9, 9, 2), 0.009))
    assert candidates(low, DetectionRules(min_voxels=1))[1] == pytest.approx([0.02])


def test_a_dynamic_candidate_larger_than_the_first_look_is_found_whole() -> None:
    values = np.full((90, 12, 8), 0.5, np.float32)
    values[80, 6, 4] = 0.9
    values[10, :, :] = 0.1  # a wall far away
    found, peaks = candidates(values, DetectionRules())
    wanted = ndimage.label(values >= 0.9 / 2.5, np.ones((3, 3, 3)))[0] == 2
    assert peaks[0] == np.float32(0.9) and ((found == 1) == wanted).all() and wanted.sum() == 79 * 12 * 8


def test_dynamic_fast_takes_one_threshold_of_the_scan() -> None:
    values = confidences((box(2, 2, 2), 0.9), (box(9, 9, 2), 0.37), (box(15, 15, 2), 0.35))
    assert candidates(values, DetectionRules("dynamic-fast", min_voxels=8))[1] == pytest.approx([0.9, 0.37])
    assert candidates(confidences(), DetectionRules("dynamic-fast"))[1].size == 0


def test_maps_of_candidates_keep_every_part_and_corners_connect() -> None:
    values = confidences((box(2, 2, 2, 1, 1, 1), 0.3), (box(3, 3, 3, 1, 1, 1), 0.4), (box(9, 9, 2, 1, 1, 1), 0.001))
    found, peaks = candidates(values, GIVEN)
    assert peaks == pytest.approx([0.4, 0.001]) and found[2, 2, 2] == found[3, 3, 3] == 1


@pytest.mark.parametrize("bad", [-0.5, 1.5, 37.0, math.nan])
def test_values_that_are_no_probabilities_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match="no probabilities.*softmax or sigmoid"):
        candidates(confidences((box(0, 0, 0), bad)), GIVEN)


# --- matching, with worked figures


def outcomes(found: Detections) -> list[Outcome]:
    return [each.outcome for each in found.candidates]


def test_a_hit_by_overlap() -> None:
    # Lesion 2 x 2 x 2 = 8 voxels, candidate the same moved by one: they share 4 of 12, an IoU of 1/3.
    found = detect(confidences((box(5, 6, 3), 0.7)), mask(box(5, 5, 3)), GRID, GIVEN)
    (only,) = found.candidates
    assert (
        only.outcome == "hit" and only.lesion == 0 and only.overlap == pytest.approx(1 / 3) and only.confidence == np.float32(0.7)
    )
    # Centres are 1 voxel of 0.5 mm apart; a voxel is 0.75 mm3. Lesion centre: voxel (5.5, 5.5, 3.5).
    assert only.distance == pytest.approx(0.5) and only.ml == pytest.approx(8 * 0.75e-3)
    assert found.lesions[0].centre == pytest.approx((2.75, 2.75, 10.5)) and found.lesions[0].candidate == 0
    assert outcomes(detect(confidences((box(5, 6, 3), 0.7)), mask(box(5, 5, 3)), GRID, DetectionRules("map", overlap=0.34))) == [
        "false positive"
    ]


def test_an_overlap_of_just_the_least_hits() -> None:
    # 1 voxel in a lesion of 10: 1 / 10.
    assert outcomes(detect(confidences((box(0, 0, 0, 1, 1, 1), 0.5)), mask(box(0, 0, 0, 10, 1, 1)), GRID, GIVEN)) == ["hit"]
    assert outcomes(detect(confidences((box(0, 0, 0, 1, 1, 1), 0.5)), mask(box(0, 0, 0, 11, 1, 1)), GRID, GIVEN)) == [
        "false positive"
    ]


@pytest.mark.parametrize(("extra", "second"), [("ignore", "not counted"), ("false-positive", "false positive")])
def test_two_candidates_on_one_lesion(extra: str, second: Outcome) -> None:
    # Lesion 8 x 2 x 2 = 32 voxels. The first candidate covers 4 of its 8 rows, 16 / 32, the surer second one 2, 8 / 32:
    # the larger overlap is the hit, whatever the confidence.
    values = confidences((box(2, 2, 2, 4, 2, 2), 0.3), (box(8, 2, 2), 0.95))
    found = detect(values, mask(box(2, 2, 2, 8, 2, 2)), GRID, DetectionRules("map", extra=extra))  # type: ignore[arg-type]
    assert outcomes(found) == ["hit", second] and [each.overlap for each in found.candidates] == [0.5, 0.25]
    assert found.confidence == np.float32(0.95)


def test_one_candidate_on_two_lesions_hits_one() -> None:
    # A bar over two lesions of 8 voxels: 8 / 28 with either; the other one is missed.
    found = detect(confidences((box(2, 2, 2, 7, 2, 2), 0.6)), mask(box(2, 2, 2), box(7, 2, 2)), GRID, GIVEN)
    assert outcomes(found) == ["hit"] and found.candidates[0].overlap == pytest.approx(8 / 28)
    assert sorted(lesion.candidate is None for lesion in found.lesions) == [False, True]


def test_hits_are_as_many_as_can_be() -> None:
    # The best pair (0.5) would leave one hit; the others (0.4 and 0.45) make two.
    hits, reach = match(np.array([[0.5, 0.4], [0.45, 0.0]]), np.zeros((2, 2)), DetectionRules())
    assert hits == {0: 1, 1: 0} and reach.tolist() == [[True, True], [True, False]]
    # Three weak hits (sum 0.3) before two full ones (sum 2).
    overlap = np.array([[0.1, 1.0, 0.0], [0.0, 0.1, 1.0], [0.0, 0.0, 0.1]])
    assert match(overlap, np.zeros((3, 3)), DetectionRules())[0] == {0: 0, 1: 1, 2: 2}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 4), st.integers(0, 4))
def test_matching_is_the_best_of_all(seed: int, rows: int, columns: int) -> None:
    """Against every one-to-one matching there is."""
    overlap = np.random.default_rng(seed).choice([0, 0.05, 0.1, 0.3, 0.55, 0.9], (rows, columns))

    def best(row: int, used: frozenset[int]) -> tuple[int, float]:
        if row == rows:
            return 0, 0.0
        tries = [best(row + 1, used)]
        for column in set(range(columns)) - used:
            if overlap[row, column] >= 0.1:
                hits, total = best(row + 1, used | {column})
                tries.append((hits + 1, total + overlap[row, column]))
        return max(tries)

    hits, _ = match(overlap, np.zeros((rows, columns)), DetectionRules())
    assert len(set(hits.values())) == len(hits)
    assert (len(hits), sum(overlap[pair] for pair in hits.items())) == pytest.approx(best(0, frozenset()))


def test_a_hit_by_distance() -> None:
    # Centres 2 slices of 3 mm apart, no voxel in common: 6 mm.
    values, lesion = confidences((box(5, 5, 5), 0.7)), mask(box(5, 5, 3))
    assert outcomes(detect(values, lesion, GRID, GIVEN)) == ["false positive"]
    assert outcomes(detect(values, lesion, GRID, DetectionRules("map", distance=6.0))) == ["hit"]
    assert outcomes(detect(values, lesion, GRID, DetectionRules("map", distance=5.9))) == ["false positive"]
    # The nearer of two candidates is the hit.
    values = confidences((box(5, 5, 5), 0.9), (box(5, 5, 0), 0.2), (box(5, 9, 3), 0.1))
    found = detect(values, lesion, GRID, DetectionRules("map", distance=10.0))
    hit = next(each for each in found.candidates if each.outcome == "hit")
    assert hit.distance == pytest.approx(2.0) and hit.confidence == np.float32(0.1)  # 4 voxels of 0.5 mm


def test_scans_without_lesions_or_candidates() -> None:
    nothing = detect(confidences(), mask(), GRID, DetectionRules())
    assert nothing == Detections((), ()) and nothing.confidence == 0
    alarm = detect(confidences((box(5, 5, 5, 3, 3, 3), 0.7)), mask(), GRID, DetectionRules())
    assert (
        outcomes(alarm) == ["false positive"] and alarm.candidates[0].lesion is None and math.isnan(alarm.candidates[0].distance)
    )
    missed = detect(confidences(), mask(box(5, 5, 5)), GRID, DetectionRules())
    assert missed.candidates == () and missed.lesions[0].candidate is None


@pytest.mark.parametrize(
    "slip", [{"overlap": 0}, {"overlap": 1.1}, {"threshold": 0}, {"min_voxels": 0}, {"distance": 0}, {"distance": math.inf}]
)
def test_rules_that_are_none(slip: dict) -> None:
    with pytest.raises(RequestError, match="is none"):
        DetectionRules(**slip)


def test_maps_and_masks_of_other_shapes() -> None:
    with pytest.raises(RequestError, match="Cannot compare"):
        detect(confidences()[1:], mask(), GRID)


# --- scores


def scan(
    lesions: int, hits: tuple[float, ...] = (), false: tuple[float, ...] = (), uncounted: tuple[float, ...] = ()
) -> Detections:
    """A scan by its numbers alone."""

    def one(confidence: float, outcome: Outcome) -> Candidate:
        return Candidate(confidence, 20, 0.02, (0.0, 0.0, 0.0), outcome, None, 0.0, math.nan)

    found = [one(c, "hit") for c in hits] + [one(c, "false positive") for c in false] + [one(c, "not counted") for c in uncounted]
    parts = [Lesion(20, 0.02, (0.0, 0.0, 0.0), n if n < len(hits) else None) for n in range(lesions)]
    return Detections(tuple(parts), tuple(found))


HAND_MADE = [scan(2, hits=(0.9,), false=(0.8,)), scan(1, hits=(0.6,), uncounted=(0.95,)), scan(0, false=(0.7,)), scan(0)]
"""3 lesions, 2 hit; 4 scans, 2 with lesions.

confidence  0.9   0.8    0.7    0.6
            hit   false  false  hit
hits        1     1      1      2      of 3
false       0     1      2      2      in 4 scans: 0, 1/4, 1/2, 1/2 a scan
precision   1     1/2    1/3    1/2
"""


def test_scores_worked_by_hand() -> None:
    scores = score_scans(HAND_MADE)
    # 1/8: 1 of 3; 1/4: 1 of 3; from 1/2 on: 2 of 3. Mean: (2/3 + 5 * 2/3) / 7 = 12/21.
    assert [each.value for each in scores.sensitivity] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3, 2 / 3])
    assert scores.mean_sensitivity.value == pytest.approx(12 / 21)
    # AP: 1/3 * 1 + 1/3 * 1/2; the missed lesion adds nothing.
    assert scores.average_precision.value == pytest.approx(1 / 2)
    # Scans with lesions: 0.9, 0.95 (what is not counted as a mark still speaks for its scan); without: 0.7, 0.
    assert scores.auroc.value == 1 and scores.ranking.value == pytest.approx(0.75)


def test_equal_confidences_are_one_point() -> None:
    # All at 0.5: 1 hit and 1 false positive of 2 lesions in 2 scans at once.
    marks = Marks.of([scan(1, hits=(0.5,)), scan(1, false=(0.5,))])
    froc = marks.froc()
    assert (froc.x.tolist(), froc.y.tolist()) == ([0.5], [0.5])
    assert average_precision(marks.precision_recall()) == pytest.approx(0.25)
    assert sensitivities(froc, (0.49, 0.5)).tolist() == [0, 0.5]


def cohort(seed: int, scans: int = 40) -> list[Detections]:
    """Random scans; confidences with ties."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(scans):
        lesions = int(rng.choice([0, 0, 1, 1, 2, 3]))
        hits = tuple(np.round(rng.beta(4, 2, rng.integers(0, lesions + 1)), 1))
        made.append(scan(lesions, hits, tuple(np.round(rng.beta(2, 4, rng.integers(0, 4)), 1))))
    return made


def judged(marks: Marks, weights: np.ndarray | None = None) -> tuple[float, float]:
    """AP and AUROC by scikit-learn. It knows hits alone, so its AP is brought to a share of all lesions."""
    weights = np.ones(len(marks.lesions)) if weights is None else weights
    each = weights[marks.scan]
    share = (each * marks.hit).sum() / (weights @ marks.lesions)
    precision = average_precision_score(marks.hit, marks.confidence, sample_weight=each) * share
    return precision, roc_auc_score(marks.lesions > 0, marks.scan_confidence, sample_weight=weights)


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_and_auroc_are_scikit_learns(seed: int) -> None:
    scans = cohort(seed)
    scores, marks = score_scans(scans, resamples=10), Marks.of(scans)
    precision, auroc = judged(marks)
    assert scores.average_precision.value == pytest.approx(precision) and 0.1 < precision < 0.9
    assert scores.auroc.value == pytest.approx(auroc)
    assert scores.ranking.value == pytest.approx((precision + auroc) / 2)
    curve = marks.precision_recall()
    theirs, recall, _ = precision_recall_curve(marks.hit, marks.confidence)
    share = marks.hit.sum() / marks.lesions.sum()
    assert curve.y == pytest.approx(theirs[-2::-1]) and curve.x == pytest.approx(recall[-2::-1] * share)
    false, true, _ = roc_curve(marks.lesions > 0, marks.scan_confidence, drop_intermediate=False)
    assert marks.roc().x == pytest.approx(false[1:]) and marks.roc().y == pytest.approx(true[1:])


@pytest.mark.parametrize("seed", range(4))
def test_weights_are_repeated_scans(seed: int) -> None:
    """A bootstrap sample by weights is the sample itself, and scikit-learn's weighted figures."""
    scans = cohort(seed)
    marks, weights = Marks.of(scans), np.random.default_rng(seed).integers(0, 3, len(scans)).astype(float)
    repeated = Marks.of([each for each, times in zip(scans, weights, strict=True) for _ in range(int(times))])
    assert sensitivities(marks.froc(weights)) == pytest.approx(sensitivities(repeated.froc()))
    ours = average_precision(marks.precision_recall(weights)), area(marks.roc(weights))
    assert ours == pytest.approx((average_precision(repeated.precision_recall()), area(repeated.roc())))
    assert ours == pytest.approx(judged(marks, weights))


@pytest.mark.parametrize("seed", range(4))
def test_froc_by_counting(seed: int) -> None:
    """Against the plain rule: over all thresholds with at most so many false positives a scan, the most lesions hit."""
    scans = cohort(seed)
    hits = [each.confidence for one in scans for each in one.candidates if each.outcome == "hit"]
    false = [each.confidence for one in scans for each in one.candidates if each.outcome == "false positive"]
    lesions = sum(len(one.lesions) for one in scans)
    for rate, ours in zip(RATES, score_scans(scans, resamples=2).sensitivity, strict=True):
        allowed = [t for t in (*hits, *false, 2.0) if sum(f >= t for f in false) / len(scans) <= rate]
        assert ours.value == pytest.approx(max(sum(h >= t for h in hits) for t in allowed) / lesions)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """AUROC of many small cohorts of one kind: about 95 % of the intervals hold that of a large one."""
    truth = score_scans(cohort(999, 4000), resamples=0).auroc.value
    figures = [score_scans(cohort(seed, 60), resamples=100).auroc for seed in range(100)]
    assert 86 <= sum(each.low <= truth <= each.high for each in figures) <= 100
    again = score_scans(cohort(5), resamples=50), score_scans(cohort(5), resamples=50)
    assert again[0] == again[1]


def test_scores_that_cannot_be_had() -> None:
    healthy = score_scans([scan(0, false=(0.5,)), scan(0)])
    assert all(math.isnan(each.value) for each in (*healthy.sensitivity, healthy.average_precision, healthy.auroc))
    ill = score_scans([scan(1, hits=(0.5,)), scan(2)])
    assert math.isnan(ill.auroc.value) and ill.average_precision.value == pytest.approx(1 / 3)
    blind = score_scans([scan(1), scan(0)])
    assert blind.average_precision.value == 0 and blind.auroc.value == 0.5 and blind.sensitivity[-1].value == 0
    assert math.isnan(score_scans([]).auroc.value)


# --- cases, reports, command


def put(path: Path, array: np.ndarray, affine: np.ndarray = GRID.affine) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Four scans: a hit with a false alarm, a miss, a healthy one with an alarm, a healthy one without; see `WORKED`."""
    maps, references = tmp_path / "maps", tmp_path / "references"
    lesion, other = box(4, 4, 2, 3, 3, 2), box(12, 12, 5, 3, 3, 2)
    shown = {
        "p0": (mask(lesion), confidences((lesion, 0.9), (other, 0.4))),
        "p1": (mask(other), confidences()),
        "p2": (mask(), confidences((other, 0.6))),
        "p3": (mask(), confidences()),
    }
    for name, (truth, values) in shown.items():
        put(references / f"{name}.nii.gz", truth.astype(np.uint8) * 2)
        put(maps / f"{name}.nii.gz", values)
    return maps, references


def run(
    maps: Path, references: Path, *, lesion: tuple[int, ...] = (), rules: DetectionRules | None = None
) -> DetectionEvaluation:
    folder = MapFolder(maps)
    plan = DetectionPlan(plan_folders(folder, references, Conventions()), lesion, rules or DetectionRules())
    return run_detection(plan, folder.map_of)


def test_a_folder_of_maps(folders: tuple[Path, Path]) -> None:
    result = run(*folders)
    assert result.exit_code == 0 and len(result.scans) == 4
    # 2 lesions, 1 hit at 0.9 before any alarm: AP 1/2 * 1. Scans: 0.9 and 0 against 0.6 and 0: (1 + 1 + 0 + 1/2) / 4.
    assert result.scores.average_precision.value == pytest.approx(0.5) and result.scores.auroc.value == pytest.approx(0.625)
    assert [each.value for each in result.scores.sensitivity] == [0.5] * 7
    assert run(*folders, lesion=(1,)).scores.average_precision.value is not None
    assert run(*folders, lesion=(1,)).scans[0].lesions == () and len(run(*folders, lesion=(1, 2)).scans[0].lesions) == 1


def test_another_grid_is_refused_and_the_rest_goes_on(folders: tuple[Path, Path]) -> None:
    maps, references = folders
    moved = GRID.affine.copy()
    moved[2, 3] = 3
    put(maps / "p0.nii.gz", confidences(), moved)
    put(maps / "p1.nii.gz", confidences()[:, :-1])
    (maps / "p2.nii.gz").unlink()
    result = run(maps, references)
    assert result.exit_code == 1 and [each.name for each in result.failures] == ["p0", "p1", "p2"] and len(result.scans) == 1
    errors = [str(each.error) for each in result.failures]
    assert "voxels lie at other places" in errors[0] and "20 x 19 x 10 voxels against" in errors[1]
    assert "no map p2.nii.gz" in errors[2]


def test_which_file_and_which_class_of_it_is_the_map(folders: tuple[Path, Path]) -> None:
    maps, references = folders
    wanted = run(maps, references).scores
    for path in sorted(maps.glob("*.nii.gz")):
        values = nib.load(path).get_fdata()
        put(maps / f"{path.name[:2]}_probabilities.nii.gz", np.stack([1 - values, values], -1).astype(np.float32))
        put(path, (values > 0.5).astype(np.uint8))  # the label map beside it, as `medical segment` leaves it
    assert run(maps, references).scores.auroc.value == pytest.approx(wanted.auroc.value)
    path = maps / "p0_probabilities.nii.gz"
    values = nib.load(path).get_fdata()[..., 1]
    put(path, np.stack([values, values, values], -1))
    assert "holds 3 classes" in str(run(maps, references).failures[0].error)
    folder = MapFolder(maps, channel=1)
    plan = DetectionPlan(plan_folders(folder, references, Conventions()), (), DetectionRules())
    assert not run_detection(plan, folder.map_of).failures
    put(maps / "p0_detection_map.nii.gz", np.zeros(GRID.shape, np.float32))
    assert run(maps, references).scans[0].candidates == ()


def test_report(folders: tuple[Path, Path], tmp_path: Path) -> None:
    maps, references = folders
    (maps / "p3.nii.gz").write_bytes(b"broken")
    paths = write_detection(run(maps, references), tmp_path / "out")
    assert [path.name for path in paths] == ["detection.md", "detection.json", "cases.csv", "lesions.csv", "detection.png"]
    facts = json.loads(paths[1].read_text())
    assert facts["note"].startswith("Research use") and facts["rules"]["overlap"] == 0.1 and facts["counts"]["failures"] == 1
    assert facts["counts"]["lesions"] == 2 and facts["counts"]["missed"] == 1 and facts["counts"]["false_positives"] == 2
    assert facts["figures"]["average_precision"]["value"] == pytest.approx(0.5) and str(tmp_path) not in paths[1].read_text()
    cases = list(csv.DictReader(paths[2].open()))
    assert cases[0] | {"lesions": "1", "hits": "1", "candidates": "2", "false_positives": "1", "confidence": "0.9"} == cases[0]
    assert cases[3]["case"] == "p3" and cases[3]["error"] and not cases[3]["lesions"]
    rows = list(csv.DictReader(paths[3].open()))
    assert [(row["case"], row["outcome"]) for row in rows] == [
        ("p0", "hit"), ("p0", "false positive"), ("p1", "missed"), ("p2", "false positive"),
    ]  # fmt: skip
    # 3 x 3 x 2 voxels of 0.75 mm3 around voxel (5, 5, 2.5)
    assert rows[0]["lesion_ml"] == "0.0135" and rows[0]["iou"] == "1" and rows[0]["lesion_z_mm"] == "7.50"
    assert rows[2]["lesion_voxels"] == "18" and rows[2]["candidate"] == rows[2]["confidence"] == rows[2]["iou"] == ""
    text = paths[0].read_text()
    assert "| AP (lesions) | 0.5000 |" in text and "Research use, not a medical device." in text and "## Failed cases" in text
    assert paths[4].read_bytes().startswith(b"\x89PNG")


def test_a_report_without_lesions_has_no_figure(folders: tuple[Path, Path], tmp_path: Path) -> None:
    result = run(*folders, lesion=(7,))
    assert curve_plot(result) is None and "| AUROC (scans) | none |" in to_markdown(result)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "detection.png").write_bytes(b"old")
    assert len(write_detection(result, tmp_path / "out")) == 4 and not (tmp_path / "out" / "detection.png").exists()


def test_curves_where_every_scan_has_a_lesion_or_none_is_found(folders: tuple[Path, Path]) -> None:
    maps, references = folders
    for name in ("p2", "p3"):
        put(references / f"{name}.nii.gz", mask(box(1, 1, 1)).astype(np.uint8))
    assert curve_plot(run(maps, references)) is not None
    for name in ("p0", "p2"):
        put(maps / f"{name}.nii.gz", confidences())
    assert curve_plot(run(maps, references)) is not None


def test_a_network_on_a_data_set(tmp_path: Path) -> None:
    """A network whose probability is its scan's value."""
    where = tmp_path / "data" / "balls"
    lesion, other = box(4, 4, 2, 3, 3, 2), box(12, 12, 5, 3, 3, 2)
    for name, truth, values in (("p0", mask(lesion), confidences((lesion, 0.8), (other, 0.6))), ("p1", mask(), confidences())):
        put(where / "labelsTr" / f"{name}.nii.gz", truth.astype(np.uint8))
        put(where / "imagesTr" / f"{name}.nii.gz", np.maximum(values, 0.001))
    spec = described(structures=[{"value": 1, "name": "lesion"}], splits=[], published=[])

    def logits(x: torch.Tensor) -> torch.Tensor:
        return torch.cat([torch.zeros_like(x), torch.logit(x.clamp(1e-4, 1 - 1e-4))], 1)

    asked = protocol(classes=2, intensity={"kind": "window", "low": 0, "high": 1})
    values = np.full((*GRID.shape,), 0.001, np.float32)
    values[0, 0, 0] = 0.002  # a scan of one value alone would be refused
    put(where / "imagesTr" / "p1.nii.gz", values)
    network = DetectionNetwork(Network(Stub(logits, classes=2), protocol=asked), (1,))
    plan = DetectionPlan(plan_data_set(spec, tmp_path / "data", "all", title="stub"), (1,), DetectionRules())
    result = run_detection(plan, network.map_of, made=network.made())
    assert not result.failures, result.failures
    assert [(each.outcome, each.confidence) for each in result.scans[0].candidates] == [
        ("hit", pytest.approx(0.8, abs=1e-3)), ("false positive", pytest.approx(0.6, abs=1e-3)),
    ]  # fmt: skip
    assert result.scans[1].candidates == () and result.scores.auroc.value == 1
    assert result.made is not None and result.made.inference["lesion_channels"] == [1]
    assert "Model: Stub" in to_markdown(result)


def test_which_outputs_of_a_network_are_the_lesion() -> None:
    assert lesion_channels(protocol(classes=4), (2, 3)) == (2, 3) and lesion_channels(protocol(classes=3), ()) == (1, 2)
    regions = [
        {"channel": 0, "value": 1, "name": "gland", "values": [1, 2]},
        {"channel": 1, "value": 2, "name": "lesion", "values": [2]},
    ]
    both = protocol(classes=3, regions=regions)
    assert lesion_channels(both, (2,)) == (1,) and lesion_channels(both, (1, 2)) == (0,)
    with pytest.raises(RequestError, match="No output of the network is the region of the values 1"):
        lesion_channels(both, (1,))
    with pytest.raises(RequestError, match=r"does not segment the value 9, but 1 \(part 1\)"):
        lesion_channels(protocol(), (9,))


def command(*arguments: object) -> tuple[int, str, BaseException | None]:
    ran = CliRunner().invoke(app, ["detect-evaluate", *map(str, arguments)])
    return ran.exit_code, ran.output, ran.exception


def test_command_on_folders(folders: tuple[Path, Path], tmp_path: Path) -> None:
    code, said, _ = command(*folders, "-o", tmp_path / "out", "--lesion", 2)
    assert code == 0 and "AP (lesions)" in said and "0.5000" in said and "Research use, not a medical device." in said
    assert "detection.json" in said
    (folders[0] / "p1.nii.gz").unlink()
    code, said, _ = command(*folders, "--distance", 4, "--candidates", "static", "--threshold", 0.2)
    assert code == 1 and "p1: There is no map p1.nii.gz" in said and "centres of mass at most 4 mm apart" in said


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "either a folder of maps or a model"),
        (["MAPS"], "--data and --spec and --split missing"),
        (["MAPS", "REFERENCES", "--tta"], "Maps are there already"),
        (["MAPS", "REFERENCES", "--threshold", "0.4"], "says nothing of dynamic candidates"),
        (["MAPS", "REFERENCES", "--candidates", "map", "--min-voxels", "3"], "keep their size"),
        (["MAPS", "REFERENCES", "--iou", "0.2", "--distance", "5"], "by overlap or by distance"),
        (["MAPS", "REFERENCES", "--iou", "2"], "above 0 and up to 1"),
        (["MAPS", "REFERENCES", "--lesion", "0"], "value 0 is no lesion"),
        (["MAPS", "NONE"], "No map in"),
        (["MAPS", "--data", "x", "--spec", "msd-hippocampus", "--split", "val"], "several structures"),
        (
            ["--model", "x", "--channel", "1", "--data", "x", "--spec", "msd-hippocampus", "--split", "val", "--lesion", "1"],
            "--channel is for maps",
        ),
    ],
)
def test_command_refuses(folders: tuple[Path, Path], tmp_path: Path, arguments: list[str], text: str) -> None:
    put(tmp_path / "none" / "other.nii.gz", mask().astype(np.uint8))
    places = {"MAPS": folders[0], "REFERENCES": folders[1], "NONE": tmp_path / "none"}
    code, _, error = command(*(places.get(each, each) for each in arguments))
    assert code != 0 and text in str(error), error
