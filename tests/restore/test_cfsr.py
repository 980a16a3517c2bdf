"""CFSR against recorded outputs of the published network; its training form against the sum of its branches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor
from torch.nn import functional as F

from hybrid.blocks.convolution import (
    DepthwiseConvolution,
    EdgeConvolution,
    EdgeFeedForward,
    LargeKernelConvolution,
    LargeKernelMixer,
    PointwiseConvolution,
    edge_masks,
    in_row_strips,
    merge_branches,
)
from hybrid.errors import RequestError, WeightsError
from hybrid.initialisation import SkipRandomFill
from restore import load_model
from restore.models.cfsr import CFSR, FAMILY, KEYS, CFSRConfig, read_config
from tests.restore.parity import SMALL_CASES, draw, fill, largest_difference, load_case, write_checkpoint

TOLERANCE = 3e-5
"""Tighter than the cases' own: the tanh formula of GELU would pass theirs."""
SMALL = CFSRConfig(embed_dim=6, depths=(1, 2), kernel=5, scale=2)


def published(network: CFSR) -> dict[str, Tensor]:
    """The network's entries under their published names, with numbers that are all different; masks stay."""
    state = {KEYS.to_published(key): value for key, value in network.state_dict().items()}
    return {key: value if "mask" in key else draw(key, list(value.shape), 0) for key, value in state.items()}


def saved(state: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"params": state}, folder / "x.pth")
    return folder / "x.pth"


@torch.inference_mode()
def run(path: Path, x: Tensor) -> Tensor:
    return load_model(path, device="cpu")(x)


def check(folder: Path, scratch: Path) -> None:
    case = load_case(folder)
    network = load_model(write_checkpoint(case, scratch), device="cpu", **case.given)
    assert isinstance(network, CFSR) and sum(p.numel() for p in network.parameters()) == case.parameters
    assert [KEYS.to_published(key) for key in network.state_dict()] != []
    assert {KEYS.to_published(key) for key in network.state_dict()} == set(fill(case))
    x = torch.from_numpy(case.input)
    with torch.inference_mode():
        assert largest_difference(network(x), case) < TOLERANCE
    assert largest_difference(network.requires_grad_()(x).detach(), case) < TOLERANCE  # nothing is cut into strips


@pytest.mark.parametrize("name", ["x2_official", "x2_batch2_nonsquare"])
def test_recorded_outputs(name: str, tmp_path: Path) -> None:
    check(SMALL_CASES / "cfsr" / name, tmp_path)


def test_recorded_output_of_x4(shared: Path, tmp_path: Path) -> None:
    check(shared / "parity" / "cfsr" / "x4_official", tmp_path)


