"""Small pictures and scans for the benchmarks of batches, and judges of what came of them that share no code with the engine."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
from PIL import Image

PICTURES = ("sr", "--model", "espcn-compact")
SCANS = ("segment", "--model", "hippocampus", "--no-report")
EXACT = ("--device", "cpu", "--precision", "float32", "--threads", "1", "--quiet")


def make_pictures(folder: Path, count: int, edge: int = 48) -> None:
    """Smooth noise, a tenth of it in a sub-folder."""
    for number in range(count):
        values = np.random.default_rng(number).uniform(0, 255, (edge // 4, edge // 4, 3)).astype(np.uint8)
        path = folder / ("sub" if number % 10 == 9 else "") / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).resize((edge, edge), Image.Resampling.BICUBIC).save(path)


def make_scans(folder: Path, count: int, scan: Path, edge: int = 24) -> None:
    """Crops of a scan, each from a place of its own."""
    image = nib.load(scan)
    values = np.asarray(image.dataobj)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        corner = np.random.default_rng(number).integers(0, np.maximum(1, np.array(values.shape) - edge + 1))
        crop = values[tuple(slice(start, start + edge) for start in corner)]
        nib.save(nib.Nifti1Image(crop, image.affine), folder / f"{number:03}.nii.gz")


def run_command(arguments: list[str]) -> int:
    """One of the two commands in this process; its exit code."""
    from apps import commands

    entry = commands.medical if arguments[0] == "segment" else commands.restore
    before, sys.argv = sys.argv, ["command", *arguments]
    try:
        entry()
    except SystemExit as stop:
        return int(stop.code or 0)
    finally:
        sys.argv = before


def fork_command(arguments: list[str], *, quiet: bool = True) -> int:
    """One of the two commands in a child of this process, which has loaded its libraries; returns the child's number."""
    import medical.cli.segment  # noqa: F401 - once, not in every child
    import restore.cli.sr  # noqa: F401

    child = os.fork()
    if child:
        return child
    code = 99
    try:
        if quiet:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        code = run_command(arguments)
    finally:
        if code == 99:
            traceback.print_exc()
        os._exit(code)


def results(folder: Path) -> dict[str, bytes]:
    """Values of every picture and label map below a folder, wholly read; hidden files are no results.

    Raises:
        Exception: A file under a final name is not whole.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts) or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if name.endswith(".png"):
            with Image.open(path) as picture:
                found[name] = picture.tobytes()
        elif name.endswith(".nii.gz"):
            found[name] = np.asarray(nib.load(path).dataobj).tobytes()
        elif name.endswith(".json"):
            json.loads(path.read_text(encoding="utf-8"))
    return found


def scraps(folder: Path) -> list[str]:
    """Hidden files and folders that are left."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob(".*")]


def journal(folder: Path) -> Counter[str]:
    """How many inputs are in each state; every output has one line."""
    lines = [json.loads(line) for line in (folder / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["output"] for line in lines}) == len(lines), "an output has two lines"
    return Counter(line["status"] for line in lines)
