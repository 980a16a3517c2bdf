"""Scores of restored faces beside PSNR and SSIM: sharpness, LPIPS, FID, identity and landmark distances.

Faces are (H, W, 3) uint8 in RGB order. LPIPS, FID and ArcFace's distance need published weights, which nothing replaces; they
raise WeightsError without them. `restore.faces.identity` has distances that need none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigvalsh
from scipy.ndimage import laplace
from torch import Tensor
from torch.nn import functional as F

from hybrid.errors import RequestError
from restore.degradations.operations import LUMA

Face = NDArray[np.uint8]
ARCFACE_SIDE = 128


def sharpness(face: Face, reference: Face) -> float:
    """How much fine detail a face has, as a share of another's: the root of the ratio of the Laplacians' variances on luma.

    1 where both are equally sharp, below where it is blurred, above where it is noisy. It does not say that details are right.
    """
    energies = [float(laplace(each.astype(np.float64) @ LUMA, mode="nearest").var()) for each in (face, reference)]
    return float(np.sqrt(energies[0] / max(energies[1], 1e-12)))


def lpips(face: Face, reference: Face, device: str = "cpu") -> float:
    """LPIPS with VGG16 on values in [-1, 1]; 0 for equal faces.

    Raises:
        WeightsError: Its weights `vgg16` or `lpips-vgg16-heads` are absent.
    """
    from restore.faces.metrics_weights import perceptual_distance

    network = perceptual_distance(device)
    with torch.inference_mode():
        return float(network(_batch(face, device), _batch(reference, device)))


def arcface_distance(face: Face, reference: Face, device: str = "cpu", *, as_published: bool = False) -> float:
    """The angle in radians between ArcFace's features of two aligned faces, gray and of 128 x 128 pixels; 0 for equal ones.

    Args:
        face, reference: Aligned, of any size.
        device: Where the network runs.
        as_published: Take red for blue, as the script behind RestoreFormer's printed distances does, and values from 0 to 1.

    Raises:
        WeightsError: Its weights `arcface-resnet18` are absent.
    """
    from restore.faces.metrics_weights import arcface

    network = arcface(device)
    with torch.inference_mode():
        one, other = (network(as_identity_input(_batch(each, device), as_published=as_published)) for each in (face, reference))
        return float(torch.arccos(F.cosine_similarity(one, other).clamp(-1, 1)))


def as_identity_input(batch: Tensor, *, as_published: bool = False) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as ArcFace takes them, (B, 1, 128, 128) gray."""
    if as_published:
        batch = (batch.flip(1) + 1) / 2
    gray = (batch * batch.new_tensor(LUMA).view(3, 1, 1)).sum(1, keepdim=True)
    return F.interpolate(gray, (ARCFACE_SIDE, ARCFACE_SIDE), mode="bilinear", align_corners=False)


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    number: int


def feature_statistics(features: np.ndarray) -> FeatureStatistics:
    """Statistics of features (N, D), N at least 2; the covariance divides by N - 1.

    Raises:
        RequestError: They are of fewer than two pictures.
    """
    if features.ndim != 2 or len(features) < 2:
        raise RequestError(f"FID needs at least two pictures, not features of shape {features.shape}.")
    values = features.astype(np.float64)
    return FeatureStatistics(values.mean(0), np.atleast_2d(np.cov(values, rowvar=False)), len(values))


def frechet_distance(one: FeatureStatistics, other: FeatureStatistics) -> float:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), the distance of two normal distributions that FID is.

    The trace of the root is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is symmetric: no root of a
    matrix without symmetry is taken, and few pictures with singular covariances do no harm.

    Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule ...", NeurIPS 2017, equation 6.
    """
    values, vectors = np.linalg.eigh(one.covariance)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    shared = np.sqrt(np.clip(eigvalsh(root @ other.covariance @ root), 0, None)).sum()
    gap = float(np.square(one.mean - other.mean).sum())
    return max(0.0, gap + float(np.trace(one.covariance) + np.trace(other.covariance)) - 2 * float(shared))


def inception_statistics(faces: Iterable[Face], device: str = "cpu") -> FeatureStatistics:
    """Statistics of Inception's features.

    Raises:
        WeightsError: Its weights `inception-fid` are absent.
        RequestError: Fewer than two faces.
    """
    from restore.faces.metrics_weights import inception

    network = inception(device)
    with torch.inference_mode():
        rows = [network(_batch(face, device))[0].cpu().numpy() for face in faces]
    return feature_statistics(np.array(rows))


def fid(faces: Sequence[Face], others: Iterable[Face], device: str = "cpu") -> float:
    """Frechet distance of Inception's features of two sets of faces; of few faces it is large by itself.

    Raises:
        WeightsError: The weights `inception-fid` are absent.
    """
    return frechet_distance(inception_statistics(faces, device), inception_statistics(others, device))


def _batch(face: Face, device: str) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) in [-1, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(face.transpose(2, 0, 1)))
    return values[None].to(device).float() / 127.5 - 1
