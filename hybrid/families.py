"""What pictures and scans share in how networks are told apart, built and named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from hybrid.errors import RequestError
from hybrid.loading import WeightsSource
from hybrid.precision.check import Trial, Verdict
from hybrid.weights.keys import KeyMap

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""Types in which a network may compute besides float32, by the names that users give."""


class _Card(Protocol):
    @property
    def low_precision(self) -> tuple[str, ...]: ...


class Network(nn.Module):
    """Base of all networks that are loaded by name or from a file.

    Attributes:
        card: Its facts; a subclass says which class of card.
        precision: What it computes in: ``float32``, ``bf16`` or ``fp16``. It takes and returns float32 whatever it is.
        source: Where its weights came from; None for a network that was not loaded.
        precision_verdict: Why it computes in that precision, where this was left to the program.
    """

    card: _Card
    precision: str = "float32"
    source: WeightsSource | None = None
    precision_verdict: Verdict | None = None

    def loaded(self) -> None:
        """Called once when the weights of a file are in: what options ask of the weights themselves."""

    def trial(self) -> Trial | None:
        """A small tile that tells whether a lower precision does, on the network's device; None where none can tell."""
        return None


N = TypeVar("N", bound=Network)
C = TypeVar("C", bound="DataclassInstance")


@dataclass(frozen=True)
class Family(Generic[N]):
    """How files of one architecture are told, built and named. One stands in each model's file, as `FAMILY`.

    Attributes:
        name: Registry name.
        matches: True for a state dict, under its published keys, of this family.
        build: A network of the configuration that a state dict's keys and shapes tell; options override the rest.
        create: A network of a configuration given in full, for training.
        options: Names that `build` takes: what a file cannot tell.
        in_weights: Those of them that change the weights when these are loaded: a file that is written later needs them no more.
        keys: Published names of the parameters and ours.
        derived: Last parts of published entries that the network computes itself and a loader ignores.
        canonical: A published state dict in the form that the network holds: one of each tensor that files have under several
            names, and one of several namings.
    """

    name: str
    matches: Callable[[Mapping[str, Tensor]], bool]
    build: Callable[..., N]
    create: Callable[..., N]
    options: tuple[str, ...]
    keys: KeyMap
    derived: tuple[str, ...] = ()
    in_weights: tuple[str, ...] = ()
    canonical: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict


def build_from(network: Callable[[C], N], read_config: Callable[[Mapping[str, Tensor]], C]) -> Callable[..., N]:
    """`Family.build` of networks whose configuration a state dict tells, but for options that are fields of it too."""

    def build(state: Mapping[str, Tensor], **options: Any) -> N:
        return network(replace(read_config(state), **options))

    return build


def create_from(network: Callable[[C], N], config: Callable[..., C]) -> Callable[..., N]:
    """`Family.create` of networks whose options are the fields of their configuration."""

    def create(**options: Any) -> N:
        return network(config(**options))

    return create


def created(family: Family[N], options: Mapping[str, Any]) -> N:
    """A network by the options of a recipe.

    Raises:
        RequestError: The family does not take them.
    """
    try:
        return family.create(**options)
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError, StopIteration) as error:
        told = f"{type(error).__name__} {error}".strip()
        raise RequestError(f"The network options do not fit {family.name}: {told}.", hint="Correct `network.options`.") from error
