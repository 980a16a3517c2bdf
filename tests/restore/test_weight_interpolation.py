"""`restore models interpolate`, judged by numpy, and its result as a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from hybrid.errors import WeightsError
from hybrid.weights.checkpoints import read_checkpoint, write_checkpoint
from restore import load_model
from restore.loading import find_weights
from restore.weight_interpolation import interpolate
from tests.command import files, restore


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The shipped network, and the same one with other numbers."""
    found, _ = find_weights("hat-compact", 4)
    state = read_checkpoint(found.path).state
    generator = torch.Generator().manual_seed(2)
    other = {
        k: v.float() + 0.01 * torch.randn(v.shape, generator=generator) if v.is_floating_point() else v for k, v in state.items()
    }
    write_checkpoint(tmp_path / "a.safetensors", state)
    write_checkpoint(tmp_path / "b.safetensors", other)
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def test_each_tensor_lies_between_and_the_result_is_a_network(pair: tuple[Path, Path], tmp_path: Path) -> None:
    target = tmp_path / "c.safetensors"
    said = restore("models", "interpolate", *pair, "--weight", "0.3", "-o", target)
    assert said.code == 0 and said.out.strip() == str(target)
    a, b, c = (safetensors.numpy.load_file(path) for path in (*pair, target))
    assert set(a) == set(c)
    for name in c:
        np.testing.assert_allclose(c[name], 0.7 * a[name].astype(float) + 0.3 * b[name], rtol=1e-6, atol=1e-7)
    told = read_checkpoint(target).metadata
    assert told["first"] == "a.safetensors" and told["second_sha256"] == read_checkpoint(pair[1]).sha256
    assert float(told["weight"]) == 0.3
    with torch.inference_mode():
        assert load_model(target, device="cpu")(torch.rand(1, 3, 16, 16)).shape == (1, 3, 64, 64)


def test_the_ends_are_the_files_themselves() -> None:
    a, b = (
        {"w": torch.tensor([0.1, 7.0]), "index": torch.tensor([1])},
        {"w": torch.tensor([0.7, -3.0]), "index": torch.tensor([1])},
    )
    assert torch.equal(interpolate(a, b, 0.0)["w"], a["w"]) and torch.equal(interpolate(a, b, 1.0)["w"], b["w"])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"w": torch.zeros(3)}, "only one has index"),
        ({"w": torch.zeros(2), "index": torch.tensor([1])}, "shapes of w"),
        ({"w": torch.zeros(3), "index": torch.tensor([2])}, "tables index"),
    ],
)
def test_two_configurations_are_refused(other: dict[str, torch.Tensor], words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        interpolate({"w": torch.zeros(3), "index": torch.tensor([1])}, other, 0.5)


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--weight", "1.5", "-o", "c.safetensors"), 2, "0 to 1"),
        (("--weight", "nan", "-o", "c.safetensors"), 2, "0 to 1"),
        (("--weight", "0.5", "-o", "c.pth"), 2, "c.safetensors"),
        (("--weight", "0.5", "-o", "a.safetensors", "--overwrite"), 2, "one of the inputs"),
        (("--weight", "0.5", "-o", "there.safetensors"), 6, "--overwrite"),
        (("--weight", "0.5", "-o", "no/c.safetensors"), 6, "could not be written"),
    ],
)
def test_what_cannot_be_done_is_said(
    options: tuple[str, ...], code: int, words: str, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = pair[0].parent
    (folder / "there.safetensors").touch()
    monkeypatch.chdir(folder)
    before = files(folder)
    said = restore("models", "interpolate", "a.safetensors", "b.safetensors", *options)
    assert said.code == code and words in said.err and files(folder) == before
