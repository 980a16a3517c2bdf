"""How far results of the shipped networks are from one another between thread counts, tile plans, precisions and devices.

    python -m benchmarks.what_may_differ                     # the tables of docs/determinism.md
    python -m benchmarks.what_may_differ --device cuda       # adds a device

Each result is compared with that of one thread, the whole picture, float32 and the CPU. Pictures are 16 bits a channel, so that
less than a step of 8 bits shows. Prints tables in Markdown.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from hybrid.errors import RequestError
from medical import load_model as load_segmenter
from medical.restoration.loading import load_restorer
from medical.restoration.run import RestoreSettings
from medical.restoration.run import restore as restore_scan
from medical.segmentation.run import segment
from medical.volumes.volume import Volume, read_volume
from restore import load_model
from restore.images import Picture, read_picture
from restore.restoration.run import RunSettings, restore_picture

SR = ("cfsr-compact", "hat-compact", "espcn-compact")
SAME_SIZE = ("denoise-compact", "deblur-compact", "dejpeg-compact")
PHOTO = Path(__file__).resolve().parents[1] / "data_specs" / "mini" / "otter.png"
SCAN = Path(__file__).resolve().parents[1] / "medical" / "examples" / "hippocampus_141.nii.gz"
BOUNDS = {"2": 0.01, "tiles": 1.0, "bf16": 3.0}
"""Steps of 8 bits that a result may be off, by what is changed; tests hold the shipped networks below."""
TILES = (64, 96, 128, 192, 256, 320)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--crop", type=int, default=128, help="edge for super-resolution; three times that for the others")
    parser.add_argument("--device", default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| network | compared with one thread, whole, float32 | largest difference | 8-bit values that change |")
    print("|---|---|---|---|")
    for name in SR + SAME_SIZE:
        picture = middle(read_picture(options.photo), options.crop * (1 if name in SR else 3))
        for what, difference, share in pictures(name, picture, options.device):
            print(f"| {name} | {what} | {difference:.3f} | {100 * share:.3f} % |", flush=True)
    scan = read_volume(SCAN)
    print("\n| network | compared with one thread, whole slices, float32 | largest difference | voxels that change |")
    print("|---|---|---|---|")
    for row in (*denoised(scan, options.device), *segmented(scan, options.device)):
        print("| " + " | ".join(row) + " |", flush=True)


def middle(picture: Picture, edge: int) -> Picture:
    """The centre, as 16 bits a channel."""
    height, width = picture.colour.shape[:2]
    edge = min(edge, height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    return replace(picture, colour=picture.colour[top : top + edge, left : left + edge].astype(np.uint16) * 257)


def pictures(name: str, picture: Picture, device: str | None) -> Iterator[tuple[str, float, float]]:
    """What is compared, the largest difference in steps of 8 bits, and the share of 8-bit values that change."""
    network = load_model(name, device="cpu", scale=4 if name in SR else None)

    def run(settings: RunSettings, precision: str = "float32", on: str = "cpu") -> np.ndarray:
        if (precision, on) == ("float32", "cpu"):
            return restore_picture(network, picture, settings).colour
        other = load_model(name, device=on, precision=precision, scale=4 if name in SR else None)
        return restore_picture(other, picture, settings).colour

    at_once = RunSettings(tile=None)
    reference = run(at_once)
    assert np.array_equal(run(at_once), reference)
    for what, result in variants(run, at_once, "bf16" in network.card.low_precision, device):
        off = np.abs(result.astype(np.float64) - reference) / 257
        changed = np.mean(np.rint(result / 257) != np.rint(reference / 257))
        yield what, float(off.max()), float(changed)


def variants(
    run: Callable[..., np.ndarray], at_once: RunSettings, bf16: bool, device: str | None
) -> Iterator[tuple[str, np.ndarray]]:
    torch.set_num_threads(2)
    yield "2 threads", run(at_once)
    torch.set_num_threads(1)
    for tile in TILES:
        try:
            yield f"tiles of {tile}", run(RunSettings(tile=tile))
            break
        except RequestError:  # smaller than the network's overlap asks for
            continue
    if bf16:
        yield "bf16", run(at_once, "bf16")
    if device:
        yield device, run(at_once, "float32", device)


def denoised(scan: Volume, device: str | None) -> Iterator[tuple[str, ...]]:
    name = "denoise-mr-compact"
    whole = RestoreSettings(dtype="float32")
    reference = restore_scan(scan, load_restorer(name, device="cpu"), whole).values
    extent = float(reference.max() - reference.min())
    torch.set_num_threads(2)
    results = {"2 threads": restore_scan(scan, load_restorer(name, device="cpu"), whole).values}
    torch.set_num_threads(1)
    results["bf16"] = restore_scan(scan, load_restorer(name, device="cpu", precision="bf16"), whole).values
    if device:
        results[device] = restore_scan(scan, load_restorer(name, device=device), whole).values
    for what, values in results.items():
        off = float(np.abs(values - reference).max()) / extent
        changed = np.mean(np.rint(values) != np.rint(reference))
        yield name, what, f"{off:.1e} of the range", f"{100 * changed:.3f} % (rounded to whole numbers)"


def segmented(scan: Volume, device: str | None) -> Iterator[tuple[str, ...]]:
    def labels(precision: str = "float32", on: str = "cpu") -> np.ndarray:
        return segment(scan, load_segmenter("hippocampus", device=on, precision=precision)).labels

    reference = labels()
    torch.set_num_threads(2)
    results = {"2 threads": labels()}
    torch.set_num_threads(1)
    results["bf16"] = labels("bf16")
    if device:
        results[device] = labels("float32", device)
    for what, found in results.items():
        both = 2 * np.sum((found == reference) & (reference > 0)) / (np.sum(found > 0) + np.sum(reference > 0))
        changed = int(np.sum(found != reference))
        yield "hippocampus", what, f"Dice {both:.5f}", f"{changed} of {reference.size:,}"


if __name__ == "__main__":
    main()
