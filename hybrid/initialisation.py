"""First weights: those of published networks, and networks whose weights are about to be loaded, without drawing any."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import init
from torch.overrides import TorchFunctionMode

# Initialisers that torch shows whole to a mode. The others, and torch's truncated normal among them, show the fill inside.
_INITIALISERS = {init.kaiming_uniform_, init.normal_, init.uniform_}
_FILLS = {Tensor.normal_, Tensor.uniform_}


class SkipRandomFill(TorchFunctionMode):
    """Within this context tensors are not filled with random numbers: half of the time to load a large network.

    Only for networks of which every parameter is loaded afterwards, as `hybrid.weights.checkpoints.load_strict` makes sure.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        if func in _FILLS:
            # Zeros, not what the memory held: torch draws a truncated normal until all is within bounds, here without end.
            return args[0].zero_()
        return func(*args, **kwargs)


def initialise_linears(network: nn.Module, std: float = 0.02) -> None:
    """Linear layers as the transformers of this package publish them: normal with this deviation, biases 0, in place.

    Published code draws from a normal distribution that is cut off at 2: a hundred standard deviations away, which no
    number of it ever reaches.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            init.normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
