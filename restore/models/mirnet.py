"""MIRNet, restoration with three resolutions side by side: denoising, enhancement, super-resolution of enlarged pictures.

S. W. Zamir, A. Arora, S. Khan, M. Hayat, F. S. Khan, M.-H. Yang, L. Shao, "Learning Enriched Features for Real Image
Restoration and Enhancement", ECCV 2020, arXiv 2003.06792. Axis letters: B batch, H and W rows and columns, C channels of the
first row; each row has half of the rows and columns of pixels of the one above, and twice its channels.

As published, the columns of a row are one unit that runs again, and one slope is shared by all units. Files hold a copy under
each name; the network holds one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hybrid.blocks.chunks import accumulate
from hybrid.blocks.convolution import STRIP_PIXELS
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.resampling import in_strips, strip_rows
from hybrid.blocks.selective_fusion import DualAttentionUnit, ResidualDownsample, ResidualUpsample, SelectiveKernelFusion
from hybrid.cards import ModelCard
from hybrid.errors import WeightsError
from hybrid.families import build_from, create_from
from hybrid.weights.containers import few
from hybrid.weights.keys import KeyMap, count_numbered
from restore.models.base import Family, RestorationNetwork


@dataclass(frozen=True)
class MIRNetConfig:
    """One MIRNet. Defaults are the published configuration.

    Attributes:
        in_channels: Of the pictures. features: Channels C of the first row.
        groups: Recursive residual groups. blocks: Multi-scale blocks of a group.
        rows: Resolutions of a block. columns: Times that each row's unit runs; told by the copies in a file, if it has them. A
            single unit has none: then, as of a file without copies, it is as published.
    """

    in_channels: int = 3
    features: int = 64
    groups: int = 3
    blocks: int = 2
    rows: int = 3
    columns: int = 2


class MultiScaleBlock(nn.Module):
    """MRB: rows of dual attention units that exchange what they found after each column, fused at the end (section 3.1)."""

    def __init__(self, config: MIRNetConfig) -> None:
        super().__init__()
        widths = [config.features * 2**row for row in range(config.rows)]
        last = config.rows - 1
        self.columns = config.columns
        self.units = nn.ModuleList(DualAttentionUnit(width) for width in widths)
        self.last_up = nn.ModuleDict({str(row): _up(widths[row], row) for row in range(1, config.rows)})
        steps = range(last, 0, -1)
        downs = [(widths[row], step) for row in range(last) for step in steps if row + step <= last]
        ups = [(widths[row], step) for row in reversed(range(1, config.rows)) for step in steps if row >= step]
        self.down = nn.ModuleDict({f"{width}_{2**step}": _down(width, step) for width, step in downs})
        self.up = nn.ModuleDict({f"{width}_{2**step}": _up(width, step) for width, step in ups})
        self.conv_out = nn.Conv2d(widths[0], widths[0], 3, padding=1, bias=False)
        self.fusions = nn.ModuleList(SelectiveKernelFusion(width, config.rows) for width in widths)

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        maps = [self.units[0](x, slope)]
        for unit in list(self.units)[1:]:
            maps.append(unit(self._resized(maps[-1], 1), slope))
        for _ in range(self.columns - 1):
            # All are fused before any runs again; what a row was is freed with the list.
            maps = [self.fusions[row]([self._resized(each, row - k) for k, each in enumerate(maps)], kept=row)
                    for row in range(len(maps))]  # fmt: skip
            maps = [unit(maps.pop(0), slope) for unit in self.units]
        raised = [self.last_up[str(row)](maps.pop(1)) for row in range(1, len(maps))]
        fused = self.fusions[0]([maps.pop(), *raised], kept=0)
        return accumulate(to_tokens(self.conv_out(to_image(fused))), x)

    def _resized(self, x: Tensor, rows: int) -> Tensor:
        """A map as one that many rows further down would hold it, or up where negative."""
        if rows == 0:
            return x
        resized: Tensor = (self.down if rows > 0 else self.up)[f"{x.shape[-1]}_{2 ** abs(rows)}"](x)
        return resized


class ResidualGroup(nn.Module):
    """RRG: multi-scale blocks and a convolution, with a skip around all (section 3)."""

    def __init__(self, config: MIRNetConfig) -> None:
        super().__init__()
        last = nn.Conv2d(config.features, config.features, 3, padding=1, bias=False)
        self.steps = nn.ModuleList([*(MultiScaleBlock(config) for _ in range(config.blocks)), last])

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        *blocks, last = self.steps
        y = x
        for block in blocks:
            y = block(y, slope)
        return accumulate(to_tokens(last(to_image(y))), x)


class MIRNet(RestorationNetwork):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1]."""

    def __init__(self, config: MIRNetConfig) -> None:
        super().__init__()
        self.config = config
        channels, features = config.in_channels, config.features
        self.conv_in = nn.Conv2d(channels, features, 3, padding=1, bias=False)
        self.slope = nn.Parameter(torch.full((1,), 0.25))
        self.groups = nn.ModuleList(ResidualGroup(config) for _ in range(config.groups))
        self.conv_out = nn.Conv2d(features, channels, 3, padding=1, bias=False)
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = _card(config)

    def restore(self, x: Tensor) -> Tensor:
        grid = to_tokens(self.conv_in(x.contiguous(memory_format=torch.channels_last)))
        for group in self.groups:
            grid = group(grid, self.slope)
        rows = strip_rows(STRIP_PIXELS, x.shape[-1])
        return in_strips(self._tail, to_image(grid), x, scale=1, halo=1, rows=rows)

    def _tail(self, features: Tensor, x: Tensor) -> Tensor:
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(x.device.type, enabled=False):
            picture: Tensor = self.conv_out(features.float()) + x
            return picture


