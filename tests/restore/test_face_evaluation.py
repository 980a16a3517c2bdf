"""Benchmarks and scores of faces; judged by SciPy, NumPy and the published counts of parameters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import yaml
from PIL import Image

from data_specs import FaceSpec, available, find_faces, load_spec
from hybrid.errors import InputError, RequestError, WeightsError
from restore.evaluation.engine import Method
from restore.faces import metrics as face_metrics
from restore.faces.degradation import base
from restore.faces.evaluation import plan_faces, run_face_benchmark
from restore.faces.evaluation_report import table, to_csv, write_report
from restore.faces.metrics import FeatureStatistics, feature_statistics, frechet_distance, sharpness
from restore.faces.metrics_networks import IdentityFeatures, InceptionFeatures, PerceptualDistance
from restore.faces.metrics_weights import read_statistics

SIZE = 64


def face(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8))
    return np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaceSpec:
    """A set of three faces whose degraded ones are made, and a cache without weights."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "no-weights"))
    folder = tmp_path / "data" / "mine" / "val"
    folder.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(face(number)).save(folder / f"f{number}.png")
    plain = yaml.safe_load((Path(__file__).parents[2] / "data_specs" / "faces-synthetic.yaml").read_text())
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(plain | {"name": "mine", "images": 3, "folders": ["mine"], "size": SIZE}))
    return load_spec(path, FaceSpec)


# Scores ----------------------------------------------------------------------------------------------------------


def test_the_frechet_distance_is_that_of_the_matrix_root() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(60, 8)) @ rng.normal(size=(8, 8)), rng.normal(0.3, 1, size=(50, 8))
    a, b = feature_statistics(one), feature_statistics(other)
    np.testing.assert_allclose(a.covariance, np.cov(one.T))
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    expected = ((a.mean - b.mean) ** 2).sum() + np.trace(a.covariance + b.covariance - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    line = FeatureStatistics(np.array([1.0]), np.array([[4.0]]), 9), FeatureStatistics(np.array([3.0]), np.array([[9.0]]), 9)
    assert frechet_distance(*line) == pytest.approx(4 + 1)  # of two bells on a line: (m1 - m2)^2 + (s1 - s2)^2


def test_fewer_faces_than_features_have_a_distance_too() -> None:
    rng = np.random.default_rng(1)
    a, b = (feature_statistics(rng.normal(size=(5, 20))) for _ in range(2))
    assert 0 < frechet_distance(a, b) < 200 and frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)
    with pytest.raises(RequestError, match="at least two"):
        feature_statistics(rng.normal(size=(1, 20)))


def test_sharpness_is_one_for_equals_below_for_blurred_and_half_for_half_the_contrast() -> None:
    whole = face(0)
    small = Image.fromarray(whole).resize((16, 16), Image.Resampling.BOX)
    blurred = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    assert sharpness(whole, whole) == 1 and sharpness(blurred, whole) < 0.7
    bars = np.zeros((SIZE, SIZE, 3), np.uint8)
    bars[:, ::4] = 200
    assert sharpness(bars // 2, bars) == pytest.approx(0.5)


def test_the_judging_networks_have_the_published_numbers_of_parameters() -> None:
    counts = [sum(p.numel() for p in kind().parameters()) for kind in (InceptionFeatures, IdentityFeatures, PerceptualDistance)]
    # Inception v3 of 1,000 classes has 23,834,568 with its last layer; VGG16's convolutions have 14,714,688.
    assert counts == [23_834_568 - 2048 * 1000 - 1000, 25_627_081, 14_714_688 + 64 + 128 + 256 + 512 + 512]


def test_perceptual_distance_follows_the_formula() -> None:
    torch.manual_seed(0)
    network = PerceptualDistance().eval()
    one, other = torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 3, 32, 32) * 2 - 1
    for head in network.heads:
        torch.nn.init.uniform_(head)
    expected = 0.0
    with torch.no_grad():
        for a, b, head in zip(network.levels(one), network.levels(other), network.heads, strict=True):
            torch.testing.assert_close(a.square().sum(1), torch.ones_like(a[:, 0]), atol=1e-4, rtol=0)
            expected += float((((a - b) ** 2) * head.view(1, -1, 1, 1)).sum(1).mean())
        assert [level.shape[-1] for level in network.levels(one)] == [32, 16, 8, 4, 2]
        assert network(one, other).item() == pytest.approx(expected, rel=1e-5) and network(one, one).item() == 0


@pytest.mark.parametrize("score", [face_metrics.lpips, face_metrics.arcface_distance])
def test_scores_without_their_weights_are_errors(score: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "no-weights"))
    with pytest.raises(WeightsError, match="not in the cache"):
        score(face(0), face(1))  # type: ignore[operator]


