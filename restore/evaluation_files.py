"""Writing the texts and pictures of a benchmark: each file appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray

from hybrid.records import write_bytes


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `hybrid.records.write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write ``(H, W)`` or ``(H, W, C)`` uint8 as PNG without metadata."""
    write_bytes(path, pyvips.Image.new_from_array(np.ascontiguousarray(picture)).pngsave_buffer(keep="none"))
