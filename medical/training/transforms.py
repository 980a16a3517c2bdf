"""Random changes of training samples.

Arrays are (C, i, j, k) in the protocol's orientation.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import radians
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Augmentation(BaseModel):
    """Random changes of training samples, drawn anew for each. By default there are none.

    Attributes:
        spatial: Probability of a rotation and scaling.
        rotation: Largest angle about each axis in degrees.
        scaling: Largest relative change of size, such as 0.15.
        intensity: Probability of each of the changes below.
        noise: Standard deviation of Gaussian noise, in units of the normalised values.
        blur: Largest standard deviation of a Gaussian blur in voxels; the smallest is half of it.
        brightness: Largest relative change of the values.
        contrast: Largest exponent of a gamma curve that keeps mean and spread; the smallest is its inverse.
        low_resolution: Largest factor by which voxels are made coarser and enlarged again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    spatial: float = Field(default=0.0, ge=0, le=1)
    rotation: float = Field(default=0.0, ge=0, le=180)
    scaling: float = Field(default=0.0, ge=0, lt=1)
    intensity: float = Field(default=0.0, ge=0, le=1)
    noise: float = Field(default=0.0, ge=0)
    blur: float = Field(default=0.0, ge=0)
    brightness: float = Field(default=0.0, ge=0, lt=1)
    contrast: float = Field(default=1.0, ge=1)
    low_resolution: float = Field(default=1.0, ge=1)


class Augment:
    """Changes a scan and its labels at random, by MONAI's transforms.

    Args:
        augmentation: How much.
        mirror: Axes along which samples are mirrored, each with probability 1/2.
        spatial_dims: 3 for volumes, 2 for slices, which are rotated in their plane.
    """

    def __init__(self, augmentation: Augmentation, mirror: Sequence[int], spatial_dims: int = 3) -> None:
        from monai import transforms

        self.transform = transforms.Compose(
            [*_spatial(augmentation, mirror, spatial_dims), *_intensity(augmentation, spatial_dims)]
        )

    def __call__(self, values: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Change values (C, *spatial) and labels (1, *spatial) alike; all chance comes from `rng`.

        What a rotation brings in from outside is 0 in both.
        """
        self.transform.set_random_state(int(rng.integers(2**32)))
        changed: Any = self.transform({"values": values, "labels": labels})
        return tuple(np.ascontiguousarray(changed[key], dtype=np.float32) for key in ("values", "labels"))  # type: ignore[return-value]


def _spatial(chosen: Augmentation, mirror: Sequence[int], spatial_dims: int) -> list[Any]:
    from monai import transforms

    both = ("values", "labels")
    steps: list[Any] = [transforms.RandFlipd(both, prob=0.5, spatial_axis=axis) for axis in mirror]
    if chosen.spatial:
        turn = transforms.RandAffined(
            both,
            prob=chosen.spatial,
            rotate_range=[radians(chosen.rotation)] * (3 if spatial_dims == 3 else 1),
            scale_range=[chosen.scaling] * spatial_dims,
            mode=("bilinear", "nearest"),
            padding_mode="zeros",
        )
        steps.append(turn)
    return steps


def _intensity(chosen: Augmentation, spatial_dims: int) -> list[Any]:
    """In the order of nnU-Net: noise, blur, brightness, contrast, resolution."""
    from monai import transforms

    keys, chance = ("values",), chosen.intensity
    steps: list[Any] = []
    if chosen.noise:
        steps.append(transforms.RandGaussianNoised(keys, prob=chance, std=chosen.noise))
    if chosen.blur:
        sigma = (chosen.blur / 2, chosen.blur)
        steps.append(transforms.RandGaussianSmoothd(keys, sigma, sigma, sigma, prob=chance))
    if chosen.brightness:
        steps.append(transforms.RandScaleIntensityd(keys, factors=chosen.brightness, prob=chance))
    if chosen.contrast > 1:
        gamma = (1 / chosen.contrast, chosen.contrast)
        steps.append(transforms.RandAdjustContrastd(keys, prob=chance, gamma=gamma, retain_stats=True))
    if chosen.low_resolution > 1:
        zoom = (1 / chosen.low_resolution, 1.0)
        # Means of areas stay in their place; the nearest voxel, MONAI's default, would move the scan against its labels.
        up = "trilinear" if spatial_dims == 3 else "bilinear"
        low = transforms.RandSimulateLowResolutiond(keys, prob=chance, downsample_mode="area", upsample_mode=up, zoom_range=zoom)
        steps.append(low)
    return steps
