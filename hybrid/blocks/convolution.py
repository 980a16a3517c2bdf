"""Convolutional blocks in two and three dimensions: depthwise kernels with branches that fold away, and what is built of them.

Axis letters: B batch, C channels, M hidden channels. Grids are channels-last, (B, *spatial, C), so that they are token
lists without a copy: 1x1 convolutions are matrix products and layer norm over channels is the plain one.

Branches, layer scales and skips around a linear step are folded into its weights at each call, in float32 and inside
the graph: weights are thousands of times smaller than maps, gradients stay exact, and nothing has to be kept up to date.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import reduce
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.chunks import accumulate

STRIP_PIXELS = 2**14
"""Pixels of a strip in inference: its maps stay near the processor's caches, and hidden maps are no peak of memory."""
LARGEST_QUICK_KERNEL = 9
"""Weights of a depthwise kernel whose gradient is as quick in bfloat16 as in float32: 3 x 3."""
LEAST_VOXELS = 200
"""Of a result that oneDNN convolves faster than torch's own unfolding, measured for 8 to 384 channels."""


class PointwiseConvolution(nn.Module):
    """A 1x1 convolution, its weight (out, in, 1, ...) as published, on a channels-last grid: a matrix product."""

    def __init__(self, inputs: int, outputs: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.weight, self.bias = _parameters(outputs, inputs, [1] * spatial_dims)

    def forward(self, x: Tensor, *, scale: Tensor | None = None, skip: bool = False) -> Tensor:
        """(B, *spatial, in) to (B, *spatial, out), times `scale` (out,); with `skip`, plus the input."""
        weight: Tensor = self.weight.flatten(1)
        bias: Tensor = self.bias
        if scale is not None:
            weight, bias = weight * scale[:, None], bias * scale
        if skip:
            weight = weight + torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        return F.linear(x, weight, bias)


class DepthwiseConvolution(nn.Module):
    """One k^n kernel a channel, size kept by zero padding; on a channels-last grid."""

    def __init__(self, channels: int, kernel: int, spatial_dims: int = 2) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise ValueError(f"a kernel that keeps the size is odd, not {kernel}")
        self.weight, self.bias = _parameters(channels, 1, [kernel] * spatial_dims)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The one kernel (C, 1, k, ...) and bias (C,) that this step amounts to."""
        return self.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same."""
        return depthwise(x, *self.folded())


class EdgeFilter(nn.Module):
    """A fixed 3^n mask with a learned scale and bias a channel (Zhang et al., ECBSR, ACM Multimedia 2021, equation 5).

    The mask is kept with the weights: published networks were trained with masks of their own.
    """

    def __init__(self, mask: Tensor, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(1e-3 * torch.randn(channels, *[1] * (mask.ndim + 1)))
        self.bias = nn.Parameter(1e-3 * torch.randn(channels))
        self.register_buffer("mask", mask.expand(channels, 1, *mask.shape).clone())

    def kernel(self) -> Tensor:
        """(C, 1, 3, ...)"""
        assert isinstance(self.mask, Tensor)
        return self.scale * self.mask


class EdgeConvolution(DepthwiseConvolution):
    """Training form of a 3^n depthwise convolution: Sobel filters along each axis and a Laplacian lie beside it.

    The branches see the same input and are summed, so that all are one kernel (Wu et al., CFSR, arXiv 2401.05633).
    """

    def __init__(self, channels: int, spatial_dims: int = 2) -> None:
        super().__init__(channels, 3, spatial_dims)
        self.edges = nn.ModuleDict({name: EdgeFilter(mask, channels) for name, mask in edge_masks(spatial_dims).items()})

    def folded(self) -> tuple[Tensor, Tensor]:
        weight, bias = super().folded()
        for edge in self.edges.values():
            assert isinstance(edge, EdgeFilter)
            weight, bias = weight + edge.kernel(), bias + edge.bias
        return weight, bias


class LargeKernelConvolution(nn.Module):
    """Training form of a large depthwise kernel: a 3^n kernel with edge filters lies beside the whole one.

    (Ding et al., RepLKNet, CVPR 2022, section 3, with the edge filters of CFSR.)
    """

    def __init__(self, channels: int, kernel: int, spatial_dims: int = 2) -> None:
        super().__init__()
        self.whole = DepthwiseConvolution(channels, kernel, spatial_dims)
        self.detail = EdgeConvolution(channels, spatial_dims)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The one kernel (C, 1, k, ...) and bias (C,)."""
        (weight, bias), (small, small_bias) = self.whole.folded(), self.detail.folded()
        around = (weight.shape[-1] - small.shape[-1]) // 2
        return weight + F.pad(small, [around] * 2 * (small.ndim - 2)), bias + small_bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same."""
        return depthwise(x, *self.folded())


class LargeKernelMixer(nn.Module):
    """x + scale * proj(DW(GELU(context(u))) * value(u)), u = LayerNorm(x): a gate of k^n pixels instead of attention.

    The ConvFormer mixer of CFSR (Wu et al., arXiv 2401.05633), after Hou et al., Conv2Former, arXiv 2211.11943.

    Args:
        dim: Channels C.
        kernel: Edge k of the depthwise kernel.
        branches: Training form, with branches beside the kernel.
    """

    def __init__(self, dim: int, kernel: int, spatial_dims: int = 2, branches: bool = False) -> None:
        super().__init__()
        self.halo = kernel // 2
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.context, self.value, self.proj = (PointwiseConvolution(dim, dim, spatial_dims) for _ in range(3))
        self.large = (LargeKernelConvolution if branches else DepthwiseConvolution)(dim, kernel, spatial_dims)
        self.scale = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same."""
        return in_row_strips(self._mix, x, self.halo)

    def _mix(self, x: Tensor) -> Tensor:
        normed = self.norm(x)
        gate = self.large(F.gelu(self.context(normed)))
        mixed: Tensor = x + self.proj(gate * self.value(normed), scale=self.scale)
        return mixed


class EdgeFeedForward(nn.Module):
    """x + scale * fc2(u + GELU(DW(u))), u = GELU(fc1(LayerNorm(x))), DW depthwise 3^n (CFSR, arXiv 2401.05633).

    Args:
        dim: Channels C.
        width: Hidden channels M.
        branches: Training form, with edge filters beside the depthwise kernel.
    """

    halo = 1

    def __init__(self, dim: int, width: int, spatial_dims: int = 2, branches: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.fc1, self.fc2 = PointwiseConvolution(dim, width, spatial_dims), PointwiseConvolution(width, dim, spatial_dims)
        self.edge = EdgeConvolution(width, spatial_dims) if branches else DepthwiseConvolution(width, 3, spatial_dims)
        self.scale = nn.Parameter(torch.full((dim,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """(B, *spatial, C) to the same."""
        return in_row_strips(self._feed, x, self.halo)

    def _feed(self, x: Tensor) -> Tensor:
        hidden = F.gelu(self.fc1(self.norm(x)))
        mixed: Tensor = x + self.fc2(hidden + F.gelu(self.edge(hidden)), scale=self.scale)
        return mixed


def edge_masks(spatial_dims: int) -> dict[str, Tensor]:
    """Sobel masks along the last axis (x), the one before (y) and so on, and the Laplacian; each 3^n.

    >>> edge_masks(2)["sobel_x"].tolist()
    [[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]]
    >>> edge_masks(3)["laplacian"].sum().item(), edge_masks(3)["laplacian"][1, 1, 1].item()
    (0.0, -6.0)
    """
    smooth, slope = torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 0.0, -1.0])
    unit, curve = torch.tensor([0.0, 1.0, 0.0]), torch.tensor([1.0, -2.0, 1.0])

    def separable(along: Tensor, across: Tensor, axis: int) -> Tensor:
        factors = [along if i == axis else across for i in range(spatial_dims)]
        return reduce(lambda outer, factor: torch.tensordot(outer, factor, 0), factors)

    masks = {f"sobel_{name}": separable(slope, smooth, spatial_dims - 1 - i) for i, name in enumerate("xyz"[:spatial_dims])}
    return masks | {"laplacian": torch.stack([separable(curve, unit, axis) for axis in range(spatial_dims)]).sum(0)}


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A depthwise convolution (C, 1, k, ...) of a grid (B, *spatial, C), size kept, in channels-last memory throughout."""
    convolve = (F.conv1d, F.conv2d, F.conv3d)[weight.ndim - 3]
    # On a CPU oneDNN's gradient of larger kernels takes three to five times as long in bfloat16 as in float32 (torch 2.13).
    learning = torch.is_grad_enabled() and not torch.compiler.is_exporting()
    exact = learning and x.device.type == "cpu" and prod(weight.shape[2:]) > LARGEST_QUICK_KERNEL
    with torch.autocast("cpu", enabled=False) if exact else nullcontext():
        image = x.movedim(-1, 1)
        image = image.to(weight.dtype) if exact else image
        return convolve(image, weight, bias, padding=weight.shape[-1] // 2, groups=len(weight)).movedim(1, -1)


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    groups: int = 1,
) -> Tensor:
    """torch's conv2d or conv3d of (B, C, *spatial), centred unless `padding` is given; by oneDNN also where torch unfolds.

    torch unfolds the grid of a single volume when channels times depth times height are 20480 or fewer, whatever its width.
    From some hundred voxels on that takes 2 to 40 times as long, and 27 times the grid's memory.
    Channels-last weights bring nothing there: they help only grids so small that unfolding is faster still.
    """
    stride = [1] * (x.ndim - 2) if stride is None else stride
    padding = [edge // 2 for edge in weight.shape[2:]] if padding is None else padding
    if groups == 1 and _unfolded_by_torch(x, weight, stride):
        found: Tensor = torch.mkldnn_convolution(x, weight, bias, padding, stride, [1, 1, 1], groups)
        return found
    return (F.conv2d if weight.ndim == 4 else F.conv3d)(x, weight, bias, stride, padding, groups=groups)


def _unfolded_by_torch(x: Tensor, weight: Tensor, stride: Sequence[int]) -> bool:
    """Whether torch might unfold where oneDNN, which takes the same numbers, is at hand and faster."""
    single = weight.ndim == 5 and len(x) == 1 and prod(weight.shape[2:]) > 1
    plain = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    ready = torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    if torch.compiler.is_exporting():  # a graph for others has their convolutions
        return False
    return single and plain and ready and prod(x.shape[2:]) >= LEAST_VOXELS * prod(stride)


def merge_branches(network: nn.Module) -> None:
    """Replace, in place, every training form in `network` by the one depthwise convolution that it amounts to."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, (EdgeConvolution, LargeKernelConvolution)):
                setattr(module, name, _merged(child))


@torch.no_grad()
def _merged(training_form: EdgeConvolution | LargeKernelConvolution) -> DepthwiseConvolution:
    weight, bias = training_form.folded()
    plain = DepthwiseConvolution(len(weight), weight.shape[-1], weight.ndim - 2).to(weight)
    plain.weight.copy_(weight)
    plain.bias.copy_(bias)
    return plain


def in_row_strips(
    step: Callable[[Tensor], Tensor], x: Tensor, halo: int, pixels: int | None = None, onto: Tensor | None = None
) -> Tensor:
    """Run a local `step` over strips along the first spatial axis of a grid, each with `halo` rows of context.

    Equal to `step(x)` when `halo` covers the step's receptive field. For inference: with gradients the whole is run at once.
    (B, *spatial, C) to (B, *spatial, C'), in the type of the step; a strip has about `pixels` pixels (None: `STRIP_PIXELS`).
    With `onto`, of the result's shape, to `onto` + the result, in the place of `onto`, which must belong to the caller.
    """
    if torch.is_grad_enabled():
        return step(x) if onto is None else accumulate(onto, step(x))
    height = x.shape[1]
    rows = max(1, 4 * halo, (pixels or STRIP_PIXELS) // prod(x.shape[2:-1]))
    if height <= rows:
        return step(x) if onto is None else accumulate(onto, step(x))
    out = onto
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        first = max(0, top - halo)
        strip = step(x[:, first : bottom + halo])[:, top - first : bottom - first]
        if onto is not None:
            onto[:, top:bottom] += strip
            continue
        out = strip.new_empty(*x.shape[:-1], strip.shape[-1]) if out is None else out
        out[:, top:bottom] = strip
    assert out is not None
    return out


def added_over_row_strips(step: Callable[[Tensor], Tensor], x: Tensor, halo: int, pixels: int) -> Tensor:
    """x + `in_row_strips` of a step that keeps the shape, in the place of `x`, which must belong to the caller.

    Rows that the next strip needs as they were are kept aside, and put back for it.
    """
    height = x.shape[1]
    rows = max(1, 4 * halo, pixels // prod(x.shape[2:-1]))
    if torch.is_grad_enabled() or height <= rows:
        return accumulate(x, step(x))
    before = x[:, :0]
    for top in range(0, height, rows):
        bottom, first = min(height, top + rows), max(0, top - halo)
        done = x[:, first:top].clone()
        x[:, first:top] = before
        before = x[:, bottom - halo : bottom].clone()
        strip = step(x[:, first : bottom + halo])
        x[:, first:top] = done
        x[:, top:bottom] += strip[:, top - first : bottom - first]
    return x


def _parameters(outputs: int, inputs: int, kernel: list[int]) -> tuple[nn.Parameter, nn.Parameter]:
    """Weight (outputs, inputs, *kernel) and bias, drawn as torch draws those of its convolutions."""
    bound = (inputs * prod(kernel)) ** -0.5
    weight, bias = torch.empty(outputs, inputs, *kernel), torch.empty(outputs)
    return nn.Parameter(weight.uniform_(-bound, bound)), nn.Parameter(bias.uniform_(-bound, bound))
