"""What a training leaves: weights under published names, the record of how they came about, and the learning curve."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hybrid.checkpoints import write_checkpoint
from hybrid.records import replacing, sha256_file, versions
from hybrid.training import is_first_process, read_log
from restore.models import family
from restore.models.base import RestorationNetwork


def write_result(network: RestorationNetwork, facts: dict[str, Any], folder: Path, name: str) -> tuple[Path, ...]:
    """Write `<name>.safetensors` (float16), `<name>.json`, `<name>.csv` and `<name>.png` into `folder`.

    Args:
        network: The trained network, of averaged weights; merged into the published form here.
        facts: From `restore.training.run`.
        folder: The run's folder, which holds its `log.csv`.
        name: Stem of the files.

    Returns:
        The files; none from the other processes of a training on several, which write nothing.
    """
    if not is_first_process():
        return ()
    network = network.merge()
    keys = family(network.card.family).keys
    weights, record, log, curve = (folder / f"{name}{suffix}" for suffix in (".safetensors", ".json", ".csv", ".png"))
    state = {keys.to_published(key): value.cpu() for key, value in network.state_dict().items()}
    metadata = {"family": network.card.family, "recipe": name, "licence": facts["recipe"]["licence"]}
    write_checkpoint(weights, state, metadata, half=True)
    rows = read_log(folder / "log.csv")
    validated = [row for row in rows if "psnr" in row]
    facts = facts | {
        "weights_sha256": sha256_file(weights),
        "weights_bytes": weights.stat().st_size,
        "seconds": rows[-1]["seconds"],
        "result": {key: validated[-1][key] for key in ("step", "psnr", "psnr_bicubic")},
        "versions": versions(),
    }
    with replacing(record) as part:
        part.write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    with replacing(log) as part:
        part.write_bytes((folder / "log.csv").read_bytes())
    draw_curve(rows, curve, name)
    return weights, record, log, curve


def draw_curve(rows: list[dict[str, float]], path: Path, title: str) -> None:
    """Plot loss and validation PSNR against steps, with the bicubic level to compare with."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["step"] for r in rows], [r["loss"] for r in rows], linewidth=1)
    left.set(xlabel="step", ylabel="training loss (L1)", yscale="log", title=title)
    validated = [row for row in rows if "psnr" in row]
    steps = [row["step"] for row in validated]
    right.plot(steps, [row["psnr"] for row in validated], marker=".", label="averaged weights")
    right.plot(steps, [row["psnr_bicubic"] for row in validated], linestyle="--", color="gray", label="bicubic")
    right.set(xlabel="step", ylabel="PSNR on Y, held-out photographs (dB)", title="validation")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)
