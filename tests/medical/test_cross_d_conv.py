"""ResNets and the U-Net of Cross-D Conv: recorded outputs, what a file tells, what is refused."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hybrid.errors import RequestError, WeightsError
from hybrid.training.start import start_from
from hybrid.weights.checkpoints import read_checkpoint
from medical import load_model
from medical.loading import catalogue, save_model
from medical.models import family
from medical.models.base import SegmentationNetwork
from medical.models.cross_d_conv import KEYS, CrossDConfig, CrossDResNet
from medical.segmentation.run import protocol_of
from medical.training.run import Recipe, make_network
from tests.medical.stubs import protocol
from tests.restore.parity import SMALL_CASES, draw, largest_difference, load_case, write_checkpoint

TOLERANCE = 2e-6
SMALL: dict[str, Any] = {"in_channels": 2, "out_channels": 5, "depths": (1, 2), "width": 8}
RESNET50: dict[str, Any] = {"depths": (3, 4, 6, 3), "bottleneck": True}


def made(name: str = "cross_d_conv", **options: Any) -> SegmentationNetwork:
    network = family(name).create(**SMALL | options)
    state = network.state_dict()
    network.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()


def published(network: SegmentationNetwork) -> dict[str, Tensor]:
    return {KEYS.to_published(key): value for key, value in network.state_dict().items()}


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def numbers(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# The published network -------------------------------------------------------------------------------------------


def test_recorded_outputs(tmp_path: Path) -> None:
    case = load_case(SMALL_CASES / "cross_d_conv" / "resnet18_2d_radimagenet165")
    network = load_model(write_checkpoint(case, tmp_path), device="cpu")
    assert numbers(network) == case.parameters == 33_352_357
    assert set(published(network)) == {entry["key"] for entry in case.entries}
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < TOLERANCE


def test_parameters() -> None:
    with torch.device("meta"):
        assert numbers(CrossDResNet(CrossDConfig(out_channels=1000))) == 33_780_712
        for options, plain in (({"depths": (3, 4, 6, 3)}, 21_797_672), (RESNET50, 25_557_032)):
            network = CrossDResNet(CrossDConfig(out_channels=1000, spatial_dims=3, **options))
            flat = [p.numel() // (p.shape[-1] if p.ndim == 5 else 1) for p in network.parameters()]
            assert sum(flat) == plain, "ResNet-34 and 50 of ImageNet"
            assert network.card.title == ("Cross-D ResNet-50" if "bottleneck" in options else "Cross-D ResNet-34")


def test_bottlenecks_have_the_stride_at_their_3x3_convolution() -> None:
    block = made(bottleneck=True).encoder.stages["2"][0]
    assert [step[0].stride for step in block.steps.values()] == [1, 2, 1]
    assert [step[0].weights_3d.shape[:3] for step in block.steps.values()] == [(16, 32, 1), (16, 16, 3), (64, 16, 1)]


def test_catalogue_names_the_published_files() -> None:
    for name, classes in (("cross-d-resnet18-imagenet-classifier", 1000), ("cross-d-resnet18-radimagenet-classifier", 165)):
        entry = catalogue().entry(name)
        with torch.device("meta"):
            network = family(entry.family).create(out_channels=classes)
        assert entry.file(None)[1].parameters == numbers(network)


# What a file tells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cross_d_conv", {}),
        ("cross_d_conv", {"bottleneck": True, "depths": (1, 1, 2), "in_channels": 1}),
        ("cross_d_conv", {"spatial_dims": 3, "out_channels": 1}),
        ("cross_d_unet", {"depths": (2, 1, 1, 1), "width": 5}),
        ("cross_d_unet", {"spatial_dims": 3, "bottleneck": True, "depths": (1,)}),
    ],
)
def test_configuration_is_read_from_names_and_shapes(name: str, options: dict, tmp_path: Path) -> None:
    network = made(name, **options)
    loaded = load_model(saved(published(network), tmp_path / "x.pth"), device="cpu")
    assert type(loaded) is type(network) and loaded.config == network.config
    for key, value in network.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key


@pytest.mark.parametrize("dims", [2, 3])
def test_one_channel_is_repeated_to_three(dims: int) -> None:
    network = made(in_channels=3, spatial_dims=dims)
    x = torch.rand(2, 1, *(20, 24, 18)[:dims], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(network(x), network(torch.cat([x, x, x], 1)))
        for channels in (2, 4):
            with pytest.raises(ValueError, match=r"takes \(B, 3, "):
                network(torch.cat([x] * channels, 1))
        with pytest.raises(ValueError, match=r"takes \(B, 2, "):
            made(spatial_dims=dims)(x)
        assert made(in_channels=1, spatial_dims=dims)(x).shape == (2, 5)


def plain_classifier(state: dict[str, Tensor], x: Tensor) -> Tensor:
    """A ResNet of basic blocks by torchvision's names, made of plain 3-D convolutions, which each pad by half of their kernel."""

    def step(name: str, number: str, x: Tensor, stride: int) -> Tensor:
        conv, norm = (f"{name}{part}{number}" for part in (("conv", "bn") if number else ("0", "1")))
        kernel, moments = state[f"{conv}.weight"], (state[f"{norm}.running_{part}"] for part in ("mean", "var"))
        y = functional.conv3d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2)
        return functional.batch_norm(y, *moments, state[f"{norm}.weight"], state[f"{norm}.bias"])

    x = functional.max_pool3d(step("", "1", x, 2).relu(), 3, 2, 1)
    stage, block = 1, 0
    while f"layer{stage}.{block}.conv1.weight" in state:
        name, stride = f"layer{stage}.{block}.", 2 if stage > 1 and block == 0 else 1
        y = step(name, "2", step(name, "1", x, stride).relu(), 1)
        shortcut = f"{name}downsample."
        x = (y + (step(shortcut, "", x, stride) if f"{shortcut}0.weight" in state else x)).relu()
        stage, block = (stage, block + 1) if f"layer{stage}.{block + 1}.conv1.weight" in state else (stage + 1, 0)
    return functional.linear(x.mean((2, 3, 4)), state["fc.weight"], state["fc.bias"])


