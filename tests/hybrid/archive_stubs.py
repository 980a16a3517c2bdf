"""A catalogue of two models, a cache that holds their weights and an empty one."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hybrid.errors import WeightsError
from hybrid.weights.archive import Unpacked, gather, pack, unpack
from hybrid.weights.catalogue import Catalogue, Entry
from hybrid.weights.checkpoints import read_checkpoint
from hybrid.weights.find import Store

TWO, FOUR, SHIPPED = (safetensors.torch.save({"a": torch.full((1000,), float(number))}) for number in (2, 4, 9))
OTHER = safetensors.torch.save({"a": torch.zeros(1000)})


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def entry(name: str, files: dict[int, dict[str, Any]]) -> Entry:
    facts = {"family": "f", "title": "T", "summary": "S", "code_licence": "MIT", "weights_licence": "CC0-1.0"}
    return Entry.model_validate({"name": name, **facts, "training_data": "its own", "files": files})


@pytest.fixture
def catalogue(tmp_path: Path) -> Catalogue:
    """`net` with two published files, the hash of one of them known; `own`, which is shipped."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package/own.safetensors").write_bytes(SHIPPED)
    page = {"page": "https://example.org/page"}
    net = entry("net", {2: {"name": "net_x2.pth", "sha256": sha256(TWO), **page}, 4: {"name": "net_x4.pth", **page}})
    own = entry("own", {4: {"name": "own.safetensors", "shipped": "own.safetensors"}})
    return Catalogue({"net": net, "own": own}, tmp_path / "package")


@pytest.fixture
def there(tmp_path: Path) -> Store:
    """The cache from which is packed, with both files of `net`."""
    store = Store(tmp_path / "there", offline=True)
    store.folder.mkdir()
    (store.folder / "net_x2.pth").write_bytes(TWO)
    (store.folder / "net_x4.pth").write_bytes(FOUR)
    return store


@pytest.fixture
def here(tmp_path: Path) -> Store:
    """The empty cache into which is unpacked."""
    return Store(tmp_path / "here", offline=True)


@pytest.fixture
def archive(tmp_path: Path, catalogue: Catalogue, there: Store) -> Path:
    path = tmp_path / "weights.zip"
    pack(path, gather(["net", "own"], None, catalogue, there))
    return path


def readable(path: Path, entry: Entry, scale: int) -> None:
    read_checkpoint(path)


def load(archive: Path, catalogue: Catalogue, store: Store) -> list[Unpacked]:
    return unpack(archive, catalogue, store, check=readable)


def content(store: Store) -> dict[str, bytes]:
    """Everything in a cache, hidden files and folders too."""
    return {str(path.relative_to(store.folder)): path.read_bytes() for path in store.folder.rglob("*") if path.is_file()}


def fails(archive: Path, catalogue: Catalogue, store: Store, match: str) -> WeightsError:
    """The archive is refused, and the cache is as it was."""
    before = content(store)
    with pytest.raises(WeightsError, match=match) as caught:
        load(archive, catalogue, store)
    assert content(store) == before
    assert caught.value.hint and "\n" not in str(caught.value)
    assert not store.folder.exists() or not [path for path in store.folder.iterdir() if path.is_dir()]
    return caught.value


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
