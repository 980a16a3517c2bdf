"""Pictures in and out, property by property, judged by Pillow, tifffile and SciPy."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational
from scipy.spatial import cKDTree

from hybrid.errors import InputError, OutputError, RequestError
from restore.images import (
    Picture,
    PictureMetadata,
    PictureWriter,
    SaveOptions,
    check_output,
    fill_transparent,
    from_unit,
    probe,
    read_picture,
    read_record,
    to_unit,
    write_picture,
)
from restore.images.metadata import add_record, upright_exif
from restore.images.tiff import exif_from_tiff, scratch_header

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".png", ".jpg", ".tif", ".webp", ".avif")
LOSSLESS = SaveOptions(lossless=True)
FULL = {"uint8": 255, "uint16": 65535, "float32": 1}
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    b'tiff:Orientation="6" dc:format="scan of a letter"/></rdf:RDF></x:xmpmeta>'
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def cmyk_profile() -> bytes:
    return bytes(pyvips.Operation.call("profile_load", "cmyk"))


def noise(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return (rng.random(shape) * (FULL[dtype] + (dtype != "float32"))).astype(dtype)


def smooth(height: int = 60, width: int = 80, channels: int = 3) -> np.ndarray:
    """(H, W, C) uint8 gradients, which a lossy format hardly changes."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [x * 255 / width, y * 255 / height, (x + y) * 255 / (width + height)]
    return np.stack(planes[:channels], axis=-1).astype(np.uint8)


def phone_exif(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0110] = orientation, "Maker", "Model 5"
    exif[0x011A], exif[0x011B], exif[0x0128] = IFDRational(300), IFDRational(300), 2
    details, places = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    details.update(
        {0x9003: "2026:01:02 03:04:05", 0x829A: IFDRational(1, 250), 0xA002: 80, 0xA003: 60, 0x927C: b"MAKER NOTE \x01\x02"}
    )
    latitude = (IFDRational(50), IFDRational(5), IFDRational(1234, 100))
    places.update({1: "N", 2: latitude, 3: "E", 4: (IFDRational(8), IFDRational(6), IFDRational(0))})
    return exif


def assert_phone_exif(exif: Image.Exif, size: tuple[int, int] | None = None) -> None:
    details, places = exif.get_ifd(0x8769), exif.get_ifd(0x8825)
    assert (exif[0x010F], exif[0x0110]) == ("Maker", "Model 5")
    assert exif.get(0x0112, 1) == 1
    assert details[0x9003] == "2026:01:02 03:04:05" and Fraction(details[0x829A]) == Fraction(1, 250)
    assert details[0x927C] == b"MAKER NOTE \x01\x02"
    assert places[1] == "N" and [float(part) for part in places[2]] == [50.0, 5.0, 12.34]
    if size is not None:
        assert (details[0xA002], details[0xA003]) == size


# Values


@given(st.sampled_from(["uint8", "uint16"]), st.integers(0, 65535))
def test_unit_and_back_is_exact_one_by_one(dtype: str, value: int) -> None:
    stored = np.array([value % (FULL[dtype] + 1)], dtype=dtype)
    assert from_unit(to_unit(stored), dtype) == stored


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_unit_and_back_is_exact_for_every_value(dtype: str) -> None:
    every = np.arange(FULL[dtype] + 1).astype(dtype)
    unit = to_unit(every)
    assert unit.dtype == np.float32 and unit.min() == 0 and unit.max() == 1
    np.testing.assert_array_equal(from_unit(unit, dtype), every)
    np.testing.assert_allclose(unit, every / FULL[dtype], atol=1e-7)


def test_from_unit_rounds_half_up_and_clips_but_leaves_floats() -> None:
    halves = (np.arange(255) + 0.5) / 255
    np.testing.assert_array_equal(from_unit(halves, "uint8"), np.arange(1, 256))  # round-half-to-even would give 0, 2, 2, 4
    wide = np.array([-3.0, 7.0], dtype=np.float32)
    assert from_unit(wide, "uint16").tolist() == [0, 65535]
    assert from_unit(wide, "float32").tolist() == [-3.0, 7.0] and to_unit(wide).tolist() == [-3.0, 7.0]


