"""What face networks learn from and are chosen by: aligned faces, degraded on the fly, and held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hybrid.blocks.vector_quantiser import perplexity
from hybrid.errors import InputError
from hybrid.training.loop import Sample
from restore.evaluation.metrics import psnr
from restore.faces.degradation import FaceDegradation, base
from restore.faces.metrics import sharpness
from restore.images.resize import round_to_uint8
from restore.models.base import RestorationNetwork
from restore.models.restoreformer import RestoreFormer
from restore.training.data import PICTURES, read_photos


class FacePairs:
    """Pairs of a degraded face and its sharp one, drawn at random.

    Args:
        faces: (H, W, 3) uint8 of one size.
        degradation: Made anew for each pair, of the whole face.
        crop: Edge of the part that is cut out of the pair at random; None for the whole.
    """

    def __init__(self, faces: Sequence[NDArray[np.uint8]], degradation: FaceDegradation, crop: int | None = None) -> None:
        self.faces, self.degradation, self.crop = faces, degradation, crop or faces[0].shape[0]

    def __call__(self, rng: np.random.Generator) -> Sample:
        """Draw (6, h, w), the degraded face above the sharp one, and the sharp one (3, h, w), float32 in [0, 1].

        Losses that have parameters of their own, such as discriminators, are part of what is trained: it sees both.
        """
        pair = self.degradation.apply(self.faces[int(rng.integers(len(self.faces)))], rng)
        top, left = (int(rng.integers(side - self.crop, endpoint=True)) for side in pair.image.shape[:2])
        part = np.s_[top : top + self.crop, left : left + self.crop]
        low, target = pair.image[part].astype(np.float32) / np.float32(255), pair.target[part]
        return np.concatenate((low, target), -1).transpose(2, 0, 1).copy(), target.transpose(2, 0, 1).copy()


class HeldOutFaces:
    """Figures of a network on faces that are not trained on, each degraded once, the same in every run, as the papers validate.

    `psnr` in RGB of the result and `psnr_input` of what the network is given, in dB; `sharpness` of the result as a share of
    the sharp face's. Of networks with a dictionary also `codes`, the entries in use, and their `perplexity`.

    Args:
        faces: (H, W, 3) uint8 of one size.
        degraded: Whether they are degraded; an auto-encoder is given them as they are.
    """

    def __init__(self, faces: Sequence[NDArray[np.uint8]], *, degraded: bool) -> None:
        rule = base(faces[0].shape[0]).model_copy(update={"mirror": 0.0})
        self.pairs = [
            (rule.apply(face, np.random.default_rng(number)).image if degraded else face, face)
            for number, face in enumerate(faces)
        ]
        self.level = {"psnr_input": _mean_psnr(self.pairs)} if degraded else {}

    def __call__(self, network: RestorationNetwork) -> dict[str, float]:
        results, indices = [], []
        with torch.inference_mode():
            for low, _ in self.pairs:
                result, codes = coded(network, as_batch(low, network))
                results.append(as_picture(result))
                if codes is not None:
                    indices.append(codes)
        pairs = [(result, face) for result, (_, face) in zip(results, self.pairs, strict=True)]
        figures = {"psnr": _mean_psnr(pairs)} | self.level
        figures["sharpness"] = float(np.mean([sharpness(result, face) for result, face in pairs]))
        if indices:
            assert isinstance(network, RestoreFormer)
            codes = torch.cat([each.flatten() for each in indices])
            figures["codes"] = float(len(codes.unique()))
            figures["perplexity"] = float(perplexity(codes, network.config.entries))
        return figures


def coded(network: nn.Module, low: Tensor) -> tuple[Tensor, Tensor | None]:
    """A batch (B, 3, H, W) in [0, 1] restored, in [0, 1] and not clamped, and the places of the entries, where there are any."""
    assert isinstance(network, RestorationNetwork)
    bottom, top = network.card.value_range
    given = low * (top - bottom) + bottom
    if isinstance(network, RestoreFormer):
        restored = network.decompose(given)
        return (restored.image - bottom) / (top - bottom), restored.quantised.indices
    return (network.result(given) - bottom) / (top - bottom), None


def as_batch(picture: NDArray[np.uint8], network: nn.Module) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) float32 in [0, 1] where the network is."""
    values = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
    return values[None].to(next(network.parameters()).device).float() / 255


def as_picture(batch: Tensor) -> NDArray[np.uint8]:
    """(1, 3, H, W) in [0, 1] to (H, W, 3) uint8, clamped and rounded."""
    return round_to_uint8(batch[0].permute(1, 2, 0).float().cpu().numpy() * 255.0)


def read_faces(folder: Path, size: int) -> dict[str, NDArray[np.uint8]]:
    """All faces of a folder by file name, (size, size, 3) uint8.

    Raises:
        InputError: There are none, or one has another size.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES)
    if not files:
        raise InputError(f"The folder {folder.name} holds no pictures.", hint="Give --data with a folder of aligned faces.")
    faces = dict(zip((f.name for f in files), read_photos(files), strict=True))
    for name, face in faces.items():
        if face.shape[:2] != (size, size):
            raise InputError(
                f"{name} has {face.shape[1]} x {face.shape[0]} pixels; the recipe asks for aligned faces of {size} x {size}.",
                hint="Align and resize the faces first, or give `data.size` of the recipe.",
            )
    return faces


def held_out(names: Sequence[str], number: int) -> list[str]:
    """Names spread evenly over a sorted list, which are kept for validation.

    >>> held_out(["a", "b", "c", "d", "e", "f"], 2)
    ['b', 'e']
    """
    ordered = sorted(names)
    return [ordered[int((place + 0.5) * len(ordered) / number)] for place in range(number)]


def _mean_psnr(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> float:
    return float(np.mean([psnr(one, other, channel="rgb") for one, other in pairs]))
