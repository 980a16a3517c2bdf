"""Pictures in, box by box, in memory that does not grow with the picture.

A tiled TIFF is read where it lies. Anything else can be decoded from top to bottom only, and is unpacked once into a tiled
file on disk. libvips keeps two rows of tiles of each open picture, and all of what a box touches as long as the picture is
open: so each box opens the file anew. Measured on 20000 x 12000 pixels, boxes of 512 x 512: with tiles of 256 x 256 16 ms
and 16 MB instead of 10 ms and 170 MB, with tiles of 1024 x 1024 43 ms and 58 MB instead of 33 ms and 2.6 GB.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyvips

from hybrid.errors import InputError
from restore.images.metadata import PictureInfo
from restore.images.reading import (
    DAMAGED,
    cmyk_to_srgb,
    info_of,
    metadata_of,
    no_silent_damage,
    open_image,
    orientation_of,
    reason_of,
    whole_range,
)
from restore.images.tiff import is_tiled_tiff

UNPACKED = "input"
"""Name of the unpacked picture; without a suffix, so that no search for pictures finds it."""


class RegionReader:
    """Reads boxes of a picture, as `read_picture` reads the whole: upright, alpha apart, CMYK converted to sRGB.

    Args:
        path: PNG, JPEG, TIFF, WebP or AVIF file, told by its content.
        folder: Where a picture that is no tiled TIFF is unpacked, at its first box; one that is there already is used.

    Attributes:
        info: Facts of the header.
        metadata: What travels with the pixels.

    Raises:
        InputError: As `restore.images.probe`.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        image, file_format = open_image(path)
        self.info: PictureInfo = info_of(path, image, file_format)
        self.metadata = metadata_of(image, self.info)
        self._orientation = orientation_of(image)
        self._bits = image.get("bits-per-sample") if file_format == "avif" and self.info.dtype == "uint16" else None
        self._unpacked = None if file_format == "tiff" and is_tiled_tiff(path) else folder / UNPACKED

    def read(self, rows: slice, columns: slice) -> tuple[np.ndarray, np.ndarray | None]:
        """Colours (h, w, 1 or 3) and alpha (h, w) or None of a box of the upright picture.

        Raises:
            InputError: The file is damaged or cut short there.
            OSError: There is no space to unpack it.
        """
        try:
            if self._unpacked is not None and not self._unpacked.exists():
                self._unpack(self._unpacked)
            box = self._open().crop(columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
            with no_silent_damage():
                stored = np.asarray(box.numpy()).reshape(box.height, box.width, box.bands)
        except pyvips.Error as error:
            raise InputError(f"{self.info.path} is damaged or cut short ({reason_of(error)}).", hint=DAMAGED) from error
        if self._bits is not None:
            stored = whole_range(stored, self._bits)
        return stored[..., : self.info.channels], stored[..., self.info.channels] if self.info.alpha else None

    def _open(self) -> pyvips.Image:
        if self._unpacked is not None:
            image = pyvips.Image.tiffload(str(self._unpacked), access="random", fail_on="error")
        else:
            image, _ = open_image(self.info.path, "random")
        if self.info.kind == "cmyk":
            image = cmyk_to_srgb(image, self.info)
        image = image.copy()
        image.set_type(pyvips.GValue.gint_type, "orientation", self._orientation)
        return image.autorot()

    def _unpack(self, target: Path) -> None:
        """Decode from top to bottom into an uncompressed tiled file, which takes its name once it is whole."""
        image, _ = open_image(self.info.path)
        part = target.with_name(target.name + "-part")
        with no_silent_damage():
            image.tiffsave(str(part), tile=True, tile_width=256, tile_height=256, compression="none", bigtiff=True, keep="icc")
        os.replace(part, target)
