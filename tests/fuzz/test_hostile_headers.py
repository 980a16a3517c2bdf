"""Headers that claim more than there is: no memory is taken for it, and no other program is run for what hides behind a name."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, ImageOps

from hybrid.bounded_files import SMALL, open_bounded
from hybrid.errors import InputError
from medical.dicom.files import find_files
from medical.pictures.label_maps import read_label_picture
from tests.fuzz.seeds import dicoms

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests/data/fuzz"
CHILD = """
import resource, sys
from pathlib import Path
from tests.fuzz.readers import READERS
reader = READERS[sys.argv[1]]
for at, folder in enumerate(map(Path, sys.argv[2:])):
    try:
        reader.read(folder, sorted(folder.iterdir())[0])
        print("valid")
    except Exception as error:
        print(type(error).__name__)
    if at == 0:  # a sound one, for which libraries are imported
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (1 << 30),) * 2)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a bound of memory")
@pytest.mark.parametrize(
    ("reader", "case"),
    [("dicom", "length-of-4-gb"), ("dicom", "claimed-size"), ("dicom-picture", "length-of-4-gb"), ("label-map", "chunk-of-4-gb")],
)
def test_a_claimed_length_takes_no_memory(reader: str, case: str, tmp_path: Path) -> None:
    """4 GB are claimed, and 1 GiB is all that there is."""
    from tests.fuzz.readers import READERS, place

    place(READERS[reader].inputs()[5 if reader == "label-map" else 0], tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", CHILD, reader, tmp_path, CORPUS / reader / case],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.split() == ["valid", "InputError"]


def test_bounded_reads(tmp_path: Path) -> None:
    path = tmp_path / "file"
    whole = bytes(range(256)) * (SMALL // 128)
    path.write_bytes(whole)
    with open_bounded(path) as stream:
        assert stream.read(1 << 62) == whole and stream.read(1 << 62) == b""
        stream.seek(len(whole) + 5)
        assert stream.read(SMALL + 1) == b""
        stream.seek(7)
        assert stream.read(3) == whole[7:10] and stream.read() == whole[10:]


def test_a_zip_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    """3 GB, stored: what it would take is asked of the file at once."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("I0", next(iter(dicoms()[0].values())))
    data = bytearray(stream.getvalue())
    at = data.index(b"PK\1\2")
    struct.pack_into("<II", data, at + 20, 3 << 30, 3 << 30)
    (tmp_path / "study.zip").write_bytes(data)
    with pytest.raises(InputError, match="claims more than it holds") as caught:
        find_files(tmp_path / "study.zip")
    assert caught.value.hint


def test_no_program_is_run_for_a_label_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript under the name of a PNG, for which Pillow would run Ghostscript."""
    ran = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *rest: ran.append(rest) or Image.new("L", (2, 2), 1).im)
    path = tmp_path / "map.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 2 2\n%%EndComments\nshowpage\n")
    Image.init()
    with pytest.raises(InputError, match="cannot be read as a picture"):
        read_label_picture(path)
    assert not ran
    with Image.open(path) as opened:
        opened.load()
    assert ran


@pytest.mark.parametrize("orientation", range(9))
def test_label_maps_are_upright(orientation: int, tmp_path: Path) -> None:
    """As Pillow turns a PNG; 0 means nothing. Given a path, Pillow (12.3) maps the TIFF with its sides exchanged."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4))
    stored.save(tmp_path / "map.png", exif=exif)
    with Image.open(tmp_path / "map.png") as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert expected.shape == ((4, 3) if orientation in range(5, 9) else (3, 4))
    for name, compression in (("plain.tif", None), ("packed.tif", "tiff_lzw")):
        stored.save(tmp_path / name, compression=compression, tiffinfo={0x0112: orientation} if orientation else {})
    for path in tmp_path.iterdir():
        np.testing.assert_array_equal(read_label_picture(path).labels[..., 0], expected, err_msg=path.name)
