"""The console scripts: one place that turns errors and signals into text and exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from hybrid.errors import HybridError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what `kill` and batch systems send: both end a run tidily."""


class Stopped(BaseException):
    """A signal came. Not a KeyboardInterrupt, of which typer makes an exit of its own that differs between its versions."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number  # as shells count: 130 for Ctrl-C


def restore() -> NoReturn:
    """Entry point of the command `restore`."""
    from restore.cli import app

    _run(app)


def medical() -> NoReturn:
    """Entry point of the command `medical`."""
    from medical.cli import app

    _run(app)


def _run(app: Callable[..., object]) -> NoReturn:
    try:
        with _stoppable():
            app(standalone_mode=True)
    except HybridError as error:
        _complain(f"error: {error}", error.exit_code)
    except Stopped as stop:
        resumable = bool(getattr(stop, "__notes__", ()))  # the command has said how to go on
        _complain("interrupted" if resumable else "interrupted; nothing half-written is left", stop.exit_code)
    sys.exit(0)


@contextmanager
def _stoppable() -> Iterator[None]:
    """Within the block a signal raises `Stopped`, except one that the caller, such as nohup, has told to be ignored."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, _stop)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second one must not break off the tidying up
    raise Stopped(number)


def _complain(text: str, code: int) -> NoReturn:
    sys.stderr.write(text + "\n")
    sys.exit(code)
