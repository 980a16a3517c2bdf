"""The command `medical train compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hybrid.mixer_names import MIXER_NAMES

if TYPE_CHECKING:
    from hybrid.training.comparison import Arm


def compare(
    mixers: Annotated[
        str,
        typer.Option(help=f"With commas: {', '.join(MIXER_NAMES)}; or all."),
    ],
    data: Annotated[Path, typer.Option(help="Folder with dataset.json (its splits), imagesTr and labelsTr, or images, labels.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the table, and for a folder of each mixer.")],
    recipe: Annotated[
        str, typer.Option(help="Recipe whose network has the option mixer: a name, or a YAML file.")
    ] = "mixer-hippocampus",
    steps: Annotated[int | None, typer.Option(min=1, help="Other number of steps than the recipe's.")] = None,
    bench: Annotated[
        str | None, typer.Option(help="Score the trained networks by this data set's description too, such as msd-hippocampus.")
    ] = None,
    split: Annotated[str, typer.Option(help="Part of the data set for --bench.")] = "val",
    bench_data: Annotated[
        Path | None, typer.Option(help="Folder of that data set, or that holds its folder; --data by itself.")
    ] = None,
    accelerator: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Train one network with several mixers, one after the other, at equal parameters and steps, and compare them in a table.

    Started again it does what is left to do. Research use, not a medical device.
    """
    from hybrid.training.arms import arms_of, shown
    from hybrid.training.comparison import Comparison, measured, run_arms, table, write_comparison
    from medical.cli.evaluate import print_table
    from medical.loading import load_model
    from medical.notice import RESEARCH_USE
    from medical.training.run import load_recipe, run, write_result

    chosen = load_recipe(recipe)
    arms = arms_of(chosen, mixers, output, steps)
    with shown(quiet) as bar:

        def train(arm: Arm) -> None:
            own = arm.recipe
            show = bar(arm.name, own.training.steps)  # type: ignore[attr-defined]
            network, facts = run(own, data, arm.folder, accelerator=accelerator, on_progress=show)  # type: ignore[arg-type]
            write_result(network, facts, arm.folder, arm.stem)

        run_arms(arms, train)
    scores = {arm.name: _scores(arm, bench, split, bench_data or data, output / "bench" / arm.name) for arm in arms if bench}
    networks: dict[str, Any] = {arm.name: load_model(arm.weights, device="cpu") for arm in arms}
    result = Comparison(
        f"Mixers by {chosen.name}",
        "Dice, held-out scans",
        4,
        tuple(measured(arm, "dice", networks[arm.name].config.embed_dim, scores.get(arm.name)) for arm in arms),
    )
    files = write_comparison(result, output)
    print_table(result.title, *table(result))
    typer.echo(RESEARCH_USE + ".")
    for path in files:
        typer.echo(str(path))


def _scores(arm: Arm, name: str, split: str, data: Path, output: Path) -> dict[str, float]:
    """Mean Dice and HD95 of an arm on a split of a data set; its report goes to `output`."""
    from medical.cli.evaluate import read_spec
    from medical.evaluation.engine import plan_data_set, run_evaluation
    from medical.evaluation.network import Network
    from medical.evaluation.report import MEAN, summaries, write_report
    from medical.loading import load_model

    spec = read_spec(name)
    predict = Network(load_model(arm.weights, device="cpu"))
    plan = plan_data_set(spec, data, split, title=arm.stem)
    result = run_evaluation(plan, predict, made=predict.made(spec))
    write_report(result, output)
    means = summaries(result)[MEAN]
    unit = result.plan.conventions.unit
    return {f"Dice ({split})": means["dice"].mean, f"HD95, {unit} ({split})": means["hd95"].mean}
