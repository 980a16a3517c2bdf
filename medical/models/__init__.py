"""The segmentation networks. The registry is plain data and imports no torch; a network is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medical.models.base import Family

MODULES = {
    "swin_unetr": "medical.models.swin_unetr",
    "neunet": "medical.models.neunet",
}
"""Family name to the module that holds its `FAMILY`."""


def family(name: str) -> Family:
    """Import one family by its registry name."""
    return import_module(MODULES[name]).FAMILY
