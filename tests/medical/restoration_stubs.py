"""Restoration networks with known answers, and scans for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from torch import Tensor, nn

from hybrid.cards import ModelCard
from medical.restoration.loading import Restorer, save_restorer
from medical.restoration.protocol import RestorationProtocol
from restore.models import family
from restore.models.base import RestorationNetwork

OBLIQUE = np.array([[-1.0, 0.1, 0, 10], [0.1, 1.0, 0, -30], [0, 0, 1.5, 5], [0, 0, 0, 1]])


class Stub(RestorationNetwork):
    """A network that is a function of its slices (1, C, rows, columns)."""

    def __init__(self, function: Callable[[Tensor], Tensor], channels: int = 1, **changes: object) -> None:
        super().__init__()
        self.function, self.anchor = function, nn.Parameter(torch.zeros(1))
        facts: dict = {
            "family": "stub", "title": "Stub", "paper": "none", "code_licence": "none", "scale": 1, "channels": channels,
            "multiple": 1, "overlap": 4, "global_context": False, "activation_floats": 10,
        }  # fmt: skip
        self.card = ModelCard(**(facts | changes))

    def restore(self, x: Tensor) -> Tensor:
        return self.function(x)


def protocol(**changes: object) -> RestorationProtocol:
    facts: dict = {"modality": "MR", "intensity": {"kind": "percentiles", "high": 99}}
    return RestorationProtocol.model_validate(facts | changes)


def restorer(function: Callable[[Tensor], Tensor] = lambda x: x, card: dict | None = None, **changes: object) -> Restorer:
    asked = protocol(**changes)
    return Restorer(Stub(function, asked.channels, **(card or {})), asked, {})


def save_nafnet(path: Path, *, change: float = 0.0, neighbours: int = 1) -> Path:
    """A tiny NAFNet with its protocol in the file; it adds `change` to each value in its range, and nothing else."""
    torch.manual_seed(0)
    network = family("nafnet").create(
        in_channels=2 * neighbours + 1, width=8, encoder_depths=(1,), middle_depth=1, decoder_depths=(1,)
    )
    nn.init.zeros_(network.ending.weight)
    nn.init.constant_(network.ending.bias, change)
    options = {"tlc_train_size": [32, 32]}
    save_restorer(path, Restorer(network, protocol(neighbours=neighbours, spacing=(1, 1)), options))
    return path


def values(shape: tuple[int, int, int] = (17, 19, 15), seed: int = 0) -> np.ndarray:
    """Values of a magnitude scan, from 0 to about 900."""
    return np.random.default_rng(seed).gamma(2.0, 80.0, shape)


def scan(path: Path, array: np.ndarray, affine: np.ndarray = OBLIQUE, scaling: tuple[float, float] | None = None) -> Path:
    """A NIfTI file; with a scaling the array is what is stored."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    if scaling is not None:
        image.header.set_slope_inter(*scaling)
    nib.save(image, path)
    return path
