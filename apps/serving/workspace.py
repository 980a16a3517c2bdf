"""Private folders: each signed-in user's, or each browser's where there are no accounts, closed to all others.

Everything that a user sends or gets lies below one folder. The server hands a file out to the owner of its folder and to
nobody else, whatever address is asked for, and deletes it on a clock or when its owner says so.
"""

from __future__ import annotations

import os
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil

from hybrid.errors import InputError, ResourceError
from hybrid.memory import format_size

if TYPE_CHECKING:
    import gradio as gr

SCOPE_KEY = "hybrid.workspace"
"""Under which the server notes a request's workspace in its ASGI scope."""
UPLOADS = "uploads"
_PREFIX = "hybrid-app-"
_LABEL = frozenset("abcdefghijklmnopqrstuvwxyz0123456789")


@dataclass(frozen=True)
class Limits:
    """What a user may send and keep.

    Attributes:
        upload: Bytes of one file that is sent.
        stored: Bytes of all files that one user has here, results among them.
        unpacked: Bytes of what an archive holds, unpacked; a picture's or scan's values are bounded by their readers.
        keep: Seconds after which files are deleted.
    """

    upload: int = 2 * 2**30
    stored: int = 20 * 2**30
    unpacked: int = 8 * 2**30
    keep: float = 8 * 3600.0


@dataclass(frozen=True)
class Workspace:
    """The private folder of one user.

    Attributes:
        owner: Name of the account, or something random for a browser session.
        folder: Where everything of this user lies.
        url: Path below which the server hands out the files of whoever asks.
        limits: What may be kept.
    """

    owner: str
    folder: Path
    url: str
    limits: Limits = field(default_factory=Limits)

    def new_folder(self, label: str) -> Path:
        """Make a folder whose name cannot be guessed: the label, then 128 random bits.

        Args:
            label: One short word of small letters and digits. It is shown in addresses: nothing of a file or a patient.

        Raises:
            ResourceError: The user keeps more than the limit already.
        """
        assert label and _LABEL.issuperset(label), label
        self.check_room()
        folder = self.folder / f"{label}-{secrets.token_urlsafe(16)}"
        folder.mkdir(mode=0o700)
        return folder

    def own(self, path: str | Path) -> Path:
        """The path of a file that came with a request, once it is known to be this user's.

        Raises:
            InputError: It is not, or it is gone: deleted on the clock, or by the user.
        """
        if not self.holds(Path(path)):
            raise InputError("This file is not here any more.", hint="Send it again.")
        return Path(path)

    def holds(self, path: Path) -> bool:
        """Whether a path is a plain file of this user, followed through links to where it really lies."""
        real = Path(os.path.realpath(path))
        return real.is_relative_to(os.path.realpath(self.folder)) and real.is_file()

    def used(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in _files(self.folder))

    def check_room(self, more: int = 0) -> None:
        """Make sure that there is room for so many bytes more.

        Raises:
            ResourceError: There is not.
        """
        if (used := self.used()) + more > self.limits.stored:
            raise ResourceError(
                f"Your files here take {format_size(used)}; {format_size(self.limits.stored)} are allowed.",
                hint="Download what you need, then press Delete my files.",
            )

    def delete_all(self) -> None:
        """Delete every file of this user."""
        for entry in self.folder.iterdir():
            _remove(entry)

    def delete_older(self, seconds: float) -> int:
        """Delete what was last written longer ago; returns how many folders went."""
        oldest = time.time() - seconds
        stale = [entry for entry in self.folder.iterdir() if entry.name != UPLOADS and _newest(entry) < oldest]
        uploads = self.folder / UPLOADS
        if uploads.is_dir():
            stale += [entry for entry in uploads.iterdir() if _newest(entry) < oldest]
        for entry in stale:
            _remove(entry)
        return len(stale)


class Workspaces:
    """The workspaces of all users, below one folder that only this process's user can read.

    Args:
        root: The folder; made where it is missing.
        limits: What each may keep.
        url: Path of the files' addresses, behind a proxy's prefix if there is one.
    """

    def __init__(self, root: Path, limits: Limits | None = None, url: str = "/files") -> None:
        self.root, self.limits, self.url = root, limits or Limits(), url
        self._of: dict[str, Workspace] = {}
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def of(self, owner: str) -> Workspace:
        """The workspace of an owner, made at the first time. Its folder's name says nothing of the owner."""
        with self._lock:
            if owner not in self._of:
                folder = self.root / secrets.token_urlsafe(16)
                folder.mkdir(mode=0o700)
                self._of[owner] = Workspace(owner, folder, self.url, self.limits)
            return self._of[owner]

    def delete_old(self) -> int:
        """Delete what is older than the limit in all workspaces; returns how many folders went."""
        with self._lock:
            known = list(self._of.values())
        gone = sum(workspace.delete_older(self.limits.keep) for workspace in known)
        self._tell(gone)
        return gone

    def delete_all(self, workspace: Workspace) -> None:
        """Delete every file of one user."""
        workspace.delete_all()
        self._tell(1)

    def when_deleted(self, call: Callable[[], None]) -> None:
        """Have something called whenever files were deleted, which lets go of what it holds of them."""
        self._listeners.append(call)

    def _tell(self, gone: int) -> None:
        for call in self._listeners if gone else ():
            call()

    def close(self) -> None:
        """Delete everything."""
        shutil.rmtree(self.root, ignore_errors=True)


def new_root() -> Path:
    """Make a folder for the files of this process, after deleting those that servers left which were killed."""
    place = Path(tempfile.gettempdir())
    for folder in place.glob(f"{_PREFIX}*"):
        number = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if number.isdigit() and not psutil.pid_exists(int(number)) and not folder.is_symlink():
            shutil.rmtree(folder, ignore_errors=True)  # of another user it stays: there are no rights
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-"))


def workspace_of(request: gr.Request | Any) -> Workspace:
    """The workspace of whoever sent a request, of Gradio or of FastAPI.

    Raises:
        InputError: The request did not come through the server's guard, as after a restart.
    """
    inner = getattr(request, "request", None) or request
    workspace = getattr(inner, "scope", {}).get(SCOPE_KEY)
    if not isinstance(workspace, Workspace):
        raise InputError("You are not signed in any more.", hint="Load the page again.")
    return workspace


def serve(workspace: Workspace, path: Path) -> str:
    """The address, without host, under which the owner alone gets a file of the workspace.

    >>> serve(Workspace("a", Path("/w"), "/files"), Path("/w/view-1/slice 3.png"))
    '/files/view-1/slice%203.png'

    With ``?download`` behind it, a browser saves the file and does not show it.
    """
    return f"{workspace.url}/{quote(path.relative_to(workspace.folder).as_posix())}"


def _files(folder: Path) -> Iterator[tuple[int, float]]:
    """Size and time of each plain file below a folder; what vanishes meanwhile is left out."""
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                found = os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):
                yield found.st_size, found.st_mtime


def _newest(path: Path) -> float:
    try:
        return max([os.lstat(path).st_mtime, *(time for _, time in _files(path))])
    except FileNotFoundError:
        return float("inf")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
