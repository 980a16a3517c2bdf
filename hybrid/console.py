"""What the commands share in talking to people: text and progress on standard error, results on standard output."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from hybrid.errors import OutputError
from hybrid.remote import described

LINES = 20
"""Most lines that say how far work has come, where nobody watches a bar; and one for the first of it."""


class _Console(Console):
    """Shows addresses in place of the stand-ins of remote files."""

    def print(self, *objects: Any, **style: Any) -> None:
        super().print(*(described(each) if isinstance(each, str) else each for each in objects), **style)

    def out(self, *objects: Any, **style: Any) -> None:
        super().out(*(described(each) if isinstance(each, str) else each for each in objects), **style)


def messages(*, quiet: bool) -> Console:
    """For people, on standard error. Without markup and emoji: file names may hold [brackets] and :colons:."""
    return _Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True, markup=False, emoji=False)


def results() -> Console:
    """For what was asked for, on standard output, one line each, whatever is quiet."""
    return _Console(highlight=False, soft_wrap=True, emoji=False)


def progress_on(console: Console) -> AbstractContextManager[Progress]:
    """Bars that go when the work is done; none where nobody watches."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=console.quiet or not console.is_terminal,
    )


_FOLDERS = threading.Lock()
_AWAITED: Counter[Path] = Counter()
"""How many outputs are on their way to each folder."""


@contextmanager
def counted(console: Console, what: str, total: int | None = None) -> Iterator[Callable[[int, int], None]]:
    """How far work has come: a bar, or where nobody watches one, a line now and then.

    Args:
        console: Where to tell; nothing if it is quiet.
        what: What is counted, such as ``cases``.
        total: How many there are, where that is known beforehand.

    Yields:
        What is called as (done, total) after each: it says a line after the first, and after every twentieth part.
    """
    started = time.perf_counter()
    with progress_on(console) as progress:
        bar = progress.add_task(what, total=total)

        def tell(done: int, of: int) -> None:
            progress.update(bar, completed=done, total=of)
            if console.is_terminal or (done > 1 and done * LINES // of == (done - 1) * LINES // of):
                return
            left = (time.perf_counter() - started) / done * (of - done)
            console.print(f"{what}: {done} of {of}" + (f", about {format_duration(left)} left" if left else ""), style="dim")

        yield tell


@contextmanager
def folder_of(target: Path) -> Iterator[None]:
    """Make the folders of an output, of a mirrored one in particular; after a failure those that are still empty go again.

    A folder that another output waits for, in another thread, stays.

    Raises:
        OutputError: They cannot be made.
    """
    with _FOLDERS:
        made = [folder for folder in target.parents if not folder.exists()]
        _AWAITED[target.parent] += 1
    try:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"The folder {target.parent} cannot be made: {error.strerror}.", hint="Choose another --output."
            ) from error
        yield
    except BaseException:
        with _FOLDERS:
            for folder in made:
                with suppress(OSError):
                    if _AWAITED[folder] <= (folder == target.parent):
                        folder.rmdir()
        raise
    finally:
        with _FOLDERS:
            _AWAITED[target.parent] -= 1


def printable(path: Path) -> str:
    """A path as text that can be printed: each byte that is no UTF-8 as a question mark."""
    return str(path).encode("utf-8", "replace").decode("utf-8")


def format_duration(seconds: float) -> str:
    """A duration for people.

    >>> format_duration(0.4), format_duration(75), format_duration(7300)
    ('0.4 s', '1 min 15 s', '2 h 01 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
