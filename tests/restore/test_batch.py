"""Folders of pictures through the commands: resume, changes, failures, remote places."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid.batch.journal import JOURNAL
from tests.command import Said, files, restore

QUICK = ("--model", "espcn-compact", "--device", "cpu", "--precision", "float32")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")


@pytest.fixture
def album(tmp_path: Path) -> Path:
    (tmp_path / "album" / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png")):
        values = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "album" / name)
    return tmp_path / "album"


def enlarge(*arguments: str | Path) -> Said:
    return restore("sr", *arguments, *QUICK)


def entries(out: Path) -> dict[str, dict]:
    return {entry["input"]: entry for entry in map(json.loads, (out / JOURNAL).read_text().splitlines())}


def test_a_folder_is_gone_through_once(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert enlarge(album, "-o", out).code == 0
    found = entries(out)
    assert {name: entry["status"] for name, entry in found.items()} == dict.fromkeys(("a.png", "b.png", "sub/c.png"), "done")
    assert set(found["sub/c.png"]["outputs"]) == {"sub/c.png", "sub/c.png.json"}
    record = json.loads((out / "a.png.json").read_text())
    assert (record["input_sha256"], record["weights_sha256"]) == (found["a.png"]["sha256"], found["a.png"]["weights"])
    before = files(out)
    again = enlarge(album, "-o", out)
    assert again.code == 0 and again.err.count("skipped") == 3 and files(out) == before
    told = [json.loads(line) for line in enlarge(album, "-o", out, "--json").out.splitlines()]
    assert [Path(each["skipped"]).name for each in told] == ["a.png", "b.png", "c.png"]


def test_only_what_changes_results_has_them_made_again(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert enlarge(album, "-o", out).code == 0
    assert enlarge(album, "-o", out, "--memory", "4GB", "--max-pixels", "5000000").err.count("skipped") == 3
    Image.new("RGB", (9, 9)).save(album / "b.png")
    changed = enlarge(album, "-o", out)
    assert changed.code == 0 and changed.err.count("skipped") == 2
    with Image.open(out / "b.png") as judge:
        assert judge.size == (36, 36)
    ensemble = enlarge(album, "-o", out, "--ensemble")
    assert ensemble.code == 0 and "skipped" not in ensemble.err
    smaller = enlarge(album, "-o", out, "--scale", "2")
    assert smaller.code == 0 and "skipped" not in smaller.err
    with Image.open(out / "b.png") as judge:
        assert judge.size == (18, 18)


def test_failures_are_listed_and_can_be_tried_alone(album: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good = (album / "b.png").read_bytes()
    (album / "b.png").write_bytes(good[:60])
    said = enlarge(album, "-o", out)
    assert said.code == 1 and "1 of 3 pictures failed" in said.err and "--retry-failed" in said.err
    assert entries(out)["b.png"]["status"] == "failed" and str(tmp_path) not in (out / JOURNAL).read_text()
    (album / "b.png").write_bytes(good)
    again = enlarge(album, "-o", out, "--retry-failed")
    assert again.code == 0 and "b.png" in again.err and "a.png" not in again.err
    assert entries(out)["b.png"]["attempt"] == 2


def test_without_an_output_folder_the_one_beside_has_the_journal(album: Path) -> None:
    assert enlarge(album).code == 0 and enlarge(album).err.count("skipped") == 3
    assert (album.parent / "album_x4" / JOURNAL).is_file()


def test_a_single_picture_and_results_beside_their_pictures_have_no_journal(album: Path, tmp_path: Path) -> None:
    assert enlarge(album / "a.png", "-o", tmp_path / "out.png").code == 0
    there = enlarge(album / "a.png", "-o", tmp_path / "out.png")
    assert there.code == 6 and "is there already" in there.err
    assert enlarge(album / "a.png", album / "b.png").code == 0
    assert not list(tmp_path.rglob(JOURNAL))
    refused = enlarge(album / "a.png", "--retry-failed")
    assert refused.code == 2 and "one output folder" in refused.err


@pytest.mark.parametrize("command", ["denoise"])
def test_the_other_commands_do_the_same(command: str, album: Path, tmp_path: Path) -> None:
    for count in (0, 3):
        said = restore(command, album, "-o", tmp_path / "out", "--device", "cpu", "--precision", "float32")
        assert said.code == 0 and said.err.count("skipped") == count


def test_threads_are_as_asked(album: Path, tmp_path: Path) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        assert enlarge(album, "-o", tmp_path / "out", "--threads", "1").code == 0 and torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("command", "names", "both"),
    [
        (("sr", *QUICK), ("A.png", "x.png"), "A.png and {0}/a.png would both be written to"),
        (("sr", *QUICK, "--format", "webp"), ("A.jpg", "x.png"), "A.jpg and {0}/a.png"),
        (("sr", *QUICK), ("SUB/C.png", "x.png"), "SUB/C.png and {0}/sub/c.png"),
        (("deblur", "--uncertainty", "maps"), ("A.jpg", "x.png"), "A.jpg and {0}/a.png"),
        (("face",), ("A.png", "x.png"), "A.png and {0}/a.png"),
        (("face", "--sheet", "sheets"), ("A.jpg", "x.png"), "A.jpg and {0}/a.png"),
        (("face", "--save-faces", "faces"), ("a.jpg", "x.png"), "a.jpg and {0}/a.png"),
    ],
)
def test_where_case_is_ignored_names_that_become_one_are_refused_before_anything_runs(
    command: tuple[str, ...], names: tuple[str, ...], both: str, album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This system's own files tell them apart, and then all of them are made."""
    monkeypatch.chdir(tmp_path)
    for name in names:
        (album / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (9, 9)).save(album / name)
    monkeypatch.setattr("hybrid.batch.names._is_one_name", lambda folder, one, other: True)
    said = restore(command[0], "album", *command[1:], "-o", "out")
    (first, second) = sorted(both.format("album").removesuffix(" would both be written to").split(" and "))
    assert said.code == 2 and first in said.err and second in said.err and "would both be written to" in said.err, said.err
    assert not {path.name for path in tmp_path.iterdir()} & {"out", "maps", "sheets", "faces"}


