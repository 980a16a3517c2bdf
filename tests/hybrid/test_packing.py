"""Weights in a byte each."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from hybrid.errors import WeightsError
from hybrid.weights.checkpoints import read_checkpoint
from hybrid.weights.containers import write_checkpoint
from hybrid.weights.packing import MARK, pack_rows, unpack_rows


def weights() -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(8, 16, 3, 3, 4)) * 10.0 ** rng.integers(-4, 4, size=(8, 1, 1, 1, 1))
    kernel[3] = 0
    return {
        "kernel": torch.from_numpy(kernel).float(),
        "bias": torch.from_numpy(rng.normal(size=8)).half(),
        "norm.weight": torch.ones(5000),
        "table": torch.arange(8192).view(64, 128),
    }


def test_each_row_is_rounded_by_its_own_range() -> None:
    state = weights()
    back = unpack_rows(pack_rows(state))
    assert back.keys() == state.keys()
    before, after = (each["kernel"].numpy().astype(np.float64).reshape(8, -1) for each in (state, back))
    steps = np.abs(before).max(1) / 127
    assert (np.abs(after - before).max(1) <= steps * 0.500001).all() and (after[3] == 0).all()
    assert (np.abs(after - before).max(1)[steps > 0] > 0).all()
    for name in ("bias", "norm.weight", "table"):  # small ones, vectors and whole numbers stay as they are
        assert back[name].dtype == state[name].dtype and torch.equal(back[name], state[name])


def test_a_file_of_bytes_is_read_as_floats(tmp_path: Path) -> None:
    state, path = weights(), tmp_path / "w.safetensors"
    write_checkpoint(path, pack_rows(state), dict([MARK]) | {"protocol": "{}"})
    assert load_file(path)["kernel"].dtype == torch.int8
    read = read_checkpoint(path)
    found = read.state
    assert found.keys() == state.keys() and read.metadata["protocol"] == "{}"
    torch.testing.assert_close(found["kernel"], unpack_rows(pack_rows(state))["kernel"], rtol=0, atol=0)
    assert sum(tensor.nbytes for tensor in load_file(path).values()) == 8 * 16 * 36 + 8 * 4 + 8 * 2 + 5000 * 4 + 8192 * 8


def test_bytes_without_the_mark_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(4, 4, dtype=torch.int8), "a#scale": torch.ones(4)}, path)
    found = read_checkpoint(path).state
    assert found["a"].dtype == torch.int8 and "a#scale" in found


def test_scales_that_do_not_fit_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"a": torch.ones(4, 4, dtype=torch.int8), "a#scale": torch.ones(3)}, path, metadata=dict([MARK]))
    with pytest.raises(WeightsError, match=r"w\.safetensors is damaged: the scales of a"):
        read_checkpoint(path)
