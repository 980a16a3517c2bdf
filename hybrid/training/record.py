"""What a training leaves: its weights, the record of how they came about, the log, and the learning curve."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid.records import replacing, sha256_file, versions
from hybrid.training.loop import read_log


@dataclass(frozen=True)
class Curve:
    """What the learning curve shows.

    Attributes:
        figures: Names of the validation figures in the log, each with its label in the legend.
        measure: What they are, for the axis.
        loss: What the training loss is, for the axis.
        level: Those of the figures that do not depend on the training, drawn as broken lines.
    """

    figures: Mapping[str, str]
    measure: str
    loss: str
    level: tuple[str, ...] = ()


def write_training(
    folder: Path, name: str, save: Callable[[Path], None], facts: Mapping[str, Any], curve: Curve
) -> tuple[Path, ...]:
    """Write `<name>.safetensors`, `<name>.json`, `<name>.csv` and `<name>.png` into the folder of a run.

    Args:
        folder: The run's folder, which holds its `log.csv`.
        name: Stem of the files.
        save: Writes the weights to the path that it is given.
        facts: What the record says beside hash, time, result and versions.
        curve: Figures of the log that are drawn and, at the last validation, are the result.
    """
    weights, record, log, drawing = (folder / f"{name}{suffix}" for suffix in (".safetensors", ".json", ".csv", ".png"))
    save(weights)
    rows = read_log(folder / "log.csv")
    last = _validated(rows, curve)[-1]
    whole = dict(facts) | {
        "weights_sha256": sha256_file(weights),
        "weights_bytes": weights.stat().st_size,
        "seconds": rows[-1]["seconds"],
        "result": {key: last[key] for key in ("step", *curve.figures) if key in last},
        "versions": versions(),
    }
    with replacing(record) as part:
        part.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with replacing(log) as part:
        part.write_bytes((folder / "log.csv").read_bytes())
    draw_curve(rows, curve, drawing, name)
    return weights, record, log, drawing


def draw_curve(rows: list[dict[str, float]], curve: Curve, path: Path, title: str) -> None:
    """Plot the loss and the validation figures of a log against the steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = [row["loss"] for row in rows]
    left.plot([row["step"] for row in rows], losses, linewidth=1)
    # A loss in dB is a logarithm already, and may be below 0.
    left.set(xlabel="step", ylabel=curve.loss, yscale="log" if min(losses) > 0 else "linear", title=title)
    for key, label in curve.figures.items():
        points = [(row["step"], row[key]) for row in _validated(rows, curve) if key in row]
        if not points:
            continue
        style: dict[str, Any] = {"linestyle": "--", "color": "gray"} if key in curve.level else {"marker": "."}
        right.plot(*zip(*points, strict=True), label=label, **style)
    right.set(xlabel="step", ylabel=curve.measure, title="validation")
    right.legend()
    for axes in (left, right):
        axes.grid(alpha=0.3)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def _validated(rows: list[dict[str, float]], curve: Curve) -> list[dict[str, float]]:
    return [row for row in rows if next(iter(curve.figures)) in row]
