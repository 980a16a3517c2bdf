"""Pictures box by box and tiled BigTIFF out: judged by whole pictures, tifffile, Pillow and libvips."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from hybrid.errors import InputError
from restore.images import Picture, probe, read_picture, read_record, write_picture
from restore.images.metadata import PictureMetadata
from restore.images.plan import OutputPlan, SaveOptions, plan_output
from restore.images.regions import UNPACKED, RegionReader
from restore.images.tiff_tiles import TILE, TiledTiff, encode_tile

BOXES = [
    (slice(0, 20), slice(0, 30)),
    (slice(17, 41), slice(5, 22)),
    (slice(40, 41), slice(52, 53)),
    (slice(0, 41), slice(0, 53)),
]


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    values = np.random.default_rng(8).random(shape)
    return values.astype(dtype) if dtype == "float32" else (values * np.iinfo(dtype).max).astype(dtype)


def cmyk_profile() -> bytes:
    return bytes(pyvips.Operation.call("profile_load", "cmyk"))


def assert_boxes(path: Path, folder: Path) -> None:
    """Boxes of the file are those of the whole picture; the last one is the whole, cut to its size."""
    whole, reader = read_picture(path), RegionReader(path, folder)
    assert reader.info == probe(path) and reader.metadata == whole.metadata
    height, width = whole.colour.shape[:2]
    for rows, columns in BOXES:
        box = (
            slice(min(rows.start, height - 1), min(rows.stop, height)),
            slice(min(columns.start, width - 1), min(columns.stop, width)),
        )
        colour, alpha = reader.read(*box)
        assert colour.dtype == whole.colour.dtype
        np.testing.assert_array_equal(colour, whole.colour[box])
        assert (alpha is None) == (whole.alpha is None)
        if alpha is not None and whole.alpha is not None:
            np.testing.assert_array_equal(alpha, whole.alpha[box])


# Reading ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("tile", [(16, 32), None])
def test_boxes_are_those_of_the_whole(tile: tuple[int, int] | None, channels: int, dtype: str, tmp_path: Path) -> None:
    values = noise(41, 53, channels, dtype=dtype)
    tifffile.imwrite(
        tmp_path / "in.tif",
        values if channels > 1 else values[..., 0],
        tile=tile,
        photometric="rgb" if channels > 2 else "minisblack",
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        compression="zlib",
        bigtiff=True,
    )
    assert_boxes(tmp_path / "in.tif", tmp_path)
    assert (tmp_path / UNPACKED).exists() == (tile is None)  # what is tiled is read where it lies


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("tile", [(16, 16), None])
def test_boxes_are_upright(tile: tuple[int, int] | None, orientation: int, tmp_path: Path) -> None:
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "in.tif", noise(41, 53, 3), photometric="rgb", tile=tile, extratags=tags)
    assert_boxes(tmp_path / "in.tif", tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".avif"])
def test_boxes_of_other_formats(suffix: str, tmp_path: Path) -> None:
    colour = noise(41, 53, 3, dtype="uint16" if suffix in (".png", ".avif") else "uint8")
    write_picture(tmp_path / f"in{suffix}", Picture(colour), SaveOptions(lossless=suffix in (".webp", ".avif")))
    assert_boxes(tmp_path / f"in{suffix}", tmp_path)


@pytest.mark.parametrize("kind", ["cmyk", "profile", "palette", "bits", "associated"])
def test_boxes_are_converted_like_the_whole(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "in.tif"
    if kind in ("cmyk", "profile"):
        options = {"icc_profile": cmyk_profile()} if kind == "profile" else {}
        Image.fromarray(noise(41, 53, 4), "CMYK").save(path, **options)
    elif kind == "palette":
        Image.fromarray(noise(41, 53, 3)).quantize(16).save(path)
    elif kind == "bits":
        Image.fromarray(noise(41, 53) > 127).save(path)
    else:
        straight = noise(41, 53, 4)
        tifffile.imwrite(path, straight, photometric="rgb", extrasamples=["assocalpha"], tile=(16, 16))
    assert_boxes(path, tmp_path)


def test_a_tile_that_is_damaged_is_named(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "in.tif", noise(64, 64, 3), photometric="rgb", tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "in.tif") as file:
        place = file.pages[0].dataoffsets[5]
    with (tmp_path / "in.tif").open("r+b") as file:
        file.seek(place)
        file.write(b"\xff" * 200)
    reader = RegionReader(tmp_path / "in.tif", tmp_path)
    reader.read(slice(0, 16), slice(0, 64))
    with pytest.raises(InputError, match=r"in\.tif is damaged"):
        reader.read(slice(16, 32), slice(0, 64))
    with pytest.raises(InputError, match=r"in\.tif is damaged"):
        read_picture(tmp_path / "in.tif")  # of which libvips makes black without a word
    reader.read(slice(0, 16), slice(0, 64))


# Writing ----------------------------------------------------------------------------------------------------------------


def write_tiles(path: Path, values: np.ndarray, plan: OutputPlan, *, first: int = 0, profile: Path | None = None) -> None:
    """Append the tiles from number `first` on, and finish."""
    file = TiledTiff(path, plan, first)
    for number in range(first, file.across * file.down):
        y, x = number // file.across * TILE, number % file.across * TILE
        file.append(encode_tile(values[y : y + TILE, x : x + TILE], plan, profile))
    file.finish()


def plan_for(
    values: np.ndarray, metadata: PictureMetadata | None = None, alpha: bool = False, note: str | None = None
) -> OutputPlan:
    shape = (values.shape[0], values.shape[1], values.shape[2] - alpha)
    options = SaveOptions(format="tiff", description=note)
    return plan_output(Path("out.tif"), shape, values.dtype.name, alpha, metadata or PictureMetadata(), options)


@pytest.mark.parametrize("size", [(1, 1), (300, 700), (256, 512), (3, 1000)])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_tiles_come_back_exactly(dtype: str, channels: int, size: tuple[int, int], tmp_path: Path) -> None:
    values = noise(*size, channels, dtype=dtype)
    if dtype == "float32":
        values = values * 9 - 4
    write_tiles(tmp_path / "out.tif", values, plan_for(values, alpha=channels in (2, 4)))
    back = read_picture(tmp_path / "out.tif")
    planes = back.colour if back.alpha is None else np.dstack((back.colour, back.alpha))
    np.testing.assert_array_equal(planes, values)
    with tifffile.TiffFile(tmp_path / "out.tif") as judge:
        assert judge.is_bigtiff and judge.pages[0].is_tiled
        if dtype != "float32":  # whose predictor tifffile reads only with another package
            np.testing.assert_array_equal(judge.pages[0].asarray().reshape(values.shape), values)


def test_a_file_goes_on_growing_where_its_tiles_end(tmp_path: Path) -> None:
    values = noise(700, 600, 3)
    plan = plan_for(values)
    write_tiles(tmp_path / "whole.tif", values, plan)
    file = TiledTiff(tmp_path / "out.tif", plan, 0)
    for column in range(3):
        file.append(encode_tile(values[:TILE, column * TILE : (column + 1) * TILE], plan))
    file.sync()
    file.append(b"never noted")
    file.close()
    with pytest.raises(pyvips.Error):
        pyvips.Image.tiffload(str(tmp_path / "out.tif"))  # unfinished, and no picture
    write_tiles(tmp_path / "out.tif", values, plan, first=3)
    assert (tmp_path / "out.tif").read_bytes() == (tmp_path / "whole.tif").read_bytes()


def test_a_file_that_lost_tiles_is_not_gone_on_with(tmp_path: Path) -> None:
    values = noise(300, 600, 3)
    write_tiles(tmp_path / "out.tif", values, plan_for(values))
    with (tmp_path / "out.tif").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(OSError, match="cut short"):
        TiledTiff(tmp_path / "out.tif", plan_for(values), 3)
    file = TiledTiff(tmp_path / "other.tif", plan_for(values), 0)
    with pytest.raises(ValueError, match="0 tiles of 6"):
        file.finish()
    file.close()


def test_what_travels_with_the_pixels_is_what_the_ordinary_writer_keeps(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8769).update({0x9003: "2026:01:02 03:04:05", 0x829A: IFDRational(1, 250), 0xA002: 80, 0xA003: 60})
    exif.get_ifd(0x8825).update({1: "N"})
    metadata = PictureMetadata(
        icc=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        exif=exif.tobytes(),
        iptc=b"\x1c\x02\x78\x00\x05hello\0\0",
        dpi=(240.5, 120),
    )
    values = noise(300, 700, 3, dtype="uint16")
    plan = plan_for(values, metadata, note='{"model": "a<b"}')
    write_tiles(tmp_path / "out.tif", values, plan)
    write_picture(tmp_path / "plain.tif", Picture(values, metadata=metadata), SaveOptions(description='{"model": "a<b"}'))
    tiled, plain = (read_picture(tmp_path / name).metadata for name in ("out.tif", "plain.tif"))
    assert (tiled.icc, tiled.xmp, tiled.dpi, tiled.exif) == (plain.icc, plain.xmp, plain.dpi, plain.exif)
    assert tiled.icc == metadata.icc and tiled.dpi == (240.5, 120) and read_record(tiled.xmp) == '{"model": "a<b"}'
    assert tiled.iptc == metadata.iptc
    with tifffile.TiffFile(tmp_path / "out.tif") as judge:
        tags = judge.pages[0].tags
        assert tags["Make"].value == "Maker" and tags["ExifTag"].value["DateTimeOriginal"] == "2026:01:02 03:04:05"
        assert (tags["ExifTag"].value["PixelXDimension"], tags["ExifTag"].value["PixelYDimension"]) == (700, 300)
        assert tags["GPSTag"].value["GPSLatitudeRef"] == "N" and tags["Orientation"].value == 1


def test_cmyk_goes_back_as_the_ordinary_writer_sends_it(tmp_path: Path) -> None:
    Image.fromarray(np.kron(noise(5, 6, 4), np.ones((64, 64, 1), np.uint8)), "CMYK").save(
        tmp_path / "in.tif", icc_profile=cmyk_profile()
    )
    picture = read_picture(tmp_path / "in.tif")
    plan = plan_for(picture.colour, picture.metadata)
    (tmp_path / "profile").write_bytes(cmyk_profile())
    write_tiles(tmp_path / "out.tif", picture.colour, plan, profile=tmp_path / "profile")
    write_picture(tmp_path / "plain.tif", picture)
    with Image.open(tmp_path / "out.tif") as tiled, Image.open(tmp_path / "plain.tif") as plain:
        assert tiled.mode == "CMYK" and tiled.info["icc_profile"] == cmyk_profile()
        np.testing.assert_array_equal(np.asarray(tiled), np.asarray(plain))
