"""MPRNet, three stages on quarters, halves and the whole of a picture, with one output or several.

S. W. Zamir, A. Arora, S. Khan, M. Hayat, F. S. Khan, M.-H. Yang, L. Shao, "Multi-Stage Progressive Image Restoration", CVPR
2021, arXiv 2102.02808; several outputs: see `restore.models.multi_output`. Axis letters: B batch, C channels, H and W rows and
columns. As published, one slope is shared by all activations; files hold a copy under each name, the network holds one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate, modulate
from hybrid.blocks.layout import channels_last
from hybrid.blocks.selective_fusion import prelu
from hybrid.cards import ModelCard
from hybrid.errors import WeightsError
from hybrid.families import build_from, create_from
from hybrid.weights.containers import few
from hybrid.weights.keys import KeyMap, count_numbered
from restore.models.base import Family
from restore.models.multi_output import Heads, SeveralOutputs, SupervisedAttention, count_heads

LEVELS = 3


@dataclass(frozen=True)
class MPRNetConfig:
    """One MPRNet. Defaults are the network published for deblurring.

    Attributes:
        in_channels: Image channels, of each output too.
        width: Channels of the first level. growth: How many more each further level has.
        refined: How many more than the first level the last stage has.
        blocks: Attention blocks of each step of the last stage. reduction: Of a block's channels inside its gate.
        n_heads: Outputs of the last convolution. combine_heads: Whether their pairwise averages are outputs too; not in a file.
    """

    in_channels: int = 3
    width: int = 96
    growth: int = 48
    refined: int = 32
    blocks: int = 8
    reduction: int = 4
    n_heads: int = 1
    combine_heads: bool = True

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width + level * self.growth for level in range(LEVELS))


class ChannelAttentionBlock(nn.Module):
    """x + r * gate with r two convolutions of x and a gate from its mean over space (CAB, section 3.1)."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        self.squeeze, self.expand = _conv(dim, dim // reduction, 1), _conv(dim // reduction, dim, 1)
        self.conv1, self.conv2 = (_conv(dim, dim) for _ in range(2))

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, C, H, W) to the same; `slope` (1,) is that of the activation, which blocks share."""
        y = self.conv2(prelu(self.conv1(x), slope))
        gate = torch.sigmoid(self.expand(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return accumulate(modulate(y, gate), x)


class Blocks(nn.ModuleList):
    """Attention blocks one after another."""

    def __init__(self, dim: int, count: int, reduction: int) -> None:
        super().__init__(ChannelAttentionBlock(dim, reduction) for _ in range(count))

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        for block in self:
            x = block(x, slope)
        return x


class Shallow(nn.ModuleList):
    """A convolution of the picture and an attention block."""

    def __init__(self, config: MPRNetConfig) -> None:
        super().__init__([_conv(config.in_channels, config.width), ChannelAttentionBlock(config.width, config.reduction)])

    def forward(self, image: Tensor, slope: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C, H, W)."""
        y: Tensor = self[1](self[0](image), slope)
        return y


class Encoder(nn.Module):
    """The way down; in the second stage what the first knew of each level is added (section 3.2)."""

    def __init__(self, config: MPRNetConfig, fused: bool) -> None:
        super().__init__()
        first, second, third = config.widths
        self.encoder_level1, self.encoder_level2, self.encoder_level3 = (Blocks(w, 2, config.reduction) for w in config.widths)
        self.down12, self.down23 = _conv(first, second, 1), _conv(second, third, 1)
        if fused:
            self.csff_enc1, self.csff_enc2, self.csff_enc3 = (_conv(w, w, 1) for w in config.widths)
            self.csff_dec1, self.csff_dec2, self.csff_dec3 = (_conv(w, w, 1) for w in config.widths)

    def forward(self, x: Tensor, slope: Tensor, earlier: Sequence[tuple[Tensor, Tensor]] = ()) -> list[Tensor]:
        """(B, C, H, W) to the maps of all levels, finest first; `earlier`: the first stage's of each level, going down and up."""
        maps: list[Tensor] = []
        for level, down in enumerate((None, self.down12, self.down23)):
            if down is not None:
                x = down(F.avg_pool2d(maps[-1], 2))  # what bilinear shrinking to a half is
            x = getattr(self, f"encoder_level{level + 1}")(x, slope)
            if earlier:
                x = accumulate(x, getattr(self, f"csff_enc{level + 1}")(earlier[level][0]))
                x = accumulate(x, getattr(self, f"csff_dec{level + 1}")(earlier[level][1]))
            maps.append(x)
        return maps


