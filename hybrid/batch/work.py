"""What a batch is made of (`hybrid.batch.engine`): items, the workers that do them, how one is done in its own process.

An item is done in three stages: it is read, computed, written. A worker may give them one by one (`StagedWorker`), and an engine
may then do the first and the last of them while it computes another item.
"""

from __future__ import annotations

import hashlib
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from hybrid.batch.journal import Mark
from hybrid.console import folder_of
from hybrid.errors import HybridError, InputError
from hybrid.records import sha256_file
from hybrid.remote import Mirror


@dataclass(frozen=True)
class Item:
    """One input, or several that belong together, and what becomes of it.

    Attributes:
        name: The input for the journal: relative to the folder that was given, or its file name.
        inputs: The files, or folders of files.
        outputs: All files that it may give, the main one first.
        work: What the worker is told; it can be pickled.
    """

    name: str
    inputs: tuple[Path, ...]
    outputs: tuple[Path, ...]
    work: Any


@dataclass(frozen=True)
class Made:
    """What a worker made of an item.

    Attributes:
        outputs: The files that are there now, the main one first.
        report: What the command has to tell of it; it can be pickled.
        skipped: Nothing was done, since all was there of the same input, weights and options.
    """

    outputs: tuple[Path, ...]
    report: Any = None
    skipped: bool = False


class Tell:
    """Where a worker tells how it gets on; this one listens to nobody."""

    def progress(self, done: int, total: int) -> None:
        """So many steps of so many are done."""

    def say(self, text: str, style: str = "") -> None:
        """What people should know before the item is done."""


@dataclass(frozen=True)
class Listener(Tell):
    """Hands on what is told.

    Attributes:
        on_progress: Receives steps done, and steps in all.
        on_note: Receives what people should know.
    """

    on_progress: Callable[[int, int], None] | None = None
    on_note: Callable[[str], None] | None = None

    def progress(self, done: int, total: int) -> None:
        if self.on_progress is not None:
            self.on_progress(done, total)

    def say(self, text: str, style: str = "") -> None:
        if self.on_note is not None:
            self.on_note(text)


class Worker(Protocol):
    """Does items, one after the other. What it writes appears whole under its name or not at all."""

    def run(self, work: Any, *, replace: bool, tell: Tell) -> Made:
        """Do one; `replace` says whether outputs that are there may be replaced."""


Stage = TypeVar("Stage")
Stages = Generator[None, Tell, Stage]
"""Work that pauses before and after it computes; the first pause is sent where to tell how it gets on.

Before the first pause it reads, after the second it writes. It may end before either. Closed at a pause, it tidies up."""


@runtime_checkable
class StagedWorker(Worker, Protocol):
    """A worker whose items can be read and written while it computes others."""

    def stages(self, work: Any, *, replace: bool) -> Stages[Made]:
        """Do one as `run` does. The stages of one item follow each other, but may be done in different threads."""


def finish(stages: Stages[Stage], tell: Tell) -> Stage:
    """Do all stages, one after the other."""
    try:
        next(stages)
        while True:
            stages.send(tell)
    except StopIteration as ended:
        made: Stage = ended.value
        return made


class Stopwatch:
    """Seconds since it was made, less the pauses."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return time.perf_counter() - self._began

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is in this block is not counted."""
        at = time.perf_counter()
        yield
        self._began += time.perf_counter() - at


class Recipe(Protocol):
    """What a worker is made of; it can be pickled."""

    def make(self, room: int | None = None) -> Worker:
        """The worker; `room` is the memory that it may take where the user has set no bound."""


@dataclass(frozen=True)
class Task:
    """An item that is to be done.

    Attributes:
        item: It.
        replace: Whether outputs that are there may be replaced.
        ours: Whether all that is there, and all that will be, comes of this batch; then a broken-off try may be repeated.
        attempt: The how-manieth try since it last ended well.
        mark: Whether input and outputs are hashed, for the journal.
        alone: Whether it is the only one; then faults of the program are not contained.
        mirror: Of remote files.
    """

    item: Item
    replace: bool
    ours: bool = False
    attempt: int = 1
    mark: bool = True
    alone: bool = False
    mirror: Mirror | None = None


