"""Swin UNETR against recorded outputs of the published network, and against MONAI's own with fresh weights."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hybrid.errors import RequestError, WeightsError
from medical import load_model
from medical.loading import save_model
from medical.models.swin_unetr import FAMILY, KEYS, PatchMerging, SwinUNETR, SwinUNETRConfig, read_config
from medical.models.swin_unetr_encoder import load_encoder
from tests.restore.parity import SMALL_CASES, Case, draw, fill, largest_difference, load_case, write_checkpoint

TOLERANCE = 3e-5
"""Tighter than the cases' own: a variance by the difference of mean squares is off by 1e-3 where the grid has two voxels.

The rounding of float32 is 0.9e-5 with torch's own convolutions and 2.7e-5 with oneDNN's, measured against float64.
"""
CASES = ["f12_not_normalized_depths2422_legacy", "f24_2d"]
PUBLISHED = {  # in, out, feature size: parameters
    (1, 14, 48): 62_187_296,
    (1, 14, 24): 15_703_304,
    (1, 14, 12): 4_078_220,
    (4, 3, 48): 62_191_941,
}
SMALLER = {"feature_size": 12, "depths": (2, 1), "num_heads": (2, 3), "window": 3, "out_channels": 2}
ORDERS = {
    "legacy": "000 100 010 001 101 010 001 111",
    "merging15": "000 100 010 001 110 101 011 111",
    "v2_091": "000 100 010 001 101 110 011 111",
    "v2": "000 001 010 011 100 101 110 111",
}


@pytest.fixture(scope="module")
def encoder_case() -> Case:
    return load_case(SMALL_CASES / "swin_unetr" / "encoder_f24_ssl_checkpoint_keys")


def drawn(module: nn.Module) -> nn.Module:
    """Numbers that are all different, so that none can stand in for another."""
    state = module.state_dict()
    module.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return module.eval()


def swin_unetr(**options) -> SwinUNETR:
    network = drawn(FAMILY.create(**SMALLER | options))
    assert isinstance(network, SwinUNETR)
    return network


def published(network: SwinUNETR) -> dict[str, Tensor]:
    return {KEYS.to_published(key): value for key, value in network.state_dict().items()}


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


# The published network -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_recorded_outputs(name: str, tmp_path: Path) -> None:
    case = load_case(SMALL_CASES / "swin_unetr" / name)
    network = load_model(write_checkpoint(case, tmp_path), device="cpu", **case.given)
    assert sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < min(TOLERANCE, case.tolerance)


def test_all_recorded_outputs(shared: Path, tmp_path: Path) -> None:
    cases = [load_case(folder) for folder in sorted((shared / "parity" / "swin_unetr").iterdir()) if "encoder" not in folder.name]
    assert len(cases) == 5
    for case in cases:
        network = load_model(write_checkpoint(case, tmp_path), device="cpu", **case.given)
        with torch.inference_mode():
            assert largest_difference(network(torch.from_numpy(case.input)), case) < TOLERANCE, str(case)


@pytest.mark.parametrize(
    ("theirs", "merging", "shape"),
    [
        ({"spatial_dims": 3}, "merging15", (1, 2, 64, 32, 32)),
        ({"spatial_dims": 3, "downsample": "mergingv2"}, "v2", (2, 2, 32, 64, 32)),
        ({"spatial_dims": 3, "downsample": "mergingv2", "use_v2": True, "depths": (1, 2, 1, 1)}, "v2", (1, 2, 32, 32, 64)),
        ({"spatial_dims": 3, "normalize": False, "qkv_bias": False, "mlp_ratio": 2.0, "patch_norm": True, "window_size": 5},
         "merging15", (1, 2, 64, 32, 32)),
        ({"spatial_dims": 2}, "legacy", (2, 2, 128, 96)),
        ({"spatial_dims": 2, "downsample": "mergingv2", "use_v2": True}, "v2", (1, 2, 224, 224)),
    ],
)  # fmt: skip
def test_same_as_monai(theirs: dict, merging: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    """MONAI has not the order `legacy` any more; in slices all orders are one."""
    from monai.networks.nets import SwinUNETR as MONAISwinUNETR

    reference = drawn(MONAISwinUNETR(in_channels=2, out_channels=3, feature_size=12, **theirs))
    path = saved(reference.state_dict(), tmp_path / "x.pth")
    network = load_model(path, device="cpu", merging=merging, normalize=theirs.get("normalize", True))
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network(x), reference(x), atol=1e-4, rtol=0)  # MONAI rounds too


def test_gradients_are_those_of_monai() -> None:
    from monai.networks.nets import SwinUNETR as MONAISwinUNETR

    reference = drawn(MONAISwinUNETR(in_channels=1, out_channels=2, feature_size=12, spatial_dims=2)).train()
    network = FAMILY.build(reference.state_dict())
    network.load_state_dict({KEYS.to_ours(k): v for k, v in reference.state_dict().items() if not k.endswith("index")})
    x = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(0))
    for net in (reference, network.train()):
        net(x).square().mean().backward()
    theirs = {KEYS.to_ours(name): parameter.grad for name, parameter in reference.named_parameters()}
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize(("channels", "count"), PUBLISHED.items())
def test_published_parameter_counts(channels: tuple[int, int, int], count: int) -> None:
    inputs, outputs, features = channels
    with torch.device("meta"):
        network = SwinUNETR(SwinUNETRConfig(in_channels=inputs, out_channels=outputs, feature_size=features))
    assert sum(p.numel() for p in network.parameters()) == count
    assert network.card.multiple == 32


# Merging orders --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merging", ORDERS)
def test_merging_orders_in_volumes(merging: str) -> None:
    """Against a loop over the voxels, with the orders as they are written down."""
    config = SwinUNETRConfig(merging=merging)
    merge = PatchMerging(3, config.offsets)
    merge.norm, merge.reduction = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    x = np.random.default_rng(0).normal(size=(2, 4, 2, 6, 3))
    expected = np.empty((2, 2, 1, 3, 24))
    for b, d, h, w in np.ndindex(2, 2, 1, 3):
        parts = [tuple(map(int, offset)) for offset in ORDERS[merging].split()]
        expected[b, d, h, w] = np.concatenate([x[b, 2 * d + i, 2 * h + j, 2 * w + k] for i, j, k in parts])
    np.testing.assert_array_equal(merge(torch.from_numpy(x)), expected)


def test_order_in_slices_is_one() -> None:
    offsets = {SwinUNETRConfig(spatial_dims=2, merging=merging).offsets for merging in ORDERS}
    assert offsets == {((0, 0), (1, 0), (0, 1), (1, 1))}


def test_each_order_is_another_network(tmp_path: Path) -> None:
    """Shapes never tell the order: it must come from the name, the options or the file's header."""
    path = saved(published(swin_unetr()), tmp_path / "x.pth")
    x = torch.rand(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = {merging: load_model(path, device="cpu", merging=merging)(x) for merging in ORDERS}
        for one, other in itertools.combinations(ORDERS, 2):
            assert (outputs[one] - outputs[other]).abs().max() > 0.01
        assert torch.equal(load_model(path, device="cpu")(x), outputs["legacy"])


def test_version_2_is_taken_for_its_order(tmp_path: Path) -> None:
    network = swin_unetr(stage_convolutions=True)
    assert read_config(published(network)).merging == "v2"
    assert read_config(published(swin_unetr())).merging == "legacy"


def test_order_is_kept_in_files_of_this_package(tmp_path: Path) -> None:
    network = swin_unetr(merging="v2_091", normalize=False)
    save_model(tmp_path / "x.safetensors", network)
    loaded = load_model(tmp_path / "x.safetensors", device="cpu")
    assert isinstance(loaded, SwinUNETR) and loaded.config == network.config


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spatial_dims": 2, "in_channels": 3, "window": 7},
        {"depths": (2, 2, 2), "num_heads": (3, 6, 12), "out_channels": 3, "merging": "v2", "stage_convolutions": True},
        {"depths": (1, 3, 1, 1), "num_heads": (1, 2, 3, 4), "qkv_bias": False, "patch_norm": True, "mlp_ratio": 1.5, "window": 2},
        {"depths": (1, 1, 1, 1, 1), "num_heads": (1, 1, 2, 2, 4), "spatial_dims": 2},
    ],
)
def test_configuration_is_read_back_from_the_file(options: dict) -> None:
    network = swin_unetr(**options)
    state = published(network)
    assert len(state) == len(network.state_dict()) and all(not k.startswith(("encoder.", "refine", "decoder.")) for k in state)
    assert [KEYS.to_ours(key) for key in state] == list(network.state_dict())
    assert FAMILY.matches(state) and read_config(state) == network.config
    assert network.card.multiple == 2 ** (len(network.config.depths) + 1)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "module.backbone."])