def test_strips_give_the_recorded_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of few rows, as in large pictures: their borders must not be seen."""
    case = load_case(SMALL_CASES / "cfsr" / "x2_official")
    monkeypatch.setattr("hybrid.blocks.convolution.STRIP_PIXELS", 37 * 5)
    monkeypatch.setattr("restore.models.cfsr.STRIP_PIXELS", 37 * 5)
    x = torch.from_numpy(case.input)
    assert largest_difference(run(write_checkpoint(case, tmp_path), x), case) < TOLERANCE


@pytest.mark.parametrize(("scale", "count"), [(2, 291_324), (3, 297_819), (4, 306_912)])
def test_published_parameter_counts(scale: int, count: int) -> None:
    with SkipRandomFill():
        network = CFSR(CFSRConfig(scale=scale))
        training = CFSR(CFSRConfig(scale=scale, branches=True))
    assert sum(p.numel() for p in network.parameters()) == count
    branches = 12 * ((48 * 9 + 48) + 3 * 2 * (48 + 96))  # small kernels; a scale and a bias a channel and filter
    assert sum(p.numel() for p in training.parameters()) == count + branches
    assert sum(p.numel() for p in training.merge().parameters()) == count


def test_fresh_network_is_published_initialisation() -> None:
    state = CFSR(SMALL).state_dict()
    block = "layers.0.blocks.0."
    assert bool((state[block + "mixer.scale"] == 1e-6).all()) and bool((state[block + "feedforward.scale"] == 1e-6).all())
    assert bool((state[block + "mixer.norm.weight"] == 1).all()) and bool((state["norm.bias"] == 0).all())
    assert 0.5 / 5 < state[block + "mixer.large.weight"].abs().max() <= 1 / 5  # torch's bound, 1 / sqrt(fan-in)


# Training form ---------------------------------------------------------------------------------------------------


def training_state() -> dict[str, Tensor]:
    return published(CFSR(CFSRConfig(embed_dim=6, depths=(1, 2), kernel=5, scale=2, branches=True)))


def test_training_names_are_the_published_ones() -> None:
    names = set(training_state())
    block = "layers.1.blocks.1."
    for part in ("attn.a.2.", "mlp."):
        for name in ("sobel_x", "sobel_y", "laplacian"):
            assert {f"{block}{part}scale_{name}", f"{block}{part}{name}_bias", f"{block}{part}mask_{name}"} <= names
    assert {block + "attn.a.2.lkb_origin.weight", block + "attn.a.2.small_conv.bias", block + "mlp.pos.weight"} <= names
    assert not any("lkb_reparam" in name for name in names)


def test_training_file_equals_its_merged_file(tmp_path: Path) -> None:
    """Merged by hand as the spec of the published files says, under the published names."""
    state = training_state()
    merged = dict(state)
    for key in [key for key in state if "sobel" in key or "laplacian" in key]:
        merged.pop(key)
    for block in ("layers.0.blocks.0.", "layers.1.blocks.0.", "layers.1.blocks.1."):
        edges = {part: torch.zeros_like(state[block + part + "mask_sobel_x"]) for part in ("attn.a.2.", "mlp.")}
        biases = {}
        for part, edge in edges.items():
            for name in ("sobel_x", "sobel_y", "laplacian"):
                edge += state[f"{block}{part}scale_{name}"] * state[f"{block}{part}mask_{name}"]
            biases[part] = sum(state[f"{block}{part}{name}_bias"] for name in ("sobel_x", "sobel_y", "laplacian"))
        merged[block + "mlp.pos.weight"] = state[block + "mlp.pos.weight"] + edges["mlp."]
        merged[block + "mlp.pos.bias"] = state[block + "mlp.pos.bias"] + biases["mlp."]
        origin, small = block + "attn.a.2.lkb_origin.", block + "attn.a.2.small_conv."
        weight = merged.pop(origin + "weight").clone()
        weight[:, :, 1:4, 1:4] += merged.pop(small + "weight") + edges["attn.a.2."]
        merged[block + "attn.a.2.lkb_reparam.weight"] = weight
        merged[block + "attn.a.2.lkb_reparam.bias"] = (
            merged.pop(origin + "bias") + merged.pop(small + "bias") + biases["attn.a.2."]
        )
    x = torch.rand(2, 3, 14, 11)
    first = run(saved(state, tmp_path), x)
    torch.testing.assert_close(run(saved(merged, tmp_path), x), first, atol=1e-5, rtol=1e-5)
    network = load_model(saved(state, tmp_path), device="cpu")
    assert isinstance(network, CFSR) and network.config.branches
    ours = {KEYS.to_published(key): value for key, value in network.merge().state_dict().items()}
    assert not network.config.branches and set(ours) == set(merged)
    for key, value in ours.items():
        torch.testing.assert_close(value, merged[key], atol=1e-6, rtol=1e-6)


def test_masks_come_from_the_file(tmp_path: Path) -> None:
    """The reference's Sobel mask has its first number one place too far right; weights were trained with it."""
    state = training_state()
    wrong = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    changed = {key: wrong.expand_as(value).clone() if "mask_sobel_x" in key else value for key, value in state.items()}
    network = load_model(saved(changed, tmp_path), device="cpu")
    assert torch.equal(network.state_dict()["layers.0.blocks.0.feedforward.edge.edges.sobel_x.mask"][3, 0], wrong)
    x = torch.rand(1, 3, 9, 9)
    with torch.inference_mode():
        before = network(x)
        assert (before - run(saved(state, tmp_path), x)).abs().max() > 1e-3
        assert isinstance(network, CFSR)
        torch.testing.assert_close(network.merge()(x), before, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_branches_are_the_sum_of_their_convolutions(dims: int) -> None:
    """Each branch run by itself, in double precision."""
    torch.manual_seed(dims)
    form = LargeKernelConvolution(4, 5, dims).double()
    for parameter in form.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, *(6, 7, 8)[:dims], 4, dtype=torch.float64)

    def convolve(weight: Tensor, bias: Tensor) -> Tensor:
        layer = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
        return layer(x.movedim(-1, 1), weight, bias, padding=weight.shape[-1] // 2, groups=4).movedim(1, -1)

    expected = convolve(form.whole.weight, form.whole.bias) + convolve(form.detail.weight, form.detail.bias)
    for edge in form.detail.edges.values():
        expected = expected + convolve(edge.scale * edge.mask, edge.bias)  # type: ignore[operator, arg-type]
    torch.testing.assert_close(form(x), expected)
    holder = torch.nn.Sequential(form)
    merge_branches(holder)
    assert type(holder[0]) is DepthwiseConvolution
    torch.testing.assert_close(holder(x), expected)


def test_masks_by_hand() -> None:
    masks = edge_masks(2)
    assert masks["sobel_x"].tolist() == [[1, 0, -1], [2, 0, -2], [1, 0, -1]]
    assert masks["sobel_y"].tolist() == [[1, 2, 1], [0, 0, 0], [-1, -2, -1]]
    assert masks["laplacian"].tolist() == [[0, 1, 0], [1, -4, 1], [0, 1, 0]]
    cube = edge_masks(3)
    assert list(cube) == ["sobel_x", "sobel_y", "sobel_z", "laplacian"]
    for name, axis in (("sobel_x", 2), ("sobel_y", 1), ("sobel_z", 0)):
        ramp = torch.arange(3.0).view(*[-1 if i == axis else 1 for i in range(3)]).expand(3, 3, 3)
        others = [torch.arange(3.0).view(*[-1 if i == a else 1 for i in range(3)]).expand(3, 3, 3) for a in range(3) if a != axis]
        assert (cube[name] * ramp).sum() == -32 and all((cube[name] * other).sum() == 0 for other in others)


def test_branches_learn_what_the_merged_kernel_does() -> None:
    """The folded graph must carry gradients to every branch: those of the plain sum."""
    torch.manual_seed(0)
    form = EdgeConvolution(3)
    x = torch.randn(1, 6, 6, 3)
    form(x).square().sum().backward()
    plain = DepthwiseConvolution(3, 3)
    with torch.no_grad():
        for own, folded in zip((plain.weight, plain.bias), form.folded(), strict=True):
            own.copy_(folded)
    plain(x).square().sum().backward()
    assert plain.weight.grad is not None and plain.bias.grad is not None and form.weight.grad is not None
    torch.testing.assert_close(form.weight.grad, plain.weight.grad)
    for name, edge in form.edges.items():
        expected = (plain.weight.grad * edge_masks(2)[name]).sum((1, 2, 3), keepdim=True)
        torch.testing.assert_close(edge.scale.grad, expected)
        torch.testing.assert_close(edge.bias.grad, plain.bias.grad)


# Blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [2, 3])
def test_depthwise_against_scipy(dims: int) -> None:
    layer = DepthwiseConvolution(2, 5, dims)
    x = torch.randn(1, *(7, 6, 9)[:dims], 2)
    with torch.no_grad():
        y = layer(x)
        for c in range(2):
            expected = correlate(x[0, ..., c].numpy(), layer.weight[c, 0].numpy(), mode="constant") + float(layer.bias[c])
            np.testing.assert_allclose(y[0, ..., c], expected, atol=1e-5)


def test_pointwise_scale_and_skip() -> None:
    layer, x, scale = PointwiseConvolution(4, 4), torch.randn(2, 3, 5, 4), torch.randn(4)
    plain = F.conv2d(x.movedim(-1, 1), layer.weight, layer.bias).movedim(1, -1)
    torch.testing.assert_close(layer(x), plain)
    torch.testing.assert_close(layer(x, scale=scale), plain * scale)
    torch.testing.assert_close(layer(x, skip=True), plain + x)


@pytest.mark.parametrize("block", [LargeKernelMixer(4, 5, 3), EdgeFeedForward(4, 8, 3)])
def test_volumes_in_strips(block: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(2, 21, 4, 5, 4)
    whole = block(x).detach()
    monkeypatch.setattr("hybrid.blocks.convolution.STRIP_PIXELS", 1)
    with torch.inference_mode():
        torch.testing.assert_close(block(x), whole, atol=1e-5, rtol=1e-5)


def test_strips_need_their_halo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hybrid.blocks.convolution.STRIP_PIXELS", 1)
    layer, x = DepthwiseConvolution(2, 7), torch.randn(1, 40, 3, 2)
    with torch.inference_mode():
        torch.testing.assert_close(in_row_strips(layer, x, 3), layer(x))
        assert not torch.allclose(in_row_strips(layer, x, 2), layer(x))


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="odd, not 4"):
        DepthwiseConvolution(2, 4)


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [
        CFSRConfig(embed_dim=4, depths=(2, 1, 1), kernel=3, mlp_ratio=3, scale=3),
        CFSRConfig(in_channels=1, embed_dim=4, depths=(1,), kernel=7, mlp_ratio=1, scale=8, branches=True),
        CFSRConfig(embed_dim=4, depths=(1,), kernel=5, scale=1),
    ],
)
def test_configuration_is_read_back_from_the_file(config: CFSRConfig, tmp_path: Path) -> None:
    network = CFSR(config).eval()
    state = {KEYS.to_published(key): value for key, value in network.state_dict().items()}
    assert [KEYS.to_ours(key) for key in state] == list(network.state_dict())
    assert FAMILY.matches(state) and read_config(state) == config
    x = torch.rand(1, config.in_channels, 9, 7)
    with torch.inference_mode():
        assert torch.equal(run(saved(state, tmp_path), x), network(x))


