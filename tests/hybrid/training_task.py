"""A tiny regression for the tests of the training loop; as a script it trains in one process or in several."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hybrid.training import Sample, Task, TrainSettings, is_first_process, train

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


def report(done: int, total: int, figures: dict[str, float]) -> None:
    print("reported", done, flush=True)  # noqa: T201


def main() -> None:
    folder, devices = Path(sys.argv[1]), int(sys.argv[2])
    average = train(tiny_task(), SETTINGS, folder, devices=devices, accelerator="cpu", on_progress=report)
    if is_first_process():
        torch.save(average.state_dict(), folder / "average.pt")
        print("wrote", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
