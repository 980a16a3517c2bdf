"""Writing the files of a benchmark: each appears whole or not at all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyvips
from numpy.typing import NDArray

from hybrid.errors import OutputError
from hybrid.records import replacing


def write_bytes(path: Path, data: bytes) -> None:
    """Write or replace a file and make its folder if need be.

    Raises:
        OutputError: The place does not take the file; an older file of the name is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(data)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}.", hint="Choose another output folder.") from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode("utf-8"))


def write_png(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write ``(H, W)`` or ``(H, W, C)`` uint8 as PNG without metadata."""
    write_bytes(path, pyvips.Image.new_from_array(np.ascontiguousarray(picture)).pngsave_buffer(keep="none"))
