"""How near a training by several processes is to that by one: loss curve, validation, final weights.

    python -m benchmarks.processes restore train espcn-compact-x4 --data photographs/ --steps 200
    python -m benchmarks.processes medical train hippocampus --data hippocampus/ --processes 2 --steps 20

Runs the command as given with one process and with several, on the CPU with one thread each, and prints a row in Markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from hybrid.training.loop import read_log

SCRIPT = "from apps.commands import {0}; {0}()"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["restore", "medical"])
    parser.add_argument("--processes", type=int, default=2)
    options, rest = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        places = Path(folder) / "one", Path(folder) / "several"
        for place, count in zip(places, (1, options.processes), strict=True):
            train(options.command, [*rest, "-o", str(place), "--accelerator", "cpu", "--quiet"], count)
        one, several = (read_log(place / "log.csv") for place in places)
        states = [torch.load(place / "last.pt", weights_only=True) for place in places]
    validated = [name for name in one[-1] if name not in ("step", "loss", "lr", "seconds")]
    losses = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in zip(one, several, strict=True))
    figures = max(abs(a[name] - b[name]) for a, b in zip(one, several, strict=True) for name in validated if name in a)
    print("| training | steps | processes | loss, relative | validation | weights | averaged weights |")
    print("|---|---|---|---|---|---|---|")
    far = [off(*(state[name] for state in states)) for name in ("network", "average")]
    row = (
        " ".join(rest[:2]),
        str(states[0]["step"]),
        str(options.processes),
        *(f"{each:.1e}" for each in (losses, figures, *far)),
    )
    print(f"| {' | '.join(row)} |")


def train(command: str, arguments: list[str], processes: int) -> None:
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "--no-python", sys.executable]
    run = [*(start if processes > 1 else []), "-c", SCRIPT.format(command), *arguments]
    subprocess.run([sys.executable, *run], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)


def off(one: dict[str, torch.Tensor], several: dict[str, torch.Tensor]) -> float:
    """The largest difference between two states, as a share of the largest weight of the tensor."""
    pairs = [
        (value.double(), several[name].double()) for name, value in one.items() if value.is_floating_point() and value.numel()
    ]
    return max(float((a - b).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in pairs)


if __name__ == "__main__":
    main()
