"""Building a network whose weights are about to be loaded, without drawing random ones first."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

# The initialisers that torch passes whole to a mode hide the fill inside them from it; the others show it.
_FILLS = {Tensor.normal_, Tensor.uniform_, init.kaiming_uniform_, init.normal_, init.trunc_normal_, init.uniform_}


class SkipRandomFill(TorchFunctionMode):
    """Within this context tensors are not filled with random numbers: half of the time to load a large network.

    Only for networks of which every parameter is loaded afterwards, as `hybrid.checkpoints.load_strict` makes sure.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