def test_fill_transparent_takes_the_nearest_visible_colour(rng: np.random.Generator) -> None:
    colour, alpha = noise(rng, (23, 31, 3), "uint16"), noise(rng, (23, 31), "uint16")
    alpha[rng.random(alpha.shape) < 0.7] = 0
    filled = fill_transparent(colour, alpha)
    visible = np.argwhere(alpha > 0)
    np.testing.assert_array_equal(filled[alpha > 0], colour[alpha > 0])
    tree = cKDTree(visible)
    for pixel in np.argwhere(alpha == 0):
        nearest = visible[tree.query_ball_point(pixel, tree.query(pixel)[0] + 1e-9)]
        assert any((filled[tuple(pixel)] == colour[tuple(other)]).all() for other in nearest)


def test_fill_transparent_without_anything_to_do(rng: np.random.Generator) -> None:
    colour = noise(rng, (4, 5, 3), "uint8")
    for alpha in (np.zeros((4, 5), np.uint8), np.full((4, 5), 9, np.uint8)):
        np.testing.assert_array_equal(fill_transparent(colour, alpha), colour)


# There and back


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (37, 53)])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".png", "uint8"), (".png", "uint16"), (".tif", "uint8"), (".tif", "uint16"), (".tif", "float32")]
)
def test_lossless_round_trip_is_exact(suffix, dtype, channels, alpha, size, tmp_path, rng) -> None:
    colour, path = noise(rng, (*size, channels), dtype), tmp_path / f"Übung [1] 图{suffix}"
    given_alpha = noise(rng, size, dtype) if alpha else None
    assert write_picture(path, Picture(colour, given_alpha)) == ()
    info = probe(path)
    assert (info.height, info.width, info.channels, info.alpha, info.dtype) == (*size, channels, alpha, dtype)
    assert info.kind == ("gray" if channels == 1 else "rgb")
    picture = read_picture(path)
    assert picture.colour.dtype == dtype and picture.metadata.source == info
    np.testing.assert_array_equal(picture.colour, colour)
    if alpha:
        np.testing.assert_array_equal(picture.alpha, given_alpha)
    else:
        assert picture.alpha is None
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".webp", ".avif"])
def test_lossless_webp_and_avif_are_exact_also_below_transparency(suffix, tmp_path, rng) -> None:
    colour, alpha = noise(rng, (40, 33, 3), "uint8"), noise(rng, (40, 33), "uint8")
    alpha[:20] = 0
    assert write_picture(tmp_path / f"x{suffix}", Picture(colour, alpha), LOSSLESS) == ()
    picture = read_picture(tmp_path / f"x{suffix}")
    np.testing.assert_array_equal(picture.colour, colour)
    np.testing.assert_array_equal(picture.alpha, alpha)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_pillow_reads_what_was_written_and_we_what_pillow_wrote(suffix, tmp_path) -> None:
    colour, path, other = smooth(), tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    write_picture(path, Picture(colour))
    with Image.open(path) as judge:
        assert judge.mode == "RGB"
        assert np.abs(np.asarray(judge).astype(int) - colour).max() <= (0 if suffix in (".png", ".tif") else 8)
    Image.fromarray(colour).save(other, quality=95)
    with Image.open(other) as judge:
        assert np.abs(read_picture(other).colour.astype(int) - np.asarray(judge)).max() <= (
            0 if suffix in (".png", ".tif") else 4
        )


def test_jpeg_keeps_full_colour_resolution(tmp_path) -> None:
    write_picture(tmp_path / "x.jpg", Picture(smooth()), SaveOptions(quality=60))
    with Image.open(tmp_path / "x.jpg") as judge:
        assert [layer[1:3] for layer in judge.layer] == [(1, 1)] * 3


def test_quality_is_passed_on(tmp_path, rng) -> None:
    picture = Picture(noise(rng, (64, 64, 3), "uint8"))
    for suffix in (".jpg", ".webp", ".avif"):
        sizes = []
        for quality in (20, 95):
            write_picture(tmp_path / f"x{suffix}", picture, SaveOptions(quality=quality))
            sizes.append((tmp_path / f"x{suffix}").stat().st_size)
        assert sizes[0] < sizes[1], suffix


def test_avif_high_depth_reaches_white_and_keeps_twelve_bits(tmp_path) -> None:
    steps = np.arange(4096).reshape(64, 64, 1)
    sixteen = np.repeat(np.round(steps * 65535 / 4095).astype(np.uint16), 3, axis=-1)
    notes = write_picture(tmp_path / "x.avif", Picture(sixteen), LOSSLESS)
    assert any("12 bits" in note for note in notes)
    np.testing.assert_array_equal(read_picture(tmp_path / "x.avif").colour, sixteen)


