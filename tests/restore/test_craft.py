"""CRAFT and its blocks against recorded outputs of the published network and plain formulas, and the loading of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.blocks import chunks, transposed
from hybrid.blocks.split_windows import DynamicPositionBias
from hybrid.blocks.transposed import TransposedCrossAttention
from hybrid.errors import WeightsError
from hybrid.initialisation import SkipRandomFill
from restore import load_model
from restore.models import craft
from restore.models.craft import CRAFT, FAMILY, KEYS, CRAFTConfig, read_config
from tests.restore.parity import SMALL_CASES, Case, fill, largest_difference, load_case, write_checkpoint

TOLERANCE = 5e-5
"""Tighter than the cases' own."""

WIDE = SMALL_CASES / "craft" / "x2_wide_position_bias"
DERIVED = {"relative_position_index_h", "relative_position_index_v", "biases_h", "biases_v"}


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(WIDE)


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
    assert isinstance(network, CRAFT)
    assert sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < TOLERANCE
    # With gradients nothing is chunked, in place or in strips: the same numbers by the other path.
    assert largest_difference(network(torch.from_numpy(case.input)).detach(), case) < TOLERANCE


@pytest.mark.parametrize("name", ["x2_wide_position_bias", "x2_batch2_nonsquare"])
def test_recorded_outputs(name: str, tmp_path: Path) -> None:
    check(SMALL_CASES / "craft" / name, tmp_path)


@pytest.mark.parametrize("name", ["x2_official", "x4_official"])
def test_more_recorded_outputs(name: str, shared: Path, tmp_path: Path) -> None:
    check(shared / "parity" / "craft" / name, tmp_path)


