"""Inputs and outputs on other machines, by the addresses that fsspec understands: `s3://`, `gs://`, `http://`, `memory://`, ...

Remote files have stand-ins: a private folder in which their names lie, empty, so that whatever plans with paths works on them.
A worker fetches an input to its stand-in just before it needs it and sends outputs once they are whole. The folder has the same
name on all machines of a cluster, made where it is needed.
"""

from __future__ import annotations

import posixpath
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from glob import has_magic
from pathlib import Path
from typing import Any

from hybrid.errors import HybridError, InputError, OutputError, RequestError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(::[a-z]+)*://")  # two letters at least: C:// is a drive
_CUT_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(?=[^/])(.+)")
_SECRET = re.compile(r"(?<=://)[^/@]*@|\?.*")


def is_remote(text: str) -> bool:
    """Whether a text is an address.

    >>> is_remote("s3://bucket/scan.nii.gz"), is_remote("C:/scan.nii.gz"), is_remote("scan.nii.gz")
    (True, False, False)
    """
    return _ADDRESS.match(text) is not None


def address_of(path: Path | None) -> str | None:
    """The address that a path was before its slashes were cut; None where it was none.

    >>> address_of(Path("s3://bucket/out")), address_of(Path("file:///tmp/out")), address_of(Path("out"))
    ('s3://bucket/out', 'file:///tmp/out', None)
    """
    match = _CUT_ADDRESS.match(path.as_posix()) if path is not None else None
    if match is None:
        return None
    return f"{match[1]}:///{match[2]}" if match[1] == "file" else f"{match[1]}://{match[2]}"


def public(address: str) -> str:
    """An address without user, password and query, for messages.

    >>> public("ftp://ann:secret@host/a.png?key=1")
    'ftp://host/a.png'
    """
    return _SECRET.sub("", address)


@dataclass(frozen=True)
class Mirror:
    """Stand-ins of remote files, and what they stand for.

    Attributes:
        folder: Where they lie.
        places: A path in the folder and its address, for each file or folder that was given.
    """

    folder: Path
    places: tuple[tuple[Path, str], ...]

    def address(self, path: Path) -> str | None:
        """What a path stands for; None for a path of this machine."""
        for place, address in self.places:
            if path == place:
                return address
            if path.is_relative_to(place):
                return f"{address.rstrip('/')}/{path.relative_to(place).as_posix()}"
        return None

    def fetch(self, path: Path) -> bool:
        """Put a remote input in the place of its stand-in; False if the path is one of this machine.

        Raises:
            InputError: It cannot be had.
        """
        if (address := self.address(path)) is None:
            return False
        self._make(path.parent)
        files, key = _open(address)
        try:
            files.get_file(key, str(path))
        except Exception as error:  # each protocol has exceptions of its own, and all mean that it is not here
            path.unlink(missing_ok=True)
            raise InputError(
                f"{public(address)} cannot be fetched: {_reason(error)}.", hint="Check the address and your rights."
            ) from error
        return True

    def send(self, path: Path) -> bool:
        """Put a finished output to its address, whole or not at all; False if the path is one of this machine.

        Raises:
            OutputError: It cannot be sent.
        """
        if (address := self.address(path)) is None:
            return False
        put(path, address)
        return True

    def size(self, path: Path) -> int | None:
        """Bytes of the remote file that a path stands for; None where there is none.

        Raises:
            OutputError: That cannot be known.
        """
        address = self.address(path)
        assert address is not None
        files, key = _open(address)
        try:
            return int(files.info(key)["size"])
        except FileNotFoundError:
            return None
        except Exception as error:  # as above
            raise OutputError(
                f"{public(address)} cannot be looked at: {_reason(error)}.", hint="Check the address and your rights."
            ) from error

    def clear(self, path: Path) -> None:
        """Give the room of a fetched or sent file back."""
        if self.address(path) is not None:
            path.unlink(missing_ok=True)

    def described(self, text: str) -> str:
        """A text for people, with addresses in place of stand-ins."""
        for place, address in self.places:
            text = text.replace(str(place), public(address).rstrip("/"))
        return text

    def _make(self, folder: Path) -> None:
        """Make a folder, on this or another machine of a cluster; what is in it is nobody else's business."""
        self.folder.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)


@dataclass(frozen=True)
class Places:
    """What a user has named, as paths of this machine.

    Attributes:
        inputs: Files, folders and patterns; stand-ins of those that are remote.
        output: Likewise.
        mirror: Of the stand-ins; None where nothing is remote.
    """

    inputs: tuple[str, ...]
    output: Path | None
    mirror: Mirror | None = None


_IN_USE: ContextVar[Mirror | None] = ContextVar("mirror", default=None)


