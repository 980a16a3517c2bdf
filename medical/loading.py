"""From a model's name, or any published checkpoint file, to a segmentation network that is ready to run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from hybrid.errors import RequestError, WeightsError
from hybrid.loading import build_network, open_weights
from hybrid.weights.catalogue import Catalogue
from hybrid.weights.find import Resolved, Store, resolve
from hybrid.weights.header import OPTIONS, header_object, saved_options
from medical.protocol import Protocol

if TYPE_CHECKING:
    from medical.models.base import SegmentationNetwork

OnProgress = Callable[[int, int], None]
PROTOCOL = "protocol"
"""Key of the Protocol in the header of a file, a JSON object."""


@cache
def catalogue() -> Catalogue:
    """The segmentation models that have names. Needs no torch.

    Raises:
        WeightsError: The catalogue, or the protocol of one of its models, does not follow its schema.
    """
    package = Path(str(resources.files("medical")))
    return Catalogue.load(package / "weights" / "catalogue.yaml", package)


def find_weights(source: str | Path, *, on_progress: OnProgress | None = None) -> Resolved:
    """Find the file behind a model's name or path. Nothing ever stands in for a network that was asked for.

    Args:
        source: A name of the catalogue, or a checkpoint file.
        on_progress: Called with bytes done and bytes in all during a download.

    Raises:
        RequestError: No such model.
        WeightsError: The weights are absent or damaged.
        ResourceError: The cache cannot be written.
    """
    store = Store.from_environment(command="medical")
    return resolve(source, None, catalogue(), store, allow_download=not store.offline, on_progress=on_progress)


def load_model(source: str | Path, *, device: str = "auto", precision: str = "float32", **config: Any) -> SegmentationNetwork:
    """Load a segmentation network by name or from any published checkpoint file of a supported family.

    Args:
        source: A name of the catalogue such as ``swin-unetr-btcv-base``, or the path of a checkpoint.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``float32``, ``bf16``, ``fp16`` or ``auto``. The network takes and returns float32 whatever it is.
        **config: What a checkpoint cannot tell, such as ``merging`` of Swin UNETR.

    Returns:
        The network in eval mode. Its `card` states its facts, its `protocol` what it asks of a scan, where that is
        known, and its `source` where the weights came from.

    Raises:
        RequestError: Unknown name or option.
        WeightsError: The weights are absent, damaged, unsafe to open, or of no supported family.
    """
    return build(find_weights(source), device=device, precision=precision, **config)


def build(found: Resolved, *, device: str = "auto", precision: str = "float32", **config: Any) -> SegmentationNetwork:
    """Make the network of a file that `find_weights` found; arguments as for `load_model`.

    Raises:
        RequestError, WeightsError: As `load_model`; or the file's network restores scans.
    """
    from medical.models import MODULES, family

    if found.entry is not None and found.entry.family not in MODULES:
        raise RequestError(
            f"{found.entry.name} restores scans and outlines nothing.", hint="Use `medical restore`, or choose another model."
        )
    checkpoint = open_weights(found)
    config = saved_options(found.path.name, checkpoint.metadata) | config
    families = {name: family(name) for name in MODULES}
    network = build_network(found, checkpoint, families, device=device, precision=precision, config=config)
    network.protocol = _protocol(found, checkpoint.metadata)
    if network.protocol is not None:
        _agree(found.path.name, network, network.protocol)
    elif found.entry is None:
        _take_published_protocol(network, found.path.name)
    return network


def save_model(
    path: str | Path,
    network: SegmentationNetwork,
    *,
    protocol: Protocol | None = None,
    metadata: Mapping[str, str] | None = None,
    half: bool = False,
) -> None:
    """Write a network so that `load_model` makes the same one of the file: weights, options and protocol.

    Args:
        path: A ``.safetensors`` file.
        network: What to write, under the published names of its parameters.
        protocol: What it asks of a scan; None for the network's own.
        metadata: More text for the file's header.
        half: Store the weights as float16.

    Raises:
        OutputError: The folder does not take the file, or a weight is too large for float16.
        WeightsError: The protocol asks for other channels than the network has.
    """
    from hybrid.weights.checkpoints import write_checkpoint
    from medical.models import family

    kind = family(network.card.family)
    header = file_header(Path(path).name, network, protocol or network.protocol) | dict(metadata or {})
    state = {kind.keys.to_published(key): tensor for key, tensor in network.state_dict().items()}
    write_checkpoint(path, state, header, half=half)


def file_header(file_name: str, network: SegmentationNetwork, protocol: Protocol | None) -> dict[str, str]:
    """What the header of a network's file says beside its weights: options, and the protocol where there is one.

    Raises:
        WeightsError: The protocol asks for other channels than the network has.
    """
    header = {OPTIONS: json.dumps(network.options())}
    if protocol is not None:
        _agree(file_name, network, protocol)
        header[PROTOCOL] = protocol.model_dump_json()
    return header


def entry_protocol(name: str, raw: Mapping[str, Any]) -> Protocol:
    """The protocol that a catalogue entry or a file's header states.

    Raises:
        WeightsError: It does not follow the schema; the message names the first faults.
    """
    try:
        return Protocol.model_validate(raw)
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()[:3]]
        raise WeightsError(f"The protocol of {name} is not valid: {'; '.join(faults)}.", hint="Correct it there.") from error


def _protocol(found: Resolved, metadata: Mapping[str, str]) -> Protocol | None:
    """What the file says of itself, else what the catalogue says of it."""
    if PROTOCOL in metadata:
        return entry_protocol(found.path.name, header_object(found.path.name, PROTOCOL, metadata[PROTOCOL]))
    if found.entry is not None and found.entry.protocol is not None:
        return entry_protocol(found.entry.name, found.entry.protocol)
    return None


def _take_published_protocol(network: SegmentationNetwork, file_name: str) -> None:
    """Of a file that was given by its path and has a published one's name, what the catalogue says of that; and say so.

    What was trained further under the same name has the same parameters; other classes or channels make others.
    """
    known, source = catalogue().whose_file(file_name), network.source
    if known is None or source is None:
        return
    entry, file = known[0], known[0].files[known[1]]
    count = sum(parameter.numel() for parameter in network.parameters())
    same = file.sha256 in (None, source.sha256) and file.parameters in (None, count) and entry.family == network.card.family
    if entry.protocol is None or not same:
        return
    protocol = entry_protocol(entry.name, entry.protocol)
    if (len(protocol.channels), protocol.outputs) == (network.card.in_channels, network.card.out_channels):
        told = f"By its name {file_name} is {entry.name}, and segments as the catalogue says of that; --protocol overrules it."
        network.protocol, network.source = protocol, replace(source, notice=" ".join(filter(None, (told, entry.notice))))


def _agree(file_name: str, network: SegmentationNetwork, protocol: Protocol) -> None:
    card = network.card
    if (len(protocol.channels), protocol.outputs) != (card.in_channels, card.out_channels):
        raise WeightsError(
            f"The protocol of {file_name} speaks of {len(protocol.channels)} channels in and {protocol.outputs} out; "
            f"the network has {card.in_channels} and {card.out_channels}.",
            hint="Give the protocol that the network was trained with.",
        )
