"""`run.jsonl`: what came of every input of a batch, one JSON object a line, so that the next run knows what is left.

A line is added when an input is begun and when it has ended; the last line of an output counts. At the end of a run one line
for each is left. A process may be killed at any moment: a torn last line is passed over, and whatever was begun and has not
ended is done again. Lines hold file names, hashes and figures; neither folders nor what files say of people.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import IO, Any, Literal, get_args

from hybrid.errors import OutputError, RequestError
from hybrid.locks import try_lock
from hybrid.records import replacing, timestamp

log = logging.getLogger(__name__)

JOURNAL = "run.jsonl"
Status = Literal["started", "done", "skipped", "failed"]


@dataclass(frozen=True)
class Mark:
    """What tells a file from another of its name: hash and size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Entry:
    """One line: what came of an input.

    Attributes:
        output: The main output, relative to the output folder; what lines are told apart by.
        input: The input, relative to the folder that was given, or its file name.
        status: ``started`` and not ended; ``done``; ``skipped``, since an earlier run without this journal had made the same;
            or ``failed``.
        sha256: Of the input; for scans of several files, of their hashes.
        weights: SHA-256 of the weights.
        options: SHA-256 of the options that change results.
        outputs: The files that were written, by their names as of `output`; of one that failed, those of the run before it.
        seconds: Time that it took.
        error, hint: Why it failed, and the repair.
        attempt: How many times it has been tried since it last ended well.
        ended: When the line was written, in UTC.
    """

    output: str
    input: str
    status: Status
    sha256: str = ""
    weights: str = ""
    options: str = ""
    outputs: Mapping[str, Mark] = field(default_factory=dict)
    seconds: float = 0.0
    error: str = ""
    hint: str = ""
    attempt: int = 1
    ended: str = field(default_factory=timestamp)

    @property
    def complete(self) -> bool:
        """Whether its outputs were there when the line was written."""
        return self.status in ("done", "skipped")

    def to_line(self) -> str:
        """The line, without what is empty."""
        facts = {key: value for key, value in asdict(self).items() if value not in ("", {})}
        return json.dumps(facts, ensure_ascii=False, separators=(",", ":")) + "\n"

    def _is_sound(self) -> bool:
        """Whether values that were read are of the types that the attributes say."""
        texts = (self.output, self.input, self.sha256, self.weights, self.options, self.error, self.hint, self.ended)
        marks = all(isinstance(mark.sha256, str) and isinstance(mark.bytes, int) for mark in self.outputs.values())
        numbers = isinstance(self.seconds, int | float) and isinstance(self.attempt, int) and self.status in get_args(Status)
        return marks and numbers and all(isinstance(text, str) for text in texts)

    @classmethod
    def from_line(cls, line: str) -> Entry | None:
        """Read a line; None if it is none, such as a torn one. Unknown keys of a later version are passed over."""
        try:
            facts = json.loads(line)
            known = {f.name for f in fields(cls)}
            facts = {key: value for key, value in facts.items() if key in known}
            found = cls(**facts | {"outputs": {name: Mark(**mark) for name, mark in facts.get("outputs", {}).items()}})
            return found if found._is_sound() else None
        except (ValueError, TypeError, AttributeError, RecursionError):
            return None


class Journal:
    """The journal of an output folder; made by `open_journal`.

    Attributes:
        path: The file. It is made, and its folder, with the first line.
        entries: The last line of each output, by its name.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: dict[str, Entry] = {}
        self._stream: IO[bytes] | None = None
        self._lines = 0

    def open(self) -> None:
        """Take up what earlier runs have left, if there is anything, and keep other runs out from now on.

        Raises:
            RequestError: Another run is at work in the folder.
            OSError: The journal cannot be read or written.
        """
        try:
            stream = self.path.open("r+b")
        except FileNotFoundError:
            return
        self._take(stream)

    def add(self, entry: Entry) -> None:
        """Write a line and hand it to the system, so that it outlives this process.

        Raises:
            OutputError: It cannot be written.
        """
        try:
            if self._stream is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._take(self.path.open("a+b"))
            assert self._stream is not None
            self._stream.write(entry.to_line().encode("utf-8", "replace"))
            self._stream.flush()
        except OSError as error:
            raise OutputError(
                f"The journal {self.path.name} cannot be written: {error.strerror}.",
                hint="Make room or choose another --output; the same command goes on then.",
            ) from error
        self._lines += 1
        self.entries[entry.output] = entry

    def close(self) -> None:
        """Leave one line for each output. If there is no room for that, the longer file says the same."""
        if self._stream is None:
            return
        with suppress(OSError):
            if self._lines != len(self.entries):
                with replacing(self.path) as part:
                    part.write_text("".join(entry.to_line() for entry in self.entries.values()), encoding="utf-8")
        with suppress(OSError):  # what could not be written has been told of by `add`
            self._stream.close()
        self._stream = None

    def _take(self, stream: IO[bytes]) -> None:
        """Lock the file, which must still be the one of its name then, and read it."""
        self._stream = stream
        if not try_lock(stream.fileno()) or not os.path.samestat(os.fstat(stream.fileno()), os.stat(self.path)):
            raise RequestError(
                f"Another run is at work in {self.path.parent}.", hint="Wait until it has ended, or choose another --output."
            )
        stream.seek(0)
        data = stream.read()
        lines = data.decode("utf-8", "replace").split("\n")
        for number, line in enumerate(lines, 1):
            if (entry := Entry.from_line(line)) is not None:
                self.entries[entry.output] = entry
            elif number < len(lines):
                log.warning("line %d of %s is no line of a journal and was passed over", number, self.path.name)
        self._lines = len(lines) - 1
        if not data.endswith((b"\n",)) and data:
            stream.write(b"\n")  # behind a torn line, so that it takes no other with it


@contextmanager
def open_journal(path: Path) -> Iterator[Journal]:
    """The journal of an output folder, for one run at a time.

    Raises:
        RequestError: Another run is at work in the folder.
        OutputError: The journal is there, and cannot be read and added to.
    """
    journal = Journal(path)
    try:
        try:
            journal.open()
        except OSError as error:
            raise OutputError(
                f"The journal {path} cannot be opened: {error.strerror}.", hint="Check its permissions, or use another -o."
            ) from error
        yield journal
    finally:
        journal.close()


def options_digest(options: Mapping[str, Any]) -> str:
    """SHA-256 of plain values, whatever the order of their names.

    >>> options_digest({"a": 1, "b": (2, 3)}) == options_digest({"b": [2, 3], "a": 1})
    True
    """
    text = json.dumps(options, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
