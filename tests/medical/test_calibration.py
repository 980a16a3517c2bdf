"""Calibration: bins, ECE and Brier score against scikit-learn and plain numpy, what is counted, and what `evaluate` writes."""

from __future__ import annotations

import csv
import json
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss

from hybrid.errors import RequestError
from medical.evaluation.calibration import CONFIDENCE, FOREGROUND, Bins, Calibration, Reliability, edges, table_rows, to_csv
from medical.evaluation.calibration_plot import reliability_plot
from medical.evaluation.calibration_run import Calibrating
from medical.evaluation.engine import Target, plan_data_set, run_evaluation
from medical.evaluation.network import Network
from medical.evaluation.report import write_report
from medical.loading import save_model
from medical.models import family
from medical.segmentation.run import SegmentSettings
from tests.command import medical
from tests.medical.evaluation_stubs import described
from tests.medical.stubs import Stub, protocol, smooth

TARGETS = (Target("part 1", (1,)), Target("part 2", (2,)))


def drawn(seed: int = 0, shape: tuple[int, ...] = (9, 10, 11)) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (3, i, j, k) float32, and labels that are drawn from something flatter: a network that is too sure."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(3, *shape)) * 2
    logits[0] += 1
    shares = np.exp(logits) / np.exp(logits).sum(0)
    flat = np.exp(logits / 2) / np.exp(logits / 2).sum(0)
    labels = (generator.random(shape) > flat.cumsum(0)[:2].reshape(2, *shape)).sum(0)
    return shares.astype(np.float32), labels.astype(np.uint8)


def by_hand(p: np.ndarray, y: np.ndarray, bins: int, above: float = -1.0) -> float:
    """ECE, bin by bin."""
    total, error = np.count_nonzero(p > above), 0.0
    limits = np.linspace(0, 1, bins + 1)
    for low, high in pairwise(limits):
        inside = (p > low) & (p <= high) & (p > above)
        if low == 0:
            inside |= (p == 0) & (p > above)
        if inside.any():
            error += np.count_nonzero(inside) * abs(p[inside].mean() - y[inside].mean())
    return error / total


def result_of(*scans: tuple[np.ndarray, np.ndarray], bins: int = 15) -> dict[str, Reliability]:
    calibration = Calibration(protocol(), TARGETS, bins)
    for shares, labels in scans:
        calibration.add(shares, labels)
    return {each.name: each for each in calibration.results()}


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_curve_and_brier_score_are_those_of_scikit_learn(bins: int) -> None:
    scans = [drawn(seed) for seed in range(3)]
    found = result_of(*scans, bins=bins)
    for value in (1, 2):
        p = np.concatenate([shares[value].ravel() for shares, _ in scans]).astype(float)
        y = np.concatenate([(labels == value).ravel() for _, labels in scans])
        pooled = found[f"part {value}"].pooled
        frequency, probability = calibration_curve(y, p, n_bins=bins)
        there = pooled.counts > 0
        np.testing.assert_allclose(pooled.frequency[there], frequency, atol=1e-12)
        np.testing.assert_allclose(pooled.probability[there], probability, atol=1e-9)
        assert pooled.brier() == pytest.approx(brier_score_loss(y, p), abs=1e-9)
        assert pooled.ece() == pytest.approx(by_hand(p, y, bins), abs=1e-9)
        if bins > 1:
            first = 1 / bins
            assert pooled.ece(1) == pytest.approx(by_hand(p, y, bins, first), abs=1e-9)
            assert pooled.brier(1) == pytest.approx(((p - y) ** 2)[p > first].mean(), abs=1e-9)
            assert pooled.ece(1) > 0.05


def test_foreground_and_the_label_given() -> None:
    shares, labels = drawn(4)
    found = result_of((shares, labels))
    assert list(found) == ["part 1", "part 2", FOREGROUND, CONFIDENCE]
    p = 1 - shares[0].astype(float)
    assert found[FOREGROUND].pooled.ece() == pytest.approx(by_hand(p.ravel(), (labels > 0).ravel(), 15), abs=1e-6)
    given = shares.argmax(0)
    structure = given > 0
    confidence = shares.max(0)[structure].astype(float)
    right = (given == labels)[structure]
    pooled = found[CONFIDENCE].pooled
    assert pooled.counts.sum() == np.count_nonzero(structure) and pooled.hits.sum() == np.count_nonzero(right)
    assert pooled.ece() == pytest.approx(by_hand(confidence, right, 15), abs=1e-6)


