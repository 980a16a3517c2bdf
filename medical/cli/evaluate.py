"""The command `medical evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from hybrid.batch.options import Address, BatchOptions, Engine, Threads, Workers

if TYPE_CHECKING:
    from data_specs import SegmentationSpec
    from hybrid.batch.cluster import OnRay
    from medical.detection.evaluation import DetectionResult
    from medical.evaluation.calibration import Reliability
    from medical.evaluation.comparison import Comparison
    from medical.evaluation.engine import CaseResult, Evaluation, EvaluationPlan
    from medical.evaluation.metrics import Conventions
    from medical.evaluation.network import Network
    from medical.segmentation.run import SegmentSettings


def evaluate(
    predictions: Annotated[Path | None, typer.Argument(help="Folder of label maps to score; or --model.")] = None,
    references: Annotated[Path | None, typer.Argument(help="Folder of references of the same names; or --data.")] = None,
    model: Annotated[str | None, typer.Option(help="A name from `medical models list`, or a checkpoint.")] = None,
    protocol: Annotated[
        Path | None, typer.Option(help="YAML file: modality, channels, spacing, intensity, patch, structures of a checkpoint.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="What a checkpoint does not tell, such as merging=merging15. Repeatable.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the data set's folder, or that folder itself.")] = None,
    spec: Annotated[str | None, typer.Option(help="Data set such as msd-hippocampus, or a YAML description.")] = None,
    split: Annotated[str | None, typer.Option(help="Part of the data set, such as val; all for every case.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for tables and plot.")] = None,
    empty: Annotated[
        Literal["nan", "monai-ignore", "monai-strict", "transunet"] | None, typer.Option(help="What empty masks count.")
    ] = None,
    hausdorff: Annotated[Literal["max", "pooled"] | None, typer.Option(help="Variant of HD95.")] = None,
    surface: Annotated[Literal["subvoxel", "voxel"] | None, typer.Option(help="How NSD measures surfaces.")] = None,
    tolerance: Annotated[float | None, typer.Option(help="Tolerance of NSD in mm, in pixels of pictures.")] = None,
    against: Annotated[Path | None, typer.Option(help="Folder of an earlier evaluation, to be tested against.")] = None,
    overlap: Annotated[
        float | None, typer.Option(min=0, max=0.99, help="Overlap of windows; the model's own if left out.")
    ] = None,
    tta: Annotated[bool, typer.Option("--tta", help="Average over mirror images.")] = False,
    any_modality: Annotated[
        bool, typer.Option("--any-modality", help="Take scans whose headers name another modality than the model's.")
    ] = False,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Whether the model's probabilities are right too: plot, ECE, Brier score.")
    ] = False,
    memory: Annotated[str | None, typer.Option(help="Peak memory to stay under, such as 4GB.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bf16", "fp16"], typer.Option(help="What the network computes in.")
    ] = "float32",
    threads: Threads = None,
    engine: Engine = "local",
    workers: Workers = None,
    address: Address = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell how far it is.")] = False,
) -> None:
    """Score label maps, or a model, against references: Dice, HD95 and surface Dice.

    Give two folders, a folder and a data set, or a model and a data set. Research use, not a medical device.
    """
    from hybrid.console import counted, messages
    from hybrid.errors import RequestError
    from medical.evaluation.calibration_run import Calibrating
    from medical.evaluation.comparison import compare, read_scores
    from medical.evaluation.engine import Folder, plan_data_set, plan_folders, run_evaluation
    from medical.evaluation.report import write_report

    check_request(predictions, references, model, data, spec, split)
    given = {"--protocol": protocol, "--option": option, "--overlap": overlap, "--tta": tta or None, "--memory": memory}
    given |= {"--any-modality": any_modality or None}
    given |= {"--calibration": calibration or None, "--engine": "ray" if engine == "ray" else None}
    asked = BatchOptions(engine, workers, address, threads)
    if calibration and engine == "ray":
        raise RequestError("--calibration runs on this machine alone.", hint="Leave --engine or --calibration out.")
    check_model_options(model, [name for name, value in given.items() if value is not None])
    check_output(output, against)
    described = read_spec(spec) if spec is not None else None
    conventions = _conventions(described, empty=empty, hausdorff=hausdorff, surface=surface, tolerance=tolerance)
    folder = Folder(predictions) if predictions is not None else None
    if folder is not None and references is not None:
        plan = plan_folders(folder, references, conventions)
    else:
        assert described is not None and data is not None and split is not None
        title = folder.folder.resolve().name if folder is not None else Path(str(model)).stem
        plan = plan_data_set(described, data, split, title=title, conventions=conventions)
    earlier = read_scores(against) if against is not None else None  # a slip is better found before the work than after
    run = replace(settings_of(overlap, tta, memory, any_modality), probabilities=calibration)
    maker = load_network(model, protocol, option or (), device, precision, run, threads) if model is not None else None
    calibrated = Calibrating(maker, plan) if maker is not None and calibration else None
    predict = folder or calibrated or maker
    assert predict is not None
    made = maker.made(described) if maker is not None else None
    on_ray = (
        _on_ray(maker, plan, model, option or (), device, precision, asked) if maker is not None and engine == "ray" else None
    )
    with counted(messages(quiet=quiet), "cases", len(plan.cases)) as on_progress:
        result = run_evaluation(plan, predict, made=made, on_progress=on_progress, engine=on_ray)
    comparison = compare(result, earlier) if earlier is not None and result.scored else None
    reliability = calibrated.results() if calibrated is not None else ()
    _show(result, comparison, reliability)
    if output is not None:
        for path in write_report(result, output, comparison=comparison, reliability=reliability):
            typer.echo(str(path))
    raise typer.Exit(result.exit_code)


def check_request(
    predictions: Path | None,
    references: Path | None,
    model: str | None,
    data: Path | None,
    spec: str | None,
    split: str | None,
    *,
    what: str = "label maps",
) -> None:
    """Refuse what does not say what is scored, or against what."""
    from hybrid.errors import RequestError

    if (predictions is None) == (model is None):
        raise RequestError(
            f"What is to be scored is either a folder of {what} or a model.", hint="Give one folder, or --model NAME."
        )
    wanted = {"--data": data, "--spec": spec, "--split": split}
    missing = [name for name, value in wanted.items() if value is None]
    if references is None and missing:
        raise RequestError(
            f"The references are not named: {' and '.join(missing)} missing.",
            hint="Give --data FOLDER --spec NAME --split NAME, or a second folder.",
        )
    if references is not None and (model is not None or len(missing) < len(wanted)):
        raise RequestError("A folder of references stands for itself.", hint="Leave --model, --data, --spec and --split out.")


def check_model_options(model: str | None, given: Sequence[str], *, what: str = "label maps") -> None:
    """Refuse options of a model where there is none."""
    from hybrid.errors import RequestError

    if model is None and given:
        raise RequestError(
            f"{what.capitalize()} are there already, so {given[0]} would change nothing.", hint=f"Leave {', '.join(given)} out."
        )


def check_output(output: Path | None, against: Path | None) -> None:
    """Find before the work that its results would have no place, or the earlier evaluation's."""
    from hybrid.errors import RequestError

    if output is not None and against is not None and output.resolve() in (against.resolve(), against.resolve().parent):
        raise RequestError(f"{output} holds the earlier evaluation, which would be lost.", hint="Choose another --output.")
    if output is not None and output.exists() and not output.is_dir():
        raise RequestError(f"{output} is a file.", hint="Name a folder with -o.")


