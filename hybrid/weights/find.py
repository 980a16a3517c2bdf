"""Find weights: a file given, a published file in the cache, a download if allowed. The shipped stand-in is a step of its own.

The cache is one flat folder of files under their published names, each with its hash beside it in the form that
``sha256sum -c`` reads; a mirror is the same folder behind a web server. Nothing here imports torch before a file is opened.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hybrid.errors import HybridError, RequestError, ResourceError, WeightsError
from hybrid.locks import lock
from hybrid.records import replacing, sha256_file
from hybrid.weights.catalogue import Catalogue, Entry, WeightsFile
from hybrid.weights.downloads import OnProgress, Timeouts, download

log = logging.getLogger(__name__)

_SUFFIXES = (".pth", ".pt", ".ckpt", ".safetensors", ".bin", ".th")
Origin = Literal["file", "cache", "download", "shipped"]


@dataclass(frozen=True)
class Resolved:
    """Where the weights of a run are.

    Attributes:
        path: The file.
        entry: Its catalogue entry; None for a file that the user gave.
        scale: The scale it was chosen for; None where a given file will tell it.
        origin: How it was found.
    """

    path: Path
    entry: Entry | None
    scale: int | None
    origin: Origin


@dataclass(frozen=True)
class Store:
    """The cache of downloaded weights and the rules for filling it.

    Attributes:
        folder: The cache folder; made when the first file comes.
        offline: Never use the network.
        mirror: Address of a folder to try first; file names are appended to it.
        command: The command that error messages tell the user to type.
        timeouts: How long to wait for a server.
    """

    folder: Path
    offline: bool = False
    mirror: str | None = None
    command: str = "restore"
    timeouts: Timeouts = field(default_factory=Timeouts)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ, *, command: str = "restore") -> Store:
        """The store as ``HYBRID_CACHE``, ``RESTORE_OFFLINE`` and ``RESTORE_MIRROR`` ask for it.

        Raises:
            RequestError: A variable has a value that cannot be meant.
        """
        if given := environment.get("HYBRID_CACHE"):
            folder = Path(given).expanduser()
        else:
            import pooch

            folder = Path(pooch.os_cache("hybrid-imaging")).expanduser() / "weights"
        switch = environment.get("RESTORE_OFFLINE", "").strip().lower()
        if switch not in ("", "0", "no", "false", "off", "1", "yes", "true", "on"):
            raise RequestError(f"RESTORE_OFFLINE is {switch!r}.", hint="Set it to 1 or 0.")
        mirror = environment.get("RESTORE_MIRROR", "").strip() or None
        if mirror and not mirror.startswith(("http://", "https://")):
            raise RequestError(
                f"RESTORE_MIRROR is {mirror!r}.", hint="Set it to an address that begins with https:// or http://."
            )
        return cls(folder, offline=switch in ("1", "yes", "true", "on"), mirror=mirror, command=command)

    def path(self, file: WeightsFile) -> Path:
        """Where a file lies once it is in the cache."""
        return self.folder / file.name

    def find(self, entry: Entry, scale: int) -> Path | None:
        """The cached file if it is there and is what it was: the known hash, or else the first one recorded, must hold.

        Raises:
            WeightsError: It has changed since, or is not the published file.
        """
        _, file = entry.file(scale)
        path = self.path(file)
        if not path.is_file():
            return None
        found = _hash(path)
        if (expected := self.expected(file)) is None:
            self._record(file, found)
        elif found != expected:
            known = "the published one" if file.sha256 else "what it was when it came"
            raise WeightsError(
                f"The cached {file.name} is not {known} (sha256 {found[:12]}..., expected {expected[:12]}...).",
                hint=f"Delete {path} and get it again: {self.how_to_get(entry, scale)}",
            )
        return path

    def fetch(self, entry: Entry, scale: int, on_progress: OnProgress | None = None) -> Path:
        """The cached file, downloaded first if it is not there.

        Args:
            entry: The model.
            scale: One of its scales.
            on_progress: Called with bytes done and bytes in all (0 where the server does not say).

        Raises:
            WeightsError: Offline, no direct address, or no address gave the file; the message says why and what to do.
            ResourceError: The disk is full or the cache folder cannot be written.
        """
        _, file = entry.file(scale)
        if (path := self.find(entry, scale)) is not None:
            return path
        urls = ([f"{self.mirror.rstrip('/')}/{file.name}"] if self.mirror else []) + list(file.urls)
        if self.offline or not urls:
            why = "RESTORE_OFFLINE forbids the download" if self.offline else "its authors give no direct address"
            raise WeightsError(f"{file.name} is not in the cache, and {why}.", hint=self._by_hand(file))
        try:
            with self._alone():
                return self.find(entry, scale) or self._download(file, urls, on_progress)
        except OSError as error:
            raise ResourceError(
                f"The cache {self.folder} cannot be used: {error.strerror}.",
                hint="Set HYBRID_CACHE to a folder that can be written.",
            ) from error

    def import_file(self, source: str | Path, entry: Entry, scale: int) -> Path:
        """Copy a file that a person downloaded into the cache, once it proves to be what it should.

        Raises:
            WeightsError: It is no readable checkpoint, or not the published file where its hash is known.
            ResourceError: The cache folder cannot be written.
        """
        _, file = entry.file(scale)
        source = Path(source)
        if not source.is_file():
            raise WeightsError(f"There is no file {source}.", hint="Give the downloaded file.")
        found = self._proven(source, file)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with replacing(self.path(file)) as part:
                shutil.copyfile(source, part)
        except OSError as error:
            raise ResourceError(
                f"{file.name} cannot be copied to {self.folder}: {error.strerror}.", hint="Set HYBRID_CACHE to another folder."
            ) from error
        self._record(file, found)
        return self.path(file)

    def how_to_get(self, entry: Entry, scale: int) -> str:
        """What to type, or to do, for the published file."""
        _, file = entry.file(scale)
        if not self.offline and (file.urls or self.mirror):
            return f"{self.command} models pull {entry.name}" + (f" --scale {scale}" if scale > 1 else "")
        return self._by_hand(file)

    def _by_hand(self, file: WeightsFile) -> str:
        page = file.page or next(iter(file.urls), None)
        get = f"Open {page} in a browser and save {file.name}" if page else f"Get {file.name} from its authors"
        return f"{get}, then type: {self.command} models import {file.name}"

    def _download(self, file: WeightsFile, urls: list[str], on_progress: OnProgress | None) -> Path:
        path = self.path(file)
        part = path.with_name(path.name + ".part")
        hashes: list[str] = []
        try:
            download(
                urls,
                part,
                check=lambda done: hashes.append(self._proven(done, file)),
                timeouts=self.timeouts,
                on_progress=on_progress,
            )
        except WeightsError as error:
            message = error.message.replace(part.name, file.name)
            raise WeightsError(f"{file.name} could not be downloaded: {message}", hint=self._by_hand(file)) from error
        os.replace(part, path)
        self._record(file, hashes[-1])
        return path

    def _proven(self, path: Path, file: WeightsFile) -> str:
        """The hash of a complete file, after it has proved to be the one expected or, where none is known, weights at all."""
        found = _hash(path)
        expected = self.expected(file)
        if expected is not None and found != expected:
            known = "the published" if file.sha256 else "the first recorded"
            raise WeightsError(
                f"{path.name} is not {known} {file.name} (sha256 {found[:12]}..., expected {expected[:12]}...).",
                hint=self._by_hand(file),
            )
        if expected is None:
            from hybrid.weights.checkpoints import read_checkpoint

            read_checkpoint(path)
        return found

    def expected(self, file: WeightsFile) -> str | None:
        """The hash a file must have: the published one, else that of its first download; None where neither is known."""
        if file.sha256:
            return file.sha256
        try:
            return self._side_file(file).read_text(encoding="ascii").split()[0]
        except (OSError, ValueError, IndexError):
            return None

    def _record(self, file: WeightsFile, digest: str) -> None:
        """Remember the hash of a file at its first sight. A cache that is only readable goes without."""
        side = self._side_file(file)
        if side.exists():
            return
        try:
            with replacing(side) as part:
                part.write_text(f"{digest}  {file.name}\n", encoding="ascii")
        except OSError as error:
            log.warning("the hash of %s could not be recorded: %s", file.name, error)

    def _side_file(self, file: WeightsFile) -> Path:
        return self.folder / f"{file.name}.sha256"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other processes from downloading into the same cache; they wait, and then find the file there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("wb") as opened:
            lock(opened.fileno())
            yield


def resolve(
    name_or_path: str | Path,
    scale: int | None,
    catalogue: Catalogue,
    store: Store,
    *,
    allow_download: bool,
    on_progress: OnProgress | None = None,
) -> Resolved:
    """Find the weights that a user asks for by model name or by file. A name is never silently replaced; see `fallback`.

    Args:
        name_or_path: A name of the catalogue, or a file. A file that is called like a model is meant as ``./name``.
        scale: Wanted scale; may be None where the model has one only, and for files.
        catalogue: The known models.
        store: The cache.
        allow_download: Whether the network may be used.
        on_progress: Called with bytes done and bytes in all during a download.

    Raises:
        RequestError: No such model, or the model lacks the scale.
        WeightsError: The weights are absent, damaged or could not be fetched.
        ResourceError: The disk is full or the cache folder cannot be written.
    """
    if (path := _given_file(name_or_path, catalogue)) is not None:
        return Resolved(path, None, scale, "file")
    entry = catalogue.entry(str(name_or_path))
    scale, file = entry.file(scale)
    if file.shipped:
        return Resolved(_shipped(catalogue, entry, scale), entry, scale, "shipped")
    if (cached := store.find(entry, scale)) is not None:
        return Resolved(cached, entry, scale, "cache")
    if allow_download:
        return Resolved(store.fetch(entry, scale, on_progress), entry, scale, "download")
    raise WeightsError(
        f"The weights {file.name} of {entry.name} are not in the cache.", hint=f"Get them: {store.how_to_get(entry, scale)}"
    )


def weights_state(entry: Entry, store: Store, catalogue: Catalogue) -> str:
    """Where the weights of a model are, in a few words such as ``shipped``, ``cached: x2, x4`` or ``not here``.

    Where there is one file and the size stays, no scale is named: ``cached``.
    """
    if entry.shipped:
        lost = [scale for scale in entry.files if catalogue.shipped_path(entry, scale) is None]
        return "missing from this installation" if lost else "shipped"
    cached, damaged = [], []
    for scale in entry.files:
        try:
            cached += [f"x{scale}"] if store.find(entry, scale) else []
        except WeightsError:
            damaged.append(f"x{scale}")
    found = [(word, ", ".join(scales)) for word, scales in (("cached", cached), ("damaged", damaged)) if scales]
    return "; ".join(word if scales == "x1" else f"{word}: {scales}" for word, scales in found) or "not here"


def is_here(state: str) -> bool:
    """Whether a model can run without a download, at one scale at least, by what `weights_state` says.

    >>> is_here("cached: x2; damaged: x4"), is_here("damaged: x4"), is_here("not here")
    (True, False, False)
    """
    return any(part.split(":")[0] in ("shipped", "cached") for part in state.split("; "))


def fallback(catalogue: Catalogue, entry: Entry, scale: int) -> Entry | None:
    """The shipped model that may stand in for an absent one at this scale, or None. The caller decides whether it does."""
    if entry.fallback is None:
        return None
    stand_in = catalogue.entry(entry.fallback)
    return stand_in if catalogue.shipped_path(stand_in, scale) is not None else None


def fallback_notice(asked: Entry, used: Entry, why: HybridError) -> str:
    """One line that says what runs instead of what was asked for, why, and how to get that."""
    return f"Using {used.name}, small and shipped with the package, in place of {asked.name}. {why}"


def _given_file(name_or_path: str | Path, catalogue: Catalogue) -> Path | None:
    """The file that is meant, or None when it is a model's name."""
    text = str(name_or_path)
    path = Path(name_or_path)
    if isinstance(name_or_path, str) and text.lower() in catalogue:
        return None
    if path.is_file():
        return path
    if path.is_dir():
        raise WeightsError(f"{text} is a folder, not a checkpoint file.", hint="Give one file inside it.")
    if isinstance(name_or_path, Path) or "/" in text or os.sep in text or path.suffix.lower() in _SUFFIXES:
        raise WeightsError(f"There is no file {text}.", hint="Check the path of the weights.")
    return None


def _shipped(catalogue: Catalogue, entry: Entry, scale: int) -> Path:
    path = catalogue.shipped_path(entry, scale)
    file = entry.files[scale]
    if path is None:
        raise WeightsError(f"This installation lacks {file.name}, which should come with it.", hint="Install the package again.")
    if file.sha256 and _hash(path) != file.sha256:
        raise WeightsError(f"{file.name} of this installation is damaged.", hint="Install the package again.")
    return path


def _hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
