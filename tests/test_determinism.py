"""Every command run twice, by two processes with other hash seeds, leaves the same bytes but for what tells of time.

And what may differ: the figures that docs/determinism.md states for the shipped networks are held here.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pydicom
import pydicom.data
import pytest
from pydicom.dataset import Dataset

from benchmarks.what_may_differ import BOUNDS, PHOTO, SAME_SIZE, SCAN, SR, denoised, middle, pictures, segmented
from medical.volumes.volume import read_volume
from restore.images import read_picture
from tests.every_command import write_inputs

ROOT = Path(__file__).resolve().parents[1]
TIMES = {"started", "ended", "finished", "seconds", "peak_memory_bytes"}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00|<dt>Time</dt><dd>[^<]*</dd>")
DATED = ("InstanceCreationDate", "InstanceCreationTime", "ContentDate", "ContentTime", "ContributionDateTime")
NAMED_ANEW = ("SOPInstanceUID", "SeriesInstanceUID", "DimensionOrganizationUID", "MediaStorageSOPInstanceUID")
LONG_AS_NAMES = ("FileMetaInformationGroupLength",)
"""A name is a number written out: one in thirty is a digit or more shorter, and so is what counts its bytes."""
DRAWN_TIMES = {"bench/psnr_seconds.png", "compare.png"}
"""Pictures that tell how long things took."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs") / "all"
    write_inputs(folder)
    return folder


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        # In a journal stand the hashes of records, in which there are times.
        return {key: without_times(each) for key, each in value.items() if key not in TIMES and not key.endswith(".json")}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def told(path: Path) -> object:
    """What a file says but for times, and for the names that each DICOM object must have for itself."""
    if path.suffix in (".json", ".jsonl"):
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        return [json.dumps(without_times(json.loads(line))) for line in lines]
    if path.suffix == ".csv":
        return [[v for k, v in row.items() if k not in TIMES] for row in csv.DictReader(io.StringIO(path.read_text()))]
    if path.suffix == ".html":
        return TIME.sub("", path.read_text())
    if path.suffix == ".md":
        return without_column(path.read_text().splitlines(), " s / picture ")
    if path.suffix == ".dcm":
        data = pydicom.dcmread(path)
        return timeless(data.file_meta), timeless(data)
    return path.read_bytes()


def without_column(lines: list[str], title: str) -> list[list[str]]:
    """Lines of Markdown, split at bars, without a column of the first table that has it."""
    rows = [line.split("|") for line in lines]
    head = next((row for row in rows if title in row), None)
    if head is None:
        return rows
    place = head.index(title)
    return [row[:place] + row[place + 1 :] if len(row) == len(head) else row for row in rows]


def timeless(data: Dataset) -> str:
    for each in data:
        if each.VR == "SQ":
            for item in each.value:
                timeless(item)
        elif each.keyword in DATED + NAMED_ANEW + LONG_AS_NAMES:
            each.value = None
    return str(data) + (str(hash(data.PixelData)) if "PixelData" in data else "")


def test_names_of_any_length_are_set_aside_and_nothing_else(tmp_path: Path) -> None:
    def written(name: str, *, rows: int = 2) -> Path:
        path = tmp_path / f"{name}-{rows}.dcm"
        one = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = name
        one.Rows = rows
        one.save_as(path, enforce_file_format=True)
        return path

    long, short = "2.25." + "1" * 39, "2.25." + "1" * 36
    assert told(written(long)) == told(written(short))
    assert told(written(long)) != told(written(long, rows=3))


@pytest.mark.timeout(1800)  # two dozen commands, each run twice; a minute where nothing else runs
def test_every_command_leaves_the_same_twice(inputs: Path, tmp_path: Path) -> None:
    places = tmp_path / "one", tmp_path / "two"
    for seed, place in enumerate(places, 1):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": str(seed)}
        environment["HYBRID_CACHE"] = str(tmp_path / "cache")  # what a machine has found out about itself stays found out
        script = str(ROOT / "tests" / "every_command.py")
        done = subprocess.run(
            [sys.executable, script, inputs, place], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        said = json.loads((place / "said.json").read_text())
        assert {name: each["err"] for name, each in said.items() if each["code"]} == {}
    one, two = (sorted(str(p.relative_to(place)) for p in place.rglob("*") if p.is_file()) for place in places)
    assert one == two and len(one) > 100
    compared = [name for name in one if name != "said.json" and name not in DRAWN_TIMES]
    assert [name for name in compared if told(places[0] / name) != told(places[1] / name)] == []
    pictures = [name for name in compared if Path(name).suffix in (".png", ".tif", ".webp", ".gz", ".zip", ".safetensors", ".pt")]
    assert len(pictures) > 40  # these are compared byte by byte


# What may differ -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SR, *SAME_SIZE])
def test_pictures_differ_no_more_than_is_said(name: str) -> None:
    """In steps of 8 bits, between thread counts, tile plans and precisions."""
    picture = middle(read_picture(PHOTO), 64 if name in SR else 288)
    found = {what.split()[0]: off for what, off, _ in pictures(name, picture, None)}
    assert {"2", "tiles"} <= found.keys()
    for what, off in found.items():
        local = what == "tiles" and name != "hat-compact"
        assert off <= (0.01 if local else BOUNDS[what]), what


def test_scans_differ_no_more_than_is_said() -> None:
    scan = read_volume(SCAN)
    small = replace(scan, values=scan.values[:, :24, :32, :24], grid=replace(scan.grid, shape=(24, 32, 24)))
    denoised_by = {what: float(off.split()[0]) for _, what, off, _ in denoised(small, None)}
    assert denoised_by["2 threads"] <= 1e-5 and denoised_by["bf16"] <= 0.02
    labels = {what: float(dice.split()[1]) for _, what, dice, _ in segmented(small, None)}
    assert labels["2 threads"] >= 0.999 and labels["bf16"] >= 0.98
