"""Where the journal of a batch lies: in its output folder, or, of a remote one, in the cache of this machine and there too."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hybrid.batch.journal import JOURNAL, Entry, Journal, open_journal
from hybrid.errors import InputError, RequestError
from hybrid.remote import Mirror, put
from hybrid.weights.find import Store


@dataclass(frozen=True)
class Place:
    """What the outputs of a request have in common.

    Attributes:
        folder: The output folder; None of a single input, and of results that lie beside their inputs.
        journal: What is known of it; None without a folder.
        mirror: Of remote files.
    """

    folder: Path | None = None
    journal: Journal | None = None
    mirror: Mirror | None = None

    @property
    def path(self) -> Path | None:
        """Where the journal is, once a line was written."""
        return self.journal.path if self.journal is not None else None

    def knows(self, output: Path) -> bool:
        """Whether a batch before this one has tried to write an output."""
        if self.journal is None or self.folder is None or not output.is_relative_to(self.folder):
            return False
        return output.relative_to(self.folder).as_posix() in self.journal.entries


def name_below(path: Path, inputs: Sequence[str]) -> str:
    """An input's name relative to the folder that was named and holds it, or its file name.

    >>> name_below(Path("album/sub/a.png"), ["other", "album"]), name_below(Path("album/a.png"), ["album/a.png"])
    ('sub/a.png', 'a.png')
    """
    roots = [Path(text) for text in inputs]
    return next((path.relative_to(root).as_posix() for root in roots if path != root and path.is_relative_to(root)), path.name)


def output_folder(inputs: Sequence[str], output: Path | None, pairs: Sequence[tuple[Path, Path]]) -> Path | None:
    """The folder that all results lie in; None of a single input, and of several that get results beside them.

    Args:
        inputs: What the user has named.
        output: As given.
        pairs: Inputs as they were found, and their main outputs.
    """
    named, (source, target) = Path(inputs[0]), pairs[0]
    if len(pairs) == 1 and source == named:
        return None
    if output is not None:
        return output
    if len(inputs) == 1 and source != named and source.is_relative_to(named):
        return target.parents[len(source.relative_to(named).parts) - 1]
    return None


@contextmanager
def open_place(folder: Path | None, mirror: Mirror | None = None, *, retry_failed: bool = False) -> Iterator[Place]:
    """Open the journal of an output folder, for one run at a time.

    Raises:
        RequestError: Another run is at work there; or what failed is to be tried again, and no journal tells what did.
        OutputError: The journal cannot be read and added to.
    """
    address = mirror.address(folder) if mirror is not None and folder is not None else None
    if folder is None:
        if retry_failed:
            raise RequestError("--retry-failed is for several inputs with one output folder.", hint="Leave it out.")
        yield Place(mirror=mirror)
        return
    path = folder / JOURNAL if address is None else _kept_here(address)
    with open_journal(path) as journal:
        if address is not None:
            _merge(journal, f"{address.rstrip('/')}/{JOURNAL}")
        if retry_failed and not journal.entries:
            raise RequestError(f"There is no {JOURNAL} in {address or folder}.", hint="Leave --retry-failed out.")
        yield Place(folder, journal, mirror)
    if address is not None and path.exists():
        put(path, f"{address.rstrip('/')}/{JOURNAL}")


def _kept_here(address: str) -> Path:
    """The journal of a remote folder while it grows: there, lines could not be added one by one."""
    return Store.from_environment().folder / "batches" / hashlib.sha256(address.encode()).hexdigest()[:16] / JOURNAL


def _merge(journal: Journal, address: str) -> None:
    """Take up what a run on another machine has left, where it is newer."""
    with tempfile.TemporaryDirectory(prefix="hybrid-remote-") as folder:
        copy = Path(folder) / JOURNAL
        try:
            Mirror(Path(folder), ((copy, address),)).fetch(copy)
        except InputError:  # none there yet
            return
        for line in copy.read_text(encoding="utf-8", errors="replace").splitlines():
            entry = Entry.from_line(line)
            if entry is not None and ((known := journal.entries.get(entry.output)) is None or known.ended < entry.ended):
                journal.entries[entry.output] = entry
