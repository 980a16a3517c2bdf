"""Networks against their plain forms, on the same weights and input in one run: times, ratios, memory, difference.

    python -m benchmarks.restoration_networks mirnet --size 128 --groups 1
    python -m benchmarks.restoration_networks restore_rwkv --size 128
    python -m benchmarks.restoration_networks hinet --size 128
    python -m benchmarks.restoration_networks mprnet --size 64

For networks of which no other package holds the original. Times are of the processor, not of the clock, so that other work on
the machine counts little; memory is the peak above what was held before. One thread.
"""

from __future__ import annotations

import argparse
import re
import statistics

import torch
from torch import Tensor

from benchmarks import plain_forms, plain_stages
from benchmarks.resident import cost
from hybrid.devices import tune_allocator
from restore.models import family
from restore.models.base import RestorationNetwork
from restore.models.mirnet import MIRNetConfig

PLAIN = {
    "mirnet": plain_forms.mirnet,
    "restore_rwkv": plain_forms.restore_rwkv,
    "hinet": plain_stages.hinet,
    "mprnet": plain_stages.mprnet,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=PLAIN)
    parser.add_argument("--size", type=int, default=128, help="edge of the square input that is compared")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--groups", type=int, default=MIRNetConfig().groups, help="of MIRNet; the published one has three")
    parser.add_argument("--depth", type=int, help="blocks of every level of Restore-RWKV; none for the published numbers")
    options = parser.parse_args()
    tune_allocator()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = _network(options).eval().requires_grad_(False)
    with torch.inference_mode():
        _compare(network, options)


def _compare(network: RestorationNetwork, options: argparse.Namespace) -> None:
    weights = _published(network)
    x = torch.rand(1, network.card.channels, options.size, options.size)
    calls = (lambda: network.result(x), lambda: PLAIN[options.network](weights, x))
    ours, theirs = (call() for call in calls)
    pairs = [(cost(calls[0]), cost(calls[1])) for _ in range(options.runs)]
    ratios = sorted(plain[0] / own[0] for own, plain in pairs)
    (time, memory), (plain_time, plain_memory) = (_medians([pair[n] for pair in pairs]) for n in range(2))
    print(f"{options.network} {options.size} x {options.size}: {time:.2f} s, plain form {plain_time:.2f} s")
    print(f"plain / ours: {ratios[0]:.2f} to {ratios[-1]:.2f}, median {statistics.median(ratios):.2f}")
    print(f"memory: {memory:.0f} MiB, plain form {plain_memory:.0f} MiB")
    print(f"largest difference {float((ours - theirs).abs().max()):.1e}")


def _medians(figures: list[tuple[float, float]]) -> tuple[float, float]:
    seconds, mebibytes = (statistics.median(each) for each in zip(*figures, strict=True))
    return seconds, mebibytes


def _network(options: argparse.Namespace) -> RestorationNetwork:
    if options.network == "mirnet":
        return family("mirnet").create(groups=options.groups)
    if options.network != "restore_rwkv":
        return family(options.network).create()
    depths = {} if options.depth is None else {"depths": (options.depth,) * 4, "refinement": options.depth}
    return family("restore_rwkv").create(**depths)


def _published(network: RestorationNetwork) -> dict[str, Tensor]:
    """The weights under their published names, with the copies that published files of MIRNet hold."""
    keys = family(network.card.family).keys
    state = {keys.to_published(name): tensor.contiguous() for name, tensor in network.state_dict().items()}
    if network.card.family != "mirnet":
        return state
    slopes = [tensor for name, tensor in state.items() if name.endswith(".blocks.0.0.body.1.weight")]
    for name in [name for name in state if ".0.conv1x1." in name]:
        unit = name.removesuffix("conv1x1.weight")
        state[unit + "body.1.weight"] = slopes[0]
    columns = {name: re.sub(r"(\.blocks\.\d+)\.0\.", r"\1.1.", name) for name in state if ".blocks." in name}
    state |= {copy: state[name] for name, copy in columns.items()}
    return state


if __name__ == "__main__":
    main()