def read_spec(name: str) -> SegmentationSpec:
    """The description of a data set."""
    from data_specs import SegmentationSpec, load_spec

    return load_spec(name, SegmentationSpec)


def _conventions(spec: SegmentationSpec | None, **chosen: Any) -> Conventions:
    """Those of the data set, with what was asked for in their place."""
    from medical.evaluation.metrics import Conventions

    usual = spec.scoring.model_dump() if spec is not None else {}
    return Conventions(**usual | {name: value for name, value in chosen.items() if value is not None})


def settings_of(overlap: float | None, tta: bool, memory: str | None, any_modality: bool) -> SegmentSettings:
    """How a model is run."""
    from hybrid.memory import parse_size
    from medical.segmentation.run import SegmentSettings

    limit = parse_size(memory) if memory is not None else None
    return SegmentSettings(overlap=overlap, mirror=tta, memory=limit, any_modality=any_modality)


def load_network(
    model: str,
    protocol: Path | None,
    options: Sequence[str],
    device: str,
    precision: str,
    settings: SegmentSettings,
    threads: int | None = None,
) -> Network:
    """The model, loaded once. Nothing ever stands in for it."""
    from hybrid.devices import set_threads
    from medical.cli.segment import network_options, read_protocol
    from medical.evaluation.network import Network
    from medical.loading import load_model

    given = read_protocol(protocol) if protocol is not None else None
    set_threads(threads)  # no more than this process may use, which torch does not ask a container for
    return Network(load_model(model, device=device, precision=precision, **network_options(options)), settings, protocol=given)


