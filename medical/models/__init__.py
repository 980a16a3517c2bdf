"""The segmentation networks. The registry is plain data and imports no torch; a network is imported when it is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medical.models.base import Family

MODULES = {
    "swin_unetr": "medical.models.swin_unetr",
    "cross_d_conv": "medical.models.cross_d_conv",
    "cross_d_unet": "medical.models.cross_d_unet",
    "neunet": "medical.models.neunet",
    "cswin_unet": "medical.models.cswin_unet",
    "mixer_unet": "medical.models.mixer_unet",
}
"""Family name to the module that holds its `FAMILY`."""


def family(name: str) -> Family:
    """Import one family by its registry name."""
    found: Family = import_module(MODULES[name]).FAMILY
    return found