def test_strips_and_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small ones, so that a recorded picture is cut into many."""
    case = load_case(SMALL_CASES / "craft" / "x2_batch2_nonsquare")
    path = write_checkpoint(case, tmp_path)
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", 128)
    monkeypatch.setattr(transposed, "STRIP_PIXELS", 1)
    monkeypatch.setattr(craft, "STRIP_PIXELS", 1)
    assert largest_difference(run(path, case), case) < TOLERANCE
    tall = torch.rand(1, 3, 48, 16)
    network = load_model(path, device="cpu")
    with torch.inference_mode():
        strips = network(tall)
    torch.testing.assert_close(strips, network(tall), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("scale", "count"), [(2, 737_756), (3, 744_251), (4, 753_344)])
def test_published_parameter_counts(scale: int, count: int) -> None:
    with SkipRandomFill():
        network = CRAFT(CRAFTConfig(scale=scale))
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.card.scale == scale and network.card.multiple == 16


# Files -----------------------------------------------------------------------------------------------------------


def test_tables_in_the_file_are_ignored_but_for_the_window(case, state, tmp_path) -> None:
    """Published files hold them; the offsets tell the window, and wrong indices must change nothing."""
    entries = {e["key"]: e for e in case.entries if e["kind"] == "derived"}
    assert set(entries) == DERIVED
    tables = {key: torch.zeros(e["shape"], dtype=getattr(torch, e["dtype"])) for key, e in entries.items()}
    tables["biases_h"] = torch.cartesian_prod(torch.arange(-3.0, 4), torch.arange(-15.0, 16))
    expected = run(saved(state, tmp_path / "x.pth"), case)
    assert torch.equal(run(saved({"params": tables | state}, tmp_path / "y.pth"), case), expected)
    tables["biases_h"] = torch.cartesian_prod(torch.arange(-1.0, 2), torch.arange(-7.0, 8))
    assert read_config(tables | state).split_size == (2, 8)
    assert not torch.allclose(run(saved(tables | state, tmp_path / "z.pth"), case), expected, atol=0.01)


def test_window_of_a_stripped_file_can_be_given(case, state, tmp_path) -> None:
    path = saved(state, tmp_path / "x.pth")
    assert load_model(path, device="cpu").card.multiple == 16
    assert load_model(path, device="cpu", split_size=(3, 8)).card.multiple == 24


def test_window_can_be_given_by_its_published_names(case, state, tmp_path) -> None:
    path = saved(state, tmp_path / "x.pth")
    expected = run(path, case, split_size=(2, 8))
    assert torch.equal(run(path, case, split_size_0=2, split_size_1=8), expected)
    assert torch.equal(run(path, case, split_size_0=np.int64(2), split_size_1=np.int64(8)), expected)
    assert torch.equal(run(path, case, split_size=np.array([2, 8])), expected)
    assert torch.equal(run(path, case, split_size_0=2), run(path, case, split_size=(2, 16)))
    assert not torch.allclose(expected, run(path, case), atol=0.01)


def test_names_are_those_of_the_published_file(state) -> None:
    network = FAMILY.build(state)
    assert {KEYS.to_published(key) for key in network.state_dict()} == set(state)
    network.load_state_dict({KEYS.to_ours(key): value for key, value in state.items()})
    assert all(torch.equal(value, state[KEYS.to_published(key)]) for key, value in network.state_dict().items())


def test_configuration_is_read_back_from_the_file(tmp_path: Path) -> None:
    config = CRAFTConfig(in_channels=1, embed_dim=16, depths=(1, 2), num_heads=(4, 2), mlp_width=20, gated_width=9, bias_width=2,
                         qkv_bias=False, body_convolution=False, scale=3)  # fmt: skip
    published = {KEYS.to_published(key): value for key, value in CRAFT(config).state_dict().items()}
    assert FAMILY.matches(published) and read_config(published) == config


@pytest.mark.parametrize(
    "key",
    [
        "layers.0.residual_group.srwa_blocks.1.attns.1.pos.pos3.2.bias",
        "layers.1.residual_group.hf_blocks.1.attn.temperature",
        "layers.1.residual_group.hfer_blocks.0.fc.weight",
        "upsample.0.weight",
    ],
)
def test_file_that_lacks_a_parameter_is_refused(key, state, tmp_path) -> None:
    rest = {name: value for name, value in state.items() if name != key}
    with pytest.raises(WeightsError):
        load_model(saved(rest, tmp_path / "x.pth"), device="cpu")


def test_other_networks_are_not_taken_for_craft(state) -> None:
    assert FAMILY.matches(state)
    assert not FAMILY.matches({key: value for key, value in state.items() if "temperature" not in key})


# Blocks ----------------------------------------------------------------------------------------------------------


def test_channel_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    attention = TransposedCrossAttention(6, 2).requires_grad_(False)
    attention.temperature.copy_(torch.tensor([0.7, 3.0]).view(2, 1, 1))
    queries, keys = torch.randn(2, 2, 13, 9, 6).unbind()

    def heads(convolution, depthwise, x: Tensor) -> Tensor:
        return depthwise(convolution(x.permute(0, 3, 1, 2))).flatten(2)

    q = heads(attention.q, attention.q_dwconv, queries).view(2, 2, 3, -1)
    k, v = (half.reshape(2, 2, 3, -1) for half in heads(attention.kv, attention.kv_dwconv, keys).chunk(2, 1))
    weights = torch.softmax(F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-1, -2) * attention.temperature, -1)
    expected = attention.project_out((weights @ v).view(2, 6, 13, 9)).permute(0, 2, 3, 1)
    torch.testing.assert_close(attention(queries, keys), expected, atol=1e-5, rtol=1e-5)


def test_channel_attention_of_nothing_is_finite() -> None:
    attention = TransposedCrossAttention(4, 2)
    assert bool(attention(torch.zeros(1, 8, 8, 4), torch.zeros(1, 8, 8, 4)).isfinite().all())


def test_position_bias_depends_on_the_offset_alone() -> None:
    torch.manual_seed(0)
    bias = DynamicPositionBias((2, 3), 4, 5)
    with torch.inference_mode():
        values = bias(torch.float32).numpy()
    places = np.stack(np.meshgrid(np.arange(2), np.arange(3), indexing="ij"), -1).reshape(-1, 2)
    offsets = {}
    for p, q in np.ndindex(6, 6):
        offset = tuple(places[p] - places[q])
        np.testing.assert_array_equal(values[:, p, q], offsets.setdefault(offset, values[:, p, q]))
        rows = bias.embed(torch.tensor(offset, dtype=torch.float32))
        for layer in bias.layers:
            rows = layer(rows)
        np.testing.assert_allclose(values[:, p, q], rows.detach().numpy(), atol=1e-6)
    assert len({values[0].item(i) for i in range(36)}) == len(offsets) == 15


def test_position_bias_follows_its_weights() -> None:
    bias = DynamicPositionBias((2, 2), 3, 1)
    with torch.no_grad():
        before = bias(torch.float32)
        bias.layers[2][2].bias.add_(1)  # type: ignore[index]
        torch.testing.assert_close(bias(torch.float32), before + 1)


def test_position_bias_of_one_channel_is_left_out_since_it_has_no_effect() -> None:
    bias = DynamicPositionBias((4, 16), 1, 3)
    assert bias(torch.float32) is None and not any(p.requires_grad for p in bias.parameters())
    bias.constant = False
    rows = bias(torch.float32)
    assert rows is not None
    torch.testing.assert_close(rows, rows[:, :1, :1].expand_as(rows))
