"""What `--precision auto` decides, on stub networks and an injected clock: no timing of this machine takes part."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid.errors import RequestError
from hybrid.families import Network
from hybrid.loading import WeightsSource
from hybrid.precision.check import ENVIRONMENT, FOLDER, LEAST_TILES, Agreement, Trial, settle, verdict_facts
from hybrid.precision.trials import near_labels, near_pictures, sample


@pytest.fixture(autouse=True)
def nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT)


@dataclass(frozen=True)
class Card:
    low_precision: tuple[str, ...] = ("bf16",)
    family: str = "stub"


class Clock:
    """Goes on by what the network that runs says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Stub(Network):
    """Takes a told time and errs by a told amount in bf16, and counts its runs."""

    def __init__(self, clock: Clock, *, error: float = 1e-4, seconds: float = 0.5, sha256: str = "a" * 64) -> None:
        super().__init__()
        self.card, self.clock, self.error, self.seconds, self.runs = Card(), clock, error, seconds, 0
        self.source = WeightsSource("stub", "stub.safetensors", sha256, "file")

    def trial(self) -> Trial:
        return Trial(sample((8, 8), 1), self.forward, lambda a, b: near_pictures(a, b, 1.0))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        low = self.precision == "bf16"
        self.clock.now += self.seconds if low else 1.0
        return x + self.error * torch.linspace(-1, 1, x.numel()).view(x.shape) if low else x


def kept(cache: Path) -> list[Path]:
    return sorted((cache / FOLDER).iterdir()) if (cache / FOLDER).exists() else []


@pytest.fixture
def stub() -> Callable[..., Stub]:
    return lambda **settings: Stub(Clock(), **settings)


def decide(network: Stub, cache: Path | None = None, work: int | None = None) -> str:
    verdict = settle(network, cache=cache, work=work, clock=network.clock)
    assert network.precision == verdict.precision and network.precision_verdict is verdict
    return verdict.precision


@pytest.mark.parametrize(
    ("error", "seconds", "expected", "why"),
    [
        (1e-4, 0.5, "bf16", "2.0 times as fast"),
        (1e-4, 0.95, "float32", "too little time"),
        (1e-4, 3.0, "float32", "too little time"),
        (0.02, 0.5, "float32", "too different"),  # 38 dB
        (float("nan"), 0.1, "float32", "not finite"),
    ],
)
def test_bf16_only_where_near_and_faster(stub, error: float, seconds: float, expected: str, why: str) -> None:
    network = stub(error=error, seconds=seconds)
    assert decide(network) == expected
    assert why in network.precision_verdict.sentence and network.precision_verdict.sentence.startswith(f"Computes in {expected}")


def test_one_value_far_off_is_too_different(stub) -> None:
    exact = torch.zeros(1, 1, 256, 256)
    other = exact.clone()
    other[..., 3, 3] = 0.2
    found = near_pictures(exact, other, 1.0)
    assert found.figures["psnr"] > 60 and not found.near


def test_the_first_verdict_stays(stub, tmp_path: Path) -> None:
    assert decide(stub(seconds=0.5), tmp_path) == "bf16"
    later = stub(seconds=5.0)  # as on a busy day
    assert decide(later, tmp_path) == "bf16" and later.runs == 0
    assert len(kept(tmp_path)) == 1


def test_other_weights_have_their_own(stub, tmp_path: Path) -> None:
    assert decide(stub(seconds=0.5), tmp_path) == "bf16"
    assert decide(stub(seconds=5.0, sha256="b" * 64), tmp_path) == "float32"
    assert len(kept(tmp_path)) == 2


