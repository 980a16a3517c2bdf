"""One engine under every command that takes many inputs: resume by hash, failures that stop nobody else, a journal.

An item has its inputs, its outputs, and a description of the work that can be sent to another process. A worker has the
network and does one item after the other; a recipe makes it, once in each process. Which inputs are to be done the journal
(`hybrid.batch.journal`) and the hashes of the files say; an engine does them: here, in their order, or on Ray
(`hybrid.batch.cluster`).

    with open_journal(out / JOURNAL) as journal:
        failures = run_batch(items, Local(worker), Batch(folder=out, journal=journal, ...), watcher)
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from hybrid.batch.journal import Entry, Journal, Mark, Status
from hybrid.batch.overlap import overlapped
from hybrid.batch.work import Finished, Item, Made, StagedWorker, Task, Tell, Worker, digest, perform
from hybrid.errors import HybridError, OutputError
from hybrid.leftovers import remove_leftovers
from hybrid.records import sha256_file, without_folders
from hybrid.remote import Mirror

__all__ = ["Batch", "Engine", "Finished", "Item", "Local", "Made", "Task", "Tell", "Watcher", "Worker", "answers", "run_batch"]


class Watcher(Protocol):
    """Who is told what comes of a batch."""

    def watching(self, item: Item) -> AbstractContextManager[Tell]:
        """Called around an item that runs in this process."""

    def done(self, item: Item, made: Made) -> None:
        """It was done, or skipped by its worker."""

    def skipped(self, item: Item) -> None:
        """Its outputs are there already."""

    def failed(self, item: Item, error: HybridError) -> None:
        """It failed; the others go on."""


class Engine(Protocol):
    """Does tasks."""

    def run(self, tasks: Iterator[Task], watcher: Watcher) -> Iterator[tuple[Task, Finished]]:
        """Take tasks as workers come free, and give what came of them, in whatever order."""


@dataclass(frozen=True)
class Local:
    """All tasks in this process, in their order.

    Attributes:
        worker: Does them.
        overlap: Whether one is read and another written while a third is computed, where the worker gives its stages.
    """

    worker: Worker
    overlap: bool = False

    def run(self, tasks: Iterator[Task], watcher: Watcher) -> Iterator[tuple[Task, Finished]]:
        if self.overlap and isinstance(self.worker, StagedWorker):
            yield from overlapped(self.worker, tasks, watcher)
            return
        for task in tasks:
            with watcher.watching(task.item) as tell:
                finished = perform(self.worker, task, tell)
            yield task, finished


@dataclass(frozen=True)
class Batch:
    """What holds for all items.

    Attributes:
        folder: The output folder, which names in the journal are relative to; None where there is no single one.
        journal: None where nothing is kept: of a single input, or of outputs that have no folder in common.
        weights: SHA-256 of the weights.
        options: SHA-256 of the options that change results (`hybrid.batch.journal.options_digest`).
        overwrite: Do everything, and replace what is there.
        retry_failed: Do only what failed, or was broken off, the last time.
        alone: There is one input only.
        mirror: Of remote files.
        began: When, in seconds since the epoch.
    """

    folder: Path | None = None
    journal: Journal | None = None
    weights: str = ""
    options: str = ""
    overwrite: bool = False
    retry_failed: bool = False
    alone: bool = False
    mirror: Mirror | None = None
    began: float = field(default_factory=time.time)


def run_batch(items: Iterable[Item], engine: Engine, batch: Batch, watcher: Watcher) -> list[tuple[Item, HybridError]]:
    """Do what is left of the items, and return those that failed.

    Raises:
        HybridError: The batch cannot go on: the journal cannot be written, no worker can be made.
    """
    run = _Run(batch, watcher)
    for task, finished in engine.run(run.tasks(items), watcher):
        run.finish(task, finished)
    return run.failures


def answers(works: Sequence[Any], engine: Engine) -> Iterator[tuple[int, Any]]:
    """What a worker reports of each of several works that write nothing to be gone on with, as they are done.

    Args:
        works: What the worker is told of each; they can be pickled.
        engine: What does them.

    Yields:
        The place of a work, and the worker's report or the HybridError that it ended with. Other errors are raised here, and
        are such an error where they were raised by the worker of another process.
    """
    alone = isinstance(engine, Local)
    tasks = [Task(Item(str(place), (), (), work), replace=False, mark=False, alone=alone) for place, work in enumerate(works)]
    for task, finished in engine.run(iter(tasks), Nobody()):
        yield int(task.item.name), finished.made.report if finished.made is not None else finished.error


class Nobody:
    """A watcher that tells nothing."""

    def watching(self, item: Item) -> AbstractContextManager[Tell]:
        return nullcontext(Tell())

    def done(self, item: Item, made: Made) -> None:
        pass

    def skipped(self, item: Item) -> None:
        pass

    def failed(self, item: Item, error: HybridError) -> None:
        pass


class _Run:
    """A batch under way."""

    def __init__(self, batch: Batch, watcher: Watcher) -> None:
        self.batch, self.watcher = batch, watcher
        self.failures: list[tuple[Item, HybridError]] = []

    def tasks(self, items: Iterable[Item]) -> Iterator[Task]:
        """What is left to do, noted in the journal as it is taken."""
        for item in items:
            try:
                task = self._decide(item)
            except HybridError as error:
                self._fail(item, error, Finished(error=error), None)
                continue
            except OSError as error:
                repair = "Shorten its name." if error.errno == errno.ENAMETOOLONG else "Check its permissions."
                fault = OutputError(f"{error.filename} cannot be looked at: {error.strerror}.", hint=repair)
                self._fail(item, fault, Finished(error=fault), None)
                continue
            if task is None:
                continue
            if task.ours:
                self._note(item, "started", attempt=task.attempt)
            yield task

    def finish(self, task: Task, finished: Finished) -> None:
        """Note and tell what came of a task."""
        item, made = task.item, finished.made
        if made is None:
            assert finished.error is not None
            self._fail(item, finished.error, finished, task)
            return
        if self.batch.journal is not None:
            before = self._entry(item)
            marks = {self._name(path): mark for path, mark in zip(made.outputs, finished.marks, strict=True)}
            self._note(item, "skipped" if made.skipped else "done", finished, attempt=task.attempt, outputs=marks)
            if before is not None and task.replace:
                self._remove_stale(before, marks)
        if made.skipped:
            self.watcher.skipped(item)
        else:
            self.watcher.done(item, made)

    def _decide(self, item: Item) -> Task | None:
        """What is to be done; None for nothing.

        Raises:
            InputError: The input is gone.
            OutputError: An output is not as this batch wrote it.
        """
        batch, entry = self.batch, self._entry(item)
        task = Task(item, batch.overwrite, mark=batch.journal is not None, alone=batch.alone, mirror=batch.mirror)
        if entry is not None and not entry.complete:
            task = replace(task, attempt=entry.attempt + 1)
        elif batch.retry_failed:
            return None
        if batch.overwrite:
            return replace(task, ours=batch.journal is not None)
        if batch.journal is None:
            self._check_remote([path for path in item.outputs if self._exists(path)])
            return task
        if entry is not None and entry.status == "started":
            remove_leftovers({path.parent for path in item.outputs}, before=batch.began)
            return replace(task, replace=True, ours=True)
        marks = entry.outputs if entry is not None else {}
        there = [path for path in item.outputs if self._exists(path)]
        changed = [path for path in there if not self._is_as(path, marks.get(self._name(path)))]
        if entry is not None and not changed and self._is_done(entry, item, there):
            self.watcher.skipped(item)
            return None
        if (other := next((path for path in changed if self._name(path) in marks), None)) is not None:
            raise OutputError(
                f"{other} is not as this batch wrote it: it was changed since, or damaged.",
                hint="Move it away, or pass --overwrite to have it made anew.",
            )
        self._check_remote(changed)
        return replace(task, replace=bool(there) and not changed, ours=not changed)

    def _check_remote(self, there: Sequence[Path]) -> None:
        """Refuse outputs of somebody else where the worker, which refuses them else, does not see them."""
        mirror = self.batch.mirror
        if there and mirror is not None and mirror.address(there[0]) is not None:
            raise OutputError(f"{there[0].name} is there already.", hint="Pass --overwrite or choose another --output.")

    def _is_done(self, entry: Entry, item: Item, there: Sequence[Path]) -> bool:
        batch = self.batch
        same = entry.complete and (entry.weights, entry.options) == (batch.weights, batch.options)
        if not same or not set(entry.outputs) <= {self._name(path) for path in there}:
            return False
        for path in item.inputs:
            if batch.mirror is not None:
                batch.mirror.fetch(path)
        try:
            return digest(item.inputs) == entry.sha256
        finally:
            for path in item.inputs if batch.mirror is not None else ():
                batch.mirror.clear(path)  # type: ignore[union-attr]

    def _fail(self, item: Item, error: HybridError, finished: Finished, task: Task | None) -> None:
        self.failures.append((item, error))
        attempt = task.attempt if task is not None else (entry.attempt if (entry := self._entry(item)) is not None else 1)
        self._note(item, "failed", finished, attempt=attempt)
        self.watcher.failed(item, error)

    def _note(
        self,
        item: Item,
        status: Status,
        finished: Finished | None = None,
        *,
        attempt: int = 1,
        outputs: dict[str, Mark] | None = None,
    ) -> None:
        batch, before = self.batch, self._entry(item)
        if batch.journal is None:
            return
        if outputs is None:  # those of the run before, which are there until others take their place
            outputs = dict(before.outputs) if before is not None else {}
        entry = Entry(self._name(item.outputs[0]), item.name, status, outputs=outputs, attempt=attempt)
        entry = replace(entry, weights=batch.weights, options=batch.options)
        if finished is not None:
            entry = replace(entry, sha256=finished.sha256, seconds=round(finished.seconds, 3))
        if finished is not None and finished.error is not None:
            error = finished.error
            entry = replace(entry, error=_without_paths(error.message, item), hint=_without_paths(error.hint or "", item))
        batch.journal.add(entry)

    def _remove_stale(self, before: Entry, marks: dict[str, Mark]) -> None:
        """What an earlier run of other options wrote, and this one did not: it would seem to belong to the new result."""
        assert self.batch.folder is not None
        for name in set(before.outputs) - set(marks):
            path = self.batch.folder / name
            if not name.startswith(OUTSIDE) and path.is_file() and self._is_as(path, before.outputs[name]):
                path.unlink()

    def _entry(self, item: Item) -> Entry | None:
        return None if self.batch.journal is None else self.batch.journal.entries.get(self._name(item.outputs[0]))

    def _name(self, path: Path) -> str:
        """Name of an output in the journal."""
        assert self.batch.folder is not None
        return path.relative_to(self.batch.folder).as_posix() if path.is_relative_to(self.batch.folder) else OUTSIDE + path.name

    def _exists(self, path: Path) -> bool:
        mirror = self.batch.mirror
        if mirror is not None and mirror.address(path) is not None:
            return mirror.size(path) is not None
        return path.exists()

    def _is_as(self, path: Path, mark: Mark | None) -> bool:
        """Whether a file is as the journal says; of a remote one its size is taken for it."""
        mirror = self.batch.mirror
        if mark is None:
            return False
        if mirror is not None and mirror.address(path) is not None:
            return mirror.size(path) == mark.bytes
        return path.is_file() and path.stat().st_size == mark.bytes and sha256_file(path) == mark.sha256


OUTSIDE = "+"
"""Stands in the journal before the names of outputs that are not in the output folder, such as maps in one of their own."""


def _without_paths(text: str, item: Item) -> str:
    """A text without the folders of an item."""
    for path in sorted((*item.inputs, *item.outputs), key=lambda path: -len(str(path))):
        text = text.replace(str(path), path.name)
        if path.parent.parts:
            text = text.replace(f"{path.parent}{os.sep}", "")
        if path.parent.is_absolute() and path.parent.name:
            text = text.replace(str(path.parent), "of the output" if path in item.outputs else "of the input")
    return without_folders(text)
