"""Networks that judge faces, under their published names: VGG16 with the heads of LPIPS, Inception for FID, ArcFace for identity.

K. Simonyan, A. Zisserman, ICLR 2015; R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric",
CVPR 2018; C. Szegedy et al., CVPR 2016, in the form that FID uses (M. Heusel et al., NeurIPS 2017; no mean over zeros beside the
picture, and one maximum in place of a mean); J. Deng et al., "ArcFace", CVPR 2019. Axis letters: B batch, C channels.

`restore.faces.metrics_weights` gives them their weights.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Edges = int | tuple[int, int]
VGG_WIDTHS = (64, 128, 256, 512, 512)
VGG_DEPTHS = (2, 2, 3, 3, 3)
_MEAN, _SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class PerceptualDistance(nn.Module):
    """LPIPS: squared differences of unit vectors of five levels of VGG16, weighted by heads; mean over places, sum of levels."""

    def __init__(self) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        before, place = 3, 0
        for level, (width, depth) in enumerate(zip(VGG_WIDTHS, VGG_DEPTHS, strict=True)):
            place += level > 0  # the maximum before it
            for _ in range(depth):
                layers[str(place)] = nn.Conv2d(before, width, 3, padding=1)
                before, place = width, place + 2  # its activation
        self.features = nn.ModuleDict(layers)
        self.heads = nn.ParameterList(torch.zeros(width) for width in VGG_WIDTHS)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        """The distances (B,) of pictures (B, 3, H, W) in [-1, 1], RGB; 0 for equal ones."""
        pairs = zip(self.levels(one), self.levels(other), self.heads, strict=True)
        return torch.stack([((a - b).square().movedim(1, -1) @ head).mean((1, 2)) for a, b, head in pairs]).sum(0)

    def levels(self, x: Tensor) -> list[Tensor]:
        """The last map (B, C, h, w) of each level of (B, 3, H, W), each place a unit vector."""
        x = (x - x.new_tensor(_MEAN).view(3, 1, 1)) / x.new_tensor(_SPREAD).view(3, 1, 1)
        found, layers = [], iter(self.features.values())
        for level, depth in enumerate(VGG_DEPTHS):
            x = F.max_pool2d(x, 2) if level else x
            for _ in range(depth):
                x = F.relu(next(layers)(x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found


class _Convolution(nn.Module):
    """A convolution without bias, a batch norm, a ReLU."""

    def __init__(self, inputs: int, outputs: int, size: Edges, stride: int = 1, padding: Edges = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outputs, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


_Step = tuple[str, int, Edges, Edges]
"""Name, outputs, kernel and padding of a convolution."""


class _Branches(nn.Module):
    """Branches side by side, each a chain of convolutions by published name; `forks` end in two, and pooling stands beside them.

    Args:
        inputs: Channels.
        chains: Chains of (name, outputs, kernel, padding).
        forks: By the name of a chain's end, the two convolutions that follow it.
        pooled: Channels of the convolution behind the pooling; 0 for none.
        pool: ``mean``, ``maximum``, or ``stride`` for a maximum that halves the sides, as the chains then do.
    """

    def __init__(
        self,
        inputs: int,
        chains: tuple[tuple[_Step, ...], ...],
        *,
        forks: dict[str, tuple[_Step, ...]] | None = None,
        pooled: int = 0,
        pool: str = "mean",
    ) -> None:
        super().__init__()
        self.names, self.forks, self.pool = [[step[0] for step in chain] for chain in chains], forks or {}, pool
        for chain in chains:
            width = inputs
            for name, outputs, size, padding in chain:
                last = pool == "stride" and name == chain[-1][0]
                self.add_module(name, _Convolution(width, outputs, size, 2 if last else 1, padding))
                width = outputs
                for fork, branched, kernel, pad in self.forks.get(name, ()):
                    self.add_module(fork, _Convolution(width, branched, kernel, 1, pad))
        if pooled:
            self.branch_pool = _Convolution(inputs, pooled, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = []
        for chain in self.names:
            y = x
            for name in chain:
                y = self.get_submodule(name)(y)
            parts += [self.get_submodule(fork[0])(y) for fork in self.forks.get(chain[-1], ())] or [y]
        if self.pool == "stride":
            return torch.cat([*parts, F.max_pool2d(x, 3, 2)], 1)
        beside = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False) if self.pool == "mean" else F.max_pool2d(x, 3, 1, 1)
        return torch.cat([*parts, self.branch_pool(beside)], 1)


def _small(inputs: int, pooled: int) -> _Branches:
    three = (("branch3x3dbl_1", 64, 1, 0), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 1))
    five = (("branch5x5_1", 48, 1, 0), ("branch5x5_2", 64, 5, 2))
    return _Branches(inputs, ((("branch1x1", 64, 1, 0),), five, three), pooled=pooled)


def _middle(width: int) -> _Branches:
    across, down = ((1, 7), (0, 3)), ((7, 1), (3, 0))
    once = (("branch7x7_1", width, 1, 0), ("branch7x7_2", width, *across), ("branch7x7_3", 192, *down))
    twice = (
        ("branch7x7dbl_1", width, 1, 0),
        ("branch7x7dbl_2", width, *down),
        ("branch7x7dbl_3", width, *across),
        ("branch7x7dbl_4", width, *down),
        ("branch7x7dbl_5", 192, *across),
    )
    return _Branches(768, ((("branch1x1", 192, 1, 0),), once, twice), pooled=192)


def _large(inputs: int, pool: str) -> _Branches:
    def fork(name: str) -> tuple[_Step, ...]:
        return (f"{name}a", 384, (1, 3), (0, 1)), (f"{name}b", 384, (3, 1), (1, 0))

    chains = (
        (("branch1x1", 320, 1, 0),),
        (("branch3x3_1", 384, 1, 0),),
        (("branch3x3dbl_1", 448, 1, 0), ("branch3x3dbl_2", 384, 3, 1)),
    )
    forks = {"branch3x3_1": fork("branch3x3_2"), "branch3x3dbl_2": fork("branch3x3dbl_3")}
    return _Branches(inputs, chains, forks=forks, pooled=192, pool=pool)


class InceptionFeatures(nn.Module):
    """Inception v3 up to its last mean: what FID compares."""

    def __init__(self) -> None:
        super().__init__()
        narrow = (("branch3x3dbl_1", 64, 1, 0), ("branch3x3dbl_2", 96, 3, 1), ("branch3x3dbl_3", 96, 3, 0))
        reduced = (
            (("branch3x3_1", 192, 1, 0), ("branch3x3_2", 320, 3, 0)),
            (
                ("branch7x7x3_1", 192, 1, 0),
                ("branch7x7x3_2", 192, (1, 7), (0, 3)),
                ("branch7x7x3_3", 192, (7, 1), (3, 0)),
                ("branch7x7x3_4", 192, 3, 0),
            ),
        )
        self.stem = nn.ModuleDict(
            {
                "Conv2d_1a_3x3": _Convolution(3, 32, 3, 2),
                "Conv2d_2a_3x3": _Convolution(32, 32, 3),
                "Conv2d_2b_3x3": _Convolution(32, 64, 3, padding=1),
                "Conv2d_3b_1x1": _Convolution(64, 80, 1),
                "Conv2d_4a_3x3": _Convolution(80, 192, 3),
            }
        )
        self.mixed = nn.ModuleDict(
            {
                "Mixed_5b": _small(192, 32),
                "Mixed_5c": _small(256, 64),
                "Mixed_5d": _small(288, 64),
                "Mixed_6a": _Branches(288, ((("branch3x3", 384, 3, 0),), narrow), pool="stride"),
                **{f"Mixed_6{letter}": _middle(width) for letter, width in zip("bcde", (128, 160, 160, 192), strict=True)},
                "Mixed_7a": _Branches(768, reduced, pool="stride"),
                "Mixed_7b": _large(1280, "mean"),
                "Mixed_7c": _large(2048, "maximum"),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 2048) of pictures (B, 3, H, W) in [-1, 1], RGB, which are brought to 299 x 299."""
        x = F.interpolate(x, (299, 299), mode="bilinear", align_corners=False)
        for name, layer in self.stem.items():
            x = layer(x)
            x = F.max_pool2d(x, 3, 2) if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3") else x
        for block in self.mixed.values():
            x = block(x)
        return x.mean((2, 3))


