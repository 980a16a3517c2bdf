"""Begin a training from weights that were trained before: take what fits, leave the rest as it was initialised."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hybrid.errors import WeightsError
from hybrid.weights.containers import few


@dataclass(frozen=True)
class Report:
    """What `start_from` did, by the network's own names.

    Attributes:
        taken: Tensors that now hold the given values.
        left: Tensors that stay as they were initialised.
        unused: Given tensors that the network has no place for, by name or by shape.
    """

    taken: tuple[str, ...]
    left: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """One line for a log, such as ``12 of 14 tensors taken; 2 initialised (head.weight, head.bias)``."""
        line = f"{len(self.taken)} of {len(self.taken) + len(self.left)} tensors taken"
        if self.left:
            line += f"; {len(self.left)} initialised ({few(list(self.left))})"
        if self.unused:
            line += f"; {len(self.unused)} of the file not used ({few(list(self.unused))})"
        return line


@torch.no_grad()
def start_from(network: nn.Module, state: Mapping[str, Tensor], *, rename: Callable[[str], str] | None = None) -> Report:
    """Copy into a network the tensors that fit it by name and shape; integers go to integers, floats to floats.

    Values are converted to the network's types, so weights stored as float16 start a float32 training.

    Args:
        network: An initialised network; changed in place.
        state: Tensors by name, as `hybrid.weights.checkpoints.read_checkpoint` gives them.
        rename: From a name of `state` to the network's own; None where they are the same.

    Raises:
        WeightsError: No trainable tensor fits, which means weights of another network; the network is then unchanged.

    >>> network, trained = nn.Linear(3, 2), nn.Linear(3, 2, bias=False)
    >>> report = start_from(network, trained.state_dict())
    >>> report.taken, report.left, bool((network.weight == trained.weight).all())
    (('weight',), ('bias',), True)
    """
    own = network.state_dict()
    given = {rename(name) if rename else name: tensor for name, tensor in state.items()}
    taken = tuple(name for name, tensor in own.items() if name in given and _fits(given[name], tensor))
    if not {name for name, _ in network.named_parameters()} & set(taken):
        raise WeightsError(
            f"None of the {len(given)} tensors to start from fits {type(network).__name__} (they begin {few(list(given))}).",
            hint="Give weights of the same family with the same widths.",
        )
    for name in taken:
        own[name].copy_(given[name])  # a state dict shares its memory with the network
    return Report(
        taken=taken,
        left=tuple(name for name in own if name not in taken),
        unused=tuple(name for name in given if name not in taken),
    )


def _fits(given: Tensor, own: Tensor) -> bool:
    return given.shape == own.shape and given.is_floating_point() == own.is_floating_point()
