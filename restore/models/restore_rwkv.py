"""Restore-RWKV, restoration of medical pictures: a U-shape of RWKV blocks, at a cost that is linear in the pixels.

Z. Yang, J. Li, H. Zhang, D. Zhao, B. Wei, Y. Xu, "Restore-RWKV: Efficient and Effective Medical Image Restoration with RWKV",
IEEE Journal of Biomedical and Health Informatics 30(1), 2026, arXiv 2407.11087. Axis letters: B batch, H and W rows and
columns, C channels of the first level; each level has half of the rows and columns and twice the channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn

from hybrid.blocks.convolution import STRIP_PIXELS
from hybrid.blocks.layout import channels_last, to_image, to_tokens
from hybrid.blocks.resampling import in_strips, strip_rows
from hybrid.blocks.rwkv import RWKVBlock
from hybrid.blocks.u_shape import UShape
from hybrid.cards import ModelCard
from hybrid.families import build_from, create_from
from hybrid.weights.keys import KeyMap, count_numbered
from restore.models.base import Family, RestorationNetwork

LEVELS = 4
"""Of the U, the deepest included."""


@dataclass(frozen=True)
class RestoreRWKVConfig:
    """One Restore-RWKV. Defaults are the published configuration.

    Attributes:
        in_channels: Of the pictures. embed_dim: Channels C of the first level.
        depths: Blocks of each level, of the encoder as of the decoder. refinement: Blocks after the decoder.
        mlp_ratio: Hidden channels of a channel mix per channel.
        recurrences: Times that Bi-WKV runs in a block, along rows and columns in turn.
    """

    in_channels: int = 1
    embed_dim: int = 48
    depths: tuple[int, ...] = (4, 6, 6, 8)
    refinement: int = 4
    mlp_ratio: int = 4
    recurrences: int = 2


class RestoreRWKV(RestorationNetwork):
    """The whole network. Takes and returns (B, C, H, W) float32 in [0, 1]."""

    not_exported = "its averages run along all pixels, chunk by chunk, and ONNX has no such step."

    def __init__(self, config: RestoreRWKVConfig) -> None:
        super().__init__()
        self.config = config
        dim, channels = config.embed_dim, config.in_channels

        def block(_: int, width: int) -> RWKVBlock:
            return RWKVBlock(width, config.mlp_ratio * width, config.recurrences)

        self.embed = nn.Conv2d(channels, dim, 3, padding=1)
        self.body = UShape(dim, config.depths, block, bias=True)
        self.refinement = nn.Sequential(*[block(0, 2 * dim) for _ in range(config.refinement)])
        self.output = nn.Conv2d(2 * dim, channels, 3, padding=1)
        # Tokens are channels-last images: convolutions follow them.
        channels_last(self)
        self.card = _card(config)

    def restore(self, x: Tensor) -> Tensor:
        grid = to_tokens(self.embed(x.contiguous(memory_format=torch.channels_last)))
        features = to_image(self.refinement(self.body(grid)))
        rows = strip_rows(STRIP_PIXELS, x.shape[-1])
        return in_strips(self._tail, features, x, scale=1, halo=1, rows=rows)

    def _tail(self, features: Tensor, x: Tensor) -> Tensor:
        # The last step is small and its rounding would be seen: float32 whatever the rest computes in.
        with torch.autocast(x.device.type, enabled=False):
            picture: Tensor = self.output(features.float()) + x
            return picture


def _card(config: RestoreRWKVConfig) -> ModelCard:
    # Alive in a block of the first level: its input, the shifted tokens and the values, each of 2 C, and the keys of some
    # channels. Measured a pixel, 256^2 and 512^2: 258 for C = 24 and 460 for C = 48, beside chunks of hidden values.
    dim = config.embed_dim
    return ModelCard(
        family="restore_rwkv",
        title="Restore-RWKV",
        paper="Yang et al., Restore-RWKV: Efficient and Effective Medical Image Restoration with RWKV, JBHI 30(1), 2026, "
        "arXiv 2407.11087",
        code_licence="unknown",
        scale=1,
        channels=config.in_channels,
        multiple=2 ** (LEVELS - 1),
        overlap=64,  # weights depend on the number of pixels and reach all of them: no overlap makes tiles exact
        global_context=True,
        activation_floats=round(1.1 * (8.4 * dim + 57)),
        working_floats=7 * 2**20,
        tasks=("medical restoration",),
    )


_LEVELS = [*((f"encoder_level{n + 1}.{{}}.", f"body.encoders.{n}.{{}}.") for n in range(LEVELS - 1))]
_LEVELS += [*((f"decoder_level{LEVELS - 1 - n}.{{}}.", f"body.decoders.{n}.{{}}.") for n in range(LEVELS - 1))]
_LEVELS += [("latent.{}.", f"body.encoders.{LEVELS - 1}.{{}}."), ("refinement.{}.", "refinement.{}.")]
_SHIFTS = [(f"conv{n}x{n}.weight", ours) for n, ours in ((1, "point"), (3, "small"), (5, "large"))]
_PARTS = [
    ("att.spatial_decay", "spatial.decay"),
    ("att.spatial_first", "spatial.bonus"),
    *((f"att.omni_shift.{theirs}", f"spatial.shift.{ours}") for theirs, ours in [*_SHIFTS, ("", "")]),
    ("att.", "spatial."),
    *((f"ffn.omni_shift.{theirs}", f"channel.shift.{ours}") for theirs, ours in [*_SHIFTS, ("", "")]),
    ("ffn.", "channel."),
    ("ln1.", "norm1."),
    ("ln2.", "norm2."),
    ("", ""),
]
KEYS = KeyMap(
    ("patch_embed.", "embed."),
    *((level + part, our_level + our_part) for (level, our_level), (part, our_part) in product(_LEVELS, _PARTS)),
    *((f"down{n + 1}_{n + 2}.body.0.", f"body.downs.{n}.") for n in range(LEVELS - 1)),
    *((f"up{LEVELS - n}_{LEVELS - 1 - n}.body.0.", f"body.ups.{n}.") for n in range(LEVELS - 1)),
    *((f"reduce_chan_level{LEVELS - 1 - n}.", f"body.reduces.{n}.") for n in range(LEVELS - 2)),
)
"""Published names and ours, by prefix."""

_ENCODERS = (*(f"encoder_level{n + 1}" for n in range(LEVELS - 1)), "latent")


def matches(state: Mapping[str, Tensor]) -> bool:
    """True for Restore-RWKV."""
    return {"patch_embed.weight", "encoder_level1.0.att.spatial_decay"} <= state.keys()


def read_config(state: Mapping[str, Tensor]) -> RestoreRWKVConfig:
    """The configuration that a state dict under published keys tells by its names and shapes."""
    dim, channels = state["patch_embed.weight"].shape[:2]
    if len(state["output.weight"]) != channels:
        raise ValueError(f"it takes {channels} channels and gives {len(state['output.weight'])}")
    return RestoreRWKVConfig(
        in_channels=channels,
        embed_dim=dim,
        depths=tuple(count_numbered(state, f"{level}.") for level in _ENCODERS),
        refinement=count_numbered(state, "refinement."),
        mlp_ratio=len(state["encoder_level1.0.ffn.key.weight"]) // dim,
        recurrences=len(state["encoder_level1.0.att.spatial_decay"]),
    )


FAMILY = Family(
    name="restore_rwkv",
    matches=matches,
    build=build_from(RestoreRWKV, read_config),
    create=create_from(RestoreRWKV, RestoreRWKVConfig),
    options=(),
    keys=KEYS,
    # The folded kernel that training leaves behind, and an unused layer of the first release.
    derived=("*.conv5x5_reparam.weight", "*.att.dwconv.weight"),
)
