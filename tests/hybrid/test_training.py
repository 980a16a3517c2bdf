"""The training loop on a tiny regression: it learns, resumes to the same numbers, and shares work among processes."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.errors import RequestError, WeightsError
from hybrid.training.loop import Task, TrainSettings, read_log, train
from tests.hybrid.training_task import SETTINGS, tiny_task

ROOT = Path(__file__).resolve().parents[2]


def settings(**changes: Any) -> TrainSettings:
    given = {"steps": 40, "batch": 8, "learning_rate": 0.02, "ema": 0.9, "log_every": 5, "validate_every": 20}
    return TrainSettings(**(given | changes))


def run(folder: Path, chosen: TrainSettings, task: Task | None = None, on_progress: Callable | None = None) -> nn.Module:
    return train(task or tiny_task(), chosen, folder, accelerator="cpu", on_progress=on_progress)


def values(network: nn.Module) -> dict[str, Tensor]:
    return network.state_dict()


def assert_same(a: nn.Module, b: nn.Module) -> None:
    assert values(a).keys() == values(b).keys()
    for name, value in values(a).items():
        assert torch.equal(value, values(b)[name]), name


# Schedule --------------------------------------------------------------------------------------------------------


def test_learning_rate_warms_up_holds_and_falls_as_a_cosine() -> None:
    chosen = settings(steps=100, learning_rate=0.4, warmup=4, hold=0.5)
    rates = [chosen.learning_rate_at(step) for step in range(100)]
    np.testing.assert_allclose(rates[:4], [0.1, 0.2, 0.3, 0.4])
    np.testing.assert_allclose(rates[4:51], 0.4)
    np.testing.assert_allclose(rates[50:], [0.2 * (1 + math.cos(math.pi * i / 50)) for i in range(50)], rtol=1e-12)
    np.testing.assert_allclose(rates[75], 0.2)
    assert 0 < rates[99] < 0.001 and chosen.learning_rate_at(100) < 1e-15 and chosen.learning_rate_at(130) < 1e-15


def test_schedule_without_warm_up_or_hold_and_with_nothing_but_hold() -> None:
    assert settings().learning_rate_at(0) == 0.02
    assert settings(hold=1.0).learning_rate_at(39) == 0.02


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch": 0}, {"learning_rate": 0}, {"hold": 1.5}, {"ema": 1.0}, {"clip": 0}, {"seed": -1}, {"stepz": 3}],
)
def test_settings_that_cannot_be_meant_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        settings(**wrong)


# Learning --------------------------------------------------------------------------------------------------------


def test_the_loss_falls_and_the_log_says_so(tmp_path: Path) -> None:
    seen: list[tuple[int, int, dict[str, float]]] = []
    run(tmp_path, settings(steps=120), on_progress=lambda *news: seen.append(news))
    rows = read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == list(range(5, 121, 5)) == [done for done, _, _ in seen]
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    validated = [row for row in rows if "error" in row]
    assert [row["step"] for row in validated] == [20, 40, 60, 80, 100, 120]
    assert validated[-1]["error"] < 0.3 * validated[0]["error"]
    with (tmp_path / "log.csv").open(newline="") as file:
        assert next(csv.reader(file)) == ["step", "loss", "lr", "seconds", "error"]
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds) and {total for _, total, _ in seen} == {120}
    assert rows[-1]["lr"] == pytest.approx(settings(steps=120).learning_rate_at(119), rel=1e-5)


def test_one_step_is_adamw_on_the_whole_batch(tmp_path: Path) -> None:
    """Against a loop written out here: the same samples, clipped gradients, decoupled weight decay, and the average."""
    chosen = settings(steps=3, clip=0.05, weight_decay=0.1, betas=(0.8, 0.95), validate_every=1)
    task = tiny_task()
    average = run(tmp_path, chosen, task)
    judge, slow = tiny_task().network, tiny_task().network
    moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in judge.named_parameters()}
    for step in range(3):
        pairs = [task.sample(np.random.default_rng([0, step, place])) for place in range(8)]
        x, y = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
        judge.zero_grad()
        F.mse_loss(judge(x), y).backward()
        gradients = {name: p.grad for name, p in judge.named_parameters()}
        norm = math.sqrt(sum(float(g.square().sum()) for g in gradients.values()))  # type: ignore[union-attr,misc]
        assert norm > 0.05  # so that clipping shows
        rate = chosen.learning_rate_at(step)
        with torch.no_grad():
            for name, p in judge.named_parameters():
                g = gradients[name] * (0.05 / (norm + 1e-6))  # type: ignore[operator]
                first, second = moments[name]
                first.mul_(0.8).add_(0.2 * g)
                second.mul_(0.95).add_(0.05 * g * g)
                p.mul_(1 - rate * 0.1)
                p.sub_(rate * (first / (1 - 0.8 ** (step + 1))) / ((second / (1 - 0.95 ** (step + 1))).sqrt() + 1e-8))
            decay = min(0.9, (step + 1) / (step + 10))
            for kept, now in zip(slow.parameters(), judge.parameters(), strict=True):
                kept.mul_(decay).add_(now * (1 - decay))
    for name, value in values(average).items():
        torch.testing.assert_close(value, values(slow)[name], atol=1e-6, rtol=1e-5)
    for name, value in values(task.network).items():
        torch.testing.assert_close(value, values(judge)[name], atol=1e-6, rtol=1e-5)
    assert not average.training and not any(p.requires_grad for p in average.parameters())


def test_batch_norm_statistics_are_those_of_the_network(tmp_path: Path) -> None:
    task = tiny_task(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    average = run(tmp_path, settings(steps=4), task)
    assert torch.equal(values(average)["1.running_mean"], values(task.network)["1.running_mean"])
    assert values(average)["1.num_batches_tracked"] == 4


def test_low_precision_trains_and_keeps_float32_weights(tmp_path: Path) -> None:
    average = run(tmp_path, settings(steps=60, precision="bf16-mixed"))
    assert {p.dtype for p in average.parameters()} == {torch.float32}
    rows = read_log(tmp_path / "log.csv")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_networks_see_their_input_as_it_is(precision: str, tmp_path: Path) -> None:
    """In bfloat16 a picture would have fewer than 256 levels; what is computed in it is autocast's affair."""
    seen: list[Tensor] = []

    class Watching(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                seen.append(x)
            return super().forward(x)

    task = tiny_task(Watching(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 2)))
    run(tmp_path, settings(steps=1, batch=4, precision=precision), task)
    expected = np.stack([task.sample(np.random.default_rng([0, 0, place]))[0] for place in range(4)])
    assert len(seen) == 1 and seen[0].dtype == torch.float32
    np.testing.assert_array_equal(seen[0].numpy(), expected)


