"""Model cards: what is known of a network, as data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ModelCard:
    """Facts of one configured network that the code around it needs, so that no code asks for a model's name.

    Attributes:
        family: Registry name of the architecture, such as ``hat``.
        title: Its name in print.
        paper: Citation of the paper that defines it.
        code_licence: Licence of the reference implementation ("unknown" is a value).
        scale: Output pixels per input pixel along each axis.
        channels: Image channels that the network takes, and gives where `out_channels` does not say otherwise.
        multiple: The network pads each side to a multiple of this many pixels (1: no padding).
        padding: What it pads with: ``reflect``, the picture mirrored in its edge, or ``zeros``.
        overlap: Context in input pixels that a tile shares with each neighbour.
        exact: Whether tiles with that overlap, cut in its middle, give what the whole gives.
        global_context: True if some layer sees the whole input, so that tiles can not be exact.
        activation_floats: Peak of live float32 values per input pixel during a forward pass, measured.
        working_floats: Live float32 values that do not grow with the input, such as chunks of tokens at work.
        value_range: Range of the values that the network takes and returns.
        luma: True for a network of one channel that takes BT.601 luma in studio swing; colours are enlarged beside it.
        low_precision: Compute types, besides float32, in which its results are known to hold.
        tasks: What networks of this form are published for, which is all that a file of weights tells.
        out_channels: Image channels that the network gives; 0 stands for `channels`.
        outputs: Pictures that it gives of one; several come as (B, outputs, C, H, W).
        pure_outputs: Those that are no averages of others. Their mean is the mean of all.
        result: Place of the result in the list of stages that the network returns; None for a network that returns a tensor.
        fixed_size: Edge in pixels of the one picture size that it takes, which tiles of a larger one are not; 0 for any size.
        face_size: Edge in pixels of the aligned faces that it was trained on, which are never cut in tiles; 0 for any picture.
        parts_follow_size: Whether it divides what it is given into a number of parts that does not grow with it, such as
            halves: no overlap makes tiles equal to the whole.
    """

    family: str
    title: str
    paper: str
    code_licence: str
    scale: int
    channels: int
    multiple: int
    overlap: int
    global_context: bool
    activation_floats: int
    working_floats: int = 0
    value_range: tuple[float, float] = (0.0, 1.0)
    luma: bool = False
    exact: bool = False
    low_precision: tuple[str, ...] = ("bf16",)
    padding: Literal["reflect", "zeros"] = "reflect"
    tasks: tuple[str, ...] = ("super-resolution",)
    out_channels: int = 0
    outputs: int = 1
    pure_outputs: tuple[int, ...] = (0,)
    result: int | None = None
    parts_follow_size: bool = False
    face_size: int = 0
    fixed_size: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "out_channels", self.out_channels or self.channels)
