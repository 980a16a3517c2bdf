"""`restore compare`: scores, regions, skipped models, the sheet and the kept pictures; judged by scikit-image and Pillow."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

from hybrid.errors import InputError, RequestError
from restore import load_model
from restore.evaluation.compare import (
    Case,
    Comparison,
    Region,
    Result,
    Skipped,
    find_models,
    plan_case,
    rgb8,
    run_bicubic,
    run_model,
)
from restore.evaluation.compare_sheet import GAP, LABEL, LINE, MARGIN, PANEL, fit, sheet
from restore.evaluation.metrics import rgb_to_y
from restore.images import Picture, read_picture
from restore.images.resize import imresize
from restore.restoration.run import restore_picture
from tests.command import files, restore

SCALE = 4


@pytest.fixture(autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.delenv("RESTORE_MIRROR", raising=False)


def noise(*shape: int, seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def wavy(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / 9 + y / 23), np.cos(y / 7), np.sin((x + y) / 11)]
    return np.round(127.5 + 110 * np.stack(planes, -1)).astype(np.uint8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A small picture, and the larger one that it was made from."""
    large = wavy(96, 128)
    Image.fromarray(large).save(tmp_path / "hr.png")
    Image.fromarray(imresize(large, 1 / SCALE, "uint8")).save(tmp_path / "lr.png")
    return tmp_path / "lr.png", tmp_path / "hr.png"


def y_psnr(a: np.ndarray, b: np.ndarray) -> float:
    inner = np.s_[SCALE:-SCALE, SCALE:-SCALE]
    return peak_signal_noise_ratio(rgb_to_y(a)[inner], rgb_to_y(b)[inner], data_range=255)


def result_of(name: str, case: Case) -> Result:
    [(title, found)] = find_models([name], case.scale)
    assert not isinstance(found, Skipped)
    made = run_model(title, found, case, device="cpu")
    assert isinstance(made, Result)
    return made


# Results ----------------------------------------------------------------------------------------------------------------


def test_each_result_is_what_the_model_makes_alone_and_its_psnr_is_right(pair: tuple[Path, Path]) -> None:
    low, high = map(read_picture, pair)
    case = plan_case(low, SCALE, reference=high)
    made = result_of("hat-compact", case)
    np.testing.assert_array_equal(
        made.picture.colour, restore_picture(load_model("hat-compact", scale=4, device="cpu"), low).colour
    )
    assert made.psnr == pytest.approx(y_psnr(made.picture.colour, high.colour), abs=1e-9) and made.ssim is not None
    plain = run_bicubic(case)
    np.testing.assert_array_equal(plain.picture.colour, imresize(low.colour, SCALE, "uint8"))
    assert plain.psnr == pytest.approx(y_psnr(plain.picture.colour, high.colour), abs=1e-9)


def test_a_region_is_the_same_part_of_the_whole_result(pair: tuple[Path, Path]) -> None:
    low, high = map(read_picture, pair)
    region = Region(7, 3, 20, 16)
    part = np.s_[12:76, 28:108]  # y 3 to 19 and x 7 to 27, times 4
    case = plan_case(low, SCALE, region, high)
    plain = run_bicubic(case)
    np.testing.assert_array_equal(plain.picture.colour, imresize(low.colour, SCALE, "uint8")[part])
    assert plain.psnr == pytest.approx(y_psnr(plain.picture.colour, high.colour[part]), abs=1e-9)
    made = result_of("hat-compact", case)  # with its overlap around the region, this small picture is seen whole
    np.testing.assert_array_equal(
        made.picture.colour, restore_picture(load_model("hat-compact", scale=4, device="cpu"), low).colour[part]
    )


def test_without_a_reference_there_is_no_score(pair: tuple[Path, Path]) -> None:
    plain = run_bicubic(plan_case(read_picture(pair[0]), SCALE))
    assert plain.psnr is None and plain.ssim is None


def test_a_reference_may_have_a_rim_of_less_than_the_scale(pair: tuple[Path, Path]) -> None:
    low, high = map(read_picture, pair)
    wider = Picture(np.pad(high.colour, ((0, 3), (0, 1), (0, 0))))
    assert run_bicubic(plan_case(low, SCALE, reference=wider)).psnr == run_bicubic(plan_case(low, SCALE, reference=high)).psnr
    for rows in (4, -1):
        other = Picture(np.zeros((96 + rows, 128, 3), np.uint8))
        with pytest.raises(InputError, match="128 x 96.*\n?.*another --scale"):
            plan_case(low, SCALE, reference=other)


@pytest.mark.parametrize("text", ["1,2,3", "1,2,3,4,5", "a,b,c,d", "-1,0,4,4", "0,0,0,5", "", "1.5,0,4,4"])
def test_a_region_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(RequestError, match="--region"):
        Region.parse(text)


def test_a_region_beyond_the_picture_is_refused() -> None:
    with pytest.raises(RequestError, match="beyond the picture of 12 x 10"):
        plan_case(Picture(noise(10, 12, 3)), 2, Region(8, 0, 5, 4))


def test_gray_alpha_and_deep_pictures_are_shown_as_rgb8() -> None:
    gray = np.array([[[0], [65535]]], np.uint16)
    assert rgb8(Picture(gray)).tolist() == [[[0] * 3, [255] * 3]]
    veil = np.array([[0, 65535]], np.uint16)
    assert rgb8(Picture(np.zeros((1, 2, 3), np.uint16), veil)).tolist() == [[[255] * 3, [0] * 3]]
    made = run_bicubic(plan_case(Picture(gray.repeat(8, 0), veil.repeat(8, 0)), 3))
    assert made.picture.colour.shape == (24, 6, 1) and made.picture.colour.dtype == np.uint16
    assert made.picture.alpha is not None and made.picture.alpha.shape == (24, 6)


