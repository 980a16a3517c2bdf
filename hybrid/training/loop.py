"""One training loop for every network: mixed precision, several processes, EMA, resume to the same numbers.

The loop is plain; Lightning Fabric (extra `train`) only places it on devices and processes. Everything that is random
is a function of the seed, the step and the sample's place in the global batch, so that a resumed run and a run on
another number of processes see the same data.
"""

from __future__ import annotations

import csv
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from hybrid.errors import RequestError, WeightsError
from hybrid.training.processes import ending_together, share_statistics, start

Sample = tuple[np.ndarray, np.ndarray]
"""Input and target of one sample, float32, channels first."""


class TrainSettings(BaseModel):
    """How a network is optimised; part of every recipe.

    Learning rate: linear warm-up over `warmup` steps, then constant until the fraction `hold` of all steps, then a
    half cosine to zero. A run that is lengthened later repeats its constant part unchanged.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: int = Field(gt=0)
    batch: int = Field(gt=0, description="samples a step, over all processes")
    learning_rate: float = Field(gt=0)
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = Field(0.0, ge=0)
    warmup: int = Field(0, ge=0)
    hold: float = Field(0.0, ge=0, le=1)
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1)
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    seed: int = Field(0, ge=0)
    log_every: int = Field(50, gt=0)
    validate_every: int = Field(500, gt=0)
    tensorboard: bool = False

    def learning_rate_at(self, step: int) -> float:
        """The rate for the update number `step`, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        start = max(self.warmup, round(self.hold * self.steps))
        done = max(0.0, (step - start) / max(1, self.steps - start))
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


@dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        network: The network, initialised.
        sample: One training pair for a step and a place in the global batch, drawn with the generator given.
        loss: (output, target) to a scalar.
        validate: Figures of a network in eval mode, such as {"psnr": 28.1}.
    """

    network: nn.Module
    sample: Callable[[np.random.Generator], Sample]
    loss: Callable[[Any, Tensor], Tensor]
    validate: Callable[[nn.Module], dict[str, float]]


def train(
    task: Task,
    settings: TrainSettings,
    folder: Path,
    *,
    devices: int = 1,
    accelerator: str = "auto",
    on_progress: Callable[[int, int, dict[str, float]], None] | None = None,
) -> nn.Module:
    """Train and return the network of averaged weights (EMA).

    `folder` receives `log.csv` and the checkpoint `last.pt` (with the one before as `previous.pt`) at each validation;
    a run that finds a checkpoint there goes on from it.

    Args:
        devices: Processes to run on this machine, one device each. Under `torchrun`, which starts them on any number of
            machines, leave it 1; `folder` need only be the first process' then.
        on_progress: Called with steps done, all steps, and the newest figures, on the first process only.

    Raises:
        RequestError: The batch cannot be shared among the processes, or the extra `train` is not installed.
        ResourceError: Of several processes another one has ended.
        WeightsError: The checkpoint in `folder` belongs to another network.
    """
    fabric = start(settings.precision, devices, accelerator)
    with ending_together(fabric.world_size):
        return _train(task, settings, folder, fabric, on_progress)


def _train(
    task: Task,
    settings: TrainSettings,
    folder: Path,
    fabric: Any,
    on_progress: Callable[[int, int, dict[str, float]], None] | None,
) -> nn.Module:
    if settings.batch % fabric.world_size:
        raise RequestError(
            f"A batch of {settings.batch} cannot be shared by {fabric.world_size} processes.",
            hint="Give a batch that is a multiple of their number.",
        )
    average = deepcopy(task.network).eval().requires_grad_(False).to(fabric.device)
    optimizer = torch.optim.AdamW(
        task.network.parameters(), lr=settings.learning_rate, betas=settings.betas, weight_decay=settings.weight_decay
    )
    if fabric.world_size > 1:
        share_statistics(task.network)
    network, optimizer = fabric.setup(task.network, optimizer)
    step = _resume(folder, network, average, optimizer, fabric)
    log = _Log(folder, settings.tensorboard) if fabric.is_global_zero else None
    spent = log.seconds_until(step) if log else 0.0
    started, losses = time.perf_counter() - spent, []
    with ThreadPoolExecutor(1) as reader:  # the next batch is made while this one is learnt
        pending = reader.submit(_batch, task.sample, settings, step, fabric)
        while step < settings.steps:
            x, y = (t.to(fabric.device) for t in pending.result())
            pending = reader.submit(_batch, task.sample, settings, step + 1, fabric)
            torch.manual_seed(_seed(settings.seed, step, fabric.global_rank))
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate_at(step)
            loss = task.loss(network(x), y)
            fabric.backward(loss)
            learnt = loss.detach()
            if settings.clip is not None:
                norm = fabric.clip_gradients(network, optimizer, max_norm=settings.clip, error_if_nonfinite=False)
                learnt = learnt + 0 * norm  # a gradient that is not finite is told as a loss that is none, and without a wait
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            _average(average, network.module, min(settings.ema, (step + 1) / (step + 10)))
            step += 1
            losses.append(learnt)
            last = step == settings.steps
            if step % settings.log_every == 0 or step % settings.validate_every == 0 or last:
                figures = {"loss": _mean(torch.stack(losses).mean(), fabric), "lr": settings.learning_rate_at(step - 1)}
                figures["seconds"] = time.perf_counter() - started
                losses.clear()
                if not math.isfinite(figures["loss"]):
                    raise RequestError(
                        f"The loss or its gradient is {figures['loss']} at step {step}.", hint="Lower the learning rate."
                    )
                if step % settings.validate_every == 0 or last:
                    if log:
                        figures |= task.validate(average)
                        _save(folder, network, average, optimizer, step)
                    fabric.barrier()
                if log:
                    log.write(step, figures)
                    if on_progress:
                        on_progress(step, settings.steps, figures)
    return average


def _batch(
    sample: Callable[[np.random.Generator], Sample], settings: TrainSettings, step: int, fabric: Any
) -> tuple[Tensor, Tensor]:
    """This process' part of the global batch of one step."""
    share = settings.batch // fabric.world_size
    places = range(fabric.global_rank * share, (fabric.global_rank + 1) * share)
    pairs = [sample(np.random.default_rng([settings.seed, step, place])) for place in places]
    x, y = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
    return x, y


