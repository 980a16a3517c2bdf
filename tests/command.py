"""Run the commands `restore` and `medical` in this process, and see what it says and leaves."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from unittest.mock import patch

import numpy as np

from apps import commands

COMPACT = ("--model", "hat-compact")


@dataclass(frozen=True)
class Said:
    """Exit code and texts of one command."""

    code: int
    out: str
    err: str


def restore(*arguments: str | Path) -> Said:
    """Run `restore` with these arguments."""
    return _run("restore", commands.restore, arguments)


def medical(*arguments: str | Path) -> Said:
    """Run `medical` with these arguments."""
    return _run("medical", commands.medical, arguments)


def _run(name: str, entry_point: Callable[[], NoReturn], arguments: Sequence[str | Path]) -> Said:
    out, err = io.StringIO(), io.StringIO()
    code: int | str | None = None
    with patch.object(sys, "argv", [name, *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            entry_point()
        except SystemExit as stop:
            code = stop.code
    assert isinstance(code, int)
    return Said(code, out.getvalue(), err.getvalue())


def files(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder, hidden too, with the bytes of files and None for folders."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def smooth(height: int = 24, width: int = 20, channels: int = 3) -> np.ndarray:
    """(H, W, C) floats in [0, 1]: a slope in another direction per channel, so that turns and swaps show."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    return np.stack([0.1 + 0.8 * slope for slope in (x, y, (x + y) / 2, 1 - x)[:channels]], axis=-1)
