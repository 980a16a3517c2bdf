"""A U-Net for segmentation over the ResNet of Cross-D Conv; the network is ours, no paper defines it.

The encoder is the published classifier without its head (`medical.models.cross_d_conv`), under the same names, so that
its weights can begin a training. The decoder is that of O. Ronneberger et al., "U-Net: Convolutional Networks for
Biomedical Image Segmentation", MICCAI 2015, made of Cross-D Conv alone, with batch norm and nearest neighbours in place of
transposed convolutions: so a network of slices becomes one of volumes, every tensor of it, by `medical transfer`.
Axis letters: B batch, C channels. Images are (B, C, *spatial).
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.families import build_from, create_from
from medical.models.base import Family, SegmentationCard, SegmentationNetwork
from medical.models.cross_d_conv import (
    DERIVED,
    KEYS,
    PAPER,
    CrossDConfig,
    Encoder,
    is_encoder,
    normed_convolution,
    read_config,
)
from medical.models.unet_blocks import CONVOLUTIONS


class UpBlock(nn.Module):
    """Double the grid, join the skip to it, and refine both by two convolutions of 3 x 3."""

    def __init__(self, inputs: int, skip: int, outputs: int, spatial_dims: int) -> None:
        super().__init__()
        channels = (inputs + skip, outputs)
        self.steps = nn.ModuleList(normed_convolution(n, outputs, 3, 1, spatial_dims) for n in channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """(B, C, *spatial) and a skip of twice its sides to (B, C', *2 spatial)."""
        y = torch.cat([F.interpolate(x, scale_factor=2), skip], dim=1)
        for step in self.steps:
            y = step(y).relu_()
        return y


class CrossDUNet(SegmentationNetwork):
    """The U-Net. Takes (B, C, *spatial) float32 and returns logits (B, classes, *spatial)."""

    def __init__(self, config: CrossDConfig) -> None:
        super().__init__()
        self.config = config
        dims, width, stages = config.spatial_dims, config.width, len(config.depths)
        self.encoder = Encoder(config)
        skips = [config.in_channels, width, *config.channels]
        outputs = [max(1, width // 2), width, *(width * 2**i for i in range(stages - 1))]
        # Numbered by the side of what they give: block 0 gives the image's, block i a half, a quarter, ...
        self.decoder = nn.ModuleDict()
        for i in reversed(range(stages + 1)):
            below = skips[-1] if i == stages else outputs[i + 1]
            self.decoder[str(i)] = UpBlock(below, skips[i], outputs[i], dims)
        self.head = CONVOLUTIONS[dims](outputs[0], config.out_channels, 1)
        self.card = _card(config)

    def segment(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = [x, *self.encoder(x)]
        grid = skips.pop()
        for block in self.decoder.values():
            grid = block(grid, skips.pop())
        logits: Tensor = self.head(grid)
        return logits


def _card(config: CrossDConfig) -> SegmentationCard:
    return SegmentationCard(
        family="cross_d_unet",
        title="Cross-D U-Net",
        paper=f"ours; encoder: {PAPER}",
        code_licence="Apache-2.0",
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        multiple=2 ** (len(config.depths) + 1),
        activation_floats=5 * config.width,  # measured: 2.3 to 4.3 C, at 64 and 96 voxels and 768 and 1024 pixels a side
    )


FAMILY = Family(
    name="cross_d_unet",
    matches=lambda state: is_encoder(state) and "head.weight" in state,
    build=build_from(CrossDUNet, partial(read_config, head="head.weight")),
    create=create_from(CrossDUNet, CrossDConfig),
    options=(),
    keys=KEYS,
    derived=DERIVED,
)
