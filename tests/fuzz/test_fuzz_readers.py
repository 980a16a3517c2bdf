"""Every reader against damaged files: those that once found a fault, and some that are new to it each time the code changes."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

import pytest

from tests.fuzz.readers import READERS, check, input_of

CORPUS = Path(__file__).resolve().parents[1] / "data" / "fuzz"
SEED = 20_000
COUNTS = {"dicom": 20, "dicom-picture": 40, "data-spec": 30, "catalogue": 30, "recipe": 30, "scan-recipe": 30, "protocol": 60}
"""Damaged inputs of each reader; the slow ones have fewer. `benchmarks.fuzz_readers` has many more."""


def corpus() -> list[Path]:
    return sorted(path for path in CORPUS.glob("*/*") if path.is_dir())


@pytest.mark.parametrize("case", corpus(), ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_once_found_a_fault_is_read_or_refused(case: Path, tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in sorted(case.iterdir())}
    check(READERS[case.parent.name], files, tmp_path)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files_are_read_or_refused(name: str, tmp_path: Path) -> None:
    """Also that sound ones are read, and that the damage is such that some are refused."""
    reader, outcomes = READERS[name], set()
    sound = len(reader.inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(sound + COUNTS.get(name, 150)):
            outcome = check(reader, input_of(reader, SEED, number), tmp_path)
            assert number >= sound or outcome == "valid", f"the sound input {number} is none: {outcome}"
            outcomes.add(outcome)
    assert len(outcomes) > 1 or name in ("journal", "exif")  # which pass over what they cannot read


def test_the_corpus_is_small() -> None:
    assert sum(path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()) < 100_000


@functools.cache
def _sound(name: str) -> int:
    return len(READERS[name].inputs())


@pytest.mark.parametrize("name", ["picture", "nifti", "checkpoint"])
def test_the_same_seed_gives_the_same_inputs(name: str) -> None:
    first, again = (input_of(READERS[name], 3, _sound(name) + 1) for _ in range(2))
    assert first == again != input_of(READERS[name], 4, _sound(name) + 1)
