"""What `restore doctor` prints: all that a report of a fault needs, and nothing of the user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hybrid.devices import describe_machine
from hybrid.records import versions
from hybrid.weights import Store
from restore.loading import catalogue


def report() -> str:
    """Versions, machine, devices, weights and write rights, one fact a line."""
    import pyvips  # so that its version is among those listed

    store = Store.from_environment()
    lines = ["restore doctor", "", "versions"]
    lines += [f"  {name} {version}" for name, version in versions().items()]
    lines += ["", "machine", *[f"  {name}: {value}" for name, value in describe_machine().items()]]
    lines += ["", "weights", f"  cache: {_home(store.folder)} ({_rights(store.folder)})"]
    lines += [f"  offline: {'yes' if store.offline else 'no'}; mirror: {store.mirror or 'none'}"]
    for entry in catalogue():
        here = [scale for scale in entry.files if entry.shipped or store.find(entry, scale)]
        lines.append(f"  {entry.name}: {', '.join(f'x{scale}' for scale in here) or 'not here'}")
    lines += [
        "",
        "writing",
        f"  this folder: {_rights(Path.cwd())}",
        f"  temporary folder: {_rights(Path(tempfile.gettempdir()))}",
    ]
    lines += [f"  picture formats: {', '.join(n for n, op in _SAVERS.items() if pyvips.type_find('VipsOperation', op))}"]
    return "\n".join(lines)


_SAVERS = {"png": "pngsave", "jpeg": "jpegsave", "tiff": "tiffsave", "webp": "webpsave", "avif": "heifsave"}


def _home(path: Path) -> str:
    """A path without the user's name."""
    return str(path).replace(str(Path.home()), "~", 1)


def _rights(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return "writable" if os.access(folder, os.W_OK) else "NOT writable"
