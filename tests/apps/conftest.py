"""What the tests of the commands share: a cache of their own, and no network unless a test asks for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import smooth


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HYBRID_CACHE", str(folder))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.delenv("RESTORE_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small RGB picture, alone in its folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = folder / "photo.png"
    Image.fromarray(np.round(smooth() * 255).astype(np.uint8)).save(path)
    return path