def _down(width: int, times: int) -> nn.Sequential:
    return nn.Sequential(*[ResidualDownsample(width * 2**n) for n in range(times)])


def _up(width: int, times: int) -> nn.Sequential:
    return nn.Sequential(*[ResidualUpsample(width // 2**n) for n in range(times)])


def _card(config: MIRNetConfig) -> ModelCard:
    # Alive when rows are fused: the block's and the group's inputs, every row, one fused map and the resized ones. Measured a
    # pixel, 256^2 and 512^2: 5.8 C for C = 32 and 64, beside some 15 maps of a strip.
    return ModelCard(
        family="mirnet",
        title="MIRNet",
        paper="Zamir et al., Learning Enriched Features for Real Image Restoration and Enhancement, ECCV 2020, arXiv 2003.06792",
        code_licence="unknown",
        scale=1,
        channels=config.in_channels,
        multiple=2 ** (config.rows - 1),
        overlap=64,  # the fusions and gates see the whole picture: no overlap makes tiles exact
        global_context=True,
        activation_floats=round(1.1 * 5.8 * config.features),
        working_floats=20 * 2**18,
        tasks=("denoising", "low-light enhancement", "enhancement", "super-resolution of enlarged pictures"),
    )


_STEP, _OUR_STEP = "body.{}.body.{}.", "groups.{}.steps.{}."
_UNIT = [("body.0.", "conv1."), ("body.2.", "conv2."), ("SA.spatial.conv.", "spatial."), ("CA.conv_du.0.", "squeeze.")]
_UNIT += [("CA.conv_du.2.", "expand."), ("conv1x1.", "fuse.")]
_RESIZER = [
    ("top.0.", "mix."),
    ("top.1.", "activation1."),
    ("top.2.", "conv."),
    ("top.3.", "activation2."),
    ("bot.1.", "shortcut."),
]
_FUSION = [("conv_du.0.", "squeeze."), ("conv_du.1.", "activation."), ("fcs.{}.", "expand.{}.")]
_RESIZERS = [("last_up.{}.", [*_RESIZER, ("top.4.", "project.")]), ("up.{}_{}.", [*_RESIZER, ("top.4.", "project.")])]
_RESIZERS += [("down.{}_{}.", [*_RESIZER, ("top.5.", "project.")])]
_SLOPE = "body.0.body.0.blocks.0.0.body.1.weight"
_SLOPE_COPY = re.compile(r"\.blocks\.\d+\.\d+\.body\.1\.weight$")
KEYS = KeyMap(
    (_SLOPE, "slope"),
    *((f"{_STEP}blocks.{{}}.0.{theirs}", f"{_OUR_STEP}units.{{}}.{ours}") for theirs, ours in _UNIT),
    *(
        (f"{_STEP}{name}body.{{}}.{theirs}", f"{_OUR_STEP}{name}{{}}.{ours}")
        for name, parts in _RESIZERS
        for theirs, ours in parts
    ),
    *((f"{_STEP}selective_kernel.{{}}.{theirs}", f"{_OUR_STEP}fusions.{{}}.{ours}") for theirs, ours in _FUSION),
    (_STEP, _OUR_STEP),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for MIRNet; its second version has other names."""
    return {"conv_in.weight", "body.0.body.0.selective_kernel.0.fcs.0.weight"} <= state.keys()


def read_config(state: Mapping[str, Tensor]) -> MIRNetConfig:
    """The configuration that a state dict under published keys tells by its names and shapes."""
    features, channels = state["conv_in.weight"].shape[:2]
    if len(state["conv_out.weight"]) != channels:
        raise ValueError(f"it takes {channels} channels and gives {len(state['conv_out.weight'])}")
    columns = count_numbered(state, "body.0.body.0.blocks.0.")
    config = MIRNetConfig(
        in_channels=channels,
        features=features,
        groups=count_numbered(state, "body."),
        blocks=len({key.split(".")[3] for key in state if re.match(r"body\.0\.body\.\d+\.blocks\.", key)}),
        rows=count_numbered(state, "body.0.body.0.blocks."),
    )
    # A file without the copies, as we write it, has the first column alone, whatever the number of columns. Copies of the slope
    # under other units' names say that this is none, and that there is no second column to copy.
    copies = any(_SLOPE_COPY.search(key) for key in state if key != _SLOPE)
    return replace(config, columns=columns) if columns > 1 or copies else config


def without_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under published names with one of each of the tensors that the network shares.

    Raises:
        WeightsError: What should be copies differs.
    """
    kept, odd = {}, []
    for key, tensor in state.items():
        original = re.sub(r"(\.blocks\.\d+)\.\d+\.", r"\1.0.", key)
        if _SLOPE_COPY.search(key):
            original = _SLOPE
        if original == key or original not in state:
            kept[key] = tensor
        elif not torch.equal(tensor, state[original]):
            odd.append(key)
    if odd:
        raise WeightsError(
            f"These weights are not MIRNet's as published: {few(odd)} should equal what they are copies of, and differ.",
            hint="The network has one tensor for all copies; give the published file as it is.",
        )
    return kept


FAMILY = Family(
    name="mirnet",
    matches=matches,
    build=build_from(MIRNet, read_config),
    create=create_from(MIRNet, MIRNetConfig),
    options=("columns",),  # which a file without the copies does not tell
    keys=KEYS,
    derived=("*.filt",),  # the blur before decimation
    canonical=without_copies,
)