def test_wrapped_files(wrapper: str, prefix: str, tmp_path: Path) -> None:
    network = swin_unetr()
    state = {prefix + key: value for key, value in published(network).items()}
    index = prefix + "swinViT.layers1.0.blocks.0.attn.relative_position_index"
    state[index] = torch.zeros(27, 27, dtype=torch.int64)
    path = saved({"epoch": 3, "best_acc": 0.8, wrapper: state, "optimizer": {"lr": 1e-4}}, tmp_path / "model.pt")
    loaded = load_model(path, device="cpu")
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in network.state_dict().items())


def test_changed_files_are_refused(tmp_path: Path) -> None:
    state = published(swin_unetr())
    lost = dict(state)
    del lost["encoder2.layer.conv2.conv.weight"]
    with pytest.raises(WeightsError, match=r"1 missing \(refine\.2\.conv2\.weight\)"):
        load_model(saved(lost, tmp_path / "x.pth"), device="cpu")
    with pytest.raises(WeightsError, match=r"1 not known to the network \(refine\.7"):
        load_model(saved(state | {"encoder7.layer.conv1.conv.weight": torch.ones(2)}, tmp_path / "x.pth"), device="cpu")
    with pytest.raises(WeightsError, match="norms with weights in its decoder"):
        load_model(saved(state | {"encoder2.layer.norm1.weight": torch.ones(12)}, tmp_path / "x.pth"), device="cpu")
    with pytest.raises(WeightsError, match="a patch other than 2"):
        patches = {"swinViT.patch_embed.proj.weight": torch.ones(12, 1, 4, 4, 4)}
        load_model(saved(state | patches, tmp_path / "x.pth"), device="cpu")
    with pytest.raises(WeightsError, match="a window that is no cube"):
        table = {"swinViT.layers1.0.blocks.0.attn.relative_position_bias_table": torch.ones(100, 2)}
        load_model(saved(state | table, tmp_path / "x.pth"), device="cpu")
    with pytest.raises(WeightsError, match="no merging order 'v3', only legacy"):
        load_model(saved(state, tmp_path / "x.pth"), device="cpu", merging="v3")
    with pytest.raises(RequestError, match=r"swin_unetr has no option depths.*merging, normalize"):
        load_model(saved(state, tmp_path / "x.pth"), device="cpu", depths=(2, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"merging": "mergingv2"}, "no merging order 'mergingv2'"),
        ({"spatial_dims": 4}, "2 or 3 spatial dimensions"),
        ({"depths": (2, 2, 2)}, "3 depths do not go with 2 numbers of heads"),
        ({"feature_size": 16}, "32 channels cannot be shared by 3 heads"),
    ],
)
def test_impossible_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMILY.create(**SMALLER | options)


