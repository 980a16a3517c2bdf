"""Items that are read and written beside the computing of others: the same results, and really at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from hybrid.batch.engine import Batch, Item, Local, Made, Tell, run_batch
from hybrid.batch.place import open_place
from hybrid.batch.work import Stages, Stopwatch, finish
from hybrid.console import folder_of
from hybrid.errors import HybridError, InputError
from hybrid.records import replacing
from tests.hybrid.batch_stubs import Watching

MINUTE = 60.0


@dataclass
class Staged:
    """Capitals, in stages. A text names the stage that it fails in; `at` hears of each stage of each item as it begins."""

    at: Callable[[str, str], None] = lambda stage, name: None
    log: list[tuple[str, str, str]] = field(default_factory=list)

    def run(self, work: tuple[Path, Path], *, replace: bool, tell: Tell) -> Made:
        return finish(self.stages(work, replace=replace), tell)

    def stages(self, work: tuple[Path, Path], *, replace: bool) -> Stages[Made]:
        source, target = work
        try:
            self._begin("read", source)
            text = source.read_text()
            self._fail("read", text)
            tell = yield
            self._begin("compute", source)
            self._fail("compute", text)
            tell.progress(1, 1)
            if text == "ends early":
                return Made((), "early")
            yield
            self._begin("write", source)
            self._fail("write", text)
            with replacing(target) as part:
                part.write_text(text.upper())
            return Made((target,), len(text))
        finally:
            self.log.append(("end", source.stem, threading.current_thread().name))

    def _begin(self, stage: str, source: Path) -> None:
        self.log.append((stage, source.stem, threading.current_thread().name))
        self.at(stage, source.stem)

    @staticmethod
    def _fail(stage: str, text: str) -> None:
        if text == f"fails to {stage}":
            raise InputError(f"It {text}.", hint="Nothing helps.")
        if text == f"bug: {stage}":
            raise IndexError(stage)


TEXTS = ("one", "fails to read", "two", "fails to compute", "three", "fails to write", "bug: read", "bug: compute", "bug: write",
         "ends early", "four")  # fmt: skip


def write(folder: Path, texts: tuple[str, ...]) -> Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:02}.txt").write_text(text)
    return folder


def go(source: Path, out: Path, worker: Staged, *, overlap: bool = True) -> Watching:
    """A batch of all texts, each into a folder of its own."""
    watching = Watching()
    items = [
        Item(path.name, (path,), (target,), (path, target))
        for path in sorted(source.iterdir())
        for target in [out / path.stem / path.name]
    ]
    with open_place(out, None, retry_failed=False) as place:
        run_batch(items, Local(worker, overlap), Batch(out, place.journal, "w", "o"), watching)
    return watching


def tree(out: Path) -> dict[str, str]:
    return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.txt")}


def test_the_same_comes_of_it_with_failures_in_every_stage(tmp_path: Path) -> None:
    source = write(tmp_path / "in", TEXTS)
    worker = Staged()
    one, three = go(source, tmp_path / "one", Staged(), overlap=False), go(source, tmp_path / "three", worker)
    assert one.made == three.made == {"00.txt": 3, "02.txt": 3, "04.txt": 5, "09.txt": "early", "10.txt": 4}
    assert {name: error.message for name, error in one.errors.items()} == {
        name: error.message for name, error in three.errors.items()
    }
    assert len(three.errors) == 6
    assert tree(tmp_path / "one") == tree(tmp_path / "three") and len(tree(tmp_path / "three")) == 4
    assert {path.name for path in (tmp_path / "three").iterdir() if path.is_dir()} == {"00", "02", "04", "09", "10"}
    main = threading.current_thread().name
    assert {thread for stage, _, thread in worker.log if stage == "compute"} == {main}
    files = {thread for stage, _, thread in worker.log if stage in ("read", "write")}
    assert len(files) == 1 and main not in files
    assert sorted(name for stage, name, _ in worker.log if stage == "end") == [f"{n:02}" for n in range(len(TEXTS))]


def test_one_is_read_and_one_is_written_while_another_computes(tmp_path: Path) -> None:
    """Computing waits for what can happen only beside it."""
    seen: dict[tuple[str, str], threading.Event] = {}
    lock = threading.Lock()

    def event(stage: str, name: str) -> threading.Event:
        with lock:
            return seen.setdefault((stage, name), threading.Event())

    def at(stage: str, name: str) -> None:
        event(stage, name).set()
        if (stage, name) == ("compute", "01"):
            assert event("write", "00").wait(MINUTE) and event("read", "02").wait(MINUTE)

    watching = go(write(tmp_path / "in", ("one", "two", "three")), tmp_path / "out", Staged(at))
    assert len(watching.made) == 3


def test_no_more_than_one_is_read_ahead(tmp_path: Path) -> None:
    worker = Staged()
    go(write(tmp_path / "in", tuple("abcdefgh")), tmp_path / "out", worker)
    order = [(stage, int(name)) for stage, name, _ in worker.log if stage != "end"]
    for number in range(2, 8):
        assert order.index(("read", number)) > order.index(("compute", number - 2))
        assert order.index(("compute", number)) > order.index(("write", number - 2))


@pytest.mark.parametrize("stage", ["compute", "write"])
def test_after_an_interruption_nothing_is_torn_and_it_goes_on(stage: str, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(now: str, name: str) -> None:
        if (now, name) == (stage, "02"):
            raise Stop

    source, out, worker = write(tmp_path / "in", tuple("abcde")), tmp_path / "out", Staged(stop)
    with pytest.raises(Stop):
        go(source, out, worker)
    begun = [name for what, name, _ in worker.log if what == "read"]
    assert sorted(begun) == sorted(name for what, name, _ in worker.log if what == "end")  # those that were left are closed
    assert set(tree(out).values()) <= {"A", "B", "D"}
    again = go(source, out, Staged())
    assert not again.errors and sorted(tree(out).values()) == list("ABCDE")
    assert "00.txt" in again.passed


def test_a_file_system_that_falls_silent_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption waits for a file for a while, and no longer."""
    monkeypatch.setattr("hybrid.batch.overlap.PATIENCE", 0.01)
    silent, awake = threading.Event(), threading.Event()

    def at(stage: str, name: str) -> None:
        if (stage, name) == ("read", "01"):
            silent.set()
            assert awake.wait(MINUTE)
        if (stage, name) == ("compute", "00"):
            assert silent.wait(MINUTE)
            raise KeyboardInterrupt

    source, out, worker = write(tmp_path / "in", ("a", "b")), tmp_path / "out", Staged(at)
    with pytest.raises(KeyboardInterrupt):
        go(source, out, worker)
    [thread] = [each for each in threading.enumerate() if each.name == "files"]
    assert thread.daemon
    awake.set()
    thread.join(MINUTE)
    assert not thread.is_alive() and not tree(out)
    assert len(go(source, out, Staged()).made) == 2


