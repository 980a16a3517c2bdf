"""Cross-D Conv against recorded outputs of the published operator, and against its definition in slow numpy and SciPy."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.ndimage import fourier_shift
from scipy.signal import correlate
from torch import Tensor

from hybrid.blocks.cross_d import CrossDConv, shifts, slicing_matrices
from tests.restore.parity import SMALL_CASES, Case, draw, fill, largest_difference, load_case

TOLERANCE = 2e-6
# Inputs, outputs, kernel, stride, padding, groups.
LAYERS = [(3, 4, 1, 2, 0, 1), (2, 3, 2, 1, 1, 1), (4, 6, 3, 1, 1, 2), (2, 3, 4, 2, 1, 1), (4, 2, 5, 2, 2, 2), (1, 2, 7, 2, 3, 1)]


def layer(inputs: int, outputs: int, kernel: int, stride: int, padding: int, groups: int, *, dims: int = 2) -> CrossDConv:
    """In float64, all its numbers different; angles are far from 0."""
    made = CrossDConv(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, spatial_dims=dims)
    state = made.state_dict()
    made.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return made.double().eval()


def image(*shape: int) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


# The published operator ------------------------------------------------------------------------------------------


def check_recorded(case: Case, config: dict) -> None:
    names = ("in_channels", "out_channels", "kernel_size")
    dims, state = int(config["mode"][0]), fill(case)
    made = CrossDConv(
        *(config[name] for name in names), **{k: config[k] for k in ("stride", "padding", "groups")}, spatial_dims=dims
    ).eval()
    expected = case.parameters
    if dims == 3:  # the case counts what its checkpoint holds
        expected -= sum(state.pop(name).numel() for name in list(state) if "rotation" in name and "running" not in name)
        state = {"weights_3d": state["weights_3d"]}
    missing, unknown = made.load_state_dict(state, strict=False)
    assert not unknown and all(name.endswith("num_batches_tracked") for name in missing)
    assert sum(p.numel() for p in made.parameters()) == expected
    with torch.inference_mode():
        assert largest_difference(made(torch.from_numpy(case.input)), case) < TOLERANCE


@pytest.mark.parametrize("folder", sorted((SMALL_CASES / "cross_d_conv").glob("conv*")), ids=lambda folder: folder.name)
def test_recorded_outputs(folder: Path) -> None:
    check_recorded(load_case(folder), config_of(folder))


def test_all_recorded_outputs(shared: Path) -> None:
    folders = sorted((shared / "parity" / "cross_d_conv").glob("conv*"))
    assert len(folders) == 7
    for folder in folders:
        check_recorded(load_case(folder), config_of(folder))


def config_of(folder: Path) -> dict:
    return json.loads((folder / "case.json").read_text(encoding="utf-8"))["config"]


# The definition --------------------------------------------------------------------------------------------------


def predicted(module: CrossDConv, x: np.ndarray) -> np.ndarray:
    """The four numbers of one image (I, H, W), batch norm with its running statistics."""
    assert module.rotation_params is not None
    p = {name: value.numpy() for name, value in module.rotation_params.state_dict().items()}
    hidden = np.einsum("oi,ihw->ohw", p["0.weight"][:, :, 0, 0], x) + p["0.bias"][:, None, None]
    scale = p["1.weight"] / np.sqrt(p["1.running_var"] + 1e-5)
    hidden = (hidden - p["1.running_mean"][:, None, None]) * scale[:, None, None] + p["1.bias"][:, None, None]
    maps = np.einsum("oi,ihw->ohw", p["3.weight"][:, :, 0, 0], np.maximum(hidden, 0)) + p["3.bias"][:, None, None]
    weights = np.exp(maps - maps.max((1, 2), keepdims=True))
    return (maps * weights / weights.sum((1, 2), keepdims=True)).sum((1, 2))


def turned_kernel(stored: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Frequencies multiplied by the (first-order) rotation matrix, a phase of them, and the middle slice."""
    kx, ky, kz = v[:3] / (np.linalg.norm(v[:3]) + 1e-8)
    angle = np.tanh(v[3]) * np.pi / 4
    rotation = np.eye(3) + angle * np.array([[0, -kz, ky], [kz, 0, -kx], [-ky, kx, 0]])
    edge = stored.shape[-1]
    grid = np.stack(np.meshgrid(*[np.fft.fftfreq(edge)] * 3, indexing="ij"))
    phase = np.exp(-2j * np.pi * np.einsum("ij,jabc->abc", rotation, grid))
    return np.fft.ifftn(np.fft.fftn(stored, axes=(-3, -2, -1)) * phase, axes=(-3, -2, -1)).real[:, :, edge // 2]


def convolved(x: np.ndarray, kernel: np.ndarray, module: CrossDConv) -> np.ndarray:
    """(I, *spatial) and (O, I / G, K, ...) to (O, *spatial')."""
    dims, per_group = kernel.ndim - 2, len(kernel) // module.groups
    padded = np.pad(x, [(0, 0), *[(module.padding,) * 2] * dims])
    rows = []
    for o, own in enumerate(kernel):
        first = o // per_group * kernel.shape[1]
        rows.append(sum(correlate(padded[first + i], plane, mode="valid", method="direct") for i, plane in enumerate(own)))
    return np.stack(rows)[(slice(None), *[slice(None, None, module.stride)] * dims)]


@pytest.mark.parametrize("given", LAYERS, ids=str)
def test_slices_follow_the_definition(given: tuple[int, ...]) -> None:
    module, x = layer(*given), image(3, given[0], 11, 9)
    stored = module.weights_3d.detach().numpy()
    expected = [convolved(each, turned_kernel(stored, predicted(module, each)), module) for each in x.numpy()]
    np.testing.assert_allclose(module(x).detach().numpy(), np.stack(expected), atol=1e-12)


@pytest.mark.parametrize("given", LAYERS, ids=str)
def test_volumes_are_convolved_with_the_stored_kernel(given: tuple[int, ...]) -> None:
    module, x = layer(*given, dims=3), image(2, given[0], 8, 9, 7)
    expected = [convolved(each, module.weights_3d.detach().numpy(), module) for each in x.numpy()]
    np.testing.assert_allclose(module(x).detach().numpy(), np.stack(expected), atol=1e-12)
    assert [name for name, _ in module.named_parameters()] == ["weights_3d"]


@pytest.mark.parametrize("edge", [1, 2, 3, 4, 5, 7])
def test_matrices_are_shifts_in_fourier_space(edge: int) -> None:
    rng = np.random.default_rng(edge)
    cube, shift = rng.standard_normal((edge,) * 3), rng.uniform(-2, 2, (4, 3))
    matrices = slicing_matrices(torch.from_numpy(shift), edge).numpy()
    for matrix, move in zip(matrices, shift, strict=True):
        expected = np.fft.ifftn(fourier_shift(np.fft.fftn(cube), move)).real[edge // 2]
        np.testing.assert_allclose((matrix @ cube.ravel()).reshape(edge, edge), expected, atol=1e-12)


def test_shifts_are_near_one_voxel_and_add_up_to_three() -> None:
    found = shifts(torch.randn(500, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3)
    torch.testing.assert_close(found.sum(1), torch.full((500,), 3.0, dtype=torch.float64))
    assert (found - 1).abs().max() <= np.pi / 4 * np.sqrt(2)
    assert (found - 1).abs().max() > 1
    assert torch.equal(shifts(torch.zeros(1, 4)), torch.ones(1, 3))


# In use ----------------------------------------------------------------------------------------------------------


def test_each_image_has_its_own_kernel() -> None:
    module, x = layer(2, 3, 3, 1, 1, 1), image(2, 2, 8, 8)
    first, second = module.slicing(x)
    assert (first - second).abs().max() > 0.01
    torch.testing.assert_close(module(x)[1:], module(x[1:]), atol=1e-12, rtol=0)


def test_in_training_kernels_come_from_the_statistics_of_the_batch() -> None:
    module, x = layer(2, 3, 3, 1, 1, 1), image(2, 2, 8, 8)
    module.train()
    assert not torch.allclose(copy.deepcopy(module)(x)[1:], copy.deepcopy(module)(x[1:]), atol=1e-4)


def test_gradients() -> None:
    module, x = layer(1, 2, 2, 1, 1, 1), image(2, 1, 3, 3).requires_grad_()
    names = [name for name, _ in module.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(function, (x, *module.parameters()))


def test_one_voxel_needs_no_prediction_but_in_training() -> None:
    """Its predictor takes part in training with gradients of zero, so that processes that share a training agree."""
    module, x = layer(2, 3, 1, 1, 0, 1), image(2, 2, 4, 4)
    plain = torch.nn.functional.conv2d(x, module.weights_3d[..., 0])
    torch.testing.assert_close(module(x), plain, atol=1e-12, rtol=0)
    module.train()(x).sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in module.rotation_params.parameters())
    torch.testing.assert_close(module(x), plain, atol=1e-12, rtol=0)


def test_a_reset_angle_is_zero_for_every_image() -> None:
    module, x = layer(2, 3, 3, 1, 1, 1), image(3, 2, 8, 8)
    module.reset_angle()
    rolled = module.weights_3d.roll([1, 1, 1], (-3, -2, -1))[:, :, 1]
    torch.testing.assert_close(module(x), torch.nn.functional.conv2d(x, rolled, padding=1), atol=1e-12, rtol=0)


def test_low_precision_leaves_the_kernels_exact() -> None:
    module = layer(2, 3, 3, 1, 1, 1).float()
    x = image(1, 2, 16, 16).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
        assert torch.equal(module.slicing(x), slicing_outside(module, x))


def slicing_outside(module: CrossDConv, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return module.slicing(x)


def test_initialised_by_the_fan_out_of_the_stored_kernel() -> None:
    torch.manual_seed(0)
    stored = CrossDConv(64, 32, 3).weights_3d
    assert float(stored.detach().std()) == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.02)
    assert abs(float(stored.detach().mean())) < 1e-3


def test_other_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="2 or 3 spatial dimensions, not 4"):
        CrossDConv(1, 1, 3, spatial_dims=4)
