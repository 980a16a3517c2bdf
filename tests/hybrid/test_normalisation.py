"""Instance norm against torch's own in float64, its gradient against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from hybrid.blocks import normalisation
from hybrid.blocks.normalisation import apply_affine, instance_norm, moments

SHAPES = [(2, 6, 5, 4, 3), (1, 2, 1, 1, 5), (3, 7, 9, 4), (1, 64, 48, 24), (2, 33, 1, 2, 3000)]


def grid(shape: tuple[int, ...], offset: float = 0.5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator) * (0.5 + torch.rand(shape[-1], generator=generator)) + offset


def expected(x: torch.Tensor) -> torch.Tensor:
    return F.instance_norm(x.double().movedim(-1, 1)).movedim(1, -1)


@pytest.fixture(params=[2**17, 50], ids=["one chunk", "many chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(normalisation, "CHUNK_VALUES", request.param)
    monkeypatch.setattr(normalisation, "ROW_VALUES", 16 if request.param == 50 else normalisation.ROW_VALUES)


@pytest.mark.parametrize("shape", SHAPES)
def test_same_as_torch(shape: tuple[int, ...], chunks: None) -> None:
    x = grid(shape)
    torch.testing.assert_close(instance_norm(x).double(), expected(x), atol=2e-5, rtol=1e-5)


def test_variance_of_a_few_large_numbers(chunks: None) -> None:
    """As a difference of mean squares it would be nothing but rounding."""
    x = grid((1, 2, 1, 1, 8), offset=0.0) * 1e-2 + 10
    torch.testing.assert_close(instance_norm(x).double(), expected(x), atol=1e-3, rtol=0)


def test_constant_channels_become_zero(chunks: None) -> None:
    assert instance_norm(torch.full((1, 4, 4, 3), 7.0)).abs().max() == 0


def test_gradient(chunks: None) -> None:
    x = grid((2, 4, 3, 3, 4)).requires_grad_()
    reference = x.detach().double().requires_grad_()
    weights = grid((2, 4, 3, 3, 4), offset=1.0)
    (instance_norm(x) * weights).sum().backward()
    (expected(reference) * weights).sum().backward()
    assert x.grad is not None and reference.grad is not None
    torch.testing.assert_close(x.grad.double(), reference.grad, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_applied_in_place_with_a_skip_and_a_slope(dtype: torch.dtype, chunks: None) -> None:
    x, skip = grid((2, 6, 4, 8)).to(dtype), grid((2, 6, 4, 8), offset=0.0).to(dtype)
    wanted = F.leaky_relu(expected(x) + skip.double(), 0.01)
    assert apply_affine(x, moments(x), out=x, plus=skip, activation=lambda y: F.leaky_relu_(y, 0.01)) is x
    torch.testing.assert_close(x.double(), wanted, atol=2e-5 if dtype == torch.float32 else 2e-2, rtol=0)
