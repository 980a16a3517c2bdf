"""YuNet, the face detector that ships with the package: boxes with five landmarks, and their scores.

W. Wu, H. Peng, S. Yu, "YuNet: A Tiny Millisecond-level Face Detector", Machine Intelligence Research 2023. The network is
kornia's; its weights come from our catalogue, so that they are verified and nothing is downloaded behind one's back.
Axes: B batch, H, W rows and columns. Coordinates here are x, y in pixels with the picture's corner at 0, 0.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid.loading import open_weights
from hybrid.weights.checkpoints import load_strict
from restore.loading import find_weights

NAME = "yunet"
"""In the catalogue."""
MULTIPLE = 64
"""Sides must be multiples of this many pixels for every level to be whole."""
LEVELS = ((8, (10, 16, 24)), (16, (32, 48)), (32, (64, 96)), (64, (128, 192, 256)))
"""Of each level, the pixels between places and the edges of the boxes that are looked for there."""
CENTRE, SIZE = 0.1, 0.2
"""What the network's offsets are multiplied with."""
COLUMNS = 15
"""Values of a box: x0, y0, x1, y1, five landmarks x, y (viewer's left eye, right eye, nose, mouth corners), score."""


@lru_cache(maxsize=2)
def yunet(device: str = "cpu") -> nn.Module:
    """The network on a device, in eval mode.

    Raises:
        WeightsError: This installation lacks its weights, or they are damaged.
    """
    from kornia.models.yunet import YuNet

    found, _ = find_weights(NAME, None)
    network = YuNet("test", pretrained=False)
    load_strict(network, open_weights(found).state, derived=("*.num_batches_tracked",))
    return network.eval().requires_grad_(False).to(device)


def find(batch: Tensor, least: float) -> list[NDArray[np.float64]]:
    """All boxes of a batch, overlapping ones too.

    Args:
        batch: (B, 3, H, W) float32 RGB in [0, 1], on the device where the network is to run; H, W multiples of `MULTIPLE`.
        least: Scores below it are left out.

    Returns:
        For each picture (N, COLUMNS), the best first.
    """
    height, width = batch.shape[-2:]
    with torch.inference_mode():
        out = yunet(str(batch.device))(batch.flip(1) * 255)  # it was trained on BGR in [0, 255]
    offsets, chances, overlaps = (out[key].double().cpu().numpy() for key in ("loc", "conf", "iou"))
    scores = np.sqrt(chances[..., 1] * np.clip(overlaps[..., 0], 0, 1))
    places = _places(height, width)
    found = []
    for offset, score in zip(offsets, scores, strict=True):
        kept = np.flatnonzero(score >= least)
        kept = kept[np.argsort(-score[kept], kind="stable")]
        found.append(np.column_stack((_decode(offset[kept], places[kept]), score[kept])))
    return found


def _decode(offsets: NDArray[np.float64], places: NDArray[np.float64]) -> NDArray[np.float64]:
    """Offsets (N, 14) from places (N, 3) to boxes and landmarks in pixels."""
    centres, edges = places[:, None, :2], places[:, None, 2:]
    middle = centres + CENTRE * edges * offsets[:, None, :2]
    half = edges * np.exp(SIZE * offsets[:, None, 2:4]) / 2
    points = centres + CENTRE * edges * offsets[:, 4:].reshape(-1, 5, 2)
    return np.concatenate((middle - half, middle + half, points), axis=1).reshape(len(offsets), COLUMNS - 1)


@lru_cache(maxsize=16)
def _places(height: int, width: int) -> NDArray[np.float64]:
    """Centres and edges (N, 3) of the boxes that are looked for, in the order of the network's output."""
    parts = []
    for step, edges in LEVELS:
        y, x, edge = np.meshgrid(np.arange(height // step), np.arange(width // step), edges, indexing="ij")
        parts.append(np.column_stack(((x.ravel() + 0.5) * step, (y.ravel() + 0.5) * step, edge.ravel())))
    return np.concatenate(parts).astype(np.float64)
