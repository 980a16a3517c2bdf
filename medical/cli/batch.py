"""What the commands that work on many scans say of those that failed, and of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import Progress, TaskID

from hybrid.batch.engine import Item, Made, Tell
from hybrid.batch.telling import tell_failure, tell_skipped
from hybrid.console import format_duration
from hybrid.errors import HybridError

MANY_STEPS = 50
"""From so many steps on, such as passes of the network, the time that a scan will take is said."""
REMOTE_ENDINGS = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp")
"""Of scans that are taken from remote folders: those that are one file each and told by their names."""


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
        tell_skipped(item.inputs[0], item.outputs[0], "scan", self.talk, self.json)
        self.bar.advance(self.all)

    def failed(self, item: Item, error: HybridError) -> None:
        tell_failure((item.work, error), self.talk, several=self.several, as_json=self.json)
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
