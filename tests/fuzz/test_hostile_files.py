"""Files that are made to do harm: code in pickles, claims that fill the memory, streams that bring codecs down, odd names."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import resource
import signal
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import torch
import yaml
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEG2000Lossless

from hybrid.errors import HybridError, InputError, ResourceError, WeightsError
from hybrid.plain_yaml import LARGEST, parse_yaml, read_yaml
from hybrid.weights.checkpoints import read_checkpoint
from medical.dicom import codecs as dicom_codecs
from medical.dicom import files as dicom_files
from medical.dicom.volume import read_dicom
from medical.volumes.volume import read_volume
from restore.images import probe, read_picture
from tests.command import files, restore
from tests.fuzz.mutations import BOMB
from tests.medical.dicom_stubs import pixels, save, slices_of

ROOT = Path(__file__).resolve().parents[2]


class Runs:
    """Runs a call when it is unpickled by whatever allows it."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> tuple[object, ...]:
        return self.call, self.arguments


def in_zip(data: bytes) -> bytes:
    """A file as torch.save writes it, with another pickle in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in (("a/data.pkl", data), ("a/version", b"3\n"), ("a/byteorder", b"little")):
            archive.writestr(name, content)
    return stream.getvalue()


def in_tar(data: bytes) -> bytes:
    """The oldest form, of torch 0.1: a tar of pickles."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name in ("sys_info", "storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def legacy(data: bytes) -> bytes:
    """The form before torch 1.6: magic number, protocol, system, object."""
    stream = io.BytesIO()
    torch.save({}, stream, _use_new_zipfile_serialization=False)
    head = stream.getvalue()
    body = io.BytesIO(head)
    for _ in range(3):
        pickle.load(body)
    return head[: body.tell()] + data


POISONS: dict[str, Callable[[Path], object]] = {
    "os.system": lambda mark: Runs(os.system, f"touch {mark}"),
    "eval": lambda mark: Runs(eval, f"open({str(mark)!r}, 'w')"),
    "nested": lambda mark: {"state_dict": [Runs(list, [Runs(os.system, f"touch {mark}")])]},
    "getattr": lambda mark: Runs(getattr, Runs(__import__, "os"), "system"),
    "tensor": lambda mark: Runs(torch.load, Runs(open, str(mark), "w")),
}


@pytest.mark.parametrize("wrap", [bytes, in_zip, in_tar, legacy], ids=["bare", "zip", "tar", "legacy"])
@pytest.mark.parametrize("poison", POISONS)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_nothing_in_a_pickle_runs(tmp_path: Path, poison: str, wrap: Callable[[bytes], bytes], protocol: int) -> None:
    mark = tmp_path / "ran"
    path = tmp_path / "weights.pth"
    path.write_bytes(wrap(pickle.dumps(POISONS[poison](mark), protocol=protocol)))
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert caught.value.hint and not mark.exists()


