"""One recipe trained with several networks, one after the other, and a table of what came out.

Each network is an arm with a folder of its own. What is finished is not done again, and what was stopped goes on.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel

from hybrid.errors import RequestError
from hybrid.records import replacing, versions
from hybrid.training.loop import read_log

BEGUN = "arm.json"
"""File in an arm's folder that holds its recipe from the first step on."""
COLUMNS = ("mixer", "parameters", "dim", "s / step", "steps")


@dataclass(frozen=True)
class Arm:
    """One network of a comparison.

    Attributes:
        name: What differs from the others, such as ``window``.
        recipe: Its whole recipe; its `name` is the stem of the files that the training leaves.
        folder: Where it is trained.
    """

    name: str
    recipe: BaseModel
    folder: Path

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return str(self.recipe.name)  # type: ignore[attr-defined]

    @property
    def weights(self) -> Path:
        """File of the trained weights."""
        return self.folder / f"{self.stem}.safetensors"

    @property
    def finished(self) -> bool:
        """Whether all that a training leaves is there; the curve is written last."""
        return (self.folder / f"{self.stem}.png").is_file()


@dataclass(frozen=True)
class Measured:
    """What an arm came to.

    Attributes:
        arm: Which.
        parameters: Trainable numbers of its network.
        dim: Channels of its first level.
        seconds: Of a step, the median, without validation.
        curve: Step and figure of each validation.
        scores: Further figures, by the title of their column.
    """

    arm: Arm
    parameters: int
    dim: int
    seconds: float
    curve: tuple[tuple[int, float], ...]
    scores: Mapping[str, float] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """The highest figure of its validations."""
        return max(value for _, value in self.curve)

    @property
    def final(self) -> float:
        """The figure of its last validation."""
        return self.curve[-1][1]


@dataclass(frozen=True)
class Comparison:
    """All arms, and what their figure is.

    Attributes:
        title: Heading of table and plot.
        measure: What the figure is, such as ``PSNR on Y, held-out photographs (dB)``.
        decimals: To which it is told.
        arms: In the order asked for.
    """

    title: str
    measure: str
    decimals: int
    arms: tuple[Measured, ...]


def run_arms(arms: Sequence[Arm], train: Callable[[Arm], object]) -> None:
    """Train what is not finished, one arm after the other.

    Args:
        arms: Which.
        train: Trains one in its folder, goes on where it was stopped, and leaves weights, record, log and curve there.

    Raises:
        RequestError: The folder of an arm holds a training by another recipe.
    """
    for arm in arms:
        _begin(arm)
    for arm in arms:
        if not arm.finished:
            train(arm)


def measured(arm: Arm, figure: str, dim: int, scores: Mapping[str, float] | None = None) -> Measured:
    """Read what a finished arm has left.

    Args:
        arm: Which.
        figure: Name of the validation's figure in its log.
        dim: Channels of its first level.
        scores: Further figures.
    """
    record = json.loads((arm.folder / f"{arm.stem}.json").read_text(encoding="utf-8"))
    rows = read_log(arm.folder / f"{arm.stem}.csv")
    curve = tuple((int(row["step"]), row[figure]) for row in rows if figure in row)
    return Measured(arm, int(record["parameters"]), dim, seconds_a_step(rows, figure), curve, scores or {})


def seconds_a_step(rows: Sequence[Mapping[str, float]], figure: str) -> float:
    """Median over the stretches between logged steps, of those that no validation lies in where there are such.

    A validation is run after the time of its step was taken, so that the stretch after it is left out.

    >>> seconds_a_step([{"step": 2, "seconds": 1, "dice": 0.5}, {"step": 4, "seconds": 9}, {"step": 6, "seconds": 10}], "dice")
    0.5
    """
    before = [{"step": 0, "seconds": 0.0}, *rows[:-1]]
    pace = [
        ((now["seconds"] - then["seconds"]) / (now["step"] - then["step"]), figure in then)
        for then, now in zip(before, rows, strict=True)
    ]
    return median([seconds for seconds, validated in pace if not validated] or [seconds for seconds, _ in pace])


