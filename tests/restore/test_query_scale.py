"""The option `qk_scale` of networks of window attention, against the formula with that factor in place of 1 / sqrt(d)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hybrid.blocks import attention, split_windows
from hybrid.errors import WeightsError
from restore import load_model
from restore.models import family
from tests.restore.parity import draw

SMALL: dict[str, dict[str, Any]] = {
    "hat": {"embed_dim": 12, "depths": (2,), "num_heads": (3,), "window": 4, "overlap_window": 6, "mlp_width": 12, "cab_width": 4,
            "squeeze_width": 3, "num_feat": 6, "scale": 2},
    "drct": {"embed_dim": 12, "growth": 4, "heads": ((3, 2, 5, 4, 7),), "mlp_widths": (9, 8, 7, 6, 5), "window": 4, "scale": 2},
    "craft": {"embed_dim": 32, "depths": (1,), "num_heads": (4,), "mlp_width": 20, "gated_width": 9, "bias_width": 2, "scale": 2},
}  # fmt: skip
WITHOUT_BIASES = {name: {**options, "qkv_bias": False} for name, options in SMALL.items()}


def saved(name: str, options: dict[str, Any], path: Path) -> Path:
    kind = family(name)
    torch.save({kind.keys.to_published(key): draw(key, list(value.shape), 0)
                for key, value in kind.create(**options).state_dict().items()}, path)  # fmt: skip
    return path


def run(path: Path, **options: Any) -> Tensor:
    with torch.inference_mode():
        return load_model(path, device="cpu", **options).result(draw("x", [1, 3, 16, 32], 0))


@pytest.mark.parametrize("options", [SMALL, WITHOUT_BIASES], ids=["biases", "none"])
@pytest.mark.parametrize("name", SMALL)
def test_factor_on_products_of_queries_and_keys(name: str, options: dict, monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    path = saved(name, options[name], tmp_path / "x.pth")
    usual, found = run(path), run(path, qk_scale=1.7)
    for nothing in (None, 0):  # 0 is read as absent, as published
        assert torch.equal(run(path, qk_scale=nothing), usual)

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        logits = q * 1.7 @ k.transpose(-1, -2)
        return torch.softmax(logits if bias is None else logits + bias, -1) @ v

    for module in (attention, split_windows):
        monkeypatch.setattr(module, "attend", attend)
    expected = run(path)
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=1e-5)
    assert (expected - usual).abs().max() > 1e-3


@pytest.mark.parametrize("name", SMALL)
def test_network_that_was_loaded_so_needs_no_option_when_it_is_written(name: str, tmp_path: Path) -> None:
    path, keys = saved(name, SMALL[name], tmp_path / "x.pth"), family(name).keys
    network = load_model(path, device="cpu", qk_scale=1.7)
    network.loaded()  # once is enough
    torch.save({keys.to_published(key): value for key, value in network.state_dict().items()}, tmp_path / "y.pth")
    assert torch.equal(run(tmp_path / "y.pth"), run(path, qk_scale=1.7))


def test_what_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="could not convert string to float: 'wide'"):
        run(saved("hat", SMALL["hat"], tmp_path / "x.pth"), qk_scale="wide")


def test_what_is_no_factor_is_refused(tmp_path: Path) -> None:
    path = saved("drct", SMALL["drct"], tmp_path / "x.pth")
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(WeightsError, match="is no factor"):
            run(path, qk_scale=wrong)
