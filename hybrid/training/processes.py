"""The processes of one training: how they are started, what they share, and how all of them end when one does.

Lightning Fabric (extra `train`) starts them or finds those that `torchrun` has started, and averages gradients. What a
batch is one of, beyond the mean over its samples, is joined here, so that a loss does not depend on their number.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hybrid.errors import RequestError, ResourceError

PATIENCE = "HYBRID_PATIENCE"
"""Environment variable: seconds that a process waits for the others, half an hour by default. A validation, which the first
process makes alone, must take less."""
_LOST = ("gloo", "connection closed by peer", "connection reset by peer", "socket", "nccl", "timed out")
_PARENT_DEATH = 1  # PR_SET_PDEATHSIG, prctl(2)


def is_first_process() -> bool:
    """Whether this process is the one that writes and tells: of several in one training, only the first.

    Right before they have found one another too, since who starts them numbers them.
    """
    if _joined():
        return distributed.get_rank() == 0
    return int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))) == 0


def processes_here(devices: int = 1) -> int:
    """How many processes of the training share this machine: those of `torchrun`, or else as many as devices are asked for.

    Raises:
        RequestError: Both are given, and differ.
    """
    if not _by_torchrun():
        return devices
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    if devices not in (1, here):
        raise RequestError(
            f"torchrun has started {here} processes, and --devices asks for {devices}.", hint="Leave --devices out."
        )
    return here


def start(precision: str, devices: int, accelerator: str) -> Any:
    """A Fabric whose processes run: this one, those that `torchrun` has started, or `devices` of this machine.

    Raises:
        RequestError: Lightning Fabric is not installed, or the machines have not the same number of processes.
    """
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.strategies import DDPStrategy
    except ImportError as error:
        raise RequestError(
            "Training needs Lightning Fabric, which is not installed.", hint="pip install 'hybrid-imaging[train]'"
        ) from error
    here = processes_here(devices)
    everywhere = int(os.environ["WORLD_SIZE"]) if _by_torchrun() else here
    if everywhere % here:
        raise RequestError(f"{everywhere} processes are not {here} on each machine.", hint="Start as many on each machine.")
    place: dict[str, Any] = {"accelerator": accelerator, "devices": here, "num_nodes": everywhere // here}
    if everywhere > 1:
        place["strategy"] = DDPStrategy(timeout=timedelta(seconds=float(os.environ.get(PATIENCE, 1800))))
    if precision != "32-true":
        place["plugins"] = _mixed(precision, Fabric(accelerator=accelerator, devices=1).device.type)
    fabric = Fabric(**place)
    _end_with_starter()
    with ending_together(everywhere):
        fabric.launch()
    return fabric


def _mixed(precision: str, device: str) -> Any:
    """Fabric's mixed precision, but for the input, which it would round: a picture in bfloat16 has fewer than 256 levels."""
    from lightning_fabric.plugins.precision import MixedPrecision

    class WholeInput(MixedPrecision):
        def convert_input(self, data: Any) -> Any:
            return data

    return WholeInput(precision, device)  # type: ignore[arg-type]


# How they end ----------------------------------------------------------------------------------------------------


@contextmanager
def ending_together(processes: int) -> Iterator[None]:
    """Within the block, one of several processes that ends or falls silent ends the others, with an error that says so.

    Raises:
        ResourceError: Another process has ended, or kept this one waiting for longer than `PATIENCE`.
    """
    try:
        yield
    except RuntimeError as error:  # gloo raises no type of its own
        said = str(error).strip().partition("\n")[0][:160]
        if processes > 1 and (isinstance(error, distributed.DistError) or any(word in str(error).lower() for word in _LOST)):
            raise ResourceError(
                f"Another process of this training has ended or does not answer ({said}).",
                hint="See what it says; the same command goes on from the last checkpoint.",
            ) from error
        raise


def _end_with_starter() -> None:
    """Let the system end a process when the one that has started it for a training ends, be it by `kill -9` (Linux alone)."""
    by_first = "MASTER_ADDR" in os.environ and int(os.environ.get("LOCAL_RANK", "0")) > 0
    if sys.platform.startswith("linux") and (_by_torchrun() or by_first):
        ctypes.CDLL(None).prctl(_PARENT_DEATH, signal.SIGKILL)


# What they share -------------------------------------------------------------------------------------------------


def processes() -> int:
    """How many processes train together, on all machines."""
    return distributed.get_world_size() if _joined() else 1


def together(share: Tensor) -> Tensor:
    """The shares (B, ...) of all processes in one tensor (processes * B, ...), the first process' first; gradients flow back.

    For losses that are no mean over samples. Every process must call it.
    """
    if processes() == 1:
        return share
    rank, nothing = distributed.get_rank(), torch.zeros_like(share)
    return summed(torch.cat([share if place == rank else nothing for place in range(processes())]))


def summed(value: Tensor) -> Tensor:
    """The sum over all processes, of any shape, with its gradient; every process must call it.

    >>> summed(torch.ones(2))
    tensor([1., 1.])
    """
    if processes() == 1:
        return value
    total: Tensor = _Sum.apply(value)  # type: ignore[no-untyped-call]
    return total


class _Sum(torch.autograd.Function):
    """Each process has a loss of its own, and all losses together are what is minimised: gradients are summed as well."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def share_statistics(network: nn.Module) -> None:
    """Let batch norms take the statistics of the whole batch, over all processes; names of weights and buffers stay."""
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.forward = partial(_batch_norm, module)  # type: ignore[method-assign]


def _batch_norm(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm (S. Ioffe and C. Szegedy, arXiv 1502.03167) of (B, C, ...) over the batches of all processes."""
    if not norm.training:
        return type(norm).forward(norm, x)
    axes, line = [0, *range(2, x.ndim)], (1, -1) + (1,) * (x.ndim - 2)
    count = x.numel() // x.shape[1] * processes()
    values = x.float()
    mean = summed(values.sum(axes)) / count
    centred = values - mean.view(line)
    variance = summed(centred.square().sum(axes)) / count
    if norm.track_running_stats:
        assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.detach(), momentum)
        norm.running_var.lerp_(variance.detach() * (count / max(1, count - 1)), momentum)
    y = centred * (variance + norm.eps).rsqrt().view(line)
    if norm.affine:
        y = y * norm.weight.view(line) + norm.bias.view(line)
    return y.to(x.dtype)


def _by_torchrun() -> bool:
    return distributed.is_available() and distributed.is_torchelastic_launched()


def _joined() -> bool:
    return distributed.is_available() and distributed.is_initialized()