def plain_file(path: Path, **options: Any) -> tuple[dict[str, Tensor], Path]:
    slices = published(made(in_channels=3, **options))
    plain = {name.replace("weights_3d", "weight"): value for name, value in slices.items() if "rotation" not in name}
    return plain, saved(plain, path)


def test_classifiers_of_volumes_made_of_plain_convolutions_load_where_they_are_said_to_be_so(tmp_path: Path) -> None:
    """As the authors' evaluation scripts make them of one of slices: kernels are ``X.weight``, and there are no predictors."""
    plain, path = plain_file(tmp_path / "x.pth")
    loaded = load_model(path, device="cpu", plain=True)
    assert loaded.card.spatial_dims == 3 and isinstance(loaded, CrossDResNet)
    x = torch.rand(2, 3, 21, 32, 25, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(x), plain_classifier(plain, x), atol=1e-5, rtol=1e-5)
    less = {name: value for name, value in plain.items() if name != "layer2.1.conv2.weight"}
    with pytest.raises(WeightsError, match="missing"):
        load_model(saved(less, tmp_path / "less.pth"), device="cpu", plain=True)
    single = plain | {"conv1.weight": plain["conv1.weight"][:, :1]}  # another's: published ones take three channels
    with pytest.raises(WeightsError, match="belong to no supported network"):
        load_model(saved(single, tmp_path / "single.pth"), device="cpu", plain=True)


@pytest.mark.parametrize("options", [{}, {"bottleneck": True, "depths": (1, 1)}], ids=str)
def test_files_of_plain_convolutions_are_not_taken_for_a_cross_d_classifier_unasked(options: dict, tmp_path: Path) -> None:
    """Other 3-D ResNets have the same names and shapes, and would give wrong logits."""
    _, path = plain_file(tmp_path / "x.pth", **options)
    for given in ({}, {"plain": False}):
        with pytest.raises(WeightsError, match=r"could be another 3-D ResNet.*plain=True\) takes it for a Cross-D classifier"):
            load_model(path, device="cpu", **given)


def test_what_was_loaded_as_plain_is_written_under_names_that_tell(tmp_path: Path) -> None:
    _, path = plain_file(tmp_path / "x.pth")
    loaded = load_model(path, device="cpu", plain=True)
    save_model(tmp_path / "y.safetensors", loaded)
    for options in ({}, {"plain": True}):  # where names tell, the option changes nothing
        again = load_model(tmp_path / "y.safetensors", device="cpu", **options).state_dict()
        assert all(torch.equal(again[name], value) for name, value in loaded.state_dict().items())


