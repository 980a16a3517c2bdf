"""What `restore doctor` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from restore.doctor import report


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home" / "ann"
    (folder / "pictures").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.setenv("HYBRID_CACHE", str(folder / "cache"))
    monkeypatch.chdir(folder / "pictures")
    return folder


def test_it_names_versions_machine_weights_and_rights(home: Path) -> None:
    text = report()
    assert f"torch {torch.__version__}" in text and "libvips 8." in text and "instruction_sets: " in text
    assert "hat-compact: shipped" in text and "hat: not here" in text
    assert "cache: ~/cache (writable)" in text and "this folder: writable" in text
    assert "picture formats: png, jpeg, tiff, webp, avif" in text
    assert "offline: yes" in text


def test_it_tells_no_home_folder_and_no_password(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTORE_MIRROR", "https://ann:secret@mirror.example/weights")
    text = report()
    assert str(home) not in text and "ann" not in text and "secret" not in text
    assert "mirror: mirror.example" in text


def test_it_makes_nothing(home: Path) -> None:
    before = sorted(home.rglob("*"))
    report()
    assert sorted(home.rglob("*")) == before


def test_a_folder_that_takes_no_files_is_told(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "this folder: NOT writable" in report()


def test_the_default_cache_is_told_without_the_users_name(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYBRID_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert "cache: ~" in report()