# Property by property


def test_sixteen_bit_rgba_tiff_with_profile(tmp_path, rng, srgb_profile) -> None:
    rgba = noise(rng, (31, 42, 4), "uint16")
    tifffile.imwrite(
        tmp_path / "in.tif", rgba, photometric="rgb", extrasamples=["unassalpha"], iccprofile=srgb_profile, resolution=(240, 120)
    )
    picture = read_picture(tmp_path / "in.tif")
    np.testing.assert_array_equal(np.dstack((picture.colour, picture.alpha)), rgba)
    assert picture.metadata.icc == srgb_profile
    write_picture(tmp_path / "out.tif", picture)
    with tifffile.TiffFile(tmp_path / "out.tif") as judge:
        page = judge.pages[0]
        assert page.dtype == np.uint16 and page.extrasamples[0].name == "UNASSALPHA"
        assert page.tags["InterColorProfile"].value == srgb_profile
    np.testing.assert_array_equal(read_picture(tmp_path / "out.tif").colour, rgba[..., :3])
    write_picture(tmp_path / "out.png", picture)
    with Image.open(tmp_path / "out.png") as judge:
        assert judge.info["icc_profile"] == srgb_profile and judge.mode == "RGBA"


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_dark_sixteen_bit_gray_stays_sixteen_bit(suffix, tmp_path, rng) -> None:
    dark = rng.integers(0, 256, (20, 30), dtype=np.uint16)
    Image.fromarray(dark).save(tmp_path / f"in{suffix}")
    picture = read_picture(tmp_path / f"in{suffix}")
    assert picture.colour.dtype == np.uint16 and picture.metadata.source.kind == "gray"
    write_picture(tmp_path / f"out{suffix}", picture)
    with Image.open(tmp_path / f"out{suffix}") as judge:
        assert judge.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(judge), dark)