def test_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    task = tiny_task()
    broken = Task(task.network, task.sample, lambda y, t: F.mse_loss(y, t) * math.nan, task.validate)
    with pytest.raises(RequestError, match=r"gradient is nan at step 5.*Lower the learning rate"):
        run(tmp_path, settings(), broken)
    assert not (tmp_path / "last.pt").exists()


# Resume ----------------------------------------------------------------------------------------------------------


class StoppedError(Exception):
    pass


def stop_at(step: int) -> Callable[[int, int, dict[str, float]], None]:
    def stop(done: int, total: int, figures: dict[str, float]) -> None:
        if done == step:
            raise StoppedError

    return stop


@pytest.mark.parametrize("stops", [[20], [20, 35], [30], [20, 40]])
def test_stopped_run_goes_on_to_the_same_numbers(stops: list[int], tmp_path: Path) -> None:
    """With dropout, whose draws must be the same too; stopped at a validation or between two of them."""
    chosen = settings(steps=60)

    def dropping() -> Task:
        return tiny_task(nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.2), nn.Linear(16, 2)))

    whole = dropping()
    average = run(tmp_path / "whole", chosen, whole)
    for step in stops:
        with pytest.raises(StoppedError):
            run(tmp_path / "parts", chosen, dropping(), stop_at(step))
        torch.manual_seed(step)  # the state of a fresh process
    resumed = dropping()
    assert_same(run(tmp_path / "parts", chosen, resumed), average)
    assert_same(resumed.network, whole.network)
    logs = [read_log(tmp_path / name / "log.csv") for name in ("whole", "parts")]
    assert [row | {"seconds": 0} for row in logs[0]] == [row | {"seconds": 0} for row in logs[1]]
    seconds = [row["seconds"] for row in logs[1]]
    assert seconds == sorted(seconds)  # time of the earlier runs is counted in


