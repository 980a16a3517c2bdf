"""The vector quantiser against distances that numpy computes one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hybrid.blocks import vector_quantiser
from hybrid.blocks.vector_quantiser import VectorQuantiser, perplexity


@pytest.fixture
def quantiser() -> VectorQuantiser:
    torch.manual_seed(3)
    made = VectorQuantiser(19, 6)
    torch.nn.init.normal_(made.embedding.weight)
    return made


def nearest_by_numpy(x: torch.Tensor, table: torch.Tensor) -> np.ndarray:
    difference = x.detach().double().numpy()[..., None, :] - table.detach().double().numpy()
    return np.square(difference).sum(-1).argmin(-1)


@pytest.mark.parametrize("shape", [(2, 5, 7, 6), (1, 3, 4, 5, 6), (9, 6)])
def test_nearest_entries(quantiser: VectorQuantiser, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(shape)
    expected = nearest_by_numpy(x, quantiser.embedding.weight)
    np.testing.assert_array_equal(quantiser.nearest(x).numpy(), expected)
    monkeypatch.setattr(vector_quantiser, "CHUNK_TOKENS", 4)
    np.testing.assert_array_equal(quantiser.nearest(x).numpy(), expected)
    with torch.inference_mode():
        quantised = quantiser(x)
    assert quantised.loss is None
    np.testing.assert_array_equal(quantised.values.numpy(), quantiser.embedding.weight.detach().numpy()[expected])


def test_first_of_entries_equally_near(quantiser: VectorQuantiser) -> None:
    with torch.no_grad():
        quantiser.embedding.weight[11] = quantiser.embedding.weight[4]
    assert quantiser.nearest(quantiser.embedding.weight[[11, 4, 5]]).tolist() == [4, 4, 5]


def test_search_is_in_float32_under_autocast(quantiser: VectorQuantiser) -> None:
    """Vectors around two entries that bfloat16 does not tell apart."""
    with torch.no_grad():
        quantiser.embedding.weight[0] = 100
        quantiser.embedding.weight[1] = 100.05
    x = torch.stack([torch.full((6,), 100.01), torch.full((6,), 100.04)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantiser.nearest(x).tolist() == [0, 1]


def test_loss_and_straight_through_gradients(quantiser: VectorQuantiser) -> None:
    x = torch.randn(2, 3, 3, 6, requires_grad=True)
    quantised = quantiser(x)
    entries = quantiser.embedding.weight.detach()[torch.from_numpy(nearest_by_numpy(x, quantiser.embedding.weight))]
    torch.testing.assert_close(quantised.values.detach(), entries)
    distance = (x.detach() - entries).square().mean().item()
    assert quantised.loss is not None and quantised.loss.item() == pytest.approx(1.25 * distance, rel=1e-5)
    weights = torch.randn(x.shape)
    (gradient,) = torch.autograd.grad((quantised.values * weights).sum(), x, retain_graph=True)
    torch.testing.assert_close(gradient, weights)
    quantised.loss.backward()
    difference = (x.detach() - entries) * 2 / x.numel()
    torch.testing.assert_close(x.grad, difference)  # weight 1: the vectors go to the entries
    pulled = torch.zeros_like(quantiser.embedding.weight).index_add_(0, quantised.indices.flatten(), -difference.view(-1, 6))
    torch.testing.assert_close(quantiser.embedding.weight.grad, 0.25 * pulled)


def test_perplexity_against_numpy() -> None:
    indices = torch.tensor([[0, 3, 3], [1, 3, 0]])
    share = np.array([2, 1, 3]) / 6
    assert perplexity(indices, 8).item() == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)
