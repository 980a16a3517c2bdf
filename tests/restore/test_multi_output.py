"""Networks with several outputs against recorded outputs of the published ones, and their combination against plain NumPy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import plain_stages
from hybrid.errors import WeightsError
from hybrid.initialisation import SkipRandomFill
from restore import load_model
from restore.models import family
from restore.models.base import RestorationNetwork
from restore.models.hinet import HINet, HINetConfig
from restore.models.mprnet import KEYS, MPRNet, MPRNetConfig, without_copies
from restore.models.multi_output import Heads, SeveralOutputs, training_size
from restore.models.nafnet import NAFNet, NAFNetConfig
from restore.models.restormer import Restormer, RestormerConfig
from tests.command import restore
from tests.restore.parity import SMALL_CASES, Case, draw, fill, largest_difference, load_case, write_checkpoint
from tests.restore.test_model_contract import small, tile_errors

CASES = SMALL_CASES / "multi_output"
SLOPE = "shallow_feat1.1.body.1.weight"
LAST = {"nafnet": "ending", "restormer": "output", "hinet": "last", "mprnet": "tail"}
NAMES = {
    "nafnet": "mhnafnet_reduced_plain3",
    "restormer": "mhrestormer_reduced_combined",
    "hinet": "mhhinet_reduced_combined",
    "mprnet": "mhmprnet_reduced_combined",
}


def saved(tree: object, path: Path) -> Path:
    torch.save(tree, path)
    return path


def loaded(case: Case, folder: Path, **options: object) -> RestorationNetwork:
    return load_model(write_checkpoint(case, folder), device="cpu", **(case.given | options))


def check(folder: Path, scratch: Path) -> RestorationNetwork:
    case = load_case(folder)
    network, x = loaded(case, scratch), torch.from_numpy(case.input)
    assert sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        assert largest_difference(network(x), case) < case.tolerance / 10
    # With gradients nothing is in strips or in place: the same numbers by the other path.
    kept = network(x)
    detached = [stage.detach() for stage in kept] if isinstance(kept, list) else kept.detach()
    assert largest_difference(detached, case) < case.tolerance / 10
    return network


@pytest.mark.parametrize("backbone", NAMES)
def test_recorded_outputs(backbone: str, tmp_path: Path) -> None:
    network = check(CASES / NAMES[backbone], tmp_path)
    case = load_case(CASES / NAMES[backbone])
    assert network.card.family == backbone and network.card.title.startswith("MH")
    assert network.card.outputs == case.outputs[0].shape[1] and network.card.channels == network.card.out_channels == 3


@pytest.mark.parametrize("name", ["mhnafnet_reduced_combined", "mhnafnet_gopro_width32_combined"])
def test_more_recorded_outputs(name: str, shared: Path, tmp_path: Path) -> None:
    check(shared / "parity" / "multi_output" / name, tmp_path)


def test_parameters_of_the_published_configurations() -> None:
    with SkipRandomFill():
        networks = [
            NAFNet(NAFNetConfig(n_heads=4)),
            NAFNet(NAFNetConfig(width=64, n_heads=4)),
            Restormer(RestormerConfig(n_heads=4)),
            HINet(HINetConfig(n_heads=4)),
            MPRNet(MPRNetConfig(n_heads=4)),
        ]
    counts = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert counts == [17_114_508, 67_894_028, 26_134_420, 88_684_376, 20_140_897]


# The combination -------------------------------------------------------------------------------------------------


def test_order_of_ten_outputs_is_the_published_one() -> None:
    heads = Heads(4, 3)
    assert heads.pairs == ((0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (3, 2), (3, 3))
    assert heads.pure == (0, 2, 5, 9) and heads.outputs == 10


@pytest.mark.parametrize("combined", [True, False])
@pytest.mark.parametrize(("count", "channels"), [(1, 3), (2, 1), (4, 3)])
def test_combination_equals_plain_numpy(count: int, channels: int, combined: bool) -> None:
    rng = np.random.default_rng(count)
    y = rng.standard_normal((2, count * channels, 5, 7)).astype(np.float32)
    image = rng.standard_normal((2, channels, 5, 7)).astype(np.float32)
    expected = []
    for i in range(count):
        for j in range(i + 1):
            if combined or i == j:
                o_i, o_j = (y[:, h * channels : (h + 1) * channels] for h in (i, j))
                expected.append((o_i + o_j) / 2 + image)
    heads = Heads(count, channels, combined)
    mixed = heads.apart(heads.mix(torch.from_numpy(y.copy()), torch.from_numpy(image))).numpy()
    stacked = np.stack(expected, 1) if count > 1 else expected[0]
    assert mixed.shape == stacked.shape
    np.testing.assert_allclose(mixed, stacked, atol=1e-6)


@pytest.mark.parametrize("backbone", NAMES)
def test_combined_outputs_are_averages_of_the_pure_ones(backbone: str, tmp_path: Path) -> None:
    """The flag is not in a file: told by the caller, on for several heads."""
    case = load_case(CASES / NAMES[backbone])
    x = torch.from_numpy(case.input)
    pure = loaded(case, tmp_path, combine_heads=False)
    mixed = load_model(write_checkpoint(case, tmp_path), device="cpu")
    with torch.inference_mode():
        few, many = pure.result(x).numpy(), mixed.result(x).numpy()
    n = few.shape[1]
    assert many.shape[1] == n * (n + 1) // 2 == mixed.card.outputs and pure.card.outputs == n
    averages = np.stack([(few[:, i] + few[:, j]) / 2 for i in range(n) for j in range(i + 1)], 1)
    np.testing.assert_allclose(many, averages, atol=case.tolerance / 10)
    np.testing.assert_allclose(many[:, mixed.card.pure_outputs].mean(1), many.mean(1), atol=case.tolerance / 10)


@pytest.mark.parametrize("backbone", NAMES)
def test_chosen_outputs_are_those_of_all(backbone: str, tmp_path: Path) -> None:
    case = load_case(CASES / NAMES[backbone])
    network, x = loaded(case, tmp_path), torch.from_numpy(case.input)
    assert isinstance(network, SeveralOutputs)
    with torch.inference_mode():
        every, card = network.result(x), network.card
        network.choose([2, 0])
        assert torch.equal(network.result(x), every[:, [2, 0]]) and network.card.outputs == 2
        assert network.card.pure_outputs == tuple(place for place, output in enumerate((2, 0)) if output in card.pure_outputs)
        network.choose([1])
        assert torch.equal(network.result(x), every[:, 1:2])
        network.choose(None)
        assert torch.equal(network.result(x), every) and network.card == card
    for absent in ([10], [-1], []):
        with pytest.raises(ValueError, match=f"has the outputs 0 to {card.outputs - 1}, not"):
            network.choose(absent)


def test_one_output_leaves_nothing_to_choose() -> None:
    with pytest.raises(ValueError, match="HINet has one output"):
        HINet(HINetConfig(width=4)).choose([0])


@pytest.mark.parametrize("backbone", ["nafnet", "restormer"])
def test_rows_of_the_last_convolution_are_a_single_network(backbone: str, tmp_path: Path) -> None:
    """An output is the backbone with the mean of two groups of rows: the network of one output judges that of several."""
    case = load_case(CASES / NAMES[backbone])
    state, x = fill(case), torch.from_numpy(case.input)
    for part in ("weight", "bias"):
        if (key := f"{LAST[backbone]}.{part}") in state:
            state[key] = (state[key][6:9] + state[key][0:3]) / 2
    single = load_model(saved(state, tmp_path / "single.pth"), device="cpu")
    assert single.card.outputs == 1 and not single.card.title.startswith("MH")
    several = load_model(write_checkpoint(case, tmp_path), device="cpu")
    with torch.inference_mode():
        np.testing.assert_allclose(several(x)[:, 3], single(x), atol=case.tolerance / 10)


@pytest.mark.parametrize("backbone", NAMES)
@pytest.mark.parametrize(("height", "width"), [(37, 23), (5, 70)])
def test_any_size_with_several_outputs(backbone: str, height: int, width: int, tmp_path: Path) -> None:
    """Padded and cropped along the last two axes: what the padded picture gives."""
    case = load_case(CASES / NAMES[backbone])
    network = loaded(case, tmp_path)
    multiple, mode = network.card.multiple, "constant" if network.card.padding == "zeros" else "reflect"
    x = np.random.default_rng(0).random((1, 3, height, width), np.float32)
    padded = np.pad(x, [(0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)], mode=mode)  # type: ignore[call-overload]
    with torch.inference_mode():
        y, whole = network(torch.from_numpy(x)), network(torch.from_numpy(padded))
    stages = list(zip(y, whole, strict=True)) if isinstance(y, list) else [(y, whole)]
    for stage, of_padded in stages:
        assert stage.shape == (1, network.card.outputs, 3, height, width)
        assert torch.equal(stage, of_padded[..., :height, :width])


def test_memory_of_strips_is_bounded_and_their_joints_are_not_seen(tmp_path: Path) -> None:
    network = loaded(load_case(CASES / NAMES["nafnet"]), tmp_path, combine_heads=True)
    x = torch.rand(1, 3, 144, 512, generator=torch.Generator().manual_seed(0))  # more rows than a strip
    with torch.inference_mode():
        y = network(x)
    torch.testing.assert_close(y, network(x).detach(), atol=1e-4, rtol=1e-5)


# Stages and single-output networks -------------------------------------------------------------------------------


@pytest.mark.parametrize(("backbone", "place", "stages"), [("hinet", -1, 2), ("mprnet", 0, 3)])
def test_card_says_which_stage_is_the_result(backbone: str, place: int, stages: int, tmp_path: Path) -> None:
    case = load_case(CASES / NAMES[backbone])
    network, x = loaded(case, tmp_path), torch.from_numpy(case.input)
    with torch.inference_mode():
        given, result = network(x), network.result(x)
    assert isinstance(given, list) and len(given) == stages
    assert torch.equal(result, given[place]) and network.card.result is not None
    assert largest_difference(result, replace(case, outputs=(case.outputs[place],))) < case.tolerance


@pytest.mark.parametrize("backbone", ["hinet", "mprnet"])
def test_one_head_is_the_ordinary_network(backbone: str) -> None:
    """Judged by its formulas, written out step by step."""
    options = {
        "hinet": {"width": 8, "depth": 3, "normalised": (1, 2)},
        "mprnet": {"width": 8, "growth": 4, "refined": 4, "blocks": 2},
    }
    kind, plain = family(backbone), {"hinet": plain_stages.hinet, "mprnet": plain_stages.mprnet}[backbone]
    network = kind.create(**options[backbone]).eval().requires_grad_(False)
    state = {key: draw(key, list(value.shape), 0) for key, value in network.state_dict().items()}
    network.load_state_dict(state)
    x = draw("x", [2, 3, 16, 24], 0)
    stages = network(x)
    assert all(stage.shape == x.shape for stage in stages)
    assert network.card.outputs == 1 and network.card.title in ("HINet", "MPRNet")
    expected = plain({kind.keys.to_published(key): value for key, value in state.items()}, x)
    torch.testing.assert_close(network.result(x), expected, atol=1e-4, rtol=1e-5)


def test_a_hinet_picture_of_one_deep_pixel_is_normalised_to_the_offset() -> None:
    """torch's own instance norm refuses it."""
    network = HINet(HINetConfig(width=8, depth=3, normalised=(2,))).eval()
    with torch.inference_mode():
        assert all(bool(stage.isfinite().all()) for stage in network(torch.rand(1, 3, 4, 4)))