def table(comparison: Comparison) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and one row of text for each arm."""
    extra = tuple(dict.fromkeys(name for arm in comparison.arms for name in arm.scores))
    rows = []
    for each in comparison.arms:
        plain = (each.arm.name, f"{each.parameters:,}", str(each.dim), f"{each.seconds:.3f}", f"{each.curve[-1][0]:,}")
        figures = (f"{value:.{comparison.decimals}f}" for value in (each.best, each.final))
        scores = (f"{each.scores[name]:.4g}" if name in each.scores else "" for name in extra)
        rows.append((*plain, *figures, *scores))
    return (*COLUMNS, "best", "final", *extra), rows


def write_comparison(comparison: Comparison, folder: Path) -> tuple[Path, ...]:
    """Write `comparison.md`, `.csv`, `.json` and the learning curves as `.png`; return their paths."""
    header, rows = table(comparison)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    lines = [f"# {comparison.title}", "", *(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))]
    lines += ["", f"best and final: {comparison.measure}, of the averaged weights. s / step: median, without validation.", ""]
    facts = {
        "title": comparison.title,
        "measure": comparison.measure,
        "arms": [_facts(each) for each in comparison.arms],
        "versions": versions(),
    }
    drawing = folder / "comparison.png"
    texts = {
        folder / "comparison.md": "\n".join(lines) + f"\n![learning curves]({drawing.name})\n",
        folder / "comparison.csv": text.getvalue(),
        folder / "comparison.json": json.dumps(facts, indent=2, ensure_ascii=False) + "\n",
    }
    for path, content in texts.items():
        with replacing(path) as part:
            part.write_text(content, encoding="utf-8")
    draw_curves(comparison, drawing)
    return (*texts, drawing)


def draw_curves(comparison: Comparison, path: Path) -> None:
    """Plot each arm's figure against the steps, and against the seconds that they took."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    for axes, label, seconds in zip(
        figure.subplots(1, 2, sharey=True), ("step", "minutes of training"), (False, True), strict=True
    ):
        for number, each in enumerate(comparison.arms):
            steps, values = zip(*each.curve, strict=True)
            along = [step * each.seconds / 60 for step in steps] if seconds else steps
            axes.plot(along, values, marker=".", label=each.arm.name, linestyle="-" if number < 8 else "--")
        axes.set(xlabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].set(ylabel=comparison.measure)
    figure.axes[0].legend()
    figure.suptitle(comparison.title)
    with replacing(path) as part:
        figure.savefig(part, dpi=120)


def _begin(arm: Arm) -> None:
    """Write down what the arm is trained by, or make sure that it is what was begun.

    Raises:
        RequestError: It is not.
    """
    begun, recipe = arm.folder / BEGUN, arm.recipe.model_dump(mode="json")
    if begun.is_file():
        if json.loads(begun.read_text(encoding="utf-8")) == recipe:
            return
        raise RequestError(
            f"The folder {arm.folder.name} holds a training by another recipe.",
            hint="Give another --output, or the recipe and the steps with which it was begun.",
        )
    arm.folder.mkdir(parents=True, exist_ok=True)
    part = begun.with_suffix(".part")
    part.write_text(json.dumps(recipe, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(part, begun)


def _facts(each: Measured) -> dict[str, Any]:
    return {
        "mixer": each.arm.name,
        "parameters": each.parameters,
        "dim": each.dim,
        "seconds_a_step": each.seconds,
        "curve": [list(point) for point in each.curve],
        "best": each.best,
        "final": each.final,
        "scores": dict(each.scores),
        "weights": each.arm.weights.relative_to(each.arm.folder.parent).as_posix(),
        "recipe": each.arm.recipe.model_dump(mode="json"),
    }
