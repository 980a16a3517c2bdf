"""One archive of weights for a place with no network: packed where the weights are, unpacked where they are wanted.

The archive is a zip file that holds the weights under their published names, then ``manifest.json``. Members are stored
as they are: weights hardly compress, and a reader that takes no compressed members is safe from those that swell. The
same weights give the same bytes. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import IO, Annotated, Literal

from pydantic import Field, ValidationError

from hybrid.errors import OutputError, RequestError, ResourceError, WeightsError
from hybrid.records import DISTRIBUTION, replacing, versions
from hybrid.weights.catalogue import Catalogue, Entry, FileName, Sha256, Strict, in_print
from hybrid.weights.find import Resolved, Store, resolve

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_CHUNK = 1 << 20
_LARGEST_MANIFEST = 1 << 20
_LARGEST_READ = 1 << 20  # zipfile reads the list of members in one piece, of whatever size the file claims
_ZIP_BEGINS = (1980, 1, 1, 0, 0, 0)

OnProgress = Callable[[int, int], None]
State = Literal["imported", "already here", "comes with the package"]


class Packed(Strict):
    """One file of an archive.

    Attributes:
        file: Its published name.
        model: The catalogue's name of its model.
        scale: The scale it is for.
        size: Bytes.
        sha256: Hash of the bytes.
        code_licence: Licence of the reference implementation.
        weights_licence: Licence of the weights; "unknown" is a value.
        training_data: What it was trained on, and the terms of that data where known.
    """

    file: FileName
    model: str
    scale: int
    size: Annotated[int, Field(gt=0)]
    sha256: Sha256
    code_licence: str
    weights_licence: str
    training_data: str


class Manifest(Strict):
    """What an archive holds, and the version of the package that packed it."""

    format: Literal["hybrid-imaging weights, 1"] = "hybrid-imaging weights, 1"
    version: str
    files: Annotated[tuple[Packed, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Unpacked:
    """What became of one file of an archive; `path` is where the weights are now."""

    packed: Packed
    path: Path
    state: State


def gather(names: Sequence[str], scale: int | None, catalogue: Catalogue, store: Store) -> list[Resolved]:
    """The cached and shipped files of some models, to be packed.

    Args:
        names: Names of the catalogue.
        scale: Only this scale; None for every scale that is here.
        catalogue: The known models.
        store: The cache.

    Raises:
        RequestError: No such model, or it lacks the scale.
        WeightsError: The weights of a model are absent (the message names all such models) or damaged.
    """
    found: dict[str, Resolved] = {}
    absent = []
    for name in names:
        entry = catalogue.entry(name)
        scales = list(entry.files) if scale is None else [entry.file(scale)[0]]
        here = [item for each in scales if (item := _here(entry, each, catalogue, store)) is not None]
        found |= {item.path.name: item for item in here}
        if not here:
            absent.append((entry, scales[-1]))
    if absent:
        listed = ", ".join(f"{entry.name} ({entry.files[each].name})" for entry, each in absent)
        raise WeightsError(
            f"These weights are not here: {listed}.",
            hint=f"Get them first: {'; '.join(store.how_to_get(entry, each) for entry, each in absent)}",
        )
    return list(found.values())


def pack(archive: Path, files: Sequence[Resolved], *, overwrite: bool = False, on_progress: OnProgress | None = None) -> Manifest:
    """Write files that `gather` found into one archive, whole or not at all.

    Args:
        archive: The file to write; its name ends in ``.zip``.
        files: What to pack, in any order.
        overwrite: Whether an archive that is there may be replaced.
        on_progress: Called with bytes done and bytes in all.

    Raises:
        RequestError: The archive's name does not end in ``.zip``.
        OutputError: The archive is there already or cannot be written.
    """
    if archive.suffix.lower() != ".zip":
        raise RequestError(f"The archive {archive.name} is not named as one.", hint="Give it a name that ends in .zip.")
    if archive.exists() and not overwrite:
        raise OutputError(f"{archive} is there already.", hint="Pass --overwrite or choose another name.")
    try:
        count = _Count(sum(item.path.stat().st_size for item in files), on_progress)
        with replacing(archive) as part, zipfile.ZipFile(part, "w") as bundle:
            packed = tuple(_add(bundle, item, count) for item in sorted(files, key=lambda item: item.path.name))
            manifest = Manifest(version=versions()[DISTRIBUTION], files=packed)
            bundle.writestr(_member(MANIFEST), manifest.model_dump_json(indent=2) + "\n")
    except OSError as error:
        raise OutputError(f"{archive} cannot be written: {error.strerror}.", hint="Choose another folder.") from error
    return manifest


def unpack(
    archive: Path,
    catalogue: Catalogue,
    store: Store,
    *,
    check: Callable[[Path, Entry, int], None],
    on_progress: OnProgress | None = None,
) -> list[Unpacked]:
    """Put the weights of an archive into the cache, once all of them have proved to be what they should.

    Args:
        archive: What `pack` wrote.
        catalogue: The known models; a file that is not theirs is refused.
        store: The cache.
        check: Called with a file, its model and its scale; raises WeightsError if the file is not such weights.
        on_progress: Called with bytes done and bytes in all.

    Returns:
        What became of each file. Shipped ones are checked, and left to the package.

    Raises:
        WeightsError: It is no archive of weights, is damaged or changed, or holds other weights than are known or
            cached under a name. The cache is then as it was.
        ResourceError: The disk is full or the cache folder cannot be written.
    """
    with _opened(archive) as bundle:
        manifest = _read_manifest(archive, bundle)
        _check_members(archive, bundle, manifest)
        entries = [_entry(archive, packed, catalogue) for packed in manifest.files]
        states = [_state(packed, entry, store) for packed, entry in zip(manifest.files, entries, strict=True)]
        try:
            store.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".import-", dir=store.folder) as folder:
                staging = Path(folder)
                _extract(archive, bundle, manifest, staging, on_progress)
                for packed, entry in zip(manifest.files, entries, strict=True):
                    check(staging / packed.file, entry, packed.scale)
                for packed, entry, state in zip(manifest.files, entries, states, strict=True):
                    if state == "imported":
                        os.replace(staging / packed.file, store.path(entry.files[packed.scale]))
                        store.find(entry, packed.scale)  # which records the hash where none is known
        except OSError as error:
            raise ResourceError(
                f"{archive.name} cannot be unpacked into {store.folder}: {error.strerror}.",
                hint="Free some space, or set HYBRID_CACHE to another folder.",
            ) from error
    return [
        Unpacked(packed, _path(packed, entry, catalogue, store), state)
        for packed, entry, state in zip(manifest.files, entries, states, strict=True)
    ]


def _here(entry: Entry, scale: int, catalogue: Catalogue, store: Store) -> Resolved | None:
    if entry.files[scale].shipped:
        return resolve(entry.name, scale, catalogue, store, allow_download=False)
    path = store.find(entry, scale)
    return None if path is None else Resolved(path, entry, scale, "cache")


class _Count:
    """Bytes done of all, told to whoever wants to know."""

    def __init__(self, total: int, on_progress: OnProgress | None) -> None:
        self.done, self.total, self.on_progress = 0, total, on_progress

    def add(self, count: int) -> None:
        self.done += count
        if self.on_progress is not None:
            self.on_progress(self.done, self.total)


def _member(name: str) -> zipfile.ZipInfo:
    """A member without time and owner, which would make two archives of the same weights differ."""
    info = zipfile.ZipInfo(name, _ZIP_BEGINS)
    info.create_system = 3  # Unix, whose file modes follow
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    return info


def _add(bundle: zipfile.ZipFile, item: Resolved, count: _Count) -> Packed:
    assert item.entry is not None and item.scale is not None, "gather gives both"
    file = item.entry.files[item.scale]
    info = _member(file.name)
    info.file_size = item.path.stat().st_size  # tells zipfile whether it needs the long form
    with item.path.open("rb") as source, bundle.open(info, "w") as target:
        size, digest = _copy(source, target, count)
    return Packed(
        file=file.name,
        model=item.entry.name,
        scale=item.scale,
        size=size,
        sha256=digest,
        code_licence=item.entry.code_licence,
        weights_licence=item.entry.weights_licence,
        training_data=item.entry.training_data,
    )


def _copy(source: IO[bytes], target: IO[bytes], count: _Count) -> tuple[int, str]:
    """Copy in pieces; returns the bytes and their hash."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK):
        target.write(chunk)
        digest.update(chunk)
        size += len(chunk)
        count.add(len(chunk))
    return size, digest.hexdigest()


