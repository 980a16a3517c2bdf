"""The plain forms of exports, run as they are, equal the forms for daily use."""

from __future__ import annotations

import pytest
import torch

from hybrid.blocks import exportable
from hybrid.blocks.attention import OverlappingCrossAttention, WindowAttention
from hybrid.blocks.channel_gates import local_mean, spread_edges
from hybrid.blocks.normalisation import EPSILON, instance_norm
from hybrid.blocks.resampling import pad_to_multiple
from hybrid.blocks.split_windows import SplitWindowAttention
from hybrid.blocks.windows import from_windows, plan_windows, to_windows


def grid(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("mode", ["reflect", "zeros"])
@pytest.mark.parametrize("sides", [(1, 1), (1, 9), (2, 3), (8, 16), (3, 17), (23, 5)])
def test_padding(sides: tuple[int, int], mode: str) -> None:
    x = grid(2, 3, *sides)
    assert torch.equal(exportable.padded(x, 8, mode), pad_to_multiple(x, 8, mode))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("sides", "window", "shift"),
    [((8, 12), (4, 4), (0, 0)), ((8, 12), (4, 4), (2, 2)), ((6, 8), (3, 4), (1, 0)), ((4, 6, 4), (2, 3, 2), (1, 1, 1))],
)
def test_windows_and_their_masks(sides: tuple[int, ...], window: tuple[int, ...], shift: tuple[int, ...]) -> None:
    x = grid(1, *sides, 5)
    plan = plan_windows(1, sides, window, shift, x.device)
    mask = exportable.seam_mask(sides, window, shift, x)
    assert (mask is None) == (not any(shift))
    kept: list[torch.Tensor] = []

    def step(windows: torch.Tensor) -> torch.Tensor:
        kept.append(windows)
        return 2 * windows

    assert torch.equal(exportable.windowed(x, window, shift, step), 2 * x)
    ours = to_windows(x, plan, plan.tokens)
    masks = [part for count, part in plan.groups for _ in range(count)]
    for windows, expected in zip(ours, masks, strict=True):  # the plan orders windows by their kind
        [place] = (kept[0] == windows).flatten(1).all(1).nonzero().flatten().tolist()
        found = torch.zeros(plan.tokens, plan.tokens) if mask is None else mask[place]
        assert torch.equal(found, torch.zeros_like(found) if expected is None else expected)
    assert torch.equal(from_windows(ours, plan, x.shape), x)


@torch.inference_mode()
@pytest.mark.parametrize("any_size", [False, True])
def test_window_attention(any_size: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = WindowAttention(8, (4, 4), 2, any_size=any_size).eval()
    for sides in [(8, 12)] + ([(3, 13), (4, 9), (2, 2)] if any_size else []):
        x = grid(1, *sides, 8)
        expected = [block(x, shift) for shift in ((0, 0), (2, 2))]
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_exporting", lambda: True)
            found = [block(x, shift) for shift in ((0, 0), (2, 2))]
        for mine, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_overlapping_and_split_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = grid(1, 8, 16, 8)
    blocks = [(OverlappingCrossAttention(8, (4, 4), (6, 6), 2).eval(), ())]
    split = SplitWindowAttention(8, ((2, 8), (8, 2)), 2, bias_width=3).eval()
    expected = [block(x, *more) for block, more in blocks] + [split(x, True), split(x, False)]
    monkeypatch.setattr(torch.compiler, "is_exporting", lambda: True)
    with torch.enable_grad():  # as exports are made
        found = [block(x, *more) for block, more in blocks] + [split(x, True), split(x, False)]
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine.detach(), theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("window", [(3, 4), (5, 20), (20, 20), (8, 7), (7, 6)])
def test_local_means(window: tuple[int, int]) -> None:
    x = grid(2, 8, 7, 3)
    expected = spread_edges(local_mean(x, window), (8, 7)).expand_as(x)
    torch.testing.assert_close(exportable.local_means(x, window).expand_as(x), expected, atol=1e-6, rtol=1e-5)


def test_instance_norm_and_crop() -> None:
    x = grid(2, 6, 5, 4, 3) + 7
    torch.testing.assert_close(exportable.instance_norm(x, EPSILON), instance_norm(x), atol=1e-5, rtol=1e-5)
    assert torch.equal(exportable.cropped(x, (2, 3)), x[..., :2, :3]) and exportable.cropped(x, (4, 3)) is x


def test_overlap_reads_zeros_outside() -> None:
    x = torch.arange(1.0, 17).view(1, 4, 4, 1)
    windows = exportable.overlapping(x, (2, 2), (4, 4))
    assert windows.shape == (4, 16, 1)
    assert windows[0].view(4, 4).tolist() == [[0, 0, 0, 0], [0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11]]