def test_float_tiff_keeps_values_outside_the_unit_range(tmp_path, rng) -> None:
    values = (rng.random((20, 30, 3)) * 9 - 4).astype(np.float32)
    tifffile.imwrite(tmp_path / "in.tif", values, photometric="rgb")
    picture = read_picture(tmp_path / "in.tif")
    np.testing.assert_array_equal(picture.colour, values)
    write_picture(tmp_path / "out.tif", picture)
    np.testing.assert_array_equal(read_picture(tmp_path / "out.tif").colour, values)
    assert probe(tmp_path / "out.tif").dtype == "float32"
    (note,) = write_picture(tmp_path / "out.png", picture)
    assert "clipped" in note and "16 bits" in note
    np.testing.assert_array_equal(read_picture(tmp_path / "out.png").colour, from_unit(values, "uint16"))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_applied_once(orientation, tmp_path, rng) -> None:
    stored = Image.fromarray(noise(rng, (5, 8, 3), "uint8"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "in.png", exif=exif.tobytes())
    with Image.open(tmp_path / "in.png") as judge:
        upright = np.asarray(ImageOps.exif_transpose(judge))
    picture, info = read_picture(tmp_path / "in.png"), probe(tmp_path / "in.png")
    np.testing.assert_array_equal(picture.colour, upright)
    assert (info.height, info.width) == upright.shape[:2]
    write_picture(tmp_path / "out.png", picture)
    np.testing.assert_array_equal(read_picture(tmp_path / "out.png").colour, upright)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_phone_jpeg_keeps_its_metadata_in_every_format(suffix, tmp_path, srgb_profile) -> None:
    source = tmp_path / "phone.jpg"
    Image.fromarray(smooth()).save(source, exif=phone_exif().tobytes(), icc_profile=srgb_profile, xmp=XMP, quality=95)
    picture = read_picture(source)
    assert picture.colour.shape == (80, 60, 3) and picture.metadata.dpi == (300, 300)
    in_memory = Image.Exif()
    in_memory.load(picture.metadata.exif)
    assert in_memory[0x0112] == 1
    doubled = Picture(np.kron(picture.colour, np.ones((2, 2, 1), np.uint8)), metadata=picture.metadata)
    target = tmp_path / f"out{suffix}"
    assert write_picture(target, doubled) == ()
    with Image.open(target) as judge:
        assert judge.size == (120, 160)
        assert_phone_exif(judge.getexif(), size=(120, 160))
        assert judge.info["icc_profile"] == srgb_profile
        if suffix in (".png", ".jpg", ".tif"):
            assert judge.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        turned = np.asarray(ImageOps.exif_transpose(judge).convert("RGB"))
        assert turned.shape == (160, 120, 3)  # a reader that obeys the tag turns nothing
        assert np.abs(turned.astype(int) - doubled.colour).max() <= 12
    again = read_picture(target).metadata
    assert again.dpi == pytest.approx((300, 300), abs=0.01)
    assert again.xmp == XMP.replace(b'Orientation="6"', b'Orientation="1"')


def test_exif_travels_from_tiff_to_tiff(tmp_path) -> None:
    Image.fromarray(smooth()).save(tmp_path / "in.tif", exif=phone_exif(orientation=3).tobytes())
    write_picture(tmp_path / "out.tif", read_picture(tmp_path / "in.tif"))
    with Image.open(tmp_path / "out.tif") as judge:
        assert_phone_exif(judge.getexif(), size=(80, 60))
        np.testing.assert_array_equal(np.asarray(judge), smooth()[::-1, ::-1])


@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_is_read_and_attached_in_either_byte_order(order, tmp_path) -> None:
    exif = phone_exif()
    exif.endian = order
    block = exif.tobytes()
    assert block[6:8] == {"<": b"II", ">": b"MM"}[order]
    (tmp_path / "block.tif").write_bytes(block[6:])  # an EXIF block is a TIFF structure without pixels
    collected = Image.Exif()
    collected.load(exif_from_tiff(tmp_path / "block.tif"))
    assert_phone_exif(collected, size=(80, 60))
    write_picture(tmp_path / "out.tif", Picture(smooth(), metadata=PictureMetadata(exif=upright_exif(block))))
    with Image.open(tmp_path / "out.tif") as judge:
        assert_phone_exif(judge.getexif(), size=(80, 60))
        np.testing.assert_array_equal(np.asarray(judge), smooth())


def test_thumbnail_is_dropped(tmp_path) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16)).save(buffer, "JPEG")
    thumbnail = buffer.getvalue()
    first = struct.pack("<H", 1) + struct.pack("<HHI4s", 0x010F, 2, 4, b"abc\0") + struct.pack("<I", 26)
    second_tags = [(0x0103, 3, 6), (0x0201, 4, 68), (0x0202, 4, len(thumbnail))]
    second = (
        struct.pack("<H", 3) + b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in second_tags) + b"\0" * 4
    )
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + second + thumbnail
    Image.fromarray(smooth()).save(tmp_path / "in.jpg", exif=exif)
    assert thumbnail in (tmp_path / "in.jpg").read_bytes()
    write_picture(tmp_path / "out.jpg", read_picture(tmp_path / "in.jpg"))
    assert thumbnail not in (tmp_path / "out.jpg").read_bytes()
    with Image.open(tmp_path / "out.jpg") as judge:
        assert judge.getexif()[0x010F] == "abc" and not judge.getexif().get_ifd(1)


def test_damaged_exif_is_named_and_left_out() -> None:
    assert upright_exif(b"Exif\0\0II*\0\xff\xff\xff\x7f") is None
    assert upright_exif(b"nothing of the kind") is None


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("transparent", [False, True])
def test_palette_is_expanded(bits, transparent, tmp_path, rng) -> None:
    indices = rng.integers(0, 2**bits, (20, 30), dtype=np.uint8)
    indexed = Image.fromarray(indices, "P")
    indexed.putpalette(rng.integers(0, 256, 3 * 2**bits, dtype=np.uint8).tobytes())
    indexed.save(tmp_path / "in.png", bits=bits, **({"transparency": 1} if transparent else {}))
    with Image.open(tmp_path / "in.png") as judge:
        expected = np.asarray(judge.convert("RGBA"))
    info, picture = probe(tmp_path / "in.png"), read_picture(tmp_path / "in.png")
    assert (info.kind, info.channels, info.alpha, info.dtype) == ("palette", 3, transparent, "uint8")
    np.testing.assert_array_equal(picture.colour, expected[..., :3])
    if transparent:
        np.testing.assert_array_equal(picture.alpha, expected[..., 3])
    assert any("palette" in note for note in picture.metadata.notes)
    indexed.save(tmp_path / "in.tif")
    assert probe(tmp_path / "in.tif").kind == "palette"