def test_statistics_are_read_from_arrays_or_tensors_and_nothing_else(tmp_path: Path) -> None:
    mean, covariance = np.arange(3.0), np.eye(3)
    torch.save({"mean": mean, "cov": covariance}, tmp_path / "arrays.pth")
    torch.save({"mean": torch.from_numpy(mean), "cov": torch.from_numpy(covariance)}, tmp_path / "tensors.pth")
    for name in ("arrays.pth", "tensors.pth"):
        found = read_statistics(tmp_path / name, 7)
        np.testing.assert_array_equal(found.mean, mean)
        np.testing.assert_array_equal(found.covariance, covariance)
    torch.save({"mean": mean, "cov": Path("x")}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="no statistics"):
        read_statistics(tmp_path / "other.pth", 7)


# Sets ------------------------------------------------------------------------------------------------------------


def test_the_papers_sets_are_described() -> None:
    wanted = {"celeba-test": 3000, "lfw-test": 1711, "webphoto-test": 407, "celebchild-test": 180, "wider-test": 970}
    assert set(wanted) <= set(available(FaceSpec))
    for name, number in wanted.items():
        spec = load_spec(name, FaceSpec)
        assert spec.images == number and spec.size == 512 and spec.fid == "ffhq-512"
        assert all("memory" in row.source for row in spec.published)
    row = load_spec("celeba-test", FaceSpec).published_for("restoreformer++")
    assert row is not None and row.psnr == 25.31 and "check before quoting" in row.source


def test_faces_are_found_and_what_is_missing_is_named(tmp_path: Path, spec: FaceSpec) -> None:
    found = find_faces(spec, tmp_path / "data")
    assert [item.name for item in found.items] == ["f0", "f1", "f2"]
    (tmp_path / "data" / "mine" / "val" / "f2.png").unlink()
    with pytest.raises(InputError, match="does not hold the 3 faces"):
        find_faces(spec, tmp_path / "data")
    with pytest.raises(InputError, match="seed is given just where"):
        plain = yaml.safe_load((tmp_path / "mine.yaml").read_text()) | {"seed": None}
        (tmp_path / "bad.yaml").write_text(yaml.safe_dump(plain))
        load_spec(tmp_path / "bad.yaml", FaceSpec)


def test_degraded_faces_are_the_validation_rule_with_the_sets_seed(tmp_path: Path, spec: FaceSpec) -> None:
    plan = plan_faces(spec, [Method("same", lambda given: given)], data_dir=tmp_path / "data")
    case = plan.read(1)
    rule = base(SIZE).model_copy(update={"mirror": 0.0})
    np.testing.assert_array_equal(case.given, rule.apply(face(1), np.random.default_rng(spec.seed + 1)).image)  # type: ignore[operator]


# Benchmark -------------------------------------------------------------------------------------------------------


def test_a_benchmark_scores_skips_fails_and_reports(tmp_path: Path, spec: FaceSpec) -> None:
    originals = iter([face(0), face(1), face(2)])

    def fails(given: np.ndarray) -> np.ndarray:
        raise InputError("No.")

    methods = [
        Method("oracle", lambda given: next(originals), parameters=5),
        Method("absent", skipped="its weights are not here"),
        Method("broken", fails),
    ]
    plan = plan_faces(spec, methods, data_dir=tmp_path / "data")
    steps: list[tuple[int, int]] = []
    result = run_face_benchmark(plan, output=tmp_path / "out", on_progress=lambda done, total: steps.append((done, total)))
    given, oracle, absent, broken = result.rows
    assert steps[-1] == (9, 9) and result.exit_code == 1
    assert oracle.mean("psnr") == np.inf and oracle.mean("ssim") == pytest.approx(1) and oracle.mean("sharpness") == 1
    assert oracle.mean("structure") == pytest.approx(0, abs=1e-3)
    assert (given.mean("psnr") or 0) < 40 and (given.mean("structure") or 0) > 1
    assert broken.mean("psnr") is None and not absent.scores
    assert {"lpips", "identity", "fid"} <= result.left_out.keys()
    header, rows = table(result)
    assert "LPIPS" not in header and rows[2][-1] == "skipped: its weights are not here" and "3 of 3 failed" in rows[3][-1]
    report, as_json, scores, sheet = write_report(result, tmp_path / "out")
    text = report.read_text()
    assert "LPIPS: left out" in text and "invented" in text and str(tmp_path) not in text
    assert json.loads(as_json.read_text())["methods"][1]["means"]["psnr"] == "inf"
    assert scores.read_text() == to_csv(result) and len(scores.read_text().splitlines()) == 1 + 9
    with Image.open(sheet) as picture:
        assert picture.width > 800
    kept = np.asarray(Image.open(tmp_path / "out" / "oracle" / "f1.png"))
    np.testing.assert_array_equal(kept, face(1))
