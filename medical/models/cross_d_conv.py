"""ResNets of Cross-D Conv: classifiers of slices whose kernels serve a classifier of volumes as they are.

M. C. Yavuz, Y. Yang, "Cross-D Conv: Cross-Dimensional Transferable Knowledge Base via Fourier Shifting Operation",
arXiv 2411.02441; networks: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016.
Published: ResNet-18 of slices. 34 and 50 are made by the same rule. Parameters have their published names, in volumes too.
Axis letters: B batch, C channels. Images are (B, C, *spatial).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hybrid.blocks.cross_d import HIDDEN, CrossDConv
from hybrid.errors import WeightsError
from hybrid.families import create_from
from hybrid.weights.keys import KeyMap, count_numbered
from medical.models.base import ClassificationNetwork, Family, SegmentationCard

PAPER = (
    "Yavuz & Yang, Cross-D Conv: Cross-Dimensional Transferable Knowledge Base via Fourier Shifting Operation, arXiv 2411.02441"
)
CODE_LICENCE = "MIT"
EXPANSION = 4
"""Channels that a bottleneck block gives, in multiples of those inside it."""
STEM_KERNEL = 7
NORMS = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
POOLS = {2: nn.MaxPool2d, 3: nn.MaxPool3d}


@dataclass(frozen=True)
class CrossDConfig:
    """One ResNet of Cross-D Conv. Defaults are the published ResNet-18 of RadImageNet.

    Attributes:
        in_channels, out_channels: Channels of the image, and classes.
        spatial_dims: 2 for slices, 3 for volumes.
        depths: Blocks of each stage: ResNet-18 (2, 2, 2, 2), 34 and 50 (3, 4, 6, 3).
        bottleneck: Blocks of three convolutions, as in ResNet-50, not of two.
        width: Channels of the first stage; they double with each.
    """

    in_channels: int = 3
    out_channels: int = 165
    spatial_dims: int = 2
    depths: tuple[int, ...] = (2, 2, 2, 2)
    bottleneck: bool = False
    width: int = 64

    def __post_init__(self) -> None:
        if self.spatial_dims not in NORMS:
            raise ValueError(f"Cross-D Conv has 2 or 3 spatial dimensions, not {self.spatial_dims}")
        if not self.depths or min(self.depths) < 1:
            raise ValueError(f"each stage has one block at least, and depths are {self.depths}")

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels that the stages give."""
        return tuple(self.width * 2**stage * (EXPANSION if self.bottleneck else 1) for stage in range(len(self.depths)))

    @property
    def title(self) -> str:
        """Its name in print: ResNets are numbered by their layers with weights, shortcuts not counted."""
        return f"Cross-D ResNet-{sum(self.depths) * (3 if self.bottleneck else 2) + 2}"