def test_form_without_sub_pixel_tail(tmp_path: Path) -> None:
    """With a last convolution of zeros it gives its input back, whatever the range that it computes in."""
    state = published(CFSR(CFSRConfig(embed_dim=4, depths=(1,), kernel=5, scale=1)))
    assert "conv_last.weight" in state and "upsample.0.weight" not in state
    state["conv_last.weight"], state["conv_last.bias"] = torch.zeros(3, 4, 3, 3), torch.zeros(3)
    x = torch.rand(1, 3, 8, 9)
    for img_range in (1.0, 255.0):
        network = load_model(saved(state, tmp_path), device="cpu", img_range=img_range)
        torch.testing.assert_close(network(x), x, atol=1e-6, rtol=1e-5)


def test_faulty_files_are_refused(tmp_path: Path) -> None:
    state = published(CFSR(SMALL))
    lacking = {key: value for key, value in state.items() if key != "layers.0.blocks.0.mlp.fc2.bias"}
    with pytest.raises(WeightsError, match=r"1 missing \(layers\.0\.blocks\.0\.feedforward\.fc2\.bias\)"):
        load_model(saved(lacking, tmp_path), device="cpu")
    with pytest.raises(WeightsError, match=r"1 not known to the network \(gamma\)"):
        load_model(saved(state | {"gamma": torch.ones(1)}, tmp_path), device="cpu")
    with pytest.raises(RequestError, match="cfsr has no option branches"):
        load_model(saved(state, tmp_path), device="cpu", branches=True)


def test_card() -> None:
    card = CFSR(CFSRConfig()).card
    assert card.overlap == 2 * 63 and card.exact and not card.global_context and card.multiple == 1 and not card.luma


def test_reach_is_what_the_card_says() -> None:
    """A pixel beyond the reach changes nothing, the last one within it does."""
    network = CFSR(SMALL).eval()
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    reach = network.card.overlap // 2
    x = torch.rand(1, 3, 3, reach + 8)
    first = network(x)[..., :2]  # the left edge
    for distance, changes in ((reach + 1, False), (reach, True)):
        other = x.clone()
        other[..., distance] += 1e4
        assert bool((network(other)[..., :2] != first).any()) is changes
