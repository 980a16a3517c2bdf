"""Long work beside the server: in a thread, with progress and an end on request, one heavy run at a time.

    async for step in watch_job(lambda report: restore_file(..., on_progress=report), cancel):
        ...

Runs stand in line for the device, first come, first served, and know how many are before them. A run that was cancelled, and
is still at its last tile, holds the device until it lets go.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from apps.serving.workspace import Workspace

T = TypeVar("T")
Report = Callable[[int, int], None]

BEAT = 0.2
"""Seconds between two looks at a running job."""
_threads = ThreadPoolExecutor(64, thread_name_prefix="job")  # all but one of them wait for the device


class Cancelled(Exception):  # noqa: N818 - it is no error
    """The work was cancelled: raised inside it by its progress callback, and then to whoever waits for it."""

    def __init__(self) -> None:
        super().__init__("Cancelled.")


@dataclass(frozen=True)
class Progress:
    """How far a job is.

    Attributes:
        done, total: Steps; both 0 as long as the work has not reported, or waits for the device.
        seconds_left: At the speed so far; None before the first step.
        before: How many runs are before it in the line for the device.
    """

    done: int
    total: int
    seconds_left: float | None
    before: int = 0

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.done / self.total if self.total else 0.0


@dataclass(frozen=True)
class Done(Generic[T]):
    """The end of a job.

    Attributes:
        result: What the work returned.
        seconds: Time that it took, without waiting for the device.
    """

    result: T
    seconds: float


class Line:
    """Who waits for the device, and who has it: the first."""

    def __init__(self) -> None:
        self._line: list[object] = []
        self._changed = threading.Condition()

    @contextmanager
    def turn(self, who: object, check: Callable[[], None]) -> Iterator[None]:
        """Wait in line, then hold the device as long as the block lasts; `check` may raise meanwhile."""
        with self._changed:
            self._line.append(who)
        try:
            with self._changed:
                while self._line[0] is not who:
                    check()
                    self._changed.wait(BEAT)
            check()
            yield
        finally:
            with self._changed:
                self._line.remove(who)
                self._changed.notify_all()

    def before(self, who: object) -> int:
        """How many are before it."""
        with self._changed:
            return self._line.index(who) if who in self._line else 0


_device = Line()


class _Run(Generic[T]):
    """Work that tells how far it is, and looks whether it is to end."""

    def __init__(self, work: Callable[[Report], T], cancel: threading.Event) -> None:
        self.work, self.cancel = work, cancel
        self.reported = Progress(0, 0, None)
        self.started = 0.0

    def run(self) -> Done[T]:
        with _device.turn(self, self._check):
            self.started = time.monotonic()
            return Done(self.work(self.report), time.monotonic() - self.started)

    def report(self, done: int, total: int) -> None:
        self._check()
        taken = time.monotonic() - self.started
        self.reported = Progress(done, total, taken * (total - done) / done if done else None)

    def progress(self) -> Progress:
        return Progress(0, 0, None, before) if (before := _device.before(self)) else self.reported

    def _check(self) -> None:
        if self.cancel.is_set():
            raise Cancelled


async def watch_job(work: Callable[[Report], T], cancel: threading.Event) -> AsyncIterator[Progress | Done[T]]:
    """Run work in a thread and tell how far it is, where that changed, and then its result.

    Args:
        work: Takes a progress callback ``report(done, total)``, which it calls often: only there can it be cancelled.
        cancel: Set it and the callback raises `Cancelled` inside the work; this iterator ends at once, while the work winds
            up. Closing this iterator sets it too.

    Raises:
        Cancelled: It was.
        BaseException: Whatever the work raised.
    """
    job = _Run(work, cancel)
    future: Future[Done[T]] = _threads.submit(job.run)
    shown, pause = None, BEAT / 16
    try:
        while not future.done():
            await asyncio.sleep(pause)
            pause = min(2 * pause, BEAT)  # short work is not kept waiting
            if cancel.is_set():
                raise Cancelled
            if (progress := job.progress()) != shown:
                shown = progress
                yield progress
    finally:
        if not future.done():
            cancel.set()
    yield future.result()


class Jobs:
    """The runs of all users, so that a button, or the deletion of files, ends those of one."""

    def __init__(self) -> None:
        self._running: dict[str, list[threading.Event]] = {}
        self._lock = threading.Lock()

    def start(self, workspace: Workspace) -> threading.Event:
        """A new job's event to cancel it with."""
        cancel = threading.Event()
        with self._lock:
            self._running.setdefault(workspace.owner, []).append(cancel)
        return cancel

    def end(self, workspace: Workspace, cancel: threading.Event) -> None:
        """Forget a job that has ended."""
        with self._lock:
            running = self._running.get(workspace.owner, [])
            if cancel in running:
                running.remove(cancel)

    def cancel(self, workspace: Workspace) -> None:
        """Cancel all jobs of a user."""
        with self._lock:
            for cancel in self._running.pop(workspace.owner, []):
                cancel.set()

    def cancel_all(self) -> None:
        """Cancel every job, as when the server ends."""
        with self._lock:
            for running in self._running.values():
                for cancel in running:
                    cancel.set()
            self._running.clear()