def test_training_checkpoints_load(tmp_path: Path) -> None:
    network = made()
    state = {f"module.{name}": value for name, value in published(network).items()}
    arguments = argparse.Namespace(lr=1e-3, model="resnet18", rot=None)
    content = {"model": state, "optimizer": {"state": {}, "param_groups": []}, "lr_scheduler": {}, "epoch": 89, "args": arguments}
    loaded = load_model(saved(content, tmp_path / "x.pth"), device="cpu")
    x = torch.rand(1, 2, 30, 20, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(loaded(x), network(x))


def test_earlier_operator_is_refused(tmp_path: Path) -> None:
    state = published(made())
    spectrum = {name.replace("weights_3d", "weights_fft"): value for name, value in state.items()}
    short = {name: value[:3] if ".rotation_params.0." in name else value for name, value in state.items()}
    for i, old in enumerate((spectrum, short)):
        with pytest.raises(WeightsError, match="earlier form .* another operator"):
            load_model(saved(old, tmp_path / f"{i}.pth"), device="cpu")


def test_other_stems_are_refused(tmp_path: Path) -> None:
    state = published(made()) | {"conv1.weights_3d": torch.zeros(8, 2, 3, 3, 3)}
    with pytest.raises(WeightsError, match="first kernel of this Cross-D network is 3 x 3 x 3.*7 voxels"):
        load_model(saved(state, tmp_path / "x.pth"), device="cpu")


@pytest.mark.parametrize(
    "absent", ["layer2.1.conv2.rotation_params.3.bias", "layer1.0.conv1.rotation_params.", "bn1.running_var"]
)
def test_incomplete_files_are_refused(absent: str, tmp_path: Path) -> None:
    state = {name: value for name, value in published(made()).items() if not name.startswith(absent)}
    with pytest.raises(WeightsError, match="do not fit CrossDResNet: .*missing"):
        load_model(saved(state, tmp_path / "x.pth"), device="cpu")


def test_files_without_a_head_are_no_network(tmp_path: Path) -> None:
    state = {name: value for name, value in published(made()).items() if not name.startswith("fc.")}
    with pytest.raises(WeightsError, match="belong to no supported network"):
        load_model(saved(state, tmp_path / "x.pth"), device="cpu")


# Classifiers and segmentation ------------------------------------------------------------------------------------


def test_a_classifier_is_refused_where_a_label_map_is_wanted() -> None:
    for dims in (2, 3):
        with pytest.raises(RequestError, match="Cross-D ResNet-8 is made for classification.*outlines nothing"):
            protocol_of(made(spatial_dims=dims, in_channels=1, out_channels=3), protocol())


def test_a_classifier_is_refused_as_what_a_recipe_trains() -> None:
    recipe = {
        "name": "x",
        "licence": "CC0-1.0",
        "protocol": protocol().model_dump(),
        "training": {"steps": 1, "batch": 2, "learning_rate": 1e-3},
    }
    chosen = Recipe.model_validate(recipe | {"network": {"family": "cross_d_conv", "options": {"width": 8}}})
    with pytest.raises(RequestError, match="made for classification, and recipes train segmentation"):
        make_network(chosen)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_classifier_begins_the_training_of_a_unet(dims: int, tmp_path: Path) -> None:
    """In volumes too: kernels and norms of slices are taken as they are."""
    classifier = made()
    path = tmp_path / "x.safetensors"
    save_model(path, classifier)
    network = made("cross_d_unet", out_channels=2, spatial_dims=dims)
    report = start_from(network, read_checkpoint(path).state, rename=KEYS.to_ours)
    assert set(report.taken) == {name for name in network.state_dict() if name.startswith("encoder.")}
    assert all(name.startswith("fc.") or "rotation_params" in name for name in report.unused)
    for name in report.taken:
        assert torch.equal(network.state_dict()[name], classifier.state_dict()[name])


def test_the_unet_sees_all_scales() -> None:
    """Each skip and each stage changes the result, and a change far away reaches every voxel."""
    network = made("cross_d_unet", in_channels=1, depths=(1, 1))
    x = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = network(x)
        for block in network.decoder.values():
            weights = block.steps[0][0].weights_3d
            kept = weights.clone()
            weights[:, -1] = 0  # the last channel of the skip
            assert (network(x) - whole).abs().max() > 1e-4
            weights.copy_(kept)
        assert torch.equal(network(x), whole)
        x[..., 0, 0] += 5
        assert (network(x) - whole)[..., -1, -1].abs().max() > 0