def _seed(*numbers: int) -> int:
    """One seed from several numbers, for what a network draws itself, such as stochastic depth."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


@torch.no_grad()
def _average(average: nn.Module, network: nn.Module, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), [p.detach() for p in network.parameters()], 1.0 - decay)
    for kept, now in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(now)


def _mean(value: Tensor, fabric: Any) -> float:
    return float(fabric.all_reduce(value, reduce_op="mean"))


def _save(folder: Path, network: Any, average: nn.Module, optimizer: Any, step: int) -> None:
    state = {
        "network": network.module.state_dict(),
        "average": average.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    last, part = folder / "last.pt", folder / "last.pt.part"
    with part.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())  # it is to be whole after a loss of power too
    if last.exists():
        os.replace(last, folder / "previous.pt")
    os.replace(part, last)


def _resume(folder: Path, network: Any, average: nn.Module, optimizer: Any, fabric: Any) -> int:
    """Load the newest checkpoint in `folder`, and return the step to go on from (0 when there is none).

    The first process reads it for all of them, which so begin at the same step wherever they run.
    """
    found = fabric.broadcast(_newest(folder) if fabric.is_global_zero else None)
    if found is None:
        return 0
    name, state = found
    try:
        network.module.load_state_dict(state["network"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        return int(state["step"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{name} in the run folder is no checkpoint of a training of this network.", hint="Give another --output folder."
        ) from error


def _newest(folder: Path) -> tuple[str, Any] | None:
    """Name and contents of the newest checkpoint, without contents where it cannot be read; None where there is none."""
    folder.mkdir(parents=True, exist_ok=True)
    path = next((p for p in (folder / "last.pt", folder / "previous.pt") if p.exists()), None)
    if path is None:
        return None
    try:
        return path.name, torch.load(path, map_location="cpu", weights_only=True)
    except (EOFError, RuntimeError, ValueError, UnpicklingError):
        return path.name, None


class _Log:
    """`log.csv`, one row a logged step, and TensorBoard's event file where asked for."""

    def __init__(self, folder: Path, tensorboard: bool) -> None:
        self.path = folder / "log.csv"
        self.board = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(folder))

    def seconds_until(self, step: int) -> float:
        """Seconds of training that earlier runs took to come to a step."""
        rows = read_log(self.path) if self.path.exists() else []
        return max((row["seconds"] for row in rows if row["step"] <= step), default=0.0)

    def write(self, step: int, figures: dict[str, float]) -> None:
        rows = read_log(self.path) if self.path.exists() else []
        rows = [row for row in rows if row["step"] < step] + [{"step": step, **figures}]
        names = list(dict.fromkeys(name for row in rows for name in row))
        part = self.path.with_suffix(".part")
        with part.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in rows)
        os.replace(part, self.path)
        if self.board:
            for name, value in figures.items():
                self.board.add_scalar(name, value, step)
            self.board.flush()  # the writer works in a thread of its own, and a run may stop at any time


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a training log; figures that a row lacks are left out."""
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
