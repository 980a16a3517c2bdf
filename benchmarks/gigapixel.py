"""A picture that does not fit the memory: enlarged, killed in the middle, resumed, and compared with a run left in peace.

    python benchmarks/gigapixel.py --model hat-compact --scale 2 --width 20000 --height 12000 --memory 1.5GB

Makes a synthetic tiled TIFF, runs `restore sr` as a process of its own, and prints the time, the peak of resident memory
(VmHWM of /proc/PID/status, so Linux only) and the sha256 of each result. Ends with 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tifffile

from hybrid.memory import format_size, parse_size
from hybrid.records import sha256_file
from restore.restoration.resumable import PROGRESS, part_folder

ROOT = Path(__file__).resolve().parents[1]
TILE = 512
POLL = 0.05  # seconds


@dataclass(frozen=True)
class Run:
    """One process: how it ended, how long it took, its peak, and what it said."""

    code: int
    seconds: float
    peak: int
    said: str


def main() -> None:
    options = _options()
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="gigapixel-") as name:
        folder = Path(name)
        source = folder / "input.tif"
        make_input(source, options.width, options.height)
        print(f"input {options.width} x {options.height}, {format_size(source.stat().st_size)}")
        (folder / "killed").mkdir()
        (folder / "whole").mkdir()
        command = _command(options, source)
        target, whole = folder / "killed" / "out.tif", folder / "whole" / "out.tif"
        for path in (target, whole):
            part_folder(path).mkdir()  # the sign of a run that was broken off: small pictures are streamed too
        killed = run([*command, "-o", str(target)], target, kill_at_row=options.kill_at_row)
        _tell("killed", killed)
        if killed.code == 0:
            raise SystemExit("The run ended before it was killed: give a smaller --kill-at-row or a larger picture.")
        rows = json.loads((part_folder(target) / PROGRESS).read_text(encoding="utf-8"))["progress"]["rows"]
        print(f"  {rows} rows of tiles were finished; the output is {'there' if target.exists() else 'not there'}")
        runs = {"resumed": run([*command, "-o", str(target)], target), "uninterrupted": run([*command, "-o", str(whole)], whole)}
        for title, each in runs.items():
            _tell(title, each)
        sys.exit(0 if _judge(options, killed, runs, target, whole) else 1)


def make_input(path: Path, width: int, height: int) -> None:
    """A tiled BigTIFF with slopes, waves of every length and grain, made tile by tile."""
    grain = np.random.default_rng(0).normal(0, 6, (TILE, TILE, 3)).astype(np.float32)

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                y, x = np.mgrid[top : top + TILE, left : left + TILE].astype(np.float32)
                waves = [np.sin(x * x / (60 * width)), np.sin(y * y / (60 * height)), np.sin(x * y / (30 * max(width, height)))]
                yield np.clip(128 + 100 * np.stack(waves, axis=-1) + grain, 0, 255).astype(np.uint8)

    tifffile.imwrite(
        path, tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb", compression="zlib",
        bigtiff=True, metadata=None,
    )  # fmt: skip


def run(command: list[str], target: Path, kill_at_row: int | None = None) -> Run:
    """Run a command and watch its peak; kill it once so many rows of tiles are finished."""
    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                peak = max(peak, _peak(process.pid))
                if kill_at_row is not None and _rows(target) >= kill_at_row:
                    process.kill()
                    process.wait()
                time.sleep(POLL)
        finally:
            process.kill()
        log.seek(0)
        return Run(process.wait(), time.perf_counter() - started, peak, log.read())


def _command(options: argparse.Namespace, source: Path) -> list[str]:
    program = [sys.executable, "-c", "from apps.commands import restore; restore()", "sr", str(source)]
    network = ["--weights", str(options.weights)] if options.weights else ["--model", options.model]
    tile = ["--tile", options.tile] if options.tile else []
    shape = ["--scale", options.scale, "--memory", options.memory, "--device", options.device, "--precision", options.precision]
    return [*program, *network, *shape, *tile]


def _rows(target: Path) -> int:
    try:
        return int(json.loads((part_folder(target) / PROGRESS).read_text(encoding="utf-8"))["progress"]["rows"])
    except OSError:
        return 0


def _peak(pid: int) -> int:
    try:
        found = re.search(r"^VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0


def _tell(title: str, run: Run) -> None:
    print(f"{title}: exit {run.code}, {run.seconds:.1f} s, peak {format_size(run.peak)}")
    for line in run.said.splitlines():
        print(f"  {line}")


def _judge(options: argparse.Namespace, killed: Run, runs: dict[str, Run], target: Path, whole: Path) -> bool:
    if any(each.code for each in runs.values()):
        return False
    hashes = sha256_file(target), sha256_file(whole)
    with tifffile.TiffFile(target) as file:
        page = file.pages.first
        print(f"result: {page.imagewidth} x {page.imagelength}, BigTIFF {file.is_bigtiff}, tiles {page.is_tiled}")
        right = file.is_bigtiff and page.is_tiled
    print(f"sha256 resumed       {hashes[0]}\nsha256 uninterrupted {hashes[1]}")
    peak = max(killed.peak, *(each.peak for each in runs.values()))
    print(f"peak of all runs {format_size(peak)}, allowed {format_size(parse_size(options.memory))}")
    same, within = hashes[0] == hashes[1], peak <= parse_size(options.memory)
    print(f"identical: {same}; within the memory: {within}; resumed: {'Resumed after' in runs['resumed'].said}")
    return same and within and right and "Resumed after" in runs["resumed"].said


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--width", type=int, default=20_000)
    parser.add_argument("--height", type=int, default=12_000)
    parser.add_argument("--model", default="hat-compact")
    parser.add_argument("--weights", type=Path, help="a checkpoint in place of --model")
    parser.add_argument("--scale", default="2")
    parser.add_argument("--memory", default="1.5GB")
    parser.add_argument("--tile", help="tile edge; default: what fits the memory")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--kill-at-row", type=int, default=2, help="kill once so many rows of tiles are finished")
    parser.add_argument("--folder", type=Path, help="where the pictures lie for the time; default: the system's")
    return parser.parse_args()


if __name__ == "__main__":
    main()
