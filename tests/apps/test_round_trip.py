"""What goes into the command comes out: size, depth, channels, profile, EXIF, resolution; judged by Pillow and tifffile."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import pyvips
import tifffile
from PIL import Image, ImageCms, ImageOps

from tests.command import COMPACT, restore, smooth


@pytest.fixture(scope="module")
def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def shrunk(array: np.ndarray) -> np.ndarray:
    """Means of 4 x 4 pixels, to compare a result with what it was made from."""
    height, width = array.shape[0] // 4, array.shape[1] // 4
    return array.reshape(height, 4, width, 4, -1).astype(float).mean((1, 3))


def test_tiff_of_16_bits_with_alpha_and_profile(tmp_path: Path, profile: bytes) -> None:
    source, output = tmp_path / "in.tif", tmp_path / "out.tif"
    stored = np.round(smooth(channels=4) * 65535).astype(np.uint16)
    tifffile.imwrite(
        source,
        stored,
        photometric="rgb",
        extrasamples=["unassalpha"],
        iccprofile=profile,
        resolution=(300, 300),
        resolutionunit="INCH",
    )
    assert restore("sr", source, *COMPACT, "-o", output).code == 0
    with tifffile.TiffFile(output) as judge:
        page = judge.pages.first
        made, tags = page.asarray(), page.tags
        assert (made.shape, made.dtype) == ((96, 80, 4), np.uint16)
        assert tags["InterColorProfile"].value == profile
        assert page.extrasamples == (tifffile.EXTRASAMPLE.UNASSALPHA,)
        assert tags["XResolution"].value[0] / tags["XResolution"].value[1] == pytest.approx(300)
    assert np.abs(shrunk(made)[2:-2, 2:-2] - stored[2:-2, 2:-2]).max() < 0.04 * 65535
    assert len(np.unique(made & 0xFF)) > 200  # real 16 bits, not 8 widened


def test_cmyk_jpeg_stays_cmyk_under_its_profile(tmp_path: Path) -> None:
    source, output = tmp_path / "in.jpg", tmp_path / "out.jpg"
    cmyk = bytes(pyvips.Operation.call("profile_load", "cmyk"))
    picture = Image.fromarray(np.round(smooth(channels=4) * 128).astype(np.uint8), "CMYK")
    picture.save(source, icc_profile=cmyk, quality=98, dpi=(150, 150))
    assert restore("sr", source, *COMPACT, "-o", output).code == 0
    with Image.open(source) as before, Image.open(output) as judge:
        assert (judge.mode, judge.size, judge.info["dpi"]) == ("CMYK", (80, 96), (150, 150))
        assert judge.info["icc_profile"] == cmyk
        srgb, relative = ImageCms.createProfile("sRGB"), ImageCms.Intent.RELATIVE_COLORIMETRIC
        rgb = [
            ImageCms.profileToProfile(each, ImageCms.getOpenProfile(io.BytesIO(cmyk)), srgb, relative, outputMode="RGB")
            for each in (before, judge)
        ]
        difference = shrunk(np.asarray(rgb[1])) - np.asarray(rgb[0])
        assert np.abs(difference[2:-2, 2:-2]).max() < 12


def test_a_turned_photo_of_a_phone_comes_out_upright(tmp_path: Path, profile: bytes) -> None:
    source, output = tmp_path / "in.jpg", tmp_path / "out.jpg"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "Phonemaker", "2026:11:21 10:00:00"
    exif.get_ifd(0x8825)[1] = "N"
    picture = Image.fromarray(np.round(smooth() * 255).astype(np.uint8))
    picture.save(source, exif=exif, icc_profile=profile, quality=98, dpi=(72, 72))
    assert restore("sr", source, *COMPACT, "-o", output).code == 0
    with Image.open(source) as before, Image.open(output) as judge:
        assert judge.size == (96, 80) and judge.getexif().get(0x0112, 1) == 1
        assert judge.getexif()[0x010F] == "Phonemaker" and judge.getexif()[0x0132] == "2026:11:21 10:00:00"
        assert judge.getexif().get_ifd(0x8825)[1] == "N"
        assert judge.info["icc_profile"] == profile
        upright = np.asarray(ImageOps.exif_transpose(before)).astype(float)
        assert np.abs(shrunk(np.asarray(judge)) - upright)[2:-2, 2:-2].max() < 12


def test_gray_png_of_16_bits(tmp_path: Path) -> None:
    source, output = tmp_path / "in.png", tmp_path / "out.png"
    stored = np.round(smooth(channels=1)[..., 0] * 65535).astype(np.uint16)
    Image.fromarray(stored).save(source, dpi=(600, 600))
    assert restore("sr", source, *COMPACT, "-o", output).code == 0
    with Image.open(output) as judge:
        assert judge.mode == "I;16" and judge.size == (80, 96)
        assert judge.info["dpi"] == pytest.approx((600, 600), abs=0.1)
        assert np.abs(shrunk(np.asarray(judge))[..., 0] - stored)[2:-2, 2:-2].max() < 0.04 * 65535


def test_palette_png_with_transparency(tmp_path: Path) -> None:
    """One half does not show; whatever colour lies there, the half that shows comes out the same."""
    made = []
    for name, hidden in (("red", [255, 0, 0]), ("green", [0, 255, 0])):
        picture = Image.fromarray(np.tile(np.repeat(np.arange(2, dtype=np.uint8), 12), (20, 1)), "P")
        picture.putpalette([*hidden, 60, 90, 160])
        picture.save(tmp_path / f"{name}.png", transparency=bytes([0, 255]))
        said = restore("sr", tmp_path / f"{name}.png", *COMPACT)
        assert said.code == 0 and "palette was expanded" in said.err
        with Image.open(tmp_path / f"{name}_x4.png") as judge:
            assert (judge.mode, judge.size) == ("RGBA", (96, 80))
            made.append(np.asarray(judge).astype(int))
    assert np.array_equal(made[0], made[1])
    assert made[0][:, :36, 3].mean() < 10 and made[0][:, 60:, 3].mean() > 245
    assert np.abs(made[0][:, 60:, :3].mean((0, 1)) - (60, 90, 160)).max() < 20
