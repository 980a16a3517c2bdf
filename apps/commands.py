"""The console scripts: one place that turns errors and signals into text and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from apps.crash import SHOW, without_words
from hybrid.errors import HybridError

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Ctrl-C, what `kill` and batch systems send, and a terminal that is closed: all end a run tidily."""
_IMPORT = "<frozen importlib._bootstrap>"
_SWALLOWING = {"_log_handler_callback", "__del__"}
"""Functions that C code calls and whose exceptions it drops: what libvips tells through pyvips, and the end of objects."""
_SOON = 0.05  # seconds


class Stopped(BaseException):
    """A signal came. Not a KeyboardInterrupt, of which typer makes an exit of its own that differs between its versions."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number  # as shells count: 130 for Ctrl-C


def restore() -> NoReturn:
    """Entry point of the command `restore`."""
    from apps.cli.app import mount
    from restore.cli.app import app

    _run(mount(app, "picture"))


def medical() -> NoReturn:
    """Entry point of the command `medical`."""
    from apps.cli.app import mount
    from medical.cli.app import app

    _run(mount(app, "scan"), private=True)


def _run(app: Callable[..., object], *, private: bool = False) -> NoReturn:
    try:
        with _stoppable():
            app(standalone_mode=True)
    except HybridError as error:
        _complain(f"error: {error}", error.exit_code)
    except OSError as error:
        if error.filename is None:  # of no file: a fault of this program
            raise
        hint = "Choose another path, or change its permissions."
        _complain(f"error: {error.filename}: {error.strerror}. {hint}", HybridError.exit_code)
    except Stopped as stop:
        resumable = bool(getattr(stop, "__notes__", ()))  # the command has said how to go on
        _complain("interrupted" if resumable else "interrupted; nothing half-written is left", stop.exit_code)
    except Exception as error:
        if not private or os.environ.get(SHOW):
            raise
        _complain(without_words(error), HybridError.exit_code)
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
        _cancel_timer()
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if hasattr(signal, "setitimer") and _untimely(frame):
        # A module that is broken off stays half made; and torch takes the exception for a lack of NumPy, and goes on. Raised
        # below C code that drops exceptions, it would be lost, and the run would go on.
        signal.signal(signal.SIGALRM, lambda _, later: _stop(number, later))
        signal.setitimer(signal.ITIMER_REAL, _SOON, _SOON)
        return
    _cancel_timer()
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # a second one must not break off the tidying up
    raise Stopped(number)


def _cancel_timer() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def _untimely(frame: FrameType | None) -> bool:
    """Whether an exception that is raised in that frame would not arrive, or would do harm on its way."""
    while frame is not None:
        if frame.f_code.co_filename == _IMPORT or frame.f_code.co_name in _SWALLOWING:
            return True
        frame = frame.f_back
    return False


def _complain(text: str, code: int) -> NoReturn:
    sys.stderr.write(text + "\n")
    sys.exit(code)
