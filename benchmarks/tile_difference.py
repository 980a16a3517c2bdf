"""How far a result in tiles is from that of the whole picture, for networks that see all of it; NAFNet with local means too.

    python -m benchmarks.tile_difference PHOTO... --figure docs/tile_difference.jpg
    python -m benchmarks.tile_difference PHOTO... --model deblur-compact        # or a checkpoint

Without `--model` the weights are random: small networks in which every convolution keeps the spread of what it takes, and
whose last one is scaled such that it changes the picture by `--change` steps of 8 bits (RMS). Their figures say how the two
kinds of means compare, not what a trained network does. Prints a table in Markdown; all figures in steps of 8 bits.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from hybrid.tiles.run import plan_tiles, run_tiles
from restore import load_model
from restore.images import read_picture, to_unit
from restore.models.base import RestorationNetwork
from restore.models.nafnet import NAFNet, NAFNetConfig
from restore.models.restormer import Restormer, RestormerConfig

LOCAL = NAFNetConfig(width=24, encoder_depths=(2, 2, 4), decoder_depths=(2, 2, 2), tlc_train_size=(96, 96))
"""The layout of `deblur-compact`, with one output."""
SMALL_RESTORMER = RestormerConfig(embed_dim=16, depths=(1, 1, 1, 2), refinement=1, widths=(42, 85, 170, 340))

STRONGER = 5
"""How much larger the difference is drawn than it is."""


@dataclass(frozen=True)
class Case:
    """A network, and what its statistics are taken over."""

    title: str
    means: str
    network: RestorationNetwork


@dataclass(frozen=True)
class Compared:
    """One picture by one network: its result at once and in tiles, (C, H, W), and where tiles begin and end."""

    whole: Tensor
    tiled: Tensor
    spans: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def difference(self) -> Tensor:
        """In steps of 8 bits."""
        return 255 * (self.tiled - self.whole)


def main() -> None:
    options = _options()
    pictures = [read_square(path, options.crop) for path in options.photos]
    cases = list(given_cases(options) if options.model else random_cases(pictures[0], options.change, options.seed))
    print("| network | statistics over | change, RMS | tile | difference, RMS | largest | PSNR, tiles to whole |")
    print("|---|---|---|---|---|---|---|")
    kept: dict[tuple[str, int], Compared] = {}
    for case in cases:
        whole = [result_of(case.network, picture) for picture in pictures]
        for tile in options.tiles:
            given = zip(pictures, whole, strict=True)
            found = [compare(case.network, picture, at_once, tile, options.overlap) for picture, at_once in given]
            kept[case.means, tile] = found[0] if case.title != "Restormer" else kept.get((case.means, tile), found[0])
            print("| " + " | ".join(row(case, tile, pictures, found)) + " |", flush=True)
    if options.figure and {"the whole picture"} < {means for means, _ in kept}:
        shown = options.tiles[len(options.tiles) // 2]
        draw(options.figure, pictures[0], [(means, found) for (means, tile), found in kept.items() if tile == shown])


@torch.inference_mode()
def result_of(network: RestorationNetwork, x: Tensor) -> Tensor:
    """(1, C, H, W) to the same; of several outputs the first."""
    return network.result(x).flatten(1, -3)[:, : network.card.out_channels]


def compare(network: RestorationNetwork, picture: Tensor, whole: Tensor, tile: int, overlap: int) -> Compared:
    """The result of (1, C, H, W) at once, which is given, and in tiles."""
    card = network.card
    plan = plan_tiles(
        picture.shape[2:],
        scale=card.scale,
        tile=tile,
        overlap=min(overlap, tile // 2),
        multiple=card.multiple,
        out_channels=card.out_channels,
        floats_per_pixel=card.activation_floats,
    )
    rows: list[Tensor] = []
    run_tiles(
        lambda x: result_of(network, x),
        lambda box: picture[:, :, box[0], box[1]],
        plan,
        lambda _, block: rows.append(block.clone()),
    )
    return Compared(whole[0], torch.cat(rows, -2), plan.spans)


def row(case: Case, tile: int, pictures: list[Tensor], found: list[Compared]) -> list[str]:
    """A line of the table, over all pictures."""
    off = [each.difference.square().mean() for each in found]
    change = [(255 * (each.whole - x[0])).square().mean() for each, x in zip(found, pictures, strict=True)]
    rms, changed = (float(torch.stack(each).mean().sqrt()) for each in (off, change))
    largest = max(float(each.difference.abs().max()) for each in found)
    quality = 20 * math.log10(255 / rms) if rms else math.inf
    return [case.title, case.means, f"{changed:.1f}", str(tile), f"{rms:.3f}", f"{largest:.2f}", f"{quality:.1f} dB"]


def given_cases(options: argparse.Namespace) -> Iterator[Case]:
    """A network of the catalogue or a file; NAFNet twice, whatever the file says of its means."""
    network = load_model(options.model, device="cpu")
    name = str(options.model)
    if not isinstance(network, NAFNet):
        yield Case(name, "the whole picture", network)
        return
    size = network.config.tlc_train_size or (options.train_size,) * 2
    yield Case(name, "the whole picture", load_model(options.model, device="cpu", tlc_train_size=0))
    yield Case(name, windows(size), load_model(options.model, device="cpu", tlc_train_size=size))


def random_cases(picture: Tensor, change: float, seed: int) -> Iterator[Case]:
    """NAFNet with both kinds of means and the same weights, and Restormer."""
    whole, local = NAFNet(replace(LOCAL, tlc_train_size=None)), NAFNet(LOCAL)
    set_random(whole, whole.ending, picture, change, seed)
    local.load_state_dict(whole.state_dict())
    assert LOCAL.tlc_train_size is not None
    yield Case("NAFNet", "the whole picture", whole.eval())
    yield Case("NAFNet, TLC", windows(LOCAL.tlc_train_size), local.eval())
    restormer = Restormer(SMALL_RESTORMER)
    set_random(restormer, restormer.output, picture, change, seed)
    yield Case("Restormer", "the whole picture", restormer.eval())


def windows(train_size: tuple[int, int]) -> str:
    return f"windows of {int(1.5 * train_size[0])}"


@torch.no_grad()
def set_random(network: RestorationNetwork, last: nn.Conv2d, picture: Tensor, change: float, seed: int) -> None:
    """Seeded weights: convolutions that keep the spread, blocks that count, and a last step that changes so many steps."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in network.named_parameters():
        if name.endswith(("beta", "gamma")):
            weight.fill_(0.2)  # at their start of 0 a block does nothing
        elif weight.ndim == 4:
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
        elif "conv" in name:
            weight.zero_()  # biases
    if last.bias is not None:
        last.bias.zero_()
    changed = 255 * (network.result(picture) - picture)
    last.weight *= change / float(changed.square().mean().sqrt())


