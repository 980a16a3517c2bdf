"""The picture networks. The registry is plain data and imports no torch; a network's file is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from restore.models.base import Family

MODULES = {
    "hat": "restore.models.hat",
    "drct": "restore.models.drct",
    "craft": "restore.models.craft",
    "cfsr": "restore.models.cfsr",
    "espcn": "restore.models.espcn",
    "nafnet": "restore.models.nafnet",
    "restormer": "restore.models.restormer",
    "hinet": "restore.models.hinet",
    "mprnet": "restore.models.mprnet",
    "mirnet": "restore.models.mirnet",
    "restore_rwkv": "restore.models.restore_rwkv",
    "restoreformer": "restore.models.restoreformer",
    "mixer": "restore.models.mixer_net",
}
"""Family name to the module that holds its `FAMILY`."""


def family(name: str) -> Family:
    """Import one family by its registry name."""
    found: Family = import_module(MODULES[name]).FAMILY
    return found
