"""What the commands that work on many scans say of those that failed, and of time."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID

from hybrid.batch.engine import Item, Made, Tell
from hybrid.console import messages, results
from hybrid.errors import HybridError
from medical.volumes.inputs import Job

MANY_STEPS = 50
"""From so many steps on, such as passes of the network, the time that a scan will take is said."""
REMOTE_ENDINGS = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
"""Of scans that are taken from remote folders: those that are one file each and told by their names."""

Failure = tuple[Job, HybridError]


@dataclass
class ScanWatcher:
    """Tells what comes of scans, and what one is in for before it runs.

    Attributes:
        talk: Where to.
        json: Whether results are told as JSON.
        several: Whether there are several scans.
        bar, all: Where progress is shown, and the bar of all scans.
        report: Tells of a scan that was done.
        notices: Of the weights, which are told with the first scan and then gone.
    """

    talk: Console
    json: bool
    several: bool
    bar: Progress
    all: TaskID
    report: Callable[[Made], None]
    notices: list[str] = field(default_factory=list)

    @contextmanager
    def watching(self, item: Item) -> Iterator[Tell]:
        task = self.bar.add_task(item.inputs[0].name, total=None)
        try:
            yield _Told(item.inputs[0].name, self, task)
        finally:
            self.bar.remove_task(task)

    def done(self, item: Item, made: Made) -> None:
        self.give_notice()
        self.report(made)
        self.bar.advance(self.all)

    def skipped(self, item: Item) -> None:
        tell_skipped(item.inputs[0], item.outputs[0], self.talk, self.json)
        self.bar.advance(self.all)

    def failed(self, item: Item, error: HybridError) -> None:
        tell_failure((item.work, error), self.talk, self.several, self.json)
        self.bar.advance(self.all)

    def give_notice(self) -> None:
        """What users should be told of the weights, once."""
        while self.notices:
            self.talk.print(self.notices.pop(0), style="dim")


@dataclass
class _Told(Tell):
    """How one scan gets on: a bar, and where nobody watches one, how long a large scan takes once that can be known."""

    name: str
    watcher: ScanWatcher
    task: TaskID
    seen: float | None = None

    def say(self, text: str, style: str = "") -> None:
        self.watcher.give_notice()
        self.watcher.talk.print(text, style=style)

    def progress(self, done: int, total: int) -> None:
        """The time is known by the second step, since the first warms up."""
        self.watcher.bar.update(self.task, completed=done, total=total)
        talk = self.watcher.talk
        if total < MANY_STEPS or talk.is_terminal or done > 2:
            return
        if self.seen is not None:
            talk.print(f"{self.name}: about {format_duration((time.perf_counter() - self.seen) * total)}", style="dim")
        self.seen = time.perf_counter()


def tell_failure(failure: Failure, talk: Console, several: bool, as_json: bool) -> None:
    """Say at once why one of several scans failed, quiet or not; of a single one the command's own error tells."""
    job, error = failure
    if as_json:
        facts = {"input": str(job.source), "error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        results().out(json.dumps(facts, ensure_ascii=False))
    if several:
        (messages(quiet=False) if talk.quiet else talk).print(f"failed: {job.source}: {error}", style="red")


def raise_failures(failures: Sequence[Failure], count: int, journal: Path | None = None) -> None:
    """End a command of which scans failed.

    Args:
        failures: They.
        count: How many scans there were.
        journal: Where the reasons stand, if anywhere.

    Raises:
        HybridError: The scan's own error if there was one scan only, else a list of those that failed.
    """
    if failures and count == 1:
        raise failures[0][1]
    if failures:
        names = "; ".join(str(job.source) for job, _ in failures[:10]) + (" and more" if len(failures) > 10 else "")
        where = f" and in {journal}; add --retry-failed to try these again" if journal is not None else ""
        raise HybridError(f"{len(failures)} of {count} scans failed: {names}.", hint=f"The reasons stand above{where}.")


def tell_skipped(source: Path, target: Path, talk: Console, as_json: bool) -> None:
    """Tell of a result that was there."""
    if as_json:
        results().out(json.dumps({"input": str(source), "skipped": str(target)}, ensure_ascii=False))
    else:
        talk.print(f"{target}  is there already, of the same scan, network and settings: skipped")


def format_duration(seconds: float) -> str:
    """A time for people.

    >>> format_duration(93), format_duration(1200), format_duration(30000)
    ('93 s', '20 min', '8.3 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
