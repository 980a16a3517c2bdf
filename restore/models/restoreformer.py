"""RestoreFormer and RestoreFormer++ for aligned faces, and the auto-encoders from which they have their dictionary.

Z. Wang, J. Zhang, R. Chen, W. Wang, P. Luo, "RestoreFormer: High-Quality Blind Face Restoration from Undegraded Key-Value
Pairs", CVPR 2022, arXiv 2201.06374; with T. Wang, "RestoreFormer++", TPAMI 2023, arXiv 2308.07228.

An auto-encoder learns a dictionary of what sharp faces are made of. The restorer has the same encoder, dictionary and decoder,
but in the decoder the degraded face asks (queries come from its features) and the dictionary's entries answer (keys and
values come from the stream that began with them). Axis letters: B batch, H and W rows and columns, C channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hybrid.blocks.autoencoder import Downsample, GlobalAttention, GroupNorm, ResidualBlock, Upsample, activated_convolution
from hybrid.blocks.convolution import STRIP_PIXELS, PointwiseConvolution
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.vector_quantiser import Quantised, VectorQuantiser
from hybrid.cards import ModelCard
from hybrid.errors import RequestError
from hybrid.weights.keys import KeyMap, count_numbered
from restore.models.base import Family, RestorationNetwork


@dataclass(frozen=True)
class Variant:
    """One published kind. Files of all but RestoreFormer++ have the same keys and shapes.

    Attributes:
        title: Its name in print. paper: Citation. num_heads: Of its attentions.
        asks: Whether the decoder's queries come from the encoder: a restorer; otherwise an auto-encoder.
        wider: Whether the decoder has attention one level above the encoder's too.
    """

    title: str
    paper: str
    num_heads: int
    asks: bool
    wider: bool = False


_TITLE = "Blind Face Restoration from Undegraded Key-Value Pairs"
_FIRST = f"Wang et al., RestoreFormer: High-Quality {_TITLE}, CVPR 2022, arXiv 2201.06374"
_SECOND = f"Wang et al., RestoreFormer++: Towards Real-World {_TITLE}, TPAMI 2023, arXiv 2308.07228"
VARIANTS = {
    "restoreformer": Variant("RestoreFormer", _FIRST, 8, asks=True),
    "restoreformer++": Variant("RestoreFormer++", _SECOND, 4, asks=True, wider=True),
    "rohqd": Variant("ROHQD", _SECOND, 4, asks=False),
    "hq-dictionary": Variant("HQ Dictionary", _FIRST, 8, asks=False),
}
MIDDLE = -1
"""Stands for the level between encoder and decoder."""


@dataclass(frozen=True)
class RestoreFormerConfig:
    """One network. Defaults are RestoreFormer as published, for faces of 512 x 512.

    Attributes:
        variant: A key of `VARIANTS`; a file tells RestoreFormer++ alone.
        num_heads: Of every attention; None for those of the variant. Not in a file.
        in_channels: Of the pictures. out_channels: Of the restored ones; None for as many.
        width, multipliers: Channels of the first level, and how many times as many each level has; it halves the sides.
        blocks: Residual blocks of a level of the encoder; the decoder has one more.
        attention: Levels with attention, counted from 0, beside the middle. decoder_attention: Those of the decoder, which asks
            the encoder at each; None for those of the variant.
        latent: Channels that the encoder gives. entries, embed_dim: Number and length of the dictionary's entries.
        groups: Of the norms. Not in a file.
        resolution: Edge of the faces that it was trained on, for its card. Not in a file.
    """

    variant: str = "restoreformer"
    num_heads: int | None = None
    in_channels: int = 3
    out_channels: int | None = None
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2, 2, 4, 4, 8)
    blocks: int = 2
    attention: tuple[int, ...] = (5,)
    decoder_attention: tuple[int, ...] | None = None
    latent: int = 256
    entries: int = 1024
    embed_dim: int = 256
    groups: int = 32
    resolution: int = 512

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"there is no variant {self.variant!r}; known: {', '.join(VARIANTS)}")

    @property
    def kind(self) -> Variant:
        """What tells the published networks apart."""
        return VARIANTS[self.variant]

    @property
    def heads(self) -> int:
        """Heads of attention."""
        return self.num_heads or self.kind.num_heads

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.width * times for times in self.multipliers)

    @property
    def decoder_levels(self) -> tuple[int, ...]:
        """Levels of the decoder with attention, counted from 0."""
        if self.decoder_attention is not None:
            return tuple(self.decoder_attention)
        return (min(self.attention) - 1, *self.attention) if self.kind.wider else tuple(self.attention)


@dataclass(frozen=True, eq=False)
class Encoded:
    """A grid (B, h, w, embed_dim), not yet quantised, and level to the features (B, H', W', C') with which the decoder is asked
    there; none in an auto-encoder."""

    latent: Tensor
    contexts: dict[int, Tensor]


@dataclass(frozen=True, eq=False)
class Restored:
    """A restored batch, (B, C, H, W) in [-1, 1] and not clamped, and the entries that it was made of."""

    image: Tensor
    quantised: Quantised


class Level(nn.Module):
    """Residual blocks at one size, each followed by attention where the level has it, and the way to the next size."""

    def __init__(
        self, config: RestoreFormerConfig, widths: tuple[int, ...], *, attention: bool, asked: bool, resize: nn.Module | None
    ) -> None:
        super().__init__()
        pairs = list(pairwise(widths))
        self.blocks = nn.ModuleList(ResidualBlock(before, after, config.groups) for before, after in pairs)
        self.attentions = nn.ModuleList(GlobalAttention(n, config.heads, config.groups, asked) for _, n in pairs if attention)
        self.resize = resize

    def forward(self, grid: Tensor, context: Tensor | None = None) -> Tensor:
        """(B, C, H, W), and the encoder's map of that size where the level attends, to (B, C', H, W)."""
        for place, block in enumerate(self.blocks):
            grid = block(grid)
            if self.attentions:
                grid = self.attentions[place](grid, context)
        return grid


class Middle(nn.Module):
    """A residual block, attention, a residual block, at the smallest size."""

    def __init__(self, config: RestoreFormerConfig, asked: bool) -> None:
        super().__init__()
        width = config.widths[-1]
        self.block_1 = ResidualBlock(width, width, config.groups)
        self.attn_1 = GlobalAttention(width, config.heads, config.groups, asked)
        self.block_2 = ResidualBlock(width, width, config.groups)


class Encoder(nn.Module):
    """From a picture to the latent grid and to the features that ask in the decoder."""

    def __init__(self, config: RestoreFormerConfig) -> None:
        super().__init__()
        self.asked, self.kept = config.kind.asks, config.decoder_levels if config.kind.asks else ()
        widths, last = config.widths, len(config.widths) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.levels = nn.ModuleList()
        for level, width in enumerate(widths):
            row = (widths[max(0, level - 1)], *[width] * config.blocks)
            resize = Downsample(width) if level < last else None
            self.levels.append(Level(config, row, attention=level in config.attention, asked=False, resize=resize))
        self.middle = Middle(config, asked=False)
        self.norm_out = GroupNorm(config.groups, widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], config.latent, 3, padding=1)

    def forward(self, x: Tensor) -> Encoded:
        """(B, C, H, W) to the grid of `latent` channels, before the projection to the dictionary's."""
        contexts: dict[int, Tensor] = {}
        grid = to_tokens(self.conv_in(x.contiguous(memory_format=torch.channels_last)))
        for level, module in enumerate(self.levels):
            assert isinstance(module, Level)
            grid = module(grid)
            if level in self.kept:
                contexts[level] = grid
            if module.resize is not None:
                grid = module.resize(grid)
        # The last level asks with what it is after the middle's first block.
        contexts[len(self.levels) - 1] = grid = self.middle.block_1(grid)
        contexts[MIDDLE] = grid = self.middle.block_2(self.middle.attn_1(grid))
        latent = activated_convolution(grid, self.norm_out, self.conv_out)
        return Encoded(latent, contexts if self.asked else {})


