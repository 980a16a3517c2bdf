"""Several processes learn what one does, whatever starts them; when one ends, all do, and the next run goes on.

gloo on the CPU stands for any backend. Nothing here depends on how quick the machine is; what a test starts, it ends.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hybrid.errors import HybridError, RequestError, ResourceError
from hybrid.training.loop import read_log, train
from hybrid.training.processes import _batch_norm, ending_together, is_first_process, processes_here, share_statistics, together
from tests.hybrid.training_task import SETTINGS, joined_task, tiny_task

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = str(ROOT / "tests" / "hybrid" / "training_task.py")
LOST = "ResourceError: Another process of this training has ended or does not answer"
TORCHRUN = ("-m", "torch.distributed.run")
pytestmark = pytest.mark.timeout(900)  # processes take long to start where others are at work


@contextmanager
def started(*arguments: str | Path, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python of its own, in a process group that is killed in the end."""
    outside = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "NODE_RANK")}
    process = subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=outside | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(ValueError):  # read already
            process.communicate()


def ran(*arguments: str | Path, **environment: str) -> tuple[int, str, str]:
    with started(*arguments, **environment) as process:
        out, err = process.communicate()
        return process.returncode, out, err


def alone(folder: Path) -> None:
    """The same training by one process, in this one."""
    task = joined_task() if folder.name.startswith("joined") else tiny_task()
    average = train(task, SETTINGS, folder, accelerator="cpu")
    torch.save(average.state_dict(), folder / "average.pt")


def assert_same_training(folder: Path, reference: Path) -> None:
    """Weights, averaged and not, and every logged figure; sums in another order are all the difference."""
    for name in ("average.pt", "last.pt"):
        ours, theirs = (torch.load(place / name, weights_only=True) for place in (folder, reference))
        if name == "last.pt":
            assert ours["step"] == theirs["step"] and ours.keys() == theirs.keys()
            ours, theirs = ours["network"], theirs["network"]
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            torch.testing.assert_close(ours[key], value, atol=1e-5, rtol=1e-5, msg=key)
    for ours, theirs in zip(read_log(folder / "log.csv"), read_log(reference / "log.csv"), strict=True):
        assert ours | {"seconds": 0} == pytest.approx(theirs | {"seconds": 0}, rel=1e-4)


# The same result -------------------------------------------------------------------------------------------------


def test_what_is_no_mean_over_samples_is_joined_too(tmp_path: Path) -> None:
    """Batch norm, and a loss that compares the samples of a batch; `torchrun` starts the processes, and counts them."""
    alone(tmp_path / "joined-1")
    code, out, err = ran(*TORCHRUN, "--standalone", "--nproc-per-node", "2", SCRIPT, tmp_path / "joined-2", "1")
    assert code == 0, err
    assert out.split() == ["reported", "5", "reported", "10", "wrote"]
    assert_same_training(tmp_path / "joined-2", tmp_path / "joined-1")


def test_two_machines_and_a_folder_on_the_first_alone(tmp_path: Path) -> None:
    """A killed process stops both; both go on from the first machine's checkpoint, though the other has none."""
    alone(tmp_path / "whole")
    for fault in (("kill", "8", "1"), ()):
        with closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        machine = (*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "127.0.0.1", "--master-port", port)
        with (
            started(*machine, "--node-rank", "0", SCRIPT, tmp_path / "first", "1", *fault) as first,
            started(*machine, "--node-rank", "1", SCRIPT, tmp_path / "second", "1", *fault) as second,
        ):
            said = [process.communicate() for process in (first, second)]
            assert [process.returncode == 0 for process in (first, second)] == [not fault] * 2, said
        if fault:
            assert torch.load(tmp_path / "first" / "last.pt", weights_only=True)["step"] == 5
    assert said[0][0].split() == ["reported", "10", "wrote"] and not said[1][0]
    assert not list((tmp_path / "second").glob("*"))
    assert_same_training(tmp_path / "first", tmp_path / "whole")


# One ends, all end -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["raise 8 0", "raise 8 1", "kill 8 0", "kill 8 1"])
def test_when_one_ends_all_do_and_the_next_run_goes_on(fault: str, tmp_path: Path) -> None:
    """Whether the first ends or the other, by an error or by `kill -9`; resumed by one process or by two.

    What the other says is not looked at: it may be ended before it finds that it is alone.
    """
    alone(tmp_path / "whole")
    code, out, err = ran(SCRIPT, tmp_path / "run", "2", *fault.split())  # it ends: `communicate` waits for both
    assert code != 0 and out.split() == ["reported", "5"]
    if fault.startswith("raise"):
        assert "InputError: A scan cannot be read. Mend it." in err
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["last.pt", "log.csv"]
    code, out, err = ran(SCRIPT, tmp_path / "run", "1" if fault.endswith("0") else "2")
    assert code == 0 and out.split() == ["reported", "10", "wrote"], err
    assert_same_training(tmp_path / "run", tmp_path / "whole")


def test_one_that_falls_silent_is_waited_for_as_long_as_is_said(tmp_path: Path) -> None:
    code, out, err = ran(SCRIPT, tmp_path / "run", "2", "stop", "8", "1", HYBRID_PATIENCE="25")
    assert code != 0 and out.split() == ["reported", "5"] and LOST in err


def test_errors_of_several_processes_are_told_from_others() -> None:
    with pytest.raises(ResourceError, match=r"Connection closed by peer.*goes on from the last checkpoint"), ending_together(2):
        raise RuntimeError("[pair.cc:538] Connection closed by peer [127.0.0.1]:6")
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"), ending_together(2):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="closed by peer"), ending_together(1):
        raise RuntimeError("Connection closed by peer")
    with pytest.raises(HybridError, match="as it is"), ending_together(2):
        raise HybridError("as it is")


# Who is who ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "first"), [({}, True), ({"LOCAL_RANK": "1"}, False), ({"LOCAL_RANK": "0", "RANK": "2"}, False)]
)
def test_the_first_is_known_before_they_have_met(given: dict[str, str], first: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


def test_processes_are_counted_by_who_starts_them(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes_here(3) == 3
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert processes_here() == processes_here(2) == 2
    with pytest.raises(RequestError, match=r"torchrun has started 2 processes, and --devices asks for 4\. Leave --devices out"):
        processes_here(4)


# What they share -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (3, 4, 5), (2, 4, 5, 3), (2, 4, 3, 3, 2)])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_of_one_process_is_torchs(shape: tuple[int, ...], momentum: float | None) -> None:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    ours, theirs = kind(4, momentum=momentum), kind(4, momentum=momentum)
    for norm in (ours, theirs):
        nn.init.uniform_(norm.weight, generator=torch.Generator().manual_seed(1))
    share_statistics(nn.Sequential(ours))
    for seed in range(2):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3 + 10
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        weights = torch.randn(shape, generator=torch.Generator().manual_seed(9))
        (ours(a) * weights).sum().backward()
        (theirs(b) * weights).sum().backward()
        torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(a.grad, b.grad, atol=1e-5, rtol=1e-4)
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], value)
    assert ours.forward.func is _batch_norm
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_one_process_has_all_together() -> None:
    x = torch.ones(2, 3, requires_grad=True)
    assert together(x) is x
    assert F.mse_loss(together(x), torch.zeros(2, 3)) == 1
