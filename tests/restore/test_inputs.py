"""From files, folders and globs to pairs of input and output."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hybrid.console import printable
from hybrid.errors import InputError, RequestError
from restore.images import plan as image_plan
from restore.restoration.inputs import FORMAT_SUFFIX, SUFFIXES, Job, check_name, keep_inputs, plan_jobs


@pytest.fixture(autouse=True)
def album(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("album/a.png", "album/b.JPG", "album/sub/a.tif", "album/notes.txt", "album/.trash/c.png", "album/sub/.d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path / "album"


def pairs(*inputs: str, output: str | None = None, format: str | None = None) -> list[tuple[str, str]]:
    jobs = plan_jobs(list(inputs), Path(output) if output else None, tag="_x4", format=format)
    return [(str(job.source), str(job.target)) for job in jobs]


@pytest.mark.parametrize(
    ("output", "format", "target"),
    [
        (None, None, "album/a_x4.png"),
        (None, "jpeg", "album/a_x4.jpg"),
        ("out.webp", None, "out.webp"),
        ("deep/out.tif", None, "deep/out.tif"),
        ("out", None, "out/a.png"),
        ("out", "tiff", "out/a.tif"),
        ("album/sub", None, "album/sub/a.png"),
    ],
)
def test_one_file(output: str | None, format: str | None, target: str) -> None:
    assert pairs("album/a.png", output=output, format=format) == [("album/a.png", target)]


def test_a_folder_is_searched_deeply_in_order_and_mirrored(album: Path) -> None:
    names = ["a.png", "b.JPG", "sub/a.tif"]
    assert pairs("album") == [(f"album/{name}", str(album.with_name("album_x4") / name)) for name in names]
    assert pairs("album", output="out") == [(f"album/{name}", f"out/{name}") for name in names]
    assert pairs("album/", output="out", format="png")[1:] == [("album/b.JPG", "out/b.png"), ("album/sub/a.tif", "out/sub/a.png")]


def test_the_folder_one_is_in_can_be_meant(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(album)
    assert pairs(".")[0] == ("a.png", str(album.with_name("album_x4") / "a.png"))


def test_a_folder_of_one_picture_is_still_mirrored() -> None:
    assert pairs("album/sub", output="out.d") == [("album/sub/a.tif", "out.d/a.tif")]


@pytest.mark.parametrize(
    ("output", "count"), [("album/sub", 2), ("album/../album/sub", 2), ("album", 3), (".", 3), ("album/new", 3)]
)
def test_what_lies_in_the_output_inside_the_folder_is_no_input(output: str, count: int) -> None:
    assert len(pairs("album", output=output)) == count


def test_several_files_and_globs_are_laid_flat() -> None:
    assert pairs("album/a.png", "album/b.JPG", output="out") == [("album/a.png", "out/a.png"), ("album/b.JPG", "out/b.JPG")]
    assert pairs("album/*.png", "album/b.JPG")[1:] == [("album/b.JPG", "album/b_x4.JPG")]
    assert ("album/sub/a.tif", "out/a.tif") in pairs("album/**/*.tif", output="out")


def test_a_name_that_looks_like_a_pattern_is_a_name_if_it_is_there(album: Path) -> None:
    (album / "a[1].png").touch()
    (album / "a1.png").touch()
    assert pairs("album/a[1].png") == [("album/a[1].png", "album/a[1]_x4.png")]
    (album / "a[1].png").unlink()
    assert pairs("album/a[1].png") == [("album/a1.png", "album/a1_x4.png")]


@pytest.mark.parametrize(
    ("inputs", "output", "error", "text"),
    [
        (["none.png"], None, InputError, "There is no file none.png"),
        (["album/*.gif"], None, InputError, "Nothing fits the pattern"),
        (["album/.trash/..", "none"], None, InputError, "There is no file none"),
        (["album/.hidden"], None, InputError, "There is no file"),
        (["album"], "all.png", RequestError, "names a file, but there are 3 inputs. Give --output a folder"),
        (["album/a.png", "album/b.JPG"], "all.jfif", RequestError, "names a file"),
        (["album/a.png", "album/a.png"], None, RequestError, "would both be written to"),
        (["/"], None, RequestError, "no place beside /"),
    ],
)
def test_what_cannot_be_is_refused(
    inputs: list[str], output: str | None, error: type[Exception], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if inputs == ["/"]:  # not to be searched really
        monkeypatch.setattr("restore.restoration.inputs._expand", lambda *_: [(Path("/a.png"), Path("/"))])
    with pytest.raises(error) as caught:
        pairs(*inputs, output=output)
    assert text in str(caught.value)


def test_a_folder_without_pictures_names_the_suffixes(tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match=r"holds no picture.*\.avif"):
        pairs("bare")


@pytest.mark.parametrize("link", [None, os.symlink])
def test_no_output_may_be_an_input(album: Path, link: object) -> None:
    target = album / "a.png"
    if link is not None:
        target = album / "alias.png"
        target.symlink_to("a.png")
    jobs = [Job(album / "sub/a.tif", target), Job(album / "a.png", album / "z.png")]
    with pytest.raises(RequestError, match="is the input"):
        keep_inputs(jobs)
    keep_inputs([Job(album / "a.png", album / "y.png"), Job(album / "b.JPG", album / "z.png")])


def test_names_must_be_utf8() -> None:
    latin = Path(os.fsdecode(b"latin-\xe9.png"))
    assert printable(latin) == "latin-?.png" and printable(Path("ünï.png")) == "ünï.png"
    check_name(Job(Path("ünï.png"), Path("b.png")))
    for job in (Job(latin, Path("b.png")), Job(Path("a.png"), latin)):
        with pytest.raises(InputError, match=r"latin-\?\.png is not valid UTF-8\. Rename"):
            check_name(job)


def test_the_suffixes_are_those_that_can_be_written() -> None:
    assert set(SUFFIXES) == set(image_plan.SUFFIXES)
    assert {name: image_plan.SUFFIXES[suffix] for name, suffix in FORMAT_SUFFIX.items()} == {
        name: name for name in image_plan.NAMES
    }
