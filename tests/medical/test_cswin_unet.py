"""CSWin U-Nets against recorded outputs of the published code, and plain numpy for what has none."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks import chunks
from hybrid.blocks.cross_shaped import CrossShapedAttention, CSWinBlock, plan_bars
from hybrid.errors import RequestError, WeightsError
from hybrid.weights.checkpoints import load_strict
from medical import load_model
from medical.loading import save_model
from medical.models.cswin_encoder import CSWinConfig, Encoder
from medical.models.cswin_pretrained import encoder_name
from medical.models.cswin_unet import FAMILY, KEYS, PREFIX, CSWinUNet, Reassembly, read_config
from medical.models.cswin_unet_3d import CSWinUNet3D
from tests.restore.parity import SMALL_CASES, Case, draw, fill, largest_difference, load_case, write_checkpoint

Network = TypeVar("Network", bound=nn.Module)

TOLERANCE = 1e-5
"""Tighter than the cases' own."""
SMALLER = {"embed_dim": 16, "depths": (1, 2, 1), "num_heads": (2, 2, 4), "split_size": (1, 2, 2), "out_channels": 2}
SMALLER_3D = {
    "spatial_dims": 3,
    "in_channels": 2,
    "out_channels": 2,
    "embed_dim": 12,
    "depths": (1, 1, 2),
    "num_heads": (3, 3, 6),
    "split_size": (1, 2, 2),
    "patch": (4, 2, 1),
    "strides": ((2, 2, 1), (2, 1, 2)),
    "image_features": 6,
}


def drawn(module: Network) -> Network:
    """Numbers that are all different, so that none can stand in for another."""
    module.load_state_dict({k: draw(k, list(v.shape), 0) for k, v in module.state_dict().items()})
    return module.eval()


def slices(**options) -> CSWinUNet:
    network = drawn(FAMILY.create(**SMALLER | options))
    assert isinstance(network, CSWinUNet)
    return network


def volumes(**options) -> CSWinUNet3D:
    network = drawn(FAMILY.create(**SMALLER_3D | options))
    assert isinstance(network, CSWinUNet3D)
    return network


def in_file(network: nn.Module) -> dict[str, Tensor]:
    return {KEYS.to_published(key): value for key, value in network.state_dict().items()}


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def case_of(name: str, folder: Path = SMALL_CASES) -> Case:
    return load_case(folder / "cswin_unet" / name)


# The published code ----------------------------------------------------------------------------------------------


def check_network(case: Case, folder: Path) -> None:
    network = load_model(write_checkpoint(case, folder), device="cpu", **case.given)
    assert sum(p.numel() for p in network.parameters()) == case.parameters
    assert len(network.state_dict()) == len(case.entries)
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < min(TOLERANCE, case.tolerance)


def test_recorded_outputs(tmp_path: Path) -> None:
    check_network(case_of("cswin_unet_reduced_64"), tmp_path)


def test_recorded_outputs_of_the_official_network(shared: Path, tmp_path: Path) -> None:
    case = case_of("cswin_unet_official_224", shared / "parity")
    check_network(case, tmp_path)
    assert read_config(fill(case)) == CSWinConfig()


def test_recorded_features_of_the_padded_backbone() -> None:
    """Sides that are no multiples of the bars; each stage has a norm, which for the last is the encoder's."""
    case = case_of("backbone_padded_features")
    state = {ours: tensor for key, tensor in fill(case).items() if (ours := encoder_name(key, 4))}
    config = CSWinConfig(embed_dim=32, depths=(1, 1, 2, 1))
    encoder = Encoder(config, skip_norms=True).eval()
    load_strict(encoder, state)
    assert len(state) == len(case.entries)
    with torch.inference_mode():
        assert largest_difference(encoder(torch.from_numpy(case.input)), case) < TOLERANCE


def check_block(case: Case, split: int, whole: bool) -> None:
    block = CSWinBlock(64, 4, split, 256, whole=whole).eval()
    stage = {f"{PREFIX}stage1.0.{key}": tensor for key, tensor in fill(case).items()}
    load_strict(block, {KEYS.to_ours(key).removeprefix("encoder.stages.1.0."): tensor for key, tensor in stage.items()})
    side = round(case.input.shape[1] ** 0.5)
    x = torch.from_numpy(case.input).unflatten(1, (side, side))
    with torch.inference_mode():
        assert largest_difference(block(x).flatten(1, 2), case) < TOLERANCE


