"""What goes wrong ends in one clear line that says the repair, another exit code than 0, and no file left behind."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from hybrid.errors import OutputError
from restore.loading import find_weights
from tests.command import COMPACT, Said, files, restore, smooth

SHIPPED = find_weights("hat-compact", 4)[0].path


def one_line(said: Said, code: int, *parts: str) -> None:
    """The command ended with this code and one line that holds these parts."""
    assert said.code == code, said.err
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    for part in parts:
        assert part in said.err


# Inputs ---------------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(path: Path) -> None:
    """A PNG whose header claims 60000 x 60000 pixels: 10.8 GB, of which it holds next to nothing."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


def truncated(path: Path) -> None:
    noise = np.random.default_rng(3).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


BAD = {
    "missing.png": (lambda path: None, "There is no file", "Check the path"),
    "empty.png": (lambda path: path.write_bytes(b""), "is empty (0 bytes)", "Copy or export"),
    "text.png": (lambda path: path.write_text("not a picture"), "not a picture of a supported format", "Give a PNG"),
    "cut.png": (truncated, "damaged or cut short", "Copy or export"),
    "cut.jpg": (truncated, "damaged or cut short", "Copy or export"),
    "cut.tif": (truncated, "cut.tif", "Copy or export"),
    "cut.webp": (truncated, "cut.webp", "Copy or export"),
    "header.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\0\0"), "cannot be read", "Copy or export"),
    "bomb.png": (bomb, "60000 x 60000 pixels", "--max-pixels 3600000000"),
    "folder": (lambda path: path.mkdir(), "holds no picture", ".png"),
    "no*match.png": (lambda path: None, "Nothing fits the pattern", "Check it"),
    os.fsdecode(b"latin-\xe9.png"): (lambda path: Image.new("RGB", (4, 4)).save(path), "not valid UTF-8", "Rename"),
}


WAYS: dict[str, tuple[str, ...]] = {"beside": (), "into a new folder": ("-o", "new/folder/out.png"), "plan": ("--plan",)}


@pytest.mark.parametrize(
    ("name", "way"),  # a plan reads headers alone
    [(name, way) for name in BAD for way in WAYS if not (way == "plan" and name.startswith("cut"))],
)
def test_a_bad_picture_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    make, *parts = BAD[name]
    make(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = files(tmp_path)
    one_line(restore("sr", name, *COMPACT, *WAYS[way]), 3, *parts)
    assert files(tmp_path) == before


def test_a_huge_header_costs_no_memory(tmp_path: Path) -> None:
    """Allowed, it is still refused by the plan, or read and found damaged; never are 10 GB taken for it first."""
    bomb(tmp_path / "bomb.png")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said = restore("sr", tmp_path / "bomb.png", *COMPACT, "--max-pixels", "3600000000", "--memory", "2GB")
    one_line(said, 5, "--memory")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_000_000  # kB
    assert sorted(files(tmp_path)) == ["bomb.png"]


@pytest.mark.parametrize("size", [(1, 1), (1, 600), (600, 1), (2, 3)])
def test_the_smallest_and_the_thinnest_pictures_work(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, (200, 100, 50)).save(tmp_path / "in.png")
    assert restore("sr", tmp_path / "in.png", *COMPACT).code == 0
    with Image.open(tmp_path / "in_x4.png") as judge:
        assert judge.size == (4 * size[0], 4 * size[1])


def test_one_bad_file_does_not_stop_the_others(tmp_path: Path) -> None:
    folder = tmp_path / "album"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "d.png"):
        Image.new("RGB", (4, 4)).save(folder / name)
    (folder / "b.png").write_text("text")
    truncated(folder / "sub/c.jpg")
    said = restore("sr", folder, *COMPACT)
    assert said.code == 1
    assert f"failed: {folder / 'b.png'}: " in said.err and f"failed: {folder / 'sub/c.jpg'}: " in said.err
    assert said.err.splitlines()[-1].startswith(f"error: 2 of 4 pictures failed: {folder / 'b.png'}; {folder / 'sub/c.jpg'}.")
    assert sorted(files(tmp_path / "album_x4")) == [
        "a.png",
        "a.png.json",
        "d.png",
        "d.png.json",
        "run.jsonl",
    ]  # and no empty folder