class _IdentityBlock(nn.Module):
    """Norm, convolution, norm, PReLU, convolution, norm, and a skip; the same PReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn0, self.bn1, self.bn2 = nn.BatchNorm2d(inputs), nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.conv1 = nn.Conv2d(inputs, inputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.prelu = nn.PReLU()
        changed = stride > 1 or inputs != outputs
        projection = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.downsample = projection if changed else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.prelu(self.bn1(self.conv1(self.bn0(x))))
        skip = x if self.downsample is None else self.downsample(x)
        features: Tensor = self.prelu(self.bn2(self.conv2(hidden)) + skip)
        return features


class IdentityFeatures(nn.Module):
    """ArcFace's ResNet18 on gray faces, without squeeze-and-excitation: what identity distance compares."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1, self.prelu = nn.Conv2d(1, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU()
        rows, before = [], 64
        for level, width in enumerate((64, 128, 256, 512)):
            rows.append(nn.Sequential(_IdentityBlock(before, width, 1 + (level > 0)), _IdentityBlock(width, width, 1)))
            before = width
        self.layer1, self.layer2, self.layer3, self.layer4 = rows
        self.bn4, self.fc5, self.bn5 = nn.BatchNorm2d(512), nn.Linear(512 * 8 * 8, 512), nn.BatchNorm1d(512)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, 512) of gray faces (B, 1, 128, 128)."""
        x = F.max_pool2d(self.prelu(self.bn1(self.conv1(x))), 2)
        for row in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = row(x)
        embedding: Tensor = self.bn5(self.fc5(self.bn4(x).flatten(1)))
        return embedding
