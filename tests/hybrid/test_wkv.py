"""Bi-WKV against its formula, written out over all pairs of tokens in float64, and the blocks that are made of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate
from torch import Tensor

from hybrid.blocks import rwkv, wkv
from hybrid.blocks.rwkv import ChannelMix, OmniShift, RWKVBlock, SpatialMix
from hybrid.blocks.wkv import bidirectional_wkv, recurrent_wkv


def every_pair(key: np.ndarray, value: np.ndarray, decay: np.ndarray, bonus: np.ndarray) -> np.ndarray:
    """(B, C, T): equation 8 of Restore-RWKV as it stands, with u divided by T too."""
    count = key.shape[-1]
    distance = np.abs(np.subtract.outer(np.arange(count), np.arange(count)))
    logits = key[:, :, None] - (distance - 1) * (decay / count)[:, None, None]
    own = key + (bonus / count)[:, None]
    logits[:, :, range(count), range(count)] = own
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return (weights * value[:, :, None]).sum(-1) / weights.sum(-1)


def along(axis: int, key: Tensor, value: Tensor, decay: Tensor, bonus: Tensor) -> np.ndarray:
    """`every_pair` with the tokens of a map in the order in which `axis` runs fastest, then the axis before it and so on."""
    k, v, w, u = (t.double().numpy() for t in (key, value, decay, bonus))
    turned = [np.moveaxis(t, range(axis + 1, 0), range(2, 1 - axis)) if axis < -1 else t for t in (k, v)]
    y = every_pair(*(t.reshape(*t.shape[:2], -1) for t in turned), w, u).reshape(turned[0].shape)
    return np.moveaxis(y, range(2, 1 - axis), range(axis + 1, 0)) if axis < -1 else y


def drawn(shape: tuple[int, ...], keys: float = 1.0, decay: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    key, value = (torch.randn(2, 3, *shape, generator=generator) for _ in range(2))
    w, u = (torch.randn(3, generator=generator) for _ in range(2))
    return keys * key, value, decay * w, min(decay, 50) * u


def test_worked_examples() -> None:
    k, v = torch.tensor([0.5, -1, 2, 0, 1]).view(1, 1, 5), torch.tensor([1, -2, 0.5, 3, -1]).view(1, 1, 5)
    y = bidirectional_wkv(k, v, torch.tensor([1.5]), torch.tensor([0.8]))
    expected = [0.47475986, 0.44525722, 0.43750072, 0.38982723, 0.26704076]
    torch.testing.assert_close(y.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)


def test_worked_example_of_rows_then_columns() -> None:
    k = torch.tensor([0.5, -1, 2, 0, 1, -0.5]).view(1, 1, 2, 3)
    v = torch.tensor([1, -2, 0.5, 3, -1, 2]).view(1, 1, 2, 3)
    y = recurrent_wkv(k, v, torch.tensor([[1.5], [-0.7]]), torch.tensor([[0.8], [0.3]]))
    expected = [0.44813365, 0.44966724, 0.45116117, 0.44839677, 0.44874621, 0.44973090]
    torch.testing.assert_close(y.flatten(), torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize("shape", [(1,), (7,), (1, 1), (6, 8), (13, 11), (1, 40), (40, 1), (3, 4, 5)])
def test_every_axis_is_the_formula(shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wkv, "CHUNK_TOKENS", chunk)
    given = drawn(shape)
    for axis in range(-len(shape), 0):
        np.testing.assert_allclose(bidirectional_wkv(*given, axis).numpy(), along(axis, *given), atol=3e-6)


@pytest.mark.parametrize("decay", [1.0, 50.0, 2000.0])
@pytest.mark.parametrize("keys", [1.0, 200.0])
def test_float32_holds_where_exponentials_would_overflow(keys: float, decay: float) -> None:
    """Decays of both signs, so that some weights grow with distance. A key of 200 is itself only known to 1e-5."""
    for shape in [(16, 24), (5, 67), (48,)]:
        given = drawn(shape, keys, decay)
        for axis in range(-len(shape), 0):
            np.testing.assert_allclose(bidirectional_wkv(*given, axis).numpy(), along(axis, *given), atol=2e-6 * max(keys, decay))


def test_a_chunk_that_counts_for_nothing_beside_the_others() -> None:
    """Its own tokens are e^-400 of what comes from outside, before and after it."""
    key, value, decay, bonus = drawn((8, 16))
    key[..., 2:5, :] -= 400
    np.testing.assert_allclose(
        bidirectional_wkv(key, value, decay, bonus).numpy(), along(-1, key, value, decay, bonus), atol=1e-4
    )


@pytest.mark.parametrize("autocast", [True, False])
def test_low_precision_keeps_float32_within(autocast: bool) -> None:
    key, value, decay, bonus = drawn((16, 24))
    key, value = key.bfloat16(), value.bfloat16()
    expected = bidirectional_wkv(key.float(), value.float(), decay, bonus).bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert torch.equal(bidirectional_wkv(key, value, decay, bonus), expected)


@pytest.mark.parametrize("axis", [-1, -2])
def test_gradients_are_those_of_the_formula(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wkv, "CHUNK_TOKENS", 4)
    key, value, decay, bonus = (t.double().requires_grad_() for t in drawn((4, 8), decay=3.0))
    assert torch.autograd.gradcheck(lambda *given: bidirectional_wkv(*given, axis), (key, value, decay, bonus))


def test_chunks_do_not_straddle_lines_and_shorten_with_the_decay() -> None:
    assert wkv._chunk_length(512, 512 * 512, step=0.001) == 64
    assert wkv._chunk_length(296, 296 * 100, step=0.001) == 74
    assert wkv._chunk_length(64, 64, step=1.0) == 8
    assert wkv._chunk_length(64, 64, step=100.0) == 1


def test_maps_that_do_not_fit_are_refused() -> None:
    key, value, decay, bonus = drawn((4, 6))
    with pytest.raises(ValueError, match="not maps of one size with axis -3"):
        bidirectional_wkv(key, value, decay, bonus, -3)
    with pytest.raises(ValueError, match="not maps of one size"):
        bidirectional_wkv(key, value[..., :2], decay, bonus)


def test_recurrences_go_around_the_axes_and_take_the_place_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    key, value, _, _ = drawn((3, 4, 5))
    decay, bonus = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1)).unbind()
    expected = value
    for axis, w, u in zip((-1, -2, -3, -1), decay, bonus, strict=True):
        expected = torch.from_numpy(along(axis, key, expected, w, u))
    torch.testing.assert_close(recurrent_wkv(key, value.clone(), decay, bonus).double(), expected, atol=1e-5, rtol=0)
    monkeypatch.setattr(wkv, "PIECE_VALUES", 1)  # channel by channel
    with torch.inference_mode():
        result = recurrent_wkv(key, held := value.clone(), decay, bonus)
    assert result is held
    torch.testing.assert_close(result.double(), expected, atol=1e-5, rtol=0)


# Blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 7), (4, 6, 5)])
def test_omni_shift_is_the_sum_of_its_branches(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    shift = OmniShift(3, spatial_dims=len(shape))
    x = torch.randn(1, *shape, 3)
    with torch.no_grad():
        found = shift(x).numpy()
    alpha = shift.alpha.tolist()
    for channel in range(3):
        image = x[0, ..., channel].numpy()
        expected = alpha[0] * image
        for factor, kernel in zip(alpha[1:], (shift.point, shift.small, shift.large), strict=True):
            expected = expected + factor * correlate(image, kernel[channel, 0].detach().numpy(), mode="constant")
        np.testing.assert_allclose(found[0, ..., channel], expected, atol=1e-5)


def test_mixes_are_their_formulas() -> None:
    torch.manual_seed(0)
    spatial, channel = SpatialMix(6).requires_grad_(False), ChannelMix(6, 10).requires_grad_(False)
    s, scale = torch.randn(2, 5, 7, 6), torch.randn(6)
    key, value, gate = (layer(s) for layer in (spatial.key, spatial.value, spatial.receptance))
    maps = [t.movedim(-1, 1).contiguous() for t in (key, value)]
    for axis, w, u in zip((-1, -2), spatial.decay, spatial.bonus, strict=True):
        maps[1] = torch.from_numpy(along(axis, *maps, w, u)).float()
    expected = spatial.output(torch.sigmoid(gate) * maps[1].movedim(1, -1)) * scale
    torch.testing.assert_close(spatial(s.clone(), scale), expected, atol=1e-5, rtol=1e-4)
    hidden = torch.square(torch.relu(channel.key(s)))
    expected = torch.sigmoid(channel.receptance(s)) * channel.value(hidden) * scale
    torch.testing.assert_close(channel(s.clone(), scale), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("shape", [(12, 10), (4, 6, 6)])
def test_chunks_of_inference_change_nothing(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = RWKVBlock(40, 80, recurrences=3, spatial_dims=len(shape))
    x = torch.randn(2, *shape, 40)
    expected = block(x.clone()).detach()
    monkeypatch.setattr(rwkv, "CHUNK_VALUES", 1)
    monkeypatch.setattr(wkv, "PIECE_VALUES", 1)
    with torch.inference_mode():
        torch.testing.assert_close(block(x.clone()), expected, atol=2e-5, rtol=1e-5)
