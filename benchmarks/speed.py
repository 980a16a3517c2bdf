"""Speed and memory of every network that another package holds too, on the same weights, in one run: a table and plots.

    python -m benchmarks.speed -o results/
    python -m benchmarks.speed hat nafnet --precision float32 --runs 9 --threads 1 -o results/

Ours and the peer run in turn, so that other work on the machine meets both; ratios are those of the pairs. Each has a process
of its own, since this package sets the C library's allocator for the whole process, and the peer is to run as its users run it.
Beside each time stands how much of the machine's own best matrix product and convolution it reaches. With --scaling also times
over the size of the input and over threads. Needs: spandrel, MONAI.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.peers import CASES, SPANDREL, Case, make_pair
from benchmarks.resident import cost
from benchmarks.speed_report import write_report
from hybrid.devices import describe_machine, tune_allocator


@dataclass(frozen=True)
class Row:
    """One network in one precision against its peer in float32.

    Attributes:
        ratios: Time of the peer through ours, for each pair, rising.
        seconds, peer_seconds: Medians.
        difference: Largest of the outputs. peer_range: Largest value of the peer's output.
        gflop: Multiplications and additions of the peer's formula, in 10^9.
        memory, peer_memory: Peaks above the loaded model, MiB; NaN where the system does not tell.
        sizes, threads: Seconds of ours by edge of the input, and by number of threads.
    """

    name: str
    title: str
    size: int
    precision: str
    threads: int
    ratios: tuple[float, ...]
    seconds: float
    peer_seconds: float
    difference: float
    peer_range: float
    gflop: float
    memory: float
    peer_memory: float
    by_size: dict[int, float]
    by_threads: dict[int, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--runs", type=int, default=5, help="pairs")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scaling", action="store_true", help="also times by size and by threads")
    parser.add_argument("-o", "--output", type=Path, default=Path("speed"))
    parser.add_argument("--only", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.serve:
        _serve(CASES[options.networks[0]])
        return
    tune_allocator()
    if unknown := [name for name in options.networks if name not in CASES]:
        parser.error(f"no network is called {', '.join(unknown)}")
    if options.only:
        _tell_memory(CASES[options.networks[0]], options.precision[0], options.only)
        return
    roof = {precision: _roof(precision) for precision in dict.fromkeys(["float32", *options.precision])}
    rows: list[Row] = []
    for name in options.networks or CASES:
        for precision in options.precision:
            try:
                rows.append(_measure(name, precision, options))
            except ImportError as error:
                print(f"{name} is left out, {error}: {SPANDREL}", file=sys.stderr)
                break
            print(f"{name} {precision}: {statistics.median(rows[-1].ratios):.2f} x the peer", flush=True)
    facts = {
        "machine": describe_machine(),
        "threads": options.threads,
        "roof_gflops": roof,
        "rows": [asdict(row) for row in rows],
    }
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "speed.json").write_text(json.dumps(facts, indent=1))
    for path in write_report(facts, options.output):
        print(path)


def _measure(name: str, precision: str, options: argparse.Namespace) -> Row:
    case = CASES[name]
    pair, x = make_pair(case, precision), case.input()
    with torch.inference_mode():
        ours, theirs = pair.ours(x).float(), pair.peer(x)
        with FlopCounterMode(display=False) as counter:
            pair.peer(x)
        with _peer_alone(name, options.threads) as peer_seconds:
            pairs = [(_seconds(pair.ours, x), peer_seconds()) for _ in range(options.runs)]
        by_size = _by_size(case, pair.ours, options.runs) if options.scaling else {}
        by_threads = _by_threads(pair.ours, x, options) if options.scaling else {}
    memory = {who: _memory(name, precision, who, options.threads) for who in ("ours", "peer")}
    return Row(
        name, case.title, case.size, precision, options.threads,
        tuple(sorted(peer / own for own, peer in pairs)),
        statistics.median(own for own, _ in pairs),
        statistics.median(peer for _, peer in pairs),
        float((ours - theirs).abs().max()), float(theirs.abs().max()),
        counter.get_total_flops() / 1e9,
        memory["ours"], memory["peer"], by_size, by_threads,
    )  # fmt: skip


def _seconds(network: Callable[[Tensor], Tensor], x: Tensor) -> float:
    started = time.perf_counter()
    network(x)
    return time.perf_counter() - started


@contextmanager
def _peer_alone(name: str, threads: int) -> Iterator[Callable[[], float]]:
    """A function that has the peer run once, in a process whose allocator is as the system sets it, and tells its seconds."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed", name, "--threads", str(threads), "--serve"]
    system = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"} | {"HYBRID_KEEP_MALLOC": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=system) as process:
        assert process.stdin is not None and process.stdout is not None
        asked, told = process.stdin, process.stdout

        def seconds() -> float:
            asked.write("run\n")
            asked.flush()
            return float(told.readline())

        seconds()  # the first takes longer
        yield seconds
        asked.close()


def _serve(case: Case) -> None:
    """Run the peer once for each line of standard input, and print its seconds."""
    pair, x = make_pair(case), case.input()
    with torch.inference_mode():
        for _ in sys.stdin:
            print(_seconds(pair.peer, x), flush=True)


def _median_seconds(network: Callable[[Tensor], Tensor], x: Tensor, runs: int) -> float:
    network(x)
    return statistics.median(_seconds(network, x) for _ in range(runs))


def _by_size(case: Case, network: Callable[[Tensor], Tensor], runs: int) -> dict[int, float]:
    shares = (0.5, 1, 1.5, 2) if case.spatial_dims == 2 else (2 / 3, 1, 4 / 3)
    sizes = [round(case.size * share / 32) * 32 for share in shares]
    return {size: _median_seconds(network, case.input(size), runs) for size in sizes}


def _by_threads(network: Callable[[Tensor], Tensor], x: Tensor, options: argparse.Namespace) -> dict[int, float]:
    found = {}
    for count in range(1, options.threads + 1):
        torch.set_num_threads(count)
        found[count] = _median_seconds(network, x, options.runs)
    return found


def _memory(name: str, precision: str, who: str, threads: int) -> float:
    command = [sys.executable, "-m", "benchmarks.speed", name, "--precision", precision, "--threads", str(threads), "--only", who]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.strip().splitlines()[-1])


def _tell_memory(case: Case, precision: str, who: str) -> None:
    pair, x = make_pair(case, precision), case.input()
    with torch.inference_mode():
        print(cost(lambda: getattr(pair, who)(x))[1])


def _roof(precision: str) -> float:
    """What the machine reaches at best, in 10^9 operations a second: the better of a matrix product and a convolution."""
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    a, b = torch.rand(2048, 2048, dtype=dtype), torch.rand(2048, 2048, dtype=dtype)
    convolution = torch.nn.Conv2d(192, 192, 3, padding=1, dtype=dtype).to(memory_format=torch.channels_last)
    x = torch.rand(1, 192, 96, 96, dtype=dtype).to(memory_format=torch.channels_last)
    work: Sequence[tuple[Callable[[], object], float]] = (
        (lambda: a @ b, 2 * 2048**3),
        (lambda: convolution(x), 2 * 9 * 192**2 * 96**2),
    )
    with torch.inference_mode():
        return max(flops / min(_call_seconds(call) for _ in range(10)) / 1e9 for call, flops in work)


def _call_seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
