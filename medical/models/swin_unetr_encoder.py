"""Self-supervised encoders for Swin UNETR: files that hold the Swin transformer alone, under names of their own.

Y. Tang et al., "Self-Supervised Pre-Training of Swin Transformers for 3D Medical Image Analysis", CVPR 2022
(``model_swinvit.pt``);
J. M. J. Valanarasu et al., "Disruptive Autoencoders: Leveraging Low-level Features for 3D Medical Image Pre-training",
arXiv 2307.16896 (``ssl_pretrained_weights.pth``).
"""

from __future__ import annotations

import re
from pathlib import Path

from hybrid.errors import RequestError, WeightsError
from hybrid.weights.checkpoints import Checkpoint, load_strict, read_checkpoint
from hybrid.weights.header import saved_options
from medical.models.encoders import EncoderFiles
from medical.models.swin_unetr import KEYS, SwinUNETR

PUBLISHED_MERGING = "legacy"
"""The merging order that all published encoders were trained with, but those of version 2."""
_ENCODER = re.compile(r"patch_embed\.|layers\d+c?\.0\.")
_DISRUPTIVE = re.compile(r"encoder\.(?:(layers\d+c?\.0\.)0\.|(?=patch_embed\.))")
_INDEX = "*.relative_position_index"
FIRST = "embed.weight"
"""The weights that make tokens of the image."""


def load_encoder(network: SwinUNETR, path: str | Path) -> int:
    """Load a pre-trained encoder, or the encoder of a whole Swin UNETR; the decoder stays as it is.

    Tensors of pretext tasks, of decoders and of a last norm that Swin UNETR does not have are left aside. Where the network
    takes more channels than the file's encoder of one, each gets the one channel's weights divided by their number, so
    that equal channels give the first grid that the one gave.

    Args:
        network: Its merging order must be the one that the encoder was trained with.
        path: The checkpoint file.

    Returns:
        The number of tensors loaded, which is all that the encoder has.

    Raises:
        RequestError: The encoder was trained with another merging order than the network has.
        WeightsError: The file is damaged, or lacks tensors of the encoder, or has others; the network is then unchanged.
    """
    checkpoint = read_checkpoint(path)
    state = {new: tensor for name, tensor in checkpoint.state.items() if (new := encoder_name(name)) is not None}
    if FIRST not in state:
        raise WeightsError(f"{checkpoint.path.name} holds no encoder of Swin UNETR.", hint="Give one such as model_swinvit.pt.")
    check_merging(network, checkpoint)
    patches, channels = state[FIRST], network.config.in_channels
    if patches.ndim == network.config.spatial_dims + 2 and patches.shape[1] == 1:
        state[FIRST] = patches.repeat(1, channels, *[1] * network.config.spatial_dims) / channels
    load_strict(network.encoder, state, derived=(_INDEX,))
    return len(network.encoder.state_dict())


def check_merging(network: SwinUNETR, checkpoint: Checkpoint) -> None:
    """Refuse weights of another merging order than the network has, which no shape tells.

    Raises:
        RequestError: They are of another one.
    """
    published = "v2" if any(".layers1c." in f".{name}" for name in checkpoint.state) else PUBLISHED_MERGING
    merging = saved_options(checkpoint.path.name, checkpoint.metadata).get("merging", published)
    if network.config.spatial_dims == 3 and network.config.merging != merging:
        raise RequestError(
            f"{checkpoint.path.name} was trained with the merging order {merging}, and the network has {network.config.merging}.",
            hint=f"Create the network with merging={merging!r}.",
        )


def encoder_name(name: str) -> str | None:
    """Our name, inside the encoder, of a tensor of a published encoder file; None for what belongs to something else.

    >>> encoder_name("layers1.0.blocks.0.mlp.fc1.weight")
    'stages.1.blocks.0.mlp.fc1.weight'
    >>> encoder_name("encoder.layers2.0.0.downsample.norm.bias")
    'stages.2.merging.norm.bias'
    >>> encoder_name("rotation_head.weight")
    """
    name = _DISRUPTIVE.sub(lambda found: found[1] or "", name.removeprefix("swinViT."), count=1)
    if not _ENCODER.match(name):
        return None
    name = name.replace(".mlp.fc", ".mlp.linear")
    return KEYS.to_ours("swinViT." + name).removeprefix("encoder.")


def file_name(name: str) -> str:
    """The name of a tensor of our encoder in a file of it alone: as in published whole networks.

    >>> file_name("stages.1.blocks.0.mlp.fc1.weight")
    'swinViT.layers1.0.blocks.0.mlp.linear1.weight'
    """
    return KEYS.to_published("encoder." + name)


ENCODER_FILES = EncoderFiles(load_encoder, check_merging, lambda _, name: encoder_name(name), file_name)
