"""CSWin-UNet for slices: CSWin blocks on both sides of a U-Net, with upsampling by content-aware reassembly.

X. Liu et al., "CSWin-UNet: Transformer UNet with cross-shaped windows for medical image segmentation", Information Fusion 113,
2025, arXiv 2407.18070; the encoder of X. Dong et al., arXiv 2107.00652. Where the published code runs, at sides of whole bars,
the numbers are its own; other sizes are filled up as the published backbone for segmentation does.
For volumes see medical/models/cswin_unet_3d.py. Axis letters: B batch, C channels, r factor of an upsampling, k its 9 neighbours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate, chunk_length
from hybrid.blocks.convolution import PointwiseConvolution
from hybrid.blocks.layout import to_image, to_tokens
from hybrid.errors import WeightsError
from hybrid.initialisation import initialise_linears
from hybrid.weights.keys import KeyMap, count_numbered
from medical.models import cswin_unet_3d
from medical.models.base import Family, SegmentationCard, SegmentationNetwork
from medical.models.cswin_encoder import CSWinConfig, Encoder

PREFIX = "cswin_unet."
NEIGHBOURS = 9
"""Of the 3x3 reassembly; the original CARAFE takes 5x5."""
HEADS = {64: (2, 4, 8, 16), 96: (4, 8, 16, 32), 144: (6, 12, 24, 24)}
"""Heads of published networks by the channels of their first grid; no file tells them."""


class Reassembly(nn.Module):
    """Multiply the sides of a grid by r: each new pixel is a mean of the 9 around it, with weights read from the content.

    J. Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019, arXiv 1905.02188, with a projection after it.
    The projection, and any linear step that follows, are applied before the reassembly, where there are r^2 times fewer pixels:
    both act on channels alone, and the reassembly on pixels alone. Their biases come after it, since the weights of pixels at
    the border do not all fall inside the grid.
    """

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.down = PointwiseConvolution(inputs, inputs // 4)
        self.encoder = nn.Conv2d(inputs // 4, NEIGHBOURS * factor**2, 3, padding=1)
        self.out = PointwiseConvolution(inputs, outputs)

    def forward(self, x: Tensor, then: Tensor) -> Tensor:
        """(B, H, W, C) to (B, rH, rW, C'), with `then` (C', outputs) the matrix of the linear step that follows."""
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = then @ self.out.weight.flatten(1), then @ self.out.bias
        kernels = to_tokens(self.encoder(to_image(self.down(x)))).unflatten(-1, (NEIGHBOURS, -1))  # (B, H, W, k, r^2)
        values = F.pad(F.linear(x, weight), [0, 0, 1, 1, 1, 1])
        batch, height, width, r = *x.shape[:-1], self.factor
        rows = chunk_length(height, batch * width)
        strips = []
        for top in range(0, height, rows):
            around = values[:, top : top + rows + 2].unfold(1, 3, 1).unfold(2, 3, 1)  # (B, rows, W, C', 3, 3)
            weights = kernels[:, top : top + rows].softmax(-2).transpose(-1, -2)
            mixed = torch.matmul(weights, around.movedim(3, -1).flatten(3, 4))  # (B, rows, W, r^2, C')
            strips.append(mixed.unflatten(-2, (r, r)).transpose(2, 3))
        return accumulate(torch.cat(strips, 1), bias).reshape(batch, r * height, r * width, -1)


class CSWinUNet(SegmentationNetwork):
    """The whole network. Takes (B, C, H, W) float32 and returns logits (B, classes, H, W).

    A network of three channels takes one too, and repeats it, as published.
    """

    def __init__(self, config: CSWinConfig) -> None:
        super().__init__()
        if config.spatial_dims != 2 or len(set(config.patch)) > 1 or set(config.strides) != {(2, 2)}:
            raise ValueError(f"for slices the patch is square and strides are (2, 2), not {config.patch} and {config.strides}")
        self.config = config
        self.encoder = Encoder(config, skip_norms=False)
        self.stages = nn.ModuleDict({str(i): config.blocks(i) for i in reversed(config.stages)})
        widths = {i: config.width(i) for i in reversed(config.stages)}
        self.upsamples = nn.ModuleDict({str(i): Reassembly(w, w // 2, 2) for i, w in widths.items() if i > 1})
        self.upsamples["1"] = Reassembly(widths[1], widths[1], config.patch[0])
        self.joins = nn.ModuleDict({str(i): nn.Linear(w, w // 2) for i, w in widths.items() if i > 1})
        self.norm = nn.LayerNorm(widths[1])
        self.head = nn.Conv2d(widths[1], config.out_channels, 1, bias=False)
        initialise_linears(self)
        self.card = _card(config)

    def options(self) -> dict[str, Any]:
        return {"split_size": self.config.split_size, "num_heads": self.config.num_heads}

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.expand(-1, 3, -1, -1) if x.ndim == 4 and x.shape[1] == 1 and self.card.in_channels == 3 else x)

    def segment(self, x: Tensor) -> Tensor:
        *skips, grid = self.encoder.grids(x)
        for number, join in self.joins.items():
            grid = self.stages[number](grid)
            skip = skips.pop()
            assert isinstance(join, nn.Linear)
            # Linear(concat(skip, up)), the skip first, as the sum of two products.
            of_skip, of_grid = join.weight.split(skip.shape[-1], 1)
            grid = accumulate(self.upsamples[number](grid, of_grid), F.linear(skip, of_skip, join.bias))
        return to_image(self.upsamples["1"](self.norm(self.stages["1"](grid)), self.head.weight.flatten(1)))


def _card(config: CSWinConfig) -> SegmentationCard:
    return SegmentationCard(
        family="cswin_unet",
        title="CSWin-UNet",
        paper="Liu et al., CSWin-UNet: Transformer UNet with cross-shaped windows for medical image segmentation, "
        "Information Fusion 113, 2025, arXiv 2407.18070",
        code_licence="unknown",
        spatial_dims=2,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        multiple=max(config.multiples),
        # Measured peaks above the loaded model, at 448 to 768 pixels a side: 43 to 57 for the published network, less than this.
        activation_floats=8 * config.embed_dim // config.patch[0] ** 2 + 25 + config.in_channels,
    )


def _blocks(theirs: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Names of the blocks of one kind of stages: attention has a place of its own with us."""
    parts = {"attns.{}.get_v.": "attention.local.{}.", "qkv.": "attention.qkv.", "proj.": "attention.proj.", "": ""}
    return tuple((f"{PREFIX}{theirs}{{}}.{{}}.{of_file}", f"{ours}.{{}}.{{}}.{own}") for of_file, own in parts.items())


