"""Restormer, a U-shaped transformer whose attention runs between channels: deraining, deblurring, denoising.

S. W. Zamir, A. Arora, S. Khan, M. Hayat, F. S. Khan, M.-H. Yang, "Restormer: Efficient Transformer for High-Resolution
Image Restoration", CVPR 2022, arXiv 2111.09881. Axis letters: B batch, H and W rows and columns, D embedding channels.

Each attention compares channels over the whole picture, so that a tile is not restored as the whole is:
docs/tiles.md says by how much.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.resampling import in_strips, strip_rows
from hybrid.blocks.transposed import STRIP_PIXELS, STRIP_VALUES, TransposedBlock
from hybrid.blocks.u_shape import UShape
from hybrid.cards import ModelCard
from hybrid.families import build_from, create_from
from hybrid.weights.keys import KeyMap, count_numbered
from restore.models.base import Family
from restore.models.multi_output import Heads, SeveralOutputs, count_heads

LEVELS = 4
"""Of the U, the deepest included; each has half the side and twice the channels of the one above."""


@dataclass(frozen=True)
class RestormerConfig:
    """One Restormer. Defaults are motion deblurring as published; hidden widths are absolute, since ratios cannot be told.

    Attributes:
        in_channels, out_channels: Of the picture that is taken and of the one that is given.
        embed_dim: Channels D of the first level.
        depths, num_heads: Blocks and heads of each level. refinement: Blocks after the last level.
        widths: Hidden channels of the feed-forward of each level.
        bias: Whether convolutions have biases.
        centred: Layer norm that takes off the mean; the published denoisers do without.
        dual_pixel: Two views of one scene in, one picture out: features are carried past the body instead of the picture.
        n_heads: Outputs of the last convolution. combine_heads: Whether their pairwise averages are outputs too; not in a file.
    """

    in_channels: int = 3
    out_channels: int = 3
    embed_dim: int = 48
    depths: tuple[int, ...] = (4, 6, 6, 8)
    num_heads: tuple[int, ...] = (1, 2, 4, 8)
    refinement: int = 4
    widths: tuple[int, ...] = (127, 255, 510, 1021)
    bias: bool = False
    centred: bool = True
    dual_pixel: bool = False
    n_heads: int = 1
    combine_heads: bool = True


class Restormer(SeveralOutputs):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1]; six channels, left view first, for dual pixels."""

    def __init__(self, config: RestormerConfig) -> None:
        super().__init__()
        if config.n_heads > 1 and (config.dual_pixel or config.out_channels != config.in_channels):
            raise ValueError("several outputs are residuals of one picture: neither dual pixels nor other channels out than in")
        self.config = config
        self.heads = Heads(config.n_heads, config.out_channels, config.combine_heads)
        dim = config.embed_dim

        def block(level: int, channels: int) -> TransposedBlock:
            width = config.widths[(channels // dim).bit_length() - 1]  # that of the level which has these channels
            return TransposedBlock(channels, config.num_heads[level], width, config.bias, config.centred)

        self.embed = nn.Conv2d(config.in_channels, dim, 3, padding=1, bias=False)
        self.body = UShape(dim, config.depths, block, config.bias)
        self.refinement = nn.Sequential(*[block(0, 2 * dim) for _ in range(config.refinement)])
        if config.dual_pixel:
            self.skip = nn.Conv2d(dim, 2 * dim, 1, bias=config.bias)
        self.output = nn.Conv2d(2 * dim, config.out_channels * config.n_heads, 3, padding=1, bias=config.bias)
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = self.heads.on_card(_card(config))

    def restore(self, x: Tensor) -> Tensor:
        features, shallow = self.features(x)
        carried = (x,) if shallow is None else (to_image(shallow),)
        rows = strip_rows(STRIP_PIXELS, x.shape[-1])
        return self.heads.apart(in_strips(self._tail, to_image(features), *carried, scale=1, halo=1, rows=rows))

    def features(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What the last convolution takes, (B, H, W, 2 D), and, for dual pixels, the features (B, H, W, D) led past the body."""
        # The residual stream and its norms are float32 whatever the steps compute in.
        with torch.autocast(x.device.type, enabled=False):
            grid = to_tokens(self.embed(x.contiguous(memory_format=torch.channels_last)))
        shallow = grid.clone() if self.config.dual_pixel else None
        features: Tensor = self.refinement(self.body(grid))
        return features, shallow

    def _tail(self, features: Tensor, carried: Tensor) -> Tensor:
        if self.config.dual_pixel:
            features = features + self.skip(carried)
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(features.device.type, enabled=False):
            result: Tensor = self.output(features.float())
            return result if self.config.dual_pixel else self.heads.mix(result, carried)


def _card(config: RestormerConfig) -> ModelCard:
    # Attention over the whole picture is not that of a tile: 1.3 steps of 8 bits RMS in tiles of 256 (docs/tiles.md). Alive in
    # the last decoder: the first level's map, the input of a block and its values of 2 D each, and the maps of a strip.
    # Measured a pixel, 128^2 to 384^2: 362 for D = 48, beside 31 MiB.
    return ModelCard(
        family="restormer",
        title="Restormer",
        paper="Zamir et al., Restormer: Efficient Transformer for High-Resolution Image Restoration, CVPR 2022, arXiv 2111.09881",
        code_licence="academic use, non-commercial",
        scale=1,
        channels=config.in_channels,
        out_channels=config.out_channels,
        multiple=2 ** (LEVELS - 1),
        overlap=128,
        global_context=True,
        activation_floats=round(1.1 * 7.6 * config.embed_dim),
        working_floats=16 * STRIP_VALUES,
        tasks=_tasks(config),
    )


def _tasks(config: RestormerConfig) -> tuple[str, ...]:
    """What was published in this form."""
    if config.dual_pixel:
        return ("defocus deblurring",)
    return ("deraining", "deblurring", "defocus deblurring") if config.centred else ("denoising",)


_PARTS = (
    *((f"encoder_level{n + 1}.", f"body.encoders.{n}.") for n in range(3)),
    ("latent.", "body.encoders.3."),
    *((f"decoder_level{3 - n}.", f"body.decoders.{n}.") for n in range(3)),
    ("refinement.", "refinement."),
)
KEYS = KeyMap(
    ("patch_embed.proj.", "embed."),
    *((f"{theirs}{{}}.norm{n}.body.", f"{ours}{{}}.norm{n}.") for theirs, ours in _PARTS for n in (1, 2)),
    *((theirs + "{}.attn.", ours + "{}.attention.") for theirs, ours in _PARTS),
    *((theirs + "{}.ffn.", ours + "{}.feedforward.") for theirs, ours in _PARTS),
    *((f"down{n + 1}_{n + 2}.body.0.", f"body.downs.{n}.") for n in range(3)),
    *((f"up{4 - n}_{3 - n}.body.0.", f"body.ups.{n}.") for n in range(3)),
    *((f"reduce_chan_level{3 - n}.", f"body.reduces.{n}.") for n in range(2)),
    ("skip_conv.", "skip."),
)
"""Published names and ours, by prefix."""

_ENCODERS = ("encoder_level1.", "encoder_level2.", "encoder_level3.", "latent.")


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for Restormer with one output or several."""
    if not {"patch_embed.proj.weight", "encoder_level1.0.attn.temperature", "output.weight"} <= state.keys():
        return False
    outputs, inputs = len(state["output.weight"]), state["patch_embed.proj.weight"].shape[1]
    return outputs <= inputs or count_heads(outputs, inputs) > 0


def read_config(state: Mapping[str, Tensor]) -> RestormerConfig:
    """The configuration that a state dict under published keys tells by its names and shapes."""
    dim, channels = state["patch_embed.proj.weight"].shape[:2]
    rows = len(state["output.weight"])
    heads = max(1, count_heads(rows, channels))
    return RestormerConfig(
        in_channels=channels,
        out_channels=rows // heads,
        embed_dim=dim,
        depths=tuple(count_numbered(state, level) for level in _ENCODERS),
        num_heads=tuple(len(state[level + "0.attn.temperature"]) for level in _ENCODERS),
        refinement=count_numbered(state, "refinement."),
        widths=tuple(state[level + "0.ffn.project_out.weight"].shape[1] for level in _ENCODERS),
        bias="encoder_level1.0.attn.qkv.bias" in state,
        centred="encoder_level1.0.norm1.body.bias" in state,
        dual_pixel="skip_conv.weight" in state,
        n_heads=heads,
    )


FAMILY = Family(
    name="restormer",
    matches=matches,
    build=build_from(Restormer, read_config),
    create=create_from(Restormer, RestormerConfig),
    options=("combine_heads",),
    keys=KEYS,
)