def test_recorded_block_of_the_last_stage() -> None:
    check_block(case_of("block_last_stage"), 7, True)


def test_recorded_block_of_two_branches(shared: Path) -> None:
    check_block(case_of("block_two_branches", shared / "parity"), 7, False)


@pytest.mark.parametrize(("name", "kind", "split", "heads"), [("vertical", 0, 2, 2), ("horizontal", 1, 3, 4)])
def test_recorded_attention_in_stripes(name: str, kind: int, split: int, heads: int, shared: Path) -> None:
    case = case_of(f"lepe_attention_{name}", shared / "parity")
    attention = CrossShapedAttention(64, 2 * heads, split)
    load_strict(attention.local[kind], {key.removeprefix("get_v."): tensor for key, tensor in fill(case).items()})
    q, k, v = torch.from_numpy(case.input).unflatten(2, (12, 12))
    plan = plan_bars((12, 12), kind, split)
    (slab,) = plan.slabs(1000)
    with torch.inference_mode():
        mixed = attention.mix(torch.cat([q, k, v], -1), plan.bar, slab, kind)
    assert largest_difference(mixed.flatten(1, 2), case) < TOLERANCE


# Reassembly ------------------------------------------------------------------------------------------------------


def slow_reassembly(module: Reassembly, x: np.ndarray, then: np.ndarray) -> np.ndarray:
    """In the order of the paper, pixel by pixel: kernels, weighted means of 3x3 neighbours, projection, the linear step."""
    parameters = {k: v.numpy() for k, v in module.state_dict().items()}
    batch, height, width, _ = x.shape
    r = module.factor
    down = x @ parameters["down.weight"][:, :, 0, 0].T + parameters["down.bias"]
    ring, around = (np.pad(t, [(0, 0), (1, 1), (1, 1), (0, 0)]) for t in (down, x))
    out = np.zeros((batch, height * r, width * r, len(then)))
    for b, h, w in product(range(batch), range(height), range(width)):
        window = ring[b, h : h + 3, w : w + 3]
        logits = np.einsum("ockl,klc->o", parameters["encoder.weight"], window) + parameters["encoder.bias"]
        for i, j in product(range(r), repeat=2):
            own = np.array([logits[k * r * r + i * r + j] for k in range(9)])
            weights = np.exp(own - own.max()) / np.exp(own - own.max()).sum()
            mean = sum(weights[k] * around[b, h + k // 3, w + k % 3] for k in range(9))
            projected = parameters["out.weight"][:, :, 0, 0] @ mean + parameters["out.bias"]
            out[b, h * r + i, w * r + j] = then @ projected
    return out


@pytest.mark.parametrize(("factor", "chunk"), [(2, 4096), (4, 4096), (2, 1), (3, 12)])
def test_reassembly_is_that_of_plain_loops(factor: int, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_TOKENS", chunk)
    module = drawn(Reassembly(8, 6, factor)).double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 4, 8, generator=generator, dtype=torch.float64)
    then = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    expected = slow_reassembly(module, x.numpy(), then.numpy())
    with torch.inference_mode():
        np.testing.assert_allclose(module(x, then).numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(module(x, then).detach().numpy(), expected, atol=1e-12)


# Sizes and channels ----------------------------------------------------------------------------------------------


def test_gray_pictures_are_repeated(tmp_path: Path) -> None:
    network, x = slices(), torch.rand(2, 1, 20, 27)
    with torch.inference_mode():
        assert torch.equal(network(x), network(x.repeat(1, 3, 1, 1)))
        with pytest.raises(ValueError, match=r"CSWin-UNet takes \(B, 3, H, W\), not \(2, 2, 20, 27\)"):
            network(x.repeat(1, 2, 1, 1))
        with pytest.raises(ValueError, match=r"CSWin-UNet takes \(B, 1, H, W\), not \(2, 3, 20, 27\)"):
            slices(in_channels=1)(x.repeat(1, 3, 1, 1))


def test_each_side_of_a_volume_has_a_multiple_of_its_own() -> None:
    network = volumes()
    assert network.config.multiples == (16, 4, 2) and network.card.multiple == 16
    assert network.padded((17, 9, 5)) == (32, 12, 6)
    x = torch.rand(1, 2, 17, 9, 5)
    with torch.inference_mode():
        filled = network(F.pad(x, (0, 1, 0, 3, 0, 15)))
        assert torch.equal(network(x), filled[:, :, :17, :9, :5])
    grids = network.encoder(x[..., :16, :8, :4])
    assert [tuple(grid.shape[1:]) for grid in grids] == [(12, 4, 4, 4), (24, 2, 2, 4), (48, 1, 2, 2)]


def test_last_grid_of_a_volume_has_two_tokens() -> None:
    """Instance norm makes nothing of one."""
    network = volumes()
    assert network.padded((16, 4, 2)) == network.padded((1, 1, 1)) == (32, 4, 2)
    with torch.inference_mode():
        assert network(torch.rand(1, 2, 3, 2, 1)).std() > 0


def test_prostate_network_takes_its_scans() -> None:
    """256 x 256 x 20 voxels need no filling up in their thick axis."""
    network = FAMILY.create(spatial_dims=3)
    assert network.padded((256, 256, 20)) == (256, 256, 20) and network.padded((250, 256, 19)) == (256, 256, 20)
    assert (network.card.in_channels, network.card.out_channels, network.card.spatial_dims) == (3, 1, 3)


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"in_channels": 1, "patch": (2, 2), "mlp_ratio": 1.5},
        {"depths": (1, 1, 2, 1), "num_heads": (2, 4, 8, 16), "embed_dim": 64, "split_size": (1, 2, 7, 7)},
        {"whole": (2,)},
        {"spatial_dims": 3, "embed_dim": 12, "num_heads": (3, 6, 12), "split_size": (1, 2, 4), "strides": ()},
        {**SMALLER_3D, "num_heads": (3, 6, 12), "split_size": (1, 2, 4), "whole": (2,), "mlp_ratio": 2.0},
    ],
)
def test_configuration_is_read_back_from_the_file(options: dict) -> None:
    network = FAMILY.create(**SMALLER | options)
    assert isinstance(network, CSWinUNet | CSWinUNet3D)
    state = in_file(network)
    assert len(state) == len(network.state_dict()) and all(key.startswith(PREFIX) for key in state)
    assert [KEYS.to_ours(key) for key in state] == list(network.state_dict())
    assert FAMILY.matches(state)
    loaded = FAMILY.build(state, **network.options())
    assert isinstance(loaded, CSWinUNet | CSWinUNet3D) and loaded.config == network.config
    if network.config.embed_dim == 64 or network.config.spatial_dims == 3:
        assert read_config(state) == network.config, "published heads and splits need no options"


