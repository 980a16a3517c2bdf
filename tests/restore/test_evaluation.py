"""The benchmark engine and its road for super-resolution: protocol, published bicubic numbers, failures, what is written."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from data_specs import SuperResolutionSpec, folder_spec, load_spec
from hybrid.errors import InputError, OutputError, RequestError, ResourceError
from restore.evaluation.engine import Benchmark, Method, folder_name, run_benchmark
from restore.evaluation.files import write_png
from restore.evaluation.metrics import rgb_to_y
from restore.evaluation.report import HEADER, protocol_facts, table, to_csv, to_dict, to_markdown, write_report
from restore.evaluation.sr import bicubic, bicubic_8bit, plan_super_resolution, read_case
from restore.images import read_picture
from restore.images.resize import downscale, imresize


def picture_path(output: Path, spec: SuperResolutionSpec, scale: int, method: str, image: str) -> Path:
    return output / f"{spec.name}_x{scale}" / folder_name(method) / f"{image}.png"


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth random colours, so that an enlargement is neither perfect nor hopeless."""
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, channels), dtype=np.uint8)
    return imresize(coarse, 6, "uint8")[:height, :width]


@pytest.fixture
def pictures(tmp_path: Path) -> SuperResolutionSpec:
    """Three HR pictures: one with a rest when divided by 2, one grey."""
    folder = tmp_path / "own"
    write_png(folder / "a.png", photograph(40, 44))
    write_png(folder / "b.png", photograph(41, 45, seed=1))
    write_png(folder / "c.png", photograph(40, 40, 1, seed=2)[..., 0])
    return folder_spec(folder)


def enlarge(scale: int = 2) -> Method:
    return Method("double", lambda lr: lr.repeat(scale, axis=0).repeat(scale, axis=1), parameters=1000, published="bicubic")


def fails_on(size: tuple[int, int], error: Exception) -> Method:
    def run(lr: np.ndarray) -> np.ndarray:
        if lr.shape[:2] == size:
            raise error
        return imresize(lr, 2, "uint8")

    return Method("fragile", run)


def test_scores_agree_with_skimage(pictures: SuperResolutionSpec) -> None:
    benchmark = run_benchmark(plan_super_resolution([pictures], [enlarge()], scale=2))
    for score, (height, width) in zip(benchmark.rows[0].scores, [(40, 44), (40, 44), (40, 40)], strict=True):
        stored = read_picture(pictures.pictures / f"{score.image}.png").colour  # type: ignore[operator]
        hr = stored[:height, :width]
        sr = imresize(hr, 0.5, "uint8").repeat(2, axis=0).repeat(2, axis=1)
        inner = np.s_[2:-2, 2:-2]
        planes = [rgb_to_y(np.broadcast_to(each, (*each.shape[:2], 3)))[inner] for each in (hr, sr)]
        assert score.psnr == pytest.approx(peak_signal_noise_ratio(*planes, data_range=255), abs=1e-9)
        judge = structural_similarity(*planes, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255)
        assert score.ssim == pytest.approx(judge, abs=1e-8)
    row = benchmark.rows[0]
    assert row.psnr == pytest.approx(np.mean([score.psnr for score in row.scores]))
    assert [score.cut for score in row.scores] == [False, True, False]
    assert [score.grey for score in row.scores] == [False, False, True]
    assert benchmark.exit_code == 0


def test_networks_get_rgb_and_bicubic_gets_the_plane(pictures: SuperResolutionSpec) -> None:
    seen = []

    def watch(lr: np.ndarray) -> np.ndarray:
        seen.append((lr.shape, lr.dtype))
        return imresize(lr, 2, "uint8")

    def watch_luma(luma: np.ndarray) -> np.ndarray:
        seen.append((luma.shape, luma.dtype))
        return luma

    methods = [Method("network", watch), Method("classical", watch_luma, takes="luma")]
    benchmark = run_benchmark(plan_super_resolution([pictures], methods, scale=2))
    assert all(dtype == np.uint8 for _, dtype in seen)
    assert [shape for shape, _ in seen[:3]] == [(20, 22, 3), (20, 22, 3), (20, 20, 3)]
    assert [shape for shape, _ in seen[3:]] == [(40, 44), (40, 44), (40, 40)]
    assert benchmark.rows[1].psnr == math.inf
    assert to_dict(benchmark)["sets"][0]["methods"][1]["psnr"] == "inf"