def test_another_version_is_measured_anew(stub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decide(stub(), tmp_path) == "bf16"
    monkeypatch.setattr("hybrid.precision.check.versions", lambda: {"hybrid-imaging": "99"})
    assert decide(stub(seconds=5.0), tmp_path) == "float32"


def ruins() -> Iterator[bytes]:
    yield from (b"", b"{", b"\xff\xfe", b"[]", b"null", b'{"key": 1}', b'"bf16"')


@pytest.mark.parametrize("ruin", ruins())
def test_a_damaged_cache_is_written_anew(stub, tmp_path: Path, ruin: bytes) -> None:
    decide(stub(), tmp_path)
    [file] = kept(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(ruin)
    assert decide(stub(), tmp_path) == "bf16"
    assert kept(tmp_path) == [file] and file.read_bytes() == whole


@pytest.mark.parametrize("change", [{"precision": "fp16"}, {"precision": None}, {"figures": None}, {"figures": {"psnr": "high"}}])
def test_a_verdict_that_cannot_be_is_not_believed(stub, tmp_path: Path, change: dict[str, object]) -> None:
    decide(stub(), tmp_path)
    [file] = kept(tmp_path)
    facts = json.loads(file.read_text())
    facts["verdict"] |= change
    file.write_text(json.dumps(facts))
    network = stub()
    assert decide(network, tmp_path) == "bf16" and network.runs > 0


def test_a_cache_that_cannot_be_written_is_no_obstacle(stub, tmp_path: Path) -> None:
    (tmp_path / FOLDER).write_text("in the way")
    assert decide(stub(), tmp_path) == "bf16"


def test_little_work_is_not_checked(stub, tmp_path: Path) -> None:
    network = stub()
    assert decide(network, tmp_path, work=LEAST_TILES * 64 - 1) == "float32"
    assert network.runs == 0 and not kept(tmp_path)
    decide(stub(), tmp_path)  # what is known changes nothing for little work: the same request gives the same
    assert decide(stub(), tmp_path, work=64) == "float32"
    assert decide(stub(), tmp_path, work=LEAST_TILES * 64) == "bf16"


def test_slow_networks_are_run_few_times(stub) -> None:
    network = stub()  # 1.5 s a pair: patience ends after the first one
    decide(network)
    assert network.runs == 4


def test_the_environment_decides(stub, monkeypatch: pytest.MonkeyPatch) -> None:
    for told in ("float32", "bf16"):
        monkeypatch.setenv(ENVIRONMENT, told)
        network = stub()
        assert decide(network) == told and network.runs == 0
    monkeypatch.setenv(ENVIRONMENT, "fast")
    with pytest.raises(RequestError, match="Set it to float32 or bf16"):
        settle(stub())


def test_facts_for_the_record(stub) -> None:
    network = stub()
    assert verdict_facts(network) == {}
    decide(network)
    facts = verdict_facts(network)
    assert facts["precision"] == "bf16" and facts["seconds_bf16"] == 0.5 and facts["seconds_float32"] == 1.0
    assert facts["psnr"] > 60
    json.dumps(facts, allow_nan=False)


def test_a_network_without_a_trial_stays_exact() -> None:
    network = Network()
    network.card = Card()
    assert settle(network).precision == "float32"


def test_labels() -> None:
    logits = torch.zeros(1, 3, 10, 10, 10)
    logits[:, 1] = 1.0
    other = logits.clone()
    other[0, 2, 0, 0, :2] = 2.0
    assert near_labels(logits, other, regions=False).near
    other[0, 2, 0, 1, :2] = 2.0
    found = near_labels(logits, other, regions=False)
    assert not found.near and found.figures["equal_labels"] == pytest.approx(0.996)
    assert not near_labels(logits - 0.5, other - 0.5, regions=True).near
    assert isinstance(found, Agreement)


def test_the_sample_is_always_the_same() -> None:
    assert torch.equal(sample((16, 24), 3), sample((16, 24), 3))
    assert sample((4, 6, 8), 2).shape == (1, 2, 4, 6, 8)
    assert float(sample((64, 64), 3).min()) >= 0 and float(sample((64, 64), 3).max()) <= 1
