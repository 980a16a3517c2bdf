"""Restormer and its blocks against recorded outputs of the published network and plain formulas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hybrid.blocks import transposed
from hybrid.blocks.transposed import BiasFreeLayerNorm, GatedFeedForward, TransposedAttention, TransposedBlock
from hybrid.initialisation import SkipRandomFill
from restore import load_model
from restore.loading import catalogue
from restore.models import restormer
from restore.models.restormer import KEYS, Restormer, RestormerConfig, matches, read_config
from tests.restore.parity import SMALL_CASES, draw, largest_difference, load_case, write_checkpoint

TOLERANCE = 5e-5
"""Tighter than the cases' own."""

CASES = ("deraining_reduced", "dual_pixel_reduced", "gaussian_gray_reduced")
COLOUR = RestormerConfig()
DENOISING = RestormerConfig(centred=False)
GRAY = RestormerConfig(in_channels=1, out_channels=1, centred=False)
DUAL = RestormerConfig(in_channels=6, dual_pixel=True)
PUBLISHED = {
    "restormer-deraining": (26_126_644, COLOUR),
    "restormer-motion-deblurring": (26_126_644, COLOUR),
    "restormer-defocus-deblurring": (26_126_644, COLOUR),
    "restormer-dual-pixel": (26_132_548, DUAL),
    "restormer-real-denoising": (26_111_668, DENOISING),
    **{f"restormer-color-{kind}": (26_111_668, DENOISING) for kind in ("blind", "sigma15", "sigma25", "sigma50")},
    **{f"restormer-gray-{kind}": (26_109_076, GRAY) for kind in ("blind", "sigma15", "sigma25", "sigma50")},
}
TASKS = {COLOUR: ("deraining", "deblurring", "defocus deblurring"), DUAL: ("defocus deblurring",)}