def test_one_bit_gray_spans_the_whole_range(tmp_path, rng) -> None:
    bits = rng.random((20, 30)) > 0.5
    for suffix in (".png", ".tif"):
        Image.fromarray(bits).save(tmp_path / f"in{suffix}")
        np.testing.assert_array_equal(read_picture(tmp_path / f"in{suffix}").colour[..., 0], bits * np.uint8(255))


def test_associated_alpha_is_divided_out(tmp_path) -> None:
    straight = np.full((8, 8, 4), (200, 100, 50, 128), np.uint8)
    straight[0, 0] = 0
    premultiplied = straight.copy()
    premultiplied[..., :3] = np.round(straight[..., :3] * (straight[..., 3:] / 255.0))
    tifffile.imwrite(tmp_path / "in.tif", premultiplied, photometric="rgb", extrasamples=["assocalpha"])
    picture = read_picture(tmp_path / "in.tif")
    assert np.abs(picture.colour.astype(int) - straight[..., :3]).max() <= 2  # 8 bits times 1/2 leave no more
    np.testing.assert_array_equal(picture.alpha, straight[..., 3])


def cmyk_patches(rng: np.random.Generator) -> Image.Image:
    patches = rng.integers(0, 200, (3, 4, 4), dtype=np.uint8)
    return Image.fromarray(np.kron(patches, np.ones((16, 16, 1), np.uint8)), "CMYK")


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_is_converted_through_its_profile_and_back(suffix, tmp_path, rng, cmyk_profile) -> None:
    path = tmp_path / f"in{suffix}"
    cmyk_patches(rng).save(path, icc_profile=cmyk_profile, quality=100)  # Pillow writes Adobe's inverted CMYK into JPEG
    with Image.open(path) as stored:
        expected = ImageCms.profileToProfile(
            stored, io.BytesIO(cmyk_profile), ImageCms.createProfile("sRGB"), renderingIntent=1, outputMode="RGB", flags=0x2000
        )
        inks = np.asarray(stored).astype(int)
    picture = read_picture(path)
    assert picture.metadata.source.kind == "cmyk" and picture.metadata.icc is None
    assert np.abs(picture.colour.astype(int) - np.asarray(expected)).max() <= 2
    assert any("embedded profile" in note for note in picture.metadata.notes)
    for target in (".jpg", ".tif"):
        assert write_picture(tmp_path / f"out{target}", picture) == ()
        with Image.open(tmp_path / f"out{target}") as judge:
            assert judge.mode == "CMYK" and judge.info["icc_profile"] == cmyk_profile
            assert np.asarray(judge).shape == inks.shape
        again = read_picture(tmp_path / f"out{target}").colour.astype(int)
        assert np.abs(again - picture.colour).mean() < 5  # the profile's own tables, there and back
    (note,) = write_picture(tmp_path / "out.png", picture)
    assert "CMYK" in note and "sRGB" in note
    with Image.open(tmp_path / "out.png") as judge:
        np.testing.assert_array_equal(np.asarray(judge), picture.colour)


def test_cmyk_without_profile_comes_out_as_rgb_and_says_so(tmp_path, rng) -> None:
    cmyk_patches(rng).save(tmp_path / "in.jpg", quality=100)
    picture = read_picture(tmp_path / "in.jpg")
    assert any("for want of an embedded one" in note for note in picture.metadata.notes)
    (note,) = write_picture(tmp_path / "out.jpg", picture)
    assert "no embedded profile" in note
    assert Image.open(tmp_path / "out.jpg").mode == "RGB"


def test_profiled_values_are_not_converted(tmp_path, rng) -> None:
    wide = bytes(pyvips.Operation.call("profile_load", "p3"))
    stored = noise(rng, (10, 12, 3), "uint8")
    Image.fromarray(stored).save(tmp_path / "in.png", icc_profile=wide)
    picture = read_picture(tmp_path / "in.png")
    np.testing.assert_array_equal(picture.colour, stored)
    write_picture(tmp_path / "out.tif", picture)
    with Image.open(tmp_path / "out.tif") as judge:
        assert judge.info["icc_profile"] == wide
        np.testing.assert_array_equal(np.asarray(judge), stored)


