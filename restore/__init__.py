"""Pictures: super-resolution and restoration with published networks.

    import restore
    network = restore.load_model("hat", scale=4)        # or the path of any published checkpoint
    output = network(batch)                             # (B, 3, H, W) in [0, 1] to (B, 3, 4 H, 4 W)
    restore.restore_file(network, Path("input.png"), Path("output.png"))

Importing the package imports no torch; the functions do when they are called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from restore.loading import load_model

if TYPE_CHECKING:
    from restore.images import read_picture, write_picture
    from restore.restoration.run import restore_file, restore_picture

__all__ = ["load_model", "read_picture", "restore_file", "restore_picture", "write_picture"]

_HOMES = {
    "read_picture": "restore.images",
    "write_picture": "restore.images",
    "restore_file": "restore.restoration.run",
    "restore_picture": "restore.restoration.run",
}


def __getattr__(name: str) -> Any:
    """Functions whose modules import torch come when they are asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'restore' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
