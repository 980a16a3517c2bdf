"""Weights of the networks that judge faces: published files of the catalogue, in the cache alone.

They are large and no result needs them, so nothing is downloaded in passing: `restore models pull` gets them. Nothing stands in
for them either.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hybrid.errors import WeightsError
from hybrid.loading import open_weights
from hybrid.weights.checkpoints import load_strict
from hybrid.weights.find import Resolved, Store, resolve
from restore.faces.metrics import FeatureStatistics
from restore.faces.metrics_networks import VGG_WIDTHS, IdentityFeatures, InceptionFeatures, PerceptualDistance
from restore.loading import catalogue

NetworkType = TypeVar("NetworkType", bound=nn.Module)


@lru_cache(maxsize=2)
def perceptual_distance(device: str = "cpu") -> PerceptualDistance:
    """LPIPS with its published weights. Raises WeightsError where they are absent or damaged."""
    state = {name: tensor for name, tensor in _state("vgg16").items() if name.startswith("features.")}
    heads = _state("lpips-vgg16-heads")
    for level in range(len(VGG_WIDTHS)):
        name = f"lin{level}.model.1.weight"
        if name not in heads:
            raise WeightsError(f"The heads of LPIPS lack {name}.", hint="Delete the file from the cache and get it again.")
        state[f"heads.{level}"] = heads[name].flatten()
    return _ready(PerceptualDistance(), state, device)


@lru_cache(maxsize=2)
def inception(device: str = "cpu") -> InceptionFeatures:
    """Inception with the weights of FID. Raises WeightsError where they are absent or damaged."""
    state = {name: tensor for name, tensor in _state("inception-fid").items() if not name.startswith(("fc.", "AuxLogits."))}
    named = {("mixed." if name.startswith("Mixed") else "stem.") + name: tensor for name, tensor in state.items()}
    return _ready(InceptionFeatures(), named, device)


@lru_cache(maxsize=2)
def arcface(device: str = "cpu") -> IdentityFeatures:
    """ArcFace's ResNet18. Raises WeightsError where its weights are absent or damaged."""
    return _ready(IdentityFeatures(), _state("arcface-resnet18"), device)


@lru_cache(maxsize=1)
def ffhq_statistics() -> FeatureStatistics:
    """Statistics of Inception's features of 50,000 faces of FFHQ at 512. Raises WeightsError where they are absent or damaged."""
    return read_statistics(_found("ffhq-512-statistics").path, number=50_000)


def read_statistics(path: Path, number: int) -> FeatureStatistics:
    """`mean` (D,) and `cov` (D, D) of a file that torch wrote; arrays or tensors, and nothing else in it is run.

    Raises:
        WeightsError: It is no such file.
    """
    arrays: list[Any] = [np.zeros(0).__reduce__()[0], np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in ("f4", "f8")}]
    try:
        with torch.serialization.safe_globals(arrays):
            content = torch.load(path, map_location="cpu", weights_only=True)
        mean, covariance = (np.asarray(content[name], np.float64) for name in ("mean", "cov"))
    except (EOFError, KeyError, RuntimeError, TypeError, ValueError, UnpicklingError) as error:
        raise WeightsError(f"{path.name} holds no statistics for FID.", hint="Give the published file.") from error
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise WeightsError(f"{path.name} holds arrays of {mean.shape} and {covariance.shape}.", hint="Give the published file.")
    return FeatureStatistics(mean, covariance, number)


def _found(name: str) -> Resolved:
    return resolve(name, None, catalogue(), Store.from_environment(), allow_download=False)


def _state(name: str) -> dict[str, Tensor]:
    return {key.removeprefix("module."): tensor for key, tensor in open_weights(_found(name)).state.items()}


def _ready(network: NetworkType, state: dict[str, Tensor], device: str) -> NetworkType:
    load_strict(network, state, derived=("*.num_batches_tracked",))
    return network.eval().requires_grad_(False).to(device)
