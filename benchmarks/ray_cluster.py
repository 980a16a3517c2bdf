"""Batches on three Ray nodes on this machine: equal to the local engine's, with a node lost in the middle, and their speed.

    python -m benchmarks.ray_cluster --scan medical/examples/hippocampus_141.nii.gz

200 pictures and 40 scans go through the commands with `--engine ray --address ...`. Pixels and labels must equal those of the
local engine; after a node was killed in the middle all outputs must be there, whole, each with one line in the journal.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from datetime import datetime
from pathlib import Path

from ray.cluster_utils import Cluster

from benchmarks.batch_inputs import EXACT, PICTURES, SCANS, journal, make_pictures, make_scans, results, run_command, scraps


def cluster_of(nodes: int) -> Cluster:
    """A head without room for workers, and nodes of one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(nodes):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    return cluster


def timed(command: list[str]) -> float:
    clock = time.perf_counter()
    assert run_command(command) == 0
    return time.perf_counter() - clock


def lose_a_node(cluster: Cluster, out: Path, after: int) -> threading.Thread:
    """Kill a node without a word once so many results are there."""

    def watch() -> None:
        lines = out / "run.jsonl"
        while not lines.exists() or lines.read_text().count('"done"') < after:
            time.sleep(0.02)
        cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
        print(f"  a node was killed after {after} results")

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def pace(out: Path) -> float:
    """Results a second, from the first to the last that the journal tells of."""
    lines = [json.loads(line) for line in (out / "run.jsonl").read_text().splitlines()]
    ended = sorted(datetime.fromisoformat(line["ended"]) for line in lines)
    return (len(ended) - 1) / max((ended[-1] - ended[0]).total_seconds(), 1e-9)


def compare(title: str, command: tuple[str, ...], inputs: Path, folder: Path, nodes: tuple[int, ...]) -> None:
    here = folder / f"{title} here"
    seconds = timed([*command, str(inputs), "-o", str(here), *EXACT])
    reference = results(here)
    print(f"{title}: local engine, {len(reference)} in {seconds:.1f} s, {pace(here):.2f} a second")
    for count in (*nodes, 3):
        cluster = cluster_of(count)
        try:
            out = folder / f"{title} on {count}"
            killer = lose_a_node(cluster, out, len(reference) // 3) if count == 3 else None
            ray = ("--engine", "ray", "--address", cluster.address)
            seconds = timed([*command, str(inputs), "-o", str(out), *EXACT, *ray])
            if killer:
                killer.join()
            assert results(out) == reference, "results differ from the local engine's"
            assert journal(out) == {"done": len(reference)} and not scraps(out), scraps(out)
            print(f"{title}: {count} nodes, {seconds:.1f} s with the start of workers, {pace(out):.2f} a second once they run;")
            print(f"{title}: all {len(reference)} equal to the local engine's, none twice, none torn, no scraps")
        finally:
            cluster.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--edge", type=int, default=192, help="of the pictures")
    parser.add_argument("--scans", type=int, default=40)
    parser.add_argument("--nodes", type=int, nargs="*", default=(1, 2), help="sizes of clusters that lose no node")
    parser.add_argument("--scan", type=Path, help="a hippocampus, to cut scans from")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_pictures(folder / "pictures", asked.pictures, asked.edge)
        compare("pictures", PICTURES, folder / "pictures", folder, tuple(asked.nodes))
        if asked.scan:
            make_scans(folder / "scans", asked.scans, asked.scan)
            compare("scans", SCANS, folder / "scans", folder, tuple(asked.nodes))


if __name__ == "__main__":
    main()
