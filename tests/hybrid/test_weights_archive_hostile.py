"""Archives of weights that somebody made to do harm, and those that are damaged."""

from __future__ import annotations

import io
import json
import stat
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from hybrid.errors import WeightsError
from hybrid.weights.archive import MANIFEST, unpack
from hybrid.weights.catalogue import Catalogue
from hybrid.weights.find import Store
from tests.hybrid.archive_stubs import FOUR, OTHER, TWO, catalogue, content, fails, here, load, names, sha256

__all__ = ["catalogue", "here"]  # fixtures


# Archives that are not what they should be ---------------------------------------------------------------------------


def manifest(**changes: Any) -> dict[str, Any]:
    """The manifest of an archive of `net` x4, with changes to its one file."""
    file = {"file": "net_x4.pth", "model": "net", "scale": 4, "size": len(FOUR), "sha256": sha256(FOUR)}
    licences = {"code_licence": "MIT", "weights_licence": "MIT", "training_data": "-"}
    return {"format": "hybrid-imaging weights, 1", "version": "0.1.0", "files": [file | licences | changes]}


def made(path: Path, told: dict[str, Any] | bytes | None, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    """An archive of these members, and of a manifest if one is given."""
    with zipfile.ZipFile(path, "w") as bundle:
        for member, body in members:
            bundle.writestr(member, body)
        if told is not None:
            bundle.writestr(MANIFEST, told if isinstance(told, bytes) else json.dumps(told))
    return path


def test_the_pieces_of_the_hostile_ones_are_sound(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    load(made(tmp_path / "w.zip", manifest(), ("net_x4.pth", FOUR)), catalogue, here)
    assert content(here)["net_x4.pth"] == FOUR


@pytest.mark.parametrize(
    "name", ["../net_x4.pth", "/tmp/net_x4.pth", "..\\net_x4.pth", "C:\\net_x4.pth", "a/net_x4.pth", ".lock"]
)
def test_names_that_lead_elsewhere(name: str, tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    before = names(tmp_path) | {"1.zip", "2.zip"}
    fails(made(tmp_path / "1.zip", manifest(), ("net_x4.pth", FOUR), (name, FOUR)), catalogue, here, "other files than")
    fails(made(tmp_path / "2.zip", manifest(file=name), (name, FOUR)), catalogue, here, "does not read .*files.0.file")
    assert names(tmp_path) == before


@pytest.mark.parametrize(
    "changes", [{"file": "stranger.pth"}, {"model": "stranger"}, {"scale": 8}, {"scale": 2}, {"file": "net_x4.pth.sha256"}]
)
def test_files_that_the_catalogue_does_not_know(
    changes: dict[str, Any], tmp_path: Path, catalogue: Catalogue, here: Store
) -> None:
    told = manifest(**changes)
    path = made(tmp_path / "w.zip", told, (told["files"][0]["file"], FOUR))
    assert "Install" in str(fails(path, catalogue, here, "this version does not know").hint)


def special(kind: int, **more: Any) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("net_x4.pth")
    info.external_attr = (kind | 0o777) << 16
    for name, value in more.items():
        setattr(info, name, value)
    return info


@pytest.mark.parametrize(
    "info",
    [
        special(stat.S_IFLNK),
        special(stat.S_IFCHR),
        special(stat.S_IFDIR),
        special(stat.S_IFREG, compress_type=zipfile.ZIP_DEFLATED),
        special(stat.S_IFREG, compress_type=zipfile.ZIP_LZMA),
    ],
    ids=["link", "device", "folder", "deflated", "lzma"],
)
def test_members_that_are_no_plain_files(info: zipfile.ZipInfo, tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    target = b"/etc/passwd"
    told = manifest(size=len(target), sha256=sha256(target))
    fails(made(tmp_path / "w.zip", told, (info, target)), catalogue, here, "compressed, encrypted or no plain file")


def test_a_bomb(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    bomb = special(stat.S_IFREG, compress_type=zipfile.ZIP_DEFLATED)
    zeros = bytes(50 << 20)
    told = manifest(size=len(zeros), sha256=sha256(zeros))
    fails(made(tmp_path / "w.zip", told, (bomb, zeros)), catalogue, here, "compressed")
    with zipfile.ZipFile(tmp_path / "m.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(MANIFEST, bytes(50 << 20))
    fails(tmp_path / "m.zip", catalogue, here, "manifest.json of another kind")
    fails(made(tmp_path / "l.zip", b" " * (2 << 20)), catalogue, here, "manifest.json of another kind")


def test_a_list_of_members_that_would_fill_the_memory(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    with zipfile.ZipFile(tmp_path / "w.zip", "w") as bundle:
        for number in range(600):
            bundle.writestr(f"{number}" + "n" * 2000, b"")
    fails(tmp_path / "w.zip", catalogue, here, "list of members is too long")


def test_members_that_share_their_bytes(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    """Two entries of the list point to one body, so that more comes out than the file holds."""
    twin = "net_x2.pth"
    told = manifest()
    told["files"] += [told["files"][0] | {"file": twin, "scale": 2}]
    buffer = bytearray(made(tmp_path / "w.zip", told, ("net_x4.pth", FOUR), (twin, b"")).read_bytes())
    entry_at = buffer.rindex(twin.encode()) - 46
    size, offset = struct.pack("<LL", len(FOUR), len(FOUR)), struct.pack("<L", 0)
    buffer[entry_at + 20 : entry_at + 28], buffer[entry_at + 42 : entry_at + 46] = size, offset
    (tmp_path / "w.zip").write_bytes(buffer)
    fails(tmp_path / "w.zip", catalogue, here, "claims more than it holds")


def test_an_encrypted_member(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    buffer = bytearray(made(tmp_path / "w.zip", manifest(), ("net_x4.pth", FOUR)).read_bytes())
    buffer[buffer.rindex(b"net_x4.pth") - 46 + 8] |= 1
    (tmp_path / "w.zip").write_bytes(buffer)
    fails(tmp_path / "w.zip", catalogue, here, "compressed, encrypted")


def test_a_file_that_was_exchanged(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    fails(made(tmp_path / "w.zip", manifest(), ("net_x4.pth", OTHER)), catalogue, here, r"damaged: net_x4\.pth is not what")
    fails(made(tmp_path / "w.zip", manifest(size=7), ("net_x4.pth", FOUR)), catalogue, here, "another size")
    told = manifest(file="net_x2.pth", scale=2, sha256=sha256(OTHER))
    fails(made(tmp_path / "w.zip", told, ("net_x2.pth", OTHER)), catalogue, here, "not the published one")


def test_members_that_are_missing_or_there_twice(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    fails(made(tmp_path / "1.zip", manifest()), catalogue, here, "other files than")
    with pytest.warns(UserWarning, match="Duplicate"):
        path = made(tmp_path / "2.zip", manifest(), ("net_x4.pth", FOUR), ("net_x4.pth", FOUR))
    fails(path, catalogue, here, "other files than")
    twice = manifest()
    twice["files"] *= 2
    with pytest.warns(UserWarning, match="Duplicate"):
        path = made(tmp_path / "3.zip", twice, ("net_x4.pth", FOUR), ("net_x4.pth", FOUR))
    fails(path, catalogue, here, "claims more")


def test_one_bad_file_keeps_all_out(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    """The second file has its hash, and is no checkpoint."""
    told = manifest(file="net_x2.pth", scale=2, size=len(TWO), sha256=sha256(TWO))
    page = b"<html>please log in</html>"
    told["files"] += manifest(size=len(page), sha256=sha256(page))["files"]
    fails(made(tmp_path / "w.zip", told, ("net_x2.pth", TWO), ("net_x4.pth", page)), catalogue, here, "is a web page")


@pytest.mark.parametrize(
    "told",
    [
        b"",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        json.dumps(manifest() | {"format": "hybrid-imaging weights, 2"}).encode(),
        json.dumps(manifest() | {"files": []}).encode(),
        json.dumps(manifest() | {"run": "rm"}).encode(),
        json.dumps(manifest(size=-1)).encode(),
        json.dumps(manifest(sha256="0" * 63)).encode(),
    ],
    ids=["empty", "object", "binary", "deep", "later", "no files", "more", "size", "hash"],
)
def test_manifests_that_are_none(told: bytes, tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    fails(made(tmp_path / "w.zip", told, ("net_x4.pth", FOUR)), catalogue, here, "manifest.json that this version does not read")


def checkpoint() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "match"),
    [
        (b"", "no sound zip"),
        (b"<html>", "no sound zip"),
        (b"PK\5\6" + bytes(18), "no archive of weights"),
        (checkpoint(), "no archive of weights"),
    ],
    ids=["empty", "page", "empty zip", "checkpoint"],
)
def test_foreign_files(body: bytes, match: str, tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    (tmp_path / "w.zip").write_bytes(body)
    fails(tmp_path / "w.zip", catalogue, here, match)


def test_a_file_that_is_not_there(tmp_path: Path, catalogue: Catalogue, here: Store) -> None:
    fails(tmp_path / "absent.zip", catalogue, here, "There is no file")
    fails(tmp_path, catalogue, here, "There is no file")


def test_damage_is_never_taken_for_weights(tmp_path: Path, catalogue: Catalogue) -> None:
    """Whatever byte of the lists is changed, and wherever it is cut: refused, or the right weights all the same."""
    path = made(tmp_path / "w.zip", manifest(), ("net_x4.pth", FOUR))
    body = path.read_bytes()
    damaged = [body[:end] for end in range(0, len(body), 97)]
    places = (*range(60), *range(len(body) - 700, len(body) - 200, 7), *range(len(body) - 200, len(body)))
    damaged += [body[:place] + bytes([body[place] ^ 0xFF]) + body[place + 1 :] for place in places]
    refused = 0
    for number, broken in enumerate(damaged):
        path.write_bytes(broken)
        store = Store(tmp_path / f"cache{number}")
        try:
            unpack(path, catalogue, store, check=lambda path, entry, scale: None)
        except WeightsError:
            refused += 1
            assert content(store) == {}
        else:
            assert content(store)["net_x4.pth"] == FOUR
    assert refused > len(damaged) / 2
