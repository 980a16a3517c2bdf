"""Sliding windows: networks with known answers, and MONAI as the judge."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from monai.data.utils import compute_importance_map, dense_patch_slices
from monai.inferers.utils import sliding_window_inference
from torch import Tensor

from hybrid.errors import OutputError, RequestError, ResourceError
from hybrid.tiles.blending import gaussian_weights
from hybrid.tiles.plan import plan_windows
from medical.protocol import Protocol
from medical.segmentation.sliding import check_memory, plan_scan, segment_windows
from tests.medical.stubs import Stub, card, convolution, protocol, smooth


def logits_of(network: Stub, values: np.ndarray, asked: Protocol, **choices: object) -> np.ndarray:
    """All logits (classes, i, j, k), put together from slabs that must come in order and once."""
    plan = plan_scan(values.shape[1:], network.card, asked, **choices)  # type: ignore[arg-type]
    blocks: list[Tensor] = []

    def keep(first: int, block: Tensor) -> None:
        assert first == sum(each.shape[1] for each in blocks)
        assert block.dtype == torch.float32 and block.shape[1] > 0
        blocks.append(block.clone())

    segment_windows(network, values, asked, write=keep, plan=plan)
    return np.moveaxis(torch.cat(blocks, 1).numpy(), 1, 1 + plan.axis)


def monai(network: Stub, values: np.ndarray, asked: Protocol, *, floor: bool, overlap: float = 0.5) -> np.ndarray:
    """MONAI's windows, with its own weights or with the product of Gaussians that is not raised to a floor."""
    weights = None
    if not floor:
        axes = [np.exp(-(((np.arange(n) - (n - 1) / 2) / (0.125 * n)) ** 2) / 2) for n in asked.patch]
        weights = torch.from_numpy(np.einsum("i,j,k->ijk", *axes))  # in float64, as its sum at corners is tiny
    x = torch.from_numpy(values)[None].to(torch.float32 if floor else torch.float64)
    out = sliding_window_inference(
        x, asked.patch, 1, lambda y: network(y.float()).to(y.dtype), overlap, mode="gaussian", roi_weight_map=weights
    )
    return torch.as_tensor(out)[0].numpy()


