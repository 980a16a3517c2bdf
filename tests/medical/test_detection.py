"""Detection of lesions: candidates, matching, FROC, AP and AUROC, with scikit-learn, SciPy and hand-made cases as judges."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from hybrid.errors import InputError, RequestError
from medical.detection.lesions import Candidate, DetectionRules, Detections, Lesion, Outcome, candidates, detect, match
from medical.detection.scores import RATES, Marks, area, average_precision, score_scans, sensitivities
from tests.medical.detection_stubs import GRID, box, confidences, mask

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
