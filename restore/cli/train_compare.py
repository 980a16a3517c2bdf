"""The command `restore train compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid.mixer_names import MIXER_NAMES

if TYPE_CHECKING:
    from hybrid.training.comparison import Arm
    from restore.training.run import Recipe


def compare(
    mixers: Annotated[
        str,
        typer.Option(help=f"With commas: {', '.join(MIXER_NAMES)}; or all."),
    ],
    data: Annotated[Path, typer.Option(help="Folder of photographs, searched recursively.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the table, and for a folder of each mixer.")],
    recipe: Annotated[str, typer.Option(help="Recipe whose network has the option mixer: a name, or a YAML file.")] = "mixer-x4",
    steps: Annotated[int | None, typer.Option(min=1, help="Other number of steps than the recipe's.")] = None,
    bench: Annotated[str | None, typer.Option(help="Score the trained networks on this set too, such as set5.")] = None,
    bench_data: Annotated[Path | None, typer.Option(help="Folder that holds the folders of the data sets.")] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train one network with several mixers, one after the other, at equal parameters and steps, and compare them in a table.

    Started again it does what is left to do. `medical train compare` does the same for scans.
    """
    from hybrid.training.arms import arms_of, shown
    from hybrid.training.comparison import Comparison, measured, run_arms, table, write_comparison
    from restore.loading import load_model
    from restore.training.record import CURVES, SAME_SIZE_CURVE, write_result
    from restore.training.run import load_recipe, run

    chosen = load_recipe(recipe)
    arms = arms_of(chosen, mixers, output, steps)
    with shown(quiet) as bar:

        def train(arm: Arm) -> None:
            own = arm.recipe
            show = bar(arm.name, own.training.steps)  # type: ignore[attr-defined]
            network, facts = run(own, data, arm.folder, accelerator=accelerator, on_progress=show)  # type: ignore[arg-type]
            write_result(network, facts, arm.folder, arm.stem)

        run_arms(arms, train)
    scores = _scores(chosen, arms, bench, bench_data, output / "bench") if bench is not None else {}
    networks: dict[str, Any] = {arm.name: load_model(arm.weights, device="cpu") for arm in arms}
    curve = CURVES.get(chosen.task, SAME_SIZE_CURVE)
    result = Comparison(
        f"Mixers by {chosen.name}",
        curve.measure,
        2,
        tuple(measured(arm, "psnr", networks[arm.name].config.embed_dim, scores.get(arm.stem)) for arm in arms),
    )
    files = write_comparison(result, output)
    _show(*table(result))
    for path in files:
        typer.echo(str(path))


def _scores(recipe: Recipe, arms: list[Arm], name: str, data: Path | None, output: Path) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of each arm on a data set by the papers' protocol, by the stem of its file; the report goes to `output`."""
    from restore.cli.bench import enlargement_plan, same_size_plan
    from restore.evaluation.engine import run_benchmark
    from restore.evaluation.report import write_report

    files = [str(arm.weights) for arm in arms]
    if recipe.task == "sr":
        plan = enlargement_plan([name], ["bicubic", *files], recipe.scale, data, "cpu", "float32")
    else:
        plan = same_size_plan(recipe.task, [name], files, [], data, "cpu", "float32")
    result = run_benchmark(plan, output=output)
    write_report(result, output)
    scores: dict[str, dict[str, float]] = {}
    for row in result.rows:
        title = row.test_set.title
        figures = {f"{title} PSNR": row.psnr, f"{title} SSIM": row.ssim}
        scores.setdefault(row.method.name, {}).update({key: value for key, value in figures.items() if value is not None})
    return scores


def _show(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(*header)
    for cells in rows:
        shown.add_row(*cells)
    Console(width=None if Console().is_terminal else 160).print(shown)
