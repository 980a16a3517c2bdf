"""What `restore doctor` prints: all that a report of a fault needs, and nothing of the user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from hybrid.devices import describe_machine
from hybrid.records import versions
from hybrid.weights.find import Store, weights_state
from restore.loading import catalogue


def report() -> str:
    """Versions, machine, devices, weights and write rights, one fact a line."""
    import pyvips  # so that its version is among those listed

    store = Store.from_environment()
    lines = ["restore doctor", "", "versions"]
    lines += [f"  {name} {version}" for name, version in versions().items()]
    lines += ["", "machine", *[f"  {name}: {value}" for name, value in describe_machine().items()]]
    lines += ["", "weights", f"  cache: {_home(store.folder)} ({_rights(store.folder)})"]
    lines += [f"  offline: {'yes' if store.offline else 'no'}; mirror: {_host(store.mirror)}"]
    known = catalogue()
    lines += [f"  {entry.name}: {weights_state(entry, store, known)}" for entry in known]
    lines += [
        "",
        "writing",
        f"  this folder: {_rights(Path())}",
        f"  temporary folder: {_rights(Path(tempfile.gettempdir()))}",
    ]
    lines += [f"  picture formats: {', '.join(n for n, op in _SAVERS.items() if pyvips.type_find('VipsOperation', op))}"]
    return "\n".join(lines)


_SAVERS = {"png": "pngsave", "jpeg": "jpegsave", "tiff": "tiffsave", "webp": "webpsave", "avif": "heifsave"}


def _home(path: Path) -> str:
    """A path without the user's name."""
    return str(Path("~") / path.relative_to(Path.home())) if path.is_relative_to(Path.home()) else str(path)


def _host(address: str | None) -> str:
    """Where a mirror is, without the password that its address may hold."""
    return "none" if address is None else urlsplit(address).hostname or "not an address"


def _rights(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return "writable" if os.access(folder, os.W_OK) else "NOT writable"
