"""`--deidentify`: values planted in all that goes with a picture; Pillow, tifffile, LittleCMS and a search of all bytes judge."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyvips
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin
from PIL.TiffImagePlugin import IFDRational

from hybrid.batch.journal import JOURNAL
from restore.images import Picture, PictureMetadata, SaveOptions, read_picture, read_record, write_picture
from restore.images.icc import anonymous_profile
from restore.images.iptc import for_format
from tests.command import Said, restore
from tests.restore.command_stubs import OFFSETS, weights
from tests.restore.test_face_command import SCENE

SUFFIXES = (".png", ".jpg", ".tif", ".webp", ".avif")
SECRETS = (
    "Zyxqmaker", "Zyxqmodel", "ZYXQBODY77", "ZYXQLENS88", "Zyxqowner", "Zyxqartist", "zyxqrights", "zyxqcomment", "Zyxqxpauthor",
    "zyxqmakernote", "1847:02:11", "zyxqxmp", "zyxqiptc", "zyxqpngtext", "zyxqkey", "Zyxqscreen", "Zyxqdevice", "ZYXQSERIAL",
    "ZyMk",
)  # fmt: skip
QUICK = ("--device", "cpu", "--precision", "float32", "--threads", "1")
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    b'<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/" dc:creator="zyxqxmp"/></rdf:RDF></x:xmpmeta>'
)
IIM = b"\x1c\x02\x50" + struct.pack(">H", 8) + b"zyxqiptc"
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0" + struct.pack(">I", len(IIM)) + IIM + b"\0"


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")


def exif() -> bytes:
    made = Image.Exif()
    made[0x010F], made[0x0110], made[0x013B], made[0x8298] = "Zyxqmaker", "Zyxqmodel", "Zyxqartist", "zyxqrights"
    made[0x9C9D] = "Zyxqxpauthor".encode("utf-16-le")
    made.get_ifd(0x8769).update(
        {0x9003: "1847:02:11 01:02:03", 0xA431: "ZYXQBODY77", 0xA435: "ZYXQLENS88", 0xA430: "Zyxqowner"}
        | {0x9286: b"ASCII\0\0\0zyxqcomment", 0x927C: b"zyxqmakernote"}
    )
    place = (IFDRational(50), IFDRational(5), IFDRational(1234, 100))
    made.get_ifd(0x8825).update({1: "N", 2: place, 3: "E", 4: place})
    return made.tobytes()


def profile(swap: bool = False) -> bytes:
    """sRGB, or with red and green exchanged, with names wherever a profile has them."""
    plain = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (count,) = struct.unpack_from(">I", plain, 128)
    tags = {}
    for place in range(count):
        name, offset, size = struct.unpack_from(">4sII", plain, 132 + 12 * place)
        tags[name] = plain[offset : offset + size]
    if swap:
        tags[b"rXYZ"], tags[b"gXYZ"] = tags[b"gXYZ"], tags[b"rXYZ"]
    for tag, text in ((b"desc", "Zyxqscreen of Ann"), (b"dmdd", "Zyxqdevice"), (b"cprt", "zyxqrights"), (b"dmnd", "Zyxqmaker")):
        data = text.encode("utf-16-be")
        tags[tag] = b"mluc" + struct.pack(">III4sII", 0, 1, 12, b"enUS", len(data), 28) + data
    tags[b"mmod"] = b"mmod\0\0\0\0ZYXQSERIAL\0\0"
    start, data, table = 132 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(value))
        data += value + b"\0" * (-len(value) % 4)
    header = plain[4:48] + b"ZyMkZyMd" + plain[56:128]
    return struct.pack(">I", start + len(data)) + header + struct.pack(">I", len(tags)) + table + data


def scene(size: tuple[int, int] = (30, 40)) -> np.ndarray:
    return np.random.default_rng(3).integers(60, 160, (*size, 3), endpoint=True).astype(np.uint8)


def planted(path: Path, values: np.ndarray | None = None, icc: bytes | None = None) -> Path:
    """A picture with everything of everybody."""
    known = PictureMetadata(icc or profile(), exif(), XMP, IPTC if path.suffix in (".jpg", ".tif") else None, (300.0, 200.0))
    write_picture(
        path, Picture(scene() if values is None else values, metadata=known), SaveOptions(lossless=path.suffix != ".jpg")
    )
    return path


def texts(path: Path) -> bytes:
    """All that a file says: its bytes, and what Pillow and tifffile unpack of them."""
    said = [path.read_bytes()]
    if path.suffix in SUFFIXES:
        with Image.open(path) as judge:
            judge.load()
            told: list[Any] = [*judge.info.values(), *judge.getexif().values()]
            told += [value for ifd in (0x8769, 0x8825) for value in judge.getexif().get_ifd(ifd).values()]
            said += [value if isinstance(value, bytes) else str(value).encode() for value in told]
    if path.suffix == ".tif":
        with tifffile.TiffFile(path) as file:
            said += [str(tag.value).encode() for page in file.pages for tag in page.tags]
    return b"\n".join(said)


def leaks(*paths: Path) -> set[str]:
    found = b"\n".join(texts(path) for path in paths if path.is_file()).lower()
    forms = {secret: [secret.lower().encode(code) for code in ("ascii", "utf-16-le", "utf-16-be")] for secret in SECRETS}
    return {secret for secret, codes in forms.items() if any(code in found for code in codes)}


def places(path: Path) -> dict[int, Any]:
    with Image.open(path) as judge:
        return dict(judge.getexif().get_ifd(0x8825))


def same_colours(one: bytes, other: bytes) -> None:
    """Two profiles take every colour to the same sRGB."""
    picture = Image.fromarray(scene((64, 64)))
    shown = [
        np.asarray(ImageCms.profileToProfile(picture, io.BytesIO(icc), ImageCms.createProfile("sRGB"))) for icc in (one, other)
    ]
    np.testing.assert_array_equal(*shown)


def run(*arguments: str | Path) -> Said:
    return restore(*arguments, *QUICK)


@pytest.fixture
def network(tmp_path: Path) -> Path:
    return weights(tmp_path / "w.pth", OFFSETS)


# Formats ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_is_written_without_and_looks_the_same(suffix: str, tmp_path: Path) -> None:
    source = planted(tmp_path / f"in{suffix}")
    there = {*SECRETS} - {"zyxqpngtext", "zyxqkey"} - (set() if suffix in (".jpg", ".tif") else {"zyxqiptc"})
    assert leaks(source) == there and places(source)  # or the search would find nothing anywhere
    picture = read_picture(source)
    for target in SUFFIXES:
        kept, clean = tmp_path / f"kept{target}", tmp_path / f"clean{target}"
        how = {"lossless": target in (".webp", ".avif")}
        write_picture(kept, picture, SaveOptions(**how))
        notes = write_picture(clean, picture, SaveOptions(**how, deidentify=True, description='{"task": "t"}'))
        assert len(leaks(kept)) > 12 and not leaks(clean) and not places(clean)
        assert (
            "EXIF (place, people, device, times, texts, maker notes), XMP" in notes[0] and "names in the ICC profile" in notes[0]
        )
        before, after = read_picture(kept), read_picture(clean)
        np.testing.assert_array_equal(before.colour, after.colour)
        for found in (before, after):
            assert found.metadata.dpi == pytest.approx((300, 200), abs=0.02)
        assert read_record(after.metadata.xmp) == '{"task": "t"}' and after.metadata.iptc is None
        with Image.open(clean) as judge:
            same_colours(judge.info["icc_profile"], profile())
            assert judge.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_iptc_is_whole_where_it_stays_in_the_form_of_its_format(suffix: str, tmp_path: Path) -> None:
    picture = read_picture(planted(tmp_path / f"in{suffix}"))
    write_picture(tmp_path / "alone.tif", Picture(picture.colour, metadata=PictureMetadata(iptc=picture.metadata.iptc)))
    assert read_picture(tmp_path / "alone.tif").metadata.iptc == IIM
    write_picture(tmp_path / "out.jpg", picture)
    write_picture(tmp_path / "out.tif", picture)
    with tifffile.TiffFile(tmp_path / "out.tif") as file:
        assert file.pages.first.tags[33723].value == IIM
    with Image.open(tmp_path / "out.jpg") as judge:
        assert judge.info["photoshop"][1028] == IIM
    for damaged in (IPTC[:20], IPTC[:14] + b"no resources"):
        said = write_picture(tmp_path / "cut.tif", Picture(scene(), metadata=PictureMetadata(iptc=damaged)))
        assert said == ("The IPTC block is damaged and was left out.",)


def test_texts_of_a_png_are_named_only_by_what_the_format_knows(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    for key in ("Author", "zyxqkey"):
        info.add_text(key, "zyxqpngtext")
    Image.fromarray(scene()).save(tmp_path / "in.png", pnginfo=info)
    assert leaks(tmp_path / "in.png") == {"zyxqpngtext", "zyxqkey"}
    picture = read_picture(tmp_path / "in.png")
    assert picture.metadata.notes == ("PNG text chunks were left out: Author, 1 of other names.",)
    (note,) = write_picture(tmp_path / "out.png", picture, SaveOptions(deidentify=True))
    assert note == "De-identified; nothing had to be left out." and not leaks(tmp_path / "out.png")


def test_what_is_turned_stays_upright(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112], turned[0x010F] = 6, "Zyxqmaker"
    Image.fromarray(scene()).save(tmp_path / "in.png", exif=turned)
    write_picture(tmp_path / "out.png", read_picture(tmp_path / "in.png"), SaveOptions(deidentify=True))
    with Image.open(tmp_path / "out.png") as judge:
        np.testing.assert_array_equal(np.asarray(judge), np.rot90(scene(), -1))


# Profiles ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [False, True])
def test_a_profile_keeps_its_colours_and_loses_its_names(old: bool) -> None:
    known = profile(swap=True)
    if old:  # version 2
        known = known[:8] + b"\x02\x40" + known[10:]
    clean = anonymous_profile(known)
    assert clean is not None and not [s for s in SECRETS if s.encode() in clean or s.encode("utf-16-be") in clean]
    same_colours(clean, known)
    with pytest.raises(AssertionError):
        same_colours(clean, profile())  # the exchanged colours do show
    read = ImageCms.ImageCmsProfile(io.BytesIO(clean)).profile
    assert (read.profile_description, read.copyright) == ("Colour profile", "Not told") and read.manufacturer is None
    assert struct.unpack_from(">3H", clean, 24) == (1900, 1, 1) and clean[48:56] == bytes(8)
    assert anonymous_profile(clean) == clean


@given(st.binary(max_size=80), st.integers(0, 700))
def test_damage_anywhere_is_no_more_than_damage(piece: bytes, at: int) -> None:
    for block in (profile(), IPTC):
        damaged = block[:at] + piece + block[at + len(piece) :]
        assert isinstance(anonymous_profile(damaged), bytes | None) and isinstance(for_format(damaged, "tiff"), bytes | None)


@pytest.mark.parametrize("cut", [0, 100, 130, 140, 300])
def test_a_damaged_profile_is_left_out_and_it_is_said(cut: int, tmp_path: Path) -> None:
    assert anonymous_profile(profile()[:cut]) is None
    damaged = profile()[:cut]
    if cut >= 20:
        picture = Picture(scene(), metadata=PictureMetadata(icc=damaged))
        (note,) = write_picture(tmp_path / "out.png", picture, SaveOptions(deidentify=True))
        assert note == "De-identified. Left out: an ICC profile, which is damaged." and not leaks(tmp_path / "out.png")


@pytest.mark.parametrize("suffix", [".jpg", ".tif"])
def test_cmyk_goes_back_through_the_same_colours(suffix: str, tmp_path: Path) -> None:
    icc = bytes(pyvips.Operation.call("profile_load", "cmyk"))
    icc = icc[:48] + b"ZyMkZyMd" + icc[56:]
    patches = np.kron(np.random.default_rng(1).integers(0, 200, (3, 4, 4), np.uint8), np.ones((16, 16, 1), np.uint8))
    Image.fromarray(patches, "CMYK").save(tmp_path / f"in{suffix}", icc_profile=icc)
    picture = read_picture(tmp_path / f"in{suffix}")
    found = []
    for name, deidentify in (("kept", False), ("clean", True)):
        write_picture(tmp_path / f"{name}{suffix}", picture, SaveOptions(deidentify=deidentify))
        with Image.open(tmp_path / f"{name}{suffix}") as judge:
            assert judge.mode == "CMYK" and (b"ZyMk" in judge.info["icc_profile"]) is not deidentify
            found.append(np.asarray(judge))
    np.testing.assert_array_equal(*found)


# Commands ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_candidates_map_and_record_tell_nothing(suffix: str, network: Path, tmp_path: Path) -> None:
    source, out = planted(tmp_path / f"Zyxqowner{suffix}"), tmp_path / "out"
    out.mkdir()
    asked = ("deblur", source, "--weights", network, "--outputs", "2", "-o", out / f"1{suffix}", "--uncertainty", out / "map.png")
    said = run(*asked, "--deidentify")
    assert said.code == 0, said.err
    made = [*out.iterdir()]
    assert len(made) == 5 and not leaks(*(path for path in made if path.suffix != ".json"))
    facts = json.loads((out / f"1{suffix}.json").read_text())
    assert facts["input"] == source.name and leaks(out / f"1{suffix}.json") == {"Zyxqowner"}  # the name that the user gave it
    assert any("De-identified. Left out: EXIF (place, " in note for note in facts["notes"])
    inside = json.loads(read_record(read_picture(out / f"1{suffix}").metadata.xmp) or "")
    assert inside["output"] == f"1{suffix}" and "input" not in inside and inside["input_sha256"] == facts["input_sha256"]
    assert run(*asked, "--overwrite").code == 0 and leaks(*out.iterdir()) >= {"ZYXQBODY77", "Zyxqowner"}


def test_faces_sheets_and_the_picture_tell_nothing(tmp_path: Path) -> None:
    source, out = tmp_path / "Zyxqowner.jpg", tmp_path / "out"
    with Image.open(SCENE) as photograph:
        planted(source, np.asarray(photograph.convert("RGB")))
    asked = ("face", source, "-o", out / "1.jpg", "--sheet", out / "sheet.png", "--save-faces", out / "faces", "--deidentify")
    out.mkdir()
    said = run(*asked)
    assert said.code == 0 and "De-identified" in said.err, said.err
    made = [path for path in out.rglob("*") if path.is_file() and path.suffix != ".json"]
    assert len(made) == 4 and not leaks(*made) and not places(out / "1.jpg")
    assert leaks(out / "1.jpg.json") == {"Zyxqowner"}


def test_a_streamed_tiff_tells_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("restore.restoration.plan.STREAM_FROM", 0)
    source = planted(tmp_path / "in.tif", scene((150, 130)))
    asked = ("sr", source, "--model", "espcn-compact", "--tile", "64")
    assert (
        run(*asked, "-o", tmp_path / "kept.tif").code == 0 and run(*asked, "-o", tmp_path / "clean.tif", "--deidentify").code == 0
    )
    with tifffile.TiffFile(tmp_path / "clean.tif") as file:
        assert file.is_bigtiff and file.pages.first.is_tiled
        assert 34665 not in file.pages.first.tags and 34853 not in file.pages.first.tags and 33723 not in file.pages.first.tags
        clean = file.asarray()
    np.testing.assert_array_equal(clean, tifffile.imread(tmp_path / "kept.tif"))
    assert not leaks(tmp_path / "clean.tif", tmp_path / "clean.tif.json") and len(leaks(tmp_path / "kept.tif")) > 12
    assert read_picture(tmp_path / "clean.tif").metadata.dpi == (300.0, 200.0)


def test_a_folder_is_made_anew_when_it_is_asked_for(network: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("1.jpg", "2.png"):
        planted(tmp_path / "in" / name)
    asked = ("deblur", tmp_path / "in", "--weights", network, "-o", tmp_path / "out")
    assert run(*asked).code == 0 and leaks(*(tmp_path / "out").iterdir())
    said = run(*asked, "--deidentify")
    assert said.code == 0 and "skipped" not in said.err
    assert (tmp_path / "out" / JOURNAL).is_file() and not leaks(*(tmp_path / "out").iterdir())


def test_every_command_for_pictures_has_the_option() -> None:
    for command in ("sr", "deblur", "denoise", "dejpeg", "face"):
        assert "--deidentify" in restore(command, "--help").out
