"""`--precision auto` of the commands: what it comes to is said, and stands in the record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hybrid.precision import check as precision_check
from hybrid.precision.check import ENVIRONMENT, FOLDER, Verdict
from restore import load_model
from restore.loading import find_weights
from tests.command import restore, smooth

MODEL = ("--model", "cfsr-compact", "--scale", "2")


@pytest.fixture(autouse=True)
def machine_with_bf16(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hybrid.devices.has_fast_bf16", lambda device: True)
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(ENVIRONMENT)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray((255 * smooth()).astype(np.uint8)).save(path)
    return path


def record(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "out.png.json").read_text())
    return found


def test_little_work_stays_exact_without_a_check(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_check, "measure", lambda *_: pytest.fail("nothing should be measured"))
    said = restore("sr", photo, *MODEL, "-o", tmp_path / "out.png")
    assert said.code == 0 and "Computes in" not in said.err
    assert record(tmp_path)["precision"] == "float32" == record(tmp_path)["precision_check"]["precision"]
    assert "would take longer" in record(tmp_path)["precision_check"]["why"]
    assert not (tmp_path / "cache" / FOLDER).exists()


def test_an_exact_run_has_nothing_to_tell(photo: Path, tmp_path: Path) -> None:
    said = restore("sr", photo, *MODEL, "--precision", "float32", "-o", tmp_path / "out.png")
    assert said.code == 0 and "Computes in" not in said.err
    assert record(tmp_path)["precision"] == "float32" and "precision_check" not in record(tmp_path)


def test_the_environment_speaks_for_a_cluster(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, "bf16")
    assert restore("sr", photo, *MODEL, "-o", tmp_path / "out.png").code == 0
    assert record(tmp_path)["precision"] == "bf16"
    assert record(tmp_path)["precision_check"] == {"precision": "bf16", "why": f"{ENVIRONMENT} says so"}


def test_a_verdict_is_kept_beside_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def measured(*_: object) -> Verdict:
        calls.append("measured")
        return Verdict("bf16", "it is so", {"psnr": 70.0})

    monkeypatch.setattr(precision_check, "measure", measured)
    networks = [load_model("cfsr-compact", scale=2, device="cpu", precision="auto") for _ in range(2)]
    assert [network.precision for network in networks] == ["bf16", "bf16"] and calls == ["measured"]
    assert networks[1].precision_verdict == Verdict("bf16", "it is so", {"psnr": 70.0})
    assert len(list((tmp_path / "cache" / FOLDER).iterdir())) == 1
    load_model("cfsr-compact", scale=4, device="cpu", precision="auto")
    assert calls == ["measured"] * 2
    assert find_weights("cfsr-compact", 2)[0].origin == "shipped"  # the cache still works as one


def test_load_model_is_exact_unless_asked() -> None:
    network = load_model("cfsr-compact", scale=2, device="cpu")
    assert network.precision == "float32" and network.precision_verdict is None


def test_a_tile_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cfsr-compact", "espcn-compact"):
        network = load_model(name, scale=2, device="cpu")
        trial = network.trial()
        assert 64**2 <= trial.pixels <= 192**2 and trial.x.shape[1] == network.card.channels
