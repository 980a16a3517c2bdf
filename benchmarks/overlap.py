"""What a folder gains when pictures are read and written while others are computed.

    python -m benchmarks.overlap --threads 2 --runs 5
    python -m benchmarks.overlap --network espcn-compact 4 --formats png webp

Each network goes through the same pictures by turns with and without the overlap, in one process. The pictures are crops of
the example's, of one size.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import restore
from hybrid.batch.engine import Batch, Local, Nobody, run_batch
from restore.images import Picture, PictureMetadata, read_picture, write_picture
from restore.models.base import RestorationNetwork
from restore.restoration.batch import PictureWorker, items_of
from restore.restoration.inputs import Job
from restore.restoration.run import RunSettings

EXAMPLE = Path(__file__).parents[1] / "examples" / "colosseum.png"
NETWORKS = (("espcn-compact", 4), ("cfsr-compact", 4), ("dejpeg-compact", 1), ("hat-compact", 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs=2, action="append", metavar=("NAME", "SCALE"))
    parser.add_argument("--formats", nargs="+", default=["png", "jpg"])
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--size", nargs=2, type=int, default=(192, 256), help="rows and columns of a picture")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    told = parser.parse_args()
    torch.set_num_threads(told.threads)
    with tempfile.TemporaryDirectory() as name:
        sources = _make_pictures(Path(name) / "in", told.pictures, *told.size)
        for network_name, scale in told.network or NETWORKS:
            network = restore.load_model(network_name, scale=int(scale))
            for suffix in told.formats:
                _compare(network, network_name, sources, Path(name) / "out", suffix, told.runs)


def _make_pictures(folder: Path, count: int, height: int, width: int) -> list[Path]:
    folder.mkdir()
    colour, random = read_picture(EXAMPLE).colour, np.random.default_rng(0)
    paths = []
    for number in range(count):
        top, left = (int(random.integers(0, side - edge + 1)) for side, edge in zip(colour.shape, (height, width), strict=False))
        crop = np.ascontiguousarray(colour[top : top + height, left : left + width])
        paths.append(folder / f"{number:03}.png")
        write_picture(paths[-1], Picture(crop, None, PictureMetadata()))
    return paths


def _compare(network: RestorationNetwork, name: str, sources: list[Path], out: Path, suffix: str, runs: int) -> None:
    worker = PictureWorker(network, RunSettings(overwrite=True))
    jobs = [Job(path, out / f"{path.stem}.{suffix}") for path in sources]
    items = items_of(jobs, [str(sources[0].parent)], worker.settings, network.card.outputs)

    def seconds(overlap: bool) -> float:
        started = time.perf_counter()
        failures = run_batch(items, Local(worker, overlap), Batch(overwrite=True), Nobody())
        assert not failures, failures
        return time.perf_counter() - started

    seconds(False)
    pairs = [(seconds(False), seconds(True)) for _ in range(runs)]
    ratios = sorted(apart / beside for apart, beside in pairs)
    apart, beside = (statistics.median(side) for side in zip(*pairs, strict=True))
    print(
        f"{name}, {suffix}: one after the other {apart:.2f} s, overlapping {beside:.2f} s, "
        f"{statistics.median(ratios):.2f} times as fast ({ratios[0]:.2f} to {ratios[-1]:.2f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