class _ShortReads(FileIO):
    """A file that is read in pieces of bounded size, so that a claimed size cannot fill the memory."""

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        if whence == os.SEEK_SET and offset < 0:  # which the system would call an OSError, as if the disk had failed
            raise zipfile.BadZipFile("it points before its beginning")
        return super().seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or size < 0:
            size = os.fstat(self.fileno()).st_size - self.tell()
        if size > _LARGEST_READ:
            raise zipfile.BadZipFile("its list of members is too long")
        return super().read(size) or b""


@contextmanager
def _opened(archive: Path) -> Iterator[zipfile.ZipFile]:
    if not archive.is_file():
        raise WeightsError(f"There is no file {archive}.", hint="Give an archive that `models pack` wrote.")
    try:
        stream = _ShortReads(archive)
    except OSError as error:
        raise WeightsError(f"{archive} cannot be read: {error.strerror}.", hint="Check its permissions.") from error
    with stream:
        with _sound(archive):
            bundle = zipfile.ZipFile(stream)
        with bundle:
            yield bundle


@contextmanager
def _sound(archive: Path) -> Iterator[None]:
    """Turn what zipfile says of damaged and made-up files into our error."""
    try:
        yield
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OverflowError, struct.error) as error:
        raise _refused(archive, f"is no sound zip file ({str(error).rstrip('.')})") from error