def test_profile_for_other_channels_is_left_out_by_name(tmp_path, srgb_profile) -> None:
    notes = write_picture(tmp_path / "x.png", Picture(smooth(channels=1), metadata=PictureMetadata(icc=srgb_profile)))
    assert any("ICC" in note for note in notes)


def test_alpha_in_jpeg_is_laid_on_white(tmp_path) -> None:
    colour, alpha = np.zeros((16, 16, 3), np.uint8), np.full((16, 16), 51, np.uint8)
    (note,) = write_picture(tmp_path / "x.jpg", Picture(colour, alpha))
    assert "white" in note
    assert np.abs(np.asarray(Image.open(tmp_path / "x.jpg")).astype(int) - 204).max() <= 1


def test_sixteen_bit_in_jpeg_is_rounded(tmp_path) -> None:
    (note,) = write_picture(tmp_path / "x.jpg", Picture(np.full((16, 16, 1), 32896, np.uint16)))
    assert "8 bits" in note
    assert (np.asarray(Image.open(tmp_path / "x.jpg")) == 128).all()


def test_unknown_resolution_stays_unknown_where_the_format_allows(tmp_path) -> None:
    for suffix in (".jpg", ".webp", ".avif"):
        write_picture(tmp_path / f"x{suffix}", Picture(smooth()))
        assert read_picture(tmp_path / f"x{suffix}").metadata.dpi is None, suffix


def test_resolution_swaps_with_the_sides(tmp_path) -> None:
    Image.fromarray(smooth()).save(tmp_path / "in.tif", dpi=(300, 150), tiffinfo={274: 6})
    assert read_picture(tmp_path / "in.tif").metadata.dpi == pytest.approx((150, 300), abs=0.01)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_provenance_record_is_stored_and_replaced(suffix, tmp_path) -> None:
    path, text = tmp_path / f"x{suffix}", '{"model": "a & b", "note": "Größe < 2 图"}'
    picture = Picture(smooth(), metadata=PictureMetadata(xmp=XMP))
    write_picture(path, picture, SaveOptions(description="the first"))
    write_picture(path, read_picture(path), SaveOptions(description=text))
    xmp = read_picture(path).metadata.xmp
    assert read_record(xmp) == text and b"the first" not in xmp and b"scan of a letter" in xmp


def test_record_in_a_foreign_packet() -> None:
    assert add_record(b"no packet", "x") is None
    assert read_record(None) is None


def test_multi_page_uses_the_first_and_says_so(tmp_path) -> None:
    pages = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    for suffix in (".tif", ".webp", ".png"):
        pages[0].save(
            tmp_path / f"in{suffix}", save_all=True, append_images=pages[1:], **({"lossless": True} if suffix == ".webp" else {})
        )
        picture = read_picture(tmp_path / f"in{suffix}")
        assert picture.colour.shape == (9, 9, 3) and picture.colour[0, 0].tolist() == [255, 0, 0]
        assert any("first" in note or "animated" in note for note in picture.metadata.notes), suffix