KEYS = KeyMap(
    (PREFIX + "stage1_conv_embed.0.", "encoder.embed."),
    (PREFIX + "stage1_conv_embed.2.", "encoder.embed_norm."),
    *_blocks("stage", "encoder.stages"),
    (PREFIX + "merge{}.", "encoder.merges.{}."),
    (PREFIX + "norm{}.", "encoder.skip_norms.{}."),
    (PREFIX + "norm.", "encoder.norm."),
    *_blocks("stage_up", "stages"),
    (PREFIX + "upsample{}.", "upsamples.{}."),
    (PREFIX + "concat_linear{}.", "joins.{}."),
    (PREFIX + "norm_up.", "norm."),
    (PREFIX + "output.", "head."),
    (PREFIX, ""),  # the decoder for volumes, which is ours
)
"""Names in files and ours, by prefix."""

_STEM = "stage1_conv_embed.0.weight"


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for U-Nets and for backbones, of which `read_config` says what they are good for."""
    return PREFIX + _STEM in state or _STEM in state


def read_config(state: Mapping[str, Tensor]) -> CSWinConfig:
    """The configuration that a state dict under published keys tells, with the published heads and splits.

    Raises:
        WeightsError: It is a backbone alone, or an untrained network.
    """
    if PREFIX + _STEM not in state:
        if "upsample1.encoder.weight" in state:
            raise WeightsError(
                "This is the copy of a CSWin-UNet that the published code writes before it trains: its weights are random.",
                hint="Give the file that the training wrote, such as epoch_149.pth.",
            )
        raise WeightsError(
            "This is a CSWin backbone alone, with which a training can begin; it segments nothing.",
            hint="Give the weights of a CSWin-UNet, or name this file as what a training starts from.",
        )
    state = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    numbers = itertools.count(1)
    depths = tuple(itertools.takewhile(bool, (count_numbered(state, f"stage{number}.") for number in numbers)))
    width, channels = state[_STEM].shape[:2]
    common: dict[str, Any] = {
        "in_channels": channels,
        "out_channels": len(state["output.weight"]),
        "embed_dim": width,
        "depths": depths,
        "mlp_ratio": len(state["stage1.0.mlp.fc1.weight"]) / width,
        "whole": tuple(i for i in range(1, len(depths)) if f"stage{i}.0.attns.1.get_v.weight" not in state),
    }
    if state[_STEM].ndim == 5:
        return cswin_unet_3d.read_config(state, common)
    patch = isqrt(len(state["upsample1.encoder.weight"]) // NEIGHBOURS)
    return CSWinConfig(
        **common,
        num_heads=HEADS.get(width, tuple(max(1, width // 32) * 2**i for i in range(4)))[: len(depths)],
        split_size=(1, 2, 7, 7)[: len(depths)],
        patch=(patch, patch),
    )


def with_projection_biases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict in which projections to queries, keys and values have biases: zeros where the network was made without any."""
    projections = {key: key.removesuffix("weight") + "bias" for key in state if key.endswith(".qkv.weight")}
    if any(bias in state for bias in projections.values()):
        return dict(state)
    return {**state, **{bias: state[key].new_zeros(len(state[key])) for key, bias in projections.items()}}


def network_of(config: CSWinConfig) -> SegmentationNetwork:
    """The network for slices or for volumes that a configuration describes."""
    return cswin_unet_3d.CSWinUNet3D(config) if isinstance(config, cswin_unet_3d.CSWinUNet3DConfig) else CSWinUNet(config)


def build(state: Mapping[str, Tensor], **options: Any) -> SegmentationNetwork:
    """The network for a checkpoint. `options` are fields of its configuration that a file cannot tell, such as `split_size`.

    Raises:
        WeightsError: It is a backbone alone, or an untrained network.
    """
    return network_of(replace(read_config(state), **options))


def create(spatial_dims: int = 2, **options: Any) -> SegmentationNetwork:
    """A new network: for slices with the fields of CSWinConfig, for volumes with those of CSWinUNet3DConfig.

    Raises:
        ValueError: The fields do not go together.
    """
    if spatial_dims not in (2, 3):
        raise ValueError(f"CSWin UNets have 2 or 3 spatial dimensions, not {spatial_dims}")
    return network_of((CSWinConfig if spatial_dims == 2 else cswin_unet_3d.CSWinUNet3DConfig)(**options))


FAMILY = Family(
    name="cswin_unet",
    matches=matches,
    build=build,
    create=create,
    canonical=with_projection_biases,
    options=("split_size", "num_heads", "drop_path"),
    keys=KEYS,
)
