"""Rows of a large picture on disk, written and read in boxes, so that memory holds a box at a time.

Rows lie in files of `BAND` rows each, which go as soon as nobody needs them. Writing the same box again changes nothing:
whoever was broken off may repeat what came after the last `sync`. Axes: (H, W, P), P planes being the colours and alpha.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hybrid.tiles.plan import TilePlan

BAND = 256
"""Rows of one file."""


class RowFiles:
    """Rows of one width, by their places in the whole picture.

    Args:
        folder: Where the files lie; it exists.
        name: What their names begin with.
        width, planes: Of each row.
        dtype: Sample type, little-endian on disk.
    """

    def __init__(self, folder: Path, name: str, width: int, planes: int, dtype: str) -> None:
        self.folder, self.name, self.width, self.planes = folder, name, width, planes
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self._unsynced: set[Path] = set()

    def write(self, top: int, left: int, block: np.ndarray) -> None:
        """Store a block (h, w, planes)."""
        block = np.ascontiguousarray(block, self.dtype)
        for path, first, rows in self._bands(top, top + len(block)):
            path.touch(mode=0o600)
            with path.open("r+b") as file:
                for row in rows:
                    file.seek(self._position(row - first, left))
                    file.write(block[row - top].data)
            self._unsynced.add(path)

    def read(self, rows: slice, columns: slice) -> np.ndarray:
        """The block (h, w, planes) of a box that was written."""
        block = np.empty((rows.stop - rows.start, columns.stop - columns.start, self.planes), self.dtype)
        for path, first, inside in self._bands(rows.start, rows.stop):
            with path.open("rb") as file:
                for row in inside:
                    file.seek(self._position(row - first, columns.start))
                    if file.readinto(block[row - rows.start].data) < block[0].nbytes:
                        raise OSError(0, f"{path.name} is cut short")
        return block

    def drop(self, end: int | None = None) -> None:
        """Delete the files that hold rows before `end` alone; all of them without one."""
        for path in self.folder.glob(f"{self.name}-*"):
            if end is None or (int(path.name.rpartition("-")[2]) + 1) * BAND <= end:
                path.unlink(missing_ok=True)
                self._unsynced.discard(path)

    def sync(self) -> None:
        """Bring what was written to the disk itself, where it outlives a loss of power."""
        for path in self._unsynced:
            with path.open("r+b") as file:
                os.fsync(file.fileno())
        self._unsynced.clear()

    def _bands(self, top: int, end: int) -> Iterator[tuple[Path, int, range]]:
        """Files over rows `top` to `end`, the first row that each holds, and those of the asked rows that lie in it."""
        for first in range(top // BAND * BAND, end, BAND):
            yield self.folder / f"{self.name}-{first // BAND}", first, range(max(top, first), min(end, first + BAND))

    def _position(self, row: int, column: int) -> int:
        return (row * self.width + column) * self.planes * self.dtype.itemsize


class StripFiles:
    """The strips between rows of tiles on disk (`hybrid.tiles.stream.Strips`), each until it is dropped.

    Args:
        folder: Where the files lie; it exists.
        plan: Whose rows of tiles hand on strips.
        planes: Of the result.
    """

    def __init__(self, folder: Path, plan: TilePlan, planes: int) -> None:
        tops, ends = zip(*plan.supports[0], strict=True)
        self._heights = [0, *(end - top for end, top in zip(ends[:-1], tops[1:], strict=True))]
        width = plan.shape[1] * plan.scale
        self._files = [RowFiles(folder, f"strip-{row}", width, planes, "float32") for row in range(plan.grid[0])]

    def read(self, row: int, left: int, right: int) -> Tensor:
        """Columns of what is handed to `row` of tiles, (planes, h, right - left) float32."""
        block = self._files[row].read(slice(0, self._heights[row]), slice(left, right))
        return torch.from_numpy(block.astype(np.float32, copy=False)).permute(2, 0, 1)

    def write(self, row: int, left: int, block: Tensor) -> None:
        """Keep (planes, h, w) of what `row` of tiles hands on, from column `left`."""
        self._files[row].write(0, left, block.permute(1, 2, 0).numpy())

    def sync(self, row: int) -> None:
        """Bring the strip that is handed to `row` of tiles to the disk itself; none follows the last row."""
        if row < len(self._files):
            self._files[row].sync()

    def drop(self, row: int) -> None:
        """Delete the strip that was handed to `row` of tiles."""
        self._files[row].drop()
