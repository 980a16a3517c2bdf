"""Begin a training of a segmentation network from weights: of a whole network, or of an encoder that was trained by itself."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hybrid.training.start import Report, start_from
from hybrid.weights.checkpoints import Checkpoint, read_checkpoint
from hybrid.weights.containers import few
from medical.loading import find_weights
from medical.models import family
from medical.models.base import SegmentationNetwork
from medical.models.encoders import EncoderFiles, encoder_files

PART = "encoder."
"""Before the names of an encoder's tensors in a network that has one."""


def begin(network: SegmentationNetwork, source: str) -> dict[str, Any]:
    """Take over weights, and return what of it belongs in the record.

    Of a whole network what fits by name and shape is taken, so that the number of classes may differ. Where nothing but an
    encoder fits, all of the network's encoder must: a file that gave a part of it would train as if it gave the whole.

    Args:
        network: Initialised; changed in place.
        source: A name of the catalogue, or a file.

    Returns:
        ``started_from``: name and hash of the file, and in words what of it was taken and what was not, and why.

    Raises:
        RequestError: No such model, or weights that were trained for another arithmetic than the network's.
        WeightsError: The weights are absent, damaged or of another network; the network is then unchanged.
    """
    checkpoint = read_checkpoint(find_weights(source).path)
    kind, files = family(network.card.family), encoder_files(network.card.family)
    state = {k: v for k, v in checkpoint.state.items() if not any(fnmatch.fnmatchcase(k, each) for each in kind.derived)}
    given = {kind.keys.to_ours(name): tensor for name, tensor in state.items()}
    if files is None or _more_than_an_encoder(network, given):
        if files is not None:
            files.check(network, checkpoint)
        told = _of_a_network(start_from(network, given), given)
    else:
        told = _of_an_encoder(network, files, checkpoint, tuple(state))
    return {"started_from": {"file": checkpoint.path.name, "sha256": checkpoint.sha256, "tensors": told}}


def _more_than_an_encoder(network: SegmentationNetwork, given: Mapping[str, Tensor]) -> bool:
    own = network.state_dict()
    return any(not name.startswith(PART) and name in own and own[name].shape == tensor.shape for name, tensor in given.items())


def _of_a_network(report: Report, given: Mapping[str, Tensor]) -> str:
    """What was taken of a whole network, in words."""
    shaped = [name for name in report.left if name in given]
    return str(report) + (f"; {len(shaped)} of them have another shape in the file" if shaped else "")


def _of_an_encoder(network: SegmentationNetwork, files: EncoderFiles, checkpoint: Checkpoint, names: tuple[str, ...]) -> str:
    """Load an encoder that a file holds, and say in words what was taken."""
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    files.load(network, checkpoint.path)
    after, encoder = network.state_dict(), {name.removeprefix(PART) for name in before if name.startswith(PART)}
    left = [name for name in after if not name.startswith(PART) and torch.equal(after[name], before[name])]
    copied = len(before) - len(encoder) - len(left)
    unused = [name for name in names if files.to_ours(network, name) not in encoder]
    line = f"{len(encoder)} of {len(before)} tensors taken: the whole encoder"
    if copied:
        line += f"; {copied} of the decoder begin as the encoder's"
    if left:
        line += f"; {len(left)} initialised, since the file holds an encoder alone ({few(left)})"
    if unused:
        line += f"; {len(unused)} of the file not used, since the network has nothing of the kind ({few(unused)})"
    return line
