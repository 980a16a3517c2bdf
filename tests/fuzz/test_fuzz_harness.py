"""What watches over fuzzing: a child that was killed leaves nothing to the next, and what it had counted is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import fuzz_readers
from tests.fuzz.mutations import _in_text

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(sys.platform != "linux", reason="the harness bounds memory and counts it as Linux does")
def test_what_a_killed_child_leaves_is_no_fault_of_the_next(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(fuzz_readers.STATE.pack(0, 0, 0.0))
    for name in ("scratch", "tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "left.tif").write_bytes(b"of the input that hung")
    command = [sys.executable, "-m", "benchmarks.fuzz_readers", "listing", "--work", "0", "4", "1", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True)
    told = json.loads((tmp_path / "told").read_text())
    assert told["outcomes"] == {"valid": 4} and not told["faults"]


BREAKING = """
import os, sys
if sys.argv[sys.argv.index("--work") + 1] == "0":
    import tests.fuzz.readers as readers
    plain, calls = readers.check, []
    def check(reader, files, folder):
        calls.extend([folder] * (folder.name == "scratch"))
        return plain(reader, files, folder) if len(calls) < 6 else os._exit(7)
    readers.check = check
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the harness bounds memory and counts it as Linux does")
def test_an_input_that_ends_the_process_is_the_only_one_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sixth of ten."""
    (tmp_path / "sitecustomize.py").write_text(BREAKING)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.chdir(ROOT)
    tally = fuzz_readers.fuzz("listing", 10, 1, tmp_path / "kept")
    assert sum(tally.outcomes.values()) == 9
    assert [(kind, fault["count"], fault["first"]) for kind, fault in tally.faults.items()] == [("ended with 7", 1, 5)]
    assert list((tmp_path / "kept" / "listing").glob("5-*/*"))


@pytest.mark.parametrize("text", ["[" * 2000, "a: !!bool 3\n", "a: !!timestamp x\n"])
def test_text_that_the_parser_itself_stumbles_over(text: str) -> None:
    """Damage done to what is damaged: it is plain text, then."""
    for number in range(20):
        assert _in_text(text.encode(), b"", np.random.default_rng(number)) is not None
