"""Cross-D Conv: convolutions of slices whose kernels are stored as volumes, so that they convolve volumes as they are.

M. C. Yavuz, Y. Yang, "Cross-D Conv: Cross-Dimensional Transferable Knowledge Base via Fourier Shifting Operation",
arXiv 2411.02441.
Axis letters: B batch, I and O channels in and out, G groups, K kernel edge. A stored kernel has the axes (slice, row, column).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hybrid.blocks.convolution import convolve

LARGEST_ANGLE = math.pi / 4
HIDDEN = 16
"""Channels inside the predictor of axis and angle."""
ANGLE = 3
"""Which output of the predictor is the angle; the three before it are the axis."""


class CrossDConv(nn.Module):
    """A convolution without bias whose kernel is a volume; for slices each image is given a slice of it, moved to suit.

    For slices, four numbers that a small network reads from the image, an axis and an angle, make the phase factor that
    the kernel's spectrum is multiplied by; its middle slice is the kernel of that image (section 3). To first order in
    the angle, as published, this turns nothing: it moves the kernel, which wraps around, by one voxel along each axis
    more or less (`shifts`). So at angle 0 the slice before the middle one is used, itself moved by a row and a column.
    As kernels differ from image to image, none can be kept for the next.

    For volumes the kernel is used as it is stored (the authors' evaluation scripts); there is no predictor.
    Parameters have their published names.

    Args:
        inputs, outputs: Channels I and O.
        kernel: Edge K.
        stride, padding: The same along each axis.
        groups: Into how many parts the channels fall.
        spatial_dims: 2 for slices, 3 for volumes.

    >>> slices, volumes = CrossDConv(3, 8, 5, padding=2), CrossDConv(3, 8, 5, padding=2, spatial_dims=3)
    >>> slices(torch.zeros(2, 3, 20, 30)).shape, volumes(torch.zeros(2, 3, 10, 20, 30)).shape
    (torch.Size([2, 8, 20, 30]), torch.Size([2, 8, 10, 20, 30]))
    >>> slices.weights_3d.shape == volumes.weights_3d.shape
    True
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int = 0, groups: int = 1, spatial_dims: int = 2
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"Cross-D Conv has 2 or 3 spatial dimensions, not {spatial_dims}")
        self.stride, self.padding, self.groups = stride, padding, groups
        self.weights_3d = nn.Parameter(torch.empty(outputs, inputs // groups, kernel, kernel, kernel))
        self.rotation_params = _predictor(inputs) if spatial_dims == 2 else None
        nn.init.normal_(self.weights_3d, std=math.sqrt(2 / (outputs * kernel**3)))  # Kaiming, fan out, of the stored kernel

    def forward(self, x: Tensor) -> Tensor:
        """(B, I, *spatial) to (B, O, *spatial)."""
        if self.rotation_params is None:
            return convolve(x, self.weights_3d, None, [self.stride] * 3, [self.padding] * 3, self.groups)
        if self.weights_3d.shape[-1] == 1 and not self.training:  # one voxel stays where it is; in training all takes part
            return self._convolve(x, self.weights_3d[..., 0])
        # One image after the other: faster on a CPU than all as groups of one, and one kernel at a time is held.
        pairs = zip(x.split(1), self.slicing(x), strict=True)
        parts = [self._convolve(image, self._kernel(matrix)) for image, matrix in pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def slicing(self, x: Tensor) -> Tensor:
        """For each image of (B, I, H, W), the matrix (K^2, K^3) from the stored kernel to the image's own."""
        assert self.rotation_params is not None
        with torch.autocast(x.device.type, enabled=False):
            maps = self.rotation_params(x.to(self.weights_3d.dtype)).flatten(2)
            # A weighted mean over positions whose weights are the softmax of what is averaged: near the maximum.
            return slicing_matrices(shifts((maps * maps.softmax(-1)).sum(-1)), self.weights_3d.shape[-1])

    def reset_angle(self) -> None:
        """Make the angle 0 for all images, until it is trained; the axis stays as it is."""
        if self.rotation_params is not None:
            last = self.rotation_params[-1]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            with torch.no_grad():
                last.weight[ANGLE], last.bias[ANGLE] = 0, 0

    def _kernel(self, matrix: Tensor) -> Tensor:
        """(O, I / G, K, K) by a matrix of `slicing`."""
        stored = self.weights_3d
        with torch.autocast(stored.device.type, enabled=False):
            return F.linear(stored.flatten(2), matrix).view(stored.shape[:-1])

    def _convolve(self, x: Tensor, kernel: Tensor) -> Tensor:
        return F.conv2d(x, kernel, stride=self.stride, padding=self.padding, groups=self.groups)


def shifts(predicted: Tensor) -> Tensor:
    """How many voxels kernels move along their axes (slice, row, column), for predicted axes and angles.

    With the unit axis k and the angle t the published phase is -2 pi (1, 1, 1) (I + t [k]x) f, where [k]x is the matrix of
    the cross product: linear in the frequencies f, hence a move by the sums of that matrix' columns.

    Args:
        predicted: (B, 4); the angle's tangens hyperbolicus counts, in parts of pi/4.

    Returns:
        (B, 3), of sum 3 each.

    >>> shifts(torch.tensor([[0.0, 0.0, 5.0, 0.0]]))
    tensor([[1., 1., 1.]])
    """
    axis = predicted[:, :ANGLE] / (torch.linalg.vector_norm(predicted[:, :ANGLE], dim=1, keepdim=True) + 1e-8)
    angle = torch.tanh(predicted[:, ANGLE:]) * LARGEST_ANGLE
    rotations: Tensor = 1 + angle * (axis.roll(1, 1) - axis.roll(-1, 1))
    return rotations


def slicing_matrices(shift: Tensor, edge: int) -> Tensor:
    """Matrices that move a cube of K^3 voxels and take its middle slice, number K // 2.

    Equal to the middle slice of Re(ifft(fft(cube) exp(-2 pi i f . shift))), at any shift: a move along one axis is a
    matrix, and those of three axes are one Kronecker product. Where K is even the highest frequency makes its factors
    complex, so the real part is that of the product.

    Args:
        shift: (B, 3) voxels along (slice, row, column).
        edge: K.

    Returns:
        (B, K^2, K^3) real, for cubes that are flattened.

    >>> cube = torch.arange(27.0)
    >>> (slicing_matrices(torch.ones(1, 3), 3)[0] @ cube).round().view(3, 3)  # of slice 0, a row and a column on
    tensor([[8., 6., 7.],
            [2., 0., 1.],
            [5., 3., 4.]])
    """
    places = torch.arange(edge, dtype=shift.dtype, device=shift.device)
    steps = places[:, None] - places - shift[..., None, None]  # (B, 3, K to, K from)
    phase = 2 * math.pi * torch.fft.fftfreq(edge, dtype=shift.dtype, device=shift.device) * steps[..., None]
    moves = torch.complex(phase.cos(), phase.sin()).mean(-1)
    slices, rows, columns = moves.unbind(1)
    product = torch.einsum("ba,brp,bcq->brcapq", slices[:, edge // 2], rows, columns)
    return product.real.reshape(len(shift), edge**2, edge**3)


def _predictor(inputs: int) -> nn.Sequential:
    """From an image to maps of axis and angle."""
    return nn.Sequential(nn.Conv2d(inputs, HIDDEN, 1), nn.BatchNorm2d(HIDDEN), nn.ReLU(), nn.Conv2d(HIDDEN, ANGLE + 1, 1))
