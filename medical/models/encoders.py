"""Which families have encoders that are trained by themselves, and how files of such encoders are read and named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

MODULES = {
    "swin_unetr": "medical.models.swin_unetr_encoder",
    "cswin_unet": "medical.models.cswin_pretrained",
}
"""Family name to the module that holds its `ENCODER_FILES`. Networks of these have their encoder as `encoder`, which makes of
(B, C, *spatial) all its grids, the finest first."""


@dataclass(frozen=True)
class EncoderFiles:
    """How a family deals with files that hold an encoder alone.

    Attributes:
        load: (network, path): all tensors of the encoder from a file, or an error; returns their number.
        check: (network, checkpoint): refuse weights that would fit, but were trained for another arithmetic.
        to_ours: (network, name): name inside the encoder of a tensor of a file; None for what belongs to something else.
        to_published: Name in a file that holds the encoder alone, of a tensor of the encoder.
    """

    load: Callable[..., int]
    check: Callable[..., None]
    to_ours: Callable[..., str | None]
    to_published: Callable[[str], str]


def encoder_files(family: str) -> EncoderFiles | None:
    """How the encoders of a family are kept; None where none are trained by themselves."""
    return import_module(MODULES[family]).ENCODER_FILES if family in MODULES else None