# Requests -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (("--model", "hat-compct"), 2, ("no model named 'hat-compct'", "Did you mean hat-compact")),
        (("--model", "zzz"), 2, ("no model named 'zzz'", "Known: hat")),
        (("--model", "hat-compact", "--scale", "0"), 2, ("--scale 0", "positive")),
        (("--weights", "nowhere.pth"), 4, ("There is no file", "Check the path")),
        ((*COMPACT, "--tile", "big"), 2, ("--tile big", "auto, off")),
        ((*COMPACT, "--tile", "0"), 2, ("--tile 0", "auto, off")),
        ((*COMPACT, "--memory", "lots"), 2, ("'lots' is not a size", "2GB")),
        ((*COMPACT, "--quality", "101"), 2, ("101", "1 to 100")),
        ((*COMPACT, "--device", "abacus"), 2, ("'abacus'", "--device")),
        ((*COMPACT, "--device", "cuda:77"), 5, ("cuda:77", "--device")),
        ((*COMPACT, "--device", "cpu", "--precision", "fp16"), 2, ("fp16", "--precision")),
        ((*COMPACT, "-o", "out.gif"), 2, ("out.gif", ".png")),
        ((*COMPACT, "-o", "out.jpg", "--lossless"), 2, ("JPEG has no lossless form", ".png")),
        ((*COMPACT, "-o", "photo.png"), 2, ("is the input", "--output")),
        ((*COMPACT, "-o", "photo.png", "--overwrite"), 2, ("is the input", "--output")),
        ((*COMPACT, "-o", "photo.png/out.png"), 6, ("photo.png", "--output")),
        ((*COMPACT, "-o", "/proc/nowhere/out.png"), 6, ("/proc/nowhere", "--output")),
        ((*COMPACT, "-o", "/proc/out.png"), 6, ("/proc", "")),
    ],
)
def test_a_request_that_cannot_be_met_is_refused(
    photo: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], code: int, parts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(photo.parent)
    before = files(photo.parent)
    one_line(restore("sr", "photo.png", *arguments), code, *parts)
    assert files(photo.parent) == before


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_input_under_another_name_is_still_the_input(photo: Path, link: Callable[[Path, Path], None]) -> None:
    link(photo, photo.with_name("alias.png"))
    before = files(photo.parent)
    said = restore("sr", photo, *COMPACT, "-o", photo.with_name("alias.png"), "--overwrite")
    one_line(said, 2, "is the input", "--output")
    assert files(photo.parent) == before


def test_no_output_takes_the_place_of_another_input(photo: Path) -> None:
    """`photo_x4.png` is what the first would be written to, and the second picture."""
    second = photo.with_name("photo_x4.png")
    Image.new("RGB", (4, 4), (9, 9, 9)).save(second)
    before = files(photo.parent)
    one_line(restore("sr", photo, second, *COMPACT, "--overwrite"), 2, "is the input", "--output")
    assert files(photo.parent) == before


def test_a_folder_is_not_enlarged_into_itself(photo: Path) -> None:
    before = files(photo.parent)
    one_line(restore("sr", photo.parent, *COMPACT, "-o", photo.parent, "--overwrite"), 2, "is the input")
    assert files(photo.parent) == before


def test_two_inputs_with_one_output_are_refused(photo: Path) -> None:
    Image.new("RGB", (4, 4)).save(photo.with_name("photo.jpg"))
    before = files(photo.parent)
    one_line(restore("sr", photo.parent, *COMPACT, "--format", "webp"), 2, "would both be written to", "separately")
    one_line(restore("sr", photo.parent, *COMPACT, "-o", "all.png"), 2, "names a file", "folder")
    assert files(photo.parent) == before


def test_pictures_that_are_too_long_for_a_format_are_refused_before_work(tmp_path: Path) -> None:
    Image.new("L", (5000, 1)).save(tmp_path / "in.png")
    said = restore("sr", tmp_path / "in.png", *COMPACT, "-o", tmp_path / "out.webp")
    one_line(said, 2, "WebP holds at most 16383", ".tif")
    assert sorted(files(tmp_path)) == ["in.png"]