def test_tiles_of_mprnet_come_close_to_the_whole_away_from_its_halves() -> None:
    network = small("mprnet")
    overlap = 192
    errors = tile_errors(network, overlap)
    rows = errors.shape[1]
    middles = (rows // 2, rows // 3, 2 * rows // 3)  # of the whole, and of tiles of two thirds
    away = [row for row in range(rows) if min(abs(row - middle) for middle in middles) > 32]
    assert len(away) > rows // 2 and errors[:, away].max() < 0.2
    assert errors.mean() < 0.03


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", NAMES)
def test_file_as_a_user_trains_it(backbone: str, tmp_path: Path) -> None:
    """NAFNet, HINet and Restormer under `params`, MPRNet under `state_dict` with `module.`."""
    case = load_case(CASES / NAMES[backbone])
    state, x = fill(case), torch.from_numpy(case.input)
    if backbone == "mprnet":
        tree: dict[str, object] = {
            "epoch": 3,
            "state_dict": {f"module.{k}": v for k, v in state.items()},
            "optimizer": {"state": {}},
        }
    else:
        tree = {"params": state}
    network = load_model(saved(tree, tmp_path / "net_g_latest.pth"), device="cpu", **case.given)
    with torch.inference_mode():
        assert largest_difference(network(x), case) < case.tolerance


@pytest.mark.parametrize("size", [256, (24, 40), [24, 40], 0, None, np.int64(32), np.array([24, 40])])
def test_local_means_change_nothing_in_hinet(size: object, tmp_path: Path) -> None:
    """It has no means over the picture; the published class with local ones has the same numbers."""
    case = load_case(CASES / NAMES["hinet"])
    network = loaded(case, tmp_path, tlc_train_size=size)
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < case.tolerance / 10


@pytest.mark.parametrize(
    "size",
    ["24", "", b"24", True, False, 24.0, (3.7, 4.2), ("2", "4"), (True, 24), [24, 4.0], (), (24,), (1, 2, 3), (0, 8), (0, 0), -3],
    ids=repr,
)  # fmt: skip
def test_training_crops_have_whole_edges(size: Any) -> None:
    with pytest.raises(ValueError, match="a training crop has an edge, or rows and columns, of whole pixels, not "):
        training_size(size)


@pytest.mark.parametrize(
    ("size", "sides"),
    [(24, (24, 24)), ([24, 40], (24, 40)), ((np.int64(24), np.uint8(40)), (24, 40)), (np.array([24, 40]), (24, 40)),
     (np.int32(24), (24, 24)), (np.int64(0), None), (0, None), (None, None)],
)  # fmt: skip
def test_training_crops_of_any_kind_of_whole_number(size: Any, sides: tuple[int, int] | None) -> None:
    found = training_size(size)
    assert found == sides and all(type(side) is int for side in found or ())


@pytest.mark.parametrize("size", [-3, (24,), (0, 8), "large", "24", True, (3.7, 4.2)])
def test_what_is_no_size_is_refused(size: object, tmp_path: Path) -> None:
    for backbone in ("hinet", "nafnet"):
        with pytest.raises(WeightsError, match="no such network has its names and shapes"):
            loaded(load_case(CASES / NAMES[backbone]), tmp_path, tlc_train_size=size)


def test_models_info_tells_the_outputs(tmp_path: Path) -> None:
    path = write_checkpoint(load_case(CASES / NAMES["hinet"]), tmp_path)
    told = restore("models", "info", path)
    assert told.code == 0, told.err
    lines = dict(line.split(maxsplit=1) for line in told.out.splitlines())
    assert lines["family"].startswith("MHHINet") and lines["task"] == "deblurring"
    assert lines["outputs"] == "10, of which 0, 2, 5, 9 are heads; the others are averages of two"
    assert lines["not"].endswith("combine_heads, tlc_train_size")


def test_mprnet_with_and_without_the_copies_of_its_slope(tmp_path: Path) -> None:
    case = load_case(CASES / NAMES["mprnet"])
    every, one = fill(case), without_copies(fill(case))
    assert len(every) - len(one) == sum(bool(entry.get("alias_of")) for entry in case.entries) > 0
    assert [key for key in one if key.endswith(".body.1.weight") and one[key].numel() == 1] == [SLOPE]
    assert {KEYS.to_published(key) for key in MPRNet(family("mprnet").build(every).config).state_dict()} == set(one)
    x = torch.from_numpy(case.input)
    outputs = [load_model(saved(state, tmp_path / f"{len(state)}.pth"), device="cpu").result(x) for state in (every, one)]
    assert torch.equal(*outputs)


def test_mprnet_slopes_that_differ_are_refused(tmp_path: Path) -> None:
    state = fill(load_case(CASES / NAMES["mprnet"]))
    key = "stage3_orsnet.orb2.body.1.body.1.weight"
    with pytest.raises(WeightsError, match=f"{key} should equal"):
        load_model(saved(state | {key: state[key] + 0.01}, tmp_path / "x.pth"), device="cpu")


@pytest.mark.parametrize("backbone", NAMES)
def test_rows_that_are_no_whole_pictures_are_refused(backbone: str, tmp_path: Path) -> None:
    state: dict[str, Tensor] = fill(load_case(CASES / NAMES[backbone]))
    key = f"{LAST[backbone]}.weight"
    with pytest.raises(WeightsError):
        load_model(saved(state | {key: state[key][:5]}, tmp_path / "x.pth"), device="cpu")


def test_dual_pixels_have_one_output() -> None:
    with pytest.raises(ValueError, match="neither dual pixels"):
        Restormer(RestormerConfig(in_channels=6, embed_dim=8, dual_pixel=True, n_heads=2))


@pytest.mark.parametrize(
    "config", [HINetConfig(width=8, depth=4, normalised=(0, 2), n_heads=3, in_channels=1), HINetConfig(width=4)]
)
def test_hinet_configuration_is_read_back(config: HINetConfig) -> None:
    kind = family("hinet")
    state = {key: draw(key, list(value.shape), 0) for key, value in HINet(config).state_dict().items()}
    assert kind.matches(state) and kind.build(state).config == config


@pytest.mark.parametrize("config", [MPRNetConfig(width=8, growth=4, refined=2, blocks=3, reduction=2, n_heads=2)])
def test_mprnet_configuration_is_read_back(config: MPRNetConfig) -> None:
    kind = family("mprnet")
    state = {KEYS.to_published(key): value for key, value in MPRNet(config).state_dict().items()}
    assert kind.matches(state) and kind.build(state, combine_heads=False).config == replace(config, combine_heads=False)
