"""Writing pictures: requests that are refused, portions of rows, failures that leave nothing, memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from hybrid.errors import OutputError, RequestError
from restore.images import (
    Picture,
    PictureMetadata,
    PictureWriter,
    SaveOptions,
    check_output,
    probe,
    write_picture,
)
from restore.images.tiff import scratch_header
from tests.restore.image_stubs import LOSSLESS, SUFFIXES, child_environment, noise, rng, smooth

__all__ = ["rng"]  # a fixture


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
