"""The command `medical train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def train(
    recipe: Annotated[
        str, typer.Argument(help="Name of a shipped recipe such as hippocampus or denoise-mr-compact, or a YAML file.")
    ],
    data: Annotated[Path, typer.Option(help="Folder with dataset.json (its splits), imagesTr and labelsTr, or images, labels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for log, checkpoints, weights and record.")],
    start_from: Annotated[
        str | None, typer.Option(help="Weights to begin with, a file or a model's name; those of `medical pretrain` too.")
    ] = None,
    cases: Annotated[
        str | None, typer.Option(help="Train on this share (0.1) or number (18) of the cases alone, chosen by the recipe's seed.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Other number of steps than the recipe's.")] = None,
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on this machine, one device each; leave it out under torchrun.")
    ] = 1,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, and nothing told of the data.")] = False,
) -> None:
    """Train a segmentation or restoration network by a recipe.

    A stopped training goes on from its last checkpoint in the output folder.

    `medical train compare` trains one network with several mixers and compares them; it has options of its own.

    Research use, not a medical device.
    """
    from rich.console import Console
    from rich.progress import Progress, TextColumn, TimeRemainingColumn

    from hybrid.errors import RequestError
    from hybrid.training.processes import is_first_process
    from medical.restoration import training as restoration_training
    from medical.training import run as training

    restores = restoration_training.is_restoration(recipe)
    kind: Any = restoration_training if restores else training  # both have a recipe, a run and a result of their own
    chosen = kind.load_recipe(recipe)
    if start_from is not None and restores:
        raise RequestError("Trainings of restoration begin with nothing.", hint="Leave --start-from out.")
    if start_from is not None:
        chosen = chosen.model_copy(update={"start_from": start_from})
    if cases is not None:
        chosen = chosen.model_copy(update={"data": chosen.data.model_copy(update={"cases": _amount(cases)})})
    if steps is not None:
        chosen = chosen.model_copy(update={"training": chosen.training.model_copy(update={"steps": steps})})
    columns = (*Progress.get_default_columns()[:2], TextColumn("{task.fields[figures]}"), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet or not is_first_process()) as progress:
        task = progress.add_task(chosen.name, total=chosen.training.steps, figures="")

        def show(done: int, total: int, figures: dict[str, float]) -> None:
            text = f"step {done}  " + "  ".join(f"{k} {v:.4g}" for k, v in figures.items() if k in ("loss", "lr", "dice", "psnr"))
            progress.update(task, completed=done, total=total, figures=text)

        def tell(line: str) -> None:
            if not quiet and is_first_process():
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

        network, facts = kind.run(chosen, data, output, devices=devices, accelerator=accelerator, on_start=tell, on_progress=show)
    for warning in facts["warnings"] if is_first_process() else ():
        typer.echo(f"Warning: {warning}", err=True)
    for path in kind.write_result(network, facts, output, chosen.name):
        typer.echo(str(path))


def _amount(text: str) -> float | int:
    """A share such as 0.1, or a whole number."""
    try:
        amount = int(text) if text.isdigit() else float(text)
    except ValueError:
        amount = 0
    if not amount > 0 or (isinstance(amount, float) and amount > 1):
        raise typer.BadParameter(f"{text} is neither a share from 0 to 1 nor a whole number.", param_hint="--cases")
    return amount
