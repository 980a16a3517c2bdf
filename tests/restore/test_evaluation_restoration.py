"""Benchmarks at the picture's own size: the numbers by a plain script, the made pictures, several outputs, MATLAB files."""

from __future__ import annotations

import hashlib
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from data_specs import RestorationSpec, folder_restoration_spec, load_spec
from hybrid.errors import InputError, RequestError, ResourceError
from restore.degradations.operations import Blur, srgb_to_linear
from restore.evaluation.baselines import baseline
from restore.evaluation.degraded import KERNEL_SUM, blurred, compressed, noisy, read_kernels, whole_kernel
from restore.evaluation.engine import Method, run_benchmark
from restore.evaluation.files import write_png
from restore.evaluation.mat import add_to_submission
from restore.evaluation.metrics_restoration import psnr_b
from restore.evaluation.report import protocol_facts, table, to_csv, to_dict, to_markdown, write_report
from restore.evaluation.restoration import plan_restoration
from restore.images.resize import imresize


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 6 + 2, width // 6 + 2, channels), dtype=np.uint8)
    return imresize(coarse, 6, "uint8")[:height, :width]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clean pictures."""
    write_png(tmp_path / "own" / "a.png", photograph(40, 48))
    write_png(tmp_path / "own" / "b.png", photograph(48, 40, seed=1))
    return tmp_path / "own"


def halved(given: np.ndarray) -> np.ndarray:
    """A method that any script can repeat: the mean with the picture moved by one pixel."""
    return (given + np.roll(given, 1, 0)) / np.float32(2)


def described(tmp_path: Path, task: str = "denoising", **changes: object) -> RestorationSpec:
    facts = load_spec("kodak24-blur" if task == "deblurring" else "kodak24", RestorationSpec, task).model_dump()
    facts |= {"name": "two", "title": "Two", "images": None, "folders": ["two"], "checksums": None, "published": (), "task": task}
    return RestorationSpec.model_validate(facts | changes)


def test_denoising_is_what_a_plain_script_says(folder: Path) -> None:
    """The script of the field: seed 0 before every picture, noise on [0, 1], no clipping before the method, 8 bits after it."""
    spec = folder_restoration_spec(folder, "denoising")
    row, noise_row = run_benchmark(
        plan_restoration([spec], [Method("mean", halved), baseline("noisy", "denoising")], levels=[25])
    ).rows  # type: ignore[list-item]
    for score, level in zip(row.scores, noise_row.scores, strict=True):
        clean = np.asarray(Image.open(folder / f"{score.image}.png"))
        np.random.seed(0)
        given = np.float32(clean) / 255.0 + np.random.normal(0, 25 / 255.0, clean.shape)
        result = (given + np.roll(given, 1, axis=0)) / 2
        saved = np.floor(np.clip(result, 0, 1) * 255 + 0.5).astype(np.uint8)
        assert score.psnr == pytest.approx(peak_signal_noise_ratio(clean, saved), abs=2e-3)
        judge = structural_similarity(
            clean, saved, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert score.ssim == pytest.approx(judge, abs=2e-4)
        assert level.psnr == pytest.approx(
            peak_signal_noise_ratio(clean, np.clip(given * 255, 0, 255).round().astype(np.uint8)), abs=2e-3
        )
    assert row.psnr == pytest.approx(np.mean([score.psnr for score in row.scores]))
    assert row.seconds is not None and noise_row.seconds is None  # nothing was done, so that its time says nothing


def test_methods_see_noise_that_is_neither_clipped_nor_rounded(folder: Path) -> None:
    seen = []

    def watch(given: np.ndarray) -> np.ndarray:
        seen.append(given)
        return given

    run_benchmark(plan_restoration([folder_restoration_spec(folder, "denoising")], [Method("watch", watch)], levels=[50]))
    assert all(each.dtype == np.float32 and each.min() < -0.05 and each.max() > 1.05 for each in seen)
    assert np.unique(seen[0]).size > 3000
    assert np.std(seen[0] - photograph(40, 48) / 255) == pytest.approx(50 / 255, rel=0.03)


def test_jpeg_is_pillows_at_the_same_quality(folder: Path) -> None:
    spec = folder_restoration_spec(folder, "jpeg")
    rows = run_benchmark(plan_restoration([spec], [baseline("jpeg", "jpeg")], levels=[10, 40])).rows  # type: ignore[list-item]
    assert [row.test_set.level for row in rows] == ["quality 10", "quality 40"]
    for row, quality in zip(rows, (10, 40), strict=True):
        for score in row.scores:
            clean = Image.open(folder / f"{score.image}.png")
            file = io.BytesIO()
            clean.save(file, "jpeg", quality=quality, subsampling="4:2:0")
            decoded = np.asarray(Image.open(file))
            assert score.psnr == pytest.approx(peak_signal_noise_ratio(np.asarray(clean), decoded), abs=0.02)
            assert score.psnr_b == pytest.approx(psnr_b(decoded, np.asarray(clean)), abs=0.05)


def test_luma_is_compressed_as_a_gray_picture(folder: Path, tmp_path: Path) -> None:
    spec = load_spec("live1", RestorationSpec).model_copy(update={"images": None, "pictures": folder, "published": ()})
    test_set = plan_restoration([spec], [Method("same", lambda given: given)], levels=[20]).sets[0]
    case = test_set.read(0)
    assert case.given.shape == (40, 48, 1) and case.reference.shape == (40, 48, 1) and case.quality == 20
    rgb = photograph(40, 48) / 255.0
    luma = np.floor(16 + rgb @ [65.481, 128.553, 24.966] + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(case.reference[..., 0], luma)
    file = io.BytesIO()
    Image.fromarray(luma).save(file, "jpeg", quality=20)
    assert np.abs(case.given[..., 0] * 255 - np.asarray(Image.open(file))).max() <= 1


def test_blur_is_the_projects_own_in_whole_numbers() -> None:
    kernels = read_kernels(load_spec("kodak24-blur", RestorationSpec).degradation.kernels)  # type: ignore[union-attr]
    assert len(kernels) == 8 and all(kernel.weights.sum() == KERNEL_SUM for kernel in kernels)
    assert {len(kernel.weights) for kernel in kernels} <= set(range(9, 33, 2))
    picture = photograph(70, 64)

    class Given:
        def __init__(self, array: np.ndarray) -> None:
            self.size, self._array = len(array), array

        def array(self) -> np.ndarray:
            return self._array

    for kernel in kernels:
        judge = Blur(Given(kernel.array), linear=True).apply(picture.astype(np.float32) / np.float32(255))  # type: ignore[arg-type]
        assert np.abs(blurred(picture, kernel, 0, 0) - judge * 255).max() < 0.54
        # The centre of mass is the middle, so that the blurred picture lies on the sharp one.
        centre = scipy.ndimage.center_of_mass(kernel.weights)
        assert np.abs(np.array(centre) - len(kernel.weights) // 2).max() < 0.01


def test_blur_convolves_and_does_not_correlate() -> None:
    kernel = read_kernels(load_spec("kodak24-blur", RestorationSpec).degradation.kernels)[1]  # type: ignore[union-attr]
    point = np.zeros((61, 61, 1), np.uint8)
    point[30, 30] = 255
    seen = blurred(point, kernel, 0, 0)[..., 0]
    reach = len(kernel.weights) // 2
    light = srgb_to_linear(seen[30 - reach : 31 + reach, 30 - reach : 31 + reach] / 255)
    assert np.abs(light - kernel.array).max() < 0.002 and np.abs(light - kernel.array[::-1, ::-1]).max() > 0.02


def test_noise_of_the_blur_has_its_strength_and_its_seed() -> None:
    kernel = read_kernels(load_spec("kodak24-blur", RestorationSpec).degradation.kernels)[0]  # type: ignore[union-attr]
    flat = np.full((120, 120, 3), 128, np.uint8)
    first, again, other = (blurred(flat, kernel, 4, seed) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert (first != other).mean() > 0.8
    assert first.mean() == pytest.approx(128, abs=0.1) and first.std() == pytest.approx(math.sqrt(16 + 1 / 12), rel=0.02)


def test_the_blurred_pictures_are_the_same_bytes_everywhere() -> None:
    spec = load_spec("mini", RestorationSpec, "deblurring")
    test_set = plan_restoration([spec], [Method("same", lambda given: given)]).sets[0]
    sums = hashlib.sha256()
    for index in range(len(test_set.names)):
        sums.update(test_set.as_file(test_set.read(index).given).tobytes())
    assert sums.hexdigest() == "6d40e2f178adc8bad10792313b31cfcea270549f0192f1ca90959f7a72b9f3c3"


def test_whole_kernels_are_the_nearest_of_their_sum() -> None:
    kernel = np.random.default_rng(0).random((9, 9))
    kernel /= kernel.sum()
    whole = whole_kernel(kernel)
    assert whole.sum() == KERNEL_SUM and np.abs(whole - kernel * KERNEL_SUM).max() < 1


@pytest.mark.parametrize(
    "content", ["[]", '{"kernels": [{"name": "x"}]}', '{"kernels": [{"name": "x", "weights": [[1, 2]]}]}', "{"]
)
def test_files_that_hold_no_kernels(tmp_path: Path, content: str) -> None:
    (tmp_path / "k.json").write_text(content)
    with pytest.raises(InputError, match="no kernel"):
        read_kernels(tmp_path / "k.json")


def test_pairs_of_files_are_read_as_stored(tmp_path: Path) -> None:
    write_png(tmp_path / "two" / "target" / "a.png", photograph(30, 40))
    write_png(tmp_path / "two" / "input" / "a.png", photograph(30, 40, seed=3))
    spec = load_spec("gopro", RestorationSpec).model_copy(update={"images": 1, "folders": ("two",)})
    plan = plan_restoration([spec], [baseline("blurred", "deblurring")], data_dir=tmp_path)  # type: ignore[list-item]
    (row,) = run_benchmark(plan).rows
    judge = peak_signal_noise_ratio(photograph(30, 40), photograph(30, 40, seed=3))
    assert row.psnr == pytest.approx(judge, abs=1e-9)
    write_png(tmp_path / "two" / "input" / "a.png", photograph(30, 41, seed=3))
    assert "Check that both are the same picture" in str(run_benchmark(plan).rows[0].scores[0].error)


def test_blocks_of_sidd_are_scored_clipped_and_unrounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    clean = rng.integers(0, 256, (2, 3, 24, 24, 3), dtype=np.uint8)
    degraded = rng.integers(0, 256, clean.shape, dtype=np.uint8)
    (tmp_path / "SIDD").mkdir()
    scipy.io.savemat(tmp_path / "SIDD" / "ValidationGtBlocksSrgb.mat", {"ValidationGtBlocksSrgb": clean})
    scipy.io.savemat(tmp_path / "SIDD" / "ValidationNoisyBlocksSrgb.mat", {"ValidationNoisyBlocksSrgb": degraded})
    spec = load_spec("sidd", RestorationSpec).model_copy(update={"images": 6})
    method = Method("brighter", lambda given: given * np.float32(1.3) + np.float32(0.001))
    (row,) = run_benchmark(plan_restoration([spec], [method], data_dir=tmp_path)).rows
    for score, place in zip(row.scores, np.ndindex(2, 3), strict=True):
        result = np.clip(np.float32(degraded[place]) / np.float32(255) * np.float32(1.3) + np.float32(0.001), 0, 1)
        judge = peak_signal_noise_ratio(clean[place] / 255.0, result.astype(float), data_range=1.0)
        assert score.psnr == pytest.approx(judge, abs=1e-5)
    assert [score.image for score in row.scores][:4] == ["00_00", "00_01", "00_02", "01_00"]
    wrong = load_spec("sidd", RestorationSpec)
    with pytest.raises(InputError, match=r"does not hold the 1280 pictures.*6 pictures"):
        plan_restoration([wrong], [method], data_dir=tmp_path)


def test_dnd_becomes_a_submission(tmp_path: Path) -> None:
    h5py = pytest.importorskip("h5py", reason="DND's files are HDF5")
    rng = np.random.default_rng(4)
    photographs = rng.random((2, 40, 50, 3), np.float32)
    boxes = [np.array([[1, 1, 16, 20], [5, 11, 20, 30]]), np.array([[2, 3, 17, 22], [25, 31, 40, 50]])]
    root = tmp_path / "dnd_2017"
    (root / "images_srgb").mkdir(parents=True)
    for index, picture in enumerate(photographs, 1):
        with h5py.File(root / "images_srgb" / f"{index:04}.mat", "w") as file:
            file["InoisySRGB"] = picture.T  # MATLAB's order
    with h5py.File(root / "info.mat", "w") as file:
        cells = file.create_dataset("info/boundingboxes", (1, 2), dtype=h5py.ref_dtype)
        for index, box in enumerate(boxes):
            file[f"cells/{index}"] = box.T.astype(float)
            cells[0, index] = file[f"cells/{index}"].ref
    spec = load_spec("dnd", RestorationSpec).model_copy(update={"images": 4, "blocks": 2})
    method = Method("darker", lambda given: given * np.float32(0.5))
    benchmark = run_benchmark(plan_restoration([spec], [method], data_dir=tmp_path), output=tmp_path / "out")
    assert benchmark.exit_code == 0 and benchmark.rows[0].psnr is None
    assert "no reference" in table(benchmark)[1][0][-1]
    folder = tmp_path / "out" / "dnd" / "darker-submission"
    assert sorted(path.name for path in folder.iterdir()) == ["0001.mat", "0002.mat"]
    for index, (picture, rows) in enumerate(zip(photographs, boxes, strict=True), 1):
        made = scipy.io.loadmat(folder / f"{index:04}.mat")
        assert made["Idenoised"].shape == (1, 2) and made["eval_version"][0] == "1.0" and not made["israw"][0, 0]
        for cell, (top, left, bottom, right) in zip(made["Idenoised"][0], rows, strict=True):
            np.testing.assert_array_equal(cell, picture[top - 1 : bottom, left - 1 : right] * np.float32(0.5))
    write_report(benchmark, tmp_path / "out")


def test_a_submission_waits_for_all_boxes(tmp_path: Path) -> None:
    boxes = ("0001_01", "0001_02", "0002_01")
    add_to_submission(tmp_path, boxes, 1, np.zeros((2, 2, 3), np.float32))
    assert not list(tmp_path.glob("*.mat"))
    add_to_submission(tmp_path, boxes, 2, np.zeros((2, 2, 3), np.float32))
    assert [path.name for path in tmp_path.glob("*.mat")] == ["0002.mat"]


def test_several_outputs_are_read_in_three_ways(folder: Path, tmp_path: Path) -> None:
    clean = {(40, 48): photograph(40, 48), (48, 40): photograph(48, 40, seed=1)}

    def three(given: np.ndarray) -> np.ndarray:
        truth = clean[given.shape[:2]].astype(np.float32) / 255
        off = (0.02, 0.05, 0.1) if len(given) == 40 else (0.2, 0.04, 0.01)
        return np.stack([truth * np.float32(1 - each) for each in off]).astype(np.float32)

    chosen = []

    def select(outputs: np.ndarray, given: np.ndarray) -> int:
        chosen.append((outputs.shape, given.shape))
        return 2

    spec = folder_restoration_spec(folder, "denoising")
    plan = plan_restoration([spec], [Method("mh", three, outputs=3, select=select)], levels=[25])
    benchmark = run_benchmark(plan, output=tmp_path / "out")
    selected, single, oracle = benchmark.rows
    each = [[20 * math.log10(255 / np.sqrt(np.mean((truth - np.round(truth * (1 - off))) ** 2.0))) for off in offs]
            for truth, offs in zip(clean.values(), [(0.02, 0.05, 0.1), (0.2, 0.04, 0.01)], strict=True)]  # fmt: skip
    assert selected.psnr == pytest.approx((each[0][2] + each[1][2]) / 2, abs=0.05)
    assert single.psnr == pytest.approx(max((each[0][k] + each[1][k]) / 2 for k in range(3)), abs=0.05)
    assert oracle.psnr == pytest.approx((each[0][0] + each[1][2]) / 2, abs=0.05)
    assert "output 3" in single.method.name and "each picture" in oracle.method.name and selected.method.name == "mh"
    assert chosen == [((3, 40, 48, 3), (40, 48, 3)), ((3, 48, 40, 3), (48, 40, 3))]
    kept = np.asarray(Image.open(tmp_path / "out" / "own_sigma25" / "mh" / "a.png"))
    assert np.abs(kept - clean[40, 48] * 0.9).max() < 0.51
    assert "was chosen on it" in " ".join(protocol_facts(benchmark, benchmark.plan.sets[0]))
    write_report(benchmark, tmp_path / "out")


def test_grey_sets_stay_grey(tmp_path: Path) -> None:
    grey = photograph(30, 40, 1)
    write_png(tmp_path / "two" / "a.png", grey[..., 0])
    write_png(tmp_path / "two" / "b.png", np.repeat(grey, 3, axis=2))
    spec = described(tmp_path, gray=True)
    test_set = plan_restoration([spec], [Method("same", lambda given: given)], levels=[15], data_dir=tmp_path).sets[0]
    first, second = test_set.read(0), test_set.read(1)
    assert first.given.shape == (30, 40, 1)
    np.testing.assert_array_equal(first.given, second.given)


def test_published_numbers_stand_beside(folder: Path) -> None:
    numbers = [{"method": "jpeg", "level": 10, "psnr": 20.0, "ssim": 0.5, "psnr_b": 19.0, "source": "here"}]
    spec = folder_restoration_spec(folder, "jpeg")
    spec = RestorationSpec.model_validate(spec.model_dump() | {"published": numbers})
    benchmark = run_benchmark(plan_restoration([spec], [baseline("jpeg", "jpeg")], levels=[10, 20]))  # type: ignore[list-item]
    header, rows = table(benchmark)
    first, second = (dict(zip(header, row, strict=True)) for row in rows)
    assert first["published"] == "20.00 / 0.5000 / 19.00" and second["published"] == ""
    assert float(first["difference"].split(" / ")[0]) == pytest.approx(benchmark.rows[0].psnr - 20, abs=0.0051)  # type: ignore[operator]
    assert first["set"] == "own quality 10" and float(first["PSNR-B"]) < float(first["PSNR"]) + 1e-9
    assert "jpeg, own quality 10: here" in to_markdown(benchmark)
    assert to_dict(benchmark)["sets"][0]["methods"][0]["psnr_b"] == benchmark.rows[0].psnr_b
    assert to_csv(benchmark).splitlines()[1].startswith("own,quality 10,jpeg,a,")


def test_everything_is_written(folder: Path, tmp_path: Path) -> None:
    methods = [baseline("noisy", "denoising"), Method("mean", halved, parameters=10), Method("absent", skipped="no weights")]
    spec = folder_restoration_spec(folder, "denoising")
    benchmark = run_benchmark(plan_restoration([spec], methods, levels=[15, 50]), output=tmp_path / "out")  # type: ignore[arg-type]
    write_report(benchmark, tmp_path / "out")
    made = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    expected = {f"own_sigma{level}/{method}/{name}.png" for level in (15, 50) for method in ("noisy", "mean") for name in "ab"}
    expected |= {
        "own_sigma15.png",
        "own_sigma50.png",
        "report.md",
        "report.json",
        "scores.csv",
        "psnr_parameters.png",
        "psnr_seconds.png",
    }
    assert made == expected
    facts = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [each["level"] for each in facts["sets"]] == [15.0, 50.0]
    assert str(tmp_path) not in (tmp_path / "out" / "report.json").read_text() + (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize(
    "wrong", [lambda x: x[:-1], lambda x: x.astype(np.float64), lambda x: x * np.float32(np.nan), lambda x: x[..., 0]]
)
def test_a_wrong_result_is_an_error(folder: Path, wrong: object) -> None:
    plan = plan_restoration([folder_restoration_spec(folder, "denoising")], [Method("wrong", wrong)], levels=[25])  # type: ignore[arg-type]
    assert all("is needed" in str(score.error) for score in run_benchmark(plan).rows[0].scores)


def test_requests_that_make_no_sense(folder: Path) -> None:
    same = Method("same", lambda given: given)
    with pytest.raises(RequestError, match="given twice"):
        plan_restoration([folder_restoration_spec(folder, "denoising")], [same], levels=[25, 25])
    with pytest.raises(RequestError, match="has no levels"):
        plan_restoration([folder_restoration_spec(folder, "deblurring")], [same], levels=[25])
    with pytest.raises(RequestError, match=r"bm3d is for denoising.*richardson-lucy"):
        baseline("bm3d", "deblurring")
    assert baseline("nafnet-gopro-width32", "deblurring") is None


def test_realblur_without_opencv_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(ResourceError, match="RealBlur-J aligns"):
        plan_restoration([load_spec("realblur-j", RestorationSpec)], [Method("same", lambda given: given)], data_dir=folder)


def test_noise_rule_and_jpeg_do_not_touch_other_generators() -> None:
    picture = photograph(20, 20)
    np.random.seed(3)
    expected = np.random.random()
    np.random.seed(3)
    noisy(picture, 25, 0)
    compressed(picture, 10)
    assert np.random.random() == expected
