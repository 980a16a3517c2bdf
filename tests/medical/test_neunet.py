"""neU-Net against recorded outputs of the published network, and against plain torch with PyWavelets."""

from __future__ import annotations

import itertools
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.errors import RequestError, WeightsError
from medical import load_model
from medical.loading import save_model
from medical.models.neunet import CONFIGURATIONS, KEYS, NeUNet, NeUNetConfig, build, create, read_config, wavelet_inputs
from medical.models.neunet_blocks import pixel_shuffle
from tests.restore.parity import SMALL_CASES, draw, fill, largest_difference, load_case, write_checkpoint

TOLERANCE = 2e-5
PUBLISHED = {("synapse", 14): 181_132_838, ("btcv", 9): 181_128_813, ("acdc", 4): 161_276_852, ("brats", 4): 204_063_668}
FLAT: dict[str, Any] = {  # strides and kernels as of the data with thick slices
    "features": (4, 6, 8, 10),
    "strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2), (1, 2, 2)),
    "kernels": ((1, 3, 3), (1, 3, 3), (3, 3, 3), (3, 3, 3)),
    "in_channels": 2,
    "out_channels": 3,
}
SLICES: dict[str, Any] = {"spatial_dims": 2, "features": (4, 6, 8, 10), "in_channels": 2, "out_channels": 3}


def neunet(**options) -> NeUNet:
    """Numbers that are all different, so that none can stand in for another."""
    network = create(**options)
    network.load_state_dict({k: draw(k, list(v.shape), 0) for k, v in network.state_dict().items()})
    return network.eval()


def published(network: NeUNet) -> dict[str, Tensor]:
    return {KEYS.to_published(key): value for key, value in network.state_dict().items()}