def test_a_value_on_an_edge_belongs_to_the_bin_below_as_in_scikit_learn() -> None:
    p = np.array([0.0, 0.2, 0.2, 0.4, 1.0])
    y = np.array([0, 1, 1, 0, 1])
    bins = Bins.of(p, y, 5)
    assert bins.counts.tolist() == [3, 1, 0, 0, 1] and bins.hits.tolist() == [2, 0, 0, 0, 1]
    frequency, probability = calibration_curve(y, p, n_bins=5)
    there = bins.counts > 0
    np.testing.assert_allclose(bins.frequency[there], frequency)
    np.testing.assert_allclose(bins.probability[there], probability)
    assert np.isnan(bins.frequency[2]) and np.isnan(Bins.of(np.zeros(4), np.zeros(4), 5).ece(1))


def test_true_probabilities_are_reliable_and_sure_errors_are_not() -> None:
    generator = np.random.default_rng(0)
    p = generator.random((40, 50, 60)).astype(np.float32)
    shares = np.stack([1 - p, p, np.zeros_like(p)])
    true = result_of((shares, (generator.random(p.shape) < p).astype(np.uint8)))["part 1"]
    assert true.pooled.ece() < 0.01 and true.pooled.brier() == pytest.approx(1 / 6, abs=0.005)
    sure = np.stack([np.zeros_like(p), np.ones_like(p), np.zeros_like(p)])
    wrong = result_of((sure, np.zeros(p.shape, np.uint8)))["part 1"]
    assert wrong.pooled.ece() == wrong.pooled.brier() == 1


def test_regions_have_the_probability_of_their_own_output() -> None:
    regions = [{"channel": 1, "value": 1, "values": (1, 2)}, {"channel": 0, "value": 2, "values": (2,)}]
    asked = protocol(regions=regions)
    calibration = Calibration(asked, (Target("whole", (1, 2)), Target("core", (2,))))
    shares, labels = drawn(6)
    calibration.add(shares[:2], labels)
    whole, core = calibration.results()
    y = np.isin(labels, (1, 2)).ravel()
    frequency, _ = calibration_curve(y, shares[1].ravel().astype(float), n_bins=15)
    np.testing.assert_allclose(whole.pooled.frequency[whole.pooled.counts > 0], frequency)
    assert core.name == "core" and core.pooled.hits.sum() == np.count_nonzero(labels == 2)
    with pytest.raises(RequestError, match="none of them is rim"):
        Calibration(asked, (Target("rim", (1,)),))


def test_a_target_of_several_labels_has_the_sum_of_their_probabilities() -> None:
    shares, labels = drawn(7)
    calibration = Calibration(protocol(), (Target("both", (1, 2)),))
    calibration.add(shares, labels)
    (both,) = calibration.results()
    p = (shares[1] + shares[2]).ravel().astype(float)
    assert both.pooled.brier() == pytest.approx(brier_score_loss(labels.ravel() > 0, p), abs=1e-6)


def test_the_interval_is_over_scans() -> None:
    same = result_of(drawn(1), drawn(1), drawn(1))["part 1"].to_dict()
    low, high = same["ece_above_interval"]
    assert low == pytest.approx(same["ece_above"]) and high == pytest.approx(same["ece_above"])
    other = result_of(*(drawn(seed, (5, 5, 5)) for seed in range(6)))["part 1"].to_dict()
    low, high = other["ece_above_interval"]
    assert low < other["ece_above"] < high or low < high