def test_a_folder_that_another_waits_for_stays(tmp_path: Path) -> None:
    target = tmp_path / "new" / "deep" / "file"
    with folder_of(target):
        with pytest.raises(InputError), folder_of(target.with_name("other")):
            raise InputError("No.", hint="Never.")
        assert target.parent.is_dir()
    first, second = folder_of(tmp_path / "x" / "a"), folder_of(tmp_path / "x" / "b")
    first.__enter__()
    second.__enter__()
    error = InputError("No.", hint="Never.")
    assert not first.__exit__(InputError, error, None)
    (tmp_path / "x" / "b").touch()
    second.__exit__(None, None, None)
    assert (tmp_path / "x" / "b").exists()
    with pytest.raises(InputError), folder_of(tmp_path / "y" / "z" / "a"):
        raise error
    assert not (tmp_path / "y").exists()


def test_pauses_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    times: Iterator[float] = iter([0.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr("hybrid.batch.work.time.perf_counter", lambda: next(times))
    clock = Stopwatch()
    with clock.stopped():
        pass
    assert clock.seconds == 14 - 7


def test_a_single_item_tells_of_its_own_fault() -> None:
    def stages() -> Stages[int]:
        yield
        yield
        raise HybridError("No.", hint="Never.")

    with pytest.raises(HybridError):
        finish(stages(), Tell())
