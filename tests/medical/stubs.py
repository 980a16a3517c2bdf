"""Networks with known answers, and scans for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from medical.loading import save_model
from medical.models import family
from medical.models.base import SegmentationCard, SegmentationNetwork
from medical.protocol import Protocol
from medical.volumes.geometry import Grid
from medical.volumes.volume import NiftiOrigin, Volume


def card(channels: int = 1, classes: int = 3, **changes: object) -> SegmentationCard:
    facts: dict = {
        "family": "stub", "title": "Stub", "paper": "none", "code_licence": "none", "spatial_dims": 3,
        "in_channels": channels, "out_channels": classes, "multiple": 2, "activation_floats": 10,
    }  # fmt: skip
    return SegmentationCard(**(facts | changes))


class Stub(SegmentationNetwork):
    """A network that is a function of its window (B, C, i, j, k), which it sees without padding."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 1, classes: int = 3, **changes: object) -> None:
        super().__init__()
        self.function, self.card = function, card(channels, classes, **changes)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.function(x)


def convolution(classes: int = 3, channels: int = 1, seed: int = 0, width: int = 6) -> Stub:
    """Two random convolutions with a wide reach: no symmetry, and other results near a window's border than inside."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv3d(channels, width, 5, padding=2), nn.Tanh(), nn.Conv3d(width, width, 5, padding=2), nn.Tanh(),
        nn.Conv3d(width, classes, 1),
    ).requires_grad_(False)  # fmt: skip
    return Stub(layers, channels, classes)


def protocol(classes: int = 3, **changes: object) -> Protocol:
    facts: dict = {
        "modality": "MR", "channels": ("T1w",), "intensity": {"kind": "z-score"}, "patch": (8, 10, 12),
        "structures": [{"value": value, "name": f"part {value}"} for value in range(1, classes)],
    }  # fmt: skip
    return Protocol.model_validate(facts | changes)


def save_untrained(path: Path, **changes: object) -> Path:
    """A tiny Swin UNETR for MR that has learnt nothing, with its protocol in the file."""
    torch.manual_seed(0)
    network = family("swin_unetr").create(
        in_channels=1, out_channels=3, feature_size=12, depths=(1, 1), num_heads=(2, 4), window=3
    )
    save_model(path, network, protocol=protocol(**{"patch": (16, 16, 16), "orientation": "LPS"} | changes))
    return path


def smooth(*shape: int, seed: int = 0) -> np.ndarray:
    """Random float32 values that vary slowly."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=shape)
    return (gaussian_filter(noise, 1.5) * 10).astype(np.float32)


def volume(values: np.ndarray, affine: np.ndarray | None = None, name: str = "scan") -> Volume:
    """A scan in memory; values (i, j, k) or (C, i, j, k)."""
    values = values if values.ndim == 4 else values[None]
    grid = Grid(values.shape[1:], np.eye(4) if affine is None else affine)  # type: ignore[arg-type]
    return Volume(values, grid, name, NiftiOrigin(Path(f"{name}.nii.gz"), 1, grid.affine, 1, None, 0, "mm"))