def test_tables_and_plot() -> None:
    found = list(result_of(drawn(1), drawn(2)).values())
    rows = table_rows(found)
    assert [row[0] for row in rows] == ["part 1", "part 2", FOREGROUND, CONFIDENCE]
    assert rows[0][1] == f"{2 * 990:,}" and float(rows[0][2]) == pytest.approx(found[0].pooled.ece(), abs=1e-5)
    lines = list(csv.DictReader(to_csv(found).splitlines()))
    assert len(lines) == 4 * 15 and sum(int(line["voxels"]) for line in lines[:15]) == 1980
    assert [float(line["high"]) for line in lines[:15]] == pytest.approx(edges(15)[1:].tolist(), abs=1e-5)
    picture = Image.open(BytesIO(reliability_plot(found, "a title")))
    assert picture.format == "PNG" and picture.width > 800
    nothing = result_of((np.stack([np.ones((2, 3, 4)), *np.zeros((2, 2, 3, 4))]), np.zeros((2, 3, 4), int)))
    assert reliability_plot(list(nothing.values()), "no voxel has a label").startswith(b"\x89PNG")
    assert table_rows(list(nothing.values()))[3][1] == "0"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set whose labels are drawn from what the scans' values say, in scans stored in another orientation."""
    folder = tmp_path / "data" / "balls"
    for number in range(3):
        generator = np.random.default_rng(number)
        values = np.clip(smooth(12, 14, 10, seed=number) / 4 + 0.5, 0, 1)
        labels = (generator.random(values.shape) < values).astype(np.uint8) * (1 + (np.indices(values.shape)[0] > 5)).astype(
            np.uint8
        )
        affine = np.diag([-1.0, 1.0, 1.2, 1.0])
        for kind, array in (("imagesTr", (values * 1000).astype(np.float32)), ("labelsTr", labels)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, affine), folder / kind / f"b{number}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"splits": {"val": ["b0", "b1", "b2"]}}))
    return tmp_path / "data"


def lopsided() -> Network:
    """Gives the first structure nearly all of what the value says: wrong about each of the two, and right about both."""

    def function(x: torch.Tensor) -> torch.Tensor:
        p = x.clamp(1e-4, 1 - 1e-4)
        return torch.cat([(1 - p).log(), (0.9 * p).log(), (0.1 * p).log()], 1)

    asked = protocol(intensity={"kind": "window", "low": 0, "high": 1000})
    return Network(Stub(function), SegmentSettings(probabilities=True), protocol=asked)


def test_evaluation_of_a_network_writes_its_reliability(data: Path, tmp_path: Path) -> None:
    plan = plan_data_set(described(), data, "val", title="lopsided")
    network = Calibrating(lopsided(), plan)
    result = run_evaluation(plan, network)
    found = {each.name: each for each in network.results()}
    assert not result.failures and len(found[FOREGROUND].scans.counts) == 3
    assert found[FOREGROUND].pooled.ece(1) < 0.05 < 0.15 < found["part 1"].pooled.ece(1)
    written = write_report(result, tmp_path / "out", reliability=network.results())
    assert {"reliability.png", "calibration.csv"} < {path.name for path in written}
    facts = json.loads((tmp_path / "out" / "report.json").read_text())["calibration"]
    assert facts[FOREGROUND]["ece_above"] == pytest.approx(found[FOREGROUND].pooled.ece(1))
    report = (tmp_path / "out" / "report.md").read_text()
    assert "## Calibration" in report and "(reliability.png)" in report and "15 bins of equal width" in report
    # Written without, the files of before do not stay.
    write_report(result, tmp_path / "out")
    assert not (tmp_path / "out" / "reliability.png").exists() and not (tmp_path / "out" / "calibration.csv").exists()
    assert json.loads((tmp_path / "out" / "report.json").read_text())["calibration"] == {}


def test_the_command_shows_and_writes_it(data: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = family("swin_unetr").create(
        in_channels=1, out_channels=3, feature_size=12, depths=(1, 1), num_heads=(2, 4), window=3
    )
    weights, spec, out = tmp_path / "tiny.safetensors", tmp_path / "balls.yaml", tmp_path / "out"
    save_model(weights, network, protocol=protocol(patch=(16, 16, 16)))
    spec.write_text(yaml.safe_dump(described().model_dump(mode="json")))
    asked = ("--model", weights, "--data", data, "--spec", spec, "--split", "val", "-o", out, "-q")
    said = medical("evaluate", *asked, "--calibration")
    assert said.code == 0, said.err
    assert "Calibration" in said.out and "label given" in said.out and "ECE above" in said.out
    facts = json.loads((out / "report.json").read_text())["calibration"]
    assert facts["part 1"]["voxels"] == 3 * 12 * 14 * 10
    with (out / "calibration.csv").open() as stream:
        assert (
            sum(int(line["voxels"]) for line in csv.DictReader(stream) if line["target"] == "part 1") == facts["part 1"]["voxels"]
        )
    without = medical("evaluate", *asked)
    assert "ECE" not in without.out and not (out / "calibration.csv").exists()


def test_label_maps_have_no_probabilities(data: Path) -> None:
    labels = data / "balls" / "labelsTr"
    said = medical("evaluate", labels, labels, "--calibration")
    assert said.code == 2 and "--calibration would change nothing" in " ".join(said.err.split())
