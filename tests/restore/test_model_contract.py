"""What every picture network promises, checked for each family of the registry in a small configuration.

A new family adds one line to `SMALL`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hybrid.tiles.run import plan_tiles, run_tiles
from hybrid.weights.checkpoints import write_checkpoint
from restore import load_model
from restore.models import MODULES, family
from restore.models.base import RestorationNetwork
from tests.restore.parity import draw

SMALL: dict[str, dict[str, Any]] = {
    "hat": {"embed_dim": 12, "depths": (2, 2), "num_heads": (2, 3), "window": 8, "overlap_window": 12, "mlp_width": 24,
            "cab_width": 6, "squeeze_width": 3, "num_feat": 8, "scale": 2},
    "drct": {"embed_dim": 12, "growth": 4, "heads": ((3, 2, 2, 3, 4),) * 2, "mlp_widths": (24, 20, 16, 12, 10), "window": 4,
             "scale": 2},
    "craft": {"embed_dim": 16, "depths": (1, 1), "num_heads": (4, 2), "split_size": (4, 8), "mlp_width": 24, "gated_width": 20,
              "bias_width": 3, "scale": 3},
    "cfsr": {"embed_dim": 8, "depths": (1, 1), "kernel": 5, "scale": 2},
    "espcn": {"in_channels": 3, "scale": 3},
    "nafnet": {"width": 8, "encoder_depths": (1, 2), "middle_depth": 2, "decoder_depths": (1, 1)},
    "restormer": {"embed_dim": 8, "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4), "refinement": 1,
                  "widths": (21, 42, 85, 170)},
    "hinet": {"width": 8, "depth": 3, "normalised": (1, 2), "n_heads": 2},
    "mprnet": {"width": 8, "growth": 4, "refined": 4, "blocks": 1},
    "mirnet": {"features": 8, "groups": 1, "blocks": 2, "rows": 3, "columns": 2},
    "restore_rwkv": {"in_channels": 1, "embed_dim": 8, "depths": (1, 1, 1, 1), "refinement": 1, "mlp_ratio": 2},
    "restoreformer": {"variant": "restoreformer++", "num_heads": 2, "width": 8, "multipliers": (1, 2, 4), "blocks": 1,
                      "attention": (2,), "latent": 8, "entries": 16, "embed_dim": 8, "groups": 2, "resolution": 64},
    "mixer": {"mixer": "window", "embed_dim": 16, "depths": (2, 1), "mlp_width": 24, "scale": 2},
}  # fmt: skip
"""Arguments of `FAMILY.create`."""

BF16_ERRORS = (0.02, 0.1)
"""Mean and largest error of a small network in bf16, of the spread of its output; single steps are off by 2^-9 = 0.002."""

SEEN_BY_A_SMALL_NETWORK = 256
"""Overlap in pixels that exceeds four times the reach of every small network that sees a part of the picture only."""


def small(name: str) -> RestorationNetwork:
    """A network whose numbers are all different, biases and norms included, so that none can stand in for another."""
    network = family(name).create(**SMALL[name])
    state = network.state_dict()
    network.load_state_dict({k: draw(k, list(v.shape), 0) if v.is_floating_point() else v for k, v in state.items()})
    return network.eval()


@pytest.fixture(scope="module", params=SMALL)
def network(request: pytest.FixtureRequest) -> RestorationNetwork:
    return small(request.param)


def picture(network: RestorationNetwork, height: int, width: int, batch: int = 1) -> Tensor:
    low, high = network.card.value_range
    generator = torch.Generator().manual_seed(height * width)
    return low + (high - low) * torch.rand(batch, network.card.channels, height, width, generator=generator)


@torch.inference_mode()
def run(network: RestorationNetwork, x: Tensor) -> Tensor:
    return network.result(x)


def test_each_family_has_a_small_configuration() -> None:
    assert set(SMALL) == set(MODULES), "add the new family to SMALL, with arguments that make it small"
    assert [family(name).name for name in MODULES] == list(MODULES)


def test_card_states_the_facts(network: RestorationNetwork) -> None:
    card = network.card
    assert card.family in MODULES
    options = SMALL[card.family]
    assert card.scale == options.get("scale", card.scale) and card.channels == options.get("in_channels", card.channels)
    assert card.title and card.paper and card.code_licence
    assert card.multiple >= 1 and card.overlap >= 0 and card.activation_floats > card.channels
    assert card.tasks and all(card.tasks) and card.out_channels >= 1
    assert card.value_range[0] < card.value_range[1]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 70), (37, 23), (3, 64), (16, 16)])
@pytest.mark.parametrize("batch", [1, 2])
def test_takes_any_size(network: RestorationNetwork, height: int, width: int, batch: int) -> None:
    x = picture(network, height, width, batch)
    y = run(network, x)
    scale = network.card.scale
    assert y.dtype == torch.float32 and y.shape[0] == batch
    assert y.shape[-3:] == (network.card.out_channels, height * scale, width * scale)
    assert bool(y.isfinite().all())


def test_leaves_its_input_alone(network: RestorationNetwork) -> None:
    for side in (15, network.card.multiple * 16):  # padded, which makes a copy, and not padded
        x = picture(network, side, side)
        before = x.clone()
        run(network, x)
        assert torch.equal(x, before)


def test_same_bytes_twice(network: RestorationNetwork) -> None:
    x = picture(network, 21, 30)
    assert torch.equal(run(network, x), run(network, x))


def test_pictures_of_a_batch_do_not_meet(network: RestorationNetwork) -> None:
    x = picture(network, 19, 26, batch=3)
    apart = torch.cat([run(network, x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(run(network, x), apart, atol=2e-5, rtol=1e-5)


def test_memory_layout_of_the_input_does_not_matter(network: RestorationNetwork) -> None:
    x = picture(network, 20, 22)
    expected = run(network, x)
    torch.testing.assert_close(run(network, x.contiguous(memory_format=torch.channels_last)), expected, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(run(network, x.transpose(2, 3).contiguous().transpose(2, 3)), expected, atol=2e-5, rtol=1e-5)


def test_pads_as_its_card_says_to_its_multiple(network: RestorationNetwork) -> None:
    """Running the picture that numpy padded, and cropping, gives the same."""
    multiple, scale = network.card.multiple, network.card.scale
    height, width = 2 * multiple + 5, 3 * multiple + 1
    x = picture(network, height, width)
    mode = "constant" if network.card.padding == "zeros" else "reflect"
    padded = np.pad(x.numpy(), [(0, 0), (0, 0), (0, -height % multiple), (0, -width % multiple)], mode=mode)  # type: ignore[call-overload]
    expected = run(network, torch.from_numpy(padded))[..., : height * scale, : width * scale]
    assert torch.equal(run(network, x), expected)


def test_same_numbers_with_and_without_gradients(network: RestorationNetwork) -> None:
    """Inference works in chunks, in place and fused; training does the plain thing."""
    x = picture(network, 40, 24, batch=2)
    torch.testing.assert_close(network.result(x).detach(), run(network, x), atol=5e-5, rtol=1e-5)


def test_other_inputs_are_refused(network: RestorationNetwork) -> None:
    channels = network.card.channels
    for shape in [(1, channels + 1, 8, 8), (channels, 8, 8), (1, channels, 0, 8), (1, channels, 8, 8, 8)]:
        with pytest.raises(ValueError, match=rf"{re.escape(network.card.title)} takes \(B, {channels}, H, W\), not"):
            network(torch.zeros(shape))


def test_saved_under_published_names_and_loaded(network: RestorationNetwork, tmp_path: Path) -> None:
    kind = family(network.card.family)
    state = {kind.keys.to_published(key): value for key, value in network.state_dict().items()}
    assert len(state) == len(network.state_dict())
    write_checkpoint(tmp_path / "x.safetensors", state)
    given = {key: value for key, value in SMALL[kind.name].items() if key in kind.options}
    loaded = load_model(tmp_path / "x.safetensors", device="cpu", scale=network.card.scale, **given)
    assert loaded.card == network.card and loaded.source is not None and loaded.source.file == "x.safetensors"
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    x = picture(network, 13, 22)
    assert torch.equal(run(loaded, x), run(network, x))


def test_every_parameter_learns(network: RestorationNetwork) -> None:
    learning = small(network.card.family).train()
    torch.manual_seed(0)
    learning.result(picture(network, 24, 17, batch=2)).square().mean().backward()
    for name, parameter in learning.named_parameters():
        if not parameter.requires_grad:  # a dictionary that stays as it was learnt, and what only files hold
            continue
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name


def tile_errors(network: RestorationNetwork, overlap: int) -> Tensor:
    """What two tiles that share `overlap` pixels are off by, in units of the spread of the output."""
    card = network.card
    side = max(64, 2 * overlap, overlap + card.multiple)
    side = -(-side // card.multiple) * card.multiple
    step = (side - overlap) // card.multiple * card.multiple
    x = picture(network, step + side, 24)
    plan = plan_tiles(
        x.shape[2:],
        scale=card.scale,
        tile=side,
        overlap=overlap,
        multiple=card.multiple,
        out_channels=card.channels,
        floats_per_pixel=1,
    )
    assert plan.spans[0] == ((0, side), (step, step + side))
    rows: list[Tensor] = []
    run_tiles(network.result, lambda box: x[:, :, box[0], box[1]], plan, lambda _, block: rows.append(block.clone()))
    whole = run(network, x)[0]
    return (torch.cat(rows, dim=-2) - whole).abs() / whole.std()


@pytest.mark.parametrize("name", MODULES)
def test_no_other_family_takes_its_files(name: str) -> None:
    kind = family(name)
    state = {kind.keys.to_published(key): tensor for key, tensor in small(name).state_dict().items()}
    assert [other for other in MODULES if family(other).matches(state)] == [name]


def test_tiles_come_close_to_the_whole(network: RestorationNetwork) -> None:
    """With the overlap that the card asks for. Random weights reach further than learnt ones; a tile out of place is off by 1."""
    if network.card.parts_follow_size:
        pytest.skip(f"{network.card.title} cuts tiles and the whole at different places; see its own test")
    if network.card.face_size:
        pytest.skip(f"{network.card.title} takes a face as a whole")
    errors = tile_errors(network, network.card.overlap)
    assert errors.max() < 0.5 and errors.mean() < 0.02, (
        f"tiles differ by {errors.max():.2f} (mean {errors.mean():.3f}) at the overlap {network.card.overlap}: raise that of the "
        "card, or, where a larger one does not help, set card.parts_follow_size and measure the difference as docs/tiles.md does"
    )


def test_tiles_of_a_local_network_equal_the_whole(network: RestorationNetwork) -> None:
    """Once they overlap by more than it sees."""
    if network.card.global_context:
        pytest.skip(f"some layer of {network.card.title} sees the whole picture")
    assert tile_errors(network, overlap=SEEN_BY_A_SMALL_NETWORK).max() < 2e-5


def test_bf16_stays_near_float32(network: RestorationNetwork) -> None:
    if "bf16" not in network.card.low_precision:
        pytest.skip(f"{network.card.title} is not known to work in bf16")
    x = picture(network, 33, 26)
    expected = run(network, x)
    low = small(network.card.family)
    low.precision = "bf16"
    y = run(low, x)
    assert y.dtype == torch.float32
    errors, (mean, largest) = (y - expected).abs() / expected.std(), BF16_ERRORS
    assert 0 < errors.mean() < mean and errors.max() < largest
