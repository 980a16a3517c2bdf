"""The command on pictures that are streamed, on scales that a model lacks, and before any weights are looked for."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hybrid.weights.find import Store
from restore.images import read_picture
from restore.loading import find_weights
from tests.command import COMPACT, files, restore, smooth

SHIPPED = find_weights("hat-compact", 4)[0].path
EXACT = ("--device", "cpu", "--precision", "float32")


def save(path: Path, height: int = 90, width: int = 70) -> Path:
    tifffile.imwrite(
        path, np.round(smooth(height, width) * 255).astype(np.uint8), photometric="rgb", tile=(32, 32), metadata=None
    )
    return path


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restore.restoration.plan.STREAM_FROM", 0)


# Streaming --------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("streaming")
def test_a_plan_and_a_run_say_that_they_stream(tmp_path: Path) -> None:
    source = save(tmp_path / "in.tif")
    command = ("sr", source, *COMPACT, *EXACT, "--tile", "64")
    planned = restore(*command, "--plan")
    assert planned.code == 0 and "tiles of 64 x 64 over 70 x 90" in planned.out
    assert "streamed in 2 rows of tiles, resumable at each; result 280 x 360" in planned.out
    assert json.loads(restore(*command, "--plan", "--json").out)["plan"]["streamed"] is True
    assert sorted(files(tmp_path)) == ["in.tif"]
    said = restore(*command, "-o", tmp_path / "out.tif")
    assert said.code == 0 and "streamed in 2 rows of tiles" in said.err.splitlines()[0]
    plain = restore(*command, "-o", tmp_path / "out.png")
    assert plain.code == 0 and "streamed" not in plain.err
    np.testing.assert_array_equal(read_picture(tmp_path / "out.tif").colour, read_picture(tmp_path / "out.png").colour)


def test_an_interrupted_run_says_how_to_go_on_and_does(tmp_path: Path) -> None:
    save(tmp_path / "in.tif", 960, 120)  # so many rows of tiles that it is not done before it is interrupted
    (tmp_path / "out.tif.part").mkdir()  # the sign of a run that was broken off: so this one streams
    command = ["sr", "in.tif", *COMPACT, *EXACT, "--tile", "64", "-o", "out.tif"]
    program = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from apps.commands import restore; restore()"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *command], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    progress, deadline, rows = tmp_path / "out.tif.part" / "progress.json", time.monotonic() + 200, 0
    try:
        while rows == 0:
            assert process.poll() is None and time.monotonic() < deadline
            if progress.exists():
                rows = json.loads(progress.read_text())["progress"]["rows"]
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said
    assert "out.tif.part keeps the finished rows of tiles" in said and "the same command goes on from there" in said
    assert not (tmp_path / "out.tif").exists()
    again = restore(*command[:1], tmp_path / "in.tif", *command[2:-1], tmp_path / "out.tif")
    assert again.code == 0 and "Resumed after" in again.err
    assert sorted(files(tmp_path)) == ["in.tif", "out.tif", "out.tif.json"]


# Before weights ---------------------------------------------------------------------------------------------------------


def test_an_output_that_is_there_is_told_before_weights_are_looked_for(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(*arguments: object, **others: object) -> None:
        raise AssertionError("weights were looked for")

    monkeypatch.setattr("restore.cli.road.find_weights", look)
    for name, scale in (("photo_x4.png", "4"), ("photo_x2.7.png", "2.7")):
        photo.with_name(name).write_bytes(b"precious")
        said = restore("sr", photo, "--model", "hat", "--scale", scale)
        assert said.code == 6 and name in said.err and "--overwrite" in said.err
    Image.new("RGB", (8, 8)).save(photo.with_name("b.png"))
    (photo.parent / "b_x4.png").touch()
    said = restore("sr", photo, photo.with_name("b.png"), "--model", "hat")
    assert said.code == 1 and said.err.count("is there already") == 2 and "2 of 2 pictures failed" in said.err


def test_one_output_that_is_there_keeps_no_other_from_being_made(photo: Path) -> None:
    Image.new("RGB", (8, 8)).save(photo.with_name("b.png"))
    photo.with_name("photo_x4.png").touch()
    said = restore("sr", photo, photo.with_name("b.png"), *COMPACT)
    assert said.code == 1 and said.err.count("is there already") == 1 and photo.with_name("b_x4.png").stat().st_size > 0


def test_a_plan_downloads_nothing(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*arguments: object, **others: object) -> None:
        raise AssertionError("a download was tried")

    monkeypatch.setattr(Store, "fetch", fetch)
    monkeypatch.setenv("RESTORE_OFFLINE", "0")
    said = restore("sr", photo, "--model", "hat", "--plan")
    assert said.code == 4 and "A plan downloads nothing" in said.err and "restore models pull hat --scale 4" in said.err
    assert restore("sr", photo, *COMPACT, "--plan").code == 0


# Scales that a model lacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [("--weights", SHIPPED, "--scale", "2"), (*COMPACT, "--scale", "7")])
def test_a_whole_scale_that_a_model_lacks_goes_the_way_of_a_fraction(options: tuple[str, ...], photo: Path) -> None:
    scale = int(options[-1])
    said = restore("sr", photo, *options, *EXACT)
    output = photo.with_name(f"photo_x{scale}.png")
    assert said.code == 0 and f"no network for scale {scale}: the one for scale 4 runs, and its result is resized" in said.err
    with Image.open(output) as judge:
        assert judge.size == (20 * scale, 24 * scale)
    notes = json.loads(output.with_name(output.name + ".json").read_text(encoding="utf-8"))["notes"]
    assert any("was resized to" in note for note in notes)
    assert restore("sr", photo, *options[:-1], f"{scale}.000001", *EXACT, "-o", photo.with_name("other.png")).code == 0
    difference = read_picture(output).colour.astype(int) - read_picture(photo.with_name("other.png")).colour
    assert np.abs(difference).max() <= 1


# Folders ----------------------------------------------------------------------------------------------------------------


def test_files_that_are_no_pictures_are_named_at_the_end(photo: Path, tmp_path: Path) -> None:
    for name in ("notes.txt", "deep/list.csv", ".hidden", "photo.png.json", "scan.tif.part/picture", "out/readme.txt"):
        (photo.parent / name).parent.mkdir(exist_ok=True)
        (photo.parent / name).touch()
    said = restore("sr", photo.parent, *COMPACT, "-o", photo.parent / "out")
    assert said.code == 0
    assert said.err.splitlines()[-1] == "2 files were passed over (no pictures): deep/list.csv, notes.txt."
    for number in range(7):
        (photo.parent / f"{number}.doc").touch()
    said = restore("sr", photo.parent, *COMPACT, "-o", tmp_path / "other")
    assert said.err.splitlines()[-1].startswith("10 files") and said.err.splitlines()[-1].endswith("3.doc, 4.doc and 5 more.")
    assert "passed over" not in restore("sr", photo, *COMPACT, "-o", tmp_path / "third.png").err