def with_aliases(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict as the reference code writes it: blocks twice, the encoder again inside the decoder."""
    whole = dict(state)
    for key, value in state.items():
        for part, number in (("conv", 0), ("norm", 1)):
            if f".{part}." in key:
                whole[key.replace(f".{part}.", f".all_modules.{number}.")] = value
    return whole | {f"decoder.{key}": value for key, value in whole.items() if key.startswith("encoder.")}


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def scan(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))


# Plain torch: channels-first, joined by concatenation, wavelets of PyWavelets -------------------------------------


def plain_inputs(x: Tensor, strides: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    """The list of inputs that the published network takes: the scan twice, then its sub-bands, channels-first."""
    entries, low = [x, x], x.numpy()
    for stride in strides[1:-2]:
        axes = [axis + 2 for axis, step in enumerate(stride) if step == 2]
        found = pywt.dwtn(low, "haar", axes=axes)
        entries.append(torch.from_numpy(np.concatenate([found[name] for name in sorted(found)], axis=1)))
        low = found["a" * len(axes)]
    return entries


def plain_network(state: dict[str, Tensor], entries: list[Tensor], config: NeUNetConfig) -> list[Tensor]:
    """All scales, the full one first, from a state dict under published keys."""
    conv = (F.conv2d, F.conv3d)[config.spatial_dims - 2]

    def plain(key: str, x: Tensor, **options) -> Tensor:
        weight = state[f"{key}.weight"]
        return conv(x, weight, state[f"{key}.bias"], padding=[n // 2 for n in weight.shape[2:]], **options)

    def block(key: str, x: Tensor, **options) -> Tensor:
        y = plain(f"{key}.conv", x, **options)
        return F.leaky_relu(F.instance_norm(y, weight=state[f"{key}.norm.weight"], bias=state[f"{key}.norm.bias"]), 0.01)

    def shuffle(x: Tensor, stride: tuple[int, ...]) -> Tensor:
        channels, sides = x.shape[1] // prod(stride), [n * step for n, step in zip(x.shape[2:], stride, strict=True)]
        y = x.new_empty(len(x), channels, *sides)
        for number, offset in enumerate(itertools.product(*map(range, stride))):
            at = [slice(o, None, step) for o, step in zip(offset, stride, strict=True)]
            y[(slice(None), slice(None), *at)] = x[:, number :: prod(stride)]
        return y

    grids, x, stages = [], entries[0], len(config.features)
    for s in range(stages):
        if 0 < s < stages - 1 and config.wavelets:
            x = torch.cat([x, block(f"encoder.multiscale_input.{s - 1}", entries[s])], 1)
        for c in range(config.convolutions):
            x = block(f"encoder.stages.{s}.0.convs.{c}", x, stride=config.strides[s] if c == 0 else 1)
        grids.append(x)
    found = []
    for s in range(stages - 1):
        x = torch.tanh(plain(f"decoder.convswithpixelshuffle.{s}.conv1", x))
        x = torch.tanh(plain(f"decoder.convswithpixelshuffle.{s}.conv2", x))
        x = torch.cat([shuffle(x, config.strides[stages - 1 - s]), grids[stages - 2 - s]], 1)
        for c in range(config.decoder_convolutions):
            x = block(f"decoder.stages.{s}.convs.{c}", x)
        found.append(plain(f"decoder.seg_layers.{s}", x))
    return found[::-1]


FORMS = [
    (FLAT, (1, 2, 4, 16, 24)),
    (FLAT, (2, 2, 2, 24, 16)),
    (FLAT | {"strides": ((1, 1, 1), (2, 1, 1), (1, 1, 2), (1, 2, 2))}, (1, 2, 6, 4, 8)),  # one axis: ours alone
    (FLAT | {"strides": (), "wavelets": False, "convolutions": 1, "decoder_convolutions": 3}, (1, 2, 8, 16, 8)),
    (SLICES, (1, 2, 16, 40)),
    (SLICES | {"convolutions": 3, "kernels": ((5, 3), (3, 3), (1, 3), (3, 3))}, (2, 2, 24, 32)),
    ({"features": (4, 8), "out_channels": 2, "spatial_dims": 2}, (1, 1, 6, 4)),
]


@pytest.mark.parametrize(("options", "shape"), FORMS)
def test_same_as_plain_torch(options: dict, shape: tuple[int, ...]) -> None:
    network = neunet(**options)
    x = scan(*shape)
    expected = plain_network(published(network), plain_inputs(x, network.config.strides), network.config)
    with torch.inference_mode():
        for found, wanted in zip(network.all_scales(x), expected, strict=True):
            torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(network(x), expected[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("options", [FLAT, SLICES])
def test_gradients_are_those_of_plain_torch(options: dict) -> None:
    network = neunet(**options, deep_supervision=True).train()
    x = scan(2, 2, *(4, 16, 24)[-network.config.spatial_dims :])
    state = {key: value.detach().double().requires_grad_() for key, value in published(network).items()}
    entries = [entry.double() for entry in plain_inputs(x, network.config.strides)]
    torch.stack([y.square().mean() for y in network(x)]).sum().backward()
    torch.stack([y.square().mean() for y in plain_network(state, entries, network.config)]).sum().backward()
    for name, parameter in network.named_parameters():
        wanted = state[KEYS.to_published(name)].grad
        assert parameter.grad is not None and wanted is not None, name
        torch.testing.assert_close(parameter.grad.double(), wanted, atol=2e-4, rtol=1e-3)


# The published network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["reduced_plain", "reduced_deep_supervision"])
def test_recorded_outputs(name: str, tmp_path: Path) -> None:
    case = load_case(SMALL_CASES / "neunet" / name)
    network = load_model(write_checkpoint(case, tmp_path), device="cpu", **case.given)
    assert sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < TOLERANCE


def test_all_recorded_outputs(shared: Path, tmp_path: Path) -> None:
    cases = [load_case(folder) for folder in sorted((shared / "parity" / "neunet").iterdir())]
    assert len(cases) == 4
    for case in cases:
        network = load_model(write_checkpoint(case, tmp_path), device="cpu", **case.given)
        assert sum(p.numel() for p in network.parameters()) == case.parameters
        with torch.inference_mode():
            assert largest_difference(network(torch.from_numpy(case.input)), case) < TOLERANCE, str(case)


@pytest.mark.parametrize(("which", "count"), PUBLISHED.items())
def test_published_configurations(which: tuple[str, int], count: int) -> None:
    name, classes = which
    with torch.device("meta"):
        network = create(name, out_channels=classes)
    assert sum(p.numel() for p in network.parameters()) == count
    patch = {"acdc": (10, 96, 96), "brats": (128, 128, 128)}.get(name, (48, 192, 192))
    assert network.padded(patch) == patch
    shapes = with_aliases(published(network))
    assert len(shapes) == 366
    assert read_config(shapes) == network.config


def test_published_names_in_their_order() -> None:
    case = load_case(SMALL_CASES / "neunet" / "reduced_deep_supervision")
    network = build(fill(case))
    mine = published(network)
    theirs = {e["key"]: tuple(e["shape"]) for e in case.entries if e["kind"] == "float"}
    assert {key: tuple(value.shape) for key, value in mine.items()} == theirs
    assert set(with_aliases(mine)) == {e["key"] for e in case.entries}


# Files -----------------------------------------------------------------------------------------------------------


def nnunet_checkpoint(state: dict[str, Tensor]) -> dict:
    """What the trainer of nnU-Net 2 leaves, as far as it matters to a reader."""
    moments = {0: {"momentum_buffer": torch.ones(3)}}
    return {
        "network_weights": state,
        "optimizer_state": {"state": moments, "param_groups": [{"lr": 0.01, "params": [0]}]},
        "grad_scaler_state": {"scale": 65536.0, "_growth_tracker": 3},
        "logging": {"mean_fg_dice": [np.float64(0.9)], "epoch_end_timestamps": [1.7e9]},
        "_best_ema": np.float64(0.91),
        "current_epoch": 1000,
        "init_args": {"plans": {"plans_name": "nnUNetPlans"}, "fold": 0, "device": torch.device("cuda")},
        "trainer_name": "nnUNetTrainer",
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_files_of_the_published_training(prefix: str, tmp_path: Path) -> None:
    network = neunet(**FLAT)
    state = {prefix + key: value for key, value in with_aliases(published(network)).items()}
    loaded = load_model(saved(nnunet_checkpoint(state), tmp_path / "checkpoint_final.pth"), device="cpu")
    assert isinstance(loaded, NeUNet) and loaded.config == network.config and loaded.card == network.card
    x = scan(1, 2, 4, 16, 16)
    with torch.inference_mode():
        assert torch.equal(loaded(x), network(x))


def test_aliases_are_not_asked_for(tmp_path: Path) -> None:
    network = neunet(**FLAT)
    loaded = load_model(saved(published(network), tmp_path / "x.pth"), device="cpu")
    assert all(torch.equal(value, loaded.state_dict()[key]) for key, value in network.state_dict().items())


def test_loading_is_strict(tmp_path: Path) -> None:
    state = with_aliases(published(neunet(**FLAT)))
    lost = {key: value for key, value in state.items() if key != "encoder.stages.1.0.convs.1.norm.bias"}  # its aliases are there
    with pytest.raises(WeightsError, match=r"1 missing \(encoder\.stages\.1\.1\.norm\.bias\)"):
        load_model(saved(lost, tmp_path / "x.pth"), device="cpu")
    with pytest.raises(WeightsError, match="1 not known to the network"):
        load_model(saved(state | {"decoder.stages.0.convs.0.norm.scale": torch.ones(3)}, tmp_path / "x.pth"), device="cpu")
    with pytest.raises(WeightsError, match="of another shape"):
        load_model(saved(state | {"decoder.seg_layers.1.bias": torch.ones(9)}, tmp_path / "x.pth"), device="cpu")


def test_strides_that_shapes_do_not_tell(tmp_path: Path) -> None:
    strides = ((1, 1, 1), (2, 1, 1), (2, 2, 2), (2, 2, 1))
    network = neunet(**FLAT | {"strides": strides})
    path = saved(published(network), tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="2 times its voxels, which does not tell along which axes.*pool_op_kernel_sizes"):
        load_model(path, device="cpu")
    told = load_model(path, device="cpu", strides=strides)
    save_model(tmp_path / "x.safetensors", network)
    kept = load_model(tmp_path / "x.safetensors", device="cpu")
    x = scan(1, 2, 16, 8, 6)
    with torch.inference_mode():
        assert torch.equal(told(x), network(x)) and torch.equal(kept(x), network(x))
    with pytest.raises(WeightsError, match="of another shape"):
        load_model(path, device="cpu", strides=((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 1)))
    with pytest.raises(RequestError, match="takes strides, deep_supervision"):
        load_model(path, device="cpu", merging="v2")


def test_files_do_not_remember_deep_supervision(tmp_path: Path) -> None:
    """A trained network is one that segments."""
    save_model(tmp_path / "x.safetensors", neunet(**FLAT, deep_supervision=True))
    assert isinstance(load_model(tmp_path / "x.safetensors", device="cpu")(scan(1, 2, 4, 16, 16)), Tensor)


# Sizes and scales ------------------------------------------------------------------------------------------------


def test_each_axis_has_its_multiple() -> None:
    network = create(**FLAT)
    assert network.config.multiples == (2, 8, 8) and network.card.multiple == 8
    assert network.padded((3, 8, 9)) == (4, 8, 16)
    assert network.padded((1, 1, 1)) == (4, 8, 8), "one voxel has no variance"
    assert network.padded((4, 1, 1)) == (4, 8, 8)


def test_filled_up_with_zeros_along_each_axis() -> None:
    network, x = neunet(**FLAT), scan(1, 2, 3, 13, 6)
    padded = torch.from_numpy(np.pad(x.numpy(), [(0, 0), (0, 0), (0, 1), (0, 3), (0, 2)]))
    with torch.inference_mode():
        assert torch.equal(network(x), network(padded)[:, :, :3, :13, :6])


def test_scales_of_deep_supervision() -> None:
    network, x = neunet(**FLAT, deep_supervision=True), scan(1, 2, 3, 13, 6)
    with torch.inference_mode():
        found = network(x)
        assert [tuple(y.shape[2:]) for y in found] == [(3, 13, 6), (3, 7, 3), (2, 4, 2)]
        network.deep_supervision = False
        assert torch.equal(network(x), found[0])
    assert all(y.dtype == torch.float32 for y in found)
    with pytest.raises(ValueError, match=r"neU-Net takes \(B, 2, D, H, W\), not"):
        network.all_scales(x[:, :1])


@pytest.mark.parametrize("deep", [False, True])
def test_which_heads_learn(deep: bool) -> None:
    network = create(**FLAT, deep_supervision=deep)
    still = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    coarse = {f"decoder.heads.{s}.{kind}" for s in (0, 1) for kind in ("weight", "bias")}
    assert still == (set() if deep else coarse)


# Wavelets --------------------------------------------------------------------------------------------------------


def test_inputs_are_those_of_the_published_data_loader() -> None:
    strides = CONFIGURATIONS["synapse"].strides
    x = scan(2, 3, 8, 32, 16)
    found = list(wavelet_inputs(x.movedim(1, -1), strides))
    expected = plain_inputs(x, strides)[1:]
    assert [y.shape[-1] for y in found] == [3, 12, 24, 24]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.movedim(-1, 1), theirs)


@pytest.mark.parametrize("axes", [(0,), (2,), (0, 1, 2)])
def test_mirrored_as_published(axes: tuple[int, ...]) -> None:
    """The published test-time augmentation mirrors the sub-bands themselves; that is another input, and another result."""
    network, x = neunet(**FLAT), scan(1, 2, 4, 16, 24)
    turned = [axis - 3 for axis in axes]
    entries = [entry.flip(turned) for entry in plain_inputs(x, network.config.strides)]
    expected = plain_network(published(network), entries, network.config)[0]
    with torch.inference_mode():
        found = network.segment(x.flip(turned), mirrored=axes)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert (network(x.flip(turned)) - found).abs().max() > 0.01 or axes == (0,)  # the one set of details halves no slices


# Blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 2, 1, 3)])
def test_shuffle_of_slices_is_that_of_torch(shape: tuple[int, ...]) -> None:
    x = scan(*shape[:3], shape[3] * 4)
    expected = nn.PixelShuffle(2)(x.movedim(-1, 1)).movedim(1, -1)
    assert torch.equal(pixel_shuffle(x, (2, 2)), expected)


def test_shuffle_of_volumes() -> None:
    """Voxel by voxel, by the rule of the paper's code: channel ((c * f + i) * g + j) * h + k goes to c at (i, j, k)."""
    x, factors = scan(1, 2, 3, 2, 24), (1, 2, 3)
    y = pixel_shuffle(x, factors)
    assert y.shape == (1, 2, 6, 6, 4)
    for d, h, w, c in np.ndindex(2, 3, 2, 4):
        for i, j, k in np.ndindex(*factors):
            assert y[0, d + i, 2 * h + j, 3 * w + k, c] == x[0, d, h, w, ((c * 1 + i) * 2 + j) * 3 + k]


# Configurations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spatial_dims": 4}, "2 or 3 spatial dimensions and two stages at least, not 4"),
        ({"features": (8,)}, "two stages at least, not 3 and 1"),
        ({"strides": ((1, 1), (2, 2))}, "strides are one number for each of 3 axes of each of 6 stages"),
        ({"features": (8, 8), "strides": ((1, 1, 1), (3, 2, 2))}, "strides are 1 or 2, and 1 into the first stage"),
        ({"features": (8, 8), "strides": ((2, 2, 2), (2, 2, 2))}, "strides are 1 or 2, and 1 into the first stage"),
        ({"features": (8, 8), "kernels": ((3, 3, 3), (2, 3, 3))}, "kernels have odd edges"),
        ({"configuration": "kits"}, "no configuration 'kits', only synapse, btcv, acdc, brats"),
    ],
)
def test_configurations_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**options)


def test_lists_from_a_recipe_are_taken() -> None:
    network = create(features=[4, 8, 8], strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]], out_channels=2)
    assert network.config.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2)) and network.config.features == (4, 8, 8)


def test_initial_weights() -> None:
    """Kaiming normal for the slope of the activation, by fan-in."""
    torch.manual_seed(0)
    network = create(features=(16, 32, 64), out_channels=2)
    weight = network.state_dict()["decoder.ups.0.conv1.weight"]
    assert weight.std().item() == pytest.approx((2 / (1 + 0.01**2) / (64 * 125)) ** 0.5, rel=0.01)
    assert all(not p.any() for name, p in network.state_dict().items() if name.endswith("bias"))
    assert all((p == 1).all() for name, p in network.state_dict().items() if name.endswith("norm.weight"))