@dataclass(frozen=True)
class Finished:
    """What came of a task: `made`, or `error`."""

    made: Made | None = None
    error: HybridError | None = None
    sha256: str = ""
    marks: tuple[Mark, ...] = ()
    seconds: float = 0.0


def perform(worker: Worker, task: Task, tell: Tell) -> Finished:
    """Do a task in this process. Only what no user and no other item should be bothered with is raised."""
    return finish(stages_of(worker, task), tell)


def stages_of(worker: Worker, task: Task) -> Stages[Finished]:
    """A task, stage by stage."""
    clock, item, mirror = Stopwatch(), task.item, task.mirror
    sha256 = ""
    try:
        if mirror is not None:
            for path in item.inputs:
                mirror.fetch(path)
        sha256 = digest(item.inputs) if task.mark else ""
        with ExitStack() as folders:
            for folder in dict.fromkeys(path.parent for path in item.outputs):
                folders.enter_context(folder_of(folder / "file"))
            made = yield from _counted(_stages(worker, task), clock)
        marks = tuple(mark_of(path) for path in made.outputs) if task.mark else ()
        if mirror is not None:
            for path in reversed(made.outputs):  # the main one last: where it is, all are
                mirror.send(path)
    except HybridError as error:
        return Finished(error=error, sha256=sha256, seconds=clock.seconds)
    except OSError as error:
        if task.alone:
            raise
        place = f"{error.filename}: " if error.filename is not None else ""
        fault = HybridError(f"{place}{error.strerror}.", hint="Check the room and the permissions there.")
        return Finished(error=fault, sha256=sha256, seconds=clock.seconds)
    except Exception as error:
        if task.alone:
            raise
        return Finished(error=_unexpected(error), sha256=sha256, seconds=clock.seconds)
    finally:
        if mirror is not None:
            for path in (*item.inputs, *item.outputs):
                mirror.clear(path)
    return Finished(made, None, sha256, marks, clock.seconds)


def _stages(worker: Worker, task: Task) -> Stages[Made]:
    if isinstance(worker, StagedWorker):
        return worker.stages(task.item.work, replace=task.replace)
    return _whole(worker, task)


def _whole(worker: Worker, task: Task) -> Stages[Made]:
    tell = yield
    return worker.run(task.item.work, replace=task.replace, tell=tell)


def _counted(stages: Stages[Made], clock: Stopwatch) -> Stages[Made]:
    """The same stages; `clock` stands still at their pauses."""
    try:
        next(stages)
        while True:
            with clock.stopped():
                tell = yield
            stages.send(tell)
    except StopIteration as ended:
        made: Made = ended.value
        return made
    finally:
        stages.close()


def mark_of(path: Path) -> Mark:
    """Hash and size of a file."""
    return Mark(sha256_file(path), path.stat().st_size)


def digest(inputs: Sequence[Path]) -> str:
    """The hash of an input: of its file, or of the hashes of its files, in rising order. Hidden files do not count.

    Raises:
        InputError: A file cannot be read, or is gone.
    """
    try:
        files = [file for path in inputs for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        digests = [sha256_file(file) for file in files if file in inputs or (file.is_file() and not file.name.startswith("."))]
    except FileNotFoundError as error:
        raise InputError(f"{inputs[0].name} is not there any more.", hint="Check its path.") from error
    except OSError as error:
        raise InputError(f"{inputs[0].name} could not be read: {error.strerror}.", hint="Check its files.") from error
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def _unexpected(error: Exception) -> HybridError:
    """A fault of the program in one item. Its text may quote what is in the file, so that only its place is told."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return HybridError(
        f"A fault of the program: {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}.",
        hint="Run this input alone to see all of it, and report it.",
    )