def test_text_chunks_left_out_are_named(tmp_path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Title", "Sunset")
    Image.fromarray(smooth()).save(tmp_path / "in.png", pnginfo=text)
    assert any("Title" in note for note in read_picture(tmp_path / "in.png").metadata.notes)


# Bad input


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.png", b"", "empty"),
        ("text.png", b"only some words\n", "supported format"),
        ("picture.gif", b"GIF89a" + b"\0" * 30, "supported format"),
        ("short.png", png_header(8, 8)[:20], "cannot be read"),
        ("short.tif", b"II*\0\x08\0\0\0", "cannot be read"),
    ],
)
def test_bad_files_are_refused_with_a_repair(name, content, words, tmp_path) -> None:
    (tmp_path / name).write_bytes(content)
    for function in (probe, read_picture):
        with pytest.raises(InputError, match=words) as caught:
            function(tmp_path / name)
        assert caught.value.hint and name in caught.value.message and "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(InputError, match="is a folder"):
        probe(tmp_path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_cut_files_are_an_error_not_gray_pixels(suffix, tmp_path, rng) -> None:
    Image.fromarray(noise(rng, (200, 200, 3), "uint8")).save(tmp_path / f"whole{suffix}")
    data, path = (tmp_path / f"whole{suffix}").read_bytes(), tmp_path / f"cut{suffix}"
    for share in (0.5, 0.9):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(InputError, match="cut short|cannot be read") as caught:
            read_picture(path)
        assert "\n" not in str(caught.value)


def test_libvips_stays_silent(tmp_path, rng) -> None:
    Image.fromarray(noise(rng, (200, 200, 3), "uint8")).save(tmp_path / "x.tif", compression="tiff_lzw")
    Image.fromarray(noise(rng, (200, 200, 3), "uint8")).save(tmp_path / "x.jpg")
    for name in ("x.tif", "x.jpg"):
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[: len(data) // 2])
    code = (
        "import sys\nfrom hybrid.errors import InputError\nfrom restore.images import read_picture\n"
        "for path in sys.argv[1:]:\n    try:\n        read_picture(path)\n    except InputError:\n        print('refused')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "x.tif", "x.jpg"], cwd=tmp_path, env=child_environment(), capture_output=True, text=True
    )
    assert (result.stdout.split(), result.stderr) == (["refused"] * 2, "")


def test_oversized_header_is_refused_before_memory_is_taken(tmp_path) -> None:
    (tmp_path / "bomb.png").write_bytes(png_header(60000, 60000))
    assert probe(tmp_path / "bomb.png").width == 60000
    with pytest.raises(InputError, match="--max-pixels 3600000000"):
        read_picture(tmp_path / "bomb.png")
    write_picture(tmp_path / "small.png", Picture(smooth(10, 10)))
    with pytest.raises(InputError, match="--max-pixels 100"):
        read_picture(tmp_path / "small.png", max_pixels=99)
    assert read_picture(tmp_path / "small.png", max_pixels=100).colour.shape == (10, 10, 3)


def test_odd_samples_are_refused(tmp_path) -> None:
    tifffile.imwrite(tmp_path / "signed.tif", np.zeros((8, 8), np.int16))
    with pytest.raises(InputError, match="8-bit, 16-bit or float32"):
        probe(tmp_path / "signed.tif")


def test_a_file_that_changed_is_read_anew(tmp_path) -> None:
    for value in (10, 200):
        write_picture(tmp_path / "x.png", Picture(np.full((8, 8, 1), value, np.uint8)))
        assert read_picture(tmp_path / "x.png").colour[0, 0, 0] == value


# Output


def test_check_output(tmp_path) -> None:
    there = tmp_path / "a.png"
    write_picture(there, Picture(smooth()))
    assert check_output(tmp_path / "b.png", [there]) == tmp_path / "b.png"
    with pytest.raises(RequestError, match=r"supported suffix.*\.png"):
        check_output(tmp_path / "b.bmp")
    with pytest.raises(RequestError, match="is the input"):
        check_output(tmp_path / "." / "a.png", [there], overwrite=True)
    with pytest.raises(OutputError, match="--overwrite"):
        check_output(there)
    assert check_output(there, overwrite=True) == there
    with pytest.raises(OutputError, match="no folder"):
        check_output(tmp_path / "missing" / "b.png")
    with pytest.raises(OutputError, match="is a folder"):
        check_output(tmp_path, format="png")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="an administrator may write into every folder")
def test_folder_without_write_permission(tmp_path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="not writable"):
        write_picture(tmp_path / "x.png", Picture(smooth()))


def test_requests_no_format_can_meet(tmp_path) -> None:
    with pytest.raises(RequestError, match="16383"):
        write_picture(tmp_path / "x.webp", Picture(np.zeros((1, 20000, 3), np.uint8)))
    with pytest.raises(RequestError, match="lossless"):
        write_picture(tmp_path / "x.jpg", Picture(smooth()), LOSSLESS)
    with pytest.raises(RequestError, match="quality|Quality"):
        SaveOptions(quality=0)
    with pytest.raises(RequestError, match="format"):
        SaveOptions(format="bmp")
    with pytest.raises(RequestError, match="cannot be written"):
        write_picture(tmp_path / "x.png", Picture(np.zeros((4, 4, 3), np.float64)))
    assert not list(tmp_path.iterdir())


def test_format_option_overrules_the_suffix(tmp_path) -> None:
    write_picture(tmp_path / "x.dat", Picture(smooth()), SaveOptions(format="png"))
    assert probe(tmp_path / "x.dat").format == "png"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_writer_takes_rows_in_uneven_portions(suffix, tmp_path) -> None:
    colour = smooth(75, 40)
    with PictureWriter(tmp_path / f"rows{suffix}", 40, 75, 3) as writer:
        for y, stop in ((0, 1), (1, 40), (40, 75)):
            writer.write_rows(y, colour[y:stop])
    write_picture(tmp_path / f"whole{suffix}", Picture(colour))
    assert (tmp_path / f"rows{suffix}").read_bytes() == (tmp_path / f"whole{suffix}").read_bytes()


def test_failure_keeps_the_old_file_and_leaves_nothing(tmp_path) -> None:
    path = tmp_path / "x.png"
    write_picture(path, Picture(smooth()))
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), PictureWriter(path, 80, 60, 3) as writer:
        writer.write_rows(0, smooth()[:10])
        raise KeyboardInterrupt
    with pytest.raises(OutputError, match="10 of 60 rows"), PictureWriter(path, 80, 60, 3) as writer:
        writer.write_rows(0, smooth()[:10])
    for wrong in ((5, smooth()[:10]), (0, smooth().astype(np.uint16)), (0, smooth()[:, :9]), (0, smooth(61))):
        with pytest.raises(ValueError, match="is next"), PictureWriter(path, 80, 60, 3) as writer:
            writer.write_rows(*wrong)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def child_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "VIPS_CONCURRENCY": "1"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("limit", [20_000, 500_000, 1_210_000])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_full_disk_is_an_output_error_and_leaves_nothing(suffix, limit, tmp_path) -> None:
    """The limit strikes in the rows, at the last buffered rows, or in the encoder, as a full disk does."""
    code = (
        "import resource, sys, numpy as np\nfrom hybrid.errors import OutputError\nfrom restore.images import *\n"
        "limit = int(sys.argv[2])\nresource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))\n"
        "values = np.random.default_rng(0).integers(0, 256, (500, 800, 3), dtype=np.uint8)\n"
        "metadata = PictureMetadata(xmp=values.tobytes()[:30000].hex().encode())\n"
        "try:\n    write_picture(sys.argv[1], Picture(values, metadata=metadata))\n"
        "except OutputError as error:\n    print(error)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / f"x{suffix}"), str(limit)]
    result = subprocess.run(command, env=child_environment(), capture_output=True, text=True)
    if suffix == ".jpg" and limit > 1_200_000:  # the scratch file fits and the JPEG is smaller
        assert (tmp_path / "x.jpg").exists()
        return
    assert "cannot be written" in result.stdout and "free space" in result.stdout, result.stderr
    assert result.stderr == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (700, 300)])
