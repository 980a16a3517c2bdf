"""A tiny regression for the tests of the training loop; as a script it trains in one process or in several.

    training_task.py FOLDER DEVICES [FAULT AT RANK]

FAULT befalls the process RANK in its step number AT: `raise`, `kill` (as kill -9 does) or `stop` (it falls silent).
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.errors import HybridError, InputError
from hybrid.training.loop import Sample, Task, TrainSettings, train
from hybrid.training.processes import is_first_process, together

SETTINGS = TrainSettings.model_validate(
    {"steps": 10, "batch": 4, "learning_rate": 0.01, "clip": 0.5, "ema": 0.9, "log_every": 5, "validate_every": 5}
)
WEIGHTS = np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32)


def sample(rng: np.random.Generator) -> Sample:
    x = rng.normal(size=3).astype(np.float32)
    return x, WEIGHTS @ x


def validate(network: nn.Module) -> dict[str, float]:
    assert not network.training
    x = torch.linspace(-1, 1, 30).view(10, 3)
    with torch.inference_mode():
        return {"error": float(F.mse_loss(network(x), x @ torch.from_numpy(WEIGHTS).T))}


def tiny_task(network: nn.Module | None = None) -> Task:
    """A network with the same first weights whenever it is made."""
    network = network or nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return Task(network, sample, F.mse_loss, validate)


def joined_task() -> Task:
    """What is no mean over samples: a norm over the batch, and a loss that compares samples with one another.

    No bias before the norm: its gradient is rounding error alone, which AdamW would make as large as any.
    """
    task = tiny_task(nn.Sequential(nn.Linear(3, 16, bias=False), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 2)))
    return replace(task, loss=whole_batch_loss)


def whole_batch_loss(output: Tensor, target: Tensor) -> Tensor:
    output, target = together(output), together(target)
    return F.mse_loss(output, target) + F.cross_entropy(output @ target.T, torch.arange(len(output)))


class Faulty:
    """A loss in which something happens to one process."""

    def __init__(self, task: Task, fault: str, at: int, rank: int) -> None:
        self.task, self.fault, self.at, self.rank = task, fault, at, rank
        self.calls = 0

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.at and torch.distributed.get_rank() == self.rank:
            if self.fault == "raise":
                raise InputError("A scan cannot be read.", hint="Mend it.")
            os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)
        return self.task.loss(output, target)


def report(done: int, total: int, figures: dict[str, float]) -> None:
    print("reported", done, flush=True)  # noqa: T201


def main() -> None:
    folder, devices, fault = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    task = joined_task() if folder.name.startswith("joined") else tiny_task()
    if fault:
        task = replace(task, loss=Faulty(task, fault[0], int(fault[1]), int(fault[2])))
    try:
        average = train(task, SETTINGS, folder, devices=devices, accelerator="cpu", on_progress=report)
    except HybridError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if is_first_process():
        torch.save(average.state_dict(), folder / "average.pt")
        print("wrote", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
