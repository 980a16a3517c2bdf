"""What a training of a picture network leaves: weights under published names, record, log and learning curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybrid.training.processes import is_first_process
from hybrid.training.record import Curve, write_training
from hybrid.weights.checkpoints import write_checkpoint
from hybrid.weights.header import OPTIONS
from restore.models import family
from restore.models.base import RestorationNetwork

SR_CURVE = Curve(
    figures={"psnr": "averaged weights", "psnr_bicubic": "bicubic"},
    measure="PSNR on Y, held-out photographs (dB)",
    loss="training loss (L1)",
    level=("psnr_bicubic",),
)
SAME_SIZE_CURVE = Curve(
    figures={"psnr": "averaged weights", "psnr_best": "best output of each photograph", "psnr_input": "input"},
    measure="PSNR in RGB, held-out photographs (dB)",
    loss="training loss",
    level=("psnr_input",),
)
FACE_CURVE = Curve(
    figures={"psnr": "averaged weights", "psnr_input": "input"},
    measure="PSNR in RGB, held-out faces (dB)",
    loss="training loss",
    level=("psnr_input",),
)
CURVES = {"sr": SR_CURVE, "face": FACE_CURVE}


def write_result(network: RestorationNetwork, facts: dict[str, Any], folder: Path, name: str) -> tuple[Path, ...]:
    """Write `<name>.safetensors` (float16), `<name>.json`, `<name>.csv` and `<name>.png` into `folder`.

    Args:
        network: The trained network, of averaged weights; merged into the published form here.
        facts: From `restore.training.run.run`.
        folder: The run's folder, which holds its `log.csv`.
        name: Stem of the files.

    Returns:
        The files; none from the other processes of a training on several, which write nothing.
    """
    if not is_first_process():
        return ()
    network = network.merge()
    facts = facts | {"parameters": sum(p.numel() for p in network.parameters())}  # the training form may have more
    keys = family(network.card.family).keys
    state = {keys.to_published(key): value.cpu() for key, value in network.state_dict().items()}
    recipe, kind = facts["recipe"], family(network.card.family)
    metadata = {"family": network.card.family, "recipe": name, "licence": recipe["licence"]}
    if untold := {key: value for key, value in recipe["network"]["options"].items() if key in kind.options}:
        metadata[OPTIONS] = json.dumps(untold)
    curve = CURVES.get(recipe["task"], SAME_SIZE_CURVE)
    return write_training(folder, name, lambda path: write_checkpoint(path, state, metadata, half=True), facts, curve)