@pytest.mark.parametrize("make", [slices, volumes])
def test_heads_and_splits_are_kept_in_files_of_this_package(make: Callable[[], CSWinUNet | CSWinUNet3D], tmp_path: Path) -> None:
    network = make()
    save_model(tmp_path / "x.safetensors", network)
    loaded = load_model(tmp_path / "x.safetensors", device="cpu")
    assert isinstance(loaded, CSWinUNet | CSWinUNet3D) and loaded.config == network.config


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_wrapped_files(prefix: str, tmp_path: Path) -> None:
    network = slices()
    state = {prefix + key: value for key, value in in_file(network).items()}
    path = saved({"epoch": 3, "state_dict": state, "optimizer": {"lr": 1e-4}}, tmp_path / "epoch_149.pth")
    loaded = load_model(path, device="cpu", **network.options())
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in network.state_dict().items())


@pytest.mark.parametrize("make", [slices, volumes])
def test_projections_without_biases(make: Callable[[], CSWinUNet | CSWinUNet3D], tmp_path: Path) -> None:
    """Are those whose biases are zero; a file that lacks a single one is incomplete."""
    network = make()
    biases = {KEYS.to_published(key): value for key, value in network.state_dict().items() if key.endswith("qkv.bias")}
    assert len(biases) >= 4
    state = {key: value for key, value in in_file(network).items() if key not in biases}
    x = torch.rand(1, network.card.in_channels, *(32, 48, 8)[: network.card.spatial_dims])

    def run(state: dict[str, Tensor]) -> Tensor:
        with torch.inference_mode():
            return load_model(saved(state, tmp_path / "x.pth"), device="cpu", **network.options())(x)

    assert torch.equal(run(state), run(state | {key: torch.zeros_like(value) for key, value in biases.items()}))
    assert not torch.allclose(run(state), run(state | biases), atol=1e-3)
    first = next(iter(biases))
    with pytest.raises(WeightsError, match="1 missing"):
        run(state | {key: value for key, value in biases.items() if key != first})


