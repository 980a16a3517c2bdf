"""Signals and paths that may not be touched, at the edge of the commands."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import pyvips

from apps import commands
from tests.command import medical

HALF = """
import os, signal
try:
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000):
        pass  # where Python looks for signals
    whole = True
except BaseException:  # as torch does that of NumPy
    whole = False
"""


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_import_is_finished_before_a_signal_ends_the_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "half_made.py").write_text(HALF.format(name=name))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "half_made", raising=False)
    before = [signal.getsignal(number) for number in commands.SIGNALS]
    went_on = []

    def app(**_: Any) -> None:
        import half_made

        went_on.append(half_made.whole)
        threading.Event().wait(30)  # the signal breaks it off
        went_on.append(False)

    with pytest.raises(SystemExit) as stop:
        commands._run(app)
    assert went_on == [True] and stop.value.code == 128 + getattr(signal, name)
    assert capsys.readouterr().err == "interrupted; nothing half-written is left\n"
    assert [signal.getsignal(number) for number in commands.SIGNALS] == before


class _Pressed(logging.Handler):
    """Has Ctrl-C pressed while libvips tells something, once."""

    pressed = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith("VIPS:") and not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)


class _Ended:
    def __del__(self) -> None:
        signal.raise_signal(signal.SIGINT)


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="this system has no timers")
@pytest.mark.parametrize("where", ["what libvips tells", "the end of an object"])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_below_code_that_drops_exceptions_is_not_lost(where: str) -> None:
    told, went_on = _Pressed(), []
    vips = logging.getLogger("pyvips")

    def app(**_: Any) -> None:
        if where == "what libvips tells":
            pyvips.Image.black(64, 64).copy_memory()
            assert told.pressed
        else:
            _Ended()
        went_on.append(True)
        threading.Event().wait(30)  # the signal breaks it off
        went_on.append(False)

    level = vips.level
    vips.addHandler(told)
    vips.setLevel(logging.DEBUG)
    try:
        with pytest.raises(SystemExit) as stop:
            commands._run(app)
    finally:
        vips.removeHandler(told)
        vips.setLevel(level)
    assert stop.value.code == 130 and False not in went_on


def test_a_signal_of_the_last_moment_is_not_left_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "half_made.py").write_text(HALF.format(name="SIGINT"))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "half_made", raising=False)
    with pytest.raises(SystemExit) as stop:
        commands._run(lambda **_: __import__("half_made"))
    assert stop.value.code in (0, 130) and signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize("command", [("segment",), ("stats",)])
def test_names_that_no_disk_takes(command: tuple[str, ...], tmp_path: Path) -> None:
    scan, name = tmp_path / "scan.nii.gz", "x" * 300
    scan.write_bytes(b"")
    for arguments in ((scan, "-o", tmp_path / name / "y.nii.gz"), (tmp_path / f"{name}.nii.gz",)):
        said = medical(*command, *arguments)
        assert said.code != 0 and said.out == "" and "File name too long" in said.err, said
        assert said.err.startswith("error: ") and len(said.err.splitlines()) == 1
    assert os.listdir(tmp_path) == ["scan.nii.gz"]


def test_a_file_that_may_not_be_read_is_no_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"")

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    said = medical("stats", path)
    assert said.code == 3 and "could not be read: Permission denied" in said.err


def test_faults_of_the_program_are_shown_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def app(**_: Any) -> None:
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        commands._run(app)
