"""The batch engine and its journal, with a worker whose right answer is plain: texts in capitals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.batch.journal import JOURNAL, Entry, Journal, Mark, open_journal
from hybrid.errors import OutputError, RequestError
from hybrid.leftovers import remove_leftovers
from hybrid.records import sha256_file
from tests.hybrid.batch_stubs import COUNTED, Capitals, run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name, text in (("a.txt", "one"), ("b.txt", "two"), ("sub/c.txt", "three")):
        (tmp_path / "in" / name).write_text(text)
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden too."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / JOURNAL).read_text().splitlines()]


def of(out: Path, name: str) -> dict:
    (found,) = [line for line in lines(out) if line["input"] == name]
    return found


# What is done, and what is not done again ---------------------------------------------------------------------------------


def test_every_input_gives_its_outputs_and_one_line(folder: Path, out: Path) -> None:
    assert run(folder, out, note=1).made == {"a.txt": 3, "b.txt": 3, "sub/c.txt": 5}
    assert (out / "sub" / "c.txt").read_text() == "THREE" and (out / f"a.txt{COUNTED}").read_text() == "3"
    assert [line["input"] for line in lines(out)] == ["a.txt", "b.txt", "sub/c.txt"]
    line = of(out, "sub/c.txt")
    assert (line["status"], line["attempt"], line["weights"]) == ("done", 1, "w")
    assert line["sha256"] == sha256_file(folder / "sub" / "c.txt") and len(line["options"]) == 64
    assert {name: mark["sha256"] for name, mark in line["outputs"].items()} == {
        name: sha256_file(out / name) for name in ("sub/c.txt", f"sub/c.txt{COUNTED}")
    }


def test_nothing_is_done_twice(folder: Path, out: Path) -> None:
    run(folder, out)
    before, worker = files(out), Capitals()
    again = run(folder, out, worker)
    assert again.passed == ["a.txt", "b.txt", "sub/c.txt"] and not again.errors
    assert worker.seen == [] and files(out) == before


@pytest.mark.parametrize("change", ["input", "missing", "side", "new"])
def test_what_has_changed_is_done_again_and_nothing_else(change: str, folder: Path, out: Path) -> None:
    run(folder, out)
    changed = {
        "input": lambda: (folder / "b.txt").write_text("other"),
        "missing": lambda: (out / "b.txt").unlink(),
        "side": lambda: (out / f"b.txt{COUNTED}").unlink(),
        "new": lambda: (folder / "b.txt").rename(folder / "b2.txt"),
    }
    changed[change]()
    worker = Capitals()
    again = run(folder, out, worker)
    assert len(worker.seen) == 1 and len(again.passed) == 2 and not again.errors
    for path in folder.rglob("*.txt"):
        assert (out / path.relative_to(folder)).read_text() == path.read_text().upper()
        assert (out / f"{path.relative_to(folder)}{COUNTED}").read_text() == str(len(path.read_text()))


@pytest.mark.parametrize("changes", [{"weights": "other"}, {"option": 1}])
def test_other_weights_or_options_do_all_again(changes: dict, folder: Path, out: Path) -> None:
    run(folder, out)
    again = run(folder, out, Capitals(suffix="!"), **changes)
    assert len(again.made) == 3 and (out / "a.txt").read_text() == "ONE!"
    back = run(folder, out)
    assert len(back.made) == 3 and (out / "a.txt").read_text() == "ONE"


def test_an_output_of_somebody_else_is_not_replaced(folder: Path, out: Path) -> None:
    out.mkdir()
    (out / "a.txt").write_text("precious")
    first = run(folder, out)
    assert "is there already" in str(first.errors["a.txt"]) and len(first.made) == 2
    assert of(out, "a.txt")["status"] == "failed" and "outputs" not in of(out, "a.txt")
    assert run(folder, out).errors.keys() == {"a.txt"} and (out / "a.txt").read_text() == "precious"
    assert len(run(folder, out, overwrite=True).made) == 3 and (out / "a.txt").read_text() == "ONE"


@pytest.mark.parametrize("changes", [{}, {"weights": "other"}])
def test_an_output_that_somebody_has_corrected_is_not_replaced(changes: dict, folder: Path, out: Path) -> None:
    run(folder, out)
    (out / "a.txt").write_text("corrected by hand")
    again = run(folder, out, **changes)
    assert "not as this batch wrote it" in str(again.errors["a.txt"]) and "--overwrite" in str(again.errors["a.txt"])
    assert (out / "a.txt").read_text() == "corrected by hand"
    assert of(out, "a.txt")["outputs"]["a.txt"]["bytes"] == 3  # still known as what was written


def test_what_options_no_longer_give_does_not_stay_beside_the_new_result(folder: Path, out: Path) -> None:
    class Bare(Capitals):
        def run(self, work, *, replace, tell):  # type: ignore[no-untyped-def]
            made = super().run(work, replace=replace, tell=tell)
            made.outputs[1].unlink()
            return type(made)(made.outputs[:1], made.report)

    run(folder, out)
    (out / f"b.txt{COUNTED}").write_text("mine")
    again = run(folder, out, Bare(), option=1)
    assert len(again.made) == 2 and again.errors.keys() == {"b.txt"}
    assert not (out / f"a.txt{COUNTED}").exists() and (out / f"b.txt{COUNTED}").read_text() == "mine"


# Failures -----------------------------------------------------------------------------------------------------------------


def test_failures_stop_nobody_and_can_be_tried_alone(folder: Path, out: Path) -> None:
    (folder / "b.txt").write_text("why?")
    first = run(folder, out)
    assert list(first.made) == ["a.txt", "sub/c.txt"]
    line = of(out, "b.txt")
    assert (line["status"], line["error"], line["hint"]) == ("failed", "b.txt asks a question.", "Answer it.")
    (folder / "b.txt").write_text("because")
    (folder / "new.txt").write_text("new")
    worker = Capitals()
    again = run(folder, out, worker, retry_failed=True)
    assert worker.seen == ["b.txt"] and again.passed == [] and (out / "b.txt").read_text() == "BECAUSE"
    assert of(out, "b.txt")["attempt"] == 2 and not (out / "new.txt").exists()
    assert run(folder, out, retry_failed=True).made == {}


def test_a_failed_second_run_leaves_the_first_one_s_outputs_and_knows_them(folder: Path, out: Path) -> None:
    run(folder, out)
    (folder / "b.txt").write_text("why?")
    assert run(folder, out).errors.keys() == {"b.txt"} and (out / "b.txt").read_text() == "TWO"
    (folder / "b.txt").write_text("because")
    assert run(folder, out).made == {"b.txt": 7}


def test_retrying_needs_a_journal(folder: Path, out: Path) -> None:
    with pytest.raises(RequestError, match=r"no run\.jsonl in"):
        run(folder, out, retry_failed=True)
    assert not out.exists()


def test_a_fault_of_the_program_is_told_by_its_place_and_not_by_what_the_file_says(folder: Path, out: Path) -> None:
    (folder / "a.txt").write_text("bug of Jane Doe")
    said = run(folder, out)
    assert len(said.made) == 2 and "IndexError in batch_stubs.py, line" in str(said.errors["a.txt"])
    assert "Jane" not in (out / JOURNAL).read_text() + str(said.errors["a.txt"])


def test_an_input_that_vanishes_fails_alone(folder: Path, out: Path) -> None:
    def vanish(source: Path) -> None:
        (folder / "b.txt").unlink(missing_ok=True)

    said = run(folder, out, Capitals(before=vanish))
    assert list(said.made) == ["a.txt", "sub/c.txt"] and "b.txt is not there any more" in str(said.errors["b.txt"])


def test_lines_hold_no_folders(folder: Path, out: Path) -> None:
    (folder / "sub" / "c.txt").write_text("why?")
    run(folder, out)
    (out / "b.txt").write_text("changed")
    run(folder, out)
    text = (out / JOURNAL).read_text()
    assert str(folder.parent) not in text and folder.parent.name not in text
    assert of(out, "b.txt")["error"].startswith("b.txt is not as this batch wrote it")


def test_empty_folders_of_failed_outputs_go(folder: Path, out: Path) -> None:
    (folder / "sub" / "c.txt").write_text("why?")
    run(folder, out)
    assert not (out / "sub").exists()


# The journal ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ['{"output":"b.txt","input"', '{"output":"b.txt","input":"b.txt","status":"st', "\x00\xff\n"])
def test_a_torn_last_line_is_passed_over(tail: str, folder: Path, out: Path) -> None:
    run(folder, out)
    whole = (out / JOURNAL).read_bytes()
    (out / JOURNAL).write_bytes(whole + tail.encode("latin-1"))
    (folder / "d.txt").write_text("four")
    again = run(folder, out)
    assert len(again.passed) == 3 and again.made == {"d.txt": 4}
    assert len(lines(out)) == 4


def test_a_journal_cut_anywhere_can_be_read(folder: Path, out: Path, tmp_path: Path) -> None:
    run(folder, out)
    data = (out / JOURNAL).read_bytes()
    copy = tmp_path / "cut" / JOURNAL
    copy.parent.mkdir()
    for end in range(0, len(data), 29):
        copy.write_bytes(data[:end])
        whole = {json.loads(line)["output"] for line in data[:end].splitlines(True) if line.endswith(b"\n")}
        with open_journal(copy) as journal:
            assert whole <= journal.entries.keys() <= whole | {"a.txt", "b.txt", "sub/c.txt"}
            found = journal.entries.keys() | {"x"}
            journal.add(Entry("x", "x", "done"))
        with open_journal(copy) as journal:
            assert journal.entries.keys() == found


def test_what_was_begun_and_has_not_ended_is_done_again_and_its_scraps_go(folder: Path, out: Path) -> None:
    class Killed(BaseException):
        pass

    def kill(source: Path) -> None:
        if source.name == "b.txt":
            (out / "b.txt").write_text("whole, but its side file is missing")
            (out / ".0123456789ab.txt").write_text("half")
            (out / ".part-abcdefgh").mkdir()
            (out / ".part-abcdefgh" / "b.txt").touch()
            (out / ".mine").touch()
            for path in out.glob(".*"):
                os.utime(path, (1, 1))
            raise Killed

    with pytest.raises(Killed):
        run(folder, out, Capitals(before=kill))
    assert of(out, "b.txt")["status"] == "started"
    again = run(folder, out)
    assert again.passed == ["a.txt"] and again.made == {"b.txt": 3, "sub/c.txt": 5} and of(out, "b.txt")["attempt"] == 2
    assert (out / "b.txt").read_text() == "TWO" and (out / f"b.txt{COUNTED}").read_text() == "3"
    assert sorted(path.name for path in out.glob(".*")) == [".mine"]


def test_one_run_at_a_time(folder: Path, out: Path) -> None:
    run(folder, out)
    with open_journal(out / JOURNAL), pytest.raises(RequestError, match="Another run is at work"):
        run(folder, out)
    assert len(run(folder, out).passed) == 3


def test_a_journal_that_cannot_grow_ends_the_run(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(journal: Journal, entry: Entry) -> None:
        if entry.output == "b.txt":
            raise OutputError("The journal run.jsonl cannot be written: No space left on device.", hint="Make room.")
        whole(journal, entry)

    whole = Journal.add
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", full)
        with pytest.raises(OutputError, match="No space left"):
            run(folder, out)
    assert run(folder, out).passed == ["a.txt"]


def test_lines_of_later_versions_are_read() -> None:
    entry = Entry("a", "a", "done", "1", "2", "3", {"a": Mark("4", 5)})
    line = json.loads(entry.to_line()) | {"later": 1}
    assert Entry.from_line(json.dumps(line)) == entry
    assert [Entry.from_line(text) for text in ("", "3", "{}", "[" * 100_000, '{"outputs": 3}')] == [None] * 5


def test_only_scraps_of_ours_are_removed(tmp_path: Path) -> None:
    names = (".0123456789ab.png", ".writing-0123456789ab", ".0123456789ab", ".0123456789xy.png", "0123456789ab.png", ".git")
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers([tmp_path, tmp_path / "nowhere"], before=1)
    assert len(files(tmp_path)) == 6
    remove_leftovers([tmp_path], before=(tmp_path / ".git").stat().st_mtime + 1)
    assert sorted(files(tmp_path)) == [".0123456789xy.png", ".git", "0123456789ab.png"]


# Kill -9 ----------------------------------------------------------------------------------------------------------------------

PROGRAM = """
import os, signal, sys
from pathlib import Path
from tests.hybrid.batch_stubs import Capitals, run

def kill(source):
    if source.name == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGKILL)

run(Path(sys.argv[1]), Path(sys.argv[2]), Capitals(before=kill))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
def test_a_killed_run_goes_on(folder: Path, out: Path) -> None:
    for name, done in (("b.txt", 1), ("c.txt", 1)):
        root = Path(__file__).resolve().parents[2]
        environment = os.environ | {"PYTHONPATH": str(root)}
        killed = subprocess.run([sys.executable, "-c", PROGRAM, folder, out, name], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL and len(lines(out)) >= done
    again = run(folder, out)
    assert again.passed == ["a.txt", "b.txt"] and again.made == {"sub/c.txt": 5}
    assert [line["status"] for line in lines(out)] == ["done"] * 3
