"""`medical models`: what is listed, told and taken in."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medical.loading import catalogue, save_model
from medical.models import family
from tests.medical.stubs import protocol
from tests.medical.test_cli_segment import medical


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    monkeypatch.setenv("HYBRID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    return tmp_path / "cache"


def test_every_model_is_listed_with_its_licence() -> None:
    said = medical("models", "list")
    assert said.code == 0
    for entry in catalogue():
        line = next(line for line in said.out.splitlines() if f" {entry.name} " in line)
        assert ("shipped" if entry.shipped else "not here") in line and entry.weights_licence in line


def test_a_file_tells_what_it_asks_for_and_is_not_taken_for_another(tmp_path: Path, cache: Path) -> None:
    torch.manual_seed(0)
    network = family("swin_unetr").create(
        in_channels=1, out_channels=3, feature_size=12, depths=(1, 1), num_heads=(2, 4), window=3
    )
    path = tmp_path / "mine.safetensors"
    save_model(path, network, protocol=protocol(spacing=(1, 1.5, 2)))
    said = medical("models", "info", path)
    assert said.code == 0 and "1 x 1.5 x 2 mm" in said.out and "1 part 1, 2 part 2" in said.out
    absent = next(entry.name for entry in catalogue() if not entry.shipped)
    other = medical("models", "import", path, "--as", absent)
    assert other.code == 4 and "another network" in other.err and not list(cache.rglob("*.safetensors"))
    unnamed = medical("models", "import", path)
    assert unnamed.code == 2 and "--as NAME" in unnamed.err
    missing = medical("models", "path", absent)
    assert missing.code == 4 and "medical models" in missing.err
    assert medical("models", "path").out.strip().startswith(str(cache))
