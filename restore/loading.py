"""From a model's name, or any published checkpoint file, to a network that is ready to run."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hybrid.errors import RequestError, ResourceError, WeightsError
from hybrid.loading import build_network, open_weights
from hybrid.weights.catalogue import Catalogue
from hybrid.weights.find import Resolved, Store, fallback, fallback_notice, resolve

if TYPE_CHECKING:
    from restore.models.base import RestorationNetwork

OnProgress = Callable[[int, int], None]


@cache
def catalogue() -> Catalogue:
    """The picture models that have names. Needs no torch."""
    package = Path(str(resources.files("restore")))
    return Catalogue.load(package / "weights" / "catalogue.yaml", package)


def find_weights(
    source: str | Path, scale: int | None, *, stand_in: bool = False, on_progress: OnProgress | None = None
) -> tuple[Resolved, str | None]:
    """Find the file behind a model's name or path, and a line that says what stands in for it.

    Args:
        source: A name of the catalogue, or a checkpoint file.
        scale: The scale wanted; None for the only one there is.
        stand_in: Whether a shipped network may take the place of absent weights. Only commands that restore a user's
            pictures allow it; whoever compares models must not.
        on_progress: Called with bytes done and bytes in all during a download.

    Raises:
        RequestError: No such model, or it lacks the scale.
        WeightsError: The weights are absent or damaged and nothing may stand in.
        ResourceError: The cache cannot be written.
    """
    store = Store.from_environment()
    known = catalogue()
    try:
        return resolve(source, scale, known, store, allow_download=not store.offline, on_progress=on_progress), None
    except (WeightsError, ResourceError) as error:
        name = str(source).lower()
        if not stand_in or name not in known:
            raise
        entry = known.entry(name)
        chosen, _ = entry.file(scale)
        other = fallback(known, entry, chosen)
        if other is None:
            raise
        found = resolve(other.name, chosen, known, store, allow_download=False)
        return found, fallback_notice(entry, other, error)


def load_model(
    source: str | Path,
    *,
    scale: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    **config: Any,
) -> RestorationNetwork:
    """Load a network by name or from any published checkpoint file of a supported family.

    Args:
        source: A name of the catalogue such as ``hat``, or the path of a checkpoint.
        scale: The scale wanted, where a name has several; a file must have it.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.
        precision: ``float32``, ``bf16``, ``fp16`` or ``auto``, by a check on one tile. The network takes and
            returns float32 whatever it is.
        **config: What a checkpoint cannot tell, such as ``conv_scale`` of HAT.

    Returns:
        The network in eval mode. Its `card` states its facts, its `source` where the weights came from.

    Raises:
        RequestError: Unknown name or option, or another scale than the file's.
        WeightsError: The weights are absent, damaged, unsafe to open, or of no supported family.
    """
    found, _ = find_weights(source, scale)
    return build(found, scale=scale, device=device, precision=precision, **config)


def build(
    found: Resolved,
    *,
    scale: int | None = None,
    device: str = "auto",
    precision: str = "float32",
    work: int | None = None,
    **config: Any,
) -> RestorationNetwork:
    """Make the network of a file that `find_weights` found; arguments as for `load_model`.

    `work` is the number of pixels that it will be run on, for ``auto``; None where they are many or not known.

    Raises:
        RequestError, WeightsError: As `load_model`.
    """
    from restore.models import MODULES, family

    families = {name: family(name) for name in MODULES}
    network = build_network(found, open_weights(found), families, device=device, precision=precision, config=config, work=work)
    if scale is not None and network.card.scale != scale:
        raise RequestError(
            f"{found.path.name} enlarges by {network.card.scale}, not by {scale}.", hint=f"Give --scale {network.card.scale}."
        )
    return network
