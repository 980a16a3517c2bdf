"""Scans: segmentation of volumes with published networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NoReturn

from hybrid.errors import RequestError


def load_model(source: str | Path, *, device: str = "auto", precision: str = "float32", **config: Any) -> NoReturn:
    """Load a segmentation network by name or from a published checkpoint.

    Raises:
        RequestError: Always, in this version: no segmentation network is part of it.
    """
    raise RequestError(
        f"This version has no segmentation networks, so {str(source)!r} cannot be loaded.",
        hint="For pictures use restore.load_model.",
    )