def _on_ray(
    network: Network,
    plan: EvaluationPlan,
    model: str | None,
    options: Sequence[str],
    device: str,
    precision: str,
    asked: BatchOptions,
) -> OnRay:
    """Cases on the workers of a cluster, each with a network of its own."""
    import torch

    from hybrid.batch.cluster import OnRay
    from hybrid.loading import portable_source
    from medical.cli.segment import network_options
    from medical.evaluation.network import NetworkRecipe

    weights = network.network.source
    assert weights is not None and model is not None
    recipe = NetworkRecipe(
        plan,
        portable_source(model, weights),
        weights.sha256,
        device,
        precision,
        torch.get_num_threads(),
        network.settings,
        network.protocol,
        network_options(options),
    )
    return OnRay(recipe, asked, threads=recipe.threads, device=device)


def _show(result: Evaluation, comparison: Comparison | None, reliability: Sequence[Reliability]) -> None:
    from medical.evaluation import calibration
    from medical.evaluation.boundary_report import HEADER, TITLE, boundary_rows
    from medical.evaluation.report import header, protocol_facts, table_rows
    from medical.notice import RESEARCH_USE

    print_table(result.plan.title, header(result.plan.conventions), table_rows(result))
    if measured := boundary_rows(result):
        print_table(TITLE, HEADER, measured)
    if comparison is not None:
        print_table(comparison.title, comparison.header, comparison.table_rows())
    if reliability:
        print_table("Calibration", calibration.HEADER, calibration.table_rows(reliability))
    for fact in (*protocol_facts(result), *(calibration.facts_of(reliability[0].bins) if reliability else ())):
        typer.echo(fact)
    typer.echo(RESEARCH_USE + ".")
    print_remarks(result.results)


def print_remarks(results: Sequence[CaseResult | DetectionResult]) -> None:
    """Tell what the user should know of cases, each sentence once with the cases that it is about, and why some failed."""
    from hybrid.records import without_folders

    cases: dict[str, list[str]] = {}
    for each in results:
        for note in each.notes:
            cases.setdefault(without_folders(note), []).append(each.name)
    for note, names in cases.items():
        several = f" and {len(names) - 3} more" if len(names) > 3 else ""
        typer.echo(f"note: {', '.join(names[:3])}{several}: {note}", err=True)
    for each in results:
        if each.error is not None:
            typer.echo(f"{each.name}: {without_folders(each.error)}", err=True)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table as wide as the terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*header, title=Text(title))
    for cells in rows:
        table.add_row(*map(Text, cells))  # plain: names may hold [brackets]
    Console(width=None if Console().is_terminal else 160).print(table)
