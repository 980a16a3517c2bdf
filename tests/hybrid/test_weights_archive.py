"""Archives of weights: there and back, and archives that somebody made to do harm."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hybrid.errors import OutputError, RequestError, ResourceError, WeightsError
from hybrid.weights.archive import MANIFEST, Unpacked, gather, pack, unpack
from hybrid.weights.catalogue import Catalogue, Entry
from hybrid.weights.checkpoints import read_checkpoint
from hybrid.weights.find import Store

TWO, FOUR, SHIPPED = (safetensors.torch.save({"a": torch.full((1000,), float(number))}) for number in (2, 4, 9))
OTHER = safetensors.torch.save({"a": torch.zeros(1000)})


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def entry(name: str, files: dict[int, dict[str, Any]]) -> Entry:
    facts = {"family": "f", "title": "T", "summary": "S", "code_licence": "MIT", "weights_licence": "CC0-1.0"}
    return Entry.model_validate({"name": name, **facts, "training_data": "its own", "files": files})


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """`net` with two published files, the hash of one of them known; `own`, which is shipped."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/own.safetensors").write_bytes(SHIPPED)
    page = {"page": "https://example.org/page"}
    net = entry("net", {2: {"name": "net_x2.pth", "sha256": sha256(TWO), **page}, 4: {"name": "net_x4.pth", **page}})
    own = entry("own", {4: {"name": "own.safetensors", "shipped": "own.safetensors"}})
    return Catalogue({"net": net, "own": own}, tmp_path / "package")


@pytest.fixture
def there(tmp_path: Path) -> Store:
    """The cache from which is packed, with both files of `net`."""
    store = Store(tmp_path / "there", offline=True)
    store.folder.mkdir()
    (store.folder / "net_x2.pth").write_bytes(TWO)
    (store.folder / "net_x4.pth").write_bytes(FOUR)
    return store


@pytest.fixture
def here(tmp_path: Path) -> Store:
    """The empty cache into which is unpacked."""
    return Store(tmp_path / "here", offline=True)


@pytest.fixture
def archive(tmp_path: Path, catalogue: Catalogue, there: Store) -> Path:
    path = tmp_path / "weights.zip"
    pack(path, gather(["net", "own"], None, catalogue, there))
    return path


def readable(path: Path, entry: Entry, scale: int) -> None:
    read_checkpoint(path)


def load(archive: Path, catalogue: Catalogue, store: Store) -> list[Unpacked]:
    return unpack(archive, catalogue, store, check=readable)


def content(store: Store) -> dict[str, bytes]:
    """Everything in a cache, hidden files and folders too."""
    return {str(path.relative_to(store.folder)): path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}


def fails(archive: Path, catalogue: Catalogue, store: Store, match: str) -> WeightsError:
    """The archive is refused, and the cache is as it was."""
    before = content(store)
    with pytest.raises(WeightsError, match=match) as caught:
        load(archive, catalogue, store)
    assert content(store) == before
    assert caught.value.hint and "\n" not in str(caught.value)
    assert not store.folder.exists() or not [path for path in store.folder.iterdir() if path.is_dir()]
    return caught.value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# There and back ------------------------------------------------------------------------------------------------------


def test_what_was_packed_comes_out(archive: Path, catalogue: Catalogue, here: Store) -> None:
    done = {each.packed.file: each for each in load(archive, catalogue, here)}
    assert {name: each.state for name, each in done.items()} == {
        "net_x2.pth": "imported",
        "net_x4.pth": "imported",
        "own.safetensors": "comes with the package",
    }
    assert done["net_x4.pth"].path.read_bytes() == FOUR and done["own.safetensors"].path.read_bytes() == SHIPPED
    recorded = f"{sha256(FOUR)}  net_x4.pth\n".encode()
    assert content(here) == {"net_x2.pth": TWO, "net_x4.pth": FOUR, "net_x4.pth.sha256": recorded}
    assert {each.state for each in load(archive, catalogue, here)} == {"already here", "comes with the package"}


def test_the_archive_says_what_it_holds(archive: Path) -> None:
    with zipfile.ZipFile(archive) as bundle:
        assert bundle.testzip() is None
        for info in bundle.infolist():  # no clock, no owner: they would make two archives of the same weights differ
            assert (info.compress_type, info.date_time) == (zipfile.ZIP_STORED, (1980, 1, 1, 0, 0, 0))
            assert info.external_attr >> 16 == stat.S_IFREG | 0o644
        assert {info.filename for info in bundle.infolist()} == {"net_x2.pth", "net_x4.pth", "own.safetensors", MANIFEST}
        told = json.loads(bundle.read(MANIFEST))
    assert told["version"] and [each["sha256"] for each in told["files"]] == [sha256(TWO), sha256(FOUR), sha256(SHIPPED)]
    assert told["files"][1] | {"sha256": ""} == {
        "file": "net_x4.pth",
        "model": "net",
        "scale": 4,
        "size": len(FOUR),
        "sha256": "",
        "code_licence": "MIT",
        "weights_licence": "CC0-1.0",
        "training_data": "its own",
    }


