"""Restore-RWKV's cost a pixel from small pictures to large ones, and that of its Bi-WKV beside the sum over all pairs.

    python -m benchmarks.linear_cost --figure docs/linear_cost.png

The network is the published one (28 million parameters) with random weights, which cost what others do. The sum over all pairs
is the formula as it stands, quadratic in the tokens, and stops at `--pairs-up-to` tokens. One thread; processor time, least of
`--runs`; memory is the peak above what was held before. Prints two tables, in Markdown.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.resident import cost
from hybrid.blocks.wkv import bidirectional_wkv
from hybrid.devices import tune_allocator
from restore.models import family


@dataclass(frozen=True)
class Figures:
    """One measurement: pixels of a picture or tokens of a sequence, seconds, and MiB."""

    count: int
    seconds: float
    mebibytes: float


def main() -> None:
    options = _options()
    tune_allocator()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.inference_mode():
        pictures = measure_network(options.sizes, options.runs)
        linear, pairs = measure_operator(options.tokens, options.pairs_up_to, options.channels, options.runs)
        difference = largest_difference(min(options.tokens), options.channels)
    print("| picture | s | us a pixel | MiB | bytes a pixel |\n|---|---|---|---|---|")
    for each in pictures:
        side = round(each.count**0.5)
        rate, size = 1e6 * each.seconds / each.count, 2**20 * each.mebibytes / each.count
        print(f"| {side} x {side} | {each.seconds:.2f} | {rate:.0f} | {each.mebibytes:.0f} | {size:.0f} |")
    print(f"\n| tokens, {options.channels} channels | Bi-WKV, ms | MiB | all pairs, ms | MiB |\n|---|---|---|---|---|")
    found = {each.count: f"{1e3 * each.seconds:.1f} | {each.mebibytes:.1f}" for each in pairs}
    for each in linear:
        print(f"| {each.count} | {1e3 * each.seconds:.1f} | {each.mebibytes:.1f} | {found.get(each.count, ' | ')} |")
    print(f"\nlargest difference of the two at {min(options.tokens)} tokens: {difference:.1e}")
    if options.figure:
        draw(options.figure, pictures, linear, pairs)


def measure_network(sizes: list[int], runs: int) -> list[Figures]:
    """Restore-RWKV as published on square pictures of these edges."""
    network = family("restore_rwkv").create().eval().requires_grad_(False)
    network(torch.rand(1, 1, 64, 64))  # what is made once
    found = []
    for size in sizes:
        x = torch.rand(1, 1, size, size)
        found.append(Figures(size**2, *cost(lambda x=x: network(x), runs)))  # type: ignore[misc]
    return found


def measure_operator(tokens: list[int], most: int, channels: int, runs: int) -> tuple[list[Figures], list[Figures]]:
    """Bi-WKV along sequences of so many tokens, and the sum over all pairs up to `most`."""
    linear, pairs = [], []
    for count in tokens:
        given = drawn(count, channels)
        bidirectional_wkv(*given)
        linear.append(Figures(count, *cost(lambda given=given: bidirectional_wkv(*given), runs)))  # type: ignore[misc]
        if count <= most:
            pairs.append(Figures(count, *cost(lambda given=given: every_pair(*given), runs)))  # type: ignore[misc]
    return linear, pairs


def every_pair(key: Tensor, value: Tensor, decay: Tensor, bonus: Tensor) -> Tensor:
    """Equation 8 of Restore-RWKV as it stands: (B, C, T) keys and values, and for each channel a matrix of T x T weights."""
    count = key.shape[-1]
    place = torch.arange(count)
    distance = (place[:, None] - place).abs()
    logits = key[:, :, None] - (distance - 1) * (decay / count)[:, None, None]
    logits.diagonal(dim1=2, dim2=3).copy_(key + (bonus / count)[:, None])
    return (torch.softmax(logits, -1) @ value[..., None]).squeeze(-1)


def largest_difference(tokens: int, channels: int) -> float:
    given = drawn(tokens, channels)
    return float((bidirectional_wkv(*given) - every_pair(*given)).abs().max())


def drawn(tokens: int, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(1, channels, tokens, generator=generator) for _ in range(2))
    decay, bonus = (torch.randn(channels, generator=generator) for _ in range(2))
    return key, value, decay, bonus


def draw(path: Path, pictures: list[Figures], linear: list[Figures], pairs: list[Figures]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    sides = [f"{round(each.count**0.5)}²" for each in pictures]
    left.plot(sides, [1e6 * each.seconds / each.count for each in pictures], "o-", color="tab:blue", label="time")
    left.set(title="Restore-RWKV", xlabel="pixels of the picture", ylabel="µs a pixel")
    left.set_ylim(bottom=0)
    memory = left.twinx()
    memory.plot(sides, [2**10 * each.mebibytes / each.count for each in pictures], "s--", color="tab:orange", label="memory")
    memory.set(ylabel="KiB a pixel")
    memory.set_ylim(bottom=0)
    left.legend(handles=[*left.lines, *memory.lines], loc="lower center")
    for title, found, style in (("Bi-WKV", linear, "o-"), ("all pairs", pairs, "s--")):
        right.loglog([each.count for each in found], [1e3 * each.seconds for each in found], style, base=2, label=title)
    right.set(title="Bi-WKV beside the sum over all pairs", xlabel="tokens", ylabel="ms")
    right.set_yscale("log")
    right.legend()
    figure.savefig(path, dpi=110)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512], help="edges of the pictures")
    parser.add_argument("--tokens", type=int, nargs="+", default=[4**n for n in range(4, 10)])
    parser.add_argument("--pairs-up-to", type=int, default=4**6, help="tokens beyond which all pairs are not tried")
    parser.add_argument("--channels", type=int, default=8, help="of the sequences")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="where to draw both as PNG")
    return parser.parse_args()


if __name__ == "__main__":
    main()
