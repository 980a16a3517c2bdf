"""The provenance record that goes with every output, and the two small pieces it stands on: hashing and atomic writing.

A record says what went in, what ran and what came out, so that a result can be traced and repeated. It holds file
names and hashes, and neither folders nor names of people. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

from hybrid.errors import OutputError

DISTRIBUTION = "hybrid-imaging"
_CHUNK = 1 << 20
# A drive or none, a home folder (whose name may hold blanks) or none, further folders without blanks.
_FOLDERS = re.compile(
    r"""(?:(?<=[\s"'(=,\[])|^)(?:[A-Za-z]:|~)?[\\/]+(?=[^\s\\/])"""
    r"""(?:(?:home|Users)[\\/]+[^\\/\n]+[\\/]+)?(?:[^\\/\s"')\],]+[\\/]+)*"""
)


@dataclass(frozen=True)
class Record:
    """What one output is made of. Build it after the run and write it with `write_record`.

    Folders are cut off from `input`, `output` and `weights`, and from paths that the free texts quote.

    Attributes:
        task: The command or task, such as ``sr``.
        input: File name of what was read.
        input_sha256: Hash of its bytes.
        output: File name of what was written.
        weights: File name of the weights.
        weights_sha256: Hash of their bytes.
        weights_origin: ``file``, ``cache``, ``download`` or ``shipped``.
        family: Registry name of the architecture.
        title: Name of the model in print.
        device: Where it ran, such as ``cpu`` or ``cuda:0 (NVIDIA A100)``.
        precision: Compute type, such as ``float32``.
        started: ISO 8601 time with its zone; see `timestamp`.
        seconds: Time of the run.
        tiles: The tile plan in one line; empty when the input was taken whole.
        seed: Seed of the run, or None where nothing random took part.
        versions: Names and versions of the software; see `versions`.
        notes: What else the reader must know, such as a fallback that took place.
        figures: Numbers that belong to the result, such as the scale of a map; plain JSON values, left out where there are none.
        precision_check: Why the precision was chosen, where it was left to the program; left out where it was not.
    """

    task: str
    input: str
    input_sha256: str
    output: str
    weights: str
    weights_sha256: str
    weights_origin: str
    family: str
    title: str
    device: str
    precision: str
    started: str
    seconds: float
    tiles: str = ""
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=lambda: versions())
    notes: tuple[str, ...] = ()
    figures: Mapping[str, object] = field(default_factory=dict)
    precision_check: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("input", "output", "weights"):
            object.__setattr__(self, name, _base_name(getattr(self, name)))
        for name in ("title", "device", "tiles"):
            object.__setattr__(self, name, without_folders(getattr(self, name)))
        object.__setattr__(self, "notes", tuple(without_folders(note) for note in self.notes))

    def to_dict(self) -> dict[str, object]:
        """The record as plain JSON types, keys in the order of the attributes."""
        facts = asdict(self) | {"versions": dict(self.versions), "notes": list(self.notes)}
        return {key: value for key, value in facts.items() if key not in ("figures", "precision_check") or value}

    def to_json(self, *, compact: bool = False) -> str:
        """The record as JSON: indented for a side file, or `compact` on one line for PNG text, TIFF tags and logs."""
        if compact:
            return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Read a record back, as `to_json` wrote it. Unknown keys of a later version are passed over.

        Raises:
            ValueError: The text is not such a record.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError("a record is one JSON object")
        known = {f.name for f in fields(cls)}
        try:
            record = cls(**{key: value for key, value in values.items() if key in known})
        except TypeError as error:
            raise ValueError(f"not a complete record: {error}") from error
        return record


def record_path(output: Path) -> Path:
    """Where the record of `output` lies: beside it, named after it.

    >>> record_path(Path("out/photo.png")).name
    'photo.png.json'
    """
    return output.with_name(output.name + ".json")


def write_record(record: Record, output: Path) -> Path:
    """Write the record beside its output, whole or not at all, and return its path.

    Raises:
        OutputError: The folder does not take the file.
    """
    path = record_path(output)
    try:
        with replacing(path) as part:
            part.write_text(record.to_json(), encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"The record {path.name} could not be written: {error.strerror}.", hint="Choose another output folder with -o."
        ) from error
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; what was written there takes its place when the block ends well.

    When the block fails or is interrupted, the temporary file is removed and `path` stays as it was. The suffix is
    kept, since some writers choose their format by it.
    """
    part = path.with_name(f".{secrets.token_hex(6)}{path.suffix}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write or replace a file, whole or not at all, and make its folder if need be.

    Raises:
        OutputError: The place does not take the file; an older file of the name is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise OutputError(
            f"{path.name} cannot be written: {error.strerror}.", hint="Choose another output folder with -o."
        ) from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits, read in pieces so that its size does not matter."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of this package, Python, torch and numpy, and of libvips where pictures have been read with it."""
    found = {DISTRIBUTION: _installed(DISTRIBUTION), "python": platform.python_version()}
    found |= {name: _installed(name) for name in ("torch", "numpy")}
    # Asked only of a pyvips that is in use: importing it loads the library, which a run on volumes does not need.
    if (pyvips := sys.modules.get("pyvips")) is not None:
        found["libvips"] = ".".join(str(pyvips.version(part)) for part in range(3))
    return found


def timestamp() -> str:
    """Now in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def without_folders(text: str) -> str:
    """Cut the folders off absolute paths that a text quotes, since folders carry names of people and places.

    >>> without_folders("tile of '/home/ann/scan.png' retried; see https://example.org/a/b")
    "tile of 'scan.png' retried; see https://example.org/a/b"
    """
    return _FOLDERS.sub("", text)


def _base_name(name: str) -> str:
    """The last component, whichever system wrote the path."""
    return re.split(r"[\\/]", name)[-1]


def _installed(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
