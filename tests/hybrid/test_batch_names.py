"""Outputs that a file system would lay over each other; the folders of this one judge, and one that is made up."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hybrid.batch import names
from hybrid.batch.names import are_one, check_distinct
from hybrid.errors import RequestError

COMPOSED, TAKEN_APART = "caf\u00e9.png", "cafe\u0301.png"


def pairs(*outputs: str) -> list[tuple[Path, Path]]:
    return [(Path(f"in{number}.png"), Path("out") / output) for number, output in enumerate(outputs)]


def forgetful(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A file system that ignores case and composition; returns what it is asked."""
    asked: list[tuple[str, str]] = []
    monkeypatch.setattr(names, "_is_one_name", lambda folder, one, other: asked.append((one, other)) or True)
    return asked


@pytest.mark.parametrize(
    "clash",
    [
        ("A.png", "a.png"),
        ("sub/x.png", "Sub/x.png"),
        ("sub/x.png", "SUB/X.PNG"),
        (COMPOSED, TAKEN_APART),
        ("É.png", "e\u0301.png"),
    ],
)
def test_names_that_become_one_are_refused_with_both_and_the_repair(
    clash: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forgetful(monkeypatch)
    with pytest.raises(RequestError) as refused:
        check_distinct(pairs("other.png", *clash))
    told = str(refused.value)
    assert "in1.png and in2.png would both be written to" in told and Path(clash[1]).name in told and "Rename one of them" in told


def test_where_they_are_two_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_is_one_name", lambda folder, one, other: False)
    check_distinct(pairs("A.png", "a.png", COMPOSED, TAKEN_APART, "sub/x.png", "Sub/x.png"))


def test_two_files_of_two_folders_are_two_even_if_the_folders_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = forgetful(monkeypatch)
    check_distinct(pairs("sub/a.png", "Sub/b.png", "a.png", "a.tif", "a/b.png"))
    assert not asked


def test_a_folder_of_which_case_is_one_does_not_make_its_files_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_is_one_name", lambda folder, one, other: one.lower() == "sub")
    check_distinct(pairs("sub/x.png", "Sub/X.png"))


def test_the_same_name_twice_is_refused_whatever_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_is_one_name", lambda *_: False)
    with pytest.raises(RequestError, match=r"in0.png and in1.png would both be written to out.a.png. Run them separately"):
        check_distinct(pairs("a.png", "a.png"))


@pytest.mark.parametrize("folder", [".", "not/there/yet"])
@pytest.mark.parametrize(("one", "other"), [("a.png", "A.png"), (COMPOSED, TAKEN_APART), ("sub/a.png", "Sub/A.png")])
def test_the_file_system_itself_is_asked_and_nothing_stays(one: str, other: str, folder: str, tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    truth.mkdir()
    (truth / Path(one).name).touch()
    assert are_one(tmp_path / folder / one, tmp_path / folder / other) is (truth / Path(other).name).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["truth"]


def test_a_folder_that_takes_no_files_is_told_of_by_whoever_writes(tmp_path: Path) -> None:
    assert are_one(Path("/proc/a.png"), Path("/proc/A.png")) is False
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert are_one(tmp_path / "a.png", tmp_path / "A.png") is False
