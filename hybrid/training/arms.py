"""What commands that compare mixers share: the arms of a recipe, and how far they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hybrid.errors import RequestError
from hybrid.training.comparison import Arm

OnProgress = Callable[[int, int, dict[str, float]], None]


def arms_of(recipe: Any, mixers: str, output: Path, steps: int | None = None) -> list[Arm]:
    """A recipe with each of some mixers, each in a folder named after it.

    Args:
        recipe: Of pictures or of scans, whose network has the option `mixer`.
        mixers: Names of `hybrid.blocks.mixers.MIXERS` with commas between them, or ``all``.
        output: Folder of the folders.
        steps: Other number of steps than the recipe's.

    Raises:
        RequestError: A name that is none or comes twice, or a network that has no such option.
    """
    from hybrid.blocks.mixers import MIXERS

    if "mixer" not in recipe.network.options:
        raise RequestError(f"The network of {recipe.name} has no option mixer.", hint="Give a recipe such as mixer-x4.")
    names = list(MIXERS) if mixers == "all" else [name.strip() for name in mixers.split(",")]
    wrong = [name for name in names if name not in MIXERS]
    if wrong or len(set(names)) < len(names):
        fault = f"There is no mixer {wrong[0]!r}." if wrong else "A mixer is named twice."
        raise RequestError(fault, hint=f"Choose among {', '.join(MIXERS)}, with commas between them.")
    training = recipe.training if steps is None else recipe.training.model_copy(update={"steps": steps})

    def arm(name: str) -> Arm:
        network = recipe.network.model_copy(update={"options": {**recipe.network.options, "mixer": name}})
        own = {"name": f"{recipe.name}-{name}", "network": network, "training": training}
        return Arm(name, recipe.model_copy(update=own), output / name)

    return [arm(name) for name in names]


@contextmanager
def shown(quiet: bool) -> Iterator[Callable[[str, int], OnProgress]]:
    """Bars on standard error, one for each training: called with its name and steps, it gives what its loop is to call."""
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:

        def bar(name: str, steps: int) -> OnProgress:
            task = progress.add_task(name, total=steps, figures="")

            def show(done: int, total: int, figures: dict[str, float]) -> None:
                told = "  ".join(f"{key} {value:.4g}" for key, value in figures.items() if key in ("loss", "lr", "dice", "psnr"))
                progress.update(task, completed=done, total=total, figures=f"step {done}  {told}")

            return show

        yield bar
