"""A worker that anybody can judge: it writes its input in capitals, and a side file of how many letters there were."""

from __future__ import annotations

import os
import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hybrid.batch.engine import Batch, Item, Local, Made, Tell, run_batch
from hybrid.batch.journal import options_digest
from hybrid.batch.place import open_place
from hybrid.errors import HybridError, InputError, OutputError, WeightsError
from hybrid.records import replacing
from hybrid.remote import Mirror

COUNTED = ".count"


@dataclass
class Capitals:
    """Fails on texts with a question mark, dies of ``die`` while the file beside the input that says so is there.

    Of ``wait`` it waits for something to be written into the pipe beside the input, for a minute at most.
    """

    seen: list[str] = field(default_factory=list)
    before: Callable[[Path], None] = lambda source: None
    suffix: str = ""

    def run(self, work: tuple[Path, Path], *, replace: bool, tell: Tell) -> Made:
        source, target = work
        self.before(source)
        self.seen.append(source.name)
        text = source.read_text()
        if target.exists() and not replace:
            raise OutputError(f"{target} is there already.", hint="Pass --overwrite.")
        if "?" in text:
            raise InputError(f"{source} asks a question.", hint="Answer it.")
        if "bug" in text:
            raise IndexError(text)
        if text == "die" and (grave := source.with_suffix(".grave")).exists():
            grave.unlink()
            os._exit(9)
        if text == "deadly":
            os._exit(9)
        if text == "wait":
            with source.with_suffix(".pipe").open("rb+", buffering=0) as pipe:
                select.select([pipe], [], [], 60)
        tell.say(f"about {source.name}")
        tell.progress(1, 1)
        count = target.with_name(target.name + COUNTED)
        for path, content in ((target, text.upper() + self.suffix), (count, str(len(text)))):
            with replacing(path) as part:
                part.write_text(content)
        return Made((target, count), len(text))


@dataclass(frozen=True)
class Recipe:
    """Makes it elsewhere."""

    suffix: str = ""

    def make(self, room: int | None = None) -> Capitals:
        if self.suffix == "no network":
            raise WeightsError("There is no network.", hint="Give no network.")
        return Capitals(suffix=self.suffix)


@dataclass
class Watching:
    """Writes down what is told."""

    made: dict[str, object] = field(default_factory=dict)
    passed: list[str] = field(default_factory=list)
    errors: dict[str, HybridError] = field(default_factory=dict)

    @contextmanager
    def watching(self, item: Item) -> Iterator[Tell]:
        yield Tell()

    def done(self, item: Item, made: Made) -> None:
        assert item.name not in self.made  # none twice
        self.made[item.name] = made.report

    def skipped(self, item: Item) -> None:
        self.passed.append(item.name)

    def failed(self, item: Item, error: HybridError) -> None:
        self.errors[item.name] = error


def items_below(folder: Path, out: Path) -> list[Item]:
    """Every text of a folder, mirrored."""
    found = []
    for source in sorted(folder.rglob("*.txt")):
        name = source.relative_to(folder).as_posix()
        found.append(Item(name, (source,), (out / name, out / f"{name}{COUNTED}"), (source, out / name)))
    return found


def run(
    folder: Path,
    out: Path,
    worker: Capitals | None = None,
    *,
    weights: str = "w",
    mirror: Mirror | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
    **options: object,
) -> Watching:
    """A local batch of all texts of a folder."""
    watching = Watching()
    with open_place(out, mirror, retry_failed=retry_failed) as place:
        batch = Batch(
            out, place.journal, weights, options_digest(options), overwrite=overwrite, retry_failed=retry_failed, mirror=mirror
        )
        failures = run_batch(items_below(folder, out), Local(worker or Capitals()), batch, watching)
    assert {item.name for item, _ in failures} == set(watching.errors)
    return watching
