"""Restore-RWKV against recorded outputs of the published network, and the loading of its files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid.blocks import convolution
from hybrid.errors import WeightsError
from hybrid.initialisation import SkipRandomFill
from restore import load_model
from restore.models import restore_rwkv
from restore.models.restore_rwkv import FAMILY, KEYS, RestoreRWKV, RestoreRWKVConfig, read_config
from tests.restore.parity import SMALL_CASES, Case, draw, fill, largest_difference, load_case, write_checkpoint

REDUCED = SMALL_CASES / "restore_rwkv" / "reduced"


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(REDUCED)


@pytest.fixture(scope="module")
def state(case: Case) -> dict[str, Tensor]:
    return fill(case)


def saved(tree: object, path: Path) -> Path:
    torch.save(tree, path)
    return path


def run(path: Path, case: Case) -> Tensor:
    with torch.inference_mode():
        return load_model(path, device="cpu")(torch.from_numpy(case.input))


def check(folder: Path, scratch: Path, by_both_paths: bool = True) -> None:
    case = load_case(folder)
    network = load_model(write_checkpoint(case, scratch), device="cpu", **case.given)
    assert isinstance(network, RestoreRWKV)
    folded = sum(np.prod(e["shape"], dtype=int) for e in case.entries if e["kind"] == "derived")
    assert sum(p.numel() for p in network.parameters()) == case.parameters - folded
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < case.tolerance
    if by_both_paths:  # with gradients nothing is in chunks or in place
        assert largest_difference(network(torch.from_numpy(case.input)).detach(), case) < case.tolerance


def test_recorded_outputs(tmp_path: Path) -> None:
    check(REDUCED, tmp_path)


def test_strips_leave_no_joints(state, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restore_rwkv, "STRIP_PIXELS", 1)  # the least: 16 rows of the last step,
    monkeypatch.setattr(convolution, "STRIP_PIXELS", 1)  # and 8 of a token shift
    network = FAMILY.build(state).eval()
    network.load_state_dict({KEYS.to_ours(key): value for key, value in state.items()})
    x = draw("x", [1, 1, 40, 8], 0)
    with torch.inference_mode():
        result = network(x)
    torch.testing.assert_close(result, network(x).detach(), atol=1e-5, rtol=1e-5)


def test_last_step_is_float32_whatever_the_others_compute_in(state) -> None:
    network = FAMILY.build(state).eval()
    network.precision = "bf16"
    kinds: dict[str, torch.dtype] = {}
    for name, step in (("first", network.embed), ("last", network.output)):
        step.register_forward_hook(lambda _, __, y, name=name: kinds.setdefault(name, y.dtype) and None)
    with torch.inference_mode():
        network(draw("x", [1, 1, 8, 8], 0))
    assert kinds == {"first": torch.bfloat16, "last": torch.float32}


@pytest.mark.parametrize("name", ["official", "reduced_wide_map"])
def test_more_recorded_outputs(name: str, shared: Path, tmp_path: Path) -> None:
    check(shared / "parity" / "restore_rwkv" / name, tmp_path, by_both_paths=name != "official")


def test_published_configuration() -> None:
    with SkipRandomFill():
        network = RestoreRWKV(RestoreRWKVConfig())
    assert sum(p.numel() for p in network.parameters()) == 27_996_737
    assert network.card.multiple == 8 and network.card.scale == 1 and network.card.channels == 1
    kernels = [(KEYS.to_published(k), v) for k, v in network.state_dict().items() if ".shift." in k]
    branches = sum(v.numel() for k, v in kernels)
    assert 27_996_737 - branches + sum(v.numel() for k, v in kernels if "5x5" in k) == 27_846_625  # folded


# Files -----------------------------------------------------------------------------------------------------------


def test_folded_kernels_in_the_file_are_ignored(case, state, tmp_path: Path) -> None:
    """They are stale in a checkpoint of a training. The first release had another layer that nothing used."""
    stale = {e["key"]: torch.rand(e["shape"]) for e in case.entries if e["kind"] == "derived"}
    assert len(stale | state) == len(case.entries) == 214
    unused = {"encoder_level1.0.att.dwconv.weight": torch.rand(16, 1, 3, 3)}
    expected = run(saved(state, tmp_path / "x.pth"), case)
    assert torch.equal(run(saved(stale | unused | state, tmp_path / "y.pth"), case), expected)


def test_new_weights_bring_new_shift_kernels(case, state) -> None:
    """Nothing that was made from the old ones stays behind."""
    network = FAMILY.build(state).eval()
    x = torch.from_numpy(case.input)
    with torch.inference_mode():
        network(x)
    network.load_state_dict({KEYS.to_ours(key): value for key, value in state.items()})
    with torch.inference_mode():
        assert largest_difference(network(x), case) < case.tolerance


def test_a_switch_that_was_never_published_is_refused(state, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"not known to the network .*key_norm"):
        load_model(saved(state | {"latent.0.att.key_norm.weight": torch.ones(128)}, tmp_path / "x.pth"), device="cpu")


@pytest.mark.parametrize("key", ["latent.0.att.spatial_first", "decoder_level2.0.ffn.omni_shift.alpha", "output.bias"])
def test_file_that_lacks_a_parameter_is_refused(key: str, state, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        load_model(saved({name: value for name, value in state.items() if name != key}, tmp_path / "x.pth"), device="cpu")


def test_names_are_those_of_the_published_file(state) -> None:
    network = FAMILY.build(state)
    assert {KEYS.to_published(key) for key in network.state_dict()} == set(state)
    network.load_state_dict({KEYS.to_ours(key): value for key, value in state.items()})


def test_configuration_is_read_back_from_the_file() -> None:
    config = RestoreRWKVConfig(in_channels=3, embed_dim=8, depths=(1, 2, 3, 1), refinement=2, mlp_ratio=3, recurrences=4)
    network = RestoreRWKV(config)
    published = {KEYS.to_published(key): value for key, value in network.state_dict().items()}
    assert FAMILY.matches(published) and read_config(published) == config
    with torch.inference_mode():
        assert network(torch.rand(1, 3, 11, 17)).shape == (1, 3, 11, 17)


def test_other_channels_out_than_in_are_refused(state, tmp_path: Path) -> None:
    changed = state | {"output.weight": torch.rand(2, 32, 3, 3)}
    with pytest.raises(WeightsError, match="takes 1 channels and gives 2"):
        load_model(saved(changed, tmp_path / "x.pth"), device="cpu")
