"""Lists of strips and tiles in TIFF files: too short ones are refused at the header, and odd but whole files are read."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile

from hybrid.errors import InputError
from restore.images import probe, read_picture
from restore.images.regions import RegionReader
from restore.images.tiff_blocks import MOST_TILES_ACROSS, Blocks, blocks_of

PICTURE = np.random.default_rng(3).integers(0, 256, (20, 24, 3), np.uint8)
TILES, STRIPS = {"tile": (16, 16)}, {"rowsperstrip": 4}
OFFSETS, BYTE_COUNTS, ROWS_PER_STRIP, HEIGHT = {273, 324}, {279, 325}, {278}, {257}


def tiff(**options: Any) -> bytes:
    stream = io.BytesIO()
    values = PICTURE.transpose(2, 0, 1) if options.get("planarconfig") == "separate" else PICTURE
    tifffile.imwrite(stream, values, photometric="rgb", metadata=None, **options)
    return stream.getvalue()


def place_of(data: bytes, tags: set[int]) -> tuple[tifffile.TiffTag, str]:
    """A record of the first directory, and how its count is packed."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        (tag,) = (tag for tag in file.pages[0].tags if tag.code in tags)  # type: ignore[union-attr]
        return tag, file.byteorder + ("Q" if file.is_bigtiff else "I")


def with_count(data: bytes, tags: set[int], change: int) -> bytes:
    """A list that claims to be longer or shorter than it is."""
    tag, packed = place_of(data, tags)
    body = bytearray(data)
    struct.pack_into(packed, body, tag.offset + 4, tag.count + change)
    return bytes(body)


def with_height(data: bytes, height: int) -> bytes:
    tag, packed = place_of(data, HEIGHT)
    body = bytearray(data)
    struct.pack_into(packed[0] + "I", body, tag.valueoffset, height)
    return bytes(body)


def without(data: bytes, tags: set[int]) -> bytes:
    """A directory of classic TIFF with a record less."""
    tag, packed = place_of(data, tags)
    (first,) = struct.unpack_from(packed, data, 4)
    (count,) = struct.unpack_from(packed[0] + "H", data, first)
    end = first + 2 + 12 * count + 4
    kept = data[first + 2 : tag.offset] + data[tag.offset + 12 : end]
    return data[:first] + struct.pack(packed[0] + "H", count - 1) + kept + bytes(12) + data[end:]


WHOLE: dict[str, Callable[[], bytes]] = {
    "one strip": tiff,
    "strips": lambda: tiff(**STRIPS),
    "tiles": lambda: tiff(**TILES),
    "planes in strips": lambda: tiff(planarconfig="separate", **STRIPS),
    "BigTIFF": lambda: tiff(bigtiff=True, **TILES),
    "big-endian": lambda: tiff(byteorder=">", **STRIPS),
    "big-endian BigTIFF of planes": lambda: tiff(byteorder=">", bigtiff=True, planarconfig="separate", **STRIPS),
    "packed": lambda: tiff(compression="zlib", **TILES),
    "no rows per strip": lambda: without(tiff(), ROWS_PER_STRIP),
    "no byte counts": lambda: without(tiff(), BYTE_COUNTS),
    "neither": lambda: without(without(tiff(), BYTE_COUNTS), ROWS_PER_STRIP),
    "two pages": lambda: two_pages(),
}
"""libvips (8.18) reads no tiles of separate planes."""


def two_pages() -> bytes:
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(PICTURE, photometric="rgb", metadata=None, **TILES)
        file.write(np.zeros((300, 300), np.uint8), photometric="minisblack", metadata=None, **TILES)
    return stream.getvalue()


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files_are_read(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    path.write_bytes(WHOLE[kind]())
    assert (probe(path).height, probe(path).width) == PICTURE.shape[:2]
    np.testing.assert_array_equal(read_picture(path).colour, PICTURE)
    colour, _ = RegionReader(path, tmp_path).read(slice(3, 19), slice(5, 22))
    np.testing.assert_array_equal(colour, PICTURE[3:19, 5:22])


@pytest.mark.parametrize("options", [STRIPS, STRIPS | {"bigtiff": True}], ids=["classic", "big"])
def test_lists_that_are_longer_than_needed(options: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    path.write_bytes(with_height(tiff(**options), 8))
    assert blocks_of(path) == Blocks(tiled=False, across=1, needed=2, listed=5)
    np.testing.assert_array_equal(read_picture(path).colour, PICTURE[:8])


@pytest.mark.parametrize("tags", [OFFSETS, BYTE_COUNTS], ids=["offsets", "byte counts"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (STRIPS, "4 of 5 strips"),
        (TILES, "3 of 4 tiles"),
        (STRIPS | {"planarconfig": "separate"}, "14 of 15 strips"),
        (TILES | {"planarconfig": "separate"}, "11 of 12 tiles"),
        (TILES | {"bigtiff": True}, "3 of 4 tiles"),
        (STRIPS | {"byteorder": ">"}, "4 of 5 strips"),
    ],
    ids=["strips", "tiles", "planes in strips", "planes in tiles", "BigTIFF", "big-endian"],
)
def test_lists_that_are_too_short_are_refused_at_the_header(
    tags: set[int], options: dict[str, Any], said: str, tmp_path: Path
) -> None:
    path = tmp_path / "picture.tif"
    path.write_bytes(with_count(tiff(**options), tags, -1))
    for read in (probe, read_picture, lambda path: RegionReader(path, tmp_path)):
        with pytest.raises(InputError, match=f"lists {said}") as caught:
            read(path)
        assert caught.value.hint
    assert [each.name for each in tmp_path.iterdir()] == ["picture.tif"]


def test_a_size_that_the_lists_do_not_reach_is_refused(tmp_path: Path) -> None:
    """As of a fuzzed file, for which libvips went through a quarter of a million tiles that were not there."""
    path = tmp_path / "picture.tif"
    path.write_bytes(with_height(tiff(**STRIPS), 1_000_000))
    with pytest.raises(InputError, match="lists 5 of 250000 strips"):
        probe(path)


def test_more_tiles_beside_each_other_than_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "wide.tif"
    wide = np.zeros((16, 16 * MOST_TILES_ACROSS + 1), np.uint8)
    tifffile.imwrite(path, wide, tile=(16, 16), metadata=None)
    assert probe(path).width == wide.shape[1]
    with pytest.raises(InputError, match=f"{MOST_TILES_ACROSS + 1} tiles beside each other") as caught:
        read_picture(path)
    assert caught.value.hint and "larger tiles" in caught.value.hint
    colour, _ = RegionReader(path, tmp_path).read(slice(0, 3), slice(60_000, 60_010))
    assert colour.shape == (3, 10, 1)
    tifffile.imwrite(path, wide, tile=(32, 32), metadata=None)
    np.testing.assert_array_equal(read_picture(path).colour[..., 0], wide)


def test_a_damaged_directory_tells_nothing(tmp_path: Path) -> None:
    path = tmp_path / "picture.tif"
    whole = tiff(**TILES)
    for data in (b"", b"II", whole[:20], b"II*\0" + b"\xff" * 4 + whole[8:], b"MM\0*"):
        path.write_bytes(data)
        assert blocks_of(path) is None