def test_the_poison_works_where_it_is_let(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(POISONS["os.system"](tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def growing(levels: int) -> bytes:
    """A pickle of a few bytes whose lists would print as 10 to the power of the levels."""
    tree: list[object] = ["x"]
    for _ in range(levels):
        tree = [tree] * 10
    return pickle.dumps({"a": tree}, protocol=2)


def safetensors_of(header: object, data: bytes = b"", claimed: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def tensor(first: int, last: int, shape: list[int]) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [first, last]}


CLAIMS = {
    "growing pickle": in_zip(growing(12)),
    "growing legacy": legacy(growing(12)),
    "deep pickle": in_zip(b"\x80\x02" + b"(" * 200_000 + b"."),
    "deep lists": in_zip(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."),
    "long text": legacy(b"\x80\x02X\xff\xff\xff\x7fabc."),
    "giant header": safetensors_of({"a": tensor(0, 4, [1])}, b"1234", claimed=99_999_999),
    "overlap": safetensors_of({"a": tensor(0, 16, [4]), "b": tensor(8, 24, [4])}, bytes(24)),
    "beyond": safetensors_of({"a": tensor(0, 2**60, [2**58])}, bytes(24)),
    "overflow": safetensors_of({"a": tensor(0, 16, [2**32, 2**32])}, bytes(16)),
    "negative": safetensors_of({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, bytes(16)),
    "deep header": safetensors_of(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_claims_of_checkpoints_are_refused(tmp_path: Path, claim: str) -> None:
    path = tmp_path / "weights.pth"
    path.write_bytes(CLAIMS[claim])
    with pytest.raises(WeightsError) as caught:
        read_checkpoint(path)
    assert caught.value.hint and len(str(caught.value)) < 2000


def peak_of(code: str, *arguments: str | Path) -> tuple[str, int]:
    """What a child prints that reads one file, and how much memory that took beyond what it had before, in bytes."""
    script = (
        "import resource, sys\nfrom hybrid.errors import HybridError\nfrom medical.volumes.volume import read_volume\n"
        "from medical.dicom.volume import read_dicom\nfrom restore.images import read_picture\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"try:\n    {code}\nexcept HybridError as error:\n    print(type(error).__name__)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    *said, grown = run.stdout.split()
    return "".join(said), int(grown) << 10


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_bomb(path: Path) -> None:
    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(bytes(1 << 20)) for _ in range(64)) + rows.flush()
    head = struct.pack(">IIBBBBB", 60_000, 60_000, 16, 6, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed) + chunk(b"IEND", b""))


def tiff_bomb(path: Path) -> None:
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(path, "TIFF", compression="tiff_adobe_deflate")
    data = bytearray(path.read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    for at in range(first + 2, first + 2 + 12 * struct.unpack_from("<H", data, first)[0], 12):
        if struct.unpack_from("<H", data, at)[0] in (256, 257, 278):
            struct.pack_into("<HII", data, at + 2, 4, 1, 60_000)
    path.write_bytes(data)


@pytest.mark.parametrize("make", [png_bomb, tiff_bomb])
def test_decompression_bombs_of_pictures(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "bomb.img"
    make(path)
    said, grown = peak_of("read_picture(sys.argv[1])", path)
    assert said == "InputError" and grown < 300 << 20


def test_a_packed_nifti_whose_extension_is_a_bomb(tmp_path: Path) -> None:
    """Half a gigabyte of a text that nibabel would read at once, in half a megabyte."""
    size = 512 << 20
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["vox_offset"] = 352 + size
    path = tmp_path / "bomb.nii.gz"
    with gzip.open(path, "wb", 9) as stream:
        stream.write(image.header.binaryblock + b"\1\0\0\0" + struct.pack("<ii", size, 6))
        for _ in range(size >> 20):
            stream.write(bytes(1 << 20))
    said, grown = peak_of("read_volume(sys.argv[1])", path)
    assert said == "InputError" and grown < 200 << 20
    with pytest.raises(InputError, match="extensions of more than 64 MB"):
        read_volume(path)


def test_a_deflated_dicom_file_is_unpacked_within_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = slices_of(pixels(3, 64, 64))
    for one in files:
        one.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    folder = save(tmp_path / "scan", files)
    np.testing.assert_array_equal(read_dicom(folder).values[0], pixels(3, 64, 64).T)
    monkeypatch.setattr(dicom_files.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 30_000}))
    with pytest.raises(ResourceError, match="unpacks to more"):
        read_dicom(folder)


def test_a_codec_that_is_brought_down_takes_nobody_with_it(tmp_path: Path) -> None:
    """A stream that kills the process which decodes it; the next series is read by a new one."""
    corpus = ROOT / "tests/data/fuzz/dicom/jpeg-2000-crash"
    for _ in range(2):
        with pytest.raises(InputError, match="damaged and cannot be decoded"):
            read_dicom(corpus)
        sound = slices_of(pixels(2, 8, 8))
        folder = save(tmp_path / "sound", sound)
        np.testing.assert_array_equal(read_dicom(transcoded(folder)).values[0], pixels(2, 8, 8).T)


def test_a_codec_that_never_ends_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound of time is the child's own. Here it gets the signal that the system sends at that bound."""
    read_dicom(transcoded(save(tmp_path / "scan", slices_of(pixels(2, 8, 8)))))
    child = dicom_codecs._child()
    assert 0 < resource.prlimit(child.process.pid, resource.RLIMIT_CPU)[0] < 10 * dicom_codecs.SECONDS
    os.kill(child.process.pid, signal.SIGXCPU)
    child.process.wait(60)
    with pytest.raises(ValueError, match="codec failed"):
        child.decode({"syntax": str(JPEG2000Lossless), "options": {}, "raw": True, "size": 1 << 40}, bytes(1 << 20), 64)
    assert not child.usable
    read_dicom(tmp_path / "scan")


def transcoded(folder: Path) -> Path:
    from tests.medical.test_dicom_pixels import transcode

    if not any(pydicom.dcmread(file).file_meta.TransferSyntaxUID.is_compressed for file in folder.iterdir()):
        transcode(folder, "JPEG2000Lossless")
    return folder


def test_yaml_that_grows_turns_in_a_circle_or_is_too_large(tmp_path: Path) -> None:
    for text, words in ((BOMB, "100,000 values"), ("&a [*a]", "refers to itself"), ("[" * 5000, "nested too deep")):
        with pytest.raises(yaml.YAMLError, match=words):
            parse_yaml(text)
    with pytest.raises(yaml.YAMLError, match="given twice"):
        parse_yaml("{a: 1, a: 2}")
    assert parse_yaml("base: &b {x: 1}\nmore: {<<: *b, y: 2}") == {"base": {"x": 1}, "more": {"x": 1, "y": 2}}
    (tmp_path / "large.yaml").write_bytes(b"#" * (LARGEST + 1))
    with pytest.raises(yaml.YAMLError, match="bytes"):
        read_yaml(tmp_path / "large.yaml")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "picture.png"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(InputError, match="pipe or device"):
            probe(path)
        with pytest.raises(WeightsError, match="pipe or device"):
            read_checkpoint(path)
        with pytest.raises(HybridError):
            read_volume(path)


# Names -----------------------------------------------------------------------------------------------------------

MODEL = ("--model", "espcn-compact", "--scale", "2", "--threads", "1", "-q")
ODD = ("é" * 120 + ".png", "雪だるま☃.png", " blank .png", "-o.png", "a;b$(touch x).png", "new\nline.png", "dots...png")


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8, 3), 99, np.uint8)).save(path)
    return path


def test_odd_names_come_out_as_they_went_in(tmp_path: Path) -> None:
    for name in ODD:
        picture(tmp_path / "in" / name)
    assert restore("sr", tmp_path / "in", "-o", tmp_path / "out", *MODEL).code == 0
    assert set(files(tmp_path / "out")) == {"run.jsonl", *ODD, *(f"{name}.json" for name in ODD)}
    assert not (tmp_path / "x").exists() and not Path("x").exists()
    for name in ODD:
        assert read_picture(tmp_path / "out" / name).colour.shape == (12, 16, 3)


def test_a_name_that_leaves_no_room_for_the_record_is_refused_alone(tmp_path: Path) -> None:
    longest = "n" * 251 + ".png"  # 255 bytes, the most of a file name
    picture(tmp_path / "in" / longest), picture(tmp_path / "in" / "a.png")
    said = restore("sr", tmp_path / "in", "-o", tmp_path / "out", *MODEL)
    assert said.code != 0 and "too long" in said.err and "Shorten its name" in said.err
    assert set(files(tmp_path / "out")) == {"run.jsonl", "a.png", "a.png.json"}


def test_links_are_followed_in_and_never_written_through(tmp_path: Path) -> None:
    """A linked picture is read; a link where an output goes is replaced, and what it points at stays."""
    precious = tmp_path / "precious.txt"
    precious.write_text("precious")
    picture(tmp_path / "far" / "a.png")
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a.png").symlink_to(tmp_path / "far" / "a.png")
    (inside / "secret.png").symlink_to("/etc/passwd")
    (inside / "loop").symlink_to(inside, target_is_directory=True)
    (inside / "gone.png").symlink_to(tmp_path / "nothing")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.png").symlink_to(precious)
    said = restore("sr", inside, "-o", out, *MODEL, "--overwrite")
    assert said.code != 0 and "secret.png is not a picture" in said.err and "root:" not in said.err + said.out
    assert precious.read_text() == "precious" and not (out / "a.png").is_symlink()
    assert set(files(out)) == {"run.jsonl", "a.png", "a.png.json"}
