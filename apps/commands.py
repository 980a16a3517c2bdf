"""The console scripts: one place that turns errors into text and exit codes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

from hybrid.errors import HybridError

INTERRUPTED = 130
"""Exit code of a run that was stopped by Ctrl-C, as shells use it (128 + SIGINT)."""


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
        app(standalone_mode=True)
    except HybridError as error:
        _complain(f"error: {error}", error.exit_code)
    except KeyboardInterrupt:
        _complain("interrupted; nothing half-written is left", INTERRUPTED)
    sys.exit(0)


def _complain(text: str, code: int) -> NoReturn:
    sys.stderr.write(text + "\n")
    sys.exit(code)
