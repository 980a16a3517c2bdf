"""MIRNet against recorded outputs of the published network, and the copies of shared tensors that its files hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hybrid.errors import WeightsError
from hybrid.initialisation import SkipRandomFill
from restore import load_model
from restore.loading import catalogue
from restore.models import mirnet
from restore.models.mirnet import FAMILY, KEYS, MIRNet, MIRNetConfig, read_config, without_copies
from tests.restore.parity import SMALL_CASES, Case, draw, fill, largest_difference, load_case, write_checkpoint

REDUCED = SMALL_CASES / "mirnet" / "reduced"
SLOPE = "body.0.body.0.blocks.0.0.body.1.weight"


@pytest.fixture(scope="module")
def case() -> Case:
    return load_case(REDUCED)


@pytest.fixture(scope="module")
def state(case: Case) -> dict[str, Tensor]:
    return fill(case)


def saved(tree: object, path: Path) -> Path:
    torch.save(tree, path)
    return path


def run(path: Path, case: Case, **options: object) -> Tensor:
    with torch.inference_mode():
        return load_model(path, device="cpu", **options)(torch.from_numpy(case.input))


def check(folder: Path, scratch: Path, tolerance: float | None = None) -> None:
    case = load_case(folder)
    network = load_model(write_checkpoint(case, scratch), device="cpu", **case.given)
    assert isinstance(network, MIRNet) and sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < (tolerance or case.tolerance)
    # With gradients nothing is in strips or in place: the same numbers by the other path.
    assert largest_difference(network(torch.from_numpy(case.input)).detach(), case) < (tolerance or case.tolerance)


def test_recorded_outputs(tmp_path: Path) -> None:
    check(REDUCED, tmp_path, tolerance=1e-5)


def test_strips_of_the_last_step_leave_no_joints(state, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirnet, "STRIP_PIXELS", 1)  # the least, 16 rows
    network = FAMILY.build(state).eval()
    network.load_state_dict({KEYS.to_ours(key): value for key, value in without_copies(state).items()})
    x = draw("x", [1, 3, 40, 8], 0)
    with torch.inference_mode():
        result = network(x)
    torch.testing.assert_close(result, network(x).detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["official", "reduced_two_groups"])
def test_more_recorded_outputs(name: str, shared: Path, tmp_path: Path) -> None:
    check(shared / "parity" / "mirnet" / name, tmp_path)


def test_published_configuration() -> None:
    with SkipRandomFill():
        network = MIRNet(MIRNetConfig())
    count = sum(p.numel() for p in network.parameters())
    assert count == 31_787_419 and network.card.multiple == 4 and network.card.scale == 1
    listed = [entry for entry in catalogue() if entry.family == "mirnet"]
    assert listed and all(file.parameters == count for entry in listed for file in entry.files.values())


# Files -----------------------------------------------------------------------------------------------------------


def test_file_as_published_with_every_copy_and_the_blur(case, state, tmp_path: Path) -> None:
    filters = {e["key"]: torch.zeros(e["shape"]) for e in case.entries if e["key"].endswith(".filt")}
    assert len(filters | state) == len(case.entries) == 135
    wrapped = {f"module.{key}": value for key, value in (filters | state).items()}
    tree = {"epoch": 7, "state_dict": wrapped, "optimizer": {"state": {}}}
    assert torch.equal(run(saved(tree, tmp_path / "x.pth"), case), run(saved(state, tmp_path / "y.pth"), case))


def test_file_without_the_copies(case, state, tmp_path: Path) -> None:
    """Which no longer tells the number of columns: as published, or as is said."""
    single = without_copies(state)
    assert len(single) == len(FAMILY.build(state).state_dict()) and SLOPE in single
    assert not any(".blocks.0.1." in key for key in single)
    path = saved(single, tmp_path / "x.pth")
    expected = run(write_checkpoint(case, tmp_path), case)
    assert torch.equal(run(path, case), expected)
    assert not torch.allclose(run(path, case, columns=3), expected, atol=1e-3)


def test_number_of_columns_is_told_by_the_copies(state) -> None:
    third = {key.replace(".0.1.", ".0.2."): value for key, value in state.items() if ".blocks.0.1." in key}
    assert read_config(state).columns == 2 and read_config(state | third).columns == 3


def test_single_column_is_told_by_the_copies_of_the_slope(case, state, tmp_path: Path) -> None:
    """Rows below the first are then never fused: what fuses them changes nothing."""
    single = {key: value for key, value in state.items() if not re.search(r"\.blocks\.\d+\.1\.", key)}
    assert len(single) < len(state) and "body.0.body.0.blocks.1.0.body.1.weight" in single
    path = saved(single, tmp_path / "x.pth")
    found = run(path, case)
    unused = [key for key in single if re.search(r"selective_kernel\.[12]\.", key)]
    assert unused and torch.equal(run(saved(single | {key: single[key] + 1 for key in unused}, tmp_path / "y.pth"), case), found)
    assert read_config(single).columns == 1 and torch.equal(run(path, case, columns=1), found)
    assert torch.equal(run(path, case, columns=2), run(saved(state, tmp_path / "z.pth"), case))


def test_one_unit_alone_is_taken_to_run_as_often_as_published() -> None:
    """It has no copies that could tell."""
    network = MIRNet(MIRNetConfig(features=8, groups=1, blocks=1, rows=1, columns=1))
    published = {KEYS.to_published(key): value for key, value in network.state_dict().items()}
    assert read_config(published).columns == 2 and read_config(published).rows == 1


@pytest.mark.parametrize("copy", ["1.1.conv1x1.weight", "2.0.body.1.weight", "2.1.body.1.weight"])
def test_copies_that_differ_are_refused(copy: str, state, tmp_path: Path) -> None:
    key = f"body.0.body.0.blocks.{copy}"
    changed = state | {key: state[key] + 0.01}
    with pytest.raises(WeightsError, match=rf"{key} should equal what they are copies of"):
        load_model(saved(changed, tmp_path / "x.pth"), device="cpu")


@pytest.mark.parametrize("key", [SLOPE, "body.0.body.0.down.16_4.body.1.top.3.weight", "body.0.body.1.weight", "conv_out.weight"])
def test_file_that_lacks_a_parameter_is_refused(key: str, state, tmp_path: Path) -> None:
    copies = re.compile(r".*\.blocks\.\d+\.\d+\.body\.1\.weight") if key == SLOPE else re.compile(re.escape(key))
    rest = {name: value for name, value in state.items() if not copies.fullmatch(name)}
    with pytest.raises(WeightsError):
        load_model(saved(rest, tmp_path / "x.pth"), device="cpu")


def test_names_are_those_of_the_published_file(state) -> None:
    network = FAMILY.build(state)
    assert {KEYS.to_published(key) for key in network.state_dict()} == set(without_copies(state))
    network.load_state_dict({KEYS.to_ours(key): value for key, value in without_copies(state).items()})


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_configuration_is_read_back_from_the_file(rows: int) -> None:
    config = MIRNetConfig(in_channels=1, features=8, groups=2, blocks=3, rows=rows)
    network = MIRNet(config)
    published = {KEYS.to_published(key): value for key, value in network.state_dict().items()}
    assert FAMILY.matches(published) and read_config(published) == config
    with torch.inference_mode():
        assert network(torch.rand(1, 1, 11, 17)).shape == (1, 1, 11, 17)


def test_other_channels_out_than_in_are_refused(state, tmp_path: Path) -> None:
    changed = state | {"conv_out.weight": torch.rand(1, 16, 3, 3)}
    with pytest.raises(WeightsError, match="takes 3 channels and gives 1"):
        load_model(saved(changed, tmp_path / "x.pth"), device="cpu")