def test_last_grid_has_two_tokens() -> None:
    """Instance norm makes nothing of one: such an input is filled up further, and logits still have its size."""
    network = swin_unetr()
    assert network.padded((8, 8, 8)) == (16, 8, 8) and network.padded((3, 8, 9)) == (8, 8, 16)
    x = torch.rand(1, 1, 8, 8, 8)
    with torch.inference_mode():
        filled = torch.cat([x, torch.zeros_like(x)], dim=2)
        assert torch.equal(network(x), network(filled)[:, :, :8])


def test_stochastic_depth_rises_to_its_rate_and_only_trains() -> None:
    network = swin_unetr(drop_path=0.4)
    rates = [block.drop_path.rate for stage in network.encoder.stages.values() for block in stage.blocks]  # type: ignore[union-attr]
    np.testing.assert_allclose(rates, [0, 0.2, 0.4], atol=1e-7)
    x = torch.rand(2, 1, 16, 8, 8)
    torch.manual_seed(0)
    assert not torch.equal(network.train()(x), network(x))
    assert torch.equal(network.eval()(x), network(x))


# Encoders --------------------------------------------------------------------------------------------------------


def test_recorded_self_supervised_encoder(encoder_case: Case, tmp_path: Path) -> None:
    """Its file names things otherwise, and holds more than the encoder."""
    state = fill(encoder_case) | {"module.norm.weight": torch.ones(384), "module.rotation_head.weight": torch.ones(4, 384)}
    network = SwinUNETR(SwinUNETRConfig(feature_size=24)).eval()
    decoder = {k: v.clone() for k, v in network.state_dict().items() if not k.startswith("encoder.")}
    assert load_encoder(network, saved({"state_dict": state}, tmp_path / "model_swinvit.pt")) == len(fill(encoder_case)) == 118
    assert all(torch.equal(network.state_dict()[key], value) for key, value in decoder.items())
    with torch.inference_mode():
        hidden = network.encoder(torch.from_numpy(encoder_case.input))
    hidden[0] = hidden[0][:, ::3]
    worst = max(float((h - torch.from_numpy(o)).abs().max()) for h, o in zip(hidden, encoder_case.outputs, strict=True))
    assert worst < TOLERANCE


