"""Pre-trained encoders for CSWin UNets: published CSWin backbones, or the encoder of a whole network.

X. Dong et al., "CSWin Transformer", CVPR 2022, arXiv 2107.00652; github.com/microsoft/CSWin-Transformer (classifiers, such as
``cswin_tiny_224.pth``, and backbones inside UPerNets, such as ``upernet_cswin_tiny.pth``). For slices.
"""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from hybrid.errors import RequestError, WeightsError
from hybrid.weights.checkpoints import Checkpoint, load_strict, read_checkpoint
from hybrid.weights.header import saved_options
from medical.models.cswin_unet import HEADS, KEYS, PREFIX, CSWinUNet
from medical.models.cswin_unet_3d import CSWinUNet3D
from medical.models.encoders import EncoderFiles

FIRST = "embed.weight"
"""The weights that make tokens of the image."""


def load_encoder(network: CSWinUNet | CSWinUNet3D, path: str | Path) -> int:
    """Load a pre-trained encoder; in a network for slices the decoder's blocks begin as the encoder's, as published.

    Blocks beyond the network's depths, classifiers, pretext tasks and decoders in the file are left aside. Where the network
    takes another number of channels than the file's encoder, each gets the mean of the file's, scaled so that equal channels
    give the grid that equal channels gave before: one channel counts as the gray picture that it would be in three.

    Args:
        network: Of the encoder's widths and heads, and no deeper.
        path: The checkpoint file.

    Returns:
        The number of tensors loaded, which is all that the encoder has.

    Raises:
        RequestError: The encoder was trained with another number of heads than the network has.
        WeightsError: The file is damaged, or lacks tensors of the encoder, or has them of other shapes; the network is then
            unchanged.
    """
    checkpoint = read_checkpoint(path)
    last, own = max(network.config.stages), network.encoder.state_dict()
    names = {name: encoder_name(name, last) for name in checkpoint.state}
    state = {new: checkpoint.state[name] for name, new in names.items() if new in own}
    if FIRST not in state:
        raise WeightsError(f"{checkpoint.path.name} holds no CSWin encoder.", hint="Give one such as cswin_tiny_224.pth.")
    check_heads(network, checkpoint)
    state[FIRST] = _for_channels(state[FIRST], network.config.in_channels)
    load_strict(network.encoder, state)
    if isinstance(network, CSWinUNet):
        network.stages.load_state_dict(network.encoder.stages.state_dict())
    return len(own)


def check_heads(network: CSWinUNet | CSWinUNet3D, checkpoint: Checkpoint) -> None:
    """Refuse weights of another number of heads than the network has, which no shape tells.

    Raises:
        RequestError: They are of another one.
    """
    last = max(network.config.stages)
    heads = saved_options(checkpoint.path.name, checkpoint.metadata).get("num_heads")
    stem = next((t for name, t in checkpoint.state.items() if encoder_name(name, last) == FIRST), None)
    if heads is None and stem is not None and stem.ndim == 4:
        heads = HEADS.get(len(stem))
    if heads is not None and tuple(heads)[:last] != network.config.num_heads:
        raise RequestError(
            f"{checkpoint.path.name} was trained with {_listed(heads)} heads, and the network has "
            f"{_listed(network.config.num_heads)}.",
            hint=f"Create the network with num_heads=({_listed(heads)}).",
        )


def encoder_name(name: str, last: int) -> str | None:
    """Our name, inside the encoder, of a tensor of a file; None for what belongs to something else.

    `last` is the number of stages: backbones inside UPerNets have a norm for each, of which that of the last is the encoder's.

    >>> encoder_name("stage1.0.attns.1.get_v.bias", 4)
    'stages.1.0.attention.local.1.bias'
    >>> encoder_name("backbone.norm4.weight", 4), encoder_name("cswin_unet.norm.weight", 4)
    ('norm.weight', 'norm.weight')
    >>> encoder_name("cswin_unet.stage_up1.0.qkv.bias", 4)
    """
    name = re.sub(rf"^norm{last}\.", "norm.", name.removeprefix("backbone.").removeprefix(PREFIX))
    ours = KEYS.to_ours(PREFIX + name)
    return ours.removeprefix("encoder.") if ours.startswith("encoder.") else None


def file_name(name: str) -> str:
    """The name of a tensor of our encoder in a file of it alone: as in the published backbone.

    >>> file_name("stages.1.0.attention.local.1.bias")
    'stage1.0.attns.1.get_v.bias'
    """
    return KEYS.to_published("encoder." + name).removeprefix(PREFIX)


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    """The stem's weights (C, in, ...) for another number of channels."""
    if weight.shape[1] == channels:
        return weight
    return (weight.sum(1, keepdim=True) / channels).repeat(1, channels, *[1] * (weight.ndim - 2))


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


ENCODER_FILES = EncoderFiles(
    load_encoder, check_heads, lambda network, name: encoder_name(name, max(network.config.stages)), file_name
)
