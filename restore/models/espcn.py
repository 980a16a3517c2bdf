"""ESPCN, the three-layer network that introduced sub-pixel convolution.

W. Shi, J. Caballero, F. Huszar, J. Totz, A. P. Aitken, R. Bishop, D. Rueckert, Z. Wang, "Real-Time Single Image and
Video Super-Resolution Using an Efficient Sub-Pixel Convolutional Neural Network", CVPR 2016, arXiv 1609.05158.
Axis letters: B batch, C image channels, H and W rows and columns.

There are no official weights. With one channel, as in the paper, the network enlarges luma (BT.601, studio swing) and
whoever runs it enlarges the colours by bicubic: its card says `luma`. With three it takes and gives RGB.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.layout import channels_last
from hybrid.blocks.resampling import in_strips, strip_rows
from hybrid.cards import ModelCard
from hybrid.families import build_from, create_from
from hybrid.weights.keys import KeyMap
from restore.models.base import Family, RestorationNetwork

WIDTHS = (64, 32)
"""Feature maps of the first and second convolution."""
REACH = 4
"""Pixels that an output depends on, on each side: 2 + 1 + 1."""
STRIP_PIXELS = 2**14
"""Input pixels of a strip in inference: the 64 maps are the peak, and stay in the processor's cache so."""


@dataclass(frozen=True)
class ESPCNConfig:
    """One ESPCN. Defaults are the paper's.

    Attributes:
        in_channels: 1 for luma, 3 for RGB.
        scale: Enlargement r.
        replicate_border: Repeat the outermost pixels around the picture, instead of the zeros that darken a rim of
            four pixels; not in a file.
    """

    in_channels: int = 1
    scale: int = 4
    replicate_border: bool = False


class ESPCN(RestorationNetwork):
    """The whole network (paper, section 3.1). Takes and returns (B, C, H, W) float32 in [0, 1], enlarged by `config.scale`."""

    def __init__(self, config: ESPCNConfig) -> None:
        super().__init__()
        self.config = config
        wide, narrow = WIDTHS
        self.conv1 = nn.Conv2d(config.in_channels, wide, 5, padding=2)
        self.conv2 = nn.Conv2d(wide, narrow, 3, padding=1)
        self.conv3 = nn.Conv2d(narrow, config.in_channels * config.scale**2, 3, padding=1)
        for layer in (self.conv1, self.conv2):
            nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))
        nn.init.normal_(self.conv3.weight, std=0.001)
        for layer in (self.conv1, self.conv2, self.conv3):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
        channels_last(self)
        self.card = _card(config)

    def restore(self, x: Tensor) -> Tensor:
        scale, around = self.config.scale, REACH if self.config.replicate_border else 0
        if around:
            x = F.pad(x, [around] * 4, mode="replicate")
        y = in_strips(self._enlarge, x, scale=scale, halo=REACH, rows=strip_rows(STRIP_PIXELS, x.shape[-1]))
        rim = around * scale
        return y[..., rim : y.shape[-2] - rim, rim : y.shape[-1] - rim]

    def _enlarge(self, x: Tensor) -> Tensor:
        x = self.conv1(x.contiguous(memory_format=torch.channels_last)).tanh_()
        x = self.conv2(x).tanh_()
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(x.device.type, enabled=False):
            return F.pixel_shuffle(self.conv3(x.float()), self.config.scale)


def _card(config: ESPCNConfig) -> ModelCard:
    values = config.in_channels * config.scale**2
    return ModelCard(
        family="espcn",
        title="ESPCN",
        paper="Shi et al., Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel Convolutional "
        "Neural Network, CVPR 2016, arXiv 1609.05158",
        code_licence="none: written from the paper",
        scale=config.scale,
        channels=config.in_channels,
        multiple=1,
        overlap=2 * REACH,
        exact=True,
        global_context=False,
        # Input and result, and the maps of a strip: measured at 256 and 640 pixels a side, plus a tenth.
        activation_floats=round(1.1 * (values + 2 * config.in_channels)),
        working_floats=STRIP_PIXELS * (2 * sum(WIDTHS) + 4 * values),
        luma=config.in_channels == 1,
        # No skip carries the picture past the features: in bf16 it loses 0.02 dB at 26 dB, in fp16 nothing.
        low_precision=("fp16",),
    )


KEYS = KeyMap(
    *((name, name) for name in ("conv1.", "conv2.", "conv3.")),
    ("first_part.0.", "conv1."),
    ("first_part.2.", "conv2."),
    ("last_part.0.", "conv3."),
)
"""Names of a widespread re-implementation and ours; files are written with ours."""

_LAYERS = (("conv1.", "conv2.", "conv3."), ("first_part.0.", "first_part.2.", "last_part.0."))


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for exactly three convolutions of ESPCN's shapes; relatives of four layers are other networks."""
    names = next((names for names in _LAYERS if state.keys() == {n + part for n in names for part in ("weight", "bias")}), None)
    if names is None:
        return False
    first, second, third = (tuple(state[name + "weight"].shape) for name in names)
    wide, narrow = WIDTHS
    if len(first) != 4 or len(third) != 4 or first[1] == 0:
        return False
    channels, scale = first[1], isqrt(third[0] // first[1])
    return (first, second, third) == ((wide, channels, 5, 5), (narrow, wide, 3, 3), (channels * scale**2, narrow, 3, 3))


def read_config(state: Mapping[str, Tensor]) -> ESPCNConfig:
    """The configuration that the shapes of the first and last convolution tell."""
    weights = {KEYS.to_ours(key): value for key, value in state.items()}
    channels = weights["conv1.weight"].shape[1]
    return ESPCNConfig(in_channels=channels, scale=isqrt(len(weights["conv3.weight"]) // channels))


FAMILY = Family(
    name="espcn",
    matches=matches,
    build=build_from(ESPCN, read_config),
    create=create_from(ESPCN, ESPCNConfig),
    options=("replicate_border",),
    keys=KEYS,
)