def test_splits_are_another_network(tmp_path: Path) -> None:
    """No file tells them, so one that differs must be given."""
    network, x = slices(), torch.rand(1, 3, 64, 48)
    path = saved(in_file(network), tmp_path / "x.pth")
    heads = list(network.config.num_heads)
    with torch.inference_mode():
        assert torch.equal(load_model(path, device="cpu", num_heads=heads, split_size=[1, 2, 2])(x), network(x))
        assert torch.equal(
            load_model(path, device="cpu", num_heads=heads)(x), network(x)
        )  # 1, 2, 7 as published; the last is whole
        assert (load_model(path, device="cpu", num_heads=heads, split_size=[2, 2, 2])(x) - network(x)).abs().max() > 0.01


def test_other_files_are_refused(tmp_path: Path) -> None:
    network = slices()
    state = in_file(network)
    bare = {key.removeprefix(PREFIX): tensor for key, tensor in state.items()}
    with pytest.raises(WeightsError, match=r"writes before it trains: its weights are random.*epoch_149\.pth"):
        load_model(saved(bare, tmp_path / "cswin_unet.pth"), device="cpu")
    backbone = {key: tensor for key, tensor in bare.items() if encoder_name(key, 3)}
    with pytest.raises(WeightsError, match="a CSWin backbone alone, with which a training can begin"):
        load_model(saved({"state_dict_ema": backbone}, tmp_path / "x.pth"), device="cpu")
    lost = {key: tensor for key, tensor in state.items() if key != PREFIX + "concat_linear2.bias"}
    with pytest.raises(WeightsError, match=r"1 missing \(joins\.2\.bias\)"):
        load_model(saved(lost, tmp_path / "x.pth"), device="cpu", **network.options())
    with pytest.raises(WeightsError, match=r"1 not known to the network \(extra"):
        load_model(saved(state | {PREFIX + "extra": torch.ones(2)}, tmp_path / "x.pth"), device="cpu", **network.options())
    with pytest.raises(WeightsError, match="3 depths do not go with 3 numbers of heads, 2 splits"):
        load_model(saved(state, tmp_path / "x.pth"), device="cpu", split_size=(1, 2))
    with pytest.raises(RequestError, match=r"cswin_unet has no option depths.*split_size, num_heads"):
        load_model(saved(state, tmp_path / "x.pth"), device="cpu", depths=(1, 2, 1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 4}, "2 or 3 spatial dimensions, not 4"),
        ({"depths": (2, 2)}, "2 depths do not go with 3 numbers of heads, 3 splits and 1 strides"),
        ({"embed_dim": 18, "num_heads": (4, 4, 4)}, "18 channels and 4 heads cannot be shared by 2 kinds of bars"),
        ({"patch": (4, 2)}, "for slices the patch is square"),
        ({"strides": ((2, 2), (2, 1))}, r"strides are \(2, 2\)"),
        ({**SMALLER_3D, "num_heads": (2, 2, 2)}, "12 channels and 2 heads cannot be shared by 3 kinds of bars"),
        ({**SMALLER_3D, "patch": (4, 4)}, "are not all of two axes, or of three"),
    ],
)
def test_impossible_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMILY.create(**SMALLER | options)


def test_stochastic_depth_rises_to_its_rate_and_only_trains() -> None:
    network = slices(drop_path=0.3)
    rates = [block.drop_path.rate for block in network.encoder.modules() if isinstance(block, CSWinBlock)]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3], atol=1e-7)
    x = torch.rand(2, 3, 32, 32)
    torch.manual_seed(0)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


def test_begins_as_published() -> None:
    network = FAMILY.create()
    linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
    assert all(not module.bias.any() and abs(float(module.weight.detach().std()) - 0.02) < 0.001 for module in linear)
