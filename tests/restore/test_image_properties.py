"""Depth, profile, orientation, Exif, palette, alpha, resolution: each property of a picture, kept or converted."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from restore.images import (
    Picture,
    PictureMetadata,
    SaveOptions,
    from_unit,
    probe,
    read_picture,
    read_record,
    write_picture,
)
from restore.images.metadata import add_record, upright_exif
from restore.images.tiff import exif_from_tiff
from tests.restore.image_stubs import SUFFIXES, assert_phone_exif, noise, phone_exif, rng, smooth, srgb_profile

__all__ = ["rng", "srgb_profile"]  # fixtures

XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
    b'tiff:Orientation="6" dc:format="scan of a letter"/></rdf:RDF></x:xmpmeta>'
)


@pytest.fixture(scope="module")
def cmyk_profile() -> bytes:
    return bytes(pyvips.Operation.call("profile_load", "cmyk"))


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
