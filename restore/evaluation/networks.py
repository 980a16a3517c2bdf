"""Networks as rows of a restoration benchmark: the whole picture where it fits the memory, in float32 unless asked otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hybrid.errors import RequestError, ResourceError, WeightsError
from hybrid.tiles.run import run_tiles
from restore.evaluation.engine import Method
from restore.images import PictureInfo
from restore.loading import catalogue, load_model
from restore.models.base import RestorationNetwork
from restore.restoration.plan import RunSettings, plan_picture
from restore.restoration.planes import AnyPlanes, check_channels
from restore.restoration.selection import score_picture


def network_method(name: str, device: str, precision: str) -> Method:
    """The row of a network that keeps the picture's size; skipped where its weights are absent.

    Args:
        name: A name of the catalogue, or a checkpoint file.
        device, precision: As of `restore.load_model`.

    Raises:
        RequestError: There is no such model, or it enlarges.
    """
    known = name.lower() in catalogue()
    title = name.lower() if known else Path(name).stem
    if known and 1 not in (scales := catalogue().entry(title).files):
        raise _enlarges(title, max(scales))
    try:
        network = load_model(name, device=device, precision=precision)
    except (WeightsError, ResourceError) as error:
        return Method(title, skipped=str(error), published=title)
    if network.card.scale != 1:
        raise _enlarges(title, network.card.scale)
    check_channels(network.card)
    assert network.source is not None
    outputs = network.card.outputs
    return Method(
        title,
        lambda given: run_network(network, given),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        published=title,
        outputs=outputs,
        select=_selected if outputs > 1 else None,
        facts={
            "weights": network.source.file,
            "sha256": network.source.sha256,
            "device": str(next(network.parameters()).device),
            "precision": network.precision,
        }
        | ({"selected": "the output that `--select best` takes"} if outputs > 1 else {}),
    )


def _enlarges(title: str, scale: int) -> RequestError:
    return RequestError(f"{title} enlarges by {scale}.", hint="Score it with --task super-resolution --scale.")


def run_network(network: RestorationNetwork, given: NDArray[np.float32]) -> NDArray[np.float32]:
    """Run a network on values that may leave [0, 1].

    Args:
        network: It keeps the size.
        given: ``(H, W, 1 or 3)`` float32.

    Returns:
        ``(H, W, C)`` float32, raw; ``(outputs, H, W, C)`` of a network with several.
    """
    height, width, channels = given.shape
    plan = plan_picture(network, PictureInfo(Path(), width, height, channels, False, "float32", "", ""), RunSettings())
    x = torch.from_numpy(np.ascontiguousarray(given.transpose(2, 0, 1)))[None]
    blocks: list[NDArray[np.float32]] = []

    def keep(top: int, block: torch.Tensor) -> None:
        blocks.append(np.moveaxis(block.numpy(), -3, -1).copy())

    device = next(network.parameters()).device
    run_tiles(AnyPlanes(network, channels), lambda box: x[(slice(None), slice(None), *box)], plan, keep, device=device)
    return np.concatenate(blocks, axis=-3)


def _selected(outputs: np.ndarray, given: np.ndarray) -> int:
    """The output that the commands take for ``--select best``."""
    return int(score_picture(given.astype(np.float64), np.clip(outputs, 0, 1).astype(np.float64)).argmin())
