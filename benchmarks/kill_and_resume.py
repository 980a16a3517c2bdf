"""What becomes of a batch that is killed at any moment, or that meets a full disk, a read-only folder, a file that vanishes.

    python -m benchmarks.kill_and_resume --scan medical/examples/hippocampus_141.nii.gz

Each trial starts the command in a child process and kills it (SIGKILL) at a random moment: some time after the journal has a
random number of lines. Then every file under a final name must be whole, and the same command must finish: all outputs there,
equal to those of a run that nobody disturbed, one line for each in the journal, and no scraps. Linux; the faults of disks
need the right to mount a small file system.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.batch_inputs import (
    EXACT,
    PICTURES,
    SCANS,
    fork_command,
    journal,
    make_pictures,
    make_scans,
    results,
    scraps,
)


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_at(child: int, lines: Path, choice: random.Random, most: int) -> int:
    """Kill a run a random time after the journal has a random number of lines; returns how it ended."""
    number, delay = choice.randrange(most), choice.uniform(0, 0.1)
    while (lines.read_bytes().count(b"\n") if lines.exists() else 0) < number:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            break
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    return wait(child)


def kill_trials(title: str, command: tuple[str, ...], inputs: Path, folder: Path, trials: int) -> None:
    """Kill runs at random moments, and go on."""
    whole = folder / "whole"
    clock = time.perf_counter()
    assert wait(fork_command([*command, str(inputs), "-o", str(whole), *EXACT])) == 0
    seconds = time.perf_counter() - clock
    reference, moments = results(whole), []
    for trial in range(trials):
        out = folder / f"trial{trial}"
        child = fork_command([*command, str(inputs), "-o", str(out), *EXACT])
        ended = kill_at(child, out / "run.jsonl", random.Random(trial), 2 * len(reference))
        left = results(out) if out.exists() else {}  # fails if one is torn
        assert all(reference[name] == content for name, content in left.items()), "a result differs"
        assert wait(fork_command([*command, str(inputs), "-o", str(out), *EXACT])) == 0, "the resumed run failed"
        assert results(out) == reference and not scraps(out), (scraps(out), set(reference) ^ set(results(out)))
        assert journal(out) == {"done": len(reference)}
        moments.append(f"{len(left)}{'' if ended == -signal.SIGKILL else ' (had ended)'}")
        shutil.rmtree(out)
    print(f"{title}: {trials} kills in a run of {len(reference)}; whole results left at the kill: {', '.join(moments)}")
    print(f"{title}: every resumed run completed, equal to the undisturbed one ({seconds:.1f} s); nothing torn, no scraps")


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system in memory."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def full_disk(inputs: Path, folder: Path) -> None:
    with mounted(folder / "small", "size=600k") as out:
        command = [*PICTURES, str(inputs), "-o", str(out), *EXACT]
        code = wait(fork_command(command, quiet=False))
        left, states = results(out), journal(out)
        assert code != 0 and left and not scraps(out)
        subprocess.run(["mount", "-o", "remount,size=64m", str(out)], check=True)
        again = wait(fork_command(command))
        print(f"full disk: exit code {code}, {len(left)} whole results, journal {dict(states)}, no scraps;")
        print(f"full disk: with room again, exit code {again}, {len(results(out))} results, journal {dict(journal(out))}")
        assert again == 0 and len(results(out)) == sum(1 for _ in inputs.rglob("*.png"))


def read_only(inputs: Path, folder: Path) -> None:
    with mounted(folder / "fixed", "size=1m") as out:
        subprocess.run(["mount", "-o", "remount,ro", str(out)], check=True)
        code = wait(fork_command([*PICTURES, str(inputs), "-o", str(out), *EXACT], quiet=False))
        print(f"read-only output: exit code {code}, nothing written: {not list(out.iterdir())}")
        assert code != 0


def vanishing(inputs: Path, folder: Path) -> None:
    copy = folder / "copy"
    shutil.copytree(inputs, copy)
    gone = sorted(copy.rglob("*.png"))[-1]
    child = fork_command([*PICTURES, str(copy), "-o", str(folder / "left"), *EXACT], quiet=False)
    while not list((folder / "left").glob("*.png")):
        time.sleep(0.01)
    gone.unlink()
    code = wait(child)
    print(f"an input that vanishes: exit code {code}, journal {dict(journal(folder / 'left'))}")
    assert code == 1 and journal(folder / "left")["failed"] == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=40)
    parser.add_argument("--scans", type=int, default=6)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--scan", type=Path, help="a hippocampus, to cut scans from")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures", asked.pictures)
        kill_trials("pictures", PICTURES, folder / "pictures", folder, asked.trials)
        vanishing(folder / "pictures", folder)
        full_disk(folder / "pictures", folder)
        read_only(folder / "pictures", folder)
        if asked.scan:
            make_scans(folder / "scans", asked.scans, asked.scan)
            shutil.rmtree(folder / "whole")
            kill_trials("scans", SCANS, folder / "scans", folder, asked.trials)


if __name__ == "__main__":
    main()