# Models -----------------------------------------------------------------------------------------------------------------


def test_all_models_of_the_scale_are_tried_and_absent_ones_named() -> None:
    found = dict(find_models([], 4))
    assert not isinstance(found["hat-compact"], Skipped)
    assert isinstance(found["hat"], Skipped) and "not here" in found["hat"].reason
    assert "drct" not in dict(find_models([], 2))


def test_a_model_is_named_once_and_must_exist() -> None:
    with pytest.raises(RequestError, match="named twice"):
        list(find_models(["hat-compact", "HAT-compact"], 4))
    with pytest.raises(RequestError, match="no model named"):
        list(find_models(["hut"], 4))
    [(_, missing)] = find_models(["drct"], 3)
    assert isinstance(missing, Skipped) and "scale 3" in missing.reason


# The sheet --------------------------------------------------------------------------------------------------------------


def test_the_sheet_shows_every_pixel_of_every_panel(tmp_path: Path) -> None:
    reference = noise(60, 80, 3, seed=1)
    case = Case(Picture(noise(15, 20, 3)), Region(0, 0, 20, 15), SCALE, Picture(reference))
    pictures = [noise(60, 80, 3, seed=seed) for seed in (2, 3)]
    results = tuple(Result(f"m{k}", Picture(each), 30.0, 0.9, 1.0, "w.pth", "ab") for k, each in enumerate(pictures))
    (tmp_path / "s.png").write_bytes(sheet(Comparison(case, results, (Skipped("gone", "lost"),)), "in.png"))
    with Image.open(tmp_path / "s.png") as judge:
        shown, told = np.asarray(judge.convert("RGB")), json.loads(judge.text["Description"])
    times = PANEL // 80
    top = MARGIN + LINE + LABEL
    for place, picture in enumerate([*pictures, reference]):
        left = MARGIN + place * (80 * times + GAP)
        part = shown[top : top + 60 * times, left : left + 80 * times]
        np.testing.assert_array_equal(part, picture.repeat(times, 0).repeat(times, 1))
    assert [each["name"] for each in told["results"]] == ["m0", "m1"] and told["skipped"] == ["gone"]
    assert told["results"][0]["psnr"] == 30.0 and told["results"][0]["sha256"] == "ab"


def test_large_pictures_are_shrunk_to_the_panel() -> None:
    assert fit(noise(2000, 1000, 3)).shape == (PANEL, PANEL // 2, 3)
    np.testing.assert_allclose(fit(np.full((1000, 700, 3), 77, np.uint8)), 77)


# The command ------------------------------------------------------------------------------------------------------------


def test_the_command_writes_the_sheet_and_keeps_the_results(pair: tuple[Path, Path], tmp_path: Path) -> None:
    low, high = pair
    said = restore("compare", low, "--reference", high, "--device", "cpu", "-o", tmp_path / "s.png", "--keep", tmp_path / "keep")
    assert said.code == 0 and "skipped: hat, " in said.err and "not here" in said.err
    lines = {line.split()[0]: line for line in said.out.splitlines()}
    kept = read_picture(tmp_path / "keep" / "lr_hat-compact_x4.png").colour
    assert f"{y_psnr(kept, read_picture(high).colour):.2f} dB" in lines["hat-compact"] and "dB" in lines["bicubic"]
    shipped = ("bicubic", "cfsr-compact", "espcn-compact", "hat-compact")
    assert sorted(files(tmp_path / "keep")) == [f"lr_{name}_x4.png" for name in shipped]
    again = restore("compare", low, "--device", "cpu", "-o", tmp_path / "s.png")
    assert again.code == 6 and "--overwrite" in again.err


def test_a_model_asked_for_by_name_and_absent_is_named_and_the_command_fails(pair: tuple[Path, Path], tmp_path: Path) -> None:
    said = restore("compare", pair[0], "--model", "hat", "-o", tmp_path / "s.png", "-q")
    assert said.code == 4 and "skipped: hat: " in said.err and "restore models import" in said.err
    with Image.open(tmp_path / "s.png") as judge:
        assert [each["name"] for each in json.loads(judge.text["Description"])["results"]] == ["bicubic"]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("-o", "s.jpg"), 2, "s.png"),
        (("-o", "missing/s.png"), 6, "no folder"),
        (("-o", "s.png", "--region", "0,0,99,99"), 2, "beyond"),
        (("-o", "s.png", "--model", "nothing"), 2, "no model"),
        (("-o", "s.png", "--device", "cuda:99"), 5, "cuda"),
        (("-o", "lr.png", "--overwrite"), 2, "is the input"),
    ],
)
def test_what_cannot_be_done_is_said_and_leaves_nothing(
    options: tuple[str, ...], code: int, words: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pair[0].parent)
    before = files(pair[0].parent)
    said = restore("compare", "lr.png", *options)
    assert said.code == code and words in said.err and "Traceback" not in said.err
    assert files(pair[0].parent) == before


def test_a_missing_input_is_told_before_a_wrong_output(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(pair[0].parent)
    for arguments in (("gone.png",), ("lr.png", "--reference", "gone.png")):
        said = restore("compare", *arguments, "-o", "missing/s.jpg")
        assert said.code == 3 and "gone.png" in said.err and "s.jpg" not in said.err