def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strips of a few rows and groups of a few channels, so that what is done piece by piece is."""
    for name, value in {"STRIP_VALUES": 1, "STRIP_PIXELS": 1, "LEAST_ROWS": 2, "LEAST_GROUP": 3}.items():
        monkeypatch.setattr(transposed, name, value)


def published(network: torch.nn.Module) -> dict[str, Tensor]:
    return {KEYS.to_published(key): value for key, value in network.state_dict().items()}


def fill_with_noise(block: torch.nn.Module) -> None:
    block.load_state_dict({key: draw(key, list(value.shape), 1) for key, value in block.state_dict().items()})


def small(config: RestormerConfig) -> Restormer:
    layout = {"embed_dim": 8, "depths": (1,) * 4, "num_heads": (1, 2, 2, 4), "refinement": 1, "widths": (8, 16, 32, 64)}
    network = Restormer(replace(config, **layout))  # type: ignore[arg-type]
    fill_with_noise(network)
    return network.eval()


# Recorded outputs ------------------------------------------------------------------------------------------------


def check(folder: Path, scratch: Path, tolerance: float | None = None) -> None:
    case = load_case(folder)
    network = load_model(write_checkpoint(case, scratch), device="cpu", **case.given)
    assert isinstance(network, Restormer) and sum(p.numel() for p in network.parameters()) == case.parameters
    with torch.inference_mode():
        assert largest_difference(network(torch.from_numpy(case.input)), case) < (tolerance or case.tolerance)


@pytest.mark.parametrize("name", CASES)
def test_recorded_outputs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(SMALL_CASES / "restormer" / name, tmp_path, TOLERANCE)
    small_strips(monkeypatch)
    check(SMALL_CASES / "restormer" / name, tmp_path, TOLERANCE)


def test_recorded_outputs_with_gradients(tmp_path: Path) -> None:
    """Nothing is in strips or in place: the same numbers by the other path."""
    case = load_case(SMALL_CASES / "restormer" / "dual_pixel_reduced")
    network = load_model(write_checkpoint(case, tmp_path), device="cpu")
    assert largest_difference(network(torch.from_numpy(case.input)).detach(), case) < TOLERANCE


def test_more_recorded_outputs(shared: Path, tmp_path: Path) -> None:
    check(shared / "parity" / "restormer" / "motion_deblurring_official", tmp_path)


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_layouts_are_told_from_their_files(name: str) -> None:
    parameters, config = PUBLISHED[name]
    with torch.device("meta"), SkipRandomFill():
        network = Restormer(config)
    state = published(network)
    assert sum(value.numel() for value in state.values()) == parameters == catalogue().entry(name).files[1].parameters
    assert matches(state) and read_config(state) == config
    card = network.card
    assert (card.channels, card.out_channels, card.multiple) == (config.in_channels, config.out_channels, 8)
    assert card.tasks == TASKS.get(config, ("denoising",))


def test_other_layouts_are_told_too() -> None:
    """Biases, and hidden widths that no one factor gives."""
    config = RestormerConfig(2, 2, 8, (1, 2, 1, 3), (2, 1, 4, 8), 2, (5, 7, 30, 20), bias=True)
    state = published(Restormer(config))
    assert read_config(state) == config
    assert {
        "encoder_level1.0.attn.qkv_dwconv.bias",
        "reduce_chan_level2.bias",
        "output.bias",
        "latent.2.ffn.project_in.bias",
    } <= set(state)
    assert "patch_embed.proj.bias" not in state and "up2_1.body.0.bias" not in state


def test_file_of_another_network_is_not_taken_for_one() -> None:
    state = published(Restormer(RestormerConfig(3, 3, 8, (1,) * 4, (1, 2, 2, 4), 1, (8, 16, 32, 64))))
    assert matches(state) and read_config(state).n_heads == 1
    assert read_config(state | {"output.weight": torch.zeros(12, 16, 3, 3)}).n_heads == 4
    assert not matches(state | {"output.weight": torch.zeros(5, 16, 3, 3)})
    assert not matches({"patch_embed.proj.weight": state["patch_embed.proj.weight"]})


@pytest.mark.parametrize("config", [DENOISING, DUAL])
def test_strips_of_the_last_step_leave_no_joints(config: RestormerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restormer, "STRIP_PIXELS", 1)  # the least, 16 rows
    network = small(config)
    x = draw("x", [1, config.in_channels, 40, 8], 0)
    with torch.inference_mode():
        result = network(x)
    torch.testing.assert_close(result, network(x).detach(), atol=1e-5, rtol=1e-5)


def test_black_stays_black() -> None:
    """Queries and keys of length zero have no direction."""
    with torch.inference_mode():
        assert not small(DENOISING)(torch.zeros(1, 3, 8, 8)).any()
    q = torch.zeros(1, 4, 4, 2)
    torch.testing.assert_close(transposed.channel_attention([(q, q)], torch.ones(1, 1, 1)), torch.full((1, 1, 2, 2), 0.5))


def test_two_views_give_one_picture() -> None:
    network = small(DUAL)
    with torch.inference_mode():
        assert network(torch.rand(2, 6, 11, 9)).shape == (2, 3, 11, 9)
    with pytest.raises(ValueError, match=r"Restormer takes \(B, 6, H, W\)"):
        network(torch.rand(1, 3, 8, 8))


# Blocks ----------------------------------------------------------------------------------------------------------


def convolved(x: Tensor, module: torch.nn.Module, **options: int) -> Tensor:
    """Channels first, in two or three dimensions."""
    return (F.conv2d, F.conv3d)[x.ndim - 4](x, module.weight, module.bias, **options)  # type: ignore[arg-type]


def plain_attention(block: TransposedAttention, x: Tensor) -> Tensor:
    """Equation 1 of the paper, head by head, channels first; without its skip."""
    t = convolved(convolved(x, block.qkv), block.qkv_dwconv, padding=1, groups=3 * x.shape[1])
    heads = len(block.temperature)
    results = []
    for n in range(heads):
        size = x.shape[1] // heads
        q, k, v = (part[:, n * size : (n + 1) * size].flatten(2) for part in t.chunk(3, 1))
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2) * block.temperature[n]
        results.append(torch.softmax(scores, -1) @ v)
    return convolved(torch.cat(results, 1).view(x.shape), block.project_out)


def plain_feedforward(block: GatedFeedForward, x: Tensor) -> Tensor:
    t = convolved(x, block.project_in)
    first, second = convolved(t, block.dwconv, padding=1, groups=t.shape[1]).chunk(2, 1)
    return convolved(F.gelu(first) * second, block.project_out)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("sides", [(11, 5), (9, 3, 4)])
def test_block_against_the_formulas(bias: bool, centred: bool, sides: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    block = TransposedBlock(6, 3, 20, bias, centred, spatial_dims=len(sides))
    fill_with_noise(block)
    grid = draw("x", [2, *sides, 6], 0)
    x = grid.movedim(-1, 1)
    y = x + plain_attention(block.attention, block.norm1(grid).movedim(-1, 1))
    expected = (y + plain_feedforward(block.feedforward, block.norm2(y.movedim(1, -1)).movedim(-1, 1))).detach().movedim(1, -1)
    torch.testing.assert_close(block(grid).detach(), expected, atol=1e-5, rtol=1e-5)
    for _ in range(2):
        with torch.inference_mode():
            torch.testing.assert_close(block(grid.clone()), expected, atol=1e-5, rtol=1e-5)
        small_strips(monkeypatch)  # for the second turn


def test_feedforward_in_groups_of_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    """More groups than one, of which the last is smaller."""
    block = GatedFeedForward(4, 37, bias=True)
    fill_with_noise(block)
    grid = draw("x", [1, 3, 4, 4], 0)
    expected = plain_feedforward(block, grid.movedim(-1, 1)).movedim(1, -1).detach()
    monkeypatch.setattr(transposed, "STRIP_VALUES", 16 * 12)
    monkeypatch.setattr(transposed, "LEAST_GROUP", 1)
    assert [part.stop for part in transposed._groups(37, grid)] == [37]
    with torch.inference_mode():
        assert [part.stop for part in transposed._groups(37, grid)] == [16, 32, 37]
        torch.testing.assert_close(block(grid), expected, atol=1e-5, rtol=1e-5)


def test_norm_that_keeps_the_mean_against_numpy() -> None:
    norm = BiasFreeLayerNorm(7)
    fill_with_noise(norm)
    x = 3 + 2 * draw("x", [2, 5, 7], 0)
    values = x.numpy().astype(np.float64)
    expected = values / np.sqrt(values.var(-1, keepdims=True) + 1e-5) * norm.weight.detach().numpy()
    np.testing.assert_allclose(norm(x).detach().numpy(), expected, atol=1e-5, rtol=1e-5)


def test_channels_must_divide_among_heads() -> None:
    with pytest.raises(ValueError, match="10 channels cannot be shared by 4 heads"):
        TransposedAttention(10, 4)


def test_large_sums_stay_in_float32_under_autocast() -> None:
    """In float16 the squares of 256 x 256 pixels of 30 would be infinite, and every weight of the attention NaN."""
    q = torch.full((1, 256, 256, 2), 30.0, dtype=torch.float16)
    weights = transposed.channel_attention([(q, q)], torch.ones(1, 1, 1))
    torch.testing.assert_close(weights, torch.full((1, 1, 2, 2), 0.5))


@pytest.mark.parametrize("shape", [(2, 96, 64, 8), (1, 37, 53, 8), (1, 211, 101, 8)])
def test_bfloat16_is_rounded_once_a_piece(shape: tuple[int, ...]) -> None:
    """Against float64 on the same rounded values: rounding of sums over many pixels would grow with their number."""
    torch.manual_seed(0)
    q, k = (torch.randn(shape).bfloat16() for _ in range(2))
    k = (k + q).bfloat16()  # the sums are large
    temperature = torch.tensor([1.0, 2.0]).view(2, 1, 1)
    with torch.inference_mode():
        found = transposed.channel_attention([(q[:, :20], k[:, :20]), (q[:, 20:], k[:, 20:])], temperature)
    exact = [F.normalize(t.double().flatten(1, 2), dim=1).unflatten(-1, (2, 4)) for t in (q, k)]
    logits = torch.einsum("bphi,bphj->bhij", *exact) * temperature
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), logits.softmax(-1), atol=2e-3, rtol=0)


def test_pieces_are_many_whatever_the_number_of_pixels() -> None:
    """One rounding of one large sum would be off by up to 2^-9 of it."""
    q = torch.randn(1, 16 * 1021, 16).bfloat16()  # no number of pieces from 4 to 16 divides it
    with torch.inference_mode():
        found = transposed._inner(q, q)
    expected = q.double().mT @ q.double()
    assert ((found - expected).abs().max() / expected.max()).item() < 1.5e-3