def test_scratch_file_is_a_proper_tiff(dtype, samples, size, tmp_path, rng) -> None:
    values = noise(rng, (*size, samples), dtype)
    (tmp_path / "rows.tif").write_bytes(scratch_header(size[1], size[0], samples, values.dtype) + values.tobytes())
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "rows.tif").reshape(values.shape), values)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory from /proc")
def test_writer_memory_stays_bounded(tmp_path) -> None:
    """A picture of 288 MB passes through a process that may grow by 200 MB at most."""
    code = (
        "import sys, numpy as np\nfrom restore.images import PictureWriter, SaveOptions\n"
        "def peak():\n    return next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "before, rows = peak(), np.zeros((100, 12000, 3), np.uint8)\n"
        "with PictureWriter(sys.argv[1], 12000, 8000, 3, options=SaveOptions(compression=1)) as writer:\n"
        "    for y in range(0, 8000, 100):\n        writer.write_rows(y, rows)\n"
        "print((peak() - before) // 1024)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.png")], env=child_environment(), capture_output=True, text=True
    )
    assert int(result.stdout) < 200, result.stderr
    assert probe(tmp_path / "x.png").width == 12000


def test_a_png_of_unknown_resolution_states_none(tmp_path: Path) -> None:
    """And loses nothing else: pixels and profile are judged by Pillow."""
    picture = Picture(smooth())
    write_picture(tmp_path / "plain.png", picture)
    write_picture(tmp_path / "dots.png", Picture(smooth(), metadata=PictureMetadata(dpi=(300.0, 300.0))))
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "dots.png") as dots:
        assert "dpi" not in plain.info
        assert dots.info["dpi"] == pytest.approx((300, 300), abs=0.1)
        assert np.array_equal(np.asarray(plain), np.asarray(dots))
        assert np.array_equal(np.asarray(plain), picture.colour)
