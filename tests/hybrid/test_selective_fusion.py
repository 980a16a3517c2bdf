"""Fusion, dual attention and anti-aliased resizing against SciPy and the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d, zoom
from torch import Tensor
from torch.nn import functional as F

from hybrid.blocks import selective_fusion
from hybrid.blocks.selective_fusion import (
    DualAttentionUnit,
    ResidualDownsample,
    ResidualUpsample,
    SelectiveKernelFusion,
    blur_downsample,
    prelu,
)


def channels_first(x: Tensor) -> Tensor:
    return x.movedim(-1, 1)


@pytest.mark.parametrize("shape", [(9,), (8, 6), (7, 2), (5, 8, 4)])
def test_blur_is_the_binomial_filter_with_mirrored_edges(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).random((2, *shape, 3), dtype=np.float32)
    expected = x
    for axis in range(1, x.ndim - 1):
        expected = convolve1d(expected, [0.25, 0.5, 0.25], axis=axis, mode="mirror")
    expected = expected[(slice(None), *[slice(None, None, 2)] * len(shape))]
    np.testing.assert_allclose(blur_downsample(torch.from_numpy(x)).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("kept", [0, 2])
def test_fusion_weighs_each_channel_by_a_softmax_over_the_maps(kept: int) -> None:
    torch.manual_seed(0)
    fusion = SelectiveKernelFusion(16, 3).requires_grad_(False)
    maps = list(torch.randn(3, 2, 5, 7, 16))
    before = maps[kept].clone()
    mean = sum(maps).mean((1, 2))
    hidden = mean @ fusion.squeeze.weight.flatten(1).T
    hidden = torch.where(hidden > 0, hidden, 0.25 * hidden)
    weights = torch.softmax(torch.stack([hidden @ layer.weight.flatten(1).T for layer in fusion.expand]), 0)
    expected = sum(x * w[:, None, None] for x, w in zip(maps, weights, strict=True))
    torch.testing.assert_close(fusion([x.clone() for x in maps], kept), expected, atol=1e-6, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(fusion(maps, kept), expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(maps[kept], before)


@pytest.mark.parametrize("shape", [(10, 6), (4, 5, 6)])
def test_dual_attention_is_the_formula(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    unit = DualAttentionUnit(16, spatial_dims=len(shape)).requires_grad_(False)
    x, slope = torch.randn(2, *shape, 16), torch.tensor([0.3])
    image = channels_first(x)
    r = unit.conv2(F.prelu(unit.conv1(image), slope))
    gate = torch.sigmoid(unit.spatial(torch.cat([r.amax(1, keepdim=True), r.mean(1, keepdim=True)], 1)))
    by_channel = torch.sigmoid(unit.expand(F.relu(unit.squeeze(r.flatten(2).mean(2).view(2, 16, *[1] * len(shape))))))
    expected = (unit.fuse(torch.cat([r * gate, r * by_channel], 1)) + image).movedim(1, -1)
    torch.testing.assert_close(unit(x, slope), expected, atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        torch.testing.assert_close(unit(x, slope), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (4, 6, 8)])
def test_downsampling_is_two_blurred_branches(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    step = ResidualDownsample(4, spatial_dims=len(shape)).requires_grad_(False)
    x = torch.randn(1, *shape, 4)
    deep = step.activation2(step.conv(step.activation1(step.mix(channels_first(x)))))
    small, short = (channels_first(blur_downsample(grid)) for grid in (deep.movedim(1, -1), x))
    expected = step.project(small) + step.shortcut(short)
    torch.testing.assert_close(step(x), expected.movedim(1, -1), atol=1e-6, rtol=1e-5)
    assert step(x).shape == (1, *(-(-side // 2) for side in shape), 8)


def test_upsampling_interpolates_its_shortcut() -> None:
    torch.manual_seed(0)
    step = ResidualUpsample(4).requires_grad_(False)
    step.project.weight.zero_()
    x = torch.randn(1, 5, 6, 4)
    short = np.einsum("hwi,oi->hwo", x[0].numpy(), step.shortcut.weight.flatten(1).numpy())
    expected = zoom(short, (2, 2, 1), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(step(x)[0].numpy(), expected, atol=1e-6)


def test_upsampling_of_volumes_is_the_sum_of_its_branches() -> None:
    torch.manual_seed(0)
    step = ResidualUpsample(4, spatial_dims=3).requires_grad_(False)
    x = torch.randn(1, 3, 4, 2, 4)
    deep = step.project(step.activation2(step.conv(step.activation1(step.mix(channels_first(x))))))
    short = step.shortcut(F.interpolate(channels_first(x), scale_factor=2.0, mode="trilinear", align_corners=False))
    torch.testing.assert_close(step(x), (deep + short).movedim(1, -1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(40, 6), (37, 8), (22, 4, 4)])
def test_strips_of_inference_change_nothing(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selective_fusion, "_pixels", lambda x: 4 * int(np.prod(x.shape[2:-1])))  # four rows
    torch.manual_seed(0)
    axes, x = len(shape), torch.randn(2, *shape, 8)
    for module in (ResidualDownsample(8, axes), ResidualUpsample(8, axes), DualAttentionUnit(8, spatial_dims=axes)):
        given = (x, torch.tensor([0.2])) if isinstance(module, DualAttentionUnit) else (x,)
        expected = module(*given).detach()
        with torch.inference_mode():
            torch.testing.assert_close(module(*given), expected, atol=1e-5, rtol=1e-5)


def test_one_slope_may_have_any_sign() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0])
    for slope in (0.25, 0.0, -0.5):
        expected = torch.tensor([-2 * slope, 0, 3])
        torch.testing.assert_close(prelu(x, torch.tensor([slope])), expected)
        with torch.inference_mode():
            torch.testing.assert_close(prelu(x.clone(), torch.tensor([slope])), expected)