def read_square(path: Path, side: int) -> Tensor:
    """The middle of a photograph, (1, 3, side, side) in [0, 1]; smaller where the photograph is."""
    values = to_unit(read_picture(path).colour)
    top, left = (max(0, (length - side) // 2) for length in values.shape[:2])
    cut = values[top : top + side, left : left + side]
    return torch.from_numpy(np.ascontiguousarray(cut.transpose(2, 0, 1), dtype=np.float32))[None]


def draw(path: Path, picture: Tensor, shown: list[tuple[str, Compared]]) -> None:
    """The photograph with its tiles, and for each kind of means the size of the difference and what the eye would see of it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 1 + len(shown), figsize=(3.6 * (1 + len(shown)), 7.4), layout="constrained")
    spans = shown[0][1].spans
    axes[0, 0].imshow(picture[0].permute(1, 2, 0).numpy())
    axes[0, 0].set_title("where tiles overlap", fontsize=10)
    for bands, line in zip(spans, (axes[0, 0].axhspan, axes[0, 0].axvspan), strict=True):
        for (_, stop), (start, _) in pairwise(bands):
            line(start, stop, color="white", alpha=0.25)
    place = tuple(slice(max(0, stop - 160), stop + 32) for (_, stop), *_ in spans)  # where the first four tiles meet
    axes[1, 0].imshow(seen(shown[0][1].whole, place))
    axes[1, 0].set_title("where four tiles meet: result of the whole", fontsize=10)
    sizes = [blockwise(found.difference) for _, found in shown]
    for column, ((means, found), size) in enumerate(zip(shown, sizes, strict=True), start=1):
        image = axes[0, column].imshow(size, cmap="magma", vmin=0, vmax=sizes[0].max())
        axes[0, column].set_title(f"difference; means over {means}", fontsize=10)
        axes[1, column].imshow(seen(found.whole + STRONGER * (found.tiled - found.whole), place))
        axes[1, column].set_title(f"the same place, difference {STRONGER} times", fontsize=10)
    figure.colorbar(image, ax=axes[0, 1:], label="RMS of 8 x 8 pixels, steps of 8 bits", shrink=0.9)
    for each in axes.flat:
        each.set_axis_off()
    figure.savefig(path, dpi=70)


def blockwise(difference: Tensor, edge: int = 8) -> np.ndarray:
    """RMS over blocks of a (C, H, W) map."""
    size: np.ndarray = nn.functional.avg_pool2d(difference.square().mean(0, keepdim=True), edge)[0].sqrt().numpy()
    return size


def seen(values: Tensor, place: tuple[slice, ...]) -> np.ndarray:
    cut: np.ndarray = values[:, place[0], place[1]].clamp(0, 1).permute(1, 2, 0).numpy()
    return cut


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+", help="RGB; the middle of each is taken")
    parser.add_argument("--crop", type=int, default=768, help="edge of what is taken")
    parser.add_argument("--tiles", type=int, nargs="+", default=[192, 256, 384], help="edges of tiles")
    parser.add_argument("--overlap", type=int, default=128, help="half a tile at most")
    parser.add_argument("--model", help="a network of the catalogue or a checkpoint; default: random weights")
    parser.add_argument("--train-size", type=int, default=256, help="for local means where the network has none of its own")
    parser.add_argument("--change", type=float, default=10.0, help="of the picture by random weights, RMS, in steps of 8 bits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", type=Path, help="where to draw the first photograph, with the middle one of --tiles")
    return parser.parse_args()


if __name__ == "__main__":
    main()