def _refused(archive: Path, why: str) -> WeightsError:
    return WeightsError(f"{archive.name} {why}.", hint="Give an archive as `models pack` wrote it, copied again if need be.")


def _read_manifest(archive: Path, bundle: zipfile.ZipFile) -> Manifest:
    found = [info for info in bundle.infolist() if info.filename == MANIFEST]
    if not found:
        raise WeightsError(
            f"{archive.name} is no archive of weights: it has no {MANIFEST}.",
            hint="Give what `models pack` wrote. Unpack any other archive, and import the checkpoint files in it one by one.",
        )
    info = found[0]
    if not _is_plain(info) or info.file_size > _LARGEST_MANIFEST:
        raise _refused(archive, f"has a {MANIFEST} of another kind")
    with _sound(archive):
        text = bundle.read(info)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        raise _refused(
            archive, f"has a {MANIFEST} that this version does not read ({where or 'text'}: {fault['msg']})"
        ) from error


def _is_plain(info: zipfile.ZipInfo) -> bool:
    """Whether a member is a file, neither link nor device nor folder, stored as it is."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    stored = info.compress_type == zipfile.ZIP_STORED and info.file_size == info.compress_size and not info.flag_bits & 1
    return stored and kind in (0, stat.S_IFREG) and not info.is_dir()


def _check_members(archive: Path, bundle: zipfile.ZipFile, manifest: Manifest) -> None:
    """The members are those of the manifest, each once and of its size, and the file is large enough for all of them."""
    members = bundle.infolist()
    listed = {packed.file: packed.size for packed in manifest.files}
    if sorted(info.filename for info in members) != sorted([MANIFEST, *(packed.file for packed in manifest.files)]):
        raise _refused(archive, f"holds other files than its {MANIFEST} names")
    for info in members:
        if not _is_plain(info):
            raise _refused(archive, f"holds {info.filename!r}, which is compressed, encrypted or no plain file")
        if info.filename != MANIFEST and info.file_size != listed[info.filename]:
            raise _refused(archive, f"holds {info.filename} of another size than its {MANIFEST} says")
    if len(listed) != len(manifest.files) or sum(info.file_size for info in members) > archive.stat().st_size:
        raise _refused(archive, "claims more than it holds")


def _entry(archive: Path, packed: Packed, catalogue: Catalogue) -> Entry:
    entry = catalogue.entries.get(packed.model)
    if entry is None or packed.scale not in entry.files or entry.files[packed.scale].name != packed.file:
        raise WeightsError(
            f"{archive.name} holds {packed.file} of {in_print(packed.model, packed.scale)}, which this version does not know.",
            hint=f"Install the version of the package that packed it, or a later one ({DISTRIBUTION}).",
        )
    return entry


def _state(packed: Packed, entry: Entry, store: Store) -> State:
    """What is to be done with a file, before anything is done.

    Raises:
        WeightsError: It is not the published file, or not the one that was first cached under its name.
    """
    file = entry.files[packed.scale]
    if file.shipped:
        return "comes with the package"
    try:
        here = store.find(entry, packed.scale) is not None
    except WeightsError as error:
        log.info("to be replaced: %s", error.message)
        here = False
    expected = store.expected(file)
    if expected is not None and packed.sha256 != expected:
        known = "the published one" if file.sha256 else "the one that was cached first"
        path = store.path(file)
        hint = "Get the archive from someone else." if file.sha256 else f"To trust the archive, delete {path} and {path}.sha256."
        raise WeightsError(
            f"The {packed.file} of the archive is not {known} (sha256 {packed.sha256[:12]}..., expected {expected[:12]}...).",
            hint=hint,
        )
    return "already here" if here else "imported"


def _extract(archive: Path, bundle: zipfile.ZipFile, manifest: Manifest, folder: Path, on_progress: OnProgress | None) -> None:
    count = _Count(sum(packed.size for packed in manifest.files), on_progress)
    if count.total > (free := shutil.disk_usage(folder).free):
        raise ResourceError(
            f"The disk has {free:,} bytes free; {archive.name} needs {count.total:,}.",
            hint="Free some space, or set HYBRID_CACHE.",
        )
    for packed in manifest.files:
        with (folder / packed.file).open("xb") as target, _sound(archive), bundle.open(packed.file) as source:
            _, digest = _copy(source, target, count)
        if digest != packed.sha256:
            raise _refused(archive, f"is damaged: {packed.file} is not what was packed")


def _path(packed: Packed, entry: Entry, catalogue: Catalogue, store: Store) -> Path:
    file = entry.files[packed.scale]
    return catalogue.package / file.shipped if file.shipped else store.path(file)
