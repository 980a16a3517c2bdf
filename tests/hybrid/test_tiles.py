"""The tile runner against the network run on the whole input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, pad

from hybrid.errors import OutputError, ResourceError
from hybrid.tiles.run import TilePlan, is_out_of_memory, run_tiles
from tests.hybrid.tile_stubs import plan, plans


def run(network: Callable[[Tensor], Tensor], x: Tensor, tiles: TilePlan, **keywords: object) -> Tensor:
    """Run the tiles over x (1, C, *shape) and put the blocks together, checking that they come once each and in order."""
    axis = -len(tiles.shape)
    blocks: list[Tensor] = []

    def write(start: int, block: Tensor) -> None:
        assert start == sum(b.shape[axis] for b in blocks)
        assert block.dtype == torch.float32 and block.shape[axis] > 0
        blocks.append(block.clone())

    before = x.clone()
    run_tiles(network, lambda box: cut(x, box), tiles, write, **keywords)  # type: ignore[arg-type]
    assert torch.equal(x, before)
    return torch.cat(blocks, dim=axis)


def cut(x: Tensor, box: tuple[slice, ...]) -> Tensor:
    return x[(slice(None), slice(None), *box)]


def picture(*shape: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(1, channels, *shape, generator=torch.Generator().manual_seed(seed))


def convolutions(dims: int, scale: int, kernels: tuple[int, ...] = (3, 3, 3)) -> nn.Module:
    """A stack of convolutions, its last one shuffled up; its reach is the sum of the kernels' radii."""
    torch.manual_seed(1)
    layer = nn.Conv2d if dims == 2 else nn.Conv3d
    width, layers = 3, []
    for kernel in kernels:
        layers += [layer(width, 8, kernel, padding=kernel // 2), nn.GELU()]
        width = 8
    layers.append(layer(width, 3 * scale**dims, 1))
    return nn.Sequential(*layers, *([nn.PixelShuffle(scale)] if scale > 1 else [])).eval()


# The runner ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2])
@pytest.mark.parametrize("shape", [(101, 77), (64, 200), (33, 150), (1, 500), (1, 1)])
def test_convolutions_within_the_discarded_margin_are_exact(shape: tuple[int, int], scale: int) -> None:
    network, x = convolutions(2, scale), picture(*shape)
    tiles = plan(shape, 44, scale=scale)
    with torch.inference_mode():
        whole = network(x)[0]
    torch.testing.assert_close(run(network, x, tiles), whole, atol=1e-5, rtol=0)


def test_convolutions_beyond_the_margin_are_not_exact() -> None:
    """The test above can fail: a reach of 9 does not fit into a margin of 4."""
    network, x = convolutions(2, 1, kernels=(7, 7, 7)), picture(101, 77)
    with torch.inference_mode():
        assert (run(network, x, plan((101, 77), 44)) - network(x)[0]).abs().max() > 1e-4


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_exact_tiles_need_half_the_overlap_of_blended_ones(scale: int) -> None:
    """Twice the reach (9) is enough to be right everywhere; less is not."""
    network, x = convolutions(2, scale, kernels=(7, 7, 7)), picture(101, 77)
    with torch.inference_mode():
        whole = network(x)[0]
    differences = [
        float((run(network, x, replace(plan((101, 77), 40, scale=scale, overlap=overlap), exact=True)) - whole).abs().max())
        for overlap in (18, 8)
    ]
    assert differences[0] < 1e-5 < differences[1]


def test_convolutions_are_exact_in_volumes() -> None:
    network, x = convolutions(3, 1, kernels=(3, 3)), picture(30, 25, 41)
    tiles = plan((30, 25, 41), (16, 20, 24), overlap=8, multiple=2)
    assert all(n > 1 for n in tiles.grid)
    with torch.inference_mode():
        torch.testing.assert_close(run(network, x, tiles), network(x)[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [(96, 80), (101, 77), (130, 9)])
def test_windows_are_those_of_the_whole_picture(size: tuple[int, int]) -> None:
    """A network that only sees its own window is exact with any overlap when the tiles keep to the window grid."""

    def window_means(x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        padded = pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        return interpolate(avg_pool2d(padded, 8), scale_factor=8)[..., :height, :width]

    x = picture(*size)
    torch.testing.assert_close(run(window_means, x, plan(size, 40, multiple=8, overlap=5)), window_means(x)[0], atol=1e-6, rtol=0)


@given(plans())
@settings(deadline=None, max_examples=40)
def test_a_pointwise_network_gives_the_whole_result(tiles: TilePlan) -> None:
    def enlarge(x: Tensor) -> Tensor:
        for axis in range(2, x.ndim):
            x = x.repeat_interleave(tiles.scale, dim=axis)
        return x * 3 - 1

    x = picture(*tiles.shape, channels=2)
    torch.testing.assert_close(run(enlarge, x, tiles), enlarge(x)[0], atol=2e-6, rtol=0)


def test_leading_axes_of_several_outputs_are_kept() -> None:
    x = picture(70, 50)
    result = run(lambda x: torch.stack([x, 2 * x], dim=1), x, plan((70, 50), 40, out_channels=6))
    torch.testing.assert_close(result, torch.stack([x[0], 2 * x[0]]), atol=1e-6, rtol=0)


def test_only_the_planned_rows_are_held() -> None:
    tiles = plan((300, 90), 40, scale=2, multiple=8)
    held: list[int] = []
    run_tiles(
        lambda x: interpolate(x, scale_factor=2),
        lambda box: cut(picture(300, 90), box),
        tiles,
        lambda _, block: held.append(block.untyped_storage().nbytes()),
    )
    assert len(held) == tiles.grid[0] and max(held) == tiles.buffer_bytes


def test_progress_counts_the_tiles_and_nothing_is_kept_for_gradients() -> None:
    tiles, seen = plan((70, 50), 40), []
    network = convolutions(2, 1)
    result = run(network, picture(70, 50), tiles, on_progress=lambda *counts: seen.append(counts))
    assert seen == [(i + 1, tiles.count) for i in range(tiles.count)]
    assert not result.requires_grad


# Memory that runs out -------------------------------------------------------------------------------------------------


def limited(network: Callable[[Tensor], Tensor], pixels: int, error: Exception, sizes: list | None = None) -> Callable:
    def call(x: Tensor) -> Tensor:
        if sizes is not None:
            sizes.append(tuple(x.shape[2:]))
        if math.prod(x.shape[2:]) > pixels:
            raise error
        return network(x)

    return call


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
        RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("tile", [None, 140])
def test_a_tile_without_memory_is_run_in_parts(error: Exception, tile: int | None) -> None:
    network, x = convolutions(2, 2), picture(151, 180)
    sizes: list[tuple[int, ...]] = []
    tiles = plan((151, 180), tile, scale=2)
    result = run(limited(network, 90 * 90, error, sizes), x, tiles)
    with torch.inference_mode():
        torch.testing.assert_close(result, network(x)[0], atol=1e-5, rtol=0)
    assert {math.prod(size) <= 90 * 90 for size in sizes} == {True, False}


def test_only_the_failing_tile_is_cut() -> None:
    """One tile fails once; the others run at full size."""
    x, sizes, failures = picture(160, 160), [], [torch.OutOfMemoryError("CUDA out of memory")]

    def network(x: Tensor) -> Tensor:
        sizes.append(tuple(x.shape[2:]))
        if len(sizes) == 2 and failures:
            raise failures.pop()
        return x

    tiles = plan((160, 160), 100)
    torch.testing.assert_close(run(network, x, tiles), x[0], atol=1e-6, rtol=0)
    assert tiles.count == 4 and sizes.count((100, 100)) == 4 and len(sizes) > 5


def test_a_real_allocation_that_fails_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


def test_no_memory_at_the_smallest_size_is_an_error_and_no_later_pixel_is_written() -> None:
    written: list[int] = []
    calls = 0

    def network(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return x

    x = picture(400, 140)
    with pytest.raises(ResourceError, match="--memory.*--tile.*--device cpu"):
        run_tiles(network, lambda box: cut(x, box), plan((400, 140), 140), lambda start, _: written.append(start))
    assert written == [0, *written[1:]] and len(written) <= 2


def test_other_errors_of_the_network_pass_through() -> None:
    error = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="mat1") as caught:
        run(limited(lambda x: x, 0, error), picture(80, 80), plan((80, 80), 40))
    assert caught.value is error


# Results that are refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    def network(x: Tensor) -> Tensor:
        y = x.clone()
        y[..., -1, -1] = value
        return y

    with pytest.raises(OutputError, match="not finite"):
        run(network, picture(80, 80), plan((80, 80), 40))


@pytest.mark.parametrize(
    "network",
    [lambda x: x, lambda x: interpolate(x, scale_factor=2)[0], lambda x: interpolate(x, scale_factor=2).expand(2, 3, -1, -1)],
)
def test_results_of_the_wrong_shape_are_refused(network: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(OutputError, match="a scale of 2 asks for"):
        run(network, picture(80, 80), plan((80, 80), 40, scale=2))


def test_channels_that_change_between_tiles_are_refused() -> None:
    widths = iter(range(1, 10))
    with pytest.raises(OutputError, match="channels"):
        run(lambda x: x[:, :1].expand(1, next(widths), -1, -1), picture(80, 80), plan((80, 80), 40))
