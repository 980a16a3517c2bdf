"""Pictures out: one way to write, row by row through a scratch file, so that a result may be larger than memory."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

import numpy as np
import pyvips

from hybrid.errors import OutputError
from restore.images.metadata import Picture, PictureMetadata
from restore.images.plan import OutputPlan, SaveOptions, check_output, plan_output
from restore.images.png import remove_chunk
from restore.images.reading import ERRORS
from restore.images.tiff import attach_blocks, scratch_header
from restore.images.values import from_unit, to_unit

ENCODERS = {"png": "pngsave", "jpeg": "jpegsave", "tiff": "tiffsave", "webp": "webpsave", "avif": "heifsave"}
ROWS = 64  # rows handed on at a time by write_picture
DEFAULT_DPI = (72.0, 72.0)  # what EXIF, tag 0x011A, tells to assume; stands where libvips writes a number and none is known
BIGTIFF_FROM = 3 * 2**30  # bytes of pixels: classic TIFF ends at 4 GB, and deflate can add a little
AVIF_MOST = 4095  # white with 12 bits


def write_picture(path: str | Path, picture: Picture, options: SaveOptions | None = None) -> tuple[str, ...]:
    """Write a picture atomically, replacing a file of that name.

    Args:
        path: File to write.
        picture: Upright picture, alpha not premultiplied.
        options: How to encode; `SaveOptions()` if None.

    Returns:
        What the format cannot carry, one sentence each; `picture.metadata.notes` tells what reading changed.

    Raises:
        RequestError: The format cannot hold the picture, or the suffix is unknown.
        OutputError: The file cannot be written; nothing is left behind, and a file that was there is unchanged.
    """
    colour, alpha = picture.colour, picture.alpha
    height, width, channels = colour.shape
    with PictureWriter(
        path,
        width,
        height,
        channels,
        alpha=alpha is not None,
        dtype=colour.dtype.name,
        metadata=picture.metadata,
        options=options,
    ) as writer:
        for y in range(0, height, ROWS):
            rows = colour[y : y + ROWS]
            writer.write_rows(y, rows if alpha is None else np.dstack((rows, alpha[y : y + ROWS])))
    return writer.notes


class PictureWriter:
    """Writes a picture of any size from top to bottom; memory stays bounded for PNG, TIFF and JPEG.

    Rows go to a scratch file of the picture's uncompressed size in the output's folder; leaving the `with` block encodes it
    and moves the result into place. An exception in the block, or too few rows, leaves no trace.

    Args:
        path: File to write or replace.
        width: Pixels across.
        height: Pixels down.
        channels: 1 (gray) or 3 (RGB).
        alpha: Whether the rows have one channel more, alpha that is not premultiplied.
        dtype: Sample type of the rows: "uint8", "uint16" or "float32".
        metadata: What travels along; nothing if None.
        options: How to encode; `SaveOptions()` if None.

    Attributes:
        plan: What will be written.
        notes: What the format cannot carry, one sentence each.

    Raises:
        RequestError: The suffix is unknown, or the format cannot hold such a picture.
        OutputError: The folder is missing or cannot be written to; in the block and at its end also: the disk is full.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        channels: int,
        *,
        alpha: bool = False,
        dtype: str = "uint8",
        metadata: PictureMetadata | None = None,
        options: SaveOptions | None = None,
    ) -> None:
        self._options = options or SaveOptions()
        self._path = check_output(path, overwrite=True, format=self._options.format)
        self.plan = plan_output(self._path, (height, width, channels), dtype, alpha, metadata or PictureMetadata(), self._options)
        self.notes = self.plan.notes
        self._next_row = 0

    def __enter__(self) -> PictureWriter:
        plan = self.plan
        # The name is chosen before the folder is made: an interruption at any point between finds what to remove.
        self._folder = self._path.parent / f".writing-{secrets.token_hex(6)}"
        self._scratch = self._folder / "rows.tif"
        try:
            self._folder.mkdir(mode=0o700)
            self._file = self._scratch.open("wb")
            self._file.write(scratch_header(plan.width, plan.height, plan.channels + plan.alpha, np.dtype(plan.dtype)))
        except BaseException as error:
            self._remove_folder()
            if isinstance(error, OSError):
                raise _failed(self._path, error.strerror) from error
            raise
        return self

    def write_rows(self, y: int, rows: np.ndarray) -> None:
        """Append rows.

        Args:
            y: Index of the first of them; the number of rows written so far.
            rows: (h, W, channels [+ 1 with alpha]) of the writer's dtype.

        Raises:
            ValueError: Rows out of order, too many, or of another shape or dtype.
            OutputError: They cannot be stored, as on a full disk.
        """
        plan = self.plan
        expected = (plan.width, plan.channels + plan.source_alpha)
        if (
            y != self._next_row
            or y + len(rows) > plan.height
            or rows.shape[1:] != expected
            or rows.dtype.name != plan.source_dtype
        ):
            raise ValueError(
                f"Got rows {rows.shape} of {rows.dtype} at {y}; row {self._next_row} of {plan.height} is next, "
                f"as (h, {expected[0]}, {expected[1]}) of {plan.source_dtype}."
            )
        try:
            self._file.write(_stored(plan, rows).data)
        except OSError as error:
            raise _failed(self._path, error.strerror) from error
        self._next_row += len(rows)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._close(quietly=kind is not None)
            if kind is None:
                self._finish()
        finally:
            self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _close(self, *, quietly: bool) -> None:
        """Close the scratch file. Its last buffered rows may fail to reach a full disk; after another error that adds nothing."""
        try:
            self._file.close()
        except OSError as error:
            if not quietly:
                raise _failed(self._path, error.strerror) from error

    def _finish(self) -> None:
        if self._next_row != self.plan.height:
            raise OutputError(f"Only {self._next_row} of {self.plan.height} rows of {self._path} were made; nothing was written.")
        result = self._folder / "result"
        try:
            with ERRORS:
                _encode(self._scratch, result, self.plan, self._options)
            os.replace(result, self._path)
        except pyvips.Error as error:
            reason = str(error.detail).strip() or error.message
            raise _failed(self._path, reason.splitlines()[-1]) from error
        except OSError as error:
            raise _failed(self._path, error.strerror) from error


