"""`--model auto`: the best network that is here and quick enough."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from hybrid.errors import RequestError
from hybrid.weights.catalogue import Catalogue
from hybrid.weights.find import Store
from restore.restoration import choice
from restore.restoration.choice import choose_model


def entry(files: dict[int, dict[str, Any]]) -> dict[str, Any]:
    said = {"family": "hat", "task": "super-resolution", "title": "T", "summary": "S", "code_licence": "MIT"}
    return said | {"weights_licence": "unknown", "training_data": "none", "files": files}


def weights(name: str, parameters: int, psnr: float | None, *, shipped: bool = False) -> dict[str, Any]:
    file: dict[str, Any] = {"name": name, "parameters": parameters}
    file |= {"shipped": name} if shipped else {"page": "https://example.org"}
    return file | ({"published": {"set14": {"psnr": psnr}}} if psnr else {})


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Catalogue:
    """A small and a middling network that ship, a large one and a GAN that do not; one core of the measured speed."""
    monkeypatch.setattr(choice, "_cores", lambda: 1)
    models = {
        "small": entry({4: weights("small.bin", 300_000, 27.0, shipped=True)}),
        "middling": entry({4: weights("middling.bin", 900_000, 27.5, shipped=True)}),
        "large": entry({2: weights("large2.bin", 20_000_000, 34.0), 4: weights("large.bin", 20_000_000, 29.0)}),
        "gan": entry({4: weights("gan.bin", 100_000, None, shipped=True)}),
    }
    (tmp_path / "catalogue.yaml").write_text(yaml.safe_dump({"format": 1, "models": models}))
    for name in ("small.bin", "middling.bin", "gan.bin"):
        (tmp_path / name).write_bytes(name.encode())
    return Catalogue.load(tmp_path / "catalogue.yaml", tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache", offline=True)


def put(store: Store, name: str) -> None:
    store.folder.mkdir(exist_ok=True)
    (store.folder / name).write_bytes(b"weights")


def test_the_best_that_is_here(known: Catalogue, store: Store) -> None:
    chosen = choose_model(known, store, wanted=4, pixels=250_000, device="cpu")
    assert chosen.name == "middling"
    assert "best of 2" in chosen.reason and "27.50 dB" in chosen.reason


def test_a_cached_one_counts_where_the_device_carries_it(known: Catalogue, store: Store) -> None:
    put(store, "large.bin")
    assert choose_model(known, store, wanted=4, pixels=250_000, device="cuda:0").name == "large"
    on_cpu = choose_model(known, store, wanted=4, pixels=250_000, device="cpu")
    assert on_cpu.name == "middling" and "large would take" in on_cpu.reason


def test_a_large_picture_takes_a_quicker_one(known: Catalogue, store: Store) -> None:
    chosen = choose_model(known, store, wanted=4, pixels=4_000_000, device="cpu")
    assert chosen.name == "small" and "middling would take" in chosen.reason


def test_the_quickest_where_none_is_quick(known: Catalogue, store: Store) -> None:
    assert choose_model(known, store, wanted=4, pixels=10**9, device="cpu").name == "small"


def test_damaged_weights_do_not_count(known: Catalogue, store: Store) -> None:
    put(store, "large.bin")
    assert choose_model(known, store, wanted=4, pixels=100, device="cpu").name == "large"  # its hash is now recorded
    (store.folder / "large.bin").write_bytes(b"changed")
    assert choose_model(known, store, wanted=4, pixels=100, device="cpu").name == "middling"


def test_a_scale_that_none_has_takes_the_next_larger(known: Catalogue, store: Store) -> None:
    assert choose_model(known, store, wanted=2, pixels=100, device="cpu").name == "middling"  # x4, then shrunk
    put(store, "large2.bin")
    assert choose_model(known, store, wanted=1.5, pixels=100, device="cpu").name == "large"
    assert choose_model(known, store, wanted=8, pixels=100, device="cpu").name == "middling"


def test_none_here(known: Catalogue, store: Store, tmp_path: Path) -> None:
    for name in ("small.bin", "middling.bin"):
        (tmp_path / name).unlink()
    with pytest.raises(RequestError, match="scale 4 is on this computer"):
        choose_model(known, store, wanted=4, pixels=100, device="cpu")