@pytest.mark.skipif(Path(__file__).with_name(Path(__file__).name.upper()).exists(), reason="this file system ignores case")
def test_where_case_counts_both_are_made(album: Path, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(album / "A.png")
    assert enlarge(album, "-o", tmp_path / "out").code == 0
    assert {"A.png", "a.png"} <= set(files(tmp_path / "out")) and not list((tmp_path / "out").glob(".*"))


# Remote places ------------------------------------------------------------------------------------------------------------------


def test_addresses_are_read_and_written(album: Path, tmp_path: Path) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec")
    assert enlarge(album, "-o", tmp_path / "here").code == 0
    for count in (0, 3):
        said = enlarge(album.as_uri(), "-o", (tmp_path / "there").as_uri())
        assert said.code == 0, said.err
        assert said.err.count("skipped") == count
        assert "hybrid-remote" not in said.err and (tmp_path / "there" / "a.png").as_uri() in said.err
    assert set(files(tmp_path / "there")) == set(files(tmp_path / "here"))
    for name in ("a.png", "sub/c.png"):
        with Image.open(tmp_path / "here" / name) as here, Image.open(tmp_path / "there" / name) as there:
            assert here.tobytes() == there.tobytes()
    (tmp_path / "there" / "a.png").unlink()
    again = enlarge(album.as_uri(), "-o", (tmp_path / "there").as_uri())
    assert again.code == 0 and again.err.count("skipped") == 2 and (tmp_path / "there" / "a.png").is_file()


def test_a_journal_from_another_machine_is_gone_on_from(album: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec", reason="needs fsspec")
    store = fsspec.filesystem("memory")
    store.put(str(album), "/photos", recursive=True)
    try:
        assert enlarge("memory://photos", "-o", "memory://results").code == 0
        names = {name.removeprefix("/results/") for name in store.find("/results")}
        assert names == {"a.png", "a.png.json", "b.png", "b.png.json", "sub/c.png", "sub/c.png.json", JOURNAL}
        monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "other machine"))
        assert enlarge("memory://photos", "-o", "memory://results").err.count("skipped") == 3
        store.pipe("/photos/b.png", b"no picture")
        failed = enlarge("memory://photos", "-o", "memory://results")
        assert failed.code == 1 and "memory://photos/b.png is not a picture" in failed.err and "hybrid-remote" not in failed.err
        assert "1 of 3 pictures failed: memory://photos/b.png" in failed.err
        itself = enlarge("memory://photos", "-o", "memory://photos", "--overwrite")
        assert itself.code == 2 and "holds the input" in itself.err
        one = enlarge("memory://photos/a.png", "-o", tmp_path / "one.png")
        assert one.code == 0 and (tmp_path / "one.png").read_bytes()[:4] == b"\x89PNG"
    finally:
        store.rm("/photos", recursive=True)
        store.rm("/results", recursive=True)


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("memory://nowhere", "-o", "out"), 3, "no file memory://nowhere"),
        (("nosuch://bucket/a.png", "-o", "out"), 2, "is no address"),
        (("memory://nowhere/a.png",), 2, "Say where with --output"),
    ],
)
def test_addresses_that_lead_nowhere(arguments: tuple[str, ...], code: int, text: str) -> None:
    pytest.importorskip("fsspec", reason="needs fsspec")
    said = enlarge(*arguments)
    assert said.code == code and text in said.err and len(said.err.splitlines()) == 1