def normed_convolution(inputs: int, outputs: int, kernel: int, stride: int, spatial_dims: int) -> nn.Sequential:
    """Cross-D Conv with zeros around, and batch norm."""
    convolution = CrossDConv(inputs, outputs, kernel, stride=stride, padding=kernel // 2, spatial_dims=spatial_dims)
    return nn.Sequential(convolution, NORMS[spatial_dims](outputs))


class Block(nn.Module):
    """Convolutions with batch norm, and the input added; where the shape changes, through a 1x1 convolution with a norm.

    Two of 3 x 3, or with `bottleneck` 1 x 1, 3 x 3 and 1 x 1; the first of 3 x 3 has the stride.
    """

    def __init__(self, inputs: int, width: int, stride: int, config: CrossDConfig) -> None:
        super().__init__()
        outputs, dims = width * EXPANSION if config.bottleneck else width, config.spatial_dims
        steps = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        if config.bottleneck:
            steps = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        # Numbered from 1, as published.
        self.steps = nn.ModuleDict({str(i + 1): normed_convolution(*step, dims) for i, step in enumerate(steps)})
        changes = stride != 1 or inputs != outputs
        self.shortcut = normed_convolution(inputs, outputs, 1, stride, dims) if changes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *spatial) to (B, C', *spatial / stride)."""
        *first, last = self.steps.values()
        y = x
        for step in first:
            y = step(y).relu_()
        mixed: Tensor = (last(y) + self.shortcut(x)).relu_()
        return mixed


class Encoder(nn.Module):
    """The ResNet without its head: a stem that makes a quarter of each side, and stages that halve them."""

    def __init__(self, config: CrossDConfig) -> None:
        super().__init__()
        dims, width = config.spatial_dims, config.width
        self.stem = normed_convolution(config.in_channels, width, STEM_KERNEL, 2, dims)
        self.pool = POOLS[dims](3, stride=2, padding=1)
        self.stages = nn.ModuleDict()  # numbered from 1, as published
        for i, (depth, inputs) in enumerate(zip(config.depths, (width, *config.channels), strict=False)):
            first = Block(inputs, width * 2**i, 2 if i else 1, config)
            others = (Block(config.channels[i], width * 2**i, 1, config) for _ in range(depth - 1))
            self.stages[str(i + 1)] = nn.Sequential(first, *others)

    def forward(self, x: Tensor) -> Iterator[Tensor]:
        """What (B, C, *spatial) is after the stem's convolution, at half of each side, and after each stage."""
        x = self.stem(x).relu_()
        yield x
        x = self.pool(x)
        for stage in self.stages.values():
            x = stage(x)
            yield x


class CrossDResNet(ClassificationNetwork):
    """The classifier. Takes (B, C, *spatial) float32 of any size and returns logits (B, classes).

    A network of three channels takes one too, and repeats it, as published.
    """

    def __init__(self, config: CrossDConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.fc = nn.Linear(config.channels[-1], config.out_channels)
        self.card = SegmentationCard(
            family="cross_d_conv",
            title=config.title,
            paper=PAPER,
            code_licence=CODE_LICENCE,
            spatial_dims=config.spatial_dims,
            in_channels=config.in_channels,
            out_channels=config.out_channels,
            multiple=1,
            # Measured at 1024 pixels and 96 voxels a side: 0.3 to 0.7 C, with bottlenecks 1.4 C.
            activation_floats=config.in_channels + config.width * (2 if config.bottleneck else 1),
            task="classification",
        )

    def forward(self, x: Tensor) -> Tensor:
        single = x.ndim == self.card.spatial_dims + 2 and x.shape[1] == 1 and self.card.in_channels == 3
        return super().forward(x.expand(-1, 3, *x.shape[2:]) if single else x)

    def classify(self, x: Tensor) -> Tensor:
        *_, last = self.encoder(x)
        scores: Tensor = self.fc(last.flatten(2).mean(-1))
        return scores


KEYS = KeyMap(
    ("conv1.", "encoder.stem.0."),
    ("bn1.", "encoder.stem.1."),
    ("layer{}.{}.conv{}.", "encoder.stages.{}.{}.steps.{}.0."),
    ("layer{}.{}.bn{}.", "encoder.stages.{}.{}.steps.{}.1."),
    ("layer{}.{}.downsample.", "encoder.stages.{}.{}.shortcut."),
)
"""Published names and ours, by prefix."""
DERIVED = ("*.num_batches_tracked", "slices.*")
"""Counters; and what `medical transfer` lays aside in a network of volumes for the way back to slices."""


def is_of_plain_convolutions(state: Mapping[str, Tensor]) -> bool:
    """True for classifiers of volumes as the authors' evaluation scripts make them: ResNets of plain 3-D convolutions.

    Other ResNets of volumes whose first kernel takes three channels have the same names and shapes: `build` asks.
    """
    stem = state.get("conv1.weight")
    return (
        stem is not None
        and stem.shape[1:] == (3, *(STEM_KERNEL,) * 3)
        and {"layer1.0.conv1.weight", "bn1.weight"} <= state.keys()
    )


def as_stored(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with the kernels of plain 3-D convolutions, ``X.weight``, under Cross-D Conv's name, ``X.weights_3d``."""
    if not is_of_plain_convolutions(state):
        return dict(state)
    return {key.removesuffix("weight") + "weights_3d" if value.ndim == 5 else key: value for key, value in state.items()}


def is_encoder(state: Mapping[str, Tensor]) -> bool:
    """True for files that hold the ResNet, also those of the operator's earlier form, which `read_config` refuses."""
    return any({f"conv1.{kernel}", f"layer1.0.conv1.{kernel}"} <= state.keys() for kernel in ("weights_3d", "weights_fft"))


def read_config(state: Mapping[str, Tensor], head: str) -> CrossDConfig:
    """The configuration that a state dict under published keys tells.

    Args:
        state: The weights.
        head: Name of the weights that give the logits.

    Raises:
        WeightsError: They are of the operator's earlier form, or stem and classes are none of a published network's.
    """
    state = as_stored(state)
    predictor = state.get("conv1.rotation_params.0.weight")
    if "conv1.weights_fft" in state or (predictor is not None and len(predictor) != HIDDEN):
        raise WeightsError(
            "These weights are of Cross-D Conv's earlier form (before January 2025), which is another operator.",
            hint="Give a file with weights_3d and predictors of 16 channels, as published since.",
        )
    stem = state["conv1.weights_3d"]
    if set(stem.shape[2:]) != {STEM_KERNEL}:
        raise WeightsError(
            f"The first kernel of this Cross-D network is {' x '.join(map(str, stem.shape[2:]))}, which is not supported.",
            hint=f"Use weights of the published form, with a first kernel of {STEM_KERNEL} voxels along each axis.",
        )
    depths = (count_numbered(state, f"layer{number}.") for number in itertools.count(1))
    return CrossDConfig(
        in_channels=stem.shape[1],
        out_channels=len(state[head]),
        spatial_dims=3 if predictor is None else 2,
        depths=tuple(itertools.takewhile(bool, depths)),
        bottleneck="layer1.0.conv3.weights_3d" in state,
        width=len(stem),
    )


def build(state: Mapping[str, Tensor], *, plain: bool = False, **options: Any) -> CrossDResNet:
    """The classifier of a checkpoint.

    Args:
        state: The weights, under published names.
        plain: Take a ResNet of plain 3-D convolutions for a classifier of ours. Changes nothing where names tell.
        **options: Fields of the configuration.

    Raises:
        WeightsError: The file could be another ResNet as well, or is of a form that `read_config` refuses.
    """
    if is_of_plain_convolutions(state) and not plain:
        raise WeightsError(
            "These weights are a ResNet's of plain 3-D convolutions: they could be another 3-D ResNet, such as MONAI's, whose "
            "names and shapes are the same and which is not supported.",
            hint="If it is of Cross-D, load_model(FILE, plain=True) takes it for a Cross-D classifier (--option plain=true): "
            "what save_model then writes needs no option.",
        )
    return CrossDResNet(replace(read_config(state, head="fc.weight"), **options))


FAMILY = Family(
    name="cross_d_conv",
    matches=lambda state: (is_encoder(state) or is_of_plain_convolutions(state)) and "fc.weight" in state,
    build=build,
    create=create_from(CrossDResNet, CrossDConfig),
    options=("plain",),
    keys=KEYS,
    derived=DERIVED,
    canonical=as_stored,
)
