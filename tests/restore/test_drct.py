"""DRCT against recorded outputs of the published network, and the loading of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid.blocks import chunks
from hybrid.errors import WeightsError
from hybrid.initialisation import SkipRandomFill
from restore import load_model
from restore.models import drct
from restore.models.drct import DRCT, FAMILY, KEYS, DRCTConfig, read_config
from tests.restore.parity import SMALL_CASES, Case, fill, largest_difference, load_case, write_checkpoint

TOLERANCE = 5e-5
"""Tighter than the cases' own: a GELU by the tanh formula would pass theirs."""

CASES = ["tiny_x2_batch2", "tiny_x3_padded"]
PUBLISHED = {
    # groups; parameters for x2, x3, x4
    "DRCT": (6, (13_991_867, 14_176_507, 14_139_579)),
    "DRCT-L": (12, (27_433_007, 27_617_647, 27_580_719)),
    "DRCT-XL": (14, (31_913_387, 32_098_027, 32_061_099)),
}
HEADS = (6, 4, 2, 6, 4)


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(SMALL_CASES / "drct" / "tiny_x3_padded")


@pytest.fixture(scope="module")
def state(case: Case) -> dict[str, Tensor]:
    return fill(case)


def saved(tree: object, path: Path) -> Path:
    torch.save(tree, path)
    return path


def run(path: Path, case: Case, **options: object) -> Tensor:
    with torch.inference_mode():
        return load_model(path, device="cpu", **options)(torch.from_numpy(case.input))


def check(folder: Path, scratch: Path) -> None:
    case = load_case(folder)
    network = load_model(write_checkpoint(case, scratch), device="cpu", precision="float32", **case.given)
    assert isinstance(network, DRCT)
    assert sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < TOLERANCE
    # With gradients the features are concatenated and nothing is in place: the same numbers by the other path.
    assert largest_difference(network(torch.from_numpy(case.input)).detach(), case) < TOLERANCE


@pytest.mark.parametrize("name", CASES)
def test_recorded_outputs(name: str, tmp_path: Path) -> None:
    check(SMALL_CASES / "drct" / name, tmp_path)


def test_recorded_outputs_of_the_published_size(shared: Path, tmp_path: Path) -> None:
    check(shared / "parity" / "drct" / "drct_x4", tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_strips_and_chunks_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    case = load_case(SMALL_CASES / "drct" / name)
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 128)
    monkeypatch.setattr(drct, "TAIL_PIXELS", 1)
    assert largest_difference(run(write_checkpoint(case, tmp_path), case), case) < TOLERANCE


@pytest.mark.parametrize("title", PUBLISHED)
def test_published_parameter_counts(title: str) -> None:
    groups, counts = PUBLISHED[title]
    for scale, count in zip((2, 3, 4), counts, strict=True):
        with SkipRandomFill():
            network = DRCT(DRCTConfig(heads=(HEADS,) * groups, scale=scale))
        assert sum(p.numel() for p in network.parameters()) == count


# Files -----------------------------------------------------------------------------------------------------------


def test_tables_in_the_file_are_ignored(case, state, tmp_path) -> None:
    """Published files hold masks and indices; wrong numbers in them must change nothing."""
    derived = {e["key"]: torch.ones(e["shape"], dtype=getattr(torch, e["dtype"])) for e in case.entries if e["kind"] == "derived"}
    assert {key.rsplit(".", 1)[1] for key in derived} == {"attn_mask", "relative_position_index"}
    expected = run(saved(state, tmp_path / "x.pth"), case)
    assert torch.equal(run(saved({"params_ema": derived | state}, tmp_path / "y.pth"), case), expected)


def test_file_of_a_training_patch_of_one_window_is_not_shifted(case, state, tmp_path) -> None:
    """It holds indices and no masks."""
    indices = {e["key"]: torch.zeros(e["shape"]) for e in case.entries if e["key"].endswith("relative_position_index")}
    assert read_config(state).shifted and not read_config(indices | state).shifted
    plain = run(saved(indices | state, tmp_path / "x.pth"), case)
    assert not torch.allclose(plain, torch.from_numpy(case.outputs[0]), atol=0.01)
    assert torch.equal(run(saved(state, tmp_path / "y.pth"), case, shifted=False), plain)


def test_names_are_those_of_the_published_file(state) -> None:
    network = FAMILY.build(state)
    assert {KEYS.to_published(key) for key in network.state_dict()} == set(state)
    assert {KEYS.to_ours(key) for key in state} == set(network.state_dict())


@pytest.mark.parametrize(
    "config",
    [
        DRCTConfig(embed_dim=12, growth=4, heads=((3, 2, 2, 3, 4), (2, 4, 5, 6, 7)), mlp_widths=(24, 20, 16, 12, 10), window=4,
                   scale=8),
        DRCTConfig(embed_dim=8, growth=8, heads=((4, 4, 4, 4, 4),), mlp_widths=(9, 8, 7, 6, 5), window=5, scale=1, in_channels=1,
                   qkv_bias=False, patch_norm=False, body_convolution=False),
    ],
)  # fmt: skip
def test_configuration_is_read_back_from_the_file(config: DRCTConfig, tmp_path: Path) -> None:
    network = DRCT(config).eval()
    published = {KEYS.to_published(key): value for key, value in network.state_dict().items()}
    assert FAMILY.matches(published) and read_config(published) == config
    x = torch.rand(2, config.in_channels, 9, 11)
    with torch.inference_mode():
        first = network(x)
        assert torch.equal(load_model(saved(published, tmp_path / "x.pth"), device="cpu")(x), first)
    torch.testing.assert_close(network(x).detach(), first, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "key",
    ["layers.0.swin3.attn.relative_position_bias_table", "layers.1.adjust5.bias", "layers.1.swin4.mlp.fc2.weight", "norm.bias"],
)
def test_file_that_lacks_a_parameter_is_refused(key, state, tmp_path) -> None:
    rest = {name: value for name, value in state.items() if name != key}
    with pytest.raises(WeightsError):
        load_model(saved(rest, tmp_path / "x.pth"), device="cpu")


def test_heads_that_do_not_share_the_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="16 channels cannot be shared by 3 heads"):
        DRCT(DRCTConfig(embed_dim=12, growth=4, heads=((3, 3, 2, 3, 4),), mlp_widths=(8,) * 5, window=4))


def test_other_networks_are_not_taken_for_drct(state) -> None:
    assert FAMILY.matches(state)
    assert not FAMILY.matches({key: value for key, value in state.items() if "adjust5" not in key})


def test_stochastic_depth_rises_by_group_and_only_trains() -> None:
    """As published: all blocks of a group have the rate of the first of its six."""
    network = DRCT(DRCTConfig(embed_dim=8, growth=4, heads=((2, 2, 2, 2, 2),) * 3, mlp_widths=(8,) * 5, window=4, scale=1,
                              drop_path=0.4))  # fmt: skip
    rates = [[block.drop_path.rate for block in group.blocks] for group in network.groups]  # type: ignore[union-attr]
    expected = np.linspace(0, 0.4, 18)[[0, 6, 12]]
    np.testing.assert_allclose(rates, np.repeat(expected[:, None], 5, 1), atol=1e-7)
    x = torch.rand(4, 3, 8, 8)
    torch.manual_seed(0)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))
