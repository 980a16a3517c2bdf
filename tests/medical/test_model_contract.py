"""What every segmentation network promises, checked for each family of the registry in small configurations.

A new family adds one line to `SMALL`.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from medical.loading import load_model, save_model
from medical.models import MODULES, family
from medical.models.base import SegmentationNetwork
from tests.restore.parity import draw

_SWIN = {"in_channels": 2, "out_channels": 3, "feature_size": 12, "depths": (2, 2), "num_heads": (2, 3), "window": 3}
_CROSS_D = {"in_channels": 2, "out_channels": 3, "depths": (1, 2), "width": 8}
_MIXER = {"out_channels": 3, "stem": 6, "depths": (2, 1), "mlp_width": 24}
_CSWIN = {"out_channels": 3, "depths": (1, 2, 1), "split_size": (1, 2, 2)}
_CSWIN_3D = {**_CSWIN, "patch": (2, 2, 2), "strides": ()}
SMALL: dict[str, tuple[dict[str, Any], ...]] = {
    "swin_unetr": (
        {**_SWIN, "spatial_dims": 3},
        {**_SWIN, "spatial_dims": 2, "normalize": False, "in_channels": 1},
        {**_SWIN, "spatial_dims": 3, "stage_convolutions": True, "merging": "v2", "depths": (1, 1, 1), "num_heads": (1, 2, 3)},
    ),
    "neunet": (
        {"spatial_dims": 3, "in_channels": 2, "out_channels": 3, "features": (8, 12, 16, 20)},
        {"spatial_dims": 2, "in_channels": 1, "out_channels": 3, "features": (8, 12, 16, 20)},
        {"spatial_dims": 3, "in_channels": 1, "out_channels": 2, "features": (8, 12, 16), "wavelets": False},
    ),
    "cswin_unet": (
        {**_CSWIN, "spatial_dims": 2, "in_channels": 3, "embed_dim": 16, "num_heads": (2, 2, 4)},
        {**_CSWIN, "spatial_dims": 2, "in_channels": 1, "embed_dim": 24, "num_heads": (2, 4, 6), "patch": (2, 2)},
        {
            **_CSWIN,
            "spatial_dims": 3,
            "in_channels": 2,
            "embed_dim": 12,
            "num_heads": (3, 3, 6),
            "image_features": 6,
            "patch": (2, 2, 2),
            "strides": (),
        },
    ),
    "cross_d_conv": (
        {**_CROSS_D, "out_channels": 40, "spatial_dims": 2},
        {**_CROSS_D, "out_channels": 40, "spatial_dims": 3, "bottleneck": True, "depths": (1, 1)},
    ),
    "cross_d_unet": (
        {**_CROSS_D, "spatial_dims": 2},
        {**_CROSS_D, "spatial_dims": 3, "in_channels": 1},
    ),
    "mixer_unet": (
        {**_MIXER, "spatial_dims": 2, "in_channels": 2, "mixer": "window", "embed_dim": 16},
        {**_MIXER, "spatial_dims": 3, "in_channels": 1, "mixer": "window", "embed_dim": 12},
        {**_MIXER, "spatial_dims": 3, "in_channels": 2, "mixer": "rwkv", "embed_dim": 12},
    ),
}
"""Arguments of `FAMILY.create`."""
IDLE = ("*.shortcut.0.rotation_params.*",)
"""Parameters on which no output depends: kernels of one voxel stay where they are."""

BF16_ERROR = 0.03
"""Root mean square error of a small network in bf16, of the spread of its output; single steps are off by 2^-9 = 0.002."""
SIZES = {2: [(1, 1), (37, 23), (3, 64), (16, 32)], 3: [(1, 1, 1), (9, 23, 17), (1, 40, 3), (16, 16, 32)]}


def small(name: str, number: int) -> SegmentationNetwork:
    """A network whose numbers are all different, biases and norms included, so that none can stand in for another."""
    network = family(name).create(**SMALL[name][number])
    state = network.state_dict()
    network.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()


@pytest.fixture(scope="module", params=[(name, i) for name in SMALL for i in range(len(SMALL[name]))], ids=lambda p: f"{p}")
def which(request: pytest.FixtureRequest) -> tuple[str, int]:
    return request.param


@pytest.fixture(scope="module")
def network(which: tuple[str, int]) -> SegmentationNetwork:
    return small(*which)


def scan(network: SegmentationNetwork, *shape: int, batch: int = 1) -> Tensor:
    """Of these sides, or of the last ones where the network takes slices."""
    card = network.card
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.rand(batch, card.in_channels, *shape[-card.spatial_dims :], generator=generator)


@torch.inference_mode()
def run(network: SegmentationNetwork, x: Tensor) -> Tensor:
    return network(x)


def test_each_family_has_small_configurations() -> None:
    assert set(SMALL) == set(MODULES), "add the new family to SMALL, with arguments that make it small"
    assert [family(name).name for name in MODULES] == list(MODULES)


def test_card_states_the_facts(network: SegmentationNetwork, which: tuple[str, int]) -> None:
    card, options = network.card, SMALL[which[0]][which[1]]
    assert card.family == which[0]
    assert (card.spatial_dims, card.in_channels, card.out_channels) == tuple(
        options[key] for key in ("spatial_dims", "in_channels", "out_channels")
    )
    assert card.title and card.paper and card.code_licence
    assert card.multiple >= 1 and card.activation_floats > card.in_channels


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("batch", [1, 2])
def test_takes_any_size(network: SegmentationNetwork, number: int, batch: int) -> None:
    shape = SIZES[network.card.spatial_dims][number]
    y = run(network, scan(network, *shape, batch=batch))
    voxels = shape if network.card.task == "segmentation" else ()
    assert y.dtype == torch.float32 and y.shape == (batch, network.card.out_channels, *voxels)
    assert bool(y.isfinite().all()) and y.std() > 0


def test_leaves_its_input_alone(network: SegmentationNetwork) -> None:
    for side in (15, network.card.multiple * 2):  # filled up, which makes a copy, and not
        x = scan(network, side, side, side)
        before = x.clone()
        run(network, x)
        assert torch.equal(x, before)


def test_same_bytes_twice(network: SegmentationNetwork) -> None:
    x = scan(network, 21, 30, 17)
    assert torch.equal(run(network, x), run(network, x))


def test_scans_of_a_batch_do_not_meet(network: SegmentationNetwork) -> None:
    x = scan(network, 19, 26, 33, batch=3)
    apart = torch.cat([run(network, x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(run(network, x), apart, atol=5e-5, rtol=1e-5)


def test_memory_layout_of_the_input_does_not_matter(network: SegmentationNetwork) -> None:
    x = scan(network, 32, 32, 32)
    expected = run(network, x)
    torch.testing.assert_close(run(network, x.movedim(1, -1).contiguous().movedim(-1, 1)), expected, atol=5e-5, rtol=1e-5)
    torch.testing.assert_close(run(network, x.transpose(-2, -1).contiguous().transpose(-2, -1)), expected, atol=5e-5, rtol=1e-5)


def test_fills_up_with_zeros_to_its_multiple(network: SegmentationNetwork) -> None:
    """Running the scan that numpy filled up, and cropping, gives the same."""
    card = network.card
    if card.task != "segmentation":
        pytest.skip("a classifier takes what is there, and fills nothing up")
    x = scan(network, *(card.multiple + n for n in (5, 1, 3)))
    sides = x.shape[2:]
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), *((0, -n % card.multiple) for n in sides)])
    assert network.padded(tuple(sides)) == padded.shape[2:]
    expected = run(network, torch.from_numpy(padded))[(..., *(slice(n) for n in sides))]
    assert torch.equal(run(network, x), expected)


def test_same_numbers_with_and_without_gradients(network: SegmentationNetwork) -> None:
    """Inference works in chunks, in place and fused; training does the plain thing."""
    x = scan(network, 40, 24, 32, batch=2)
    torch.testing.assert_close(network(x).detach(), run(network, x), atol=1e-4, rtol=1e-5)


def test_other_inputs_are_refused(network: SegmentationNetwork) -> None:
    card = network.card
    axes = "D, H, W" if card.spatial_dims == 3 else "H, W"
    sides = [8] * card.spatial_dims
    for shape in [(1, card.in_channels + 1, *sides), (card.in_channels, *sides), (1, card.in_channels, 0, *sides[1:])]:
        with pytest.raises(ValueError, match=rf"{card.title} takes \(B, {card.in_channels}, {axes}\), not"):
            network(torch.zeros(shape))


def test_saved_and_loaded(network: SegmentationNetwork, tmp_path: Path) -> None:
    save_model(tmp_path / "x.safetensors", network)
    loaded = load_model(tmp_path / "x.safetensors", device="cpu")
    assert loaded.card == network.card and loaded.options() == network.options()
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    x = scan(network, 13, 22, 9)
    assert torch.equal(run(loaded, x), run(network, x))


def test_every_parameter_learns(network: SegmentationNetwork, which: tuple[str, int]) -> None:
    learning = small(*which).train()
    torch.manual_seed(0)
    learning(scan(network, 32, 17, 24, batch=2)).square().mean().backward()
    for name, parameter in learning.named_parameters():
        if not parameter.requires_grad:  # heads of scales that were not asked for
            continue
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        idle = any(fnmatchcase(name, pattern) for pattern in IDLE)
        assert (parameter.grad.abs().max() > 0) != idle, name


def test_bf16_stays_near_float32(network: SegmentationNetwork, which: tuple[str, int]) -> None:
    assert "bf16" in network.card.low_precision
    x = scan(network, 64, 48, 48)
    expected = run(network, x)
    low = small(*which)
    low.precision = "bf16"
    y = run(low, x)
    assert y.dtype == torch.float32
    assert 0 < (y - expected).abs().max() / expected.std() < 10 * BF16_ERROR
    assert (y - expected).square().mean().sqrt() < BF16_ERROR * expected.std()
