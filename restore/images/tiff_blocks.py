"""Whether a TIFF file lists the strips or tiles that its picture asks for (TIFF 6.0, sections 3 and 15).

libtiff takes those that are not listed for empty, and libvips then goes through all of them, which may be millions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybrid.errors import InputError
from restore.images.tiff import DAMAGE, SIZES, first_records

WIDTH, HEIGHT, COMPRESSION, SAMPLES, ROWS_PER_STRIP, PLANES, TILE_WIDTH, TILE_HEIGHT = 256, 257, 259, 277, 278, 284, 322, 323
SINGLE = {WIDTH, HEIGHT, COMPRESSION, SAMPLES, ROWS_PER_STRIP, PLANES, TILE_WIDTH, TILE_HEIGHT}
OFFSETS, BYTE_COUNTS = (273, 324), (279, 325)
"""Of strips and of tiles. libtiff takes either tag, and the later of the two in a file that has both."""
INTEGERS = {1, 3, 4, 6, 8, 9, 16, 17}  # types
OLD_JPEG = 6
"""Compression that needs no list of strips."""
MOST_TILES_ACROSS = 4096
"""Reading whole rows of tiles takes libvips (8.18) a time that grows with the square of their number, and more."""


@dataclass(frozen=True)
class Blocks:
    """Strips or tiles of a picture.

    Attributes:
        tiled: Whether they are tiles.
        across: How many are beside each other; 1 for strips.
        needed: How many the size asks for, of all planes.
        listed: How many the shorter list holds, of offsets or of sizes in bytes.
    """

    tiled: bool
    across: int
    needed: int
    listed: int


def blocks_of(path: Path) -> Blocks | None:
    """Strips or tiles of the first picture of a TIFF file; None where its directory is damaged or does not tell."""
    try:
        values, lists = _read(path)
    except DAMAGE:
        return None
    width, height = values.get(WIDTH, 0), values.get(HEIGHT, 0)
    if not width or not height or not lists or values.get(COMPRESSION) == OLD_JPEG:
        return None
    tiled = TILE_WIDTH in values
    across = _ratio(width, values[TILE_WIDTH]) if tiled else 1
    down = _ratio(height, values.get(TILE_HEIGHT if tiled else ROWS_PER_STRIP, height))
    planes = values.get(SAMPLES, 1) if values.get(PLANES) == 2 else 1
    return Blocks(tiled, across, across * down * planes, min(lists.values()))


def check_blocks(path: Path) -> None:
    """Refuse a TIFF file that does not list all of its picture.

    Raises:
        InputError: Offsets or sizes of strips or tiles are missing.
    """
    blocks = blocks_of(path)
    if blocks is not None and blocks.listed < blocks.needed:
        what = "tiles" if blocks.tiled else "strips"
        raise InputError(
            f"{path} is damaged or cut short (it lists {blocks.listed} of {blocks.needed} {what}).",
            hint="Copy or export the file again.",
        )


def check_tiles_across(path: Path) -> None:
    """Refuse a TIFF file that takes minutes to read as a whole, however few its pixels.

    Raises:
        InputError: More than `MOST_TILES_ACROSS` tiles are beside each other.
    """
    blocks = blocks_of(path)
    if blocks is not None and blocks.across > MOST_TILES_ACROSS:
        raise InputError(
            f"{path} has {blocks.across} tiles beside each other, more than the limit of {MOST_TILES_ACROSS}.",
            hint="Save it with larger tiles, or in strips.",
        )


def _read(path: Path) -> tuple[dict[int, int], dict[tuple[int, int], int]]:
    """Single values by their tags, and the lengths of lists; of a tag that is given twice libtiff takes the first."""
    values: dict[int, int] = {}
    lists: dict[tuple[int, int], int] = {}
    seen = set()
    layout, records = first_records(path)
    for tag, kind, count, field in records:
        if tag in seen or kind not in INTEGERS:
            continue
        seen.add(tag)
        if tag in SINGLE and count == 1:
            size = min(SIZES[kind], len(field))
            values[tag] = int.from_bytes(field[:size], "little" if layout.order == "<" else "big")
        for pair in (OFFSETS, BYTE_COUNTS):
            if tag in pair:
                lists[pair] = count
    return values, lists


def _ratio(size: int, step: int) -> int:
    """How many steps cover a size; a step of 0 is damage, and counts as 1."""
    return -(-size // max(step, 1))
