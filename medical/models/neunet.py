"""neU-Net: a convolutional U-Net whose encoder sees wavelets of the scan at each scale, and whose decoder shuffles voxels.

W. Yang, L. Xu, P. Wang, D. Geng, Y. Li, M. Xu, Z. Dong, "More complex encoder is not all you need", arXiv 2309.11139;
the rest is nnU-Net: F. Isensee et al., Nature Methods 18, 2021.
Axis letters: B batch, C channels. Grids inside are channels-last, (B, *spatial, C). Stages are numbered from the finest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.wavelets import haar, mirrored_signs
from hybrid.errors import WeightsError
from hybrid.weights.keys import KeyMap, count_numbered
from medical.models.base import Family, SegmentationCard, SegmentationNetwork
from medical.models.neunet_blocks import ConvBlock, SubPixelUp
from medical.models.unet_blocks import CONVOLUTIONS, SLOPE, logits

Axes = tuple[int, ...]


@dataclass(frozen=True)
class NeUNetConfig:
    """One neU-Net. Features and convolutions are by default those of all published networks.

    Attributes:
        in_channels, out_channels: Channels of the scan, and logits a voxel.
        spatial_dims: 3 for volumes; 2 for slices, for which nothing is published.
        features: Channels of each stage.
        strides: Steps, 1 or 2, along each axis into each stage; the first has none. Empty for 2 along all axes. Not for
            certain in a file.
        kernels: Edges of each stage's convolutions. Empty for 3 along all axes.
        convolutions, decoder_convolutions: How many each stage has.
        wavelets: Whether the encoder sees wavelets.
        deep_supervision: Whether the network returns the logits of all scales; not in a file.
    """

    in_channels: int = 1
    out_channels: int = 14
    spatial_dims: int = 3
    features: tuple[int, ...] = (32, 64, 128, 256, 320, 320)
    strides: tuple[Axes, ...] = ()
    kernels: tuple[Axes, ...] = ()
    convolutions: int = 2
    decoder_convolutions: int = 2
    wavelets: bool = True
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        dims, stages = self.spatial_dims, len(self.features)
        if dims not in CONVOLUTIONS or stages < 2:
            raise ValueError(f"neU-Net has 2 or 3 spatial dimensions and two stages at least, not {dims} and {stages}")
        for name, default in [("strides", ((1,) * dims, *[(2,) * dims] * (stages - 1))), ("kernels", ((3,) * dims,) * stages)]:
            given = tuple(map(tuple, getattr(self, name))) or default
            if [len(axes) for axes in given] != [dims] * stages:
                raise ValueError(f"{name} are one number for each of {dims} axes of each of {stages} stages, not {given}")
            object.__setattr__(self, name, given)
        object.__setattr__(self, "features", tuple(self.features))
        if set(self.strides[0]) != {1} or not {step for stride in self.strides for step in stride} <= {1, 2}:
            raise ValueError(f"strides are 1 or 2, and 1 into the first stage, not {self.strides}")
        if not all(edge % 2 for kernel in self.kernels for edge in kernel):
            raise ValueError(f"kernels have odd edges, not {self.kernels}")

    @property
    def multiples(self) -> Axes:
        """By how much the last stage is smaller than the scan, along each axis."""
        return tuple(map(prod, zip(*self.strides, strict=True)))


_FINE, _FLAT, _CUBE = (1, 1, 1), (1, 2, 2), (2, 2, 2)
_THIN, _WHOLE = (1, 3, 3), (3, 3, 3)
CONFIGURATIONS = {
    # Heads of Synapse and BTCV are as the evaluation of 13 organs takes them; the plans do not say. A file does.
    "synapse": NeUNetConfig(1, 14, 3, strides=(_FINE, _FLAT, _CUBE, _CUBE, _CUBE, _FLAT), kernels=(_THIN, *[_WHOLE] * 5)),
    "btcv": NeUNetConfig(1, 14, 3, strides=(_FINE, _FLAT, _CUBE, _CUBE, _CUBE, _FLAT), kernels=(_THIN, *[_WHOLE] * 5)),
    "acdc": NeUNetConfig(1, 4, 3, strides=(_FINE, _FLAT, _FLAT, _CUBE, _FLAT, _FLAT), kernels=(_THIN, _THIN, *[_WHOLE] * 4)),
    "brats": NeUNetConfig(4, 4, 3, strides=(_FINE, *[_CUBE] * 5)),
}
"""The published networks, by their data. Axes are those of the published arrays: slices, rows, columns."""


class Encoder(nn.Module):
    """Stages of convolutions, the first of which narrows the grid; the scan's wavelets join before it."""

    def __init__(self, config: NeUNetConfig) -> None:
        super().__init__()
        self.strides, features, channels = config.strides, config.features, config.in_channels
        inner = range(1, len(features) - 1)
        bands = [1, *(prod(stride) for stride in config.strides[1:-2])]
        self.wavelets = nn.ModuleList(
            ConvBlock(channels * bands[s - 1], features[s - 1], (3,) * config.spatial_dims) for s in inner if config.wavelets
        )
        self.stages = nn.ModuleList()
        for s, (kernel, stride) in enumerate(zip(config.kernels, config.strides, strict=True)):
            inputs = features[s - 1] * (1 + (s - 1 < len(self.wavelets))) if s else channels
            self.stages.append(_stage(inputs, features[s], kernel, config.convolutions, stride))

    def forward(self, x: Tensor, mirrored: Sequence[int] = ()) -> list[Tensor]:
        """The grids of all stages of a scan (B, *spatial, C). `mirrored` is as for `wavelet_inputs`."""
        grids = [_run(self.stages[0], [x])]
        inputs = wavelet_inputs(x, self.strides, mirrored)
        for s, stage in enumerate(self.stages[1:]):
            joined = self.wavelets[s : s + 1]
            grids.append(_run(stage, [grids[-1], *(block(next(inputs)) for block in joined)]))
        return grids