def test_finished_run_is_not_trained_further(tmp_path: Path) -> None:
    first = run(tmp_path, settings())
    log = (tmp_path / "log.csv").read_bytes()
    assert_same(run(tmp_path, settings()), first)
    assert (tmp_path / "log.csv").read_bytes() == log


def test_previous_checkpoint_is_kept_and_serves_when_the_last_is_gone(tmp_path: Path) -> None:
    chosen = settings(steps=60)
    average = run(tmp_path, chosen)
    steps = {name: torch.load(tmp_path / name, weights_only=True)["step"] for name in ("last.pt", "previous.pt")}
    assert steps == {"last.pt": 60, "previous.pt": 40}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "log.csv", "previous.pt"]
    (tmp_path / "last.pt").unlink()
    assert_same(run(tmp_path, chosen), average)


@pytest.mark.parametrize("kind", ["another network", "no checkpoint of a training", "no checkpoint at all"])
def test_foreign_checkpoint_is_refused(kind: str, tmp_path: Path) -> None:
    if kind == "another network":
        run(tmp_path, settings(steps=5), tiny_task(nn.Linear(3, 2)))
    elif kind == "no checkpoint of a training":
        torch.save({"params": tiny_task().network.state_dict()}, tmp_path / "last.pt")
    else:
        (tmp_path / "last.pt").write_bytes(b"weights")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(WeightsError, match=r"last\.pt in the run folder.*Give another --output folder"):
        run(tmp_path, settings())
    assert (tmp_path / "last.pt").read_bytes() == before


# Several processes -----------------------------------------------------------------------------------------------


def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Each takes half of every batch; gradients are averaged. Only the first reports and writes."""
    average = run(tmp_path / "1", SETTINGS)
    command = [sys.executable, str(ROOT / "tests" / "hybrid" / "training_task.py"), str(tmp_path / "2"), "2"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["reported 5", "reported 10", "wrote", ""]
    shared = torch.load(tmp_path / "2" / "average.pt", weights_only=True)
    for name, value in values(average).items():
        torch.testing.assert_close(shared[name], value, atol=1e-5, rtol=1e-5)
    logs = [read_log(tmp_path / str(n) / "log.csv") for n in (1, 2)]
    for a, b in zip(*logs, strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == pytest.approx(
            {k: v for k, v in b.items() if k != "seconds"}, rel=1e-4
        )


def test_batch_that_processes_cannot_share_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class TwoProcesses:
        world_size = 2

    monkeypatch.setattr("hybrid.training.loop.start", lambda *_: TwoProcesses())
    with pytest.raises(RequestError, match=r"batch of 7 cannot be shared by 2 processes.*multiple"):
        run(tmp_path, settings(batch=7))


def test_tensorboard_gets_the_figures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, settings(steps=20, tensorboard=True))
    events = EventAccumulator(str(tmp_path)).Reload()
    rows = read_log(tmp_path / "log.csv")
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 15, 20]
    np.testing.assert_allclose([event.value for event in events.Scalars("loss")], [row["loss"] for row in rows], rtol=1e-4)
    assert [event.step for event in events.Scalars("error")] == [20]
