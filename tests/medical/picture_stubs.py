"""Synthetic pictures with cells and membranes, and networks for slices with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from medical.pictures.reading import PictureOrigin
from medical.protocol import Protocol
from medical.volumes.geometry import Grid
from medical.volumes.volume import Volume
from tests.medical.stubs import Stub


def protocol_2d(classes: int = 2, **changes: object) -> Protocol:
    """A protocol of 16 x 24 pixels that scales by white."""
    facts: dict = {
        "modality": "EM", "channels": ("EM",), "intensity": {"kind": "window", "low": 0, "high": 1}, "patch": (16, 24),
        "structures": [{"value": value, "name": f"part {value}"} for value in range(1, classes)],
    }  # fmt: skip
    return Protocol.model_validate(facts | changes)


def threshold(channels: int = 1) -> Stub:
    """Label 1 where the first channel is above one half."""

    def logits(x: Tensor) -> Tensor:
        assert x.ndim == 4, "a network for slices sees (B, C, rows, columns)"
        return torch.cat([0.5 - x[:, :1], x[:, :1] - 0.5], 1)

    return Stub(logits, channels, 2, spatial_dims=2)


def convolution_2d(classes: int = 3, seed: int = 0) -> Stub:
    """Random convolutions without symmetry, and with other results near a window's border than inside."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.Conv2d(6, 6, 5, padding=2), nn.Tanh(), nn.Conv2d(6, classes, 1)
    ).requires_grad_(False)
    return Stub(layers, 1, classes, spatial_dims=2)


def picture(values: np.ndarray, pixel_mm: tuple[float, float] | None = None, white: float = 1.0) -> Volume:
    """A picture in memory; values (rows, columns) or (C, rows, columns)."""
    values = values if values.ndim == 3 else values[None]
    grid = Grid((*values.shape[1:], 1), np.diag([*(pixel_mm or (1.0, 1.0)), 1.0, 1.0]))  # type: ignore[arg-type]
    return Volume(values[..., None], grid, "picture", PictureOrigin(Path("picture.png"), white, pixel_mm))


def tissue(seed: int, shape: tuple[int, int] = (48, 64), cells: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """A picture of cells with dark membranes, uint8, and where the membranes are: pixels about as near to a second cell."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform((0, 0), shape, (cells, 2))
    place = np.stack(np.indices(shape), -1)[..., None, :] - middles
    first, second = np.sort(np.linalg.norm(place, axis=-1), -1)[..., :2].transpose(2, 0, 1)
    membrane = second - first < 3
    values = np.where(membrane, 70, 170) + rng.normal(0, 12, shape)
    return np.clip(values, 0, 255).astype(np.uint8), membrane


def write_pair(folder: Path, name: str, values: np.ndarray, membrane: np.ndarray) -> None:
    """A picture and its label picture: black membranes, white cells."""
    for part, array in (("images", values), ("labels", np.where(membrane, 0, 255).astype(np.uint8))):
        (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / part / f"{name}.png")