class Decoder(nn.Module):
    """From the last grid upwards: enlarge, join the encoder's grid, refine; a head at each scale."""

    def __init__(self, config: NeUNetConfig) -> None:
        super().__init__()
        self.ups, self.stages, self.heads = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for s in range(len(config.features) - 1, 0, -1):
            features, kernel = config.features[s - 1], config.kernels[s - 1]
            self.ups.append(SubPixelUp(config.features[s], features, config.strides[s]))
            self.stages.append(_stage(2 * features, features, kernel, config.decoder_convolutions))
            self.heads.append(CONVOLUTIONS[config.spatial_dims](features, config.out_channels, 1))

    def forward(self, grids: list[Tensor], *, all_heads: bool) -> list[Tensor]:
        """Logits (B, classes, *spatial) of each scale, the finest first, or of that alone. Empties the list of grids."""
        found = []
        for s, (up, stage, head) in enumerate(zip(self.ups, self.stages, self.heads, strict=True), 1):
            # Nothing but the list holds a grid, so that each is free once it has been read.
            grids.append(up(grids.pop()))
            grids.append(_run(stage, [grids.pop(), grids.pop()]))
            if all_heads or s == len(self.heads):
                found.append(logits(grids[-1], head))
        return found[::-1]


class NeUNet(SegmentationNetwork):
    """The whole network. Takes (B, C, *spatial) float32 and returns logits (B, classes, *spatial).

    Attributes:
        deep_supervision: With it `forward` returns a list of the logits at all scales instead. It may be changed at any
            time; the heads of the coarse scales learn only in a network that was made with it.
    """

    def __init__(self, config: NeUNetConfig) -> None:
        super().__init__()
        self.config, self.deep_supervision = config, config.deep_supervision
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.decoder.heads[:-1].requires_grad_(config.deep_supervision)
        self.card = _card(config)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Conv3d)):
                assert module.bias is not None
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                nn.init.zeros_(module.bias)

    def options(self) -> dict[str, Any]:
        return {"strides": [list(stride) for stride in self.config.strides]}

    def padded(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """A multiple of its own for each axis; and the last grid has two voxels, since instance norm makes nothing of one."""
        multiples = self.config.multiples
        sides = [-(-n // m) * m for n, m in zip(shape, multiples, strict=True)]
        if tuple(sides) == multiples:
            sides[multiples.index(min(multiples))] *= 2
        return tuple(sides)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:  # type: ignore[override]  # a list is what was asked for
        """Logits of scans of any size, as of every segmentation network; with deep supervision as `all_scales`."""
        return self.all_scales(x) if self.deep_supervision else super().forward(x)

    def all_scales(self, x: Tensor) -> list[Tensor]:
        """(B, C, *spatial) float32 of any size to the logits of all scales, the full one first, (B, classes, *spatial / scale).

        A scale that does not divide a side covers all of it: its last voxel stands for fewer.

        Raises:
            ValueError: The input is no batch of scans, or has another number of channels than the network.
        """
        shape, scale = self._check(x), (1,) * self.config.spatial_dims
        missing = [m - n for m, n in zip(self.padded(shape), shape, strict=True)]
        x = F.pad(x, [n for m in reversed(missing) for n in (0, m)])
        with self._computing(x):
            found: list[Tensor] = self.decoder(self.encoder(_tokens(x)), all_heads=True)
        for s, stride in enumerate(self.config.strides[:-1]):
            scale = tuple(n * step for n, step in zip(scale, stride, strict=True))
            sides = (slice(-(-n // step)) for n, step in zip(shape, scale, strict=True))
            found[s] = found[s][(slice(None), slice(None), *sides)].float()
        return found

    def segment(self, x: Tensor, mirrored: Sequence[int] = ()) -> Tensor:
        """Logits of a scan with sides that need no padding.

        Args:
            x: (B, C, *spatial).
            mirrored: Spatial axes along which `x` is the mirror image of a scan whose own wavelets, mirrored, shall be the
                inputs. The published test-time augmentation does so, though training did not; see `wavelet_inputs`.
        """
        found: list[Tensor] = self.decoder(self.encoder(_tokens(x), mirrored), all_heads=False)
        return found[0]


def wavelet_inputs(x: Tensor, strides: Sequence[Axes], mirrored: Sequence[int] = ()) -> Iterator[Tensor]:
    """What joins the encoder before its stages 1, 2, ..., at the resolution of the stage before.

    First the scan; then the sub-bands of its wavelet transform, each time along the axes that the stride halves, of the
    approximation that came before.

    Args:
        x: A scan (B, *spatial, C).
        strides: Into each stage of the encoder, the first included.
        mirrored: Spatial axes along which `x` is mirrored and its details shall keep the signs that they have in the scan.

    Yields:
        (B, *spatial / scale, C) and then (B, *spatial / scale, bands * C).
    """
    yield x
    channels = x.shape[-1]
    for stride in strides[1:-2]:
        axes = [axis for axis, step in enumerate(stride) if step == 2]
        bands = haar(x, axes)
        x = bands[..., :channels]
        signs = mirrored_signs(axes, mirrored)
        yield bands if min(signs) > 0 else bands * torch.tensor(signs).repeat_interleave(channels).to(bands)


def _stage(inputs: int, outputs: int, kernel: Axes, count: int, stride: Axes | None = None) -> nn.ModuleList:
    blocks = [ConvBlock(inputs, outputs, kernel, stride)]
    return nn.ModuleList(blocks + [ConvBlock(outputs, outputs, kernel) for _ in range(count - 1)])


def _run(stage: nn.Module, parts: list[Tensor]) -> Tensor:
    """One block after the other. Empties the list of the grids that are joined, so that they are free after the first."""
    assert isinstance(stage, nn.ModuleList)
    first, *others = stage
    grid: Tensor = first(*parts)
    parts.clear()
    for block in others:
        grid = block(grid)
    return grid


def _tokens(x: Tensor) -> Tensor:
    """The scan (B, C, *spatial) as a grid; the clone has the strides of channels-last also where there is one channel."""
    return x.movedim(1, -1).clone(memory_format=torch.contiguous_format)


def _card(config: NeUNetConfig) -> SegmentationCard:
    return SegmentationCard(
        family="neunet",
        title="neU-Net",
        paper="Yang et al., More complex encoder is not all you need, arXiv 2309.11139",
        code_licence="MIT",
        spatial_dims=config.spatial_dims,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        multiple=max(config.multiples),
        activation_floats=5 * config.features[0] + 2 * config.in_channels,
    )


KEYS = KeyMap(
    ("encoder.multiscale_input.{}.", "encoder.wavelets.{}."),
    ("encoder.stages.{}.0.convs.{}.", "encoder.stages.{}.{}."),
    ("decoder.convswithpixelshuffle.{}.", "decoder.ups.{}."),
    ("decoder.stages.{}.convs.{}.", "decoder.stages.{}.{}."),
    ("decoder.seg_layers.{}.", "decoder.heads.{}."),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for neU-Net, with and without wavelets; nnU-Net's own networks have other decoders."""
    return {
        "encoder.stages.0.0.convs.0.conv.weight",
        "decoder.convswithpixelshuffle.0.conv1.weight",
        "decoder.seg_layers.0.weight",
    } <= state.keys()


def read_config(state: Mapping[str, Tensor], strides: Sequence[Sequence[int]] | None = None) -> NeUNetConfig:
    """The configuration that a state dict under published keys tells.

    Args:
        state: The weights.
        strides: Of the stages; None for those of all published networks that have these shapes: a grid of four times the
            voxels is taken for (1, 2, 2). That (2, 2, 1) or (2, 1, 2) has the same shapes, and has to be said here.

    Raises:
        WeightsError: The strides do not follow from the shapes.
    """
    count = count_numbered(state, "encoder.stages.")
    first = [state[f"encoder.stages.{s}.0.convs.0.conv.weight"] for s in range(count)]
    features = [len(weight) for weight in first]
    dims = first[0].ndim - 2
    if strides is None:
        above = [state[f"decoder.convswithpixelshuffle.{count - 1 - s}.conv2.weight"] for s in range(1, count)]
        strides = [(1,) * dims, *(_stride(len(weight) // width, dims) for weight, width in zip(above, features, strict=False))]
    return NeUNetConfig(
        in_channels=first[0].shape[1],
        out_channels=len(state["decoder.seg_layers.0.weight"]),
        spatial_dims=dims,
        features=tuple(features),
        strides=tuple(map(tuple, strides)),
        kernels=tuple(tuple(weight.shape[2:]) for weight in first),
        convolutions=count_numbered(state, "encoder.stages.0.0.convs."),
        decoder_convolutions=count_numbered(state, "decoder.stages.0.convs."),
        wavelets="encoder.multiscale_input.0.conv.weight" in state,
    )


def _stride(voxels: int, dims: int) -> Axes:
    """The stride that shares each voxel out to so many: along all axes, or along all but the first, as all plans have it."""
    halved = voxels.bit_length() - 1
    if voxels != 2**halved or halved not in {0, 2, dims}:
        raise WeightsError(
            f"The weights enlarge a grid to {voxels} times its voxels, which does not tell along which axes.",
            hint="Give the strides of all stages, as pool_op_kernel_sizes in plans.json has them: strides=[[1, 1, 1], ...].",
        )
    return (1,) * (dims - halved) + (2,) * halved


def build(
    state: Mapping[str, Tensor], *, strides: Sequence[Sequence[int]] | None = None, deep_supervision: bool = False
) -> NeUNet:
    """neU-Net for a checkpoint.

    `strides` are those of plans.json (`pool_op_kernel_sizes`). Shapes do not tell (2, 2, 1) and (2, 1, 2) from (1, 2, 2), as
    which they are read: networks with the former need them given, or give wrong results without a word.

    Raises:
        WeightsError: The strides do not follow from the shapes.
    """
    return NeUNet(replace(read_config(state, strides), deep_supervision=deep_supervision))


def create(configuration: str | None = None, **options: Any) -> NeUNet:
    """neU-Net for a training: fields of NeUNetConfig, in place of its defaults or of a published configuration's.

    Raises:
        ValueError: No such configuration, or options that do not go together.
    """
    if configuration is not None and configuration not in CONFIGURATIONS:
        raise ValueError(f"there is no configuration {configuration!r}, only {', '.join(CONFIGURATIONS)}")
    return NeUNet(replace(CONFIGURATIONS[configuration], **options) if configuration else NeUNetConfig(**options))


FAMILY = Family(
    name="neunet",
    matches=matches,
    build=build,
    create=create,
    options=("strides", "deep_supervision"),
    keys=KEYS,
    # A published file holds every tensor of a block twice, and all of the encoder once more inside the decoder.
    derived=("*.all_modules.*", "decoder.encoder.*"),
)
