"""The command `restore bench`: rows for what was asked, and nothing in the place of a model that is not here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from apps.commands import Stopped
from hybrid.weights.checkpoints import read_checkpoint
from restore.evaluation import engine
from restore.loading import find_weights
from tests.command import Said, files, restore, smooth


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, an empty cache, and a folder of one picture; returns the cache."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    Image.fromarray(np.round(smooth(48, 64) * 255).astype(np.uint8)).save(tmp_path / "own/slope.png")
    return tmp_path / "cache"


def bench(*arguments: str) -> Said:
    return restore("bench", "own", *arguments, "--quiet")


def row(said: Said, name: str) -> str:
    """The line of the table whose method is `name`."""
    (line,) = [line for line in said.out.splitlines() if name in [cell.strip() for cell in line.split("│")]]
    return line


def test_the_shipped_network_is_scored_beside_bicubic() -> None:
    said = bench("--model", "bicubic", "--model", "hat-compact")
    assert said.code == 0, said.err
    for name in ("bicubic", "bicubic (stored LR)", "hat-compact"):
        assert any(cell.strip().replace(".", "").isdigit() for cell in row(said, name).split("│"))


@pytest.mark.parametrize("name", ["hat", "HAT", "hat-l"])
def test_a_model_that_is_not_here_is_a_named_row_and_never_another_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*arguments: object) -> None:
        raise AssertionError("bench looked for a stand-in")

    monkeypatch.setattr("restore.loading.fallback", forbidden)
    said = bench("--model", name, "-o", "report")
    assert said.code == 0
    assert f"{name.lower()}: skipped: The weights HAT" in said.out and "models import" in said.out.replace("\n", " ")
    assert "hat-compact" not in said.out + said.err
    assert not list(Path("report").rglob(f"{name.lower()}/*.png"))


def test_a_scale_that_a_model_lacks_is_a_skipped_row() -> None:
    said = bench("--model", "drct", "--model", "bicubic", "--scale", "2")
    assert said.code == 0
    assert "drct: skipped: drct has no weights for scale 2" in said.out


def test_a_checkpoint_file_can_be_scored(offline: Path, tmp_path: Path) -> None:
    shipped, _ = find_weights("hat-compact", 4)
    torch.save({"params": dict(read_checkpoint(shipped.path).state)}, tmp_path / "mine.pth")
    said = bench("--model", "mine.pth")
    assert said.code == 0 and row(said, "mine")


def test_the_report_names_the_weights_and_the_picture() -> None:
    said = bench("--model", "hat-compact", "-o", "report")
    assert said.code == 0
    made = files(Path("report"))
    assert any(name.endswith("hat-compact/slope.png") for name in made)
    texts = [content.decode() for name, content in made.items() if content and name.endswith((".json", ".csv", ".md"))]
    assert texts and any("hat-compact-x4.safetensors" in text for text in texts)
    for name, content in made.items():
        if content and name.endswith(".json"):
            json.loads(content)
        if content and name.endswith(".csv"):
            assert len(list(csv.reader(content.decode().splitlines()))) >= 2
    assert all(str(Path("report") / name) in said.out for name in made if name.endswith(".csv"))


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("--model", "hatt"), 2, "Did you mean hat"),
        (("--model", "hat", "--device", "cuda:77"), 5, "cuda:77"),
        (("--model", "hat", "--device", "abacus"), 2, "abacus"),
        (("--model", "hat", "--precision", "int3"), 2, "int3"),
        (("--model", "bicubic", "--model", "bicubic"), 2, "named twice"),
        (("--model", "bicubic", "--scale", "5"), 2, "5"),
    ],
)
def test_what_cannot_be_is_an_error_and_no_row(arguments: tuple[str, ...], code: int, part: str) -> None:
    said = bench(*arguments, "-o", "report")
    assert said.code == code and part in said.err and said.out == ""
    assert not Path("report").exists()


def test_an_unknown_set_names_the_nearest() -> None:
    said = restore("bench", "sett5", "--model", "bicubic")
    assert said.code == 2 and "Did you mean set5" in said.err


def test_a_picture_that_cannot_be_read_fails_its_row_and_the_command() -> None:
    Path("own/text.png").write_text("text")
    said = bench("--model", "bicubic")
    assert said.code == 1 and "text" in said.err and "not a picture" in said.err


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        (("--task", "denoising", "--sigma", "25", "--model", "noisy"), {"own sigma 25"}),
        (("--sigma", "15", "--sigma", "50", "--model", "noisy"), {"own sigma 15", "own sigma 50"}),
        (("--quality", "10", "--model", "jpeg"), {"own quality 10"}),
        (("--task", "jpeg", "--model", "jpeg"), {f"own quality {each}" for each in (10, 20, 40)}),
        (("--task", "deblurring", "--model", "blurred"), {"own"}),
    ],
)
def test_tasks_and_their_levels(arguments: tuple[str, ...], rows: set[str]) -> None:
    said = bench(*arguments, "-o", "report")
    assert said.code == 0, said.err
    seen = {line.split("│")[1].strip() for line in said.out.splitlines() if line.startswith("│")}
    assert seen == rows
    assert Path("report/report.md").exists()


def test_a_set_alone_says_its_task() -> None:
    said = restore("bench", "mini", "--sigma", "25", "--model", "noisy", "--quiet")
    assert said.code == 0 and "mini sigma 25" in said.out
    said = restore("bench", "kodak24-blur", "--model", "blurred", "--quiet")
    assert said.code == 2 and "--data" in said.err and "Kodak24 blurred" in said.err
    said = restore("bench", "btcv", "--model", "noisy", "--quiet")
    assert said.code == 2 and "segmentation" in said.err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--task", "denoising", "--quality", "10", "--model", "noisy"), "--quality is for jpeg, not for denoising"),
        (("--task", "deblurring", "--sigma", "10", "--model", "blurred"), "--sigma is for denoising"),
        (("--task", "jpeg", "--scale", "2", "--model", "jpeg"), "--scale is for super-resolution"),
        (("--sigma", "-3", "--model", "noisy"), "above 0"),
        (("--sigma", "25", "--model", "jpeg"), "jpeg is for jpeg"),
        (("--sigma", "25", "--model", "hat-compact"), "enlarges by"),
        (("--sigma", "25", "--sigma", "25", "--model", "noisy"), "given twice"),
    ],
)
def test_levels_that_do_not_fit_the_task(arguments: tuple[str, ...], part: str) -> None:
    said = bench(*arguments, "-o", "report")
    assert said.code == 2 and part in said.err.replace("\n", " ") and said.out == ""
    assert not Path("report").exists()


def test_a_network_of_several_outputs_is_read_in_three_ways(tmp_path: Path) -> None:
    from restore.models.nafnet import KEYS, NAFNet, NAFNetConfig

    torch.manual_seed(0)
    config = NAFNetConfig(width=4, encoder_depths=(1, 1), middle_depth=1, decoder_depths=(1, 1), n_heads=2)
    state = {KEYS.to_published(key): value for key, value in NAFNet(config).state_dict().items()}
    torch.save({"params": state}, tmp_path / "several.pth")
    said = bench("--task", "deblurring", "--model", "blurred", "--model", "several.pth", "-o", "report")
    assert said.code == 0, said.err
    methods = json.loads(Path("report/report.json").read_text())["sets"][0]["methods"]
    psnr = [method["psnr"] for method in methods]
    assert [method["name"].split(" (")[0] for method in methods] == ["blurred", "several", "several", "several"]
    assert psnr[3] >= psnr[2] >= psnr[1] - 1e-9


def test_absent_weights_of_a_denoiser_are_a_skipped_row() -> None:
    said = bench("--sigma", "25", "--model", "restormer-color-sigma25", "--model", "noisy")
    assert said.code == 0 and "restormer-color-sigma25: skipped:" in said.out


@pytest.mark.parametrize("kept", [True, False])
def test_an_interrupted_benchmark_says_what_stays(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = engine.run_benchmark

    def interrupted(plan: engine.BenchmarkPlan, **options: Any) -> engine.Benchmark:
        def stop(done: int, total: int) -> None:
            raise Stopped(2)

        return genuine(plan, **options | {"on_progress": stop})

    monkeypatch.setattr(engine, "run_benchmark", interrupted)
    said = bench("--model", "bicubic", "--model", "hat-compact", *(("-o", "out") if kept else ()))
    assert said.code == 130
    last = said.err.splitlines()
    if kept:
        assert list(Path("out").rglob("*.png")) and not list(Path("out").glob("*.csv"))
        assert "result pictures that were finished stay in out" in last[-2] and last[-1] == "interrupted"
    else:
        assert last[-1] == "interrupted; nothing half-written is left"


def test_progress_is_told_where_nobody_watches_a_bar() -> None:
    said = restore("bench", "own", "--model", "bicubic")
    assert said.code == 0 and "pictures: 1 of 2, about " in said.err and "pictures: 2 of 2\n" in said.err
    assert bench("--model", "bicubic").err == ""