@contextmanager
def localised(inputs: Sequence[str], output: Path | None, suffixes: Sequence[str]) -> Iterator[Places]:
    """Stand-ins of remote inputs and of a remote output, as long as the block lasts.

    Args:
        inputs: Paths and addresses: of files, folders, or patterns.
        output: Path, or an address as a path.
        suffixes: What files of remote folders are taken.

    Raises:
        InputError: An address leads nowhere, or to no such file.
        RequestError: A package for the protocol is missing, or no output was named for remote inputs.
    """
    goal = address_of(output)
    if goal is None and not any(is_remote(text) for text in inputs):
        yield Places(tuple(inputs), output)
        return
    if output is None:
        raise RequestError("There is no place beside remote inputs for the results.", hint="Say where with --output.")
    if goal is not None:
        _keep_inputs(goal, [text for text in inputs if is_remote(text)])
    folder = Path(tempfile.mkdtemp(prefix="hybrid-remote-"))
    try:
        local, places = [], []
        for number, text in enumerate(inputs):
            stand_ins = [(Path(text), "")]
            if is_remote(text):
                stand_ins = list(_stand_ins(text, folder / "in" / str(number), suffixes, goal))
                places += stand_ins
            local += [str(place) for place, _ in stand_ins]
        target = output
        if goal is not None:
            target = folder / "out" / (posixpath.basename(public(goal)) or "results")
            target.parent.mkdir(parents=True)
            if not target.suffix:
                target.mkdir()
            places.append((target, goal))
        mirror = Mirror(folder, tuple(places))
        token = _IN_USE.set(mirror)
        try:
            yield Places(tuple(local), target, mirror)
        except HybridError as error:
            error.message, error.hint = mirror.described(error.message), mirror.described(error.hint or "") or None
            error.args = (error.message,)
            raise
        finally:
            _IN_USE.reset(token)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def described(text: str) -> str:
    """A text for people, with addresses in place of the stand-ins that are in use."""
    mirror = _IN_USE.get()
    return text if mirror is None else mirror.described(text)


def _keep_inputs(output: str, inputs: Sequence[str]) -> None:
    """Refuse an output in whose place, or among whose files, inputs lie under names that results take."""
    for address in inputs:
        if output in (address.rstrip("/"), posixpath.dirname(address.rstrip("/"))):
            raise RequestError(
                f"The output {public(output)} holds the input {public(address)}.",
                hint="Inputs are never changed: choose another --output.",
            )


def put(path: Path, address: str) -> None:
    """Send a file to an address: under a name of its own first, then moved, so that it is there whole or not at all.

    Raises:
        OutputError: It cannot be sent.
    """
    files, key = _open(address)
    folder, name = posixpath.split(key)
    part = f"{folder}/.{secrets.token_hex(6)}-{name}"
    try:
        files.makedirs(folder, exist_ok=True)
        files.put_file(str(path), part)
        files.mv(part, key)
    except Exception as error:  # as above
        with suppress(Exception):
            files.rm_file(part)
        raise OutputError(
            f"{public(address)} cannot be written: {_reason(error)}.", hint="Check the address and your rights."
        ) from error


def _stand_ins(address: str, folder: Path, suffixes: Sequence[str], output: str | None) -> Iterator[tuple[Path, str]]:
    files, key = _open(address)
    names: list[str] | None = None
    named: list[tuple[str, str]] = []
    try:
        if has_magic(key):
            named = [(posixpath.basename(name), files.unstrip_protocol(name)) for name in sorted(files.glob(key))]
        elif files.isfile(key) and not address.endswith("/"):
            named = [(posixpath.basename(key.rstrip("/")), address)]
        else:
            names = _names_below(files, key.rstrip("/"), suffixes)
    except Exception as error:  # as above
        raise InputError(
            f"{public(address)} cannot be read: {_reason(error)}.", hint="Check the address and your rights."
        ) from error
    if names is not None:
        below = f"{output}/" if output is not None else None  # what lies in the output is no input
        names = [name for name in names if below is None or not f"{address.rstrip('/')}/{name}".startswith(below)]
        root = folder / (posixpath.basename(key.rstrip("/")) or "inputs")
        for name in names:
            _placeholder(root, name)
        if not names:
            raise InputError(f"There is no file {public(address)}, nor one below it.", hint="Check the address and your rights.")
        yield root, address
        return
    if not named:
        raise InputError(f"Nothing fits the pattern {public(address)}.", hint="Check it, or name the files.")
    for name, full in named:
        yield _placeholder(folder, name), full


def _names_below(files: Any, key: str, suffixes: Sequence[str]) -> list[str]:
    """Names of files below a remote folder, relative to it."""
    names = [name[len(key) :].lstrip("/") for name in files.find(key) if name.startswith(f"{key}/")]
    return [name for name in names if name.lower().endswith(tuple(suffixes))]


def _placeholder(folder: Path, name: str) -> Path:
    path = folder / name
    if ".." in path.parts:
        raise InputError(f"The remote name {name} leads out of its folder.", hint="Rename it.")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists():  # where this machine's files ignore case, or the same name lies in two remote folders
        raise InputError(f"{name} and another remote file would have one name here.", hint="Run them separately.")
    path.touch()
    return path


def _open(address: str) -> tuple[Any, str]:
    """The file system of an address, and its key there.

    Raises:
        RequestError: A package for it is missing, or there is no such protocol.
    """
    try:
        import fsspec
    except ImportError as error:
        raise RequestError(
            f"{public(address)} is remote, and the package fsspec is not installed.", hint="Type: pip install fsspec"
        ) from error
    try:
        files, key = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise RequestError(f"{public(address)} needs a package: {error}.", hint="Install it, such as s3fs for s3://.") from error
    except ValueError as error:
        raise RequestError(f"{public(address)} is no address: {error}.", hint="Use s3://, gs://, http:// or a path.") from error
    return files, key


def _reason(error: Exception) -> str:
    """What an exception says, without addresses that may hold keys."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return public(text.splitlines()[0]).rstrip(".")