class Decoder(nn.Module):
    """From the dictionary's entries to a picture."""

    def __init__(self, config: RestoreFormerConfig) -> None:
        super().__init__()
        widths, asked = config.widths, config.kind.asks
        self.conv_in = nn.Conv2d(config.latent, widths[-1], 3, padding=1)
        self.middle = Middle(config, asked)
        self.levels = nn.ModuleList()
        for level, width in enumerate(widths):
            row = (widths[min(level + 1, len(widths) - 1)], *[width] * (config.blocks + 1))
            resize = Upsample(width) if level > 0 else None
            self.levels.append(Level(config, row, attention=level in config.decoder_levels, asked=asked, resize=resize))
        self.norm_out = GroupNorm(config.groups, widths[0])
        self.conv_out = nn.Conv2d(widths[0], config.out_channels or config.in_channels, 3, padding=1)

    def forward(self, grid: Tensor, contexts: Mapping[int, Tensor]) -> Tensor:
        """(B, h, w, latent) and what is asked at each level to (B, C, H, W)."""
        # Attention answers in the type in which it computes; the stream beside it is float32.
        grid = self.middle.block_1(to_tokens(self.conv_in(to_image(grid))).float())
        grid = self.middle.block_2(self.middle.attn_1(grid, contexts.get(MIDDLE)))
        for level, module in reversed(list(enumerate(self.levels))):
            assert isinstance(module, Level)
            grid = module(grid, contexts.get(level))
            if module.resize is not None:
                grid = module.resize(grid)
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(grid.device.type, enabled=False):
            return to_image(activated_convolution(grid.float(), self.norm_out, self.conv_out))