def _failed(path: Path, reason: str | None) -> OutputError:
    return OutputError(f"{path} cannot be written ({reason}).", hint="Check the disk's free space and the folder's permissions.")


def _stored(plan: OutputPlan, rows: np.ndarray) -> np.ndarray:
    """Rows as the file will hold them: alpha laid on white, sample type changed, little-endian and contiguous."""
    if plan.source_alpha and not plan.alpha:
        unit = to_unit(rows)
        colour, alpha = unit[..., :-1], unit[..., -1:]
        rows = from_unit(colour * alpha + (1 - alpha), plan.source_dtype)
    if plan.dtype != plan.source_dtype:
        rows = from_unit(to_unit(rows), plan.dtype)
    if plan.format == "avif" and plan.dtype == "uint16":  # libvips takes the upper 12 bits: put the rounded value there
        rows = ((rows.astype(np.uint32) * AVIF_MOST + 32767) // 65535 << 4).astype(np.uint16)
    return np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))


def _encode(scratch: Path, result: Path, plan: OutputPlan, options: SaveOptions) -> None:
    """Stream the scratch file into the encoder and put the metadata in."""
    metadata = plan.metadata
    x, y = metadata.dpi or DEFAULT_DPI
    image = pyvips.Image.tiffload(str(scratch), access="sequential").copy(
        interpretation=_interpretation(plan), xres=x / 25.4, yres=y / 25.4
    )
    for field in image.get_fields():  # the scratch file's own, such as its resolution unit
        if field in ("resolution-unit", "bits-per-sample", "n-pages"):
            image.remove(field)
    if plan.cmyk:
        profile = scratch.with_name("profile.icc")
        profile.write_bytes(metadata.cmyk_icc or b"")
        depth = 16 if plan.dtype == "uint16" else 8
        how = {"input_profile": "srgb", "intent": "relative", "black_point_compensation": True, "depth": depth}
        image = image.icc_transform(str(profile), **how).copy()
    iptc = metadata.iptc if plan.format != "tiff" else None  # of which libvips (8.18) writes a quarter
    blocks = {"icc-profile-data": metadata.icc, "exif-data": metadata.exif, "xmp-data": metadata.xmp, "iptc-data": iptc}
    for field, block in blocks.items():
        if block is not None:
            image.set_type(pyvips.GValue.blob_type, field, block)
    image.set_type(pyvips.GValue.gint_type, "orientation", 1)
    keep = ["icc"] * bool(metadata.icc or plan.cmyk) + ["xmp"] * bool(metadata.xmp) + ["iptc"] * bool(iptc)
    if plan.format != "tiff" and (metadata.exif or (metadata.dpi and plan.format != "png")):
        keep.append("exif")  # where libvips puts the resolution, too
    pyvips.Operation.call(ENCODERS[plan.format], image, str(result), keep="|".join(keep) or "none", **_settings(plan, options))
    if plan.format == "png" and metadata.dpi is None:
        remove_chunk(result, b"pHYs")  # libvips always writes a resolution, and none is known
    if plan.format == "tiff" and (metadata.exif or metadata.iptc):
        attach_blocks(result, metadata.exif, metadata.iptc, plan.width, plan.height)


def _interpretation(plan: OutputPlan) -> str:
    """libvips' name of the colour space, which decides how the encoder labels the channels."""
    if plan.channels == 1:
        return "grey16" if plan.dtype == "uint16" else "b-w"
    return {"uint8": "srgb", "uint16": "rgb16", "float32": "scrgb"}[plan.dtype]


def _settings(plan: OutputPlan, options: SaveOptions) -> dict[str, object]:
    """Keyword arguments of the libvips saver."""
    if plan.format == "png":
        return {"compression": options.compression, "bitdepth": 16 if plan.dtype == "uint16" else 8, "filter": "all"}
    if plan.format == "jpeg":
        return {"Q": options.quality, "subsample_mode": "off"}
    if plan.format == "tiff":
        predictor = "float" if plan.dtype == "float32" else "horizontal"
        size = plan.width * plan.height * (4 if plan.cmyk else plan.channels + plan.alpha) * np.dtype(plan.dtype).itemsize
        return {"compression": "deflate", "predictor": predictor, "bigtiff": size > BIGTIFF_FROM, "resunit": "inch"}
    if plan.format == "webp":  # "exact" keeps the colour below transparent pixels
        return {"Q": options.quality, "lossless": options.lossless, "exact": True, "smart_subsample": True}
    return {"Q": options.quality, "lossless": options.lossless, "compression": "av1", "subsample_mode": "off",
            "bitdepth": 12 if plan.dtype == "uint16" else 8}  # fmt: skip
