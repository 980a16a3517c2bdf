"""Records, hashing and atomic writing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from hybrid.errors import OutputError
from hybrid.records import Record, record_path, replacing, sha256_file, timestamp, versions, without_folders, write_record


def make(**changes: object) -> Record:
    facts: dict[str, object] = {
        "task": "sr",
        "input": "in.png",
        "input_sha256": "a" * 64,
        "output": "out.png",
        "weights": "w.safetensors",
        "weights_sha256": "b" * 64,
        "weights_origin": "shipped",
        "family": "hat",
        "title": "HAT",
        "device": "cpu",
        "precision": "float32",
        "started": timestamp(),
        "seconds": 1.25,
    }
    return Record(**(facts | changes))  # type: ignore[arg-type]


def test_json_holds_every_fact_and_comes_back() -> None:
    record = make(tiles="4 tiles of 64", seed=7, notes=("größer als gedacht",))
    for compact in (False, True):
        text = record.to_json(compact=compact)
        values = json.loads(text)
        assert values["input_sha256"] == "a" * 64 and values["seed"] == 7 and values["notes"] == ["größer als gedacht"]
        assert set(values["versions"]) >= {"hybrid-imaging", "python", "torch"}
        assert Record.from_json(text).to_dict() == record.to_dict()
    assert "\n" not in record.to_json(compact=True)
    assert make().to_dict()["seed"] is None


@pytest.mark.parametrize("text", ["[]", '{"task": "sr"}', "no json"])
def test_what_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Record.from_json(text)


def test_later_keys_are_passed_over() -> None:
    values = json.loads(make().to_json()) | {"later": 1}
    assert Record.from_json(json.dumps(values)).task == "sr"


@pytest.mark.parametrize(
    "name", ["/home/Jane Doe/scan.png", r"C:\Users\Jane Doe\scan.png", "patients/jane doe/scan.png", "scan.png"]
)
def test_no_folder_or_person_gets_into_a_record(name: str) -> None:
    note = f"could not read the profile of '{name}'" if name[0] != "p" else ""
    text = make(input=name, output=name, weights=name, tiles=note, notes=(note,)).to_json()
    assert json.loads(text)["input"] == "scan.png"
    assert "jane" not in text.lower() and "home" not in text and "Users" not in text


@pytest.mark.parametrize("text", ["3/4 of 8 tiles", "12 dB / pixel", "see https://example.org/a/b", "float32, 1/2"])
def test_other_slashes_stay(text: str) -> None:
    assert without_folders(text) == text


def test_side_file_lies_beside_the_output(tmp_path: Path) -> None:
    output = tmp_path / "photo.png"
    path = write_record(make(), output)
    assert path == record_path(output) == tmp_path / "photo.png.json"
    assert json.loads(path.read_text(encoding="utf-8"))["output"] == "out.png"
    assert os.listdir(tmp_path) == ["photo.png.json"]


def test_missing_folder_is_an_output_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"photo\.png\.json could not be written.*-o"):
        write_record(make(), tmp_path / "absent" / "photo.png")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, interruption: type[BaseException]) -> None:
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(interruption), replacing(target) as part:
        part.write_text("half")
        assert part.suffix == ".json" and part.parent == tmp_path
        raise interruption
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]
    with replacing(target) as part:
        part.write_text("new")
    assert target.read_text() == "new" and os.listdir(tmp_path) == ["a.json"]


def test_hash_agrees_with_hashlib_across_pieces(tmp_path: Path) -> None:
    for size in (0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1):
        data = bytes(i * 7 % 251 for i in range(1024)) * (size // 1024 + 1)
        (tmp_path / "f").write_bytes(data[:size])
        assert sha256_file(tmp_path / "f") == hashlib.sha256(data[:size]).hexdigest()


def test_versions_name_libvips_only_where_it_is_in_use() -> None:
    code = "import sys, hybrid.records as r; v = r.versions(); print('libvips' in v, 'torch' in sys.modules, v['torch'])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert out[:2] == ["False", "False"] and re.match(r"\d+\.\d+", out[2])
    pyvips = pytest.importorskip("pyvips")
    assert versions()["libvips"] == f"{pyvips.version(0)}.{pyvips.version(1)}.{pyvips.version(2)}"


def test_timestamp_has_a_zone() -> None:
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", timestamp())
