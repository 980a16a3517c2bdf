"""Every reader of files against damaged ones: it gives a valid result or one of our errors with a hint, and nothing else.

    python -m benchmarks.fuzz_readers picture nifti --inputs 100000 --seed 1 --report fuzz.json
    python -m benchmarks.fuzz_readers journal --guided 300      # by coverage, for 300 s; needs atheris

The inputs are small valid files, made on the spot, and damaged by the formats' own structure (`tests.fuzz.mutations`); the
same seed gives the same inputs. They are read in a child process whose memory is bounded and which a watchdog kills when one
input takes it too much time; it goes on with the next one then. Of every kind of fault the first input is kept. Linux.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import os
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MEMORY = 4 << 30
"""Bytes of address space that a child may take beyond what it has when it begins."""
HANG = 20.0
"""Seconds of computing on one input after which it is called a hang; or six times that by the clock."""
STATE = struct.Struct("=qqd")  # input under way, inputs done, seconds of computing when it began


@dataclass
class Tally:
    """What came of the inputs of one reader."""

    reader: str
    seed: int
    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    faults: dict[str, dict[str, Any]] = field(default_factory=dict)
    slowest: float = 0.0
    slowest_input: int = 0
    peak: int = 0
    noisy: int = 0
    seconds: float = 0.0

    def add_fault(self, kind: str, number: int, detail: str) -> None:
        """Count a fault under its kind; the first input stands for all."""
        known = self.faults.setdefault(kind, {"count": 0, "first": number, "detail": detail})
        known["count"] += 1

    def take(self, told: dict[str, Any]) -> None:
        """Add what a child has told."""
        self.outcomes.update(told["outcomes"])
        for kind, fault in told["faults"].items():
            known = self.faults.setdefault(kind, fault | {"count": 0})
            known["count"] += fault["count"]
        if told["slowest"] > self.slowest:
            self.slowest, self.slowest_input = told["slowest"], told["slowest_input"]
        self.peak, self.noisy = max(self.peak, told["peak"]), self.noisy + told["noisy"]

    def to_dict(self) -> dict[str, Any]:
        return vars(self) | {"outcomes": dict(self.outcomes.most_common())}


# The child -------------------------------------------------------------------------------------------------------


def work(name: str, seed: int, first: int, last: int, folder: Path) -> None:
    """Read the inputs from `first` to before `last`; what came of them is told in a file as it comes."""
    from tests.fuzz.readers import READERS, check, input_of, quieten

    quieten()
    reader = READERS[name]
    with tempfile.TemporaryDirectory(dir=folder) as warm:  # imports and the first use of libraries take memory of their own
        for number in range(len(reader.inputs())):
            outcome = check(reader, input_of(reader, seed, number), Path(warm))
            assert outcome == "valid", f"{name}: the sound input {number} is none: {outcome}"
    with (folder / "state").open("r+b") as file:
        state = mmap.mmap(file.fileno(), STATE.size)
    scratch, temporary, noise = folder / "scratch", folder / "tmp", folder / "noise"
    for place in (scratch, temporary):  # of a child that was killed the input lies there still
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
    tempfile.tempdir = str(temporary)
    os.dup2(os.open(noise, os.O_CREAT | os.O_WRONLY | os.O_APPEND), 2)
    bound = _address_space() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    told: dict[str, Any] = {"outcomes": Counter(), "faults": {}, "slowest": 0.0, "slowest_input": 0, "peak": 0, "noisy": 0}
    heard = noise.stat().st_size
    for number in range(first, last):
        began = time.process_time()
        state[:] = STATE.pack(number, number - first, began)
        try:
            outcome = check(reader, input_of(reader, seed, number), scratch)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit):
                raise
            outcome = "fault"
            kind, detail = _kind_of(error)
            fault = told["faults"].setdefault(kind, {"count": 0, "first": number, "detail": detail})
            fault["count"] += 1
        if left := os.listdir(temporary):
            told["faults"].setdefault("left in the temporary folder", {"count": 0, "first": number, "detail": str(left)})
        spent = time.process_time() - began
        if spent > told["slowest"]:
            told["slowest"], told["slowest_input"] = spent, number
        told["outcomes"][outcome] += 1
        if (size := noise.stat().st_size) != heard:
            heard, told["noisy"] = size, told["noisy"] + 1
        _tell(folder, told, base)
    state[:] = STATE.pack(last, last - first, time.process_time())


def _tell(folder: Path, told: dict[str, Any], base: int) -> None:
    told["peak"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) << 10
    part = folder / "told.part"
    part.write_text(json.dumps(told))
    os.replace(part, folder / "told")


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _kind_of(error: BaseException) -> tuple[str, str]:
    """What tells one fault from another: its type, and where in our own files it went through."""
    root = str(Path(__file__).resolve().parents[1]) + os.sep
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        f
        for f in frames
        if f.filename.startswith(root) and not f.filename.startswith((f"{root}tests", f"{root}benchmarks", f"{root}.venv"))
    ]
    place = f"{ours[-1].filename.removeprefix(root)}:{ours[-1].name}" if ours else f"{frames[-1].name}"
    if isinstance(error, AssertionError):
        place = str(error)[:60]
    last = frames[-1]
    return f"{type(error).__name__} at {place}", f"{str(error)[:300]} ({Path(last.filename).name}:{last.lineno})"


# The parent ------------------------------------------------------------------------------------------------------


def fuzz(name: str, inputs: int, seed: int, kept: Path) -> Tally:
    """All inputs of one reader, whatever they do to the child."""
    tally, first, clock = Tally(name, seed, inputs), 0, time.perf_counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        folder = Path(place)
        while first < inputs:
            (folder / "state").write_bytes(STATE.pack(first, 0, 0.0))
            (folder / "told").unlink(missing_ok=True)
            ended = _watch(name, seed, first, inputs, folder)
            if (folder / "told").exists():
                tally.take(json.loads((folder / "told").read_text()))
            number, _, _ = STATE.unpack((folder / "state").read_bytes())
            if ended is None:
                break
            tally.add_fault(ended, number, "the process ended")
            if number == first and "before it began" in ended:
                break
            first = number + 1
    tally.seconds = round(time.perf_counter() - clock, 1)
    _keep(tally, kept)
    return tally


def _watch(name: str, seed: int, first: int, last: int, folder: Path) -> str | None:
    """Run a child to its end; how it failed, None if it did not."""
    import psutil

    arguments = [sys.executable, "-m", "benchmarks.fuzz_readers", name, "--work", str(first), str(last), str(seed), str(folder)]
    quiet = {"OMP_NUM_THREADS": "1", "VIPS_CONCURRENCY": "1", "MALLOC_ARENA_MAX": "2", "PYTHONWARNINGS": "ignore"}
    child = subprocess.Popen(arguments, env=os.environ | quiet)
    process = psutil.Process(child.pid)
    before, since = (first, 0), time.monotonic()
    while True:
        try:
            code = child.wait(1.0)
        except subprocess.TimeoutExpired:
            number, done, began = STATE.unpack((folder / "state").read_bytes())
            if (number, done) != before:
                before, since = (number, done), time.monotonic()
            used = sum(process.cpu_times()[:2])
            started = began > 0
            if (started and used - began > HANG and (number, done) == before) or time.monotonic() - since > 6 * HANG + 60 * (
                not started
            ):
                child.kill()
                child.wait()
                return f"hang: more than {HANG:g} s"
            continue
        if code == 0:
            return None
        number, _, began = STATE.unpack((folder / "state").read_bytes())
        return f"ended with {code}" + (" before it began" if began == 0 else "")


def _keep(tally: Tally, kept: Path) -> None:
    """The first input of each kind of fault, as files."""
    from tests.fuzz.readers import READERS, input_of

    for kind, fault in tally.faults.items():
        digest = hashlib.sha256(kind.encode()).hexdigest()[:8]
        folder = kept / tally.reader / f"{fault['first']}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            files = input_of(READERS[tally.reader], tally.seed, fault["first"])
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:  # the damage itself went wrong
            files = {"no-input.txt": repr(error).encode()}
        for name, data in files.items():
            (folder / name).write_bytes(data)


def guided(name: str, seconds: float, kept: Path) -> None:
    """Let atheris look for inputs that reach new branches of our own code, from the sound ones on."""
    import atheris

    with atheris.instrument_imports(include=["hybrid", "restore", "medical", "data_specs"]):
        from tests.fuzz.readers import READERS, check, quieten

        quieten()
        reader = READERS[name]
        sound = reader.inputs()
        with tempfile.TemporaryDirectory() as warm:  # what is imported by reading is instrumented too
            for files in sound:
                check(reader, files, Path(warm))
    with tempfile.TemporaryDirectory() as place:
        corpus, scratch = Path(place, "corpus"), Path(place, "scratch")
        for folder in (corpus, scratch):
            folder.mkdir()
        for at, files in enumerate(sound):
            if len(files) == 1:
                (corpus / str(at)).write_bytes(next(iter(files.values())))
        named = next(iter(sound[0]))

        def one(data: bytes) -> None:
            try:
                check(reader, {named: data}, scratch)
            except Exception:
                (kept / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)
                raise

        kept.mkdir(parents=True, exist_ok=True)
        bounds = f"-max_total_time={seconds:g} -rss_limit_mb=6000 -timeout={6 * HANG:g} -artifact_prefix={kept}/".split()
        atheris.Setup([sys.argv[0], str(corpus), *bounds, "-print_final_stats=1"], one)
        atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="+")
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="JSON with what came of it")
    parser.add_argument("--kept", type=Path, default=Path("fuzz-faults"), help="where inputs that found a fault go")
    parser.add_argument("--guided", type=float, help="seconds of coverage-guided fuzzing instead")
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.work:
        first, last, seed, folder = told.work
        work(told.readers[0], int(seed), int(first), int(last), Path(folder))
        return
    if told.guided:
        guided(told.readers[0], told.guided, told.kept / told.readers[0])
        return
    reports = []
    for name in told.readers:
        tally = fuzz(name, told.inputs, told.seed, told.kept)
        reports.append(tally.to_dict())
        spread = ", ".join(f"{count} {outcome}" for outcome, count in tally.outcomes.most_common())
        print(f"{name}: {tally.inputs} inputs in {tally.seconds:.0f} s, seed {tally.seed}: {spread}", flush=True)
        print(
            f"  slowest {tally.slowest:.2f} s (input {tally.slowest_input}), "
            f"memory {tally.peak / 2**20:.0f} MiB, noisy {tally.noisy}"
        )
        for kind, fault in tally.faults.items():
            print(f"  FAULT {kind}: {fault['count']} times, first input {fault['first']}: {fault['detail']}", flush=True)
        if told.report:
            told.report.write_text(json.dumps(reports, indent=1))
    sys.exit(any(report["faults"] for report in reports))


if __name__ == "__main__":
    main()
