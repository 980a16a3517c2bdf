"""Small NAFNets whose right answer is known, pictures for them, and the command's answer.

Where their last convolution has weights of 0, each head gives the picture plus its bias.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from restore.images import read_picture, read_record
from restore.models.nafnet import KEYS, NAFNet, NAFNetConfig
from tests.command import Said, restore

OFFSETS = (-0.1, 0.0, 0.3)  # of three heads
PAIRS = ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2))  # of their averages, as the paper's code orders them
EXACT = ("--device", "cpu", "--precision", "float32")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")


def weights(path: Path, offsets: tuple[float, ...] = (0.0,), *, channels: int = 3, strength: float = 0.0) -> Path:
    """A NAFNet with a head an offset; the rest of what it adds is random, of that strength."""
    torch.manual_seed(1)
    config = NAFNetConfig(
        in_channels=channels, width=8, encoder_depths=(1,), middle_depth=1, decoder_depths=(1,), n_heads=len(offsets)
    )
    network = NAFNet(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.3)
        network.ending.weight.mul_(strength)
        network.ending.bias.copy_(torch.tensor(offsets).repeat_interleave(channels))
    torch.save({"params": {KEYS.to_published(key): value for key, value in network.state_dict().items()}}, path)
    return path


def photo(path: Path, dtype: str = "uint8", channels: int = 3, size: tuple[int, int] = (40, 52)) -> np.ndarray:
    """A picture of noise in the middle of the range, so that offsets clip nothing; returned as (H, W[, C])."""
    full = 255 if dtype == "uint8" else 65535
    values = np.random.default_rng(5).integers(full // 5, full * 3 // 5, (*size, channels), endpoint=True).astype(dtype)
    values = values[..., 0] if channels == 1 else values
    if path.suffix == ".tif":
        tifffile.imwrite(path, values, photometric="rgb" if channels == 3 else "minisblack")
    else:
        Image.fromarray(values).save(path)
    return values


def run(command: str, *arguments: str | Path) -> Said:
    return restore(command, *arguments, *EXACT)


def record(output: Path) -> dict:
    return json.loads(output.with_name(output.name + ".json").read_text(encoding="utf-8"))


def embedded(output: Path) -> dict:
    return json.loads(read_record(read_picture(output).metadata.xmp) or "")


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as judge:
        return np.asarray(judge)


def unit(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64) / np.iinfo(values.dtype).max
