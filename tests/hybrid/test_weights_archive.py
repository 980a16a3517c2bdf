"""Archives of weights: there and back, beside what is cached already."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hybrid.errors import OutputError, RequestError, ResourceError, WeightsError
from hybrid.weights.archive import MANIFEST, gather, pack, unpack
from hybrid.weights.catalogue import Catalogue, Entry
from hybrid.weights.find import Store
from tests.hybrid.archive_stubs import (
    FOUR,
    OTHER,
    SHIPPED,
    TWO,
    archive,
    catalogue,
    content,
    entry,
    fails,
    here,
    load,
    names,
    readable,
    sha256,
    there,
)

__all__ = ["archive", "catalogue", "here", "there"]  # fixtures


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
