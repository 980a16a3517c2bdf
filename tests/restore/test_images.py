"""Pictures in and out: values, there and back, bad files; judged by Pillow and SciPy."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.spatial import cKDTree

from hybrid.errors import InputError
from restore.images import (
    Picture,
    SaveOptions,
    fill_transparent,
    from_unit,
    probe,
    read_picture,
    to_unit,
    write_picture,
)
from tests.restore.image_stubs import FULL, LOSSLESS, SUFFIXES, child_environment, noise, rng, smooth

__all__ = ["rng"]  # a fixture


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
