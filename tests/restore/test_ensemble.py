"""The self-ensemble against a plain numpy version of it, and what `restore sr --ensemble` makes and records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from hybrid.cards import ModelCard
from restore import load_model
from restore.images import Picture, read_picture
from restore.models.base import RestorationNetwork
from restore.restoration.ensemble import SelfEnsemble
from restore.restoration.run import RunSettings, restore_file, restore_picture
from tests.command import COMPACT, restore, smooth


class Filter(RestorationNetwork):
    """A 3 x 3 filter of every channel, then each pixel twice along each side."""

    def __init__(self, kernel: list[list[float]]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(kernel).expand(3, 1, 3, 3), requires_grad=False)
        self.calls = 0
        self.card = ModelCard("filter", "Filter", "none", "none", 2, 3, 1, 8, False, 10)

    def restore(self, x: Tensor) -> Tensor:
        self.calls += 1
        return F.interpolate(F.conv2d(x, self.weight, padding=1, groups=3), scale_factor=2)


EVEN = [[0.0, 0.1, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.0]]  # the same from all eight sides
UNEVEN = [[0.0, 0.5, 0.0], [0.0, 0.2, 0.3], [0.0, 0.0, 0.0]]


def by_hand(run: Callable[[np.ndarray], np.ndarray], x: np.ndarray) -> np.ndarray:
    """Mean over four turns, each with and without a mirror; (B, C, H, W)."""
    results = []
    for turns in range(4):
        for mirror in (False, True):
            view = np.rot90(x[..., ::-1] if mirror else x, turns, (-2, -1))
            y = np.rot90(run(np.ascontiguousarray(view)), -turns, (-2, -1))
            results.append(y[..., ::-1] if mirror else y)
    return np.mean(results, axis=0, dtype=np.float64)


def picture(height: int = 9, width: int = 14) -> np.ndarray:
    return np.random.default_rng(5).random((1, 3, height, width), np.float32)


def run(network: RestorationNetwork) -> Callable[[np.ndarray], np.ndarray]:
    def call(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(x)).numpy()

    return call


def test_a_network_without_a_direction_stays_what_it_is() -> None:
    network, x = Filter(EVEN), picture()
    np.testing.assert_allclose(run(SelfEnsemble(network))(x), run(network)(x), atol=1e-6)


def test_a_network_with_a_direction_is_averaged_over_all_eight() -> None:
    network, x = Filter(UNEVEN), picture()
    result = run(SelfEnsemble(network))(x)
    assert network.calls == 8
    np.testing.assert_allclose(result, by_hand(run(Filter(UNEVEN)), x), atol=1e-6)
    assert np.abs(result - run(network)(x)).max() > 0.05


def test_the_shipped_network_is_averaged_likewise() -> None:
    network, x = load_model("hat-compact", scale=4, device="cpu"), picture(20, 24)
    ensemble = SelfEnsemble(network)
    assert not ensemble.training and ensemble.source is network.source and ensemble.card.scale == network.card.scale
    np.testing.assert_allclose(run(ensemble)(x), by_hand(run(network), x), atol=1e-5)


@pytest.mark.parametrize("tile", [None, 24])
def test_pictures_go_through_it_as_through_any_network(tile: int | None) -> None:
    colour = np.random.default_rng(6).integers(0, 256, (40, 50, 3), np.uint8)
    result = restore_picture(SelfEnsemble(Filter(UNEVEN)), Picture(colour), RunSettings(tile=tile))
    unit = colour.transpose(2, 0, 1)[None].astype(np.float32) / 255
    expected = np.round(by_hand(run(Filter(UNEVEN)), unit)[0].transpose(1, 2, 0) * 255)
    assert np.abs(result.colour - expected).max() <= 1  # values at a half may go either way


def test_a_record_says_that_it_ran(tmp_path: Path) -> None:
    source = tmp_path / "in.png"
    Image.fromarray(np.round(smooth() * 255).astype(np.uint8)).save(source)
    restore_file(SelfEnsemble(Filter(EVEN)), source, tmp_path / "out.png")
    notes = json.loads((tmp_path / "out.png.json").read_text(encoding="utf-8"))["notes"]
    assert sum("Self-ensemble" in note for note in notes) == 1


def test_the_command_takes_the_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    source = tmp_path / "in.png"
    Image.fromarray(np.random.default_rng(7).integers(0, 256, (16, 20, 3), np.uint8)).save(source)
    options = (*COMPACT, "--device", "cpu", "--precision", "float32", "-q")
    assert restore("sr", source, *options, "-o", tmp_path / "one.png").code == 0
    assert restore("sr", source, *options, "--ensemble", "-o", tmp_path / "eight.png").code == 0
    expected = restore_picture(SelfEnsemble(load_model("hat-compact", scale=4, device="cpu")), read_picture(source))
    eight = read_picture(tmp_path / "eight.png").colour
    np.testing.assert_array_equal(eight, expected.colour)
    assert (eight != read_picture(tmp_path / "one.png").colour).any()
    assert "Self-ensemble" in (tmp_path / "eight.png.json").read_text(encoding="utf-8")
    assert "Self-ensemble" not in (tmp_path / "one.png.json").read_text(encoding="utf-8")
