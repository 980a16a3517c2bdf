"""Items of a batch that overlap: one is read and another written while a third is computed.

Computing stays in the thread of the caller, where the C library's allocator is tuned and PyTorch has its threads; a second
thread has the files. So the device waits for files only where these take longer than computing does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Protocol, TypeVar

from hybrid.batch.work import Finished, Item, StagedWorker, Stages, Task, Tell, stages_of

PATIENCE = 10.0
"""Seconds that an interrupted batch waits for the file under way. A file system that does not answer is left to itself then."""

T = TypeVar("T")


class _Watcher(Protocol):
    def watching(self, item: Item) -> AbstractContextManager[Tell]: ...


@dataclass
class _Lane:
    """A task on its way."""

    task: Task
    stages: Stages[Finished]
    step: Future[Finished | None]
    """What the thread of the files does for it: gives what came of the task, or None at a pause."""


def overlapped(worker: StagedWorker, tasks: Iterator[Task], watcher: _Watcher) -> Iterator[tuple[Task, Finished]]:
    """Do tasks in their order, at most three of them at a time, each in another stage."""
    lanes: list[_Lane] = []  # those under way
    files = _FilesThread()

    def read_next() -> _Lane | None:
        task = next(tasks, None)
        if task is None:
            return None
        stages = stages_of(worker, task)
        lanes.append(_Lane(task, stages, files.submit(partial(_advance, stages, None))))
        return lanes[-1]

    def ended(lane: _Lane) -> tuple[Task, Finished]:
        finished = lane.step.result()
        assert finished is not None, "a task has two pauses at most"
        lanes.remove(lane)
        return lane.task, finished

    try:
        behind, present = None, read_next()
        while present is not None:
            read, ahead = present.step.result(), read_next()
            if read is None:
                with watcher.watching(present.task.item) as tell:
                    computed = _advance(present.stages, tell)
                present.step = files.submit(partial(_written, present.stages, computed))
            if behind is not None:
                yield ended(behind)
            behind, present = present, ahead
        if behind is not None:
            yield ended(behind)
    finally:
        for lane in lanes:  # left by an interruption: what is being written is finished, the rest is tidied up
            lane.step.cancel()
            files.submit(lane.stages.close)
        files.end(PATIENCE)


class _FilesThread:
    """Does what it is given, one after the other. The program's end does not wait for it."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="files", daemon=True)
        self._thread.start()

    def submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()

        def do() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
                    future.set_exception(error)

        self._given.put(do)
        return future

    def end(self, patience: float) -> None:
        """Wait for all that was given, for so many seconds at most."""
        self._given.put(None)
        self._thread.join(patience)

    def _run(self) -> None:
        while (call := self._given.get()) is not None:
            call()


def _advance(stages: Stages[Finished], tell: Tell | None) -> Finished | None:
    """To the next pause, or to the end."""
    try:
        if tell is None:
            next(stages)
        else:
            stages.send(tell)
    except StopIteration as ended:
        finished: Finished = ended.value
        return finished
    return None


def _written(stages: Stages[Finished], computed: Finished | None) -> Finished | None:
    """What came of a task that is computed: it may have ended with that."""
    return computed if computed is not None else _advance(stages, Tell())
