"""Published networks as other packages hold them, and ours on the same weights: what `benchmarks.speed` compares.

A peer is a measuring stick, no dependency: where its package is missing the case is left out, and it is said.
"""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

SPANDREL = "pip install --no-deps spandrel spandrel_extra_arches einops (and torchvision, or a stand-in for it on PYTHONPATH)"


@dataclass(frozen=True)
class Case:
    """A published network.

    Attributes:
        title: With its layout.
        module, name: Where the peer's class is.
        config: What it is made with.
        size: Edge of the square or cubic input.
        channels, spatial_dims: Of the input.
        given: Options of our loader that a file does not tell.
        medical: Whether it is a network for scans.
        forward: What the peer computes, where not its own `forward`.
    """

    title: str
    module: str
    name: str
    config: Mapping[str, Any]
    size: int
    channels: int = 3
    spatial_dims: int = 2
    given: Mapping[str, Any] = field(default_factory=dict)
    medical: bool = False
    forward: Callable[[nn.Module, Tensor], Tensor] | None = None

    def input(self, size: int | None = None) -> Tensor:
        """Random values in [0, 1], always the same."""
        shape = (1, self.channels, *[size or self.size] * self.spatial_dims)
        return torch.rand(shape, generator=torch.Generator().manual_seed(1))


def craft_without_padding(network: Any, x: Tensor) -> Tensor:
    """CRAFT as its authors time it: the package's own `forward` adds a window of padding even where none is needed."""
    x = (x - network.mean.type_as(x)) * network.img_range
    shallow = network.conv_first(x)
    body = network.conv_after_body(network.forward_features(shallow)) + shallow
    return network.upsample(body) / network.img_range + network.mean.type_as(x)


def _swin(feature_size: int) -> Case:
    config = {"in_channels": 1, "out_channels": 3, "feature_size": feature_size, "use_v2": True, "downsample": "mergingv2"}
    title = f"Swin UNETR v2, {feature_size} features"
    return Case(title, "monai.networks.nets", "SwinUNETR", config, 96, channels=1, spatial_dims=3, medical=True)


CASES: Mapping[str, Case] = {
    "hat": Case(
        "HAT x4", "spandrel.architectures.HAT", "HAT",
        {"upscale": 4, "embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6, "window_size": 16, "compress_ratio": 3,
         "squeeze_factor": 30, "conv_scale": 0.01, "overlap_ratio": 0.5, "mlp_ratio": 2, "upsampler": "pixelshuffle",
         "img_size": 64}, 64,
    ),
    "drct": Case(
        "DRCT x4", "spandrel.architectures.DRCT", "DRCT",
        {"upscale": 4, "embed_dim": 180, "depths": [6] * 6, "num_heads": [6] * 6, "window_size": 16, "mlp_ratio": 2, "gc": 32,
         "upsampler": "pixelshuffle", "img_size": 64}, 64,
    ),
    "craft": Case("CRAFT x4", "spandrel.architectures.CRAFT", "CRAFT", {}, 64, forward=craft_without_padding),
    "nafnet": Case(
        "NAFNet, width 32", "spandrel.architectures.NAFNet", "NAFNet",
        {"width": 32, "enc_blk_nums": [1, 1, 1, 28], "middle_blk_num": 1, "dec_blk_nums": [1] * 4}, 256,
    ),
    "restormer": Case(
        "Restormer", "spandrel_extra_arches.architectures.Restormer", "Restormer",
        {"dim": 48, "num_blocks": [4, 6, 6, 8], "num_refinement_blocks": 4, "heads": [1, 2, 4, 8],
         "LayerNorm_type": "WithBias"}, 128,
    ),
    "restoreformer": Case(
        "RestoreFormer", "spandrel.architectures.RestoreFormer", "RestoreFormer", {}, 256, given={"variant": "restoreformer"},
    ),
    "swin_unetr_24": _swin(24),
    "swin_unetr_48": _swin(48),
}  # fmt: skip


@dataclass(frozen=True)
class Pair:
    """A network and its peer on the same weights; each is called with an input and returns a tensor."""

    ours: Callable[[Tensor], Tensor]
    peer: Callable[[Tensor], Tensor]


def make_pair(case: Case, precision: str = "float32", device: str = "cpu") -> Pair:
    """Make the peer with seeded random weights, and ours from a file of them; the peer always computes in float32.

    Raises:
        ImportError: The peer's package is not installed.
    """
    torch.manual_seed(0)
    peer = getattr(importlib.import_module(case.module), case.name)(**case.config).eval().requires_grad_(False)
    for parameter in peer.parameters():
        if not parameter.any():  # branches that begin at zero would do nothing, and nothing of them could differ
            nn.init.normal_(parameter, std=0.02)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pth"
        torch.save({"params": peer.state_dict()}, path)
        package = importlib.import_module("medical" if case.medical else "restore")
        network = package.load_model(path, precision=precision, device=device, **case.given).eval()
    peer = peer.to(device)

    def published(x: Tensor) -> Tensor:
        y = case.forward(peer, x) if case.forward is not None else peer(x)
        return y[0] if isinstance(y, (list, tuple)) else y

    return Pair(network, published)
