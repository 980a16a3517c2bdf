"""Files whose headers are not trusted: a read takes no more memory than the file can fill."""

from __future__ import annotations

import io
import os
from pathlib import Path

SMALL = 1 << 20
"""Bytes that may be asked for unasked."""


class BoundedReader(io.BufferedReader):
    """A file that reads no further than its end.

    Readers of pictures and scans ask for as many bytes as a header claims, and Python takes the memory for all of them
    before it reads the few that there are.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """So many bytes, or those that are left."""
        if size is not None and size > SMALL:
            size = min(size, max(SMALL, os.fstat(self.fileno()).st_size - self.tell()))
        return super().read(size)


def open_bounded(path: Path) -> BoundedReader:
    """Open a file to read it.

    Raises:
        OSError: It cannot be opened.
    """
    return BoundedReader(io.FileIO(path))