@pytest.mark.parametrize(("scale", "decibel", "similarity"), [(2, 33.66, 0.9299), (3, 30.39, 0.8682), (4, 28.42, 0.8104)])
def test_set5_bicubic_is_the_published_row(shared: Path, scale: int, decibel: float, similarity: float) -> None:
    plan = plan_super_resolution([load_spec("set5")], [bicubic(scale)], scale=scale, data_dir=shared / "data" / "benchmarks")
    row = run_benchmark(plan).rows[0]
    assert row.psnr == pytest.approx(decibel, abs=0.006)
    assert row.ssim == pytest.approx(similarity, abs=0.0001)
    assert row.published is not None and (row.published.psnr, row.published.ssim) == (decibel, similarity)


@pytest.mark.parametrize(("scale", "decibel", "similarity"), [(2, 33.67, 0.9303), (3, 30.40, 0.8689), (4, 28.43, 0.8111)])
def test_set5_bicubic_scored_as_networks_are(shared: Path, scale: int, decibel: float, similarity: float) -> None:
    plan = plan_super_resolution([load_spec("set5")], [bicubic_8bit(scale)], scale=scale, data_dir=shared / "data" / "benchmarks")
    row = run_benchmark(plan).rows[0]
    assert row.psnr == pytest.approx(decibel, abs=0.006)
    assert row.ssim == pytest.approx(similarity, abs=0.0001)


def test_mini_runs_with_what_ships() -> None:
    benchmark = run_benchmark(plan_super_resolution([load_spec("mini")], [bicubic(4), bicubic_8bit(4)], scale=4))
    assert [len(row.scores) for row in benchmark.rows] == [6, 6]
    assert all(20 < row.psnr < 35 for row in benchmark.rows if row.psnr is not None)
    assert benchmark.failures == 0 and benchmark.rows[0].published is None


def test_stored_lr_is_used_as_it_is(tmp_path: Path) -> None:
    write_png(tmp_path / "x2" / "HR" / "a.png", photograph(41, 44))
    write_png(tmp_path / "x2" / "LR" / "a.png", np.full((20, 22, 3), 9, np.uint8))
    spec = folder_spec(tmp_path)
    seen = []

    def watch(lr: np.ndarray) -> np.ndarray:
        seen.append(lr.copy())
        return imresize(lr, 2, "uint8")

    method = Method("watch", watch)
    benchmark = run_benchmark(plan_super_resolution([spec], [method], scale=2), output=tmp_path / "out")
    assert (seen[0] == 9).all()
    case = read_case(benchmark.plan.sets[0].found.pairs[0], spec, 2)
    np.testing.assert_array_equal(case.hr, photograph(41, 44)[:40])  # cut at the bottom
    assert benchmark.rows[0].scores[0].cut
    assert "LR: as stored." in protocol_facts(benchmark, benchmark.plan.sets[0])
    assert not picture_path(tmp_path / "out", spec, 2, "LR", "a").exists()


@pytest.mark.parametrize("size", [(20, 21), (19, 22), (21, 22), (10, 11)])
def test_lr_of_another_size_is_an_error(tmp_path: Path, size: tuple[int, int]) -> None:
    write_png(tmp_path / "x2" / "HR" / "a.png", photograph(40, 44))
    write_png(tmp_path / "x2" / "LR" / "a.png", np.zeros((*size, 3), np.uint8))
    spec = folder_spec(tmp_path)
    plan = plan_super_resolution([spec], [enlarge()], scale=2)
    with pytest.raises(InputError, match="belong to this scale"):
        read_case(plan.sets[0].found.pairs[0], spec, 2)
    assert run_benchmark(plan).exit_code == 1


def test_more_than_8_bits_is_refused(tmp_path: Path) -> None:
    import tifffile

    tifffile.imwrite(tmp_path / "a.tif", photograph(40, 44).astype(np.uint16) * 257, photometric="rgb")
    benchmark = run_benchmark(plan_super_resolution([folder_spec(tmp_path)], [enlarge()], scale=2))
    assert "8 bits" in str(benchmark.rows[0].scores[0].error)