# Weights --------------------------------------------------------------------------------------------------------------


class Touch:
    """Unpickled without care, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., None], tuple[Path]]:
        return Path.touch, (self.marker,)


def foreign(path: Path, marker: Path) -> None:
    safetensors.torch.save_file({"encoder.weight": torch.zeros(3, 3)}, path)


def cut(path: Path, marker: Path) -> None:
    path.write_bytes(SHIPPED.read_bytes()[:100_000])


def incomplete(path: Path, marker: Path) -> None:
    state = safetensors.torch.load_file(SHIPPED)
    safetensors.torch.save_file({name: state[name] for name in list(state)[1:]}, path)


def poisoned(path: Path, marker: Path) -> None:
    torch.save({"params_ema": Touch(marker)}, path)


def poisoned_old(path: Path, marker: Path) -> None:
    torch.save({"params_ema": Touch(marker)}, path, _use_new_zipfile_serialization=False)


def poisoned_bare(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"params_ema": Touch(marker)}))


def text(path: Path, marker: Path) -> None:
    path.write_text("<html>quota exceeded</html>")


def empty(path: Path, marker: Path) -> None:
    path.touch()


@pytest.mark.parametrize("make", [foreign, cut, incomplete, poisoned, poisoned_old, poisoned_bare, text, empty])
def test_bad_weights_are_refused_and_nothing_in_them_runs(
    photo: Path, tmp_path: Path, make: Callable[[Path, Path], None]
) -> None:
    weights, marker = tmp_path / "weights.pth", tmp_path / "marker"
    make(weights, marker)
    before = files(tmp_path)
    one_line(restore("sr", photo, "--weights", weights), 4)
    assert restore("models", "import", weights, "--as", "hat", "--scale", "4").code == 4
    assert files(tmp_path) == before and not marker.exists()


def test_the_poison_would_work_without_care(tmp_path: Path) -> None:
    """So that the test above can fail."""
    pickle.loads(pickle.dumps(Touch(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


# The disk -------------------------------------------------------------------------------------------------------------


def test_a_folder_that_takes_no_files_is_told_before_work(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(photo.parent)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # the tests may run as root, who may write everywhere
    one_line(restore("sr", photo, *COMPACT), 6, "not writable", "--output")
    assert files(photo.parent) == before


@pytest.mark.parametrize("limit", [1000, 12_000])
def test_a_disk_that_fills_up_leaves_nothing(photo: Path, limit: int) -> None:
    """Files may grow to `limit` bytes: too few for the rows, which take 23 kB."""
    before = files(photo.parent)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        said = restore("sr", photo, *COMPACT, "-o", photo.parent / "new" / "out.png")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    one_line(said, 6, "cannot be written", "free space")
    assert files(photo.parent) == before


def test_a_disk_that_is_full_leaves_nothing(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **others: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = files(photo.parent)
    monkeypatch.setattr("restore.images.writing.scratch_header", full)
    one_line(restore("sr", photo, *COMPACT), 6, "No space left on device", "free space")
    assert files(photo.parent) == before


def test_no_output_stays_without_its_record(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OutputError("The record could not be written: No space left on device.")

    before = files(photo.parent)
    monkeypatch.setattr("restore.restoration.run.write_record", full)
    one_line(restore("sr", photo, *COMPACT), 6, "No space left")
    assert files(photo.parent) == before


# Signals --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    Image.fromarray(np.round(smooth(240, 240) * 255).astype(np.uint8)).save(tmp_path / "in.png")
    before = files(tmp_path)
    program = "from apps.commands import restore; restore()"
    arguments = ["sr", "in.png", *COMPACT, "--tile", "64", "-o", "new/out.png"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    try:
        while not list((tmp_path / "new").glob(".writing-*/rows.tif")):  # the rows on their way: the middle of the work
            assert process.poll() is None and time.monotonic() < deadline
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code
    assert said.splitlines()[-1] == "interrupted; nothing half-written is left" and "Traceback" not in said
    assert files(tmp_path) == before


def test_signals_are_as_before_after_a_command(photo: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    restore("sr", "nowhere.png")
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
