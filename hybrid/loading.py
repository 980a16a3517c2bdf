"""From a file of weights to a network that is ready to run: the steps that pictures and scans share. No torch until then."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from hybrid.errors import RequestError, WeightsError
from hybrid.weights.find import Origin, Resolved, Store
from hybrid.weights.header import saved_options

if TYPE_CHECKING:
    from hybrid.families import Family, Network
    from hybrid.weights.checkpoints import Checkpoint

N = TypeVar("N", bound="Network")


@dataclass(frozen=True)
class WeightsSource:
    """Where the weights of a loaded network came from.

    Attributes:
        name: The catalogue's name of the model, or the file's stem for a file that was given.
        file: File name.
        sha256: Hash of the file's bytes.
        origin: ``file``, ``cache``, ``download`` or ``shipped``.
        notice: What a user should be told about these weights; None where there is nothing.
    """

    name: str
    file: str
    sha256: str
    origin: Origin
    notice: str | None = None


def check_same_weights(network: Network, sha256: str) -> None:
    """Refuse weights that are not those of the machine that began a batch.

    Raises:
        WeightsError: Their file has another SHA-256.
    """
    source = network.source
    if source is None or source.sha256 != sha256:
        name = "of the network" if source is None else source.file
        raise WeightsError(f"The weights {name} are not the same on all machines.", hint="Put the same file on all of them.")


def portable_source(asked: str | Path, found: WeightsSource) -> str | Path:
    """What processes in other folders and on other machines find the same weights by: a name, or a whole path."""
    return Path(asked).resolve() if found.origin == "file" else found.name


def open_weights(found: Resolved) -> Checkpoint:
    """Read the file that was found, once this process is set up for the large tensors that follow.

    Raises:
        WeightsError: It is damaged, unsafe to open, or holds no weights.
    """
    from hybrid.devices import tune_allocator
    from hybrid.weights.checkpoints import read_checkpoint

    tune_allocator()  # before the first tensor is made
    return read_checkpoint(found.path)


def build_network(
    found: Resolved,
    checkpoint: Checkpoint,
    families: Mapping[str, Family[N]],
    *,
    device: str = "auto",
    precision: str = "float32",
    config: Mapping[str, Any],
    work: int | None = None,
) -> N:
    """The network of a checkpoint: recognised, built, loaded strictly, in eval mode on its device.

    Args:
        found: Where the file is.
        checkpoint: What is in it.
        families: The architectures it may be of, by their registry names.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``float32``, ``bf16``, ``fp16`` or ``auto``, which `hybrid.precision.check` decides.
        config: What a checkpoint cannot tell, by the names of the family's options.
        work: Pixels or voxels that it will be run on, for ``auto``; None where that is much or not known.

    Raises:
        RequestError: An option that the family has not, or a device or precision that cannot be had.
        WeightsError: The weights are of no supported family, incomplete or changed.
    """
    from hybrid.devices import choose_device, choose_precision
    from hybrid.initialisation import SkipRandomFill
    from hybrid.precision.check import settle
    from hybrid.weights.checkpoints import load_strict, recognise

    target = choose_device(device)
    kind = families[recognise(checkpoint.state, families)]
    if unknown := sorted(set(config) - set(kind.options)):
        raise RequestError(
            f"{kind.name} has no option {', '.join(unknown)}.", hint=f"It takes {', '.join(kind.options) or 'none'}."
        )
    try:
        told = (found.entry.options if found.entry else {}) | saved_options(found.path.name, checkpoint.metadata)
        with SkipRandomFill():
            options = {key: told[key] for key in kind.options if key in told} | plain_options(config)
            network = kind.build(checkpoint.state, **options)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        # a name, an axis or a number that does not go with the rest
        raise WeightsError(
            f"{found.path.name} has names of {kind.name}, but no such network has its names and shapes: "
            f"{type(error).__name__} {error}.",
            hint="The file is incomplete or changed; give the published file as it is.",
        ) from error
    load_strict(network, kind.canonical(checkpoint.state), rename=kind.keys.to_ours, derived=kind.derived)
    network.loaded()
    network.precision = choose_precision(precision, target, ("float32", *network.card.low_precision))  # type: ignore[arg-type]
    network.source = WeightsSource(
        name=found.entry.name if found.entry else found.path.stem,
        file=found.path.name,
        sha256=checkpoint.sha256,
        origin=found.origin,
        notice=found.entry.notice if found.entry else None,
    )
    network.to(target).eval().requires_grad_(False)
    if precision == "auto" and network.precision != "float32":
        settle(network, work=work, cache=Store.from_environment().folder)
    return network


def plain_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Options as Python and JSON have them: numbers and arrays of NumPy as numbers and lists, also inside of lists.

    Args:
        config: Values by their names; arrays of any shape.
    """
    return {name: _plain(value) for name, value in config.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return plain_options(value)
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value] if isinstance(value, list) else tuple(map(_plain, value))
    return value.tolist() if hasattr(value, "tolist") else value
