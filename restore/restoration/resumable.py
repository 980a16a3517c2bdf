"""A result in the making that outlives an interruption: a folder beside the output, and what in it is final.

`out.tif.part/` holds the picture as far as it is written, what the rest of it still needs, and `progress.json`: which request
this is the part of, and how many rows of tiles are finished. Whoever comes with the same request goes on there; one that
differs in anything starts anew. The last step moves the picture into its place and deletes the folder.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from hybrid.errors import HybridError, OutputError
from hybrid.records import replacing, timestamp

PROGRESS, PICTURE, LOCK = "progress.json", "picture", "lock"  # no suffix of a picture: no search shall find one
KIND = "hybrid-imaging: picture in the making"

Request = Mapping[str, object]
"""What a result depends on: a plain JSON value by the words that name it to a user."""


@dataclass(frozen=True)
class Progress:
    """How far a part is.

    Attributes:
        rows: Finished rows of tiles of the network.
        tiles: Tiles of the file that are written.
        tile: Edge of the network's tiles; 0 before any are planned.
        value_range: Least and greatest value of a picture of floats; None before they are known, or of integers.
        started: When the first run began.
        seconds: Time that runs have taken.
    """

    rows: int = 0
    tiles: int = 0
    tile: int = 0
    value_range: tuple[float, float] | None = None
    started: str = field(default_factory=timestamp)
    seconds: float = 0.0


class Part:
    """The folder of one result in the making; made by `resumable`.

    Attributes:
        folder: Where it lies.
        progress: As it was found, and as `keep` changes it.
        discarded: What an earlier part differed in and was deleted for; empty if there was none, or one to go on with.
    """

    def __init__(self, target: Path, request: Request) -> None:
        self.target, self.folder = target, part_folder(target)
        # As JSON gives it back, so that a tuple does not differ from a list.
        self._request: dict[str, Any] = json.loads(json.dumps(dict(request)))
        self.discarded: tuple[str, ...] = ()
        self.progress = Progress()

    def open(self) -> None:
        """Take up what an earlier run left if it belongs to this request, or begin a new part."""
        found = _found(self.folder)
        if found is not None:
            was, progress = found
            self.discarded = tuple(key for key in self._request | was if self._request.get(key) != was.get(key))
            if not self.discarded and (progress.rows == 0 or (self.folder / PICTURE).exists()):
                self.progress = progress
                return
            for path in self.folder.iterdir():
                if path.name != LOCK:
                    path.unlink()
        self.keep(self.progress)

    def keep(self, progress: Progress) -> None:
        """Note how far the part is; what it counts must be on the disk."""
        self.progress = progress
        facts = {"kind": KIND, "request": self._request, "progress": asdict(progress)}
        with replacing(self.folder / PROGRESS) as path, path.open("w", encoding="utf-8") as file:
            json.dump(facts, file, ensure_ascii=False, indent=1)
            file.flush()
            os.fsync(file.fileno())

    def publish(self) -> None:
        """Move the finished picture into its place."""
        os.replace(self.folder / PICTURE, self.target)


def part_folder(target: Path) -> Path:
    """Where the part of an output lies.

    >>> part_folder(Path("out/scan.tif")).name
    'scan.tif.part'
    """
    return target.with_name(target.name + ".part")


@contextmanager
def resumable(target: Path, request: Request) -> Iterator[Part]:
    """A part that stays when the block is broken off, by an error or a signal, once a row of tiles is finished.

    The error then says so: a `HybridError` in its hint, any other in a note (`BaseException.add_note`). A block that ends
    well has published the picture, and the folder is deleted.

    Raises:
        OutputError: Another run is at work on the same output, or the folder is there and is no such part.
    """
    part = Part(target, request)
    made = not part.folder.exists()
    try:
        part.folder.mkdir(mode=0o700, exist_ok=True)
        lock = (part.folder / LOCK).open("ab") if made or _is_ours(part.folder) else None
    except OSError as error:
        raise OutputError(f"{part.folder} cannot be made ({error.strerror}).", hint="Choose another --output.") from error
    if lock is None:
        raise OutputError(f"{part.folder}, where the work would go on, is something else.", hint="Move it, or choose another -o.")
    with lock:
        _lock(lock, part.folder)
        try:
            try:
                part.open()
                yield part
            except OSError as error:
                raise OutputError(
                    f"{target} cannot be written ({error.strerror or error}).",
                    hint="Check the disk's free space and the folder's permissions.",
                ) from error
        except BaseException as error:
            _tell_or_remove(part, error)
            raise
    shutil.rmtree(part.folder, ignore_errors=True)


def _tell_or_remove(part: Part, error: BaseException) -> None:
    if part.progress.rows == 0:
        shutil.rmtree(part.folder, ignore_errors=True)
        return
    line = (
        f"{part.folder} keeps the finished rows of tiles ({part.progress.rows}): the same command goes on from there; "
        f"delete the folder to give them up."
    )
    if isinstance(error, HybridError):
        error.hint = f"{error.hint} {line}" if error.hint else line
    else:
        error.add_note(line)


def _is_ours(folder: Path) -> bool:
    """Whether a folder is a part, be it one that was broken off before anything was noted."""
    with suppress(OSError):
        return _found(folder) is not None or all(path.name == LOCK for path in folder.iterdir())
    return False


def _found(folder: Path) -> tuple[dict[str, Any], Progress] | None:
    """Request and progress of a part; None where there is none that can be read."""
    try:
        facts = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
        if facts["kind"] != KIND:
            return None
        progress = Progress(**facts["progress"])
        return dict(facts["request"]), progress
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _lock(file: IO[bytes], folder: Path) -> None:
    """Keep other runs away from the part while the file is open. Not on Windows, nor on some network file systems."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputError(
            f"Another run is at work in {folder}.", hint="Wait for it, stop it, or choose another --output."
        ) from error
    except OSError:
        return