def test_the_same_weights_give_the_same_bytes(archive: Path, catalogue: Catalogue, there: Store, tmp_path: Path) -> None:
    for path in there.folder.iterdir():
        path.touch()
    pack(tmp_path / "again.ZIP", gather(["own", "NET", "net"], None, catalogue, there)[::-1])
    assert (tmp_path / "again.ZIP").read_bytes() == archive.read_bytes()


def test_one_scale_alone(catalogue: Catalogue, there: Store, tmp_path: Path) -> None:
    manifest = pack(tmp_path / "w.zip", gather(["net"], 2, catalogue, there))
    assert [(each.file, each.scale) for each in manifest.files] == [("net_x2.pth", 2)]
    with pytest.raises(RequestError, match="no weights for scale 3"):
        gather(["net"], 3, catalogue, there)


def test_all_scales_means_those_that_are_here(catalogue: Catalogue, there: Store) -> None:
    (there.folder / "net_x2.pth").unlink()
    assert [found.path.name for found in gather(["net"], None, catalogue, there)] == ["net_x4.pth"]


def test_all_absent_models_are_named(catalogue: Catalogue, here: Store) -> None:
    both = Catalogue(
        catalogue.entries | {"new": entry("new", {1: {"name": "new.pth", "page": "https://a.org"}})}, catalogue.package
    )
    with pytest.raises(WeightsError, match=r"not here: net \(net_x4\.pth\), new \(new\.pth\)\. Get them first.*models import"):
        gather(["net", "own", "new"], None, both, here)


def test_damaged_weights_are_not_packed(catalogue: Catalogue, there: Store) -> None:
    (there.folder / "net_x2.pth").write_bytes(OTHER)
    with pytest.raises(WeightsError, match="not the published one"):
        gather(["net"], None, catalogue, there)


def test_progress_ends_at_all_bytes(catalogue: Catalogue, there: Store, here: Store, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    pack(tmp_path / "w.zip", gather(["net"], None, catalogue, there), on_progress=lambda *step: told.append(step))
    assert told[-1] == (len(TWO) + len(FOUR),) * 2
    told.clear()
    unpack(tmp_path / "w.zip", catalogue, here, check=readable, on_progress=lambda *step: told.append(step))
    assert told[-1] == (len(TWO) + len(FOUR),) * 2


def test_an_archive_that_is_there_stays(archive: Path, catalogue: Catalogue, there: Store, tmp_path: Path) -> None:
    found, before = gather(["own"], None, catalogue, there), names(tmp_path)
    with pytest.raises(OutputError, match="is there already"):
        pack(archive, found)
    with pytest.raises(RequestError, match=r"ends in \.zip"):
        pack(tmp_path / "weights.tar", found)
    with pytest.raises(OutputError, match="cannot be written"):
        pack(tmp_path / "absent" / "w.zip", found)
    assert names(tmp_path) == before
    pack(archive, found, overwrite=True)
    assert len(zipfile.ZipFile(archive).namelist()) == 2


def test_nothing_is_left_of_a_packing_that_is_broken_off(catalogue: Catalogue, there: Store, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    found, before = gather(["net"], None, catalogue, there), names(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        pack(tmp_path / "w.zip", found, on_progress=stop)
    assert names(tmp_path) == before


def test_nothing_is_left_of_an_import_that_is_broken_off(archive: Path, catalogue: Catalogue, here: Store) -> None:
    def stop(path: Path, entry: Entry, scale: int) -> None:
        if scale == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        unpack(archive, catalogue, here, check=stop)
    assert content(here) == {} and list(here.folder.iterdir()) == []


def test_torch_is_not_needed_to_import_the_module() -> None:
    code = "import sys, hybrid.weights.archive; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# What is cached already ----------------------------------------------------------------------------------------------


def test_a_damaged_file_is_repaired(archive: Path, catalogue: Catalogue, here: Store) -> None:
    load(archive, catalogue, here)
    for name in ("net_x2.pth", "net_x4.pth"):
        (here.folder / name).write_bytes(OTHER)
    assert [each.state for each in load(archive, catalogue, here)][:2] == ["imported", "imported"]
    assert content(here)["net_x2.pth"] == TWO and content(here)["net_x4.pth"] == FOUR


def test_other_weights_under_the_name_are_kept(archive: Path, catalogue: Catalogue, here: Store) -> None:
    here.folder.mkdir()
    (here.folder / "net_x4.pth").write_bytes(OTHER)
    with pytest.raises(WeightsError, match=r"not the one that was cached first.*delete .*net_x4\.pth and .*net_x4\.pth\.sha256"):
        load(archive, catalogue, here)
    assert set(content(here)) == {"net_x4.pth", "net_x4.pth.sha256"} and content(here)["net_x4.pth"] == OTHER
    (here.folder / "net_x4.pth").unlink()
    fails(archive, catalogue, here, "not the one that was cached first")  # the record holds without its file


def test_a_cache_that_is_no_folder(archive: Path, catalogue: Catalogue, here: Store) -> None:
    here.folder.write_text("a file")
    with pytest.raises(ResourceError, match=r"cannot be unpacked into .*HYBRID_CACHE"):
        load(archive, catalogue, here)


def test_a_full_disk_is_said_before(archive: Path, catalogue: Catalogue, here: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Full)
    with pytest.raises(ResourceError, match=r"The disk has 1,000 bytes free; weights\.zip needs 1"):
        load(archive, catalogue, here)
    assert content(here) == {}


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
