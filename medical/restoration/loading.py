"""From a model's name, or a checkpoint file, to a restoration network for scans with its protocol."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import ValidationError

from hybrid.errors import InputError, RequestError, WeightsError
from hybrid.loading import build_network, open_weights, plain_options
from hybrid.plain_yaml import read_yaml
from hybrid.weights.find import Resolved
from hybrid.weights.header import OPTIONS, saved_options
from medical.loading import PROTOCOL, find_weights
from medical.restoration.protocol import RestorationProtocol

if TYPE_CHECKING:
    from torch.nn import Parameter

    from hybrid.cards import ModelCard
    from restore.models.base import RestorationNetwork


@dataclass(frozen=True, eq=False)
class Restorer:
    """A network for pictures and how scans are handed to it.

    Attributes:
        network: In eval mode on its device.
        protocol: What it asks of a scan.
        options: What it was built with beside its weights.

    Raises:
        RequestError: The network does not restore single slices of any size, or takes other channels than the protocol's.
    """

    network: RestorationNetwork
    protocol: RestorationProtocol
    options: Mapping[str, Any]

    @property
    def card(self) -> ModelCard:
        """The network's facts."""
        return self.network.card

    def parameters(self) -> Iterator[Parameter]:
        """The network's."""
        return self.network.parameters()

    def __post_init__(self) -> None:
        card = self.network.card
        if card.scale != 1 or card.outputs != 1 or card.luma:
            raise RequestError(
                f"{card.title} here enlarges, or gives several pictures of one.",
                hint="Choose a network of scale 1 and one output.",
            )
        if card.fixed_size:
            raise RequestError(
                f"{card.title} has an absolute position embedding: it takes {card.fixed_size} x {card.fixed_size} pixels alone.",
                hint="Choose a network without; slices have many sizes.",
            )
        if (card.channels, card.out_channels) != (self.protocol.channels,) * 2:
            raise RequestError(
                f"The network takes {card.channels} channels and gives {card.out_channels}, and its protocol shows it "
                f"{self.protocol.channels} slices.",
                hint="Correct `neighbours`: the channels are 2 x neighbours + 1.",
            )


def load_restorer(
    source: str | Path,
    *,
    protocol: RestorationProtocol | None = None,
    device: str = "auto",
    precision: str = "float32",
    **config: Any,
) -> Restorer:
    """Load a restoration network for scans by name, or from a checkpoint of a family of `restore`.

    Args:
        source: A name of the catalogue such as ``denoise-mr-compact``, or the path of a checkpoint.
        protocol: In place of the file's own.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``float32``, ``bf16``, ``fp16`` or ``auto``.
        **config: What a checkpoint cannot tell, such as ``tlc_train_size`` of NAFNet.

    Raises:
        RequestError: Unknown name or option, a network that restores no slices, or no protocol.
        WeightsError: The weights are absent, damaged, unsafe to open, or of no supported family.
    """
    return build_restorer(find_weights(source), protocol=protocol, device=device, precision=precision, **config)


def build_restorer(
    found: Resolved,
    *,
    protocol: RestorationProtocol | None = None,
    device: str = "auto",
    precision: str = "float32",
    **config: Any,
) -> Restorer:
    """Make the restorer of a file that `medical.loading.find_weights` found; arguments as for `load_restorer`.

    Raises:
        RequestError, WeightsError: As `load_restorer`.
    """
    from restore.models import MODULES, family

    name = found.path.name
    if found.entry is not None and found.entry.family not in MODULES:
        raise RequestError(
            f"{found.entry.name} segments scans and restores none.", hint="See `medical models list`, or use `medical segment`."
        )
    checkpoint = open_weights(found)
    options = saved_options(name, checkpoint.metadata) | plain_options(config)
    families = {each: family(each) for each in MODULES}
    network = build_network(found, checkpoint, families, device=device, precision=precision, config=options)
    chosen = protocol or _protocol(name, checkpoint.metadata)
    if chosen is None:
        raise RequestError(
            f"{name} does not say what scans it was trained on, nor how their values are scaled.",
            hint="Give --protocol FILE, a YAML file with modality, intensity, orientation, axis, neighbours.",
        )
    return Restorer(network, chosen, options)


def is_restorer(metadata: Mapping[str, str]) -> bool:
    """Whether the header of a file that this package wrote is of a restoration network for scans."""
    from restore.models import MODULES

    return metadata.get("family") in MODULES


def save_restorer(path: str | Path, restorer: Restorer, *, metadata: Mapping[str, str] | None = None, half: bool = False) -> None:
    """Write a network so that `load_restorer` makes the same one of the file: weights, options and protocol.

    Args:
        path: A ``.safetensors`` file.
        restorer: What to write, under the published names of its parameters.
        metadata: More text for the file's header.
        half: Store the weights as float16.

    Raises:
        OutputError: The folder does not take the file, or a weight is too large for float16.
    """
    from hybrid.weights.checkpoints import write_checkpoint
    from restore.models import family

    kind = family(restorer.network.card.family)
    options = {name: value for name, value in restorer.options.items() if name not in kind.in_weights}
    header = {"family": restorer.card.family, OPTIONS: json.dumps(options)}
    header |= {PROTOCOL: restorer.protocol.model_dump_json(), **(metadata or {})}
    state = {kind.keys.to_published(key): tensor for key, tensor in restorer.network.state_dict().items()}
    write_checkpoint(path, state, header, half=half)


def read_restoration_protocol(path: Path) -> RestorationProtocol:
    """Read a protocol from a YAML file.

    Raises:
        InputError: It cannot be read, or is no protocol of a restoration; the message names the first faults.
    """
    try:
        return RestorationProtocol.model_validate(read_yaml(path))
    except OSError as error:
        raise InputError(f"The protocol {path} cannot be read: {error.strerror}.", hint="Check the path.") from error
    except yaml.YAMLError as error:
        raise InputError(f"{path.name} is no YAML file.", hint="Write it as in the documentation of protocols.") from error
    except ValidationError as error:
        raise InputError(f"{path.name} is no protocol of a restoration: {_faults(error)}.", hint="Correct it there.") from error


def _protocol(name: str, metadata: Mapping[str, str]) -> RestorationProtocol | None:
    if PROTOCOL not in metadata:
        return None
    try:
        return RestorationProtocol.model_validate_json(metadata[PROTOCOL])
    except ValidationError as error:
        raise WeightsError(f"The protocol of {name} is not valid: {_faults(error)}.", hint="Correct it there.") from error


def _faults(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'file'}: {each['msg']}" for each in error.errors()[:3])
