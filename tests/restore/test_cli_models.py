"""The commands `restore models ...` that need no network: where weights are, whether they are sound, and moving them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from hybrid.records import sha256_file
from hybrid.weights.catalogue import Catalogue
from restore.loading import catalogue, find_weights
from tests.command import Said, files, restore

COMPACT = find_weights("hat-compact", 4)[0].path
HAT = "HAT_SRx4.pth"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No network, and a cache that is not there yet."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.delenv("RESTORE_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def test_another_network_of_the_family_is_not_imported(cache: Path) -> None:
    said = models("import", COMPACT, "--as", "hat", "--scale", "4")
    assert said.code == 4 and "855,403 parameters, and hat x4 has 20,772,507" in said.err
    assert not list(cache.glob("*.pth"))


@pytest.fixture
def cached(cache: Path, small_for_hat: None) -> Path:
    """The shipped network in the cache under the name of HAT x4, whose hash the catalogue does not know."""
    assert models("import", COMPACT, "--as", "hat", "--scale", "4").code == 0
    return cache / HAT


def models(*arguments: str | Path) -> Said:
    return restore("models", *arguments)


def line(said: Said, part: str) -> str:
    (found,) = [line for line in said.out.splitlines() if part in line]
    return found


# path ----------------------------------------------------------------------------------------------------------------


def test_path_is_the_folder_or_the_file(cached: Path) -> None:
    assert models("path") == Said(0, f"{cached.parent}\n", "")
    assert models("path", "HAT", "--scale", "4") == Said(0, f"{cached}\n", "")
    assert models("path", "hat-compact", "--scale", "4") == Said(0, f"{COMPACT}\n", "")


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (("hat", "--scale", "4"), 4, f"save {HAT}, then type: restore models import {HAT}"),
        (("hat",), 2, "2, 3, 4"),
        (("hatt",), 2, "Did you mean hat"),
        (("--scale", "4"), 2, "restore models path NAME"),
    ],
)
def test_path_of_what_is_not_here(arguments: tuple[str, ...], code: int, part: str, cache: Path) -> None:
    said = models("path", *arguments)
    assert (said.code, said.out) == (code, "") and part in said.err
    assert not cache.exists()


# verify --------------------------------------------------------------------------------------------------------------


def test_verify_names_every_file_that_is_here(cached: Path) -> None:
    said = models("verify")
    shipped = sum(len(entry.files) for entry in catalogue() if entry.shipped)
    assert said.code == 0 and len(said.out.splitlines()) == 1 + shipped
    assert line(said, HAT).startswith("ok ") and sha256_file(cached) in line(said, HAT) and "as recorded" in line(said, HAT)
    assert line(said, COMPACT.name).startswith("ok ")
    assert len(models("verify", "hat").out.splitlines()) == 1


def test_verify_finds_a_changed_file_and_says_the_repair(cached: Path) -> None:
    body = bytearray(cached.read_bytes())
    body[-1] ^= 1  # still readable: only its hash tells
    cached.write_bytes(body)
    said = models("verify")
    assert said.code == 4 and "Damaged or absent: 1." in said.err
    assert line(said, HAT).startswith("DAMAGED") and f"Delete {cached}" in line(said, HAT) and "models import" in line(said, HAT)
    assert line(said, COMPACT.name).startswith("ok ")


def test_verify_reads_a_file_whose_hash_nobody_knows(cache: Path) -> None:
    cache.mkdir()
    (cache / HAT).write_bytes(COMPACT.read_bytes()[:-5])
    said = models("verify", "hat")
    assert said.code == 4 and line(said, HAT).startswith("DAMAGED") and f"{HAT}.sha256, and get it again" in line(said, HAT)
    (cache / HAT).write_bytes(COMPACT.read_bytes())
    (cache / f"{HAT}.sha256").unlink()
    assert "first seen" in line(models("verify", "hat"), HAT)


def test_verify_holds_shipped_weights_against_their_training_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / COMPACT.name).write_bytes(COMPACT.read_bytes())
    entries = dict(catalogue().entries)
    unhashed = entries["hat-compact"].files[4].model_copy(update={"sha256": None})
    entries["hat-compact"] = entries["hat-compact"].model_copy(update={"files": {4: unhashed}})
    known = Catalogue(entries, tmp_path)
    monkeypatch.setattr("restore.loading.catalogue", lambda: known)
    record = tmp_path / "weights/hat-compact-x4.json"
    record.write_text(json.dumps({"weights_sha256": sha256_file(COMPACT)}))
    said = models("verify", "hat-compact")
    assert said.code == 0 and "as recorded" in said.out
    record.write_text(json.dumps({"weights_sha256": "0" * 64}))
    said = models("verify", "hat-compact")
    assert said.code == 4 and "Install the package again" in said.out


def test_verify_of_what_is_not_here(cache: Path) -> None:
    said = models("verify", "hat", "hat-compact")
    assert said.code == 4 and line(said, "absent").endswith("hat") and "ok " in said.out
    assert models("verify", "hatt").code == 2
    assert not cache.exists()


# pack and import -----------------------------------------------------------------------------------------------------


def test_packed_here_and_imported_there(cached: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = models("pack", "w.zip", "hat", "hat-compact")
    assert said.code == 0 and "licence of weights: unknown" in line(said, HAT) and said.err == ""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "there"))
    said = models("import", "w.zip")
    assert said.code == 0 and line(said, "imported") == f"hat x4  imported: {tmp_path / 'there' / HAT}"
    assert f"comes with the package: {COMPACT}" in said.out
    assert files(tmp_path / "there") == files(cached.parent)
    assert models("path", "hat", "--scale", "4").out == f"{tmp_path / 'there' / HAT}\n"
    assert "already here" in line(models("import", "w.zip"), HAT)


def test_pack_names_what_is_not_here(tmp_path: Path) -> None:
    said = models("pack", "w.zip", "hat-compact", "hat", "drct", "--scale", "4")
    assert said.code == 4 and said.out == "" and "hat (HAT_SRx4.pth), drct (DRCT_x4.pth)" in said.err
    assert files(tmp_path) == {}


def test_pack_replaces_nothing_unasked(tmp_path: Path) -> None:
    (tmp_path / "w.zip").write_text("mine")
    said = models("pack", "w.zip", "hat-compact")
    assert said.code == 6 and "--overwrite" in said.err and files(tmp_path) == {"w.zip": b"mine"}
    assert models("pack", "w.zip", "hat-compact", "--overwrite").code == 0
    assert models("pack", "weights", "hat-compact").code == 2


def test_weights_of_another_network_do_not_get_in(cached: Path, cache: Path, tmp_path: Path) -> None:
    """The archive is sound and its hashes hold, but what it calls DRCT is a HAT."""
    assert models("pack", "w.zip", "hat").code == 0
    with zipfile.ZipFile("w.zip") as bundle:
        body, told = bundle.read(HAT), json.loads(bundle.read("manifest.json"))
    told["files"][0] |= {"model": "drct", "file": "DRCT_x4.pth"}
    with zipfile.ZipFile("false.zip", "w") as bundle:
        bundle.writestr("DRCT_x4.pth", body)
        bundle.writestr("manifest.json", json.dumps(told))
    before = files(cache)
    said = models("import", "false.zip")
    assert said.code == 4 and "DRCT_x4.pth holds HAT" in said.err and files(cache) == before


def test_a_hostile_archive_writes_nothing(cache: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile("w.zip", "w") as bundle:
        bundle.writestr("../../evil.pth", COMPACT.read_bytes())
    said = models("import", "w.zip")
    assert said.code == 4 and "no archive of weights" in said.err and "one by one" in said.err
    assert set(files(tmp_path)) == {"w.zip"} and not (tmp_path.parent / "evil.pth").exists()


@pytest.mark.usefixtures("small_for_hat")
def test_a_checkpoint_with_the_suffix_of_an_archive_is_imported_by_name(cache: Path) -> None:
    Path("hat.zip").write_bytes(COMPACT.read_bytes())
    assert models("import", "hat.zip").code == 4
    assert models("import", "hat.zip", "--as", "hat", "--scale", "4").out == f"{cache / HAT}\n"


# info ----------------------------------------------------------------------------------------------------------------


def test_info_tells_licence_and_notice_of_a_known_name(cached: Path, tmp_path: Path) -> None:
    by_name, by_file = models("info", "hat", "--scale", "4"), models("info", cached)
    for said in (by_name, by_file):
        assert said.code == 0 and "DF2K" in line(said, "trained on") and "real-hat-gan" in line(said, "notice")
    assert line(by_name, "of these weights").endswith("of these weights unknown")
    assert line(by_file, "of these weights").endswith("of these weights unknown (by the name of the file)")
    assert "of these weights Apache-2.0, as the package" in models("info", "hat-compact", "--scale", "4").out


def test_info_says_nothing_of_a_file_that_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "mine.safetensors").write_bytes(COMPACT.read_bytes())
    said = models("info", "mine.safetensors")
    assert said.code == 0 and line(said, "of these weights").endswith("of these weights unknown")
    assert "trained on" not in said.out and "notice" not in said.out


def test_the_list_begins_with_what_is_here_and_may_hold_nothing_else(cached: Path) -> None:
    def listed(*arguments: str) -> list[str]:
        lines = restore("models", "list", *arguments).out.splitlines()
        return [cells[1].strip() for line in lines if len(cells := line.split("│")) > 2 and cells[1].strip()]

    every, here = listed(), listed("--here")
    assert set(every) == {entry.name for entry in catalogue()} and every[: len(here)] == here
    assert {entry.name for entry in catalogue() if entry.shipped} < set(here) and "hat" in here and "drct" not in here
