"""Turn a network for slices into one for volumes, look at a kernel of both, and run the new one on a scan.

    python examples/transfer_2d_to_3d.py [WEIGHTS] [OUTPUT]

WEIGHTS is a network of Cross-D Conv for slices, such as `medical train hippocampus-cross-d-slices` makes; without it a small
untrained one stands in. Its kernels are stored as volumes, so the network for volumes takes them as they are, here rolled by one
voxel: what a slice was convolved with at angle 0 is then the middle of the kernel. `OUTPUT/volumes.safetensors` is a beginning
for a training (`--start-from`) and no result: its norms have yet to see volumes. The command for the same: `medical transfer`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import medical
from hybrid.blocks.cross_d import CrossDConv
from medical.loading import save_model
from medical.models import family
from medical.training.run import load_recipe
from medical.training.transfer import transfer_file

SCAN = Path(__file__).resolve().parent.parent / "medical" / "examples" / "hippocampus_141.nii.gz"


def untrained(path: Path) -> Path:
    """A small network for slices with the protocol of the recipe that would train it."""
    torch.manual_seed(0)
    network = family("cross_d_unet").create(spatial_dims=2, in_channels=1, out_channels=3, width=8, depths=(1, 1))
    save_model(path, network, protocol=load_recipe("hippocampus-cross-d-slices").protocol)
    return path


def first_kernel(path: Path) -> torch.Tensor:
    """(O, I, K, K, K): the kernel of the first Cross-D Conv, its axes (slice, row, column)."""
    network = medical.load_model(path, device="cpu")
    return next(module for module in network.modules() if isinstance(module, CrossDConv)).weights_3d


def main(slices: Path | None = None, output: Path = Path("transferred")) -> None:
    """Write the network for volumes and what it makes of the shipped scan."""
    output.mkdir(parents=True, exist_ok=True)
    slices = slices or untrained(output / "slices.safetensors")
    volumes = output / "volumes.safetensors"
    asked = load_recipe("hippocampus-cross-d").protocol.model_dump(include={"orientation", "spacing", "patch", "mirror"})
    report = transfer_file(slices, volumes, to=3, centre=True, protocol=asked, overwrite=True)
    print(f"{len(report.carried)} tensors carried over, {len(report.rolled)} rolled, {len(report.laid_aside)} laid aside")
    same = torch.equal(first_kernel(slices).roll((1, 1, 1), (2, 3, 4)), first_kernel(volumes))
    print(f"The first kernel of the slices, rolled by one voxel along each axis, is that of the volumes: {same}")
    scan = medical.read_scan(SCAN)
    found = medical.segment(scan, medical.load_model(volumes))
    print(medical.write_labels(output / "labels.nii.gz", found.labels, scan, found.structures))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
