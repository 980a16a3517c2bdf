"""Where the time of each network goes, by kind of operation, and what would be left if only the arithmetic remained.

    python -m benchmarks.where_time_goes
    python -m benchmarks.where_time_goes hat drct --precision bf16

One thread, the profiler of torch. Products, convolutions and attention are kernels of oneDNN, MKL and torch that this package
does not write; the rest is what its layout of the work can save, so the share of those kernels is the floor of its time.
Needs the peers of `benchmarks.speed`, whose networks these are.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers import CASES, SPANDREL, make_pair
from hybrid.devices import tune_allocator

KINDS = {
    "products": ("addmm", "mm", "bmm", "baddbmm", "linear", "mkldnn_linear", "dot", "einsum"),
    "convolutions": ("convolution", "mkldnn_convolution", "slow_conv", "thnn_conv", "conv_depthwise"),
    "attention": ("scaled_dot_product",),
    "norms": ("layer_norm", "batch_norm", "group_norm", "instance_norm", "var_mean", "mean", "sum", "linalg_vector_norm"),
    "point by point": ("gelu", "relu", "sigmoid", "silu", "softmax", "add", "mul", "sub", "div", "exp", "tanh",
                       "pow", "sqrt"),
    "copies": ("copy", "cat", "index", "gather", "fill", "zero", "pad", "pixel", "roll", "clone", "stack", "upsample"),
}  # fmt: skip
"""Beginnings of the names of operations, by kind; the first that fits counts. What is left is calls, views and allocation."""
ARITHMETIC = ("products", "convolutions", "attention")


def kind_of(operation: str) -> str:
    """The kind of an operation that the profiler names ``aten::...``."""
    name = operation.removeprefix("aten::").removeprefix("_").removeprefix("native_")
    return next((kind for kind, starts in KINDS.items() if name.startswith(starts)), "calls")


def shares(name: str, precision: str, runs: int) -> dict[str, float]:
    """Part of the time of a network by kind of operation; the sum is 1."""
    case = CASES[name]
    network, x = make_pair(case, precision).ours, case.input()
    with torch.inference_mode():
        network(x)
        with profile(activities=[ProfilerActivity.CPU]) as seen:
            for _ in range(runs):
                network(x)
    spent: Counter[str] = Counter()
    for event in seen.key_averages():
        spent[kind_of(event.key)] += event.self_cpu_time_total
    total = spent.total()
    return {kind: spent[kind] / total for kind in (*KINDS, "calls")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--precision", nargs="+", default=["float32", "bf16"])
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(1)
    print("| network | precision | " + " | ".join((*KINDS, "calls")) + " | arithmetic alone |")
    print("|---" * (len(KINDS) + 4) + "|")
    for name in options.networks or CASES:
        for precision in options.precision:
            try:
                found = shares(name, precision, options.runs)
            except ImportError as error:
                print(f"{name} is left out, {error}: {SPANDREL}", file=sys.stderr)
                break
            cells = " | ".join(f"{found[kind]:.0%}" for kind in (*KINDS, "calls"))
            print(f"| {CASES[name].title} | {precision} | {cells} | {sum(found[k] for k in ARITHMETIC):.0%} |", flush=True)


if __name__ == "__main__":
    main()
