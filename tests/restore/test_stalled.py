"""A file system that does not answer, made up: what Ctrl-C leaves of a batch then, what comes of the others, how it goes on."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from hybrid.batch.journal import JOURNAL
from tests.command import Said, files, restore

fsspec = pytest.importorskip("fsspec", reason="needs fsspec")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402

pytestmark = pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="this system cannot interrupt a thread")
NAMES = ("a.png", "b.png", "sub/c.png")


class Stalling(MemoryFileSystem):
    """Files in memory. What is done with one of `asleep` does not end before `awake`, or ends in `fault`.

    Attributes:
        asleep: The call and the end of the name, such as ``("get", "b.png")``.
        reached: Set once somebody waits.
    """

    protocol = "stalling"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    asleep: ClassVar[tuple[str, str] | None] = None
    fault: ClassVar[Exception | None] = None
    reached = threading.Event()
    awake = threading.Event()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.replace("stalling://", "memory://"))

    def _wait(self, call: str, name: str) -> None:
        if self.asleep is None or call != self.asleep[0] or not name.endswith(self.asleep[1]):
            return
        if self.fault is not None:
            raise self.fault
        self.reached.set()
        while not self.awake.wait(0.05):  # in steps, as fsspec's own waiting: between them Python looks for signals
            pass

    def get_file(self, rpath: str, lpath: str, **more: Any) -> None:
        self._wait("get", rpath)
        super().get_file(rpath, lpath, **more)

    def put_file(self, lpath: str, rpath: str, **more: Any) -> None:
        self._wait("put", rpath)
        super().put_file(lpath, rpath, **more)

    def mv(self, path1: str, path2: str, **more: Any) -> None:
        self._wait("mv", path2)
        super().mv(path1, path2, **more)


@pytest.fixture
def far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Stalling]]:
    """The file system, with three pictures in ``photos``."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    fsspec.register_implementation("stalling", Stalling, clobber=True)
    (tmp_path / "album" / "sub").mkdir(parents=True)
    for seed, name in enumerate(NAMES):
        values = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(values).save(tmp_path / "album" / name)
    fsspec.filesystem("stalling").put(str(tmp_path / "album"), "/photos", recursive=True)
    yield Stalling
    Stalling.asleep = Stalling.fault = None
    Stalling.store.clear()
    Stalling.pseudo_dirs[:] = [""]


def enlarge(source: str | Path, out: str | Path, *more: str) -> Said:
    quick = ("--model", "espcn-compact", "--device", "cpu", "--precision", "float32", "--threads", "1")
    return restore("sr", source, "-o", out, *quick, *more)


def interrupted(far: type[Stalling], call: str, name: str, out: str | Path) -> Said:
    """Run until something stalls, and press Ctrl-C then; nothing answers until all is over."""
    far.asleep = (call, name)
    far.reached.clear()
    far.awake.clear()
    main = threading.main_thread().ident
    assert main is not None

    def press() -> None:
        if far.reached.wait(120):
            signal.pthread_kill(main, signal.SIGINT)

    finger = threading.Thread(target=press, daemon=True)
    finger.start()
    said = enlarge("stalling://photos", out)
    finger.join()
    assert far.reached.is_set()
    far.asleep = None
    return said


def statuses(journal: Path) -> dict[str, str]:
    return {line["input"]: line["status"] for line in map(json.loads, journal.read_text().splitlines())}


def pixels(store: Any, name: str) -> bytes:
    with store.open(name) as file, Image.open(file) as picture:
        return picture.tobytes()


def test_ctrl_c_ends_a_wait_for_an_input_and_the_run_goes_on_later(far: type[Stalling], tmp_path: Path) -> None:
    out = tmp_path / "out"
    said = interrupted(far, "get", "b.png", out)
    assert said.code == 130 and "interrupted; nothing half-written is left" in said.err
    assert set(files(out)) == {"a.png", "a.png.json", JOURNAL} and not os.listdir(tmp_path / "tmp")
    assert statuses(out / JOURNAL) == {"a.png": "done", "b.png": "started"}
    again = enlarge("stalling://photos", out)
    assert again.code == 0 and again.err.count("skipped") == 1 and statuses(out / JOURNAL) == dict.fromkeys(NAMES, "done")
    assert enlarge(tmp_path / "album", tmp_path / "undisturbed").code == 0
    for name in NAMES:
        with Image.open(out / name) as one, Image.open(tmp_path / "undisturbed" / name) as other:
            assert one.tobytes() == other.tobytes()
    assert set(files(out)) == set(files(tmp_path / "undisturbed"))


@pytest.mark.parametrize(("call", "name"), [("put", "b.png"), ("mv", "b.png"), ("mv", "b.png.json")])
def test_ctrl_c_ends_a_wait_for_an_output_and_no_name_is_there_too_early(
    call: str, name: str, far: type[Stalling], tmp_path: Path
) -> None:
    """The record is sent before its picture: where the picture is, all is."""
    store = fsspec.filesystem("stalling")
    said = interrupted(far, call, name, "stalling://results")
    assert said.code == 130 and not os.listdir(tmp_path / "tmp")
    there = {path.removeprefix("/results/") for path in store.find("/results")}
    whole, hidden = {path for path in there if not path.startswith(".")}, {path for path in there if path.startswith(".")}
    assert whole == {"a.png", "a.png.json"} | (set() if name.endswith("json") else {"b.png.json"})
    assert len(hidden) == (call == "mv")  # sent, and never moved to its name
    again = enlarge("stalling://photos", "stalling://results")
    assert again.code == 0 and again.err.count("skipped") == 1, again.err
    assert {path for path in store.find("/results") if "/." not in path} >= {f"/results/{name}" for name in NAMES}
    assert enlarge(tmp_path / "album", tmp_path / "undisturbed").code == 0
    for each in NAMES:
        with Image.open(tmp_path / "undisturbed" / each) as other:
            assert pixels(store, f"/results/{each}") == other.tobytes()


def test_an_input_whose_time_is_up_fails_alone_and_can_be_tried_again(far: type[Stalling], tmp_path: Path) -> None:
    """As protocols do that have a bound of their own."""
    far.asleep, far.fault = ("get", "b.png"), TimeoutError("no answer for 60 s")
    said = enlarge("stalling://photos", tmp_path / "out")
    assert said.code == 1 and "stalling://photos/b.png cannot be fetched: no answer for 60 s. Check the address" in said.err
    assert statuses(tmp_path / "out" / JOURNAL) == {"a.png": "done", "b.png": "failed", "sub/c.png": "done"}
    far.asleep = None
    again = enlarge("stalling://photos", tmp_path / "out", "--retry-failed")
    assert again.code == 0 and statuses(tmp_path / "out" / JOURNAL) == dict.fromkeys(NAMES, "done")


def test_an_output_that_cannot_be_moved_leaves_nothing_there(far: type[Stalling], tmp_path: Path) -> None:
    far.asleep, far.fault = ("mv", "b.png"), TimeoutError("no answer for 60 s")
    said = enlarge("stalling://photos", "stalling://results")
    assert said.code == 1 and "stalling://results/b.png cannot be written: no answer for 60 s" in said.err
    assert not [path for path in fsspec.filesystem("stalling").find("/results") if "/." in path or path.endswith("/b.png")]
