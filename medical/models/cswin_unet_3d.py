"""CSWin UNet for volumes, such as bi-parametric MRI of the prostate: a CSWin encoder under a convolutional decoder.

Y. Li et al., "Cross-shaped windows transformer with self-supervised pretraining for clinically significant prostate cancer
detection in bi-parametric MRI", Medical Physics 52(2), 2025, arXiv 2305.00385. No code and no weights of it are public; known
are an end-to-end three-dimensional CSWin encoder, a U-Net decoder, T2W, ADC and high-b DWI as channels of one volume, and
self-supervised pre-training. The rest is a design choice of this package, with which no published file is compatible:

- bars along three axes with a third of the channels and heads each (hybrid/blocks/cross_shaped.py);
- widths, depths, heads and splits; a stem and mergings that leave a thick axis alone until the others have come near;
- a norm for each stage's grid, as in the published backbone for segmentation in slices;
- the decoder, which is Swin UNETR's: residual blocks, transposed convolutions, skips from every stage and from the image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.layout import to_image
from hybrid.initialisation import initialise_linears
from medical.models.base import SegmentationCard, SegmentationNetwork
from medical.models.cswin_encoder import CSWinConfig, Encoder
from medical.models.unet_blocks import CONVOLUTIONS, ResidualBlock, UpBlock


@dataclass(frozen=True)
class CSWinUNet3DConfig(CSWinConfig):
    """One CSWin UNet for volumes. Defaults are for prostates of 0.5 x 0.5 x 3 mm, axes (left-right, front-back, up-down).

    Attributes:
        image_features: Channels of the decoder at the resolution of the image.
    """

    in_channels: int = 3
    out_channels: int = 1
    embed_dim: int = 48
    depths: tuple[int, ...] = (1, 2, 6, 1)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    split_size: tuple[int, ...] = (1, 2, 4, 4)
    patch: tuple[int, ...] = (4, 4, 1)
    strides: tuple[tuple[int, ...], ...] = ((2, 2, 1), (2, 2, 2), (2, 2, 2))
    image_features: int = 24


class StridedUpBlock(UpBlock):
    """An UpBlock that multiplies each side of the grid by a stride of its own."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, ...]) -> None:
        super().__init__(inputs, outputs, len(stride))
        first, second, third = stride
        kernel = (first, second, third)
        self.up = nn.ConvTranspose3d(inputs, outputs, kernel, stride=kernel, bias=False)


class CSWinUNet3D(SegmentationNetwork):
    """The whole network. Takes (B, C, *spatial) float32 and returns logits (B, classes, *spatial).

    Each side is filled up to a multiple of its own, `config.multiples`; the card states the largest.
    """

    def __init__(self, config: CSWinUNet3DConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config, skip_norms=True)
        # Level 0 is the image, level i the grid of stage i.
        widths = [config.image_features, *(config.width(i) for i in config.stages)]
        self.refine = nn.ModuleDict({"0": ResidualBlock(config.in_channels, widths[0], 3)})
        self.refine.update({str(i): ResidualBlock(widths[i], widths[i], 3) for i in config.stages})
        strides = (config.patch, *config.strides)
        self.decoder = nn.ModuleDict(
            {str(i): StridedUpBlock(widths[i], widths[i - 1], strides[i - 1]) for i in reversed(config.stages)}
        )
        self.head = CONVOLUTIONS[3](widths[0], config.out_channels, 1)
        initialise_linears(self.encoder)
        self.card = _card(config)

    def options(self) -> dict[str, Any]:
        return {"split_size": self.config.split_size, "num_heads": self.config.num_heads}

    def padded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Each side to its own multiple; and the last grid has two tokens at least, since instance norm makes nothing of one."""
        multiples = self.config.multiples
        sides = tuple(-(-n // m) * m for n, m in zip(shape, multiples, strict=True))
        return (2 * sides[0], *sides[1:]) if sides == multiples else sides

    def segment(self, x: Tensor) -> Tensor:
        # Refined in the place of the grids, so that none is kept twice.
        levels = self.encoder.grids(x)
        for i in self.config.stages:
            levels[i - 1] = self.refine[str(i)](levels[i - 1])
        grid = levels.pop()
        for block in self.decoder.values():
            # The clone gives one channel the strides of channels-last too, which tell torch the layout of the result.
            skip = levels.pop() if levels else self.refine["0"](x.movedim(1, -1).clone(memory_format=torch.contiguous_format))
            grid = block(grid, skip)
        return to_image(F.linear(grid, self.head.weight.flatten(1), self.head.bias))


def _card(config: CSWinUNet3DConfig) -> SegmentationCard:
    return SegmentationCard(
        family="cswin_unet",
        title="CSWin UNet 3D",
        paper="Li et al., Cross-shaped windows transformer with self-supervised pretraining for clinically significant prostate "
        "cancer detection in bi-parametric MRI, Medical Physics 52(2), 2025, arXiv 2305.00385",
        code_licence="unknown",
        spatial_dims=3,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        multiple=max(config.multiples),
        # Measured peaks above the loaded model, at 96 to 256 voxels a side: 4.4 to 5.0 of the larger.
        activation_floats=5 * max(config.image_features, 2 * config.embed_dim // prod(config.patch)) + config.in_channels,
    )


def read_config(state: Mapping[str, Tensor], common: Mapping[str, Any]) -> CSWinUNet3DConfig:
    """The configuration of a state dict under file names without their prefix; `common` is what networks for slices have too."""
    strides = [tuple(state[f"decoder.{i}.up.weight"].shape[2:]) for i in range(1, len(common["depths"]) + 1)]
    return CSWinUNet3DConfig(
        **common,
        num_heads=tuple(3 * 2**i for i in range(len(strides))),
        split_size=CSWinUNet3DConfig.split_size[: len(strides)],
        patch=strides[0],
        strides=tuple(strides[1:]),
        image_features=state["output.weight"].shape[1],
    )
