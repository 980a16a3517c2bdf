"""Files of a benchmark: pictures of 8 bits are read; texts and pictures are written, each whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray

from hybrid.errors import InputError
from hybrid.records import write_bytes
from restore.images import read_picture


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `hybrid.records.write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write ``(H, W)`` or ``(H, W, C)`` uint8 as PNG without metadata."""
    write_bytes(path, pyvips.Image.new_from_array(np.ascontiguousarray(picture)).pngsave_buffer(keep="none"))


def read_8_bits(path: Path) -> NDArray[np.uint8]:
    """A picture of 8 bits as ``(H, W, 1 or 3)``.

    Raises:
        InputError: It cannot be read, or has more bits.
    """
    picture = read_picture(path).colour
    if picture.dtype != np.uint8:
        raise InputError(f"{path} holds {picture.dtype}; the benchmark is defined on 8 bits.", hint="Convert it to 8 bits first.")
    return picture