def encoder_file(network: SwinUNETR, path: Path, form: str) -> Path:
    own = {k.removeprefix("swinViT."): v for k, v in published(network).items() if k.startswith("swinViT.")}
    if form == "whole":
        return saved(published(network), path)
    if form == "disruptive":
        own = {"encoder." + k.replace(".0.", ".0.0.", 1) if k.startswith("layers") else "encoder." + k: v for k, v in own.items()}
        others = {"encoder.mask_token": torch.ones(1), "encoder.norm.weight": torch.ones(4), "decoder.0.weight": torch.ones(2)}
        return saved({"model": own | others}, path)
    return saved({"state_dict": {"module." + k.replace("mlp.linear", "mlp.fc"): v for k, v in own.items()}}, path)


@pytest.mark.parametrize("form", ["swinvit", "disruptive", "whole"])
def test_forms_of_encoder_files(form: str, tmp_path: Path) -> None:
    given, network = swin_unetr(), FAMILY.create(**SMALLER)
    assert isinstance(network, SwinUNETR)
    count = load_encoder(network, encoder_file(given, tmp_path / "x.pt", form))
    assert count == len(given.encoder.state_dict()) == len(network.encoder.state_dict())
    assert all(torch.equal(network.encoder.state_dict()[key], value) for key, value in given.encoder.state_dict().items())


def test_encoder_of_one_channel_serves_several(tmp_path: Path) -> None:
    given, network = swin_unetr(), SwinUNETR(SwinUNETRConfig(in_channels=3, **SMALLER))
    load_encoder(network, encoder_file(given, tmp_path / "x.pt", "swinvit"))
    x = torch.rand(1, 1, 8, 8, 16)
    torch.testing.assert_close(network.encoder.tokens(x.expand(-1, 3, -1, -1, -1)), given.encoder.tokens(x))


def test_encoders_that_do_not_match_are_refused(tmp_path: Path) -> None:
    given, network = swin_unetr(), swin_unetr()
    path = encoder_file(given, tmp_path / "x.pt", "swinvit")
    state = torch.load(path, weights_only=True)["state_dict"]
    before = {key: value.clone() for key, value in network.state_dict().items()}
    lost = {key: value for key, value in state.items() if "layers2.0.downsample.norm.bias" not in key}
    with pytest.raises(WeightsError, match=r"1 missing \(stages\.2\.merging\.norm\.bias\)"):
        load_encoder(network, saved(lost, tmp_path / "y.pt"))
    with pytest.raises(WeightsError, match="not known to the network"):
        load_encoder(network, saved(state | {"module.layers2.0.blocks.1.norm1.bias": torch.ones(24)}, tmp_path / "y.pt"))
    with pytest.raises(WeightsError, match=r"y\.pt holds no encoder of Swin UNETR"):
        load_encoder(network, saved({"conv.weight": torch.ones(3)}, tmp_path / "y.pt"))
    assert all(torch.equal(network.state_dict()[key], value) for key, value in before.items())
    other = SwinUNETR(dataclasses.replace(network.config, merging="v2"))
    with pytest.raises(RequestError, match=r"trained with the merging order legacy, and the network has v2.*merging='legacy'"):
        load_encoder(other, path)


def test_encoder_alone_is_not_taken_for_a_network(tmp_path: Path) -> None:
    for form in ("swinvit", "disruptive"):
        with pytest.raises(WeightsError, match="look like an encoder of Swin UNETR alone, with which a training can begin"):
            load_model(encoder_file(swin_unetr(), tmp_path / "x.pt", form), device="cpu")