class Decoder(nn.Module):
    """The way up."""

    def __init__(self, config: MPRNetConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        self.decoder_level1, self.decoder_level2, self.decoder_level3 = (Blocks(w, 2, config.reduction) for w in config.widths)
        self.skip_attn1, self.skip_attn2 = (ChannelAttentionBlock(w, config.reduction) for w in (first, second))
        self.up21, self.up32 = _conv(second, first, 1), _conv(third, second, 1)

    def forward(self, maps: Sequence[Tensor], slope: Tensor) -> list[Tensor]:
        """The encoder's maps to as many of the same shapes."""
        third = self.decoder_level3(maps[2], slope)
        second = self.decoder_level2(accumulate(_enlarged(third, self.up32), self.skip_attn2(maps[1], slope)), slope)
        first = self.decoder_level1(accumulate(_enlarged(second, self.up21), self.skip_attn1(maps[0], slope)), slope)
        return [first, second, third]


class OriginalResolutionBlock(nn.Module):
    """Attention blocks and a convolution, with a skip around all (ORB)."""

    def __init__(self, dim: int, config: MPRNetConfig) -> None:
        super().__init__()
        self.body = nn.ModuleList(ChannelAttentionBlock(dim, config.reduction) for _ in range(config.blocks))
        self.body.append(_conv(dim, dim))

    def forward(self, x: Tensor, slope: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        *blocks, last = self.body
        y = x
        for block in blocks:
            y = block(y, slope)
        return accumulate(last(y), x)


class OriginalResolutionNetwork(nn.Module):
    """The last stage: the full size throughout, with what the second stage knew of each level (ORSNet)."""

    def __init__(self, config: MPRNetConfig) -> None:
        super().__init__()
        first, second, third = config.widths
        dim = first + config.refined
        self.orb1, self.orb2, self.orb3 = (OriginalResolutionBlock(dim, config) for _ in range(3))
        for side in ("enc", "dec"):
            self.add_module(f"up_{side}1", nn.ModuleList([_conv(second, first, 1)]))
            self.add_module(f"up_{side}2", nn.ModuleList([_conv(third, second, 1), _conv(second, first, 1)]))
            for level in range(LEVELS):
                self.add_module(f"conv_{side}{level + 1}", _conv(first, dim, 1))

    def forward(self, x: Tensor, slope: Tensor, encoded: Sequence[Tensor], decoded: Sequence[Tensor]) -> Tensor:
        """(B, C, H, W) and the second stage's maps of all levels to (B, C, H, W)."""
        for level in range(LEVELS):
            x = getattr(self, f"orb{level + 1}")(x, slope)
            for side, maps in (("enc", encoded), ("dec", decoded)):
                y = maps[level]
                for step in getattr(self, f"up_{side}{level}") if level else ():
                    y = _enlarged(y, step)
                x = accumulate(x, getattr(self, f"conv_{side}{level + 1}")(y))
        return x


class MPRNet(SeveralOutputs):
    """The whole network. Takes (B, C, H, W) float32 in [0, 1] and returns [stage 3, stage 2, stage 1]; the first is the result.

    A stage is (B, C, H, W), and (B, outputs, C, H, W) with several heads.
    """

    open_sides = False  # halves of open sides are no step of a graph

    def __init__(self, config: MPRNetConfig) -> None:
        super().__init__()
        self.config = config
        width, wide = config.width, config.width + config.refined
        self.heads = Heads(config.n_heads, config.in_channels, config.combine_heads)
        self.slope = nn.Parameter(torch.full((1,), 0.25))
        self.shallow_feat1, self.shallow_feat2, self.shallow_feat3 = (Shallow(config) for _ in range(3))
        self.stage1_encoder, self.stage1_decoder = Encoder(config, fused=False), Decoder(config)
        self.stage2_encoder, self.stage2_decoder = Encoder(config, fused=True), Decoder(config)
        self.stage3_orsnet = OriginalResolutionNetwork(config)
        self.sam12, self.sam23 = (SupervisedAttention(width, self.heads, kernel=1, bias=False) for _ in range(2))
        self.concat12, self.concat23 = _conv(2 * width, width), _conv(2 * width, wide)
        self.tail = _conv(wide, config.in_channels * config.n_heads)
        channels_last(self)
        self.card = _card(config, self.heads)

    def restore(self, x: Tensor) -> list[Tensor]:
        image, slope = x.contiguous(memory_format=torch.channels_last), self.slope
        halves = _cut(image, 2)
        # Sides are multiples of eight: parts are of one size and go through the network as one batch.
        parts = self.stage1_encoder(self.shallow_feat1(_cut(halves, 3), slope), slope)
        encoded = [_joined(part, 3) for part in parts]
        decoded = self.stage1_decoder(encoded, slope)
        features, first = self.sam12(decoded[0], halves)

        y = self.concat12(torch.cat([self.shallow_feat2(halves, slope), features], 1))
        parts = self.stage2_encoder(y, slope, list(zip(encoded, decoded, strict=True)))
        encoded = [_joined(part, 2) for part in parts]
        decoded = self.stage2_decoder(encoded, slope)
        features, second = self.sam23(decoded[0], image)

        y = self.concat23(torch.cat([self.shallow_feat3(image, slope), features], 1))
        y = self.stage3_orsnet(y, slope, encoded, decoded)
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(x.device.type, enabled=False):
            third = self.heads.mix(self.tail(y.float()), x)
        mixed = (third, self.heads.mix(second), self.heads.mix(_joined(first, 2)))
        return [self.heads.apart(stage) for stage in mixed]


def _cut(x: Tensor, axis: int) -> Tensor:
    """The two halves along an axis as a batch: all first halves, then all second ones."""
    return torch.cat(x.chunk(2, axis)).contiguous(memory_format=torch.channels_last)


def _joined(x: Tensor, axis: int) -> Tensor:
    """What `_cut` cut."""
    return torch.cat(x.chunk(2), axis).contiguous(memory_format=torch.channels_last)


def _enlarged(x: Tensor, mix: nn.Module) -> Tensor:
    """Twice the sides, bilinear, and a 1x1 convolution: the two commute, and the latter is cheaper first."""
    return F.interpolate(mix(x), scale_factor=2.0, mode="bilinear", align_corners=False)


def _conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


def _card(config: MPRNetConfig, heads: Heads) -> ModelCard:
    card = ModelCard(
        family="mprnet",
        title="MPRNet",
        paper="Zamir et al., Multi-Stage Progressive Image Restoration, CVPR 2021, arXiv 2102.02808",
        code_licence="unknown",
        scale=1,
        channels=config.in_channels,
        multiple=2**LEVELS,
        overlap=64,  # gates see the whole picture, and stages its halves and quarters: no overlap makes tiles exact
        global_context=True,
        activation_floats=round(1.1 * 14 * config.width),  # measured, at widths 16 and 32
        tasks=("deblurring", "denoising", "deraining"),
        result=0,
        parts_follow_size=True,
    )
    return heads.on_card(card)


_BLOCKS = ["shallow_feat{}.1.", "stage{}_encoder.encoder_level{}.{}.", "stage{}_decoder.decoder_level{}.{}."]
_BLOCKS += ["stage{}_decoder.skip_attn{}.", "stage3_orsnet.orb{}.body.{}."]
_STEPS = (("CA.conv_du.0.", "squeeze."), ("CA.conv_du.2.", "expand."), ("body.0.", "conv1."), ("body.2.", "conv2."))
_SLOPE, _SLOPE_ENDING = "shallow_feat1.1.body.1.weight", ".body.1.weight"
KEYS = KeyMap(
    (_SLOPE, "slope"),
    *((block + theirs, block + ours) for block in _BLOCKS for theirs, ours in _STEPS),
    ("stage{}_encoder.down{}.down.1.", "stage{}_encoder.down{}."),
    ("stage{}_decoder.up{}.up.1.", "stage{}_decoder.up{}."),
    *((f"stage3_orsnet.up_{side}1.up.1.", f"stage3_orsnet.up_{side}1.0.") for side in ("enc", "dec")),
    *((f"stage3_orsnet.up_{side}2.{{}}.up.1.", f"stage3_orsnet.up_{side}2.{{}}.") for side in ("enc", "dec")),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for MPRNet with one output or several."""
    if not {"shallow_feat1.0.weight", "stage3_orsnet.orb1.body.0.body.0.weight", "tail.weight"} <= state.keys():
        return False
    return count_heads(len(state["tail.weight"]), state["shallow_feat1.0.weight"].shape[1]) > 0


def read_config(state: Mapping[str, Tensor]) -> MPRNetConfig:
    """The configuration that a state dict under published keys tells by its names and shapes."""
    width, channels = state["shallow_feat1.0.weight"].shape[:2]
    return MPRNetConfig(
        in_channels=channels,
        width=width,
        growth=len(state["stage1_encoder.down12.down.1.weight"]) - width,
        refined=len(state["concat23.weight"]) - width,
        blocks=count_numbered(state, "stage3_orsnet.orb1.body.") - 1,
        reduction=width // len(state["shallow_feat1.1.CA.conv_du.0.weight"]),
        n_heads=count_heads(len(state["tail.weight"]), channels),
    )


def without_copies(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under published names with one of the slope that all blocks share.

    Raises:
        WeightsError: What should be copies differs.
    """
    slopes = [key for key, tensor in state.items() if key.endswith(_SLOPE_ENDING) and tensor.numel() == 1 and key != _SLOPE]
    if _SLOPE in state and (odd := [key for key in slopes if not torch.equal(state[key], state[_SLOPE])]):
        raise WeightsError(
            f"These weights are not MPRNet's as published: {few(odd)} should equal what they are copies of, and differ.",
            hint="The network has one slope for all activations; give the published file as it is.",
        )
    return {key: tensor for key, tensor in state.items() if _SLOPE not in state or key not in slopes}


FAMILY = Family(
    name="mprnet",
    matches=matches,
    build=build_from(MPRNet, read_config),
    create=create_from(MPRNet, MPRNetConfig),
    options=("combine_heads",),
    keys=KEYS,
    canonical=without_copies,
)