def test_a_failed_picture_is_a_row_without_a_mean(pictures: SuperResolutionSpec, tmp_path: Path) -> None:
    method = fails_on((20, 20), ResourceError("Too little memory for '/home/ann/c.png'.", hint="Use --tile 64."))
    benchmark = run_benchmark(plan_super_resolution([pictures], [bicubic_8bit(2), method], scale=2), output=tmp_path / "out")
    row = benchmark.rows[1]
    assert [score.error is None for score in row.scores] == [True, True, False]
    assert row.psnr is None and row.ssim is None and row.seconds is None
    assert benchmark.failures == 1 and benchmark.exit_code == 1
    assert benchmark.rows[0].psnr is not None
    note = dict(zip(HEADER, table(benchmark)[1][1], strict=True))["note"]
    assert note.startswith("1 of 3 failed, first c: Too little memory") and "--tile 64" in note
    write_report(benchmark, tmp_path / "out")
    assert "/home/" not in (tmp_path / "out" / "report.md").read_text() + (tmp_path / "out" / "report.json").read_text()


def test_a_damaged_file_fails_for_every_method_and_the_rest_is_scored(pictures: SuperResolutionSpec, tmp_path: Path) -> None:
    path = pictures.pictures / "b.png"  # type: ignore[operator]
    path.write_bytes(path.read_bytes()[:200])
    benchmark = run_benchmark(plan_super_resolution([pictures], [bicubic(2), enlarge()], scale=2), output=tmp_path / "out")
    assert [[score.error is not None for score in row.scores] for row in benchmark.rows] == [[False, True, False]] * 2
    assert len(write_report(benchmark, tmp_path / "out")) == 4  # no means, so no plots


def test_an_error_of_the_program_is_not_swallowed(pictures: SuperResolutionSpec) -> None:
    with pytest.raises(ZeroDivisionError):
        run_benchmark(plan_super_resolution([pictures], [fails_on((20, 20), ZeroDivisionError())], scale=2))


@pytest.mark.parametrize("wrong", [lambda lr: lr, lambda lr: imresize(lr, 2), lambda lr: imresize(lr, 2, "uint8")[..., 0]])
def test_a_wrong_result_is_an_error(pictures: SuperResolutionSpec, wrong: Callable) -> None:
    benchmark = run_benchmark(plan_super_resolution([pictures], [Method("wrong", wrong)], scale=2))
    assert all("is needed" in str(score.error) for score in benchmark.rows[0].scores)


def test_a_skipped_method_is_a_named_row(pictures: SuperResolutionSpec, tmp_path: Path) -> None:
    methods = [Method("hat", skipped="its weights /home/ann/hat.pth are absent", published="hat"), bicubic_8bit(2)]
    calls: list[tuple[int, int]] = []
    plan = plan_super_resolution([pictures], methods, scale=2)
    benchmark = run_benchmark(plan, output=tmp_path, on_progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 3), (2, 3), (3, 3)]
    assert benchmark.rows[0].scores == () and benchmark.rows[0].psnr is None and benchmark.exit_code == 0
    assert table(benchmark)[1][0][-1] == "skipped: its weights hat.pth are absent"
    lines = list(csv.DictReader(to_csv(benchmark).splitlines()))
    assert [(line["method"], line["image"]) for line in lines] == [("hat", ""), *(("bicubic (stored LR)", x) for x in "abc")]
    assert lines[0]["error"] == "skipped: its weights hat.pth are absent"


def test_difference_to_the_published_numbers() -> None:
    spec = load_spec("mini")
    numbers = [{"method": "bicubic", "scale": 4, "psnr": 25.0, "ssim": 0.7, "source": "here"}]
    spec = SuperResolutionSpec.model_validate(spec.model_dump() | {"published": numbers})
    benchmark = run_benchmark(plan_super_resolution([spec], [bicubic(4)], scale=4))
    row = benchmark.rows[0]
    assert row.psnr is not None and row.ssim is not None
    cells = dict(zip(HEADER, table(benchmark)[1][0], strict=True))
    assert cells["published"] == "25.00 / 0.7000"
    decibel, similarity = (float(part) for part in cells["difference"].split(" / "))
    assert decibel == pytest.approx(row.psnr - 25, abs=0.0051) and similarity == pytest.approx(row.ssim - 0.7, abs=0.000051)
    assert "bicubic, mini x4: here" in to_markdown(benchmark)