class RestoreFormer(RestorationNetwork):
    """A restorer or an auto-encoder, by its configuration. Takes and returns (B, C, H, W) float32 in [-1, 1], RGB.

    A restorer's dictionary does not learn: it is the auto-encoder's.
    """

    open_sides = False

    def __init__(self, config: RestoreFormerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quantiser = VectorQuantiser(config.entries, config.embed_dim).requires_grad_(not config.kind.asks)
        self.quant_conv = PointwiseConvolution(config.latent, config.embed_dim)
        self.post_quant_conv = PointwiseConvolution(config.embed_dim, config.latent)
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = _card(config)

    def restore(self, x: Tensor) -> Tensor:
        return self.decompose(x).image

    def decompose(self, x: Tensor) -> Restored:
        """Restore (B, C, H, W) float32 in [-1, 1] with sides that are multiples of `card.multiple`; tells the entries too."""
        encoded = self.encode(x)
        quantised = self.quantiser(encoded.latent)
        return Restored(self.decode(quantised.values, encoded.contexts), quantised)

    def encode(self, x: Tensor) -> Encoded:
        """Pictures to the latent grid and the features that ask in the decoder."""
        # In inference always in float32: what is nearest another entry is another texture.
        with nullcontext() if torch.is_grad_enabled() else torch.autocast(x.device.type, enabled=False):
            encoded: Encoded = self.encoder(x)
            return replace(encoded, latent=self.quant_conv(encoded.latent))

    def decode(self, values: Tensor, contexts: Mapping[int, Tensor]) -> Tensor:
        """Entries (B, h, w, embed_dim), and the features that ask, to pictures (B, C, H, W)."""
        picture: Tensor = self.decoder(self.post_quant_conv(values), contexts)
        return picture


def _card(config: RestoreFormerConfig) -> ModelCard:
    # Alive at the end of the decoder: the enlarged map of the second level's width, the hidden map and the skip; beside them
    # strips at work. Measured, 256^2 and 512^2: 263 floats a pixel beside 61 MiB.
    return ModelCard(
        family="restoreformer",
        title=config.kind.title,
        paper=config.kind.paper,
        code_licence="Apache-2.0",
        scale=1,
        channels=config.in_channels,
        multiple=2 ** (len(config.multipliers) - 1),
        overlap=128,  # every norm and attention sees the whole face: no overlap makes tiles exact
        global_context=True,
        activation_floats=round(1.1 * (config.widths[min(1, len(config.widths) - 1)] + 2 * config.width)),
        working_floats=2 * STRIP_PIXELS * max(config.widths),
        value_range=(-1.0, 1.0),
        face_size=config.resolution,
        tasks=("face restoration",) if config.kind.asks else ("coding of sharp faces",),
        out_channels=config.out_channels or config.in_channels,
    )


_LEVELS = (("encoder.down.{}.", "encoder.levels.{}."), ("decoder.up.{}.", "decoder.levels.{}."))
_PARTS = (
    ("block.{}.nin_shortcut.", "blocks.{}.shortcut."),
    ("block.{}.", "blocks.{}."),
    ("attn.{}.proj_out.", "attentions.{}.proj."),
    ("attn.{}.", "attentions.{}."),
    ("", ""),
)
_HALVES = ("encoder.", "decoder.")
KEYS = KeyMap(
    ("encoder.down.{}.downsample.", "encoder.levels.{}.resize."),
    ("decoder.up.{}.upsample.", "decoder.levels.{}.resize."),
    *((level + theirs, our_level + ours) for level, our_level in _LEVELS for theirs, ours in _PARTS),
    *((half + "mid.attn_1.proj_out.", half + "middle.attn_1.proj.") for half in _HALVES),
    *((half + "mid.", half + "middle.") for half in _HALVES),
    ("quantize.", "quantiser."),
)
"""Published names and ours, by prefix."""


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for the restorers and their auto-encoders; other VQGANs have no second norm in their attentions."""
    asked = {"quantize.embedding.weight", "quant_conv.weight", "encoder.down.0.block.0.norm1.weight"}
    return asked | {"encoder.conv_in.weight", "decoder.mid.attn_1.norm2.weight", "decoder.conv_out.weight"} <= state.keys()


def read_config(state: Mapping[str, Tensor]) -> RestoreFormerConfig:
    """The configuration that a state dict under published keys tells, or makes likely.

    Where the norm that only a restorer uses is as it was made, 1 and 0, it is taken for an auto-encoder. RestoreFormer++ has
    attentions of its own; the other kinds have the same keys.
    """
    width, channels = state["encoder.conv_in.weight"].shape[:2]
    levels = range(count_numbered(state, "encoder.down."))
    attention = tuple(level for level in levels if f"encoder.down.{level}.attn.0.q.weight" in state)
    decoder = tuple(level for level in levels if f"decoder.up.{level}.attn.0.q.weight" in state)
    norm = "decoder.mid.attn_1.norm2."
    unused = bool((state[norm + "weight"] == 1).all() and (state[norm + "bias"] == 0).all())
    told = RestoreFormerConfig(
        variant="rohqd" if unused else "restoreformer++" if attention and decoder != attention else "restoreformer",
        in_channels=channels,
        out_channels=None if (outputs := len(state["decoder.conv_out.weight"])) == channels else outputs,
        width=width,
        multipliers=tuple(len(state[f"encoder.down.{level}.block.0.conv2.weight"]) // width for level in levels),
        blocks=count_numbered(state, "encoder.down.0.block."),
        attention=attention,
        latent=state["quant_conv.weight"].shape[1],
        entries=len(state["quantize.embedding.weight"]),
        embed_dim=state["quantize.embedding.weight"].shape[1],
    )
    return told if told.decoder_levels == decoder else replace(told, decoder_attention=decoder)


def build(state: Mapping[str, Tensor], **options: Any) -> RestoreFormer:
    """The network of a checkpoint. `options`: `variant`, `num_heads`, `groups`, `resolution`.

    Raises:
        RequestError: There is no such variant, or neither variant nor heads are said of a layout that no published one has.
        ValueError: The keys are of RestoreFormer++ and the variant is another, or the other way round.
    """
    told = read_config(state)
    variant = options.get("variant", told.variant)
    if variant not in VARIANTS:
        raise RequestError(f"There is no variant {variant!r} of RestoreFormer.", hint=f"Choose one of {', '.join(VARIANTS)}.")
    if told.decoder_attention is not None:
        if not (options.get("variant") or options.get("num_heads")):
            raise RequestError(
                f"This decoder attends at levels {list(told.decoder_levels)} and its encoder at {list(told.attention)}, as in no "
                f"published {told.kind.title}, and a file does not tell how many heads share the channels.",
                hint="Give num_heads, as it was trained with, or the variant that has as many.",
            )
    elif VARIANTS[variant].wider != told.kind.wider:
        whose = "those" if told.kind.wider else "not those"
        raise ValueError(f"its attentions are {whose} of RestoreFormer++, asked for was {variant}")
    return RestoreFormer(replace(told, **options))


def create(**options: Any) -> RestoreFormer:
    """A network of a recipe, where what its training writes will tell it again.

    Raises:
        ValueError: It would not: `decoder_attention` is another variant's, or no one's with neither `variant` nor `num_heads`.
    """
    config, told = RestoreFormerConfig(**options), options.get("variant") or options.get("num_heads")
    attention = (config.attention, config.decoder_levels)
    same, levels = (tuple(level for level in range(len(config.widths)) if level in each) for each in attention)
    layouts = {same: False, (min(same, default=0) - 1, *same): True}
    if layouts.get(levels, config.kind.wider if told else None) != config.kind.wider:
        raise ValueError(f"decoder_attention {list(levels)} needs the variant that has it; if none has, variant or num_heads")
    return RestoreFormer(config)


FAMILY = Family(
    name="restoreformer",
    matches=matches,
    build=build,
    create=create,
    options=("variant", "num_heads", "groups", "resolution"),
    keys=KEYS,
    derived=("*.utility_counter",),  # how often entries were used, in old files
)