SHAPES = [(20, 21, 23), (8, 10, 12), (5, 30, 7), (3, 4, 2), (17, 10, 40), (1, 12, 13)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("axis", [0, 1, 2, None])
def test_constant_and_identity_networks(shape: tuple[int, int, int], axis: int | None) -> None:
    values = smooth(1, *shape)
    constant = Stub(lambda x: torch.tensor([1.0, -2.0, 3.0]).view(1, 3, 1, 1, 1).expand(1, 3, *x.shape[2:]))
    found = logits_of(constant, values, protocol(), axis=axis)
    np.testing.assert_allclose(found, np.broadcast_to(np.reshape([1.0, -2.0, 3.0], (3, 1, 1, 1)), (3, *shape)), atol=1e-6)
    identity = Stub(lambda x: torch.cat([x, -x, x * 2], 1))
    found = logits_of(identity, values, protocol(), axis=axis)
    np.testing.assert_allclose(found, np.concatenate([values, -values, values * 2]), atol=2e-6, rtol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_grid_is_monais(shape: tuple[int, int, int], overlap: float) -> None:
    asked = protocol()
    plan = plan_scan(shape, card(), asked, overlap=overlap, axis=0)
    padded = tuple(max(n, side) for n, side in zip(shape, asked.patch, strict=True))
    steps = [side if n == side else max(1, int(side * (1 - overlap))) for n, side in zip(padded, asked.patch, strict=True)]
    assert [box for _, box in plan.tiles.boxes()] == dense_patch_slices(padded, asked.patch, steps)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_same_as_monai_without_its_floor(shape: tuple[int, int, int], overlap: float) -> None:
    network, values = convolution(), smooth(1, *shape)
    ours = logits_of(network, values, protocol(), overlap=overlap)
    np.testing.assert_allclose(ours, monai(network, values, protocol(), floor=False, overlap=overlap), atol=1e-5)


@pytest.mark.parametrize("side", [8, 11, 24])
def test_distance_to_monai_with_its_floor(side: int) -> None:
    """The mean is over the same windows with other weights, so it stays between the windows' own results.

    MONAI raises the faint weights at windows' edges to 0.001 of the centre's: in the scan's interior these move a voxel by
    no more than 15 % of the windows' spread, and near its border by no more than the spread.
    """
    asked, network = protocol(patch=(side, side, side)), convolution()
    values = smooth(1, *(3 * side - 1,) * 3)
    plan = plan_scan(values.shape[1:], network.card, asked, axis=0)
    low, high = np.full((3, *values.shape[1:]), np.inf), np.full((3, *values.shape[1:]), -np.inf)
    for _, box in plan.tiles.boxes():
        part = (slice(None), *box)
        found = network(torch.from_numpy(values[part].copy())[None])[0].numpy()
        low[part], high[part] = np.minimum(low[part], found), np.maximum(high[part], found)
    spread = high - low
    distance = np.abs(logits_of(network, values, asked) - monai(network, values, asked, floor=True))
    assert distance.max() > 1e-3, "the network must tell the weights apart"
    assert (distance <= spread + 1e-5).all()
    inner = (slice(None), *(slice(side // 2, -(side // 2)),) * 3)
    assert (distance[inner] <= 0.15 * spread[inner] + 1e-5).all()


def test_weights_are_monais_gaussian_for_each_axis() -> None:
    line = np.array(compute_importance_map((24,), mode="gaussian", sigma_scale=0.125))
    first, second = gaussian_weights([(0, 24), (12, 36)])
    np.testing.assert_allclose(first[12:], line[12:] / (line[12:] + line[:12]), atol=2e-3)  # its floor is 0.001
    np.testing.assert_allclose(first[12:] + second[:12], 1, atol=1e-12)
    assert (first[:12] == 1).all() and (second[12:] == 1).all()


def test_mirror_images_are_averaged() -> None:
    network, asked = convolution(), protocol(mirror=(0, 2))
    values = smooth(1, *asked.patch)
    x = torch.from_numpy(values)[None]
    views = [network(x.flip(axes)).flip(axes) if axes else network(x) for axes in ((), (2,), (4,), (2, 4))]
    expected = torch.stack(views).mean(0)[0].numpy()
    for axis in range(3):
        np.testing.assert_allclose(logits_of(network, values, asked, mirror=True, axis=axis), expected, atol=1e-6)
    assert plan_scan((30, 30, 30), network.card, asked, mirror=True).views == 4
    with pytest.raises(RequestError, match="not trained on mirrored scans.*--tta"):
        plan_scan((30, 30, 30), network.card, protocol(), mirror=True)


def test_every_axis_streams_the_same_logits() -> None:
    network, values = convolution(), smooth(1, 20, 25, 30)
    found = [logits_of(network, values, protocol(), axis=axis) for axis in range(3)]
    np.testing.assert_allclose(found[1], found[0], atol=1e-6)
    np.testing.assert_allclose(found[2], found[0], atol=1e-6)


def test_slabs_run_along_the_axis_that_holds_least() -> None:
    for shape in product((10, 30, 90), repeat=3):
        plans = [plan_scan(shape, card(), protocol(), axis=axis).tiles.buffer_bytes for axis in range(3)]
        assert plan_scan(shape, card(), protocol()).tiles.buffer_bytes == min(plans)


def test_memory_does_not_grow_with_the_scan_along_the_slabs() -> None:
    sizes = [plan_scan((n, 40, 40), card(), protocol(), axis=0).tiles.memory_bytes for n in (20, 200, 2000)]
    assert len(set(sizes)) == 1


def test_too_little_memory_says_how_much_is_missing_and_makes_no_smaller_windows() -> None:
    network, values = convolution(), smooth(1, 40, 40, 40)
    plan = plan_scan(values.shape[1:], network.card, protocol())
    with pytest.raises(ResourceError, match=r"Give --memory .*--roi.*Smaller windows would change the result"):
        check_memory(plan, torch.device("cpu"), 1000)
    with pytest.raises(ResourceError):
        segment_windows(network, values, protocol(), write=lambda first, block: None, memory=1000)
    assert network.calls == 0


def test_a_window_that_runs_out_of_memory_is_not_cut() -> None:
    def fail(x: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("no memory")

    network = Stub(fail)
    with pytest.raises(ResourceError, match="more --memory, or another device"):
        segment_windows(network, smooth(1, 300, 70, 70), protocol(patch=(280, 70, 70)), write=lambda first, block: None)
    assert network.calls == 1


def test_outputs_that_are_none_are_refused() -> None:
    values = smooth(1, 20, 20, 20)
    with pytest.raises(OutputError, match="gave 2 channels, and its protocol has 3"):
        segment_windows(Stub(lambda x: torch.cat([x, x], 1)), values, protocol(), write=lambda first, block: None)
    with pytest.raises(OutputError, match="not finite"):
        segment_windows(Stub(lambda x: torch.cat([x, x, x / 0], 1)), values, protocol(), write=lambda first, block: None)


def test_plan_says_what_it_is() -> None:
    plan = plan_scan((20, 10, 40), card(), protocol(mirror=(0,)), mirror=True)
    assert plan.describe().startswith("24 windows of 8 x 10 x 12 over 20 x 10 x 40, overlap 0.5, slabs along k, 2 mirror images")
    assert plan.to_dict()["window"] == [8, 10, 12] and plan.to_dict()["count"] == 24
    with pytest.raises(RequestError, match="overlap of 1"):
        plan_windows((10, 10), (4, 4), overlap=1, multiple=1, out_channels=1, floats_per_pixel=1)
    with pytest.raises(RequestError, match="does not fit"):
        plan_windows((3, 10), (4, 4), overlap=0, multiple=1, out_channels=1, floats_per_pixel=1)