def report(pictures: SuperResolutionSpec, output: Path) -> Benchmark:
    methods = [bicubic(2), bicubic_8bit(2), enlarge()]
    benchmark = run_benchmark(plan_super_resolution([pictures], methods, scale=2), output=output)
    write_report(benchmark, output)
    return benchmark


def test_everything_is_written(pictures: SuperResolutionSpec, tmp_path: Path) -> None:
    output = tmp_path / "out"
    before = {path: path.read_bytes() for path in pictures.pictures.iterdir()}  # type: ignore[union-attr]
    benchmark = report(pictures, output)
    files = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    methods = ("LR", "bicubic", "bicubic-stored-lr", "double")
    expected = {f"own_x2/{'lr' if m == 'LR' else m}/{name}.png" for m in methods for name in "abc"}
    expected |= {"report.md", "report.json", "scores.csv", "own_x2.png", "psnr_parameters.png", "psnr_seconds.png"}
    assert files == expected
    assert {path: path.read_bytes() for path in before} == before

    facts = json.loads((output / "report.json").read_text(encoding="utf-8"))
    assert facts["sets"][0]["protocol"] == {"border": "scale", "channel": "y", "crop": "scale", "lr": "uint8"}
    assert facts["sets"][0]["methods"][2]["psnr"] == benchmark.rows[2].psnr
    assert "numpy" in facts["versions"]
    scores = list(csv.DictReader((output / "scores.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(line["psnr"]) for line in scores[:3]] == [score.psnr for score in benchmark.rows[0].scores]
    markdown = (output / "report.md").read_text(encoding="utf-8")
    assert "HR: 1 of 3 pictures cut, to a multiple of 2." in markdown and "1 grey" in markdown
    assert str(tmp_path) not in markdown + (output / "report.json").read_text(encoding="utf-8")


def test_result_pictures_hold_the_pixels(pictures: SuperResolutionSpec, tmp_path: Path) -> None:
    report(pictures, tmp_path / "out")
    hr = read_picture(pictures.pictures / "a.png").colour  # type: ignore[operator]
    lr = read_picture(picture_path(tmp_path / "out", pictures, 2, "LR", "a")).colour
    np.testing.assert_array_equal(lr, downscale(hr, 2))
    sr = read_picture(picture_path(tmp_path / "out", pictures, 2, "double", "a")).colour
    np.testing.assert_array_equal(sr, lr.repeat(2, axis=0).repeat(2, axis=1))


def test_figures_show_something(pictures: SuperResolutionSpec, tmp_path: Path) -> None:
    report(pictures, tmp_path)
    for name in ("own_x2.png", "psnr_parameters.png", "psnr_seconds.png"):
        figure = read_picture(tmp_path / name).colour
        assert min(figure.shape[:2]) > 300 and figure.std() > 10


def test_no_figure_without_a_point(pictures: SuperResolutionSpec, tmp_path: Path) -> None:
    benchmark = run_benchmark(plan_super_resolution([pictures], [Method("hat", skipped="no weights")], scale=2), output=tmp_path)
    assert [path.name for path in write_report(benchmark, tmp_path)] == ["report.md", "report.json", "scores.csv"]


def test_output_that_cannot_be_written(pictures: SuperResolutionSpec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    benchmark = run_benchmark(plan_super_resolution([pictures], [enlarge()], scale=2))
    with pytest.raises(OutputError, match="Choose another output folder"):
        write_report(benchmark, tmp_path / "file")


def test_requests_that_make_no_sense(pictures: SuperResolutionSpec) -> None:
    with pytest.raises(RequestError, match="at least one"):
        plan_super_resolution([pictures], [], scale=2)
    with pytest.raises(RequestError, match="double is named twice"):
        plan_super_resolution([pictures], [enlarge(), enlarge()], scale=2)
    with pytest.raises(RequestError, match="own is named twice"):
        plan_super_resolution([pictures, pictures], [enlarge()], scale=2)
    with pytest.raises(ValueError, match="either something to run"):
        Method("neither")
