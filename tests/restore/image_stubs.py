"""Pictures of noise and of gradients, and what a telephone writes beside them."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import IFDRational

from restore.images import (
    SaveOptions,
)

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = (".png", ".jpg", ".tif", ".webp", ".avif")
LOSSLESS = SaveOptions(lossless=True)
FULL = {"uint8": 255, "uint16": 65535, "float32": 1}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.fixture(scope="module")
def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


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


def child_environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "VIPS_CONCURRENCY": "1"}
