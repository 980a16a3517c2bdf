"""What libvips cannot be told about PNG files: to leave a chunk out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

SIGNATURE = 8  # bytes before the first chunk
FRAME = 12  # bytes of a chunk beside its data: length, type and checksum (PNG specification, section 5.3)


def remove_chunk(path: Path, kind: bytes) -> None:
    """Write the file anew without the first chunk of a kind, looking no further than the pixels."""
    with path.open("rb") as file:
        position = SIGNATURE
        while True:
            file.seek(position)
            head = file.read(8)
            size = FRAME + int.from_bytes(head[:4], "big")
            if len(head) < 8 or head[4:] == b"IDAT":
                return
            if head[4:] == kind:
                break
            position += size
        rest = path.with_name(path.name + ".rest")
        with rest.open("wb") as target:
            file.seek(0)
            target.write(file.read(position))
            file.seek(position + size)
            shutil.copyfileobj(file, target, 2**20)
    os.replace(rest, path)
