"""HAT and DRCT with an absolute position embedding: one picture size, and no tiles of larger ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid.errors import RequestError, WeightsError
from restore import load_model, restore_picture
from restore.exporting import sides_of
from restore.images import Picture
from restore.models import family
from restore.restoration.run import RunSettings
from tests.restore.parity import draw
from tests.restore.test_query_scale import SMALL

NAMES = ("hat", "drct")
EDGE = 16


def state_of(name: str, **options: object) -> dict[str, Tensor]:
    kind = family(name)
    network = kind.create(**SMALL[name], **options)
    return {
        key: draw(key, list(value.shape), 0)
        for ours, value in network.state_dict().items()
        if (key := kind.keys.to_published(ours))
    }


def with_table(state: dict[str, Tensor], edge: int = EDGE) -> dict[str, Tensor]:
    return state | {"absolute_pos_embed": draw("absolute_pos_embed", [1, edge**2, 12], 0)}


def saved(state: dict[str, Tensor], path: Path) -> Path:
    torch.save({"params_ema": state}, path)
    return path


@pytest.mark.parametrize("sides", [(16, 16), (15, 13), (8, 32)])  # as many positions, once filled up to windows
@pytest.mark.parametrize("patch_norm", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_embedding_is_added_after_the_norm(name: str, patch_norm: bool, sides: tuple[int, int], tmp_path: Path) -> None:
    """To the tokens in row-major order; all else is as without."""
    state = state_of(name, patch_norm=patch_norm)
    file = with_table(state)
    table = file["absolute_pos_embed"]
    plain = load_model(saved(state, tmp_path / "plain.pth"), device="cpu")
    x = draw("x", [2, 3, *sides], 0)

    def added(_: nn.Module, __: tuple[Tensor, ...], tokens: Tensor) -> Tensor:
        return (tokens.flatten(1, 2) + table).view(tokens.shape)

    with torch.inference_mode():
        network, before = load_model(saved(file, tmp_path / "x.pth"), device="cpu"), plain(x)
        plain.get_submodule("embed_norm").register_forward_hook(added)
        expected = plain(x)
        torch.testing.assert_close(network(x), expected, atol=1e-6, rtol=1e-6)
    assert (expected - before).abs().max() > 1e-3
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)  # with gradients, by the other path


@pytest.mark.parametrize("name", NAMES)
def test_other_sizes_and_tiles_are_refused(name: str, tmp_path: Path) -> None:
    network = load_model(saved(with_table(state_of(name)), tmp_path / "x.pth"), device="cpu")
    for sides in ((16, 20), (8, 8), (32, 32)):
        with pytest.raises(ValueError, match=f"with as many positions as 16 x 16; this one is {sides[1]} x {sides[0]},"):
            network(torch.rand(1, 3, *sides))
    assert network.card.fixed_size == EDGE and sides_of(network, None).fixed == (EDGE, EDGE)
    trial = network.trial()
    assert trial is not None and trial.x.shape[-2:] == (EDGE, EDGE)
    for tile in (EDGE, "auto"):
        with pytest.raises(RequestError, match="it takes 16 x 16 pixels alone, and no tiles"):
            restore_picture(network, Picture(np.zeros((40, 40, 3), np.uint8)), RunSettings(tile=tile))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_training_patch_is_told_by_the_positions(name: str, tmp_path: Path) -> None:
    """So that a patch of one window, which is not shifted, needs no option."""
    option = {"hat": {"img_size": 4}, "drct": {"shifted": False}}[name]
    plain = load_model(saved(state_of(name), tmp_path / "plain.pth"), device="cpu", **option)
    network = load_model(saved(with_table(state_of(name), 4), tmp_path / "x.pth"), device="cpu")
    plans = [
        [m.shift for m in each.modules() if isinstance(getattr(m, "shift", None), (int, tuple))] for each in (network, plain)
    ]
    assert plans[0] == plans[1] and set(plans[0]) <= {0, (0, 0)}
    config = load_model(saved(with_table(state_of(name)), tmp_path / "y.pth"), device="cpu").config
    assert config.positions == EDGE and getattr(config, "shifted", True)


@pytest.mark.parametrize("name", NAMES)
def test_positions_that_are_no_square_are_refused(name: str, tmp_path: Path) -> None:
    state = state_of(name) | {"absolute_pos_embed": torch.ones(1, 60, 12)}
    with pytest.raises(WeightsError, match="60 positions are no square"):
        load_model(saved(state, tmp_path / "x.pth"), device="cpu")
