"""The command `restore bench`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast, get_args

import typer

from hybrid.batch.options import Address, BatchOptions, Engine, Threads, Workers

if TYPE_CHECKING:
    from hybrid.batch.cluster import OnRay
    from restore.evaluation.engine import Benchmark, BenchmarkPlan, Method, Picture


Task = Literal["super-resolution", "deblurring", "denoising", "jpeg", "face"]


def bench(
    sets: Annotated[list[str], typer.Argument(help="Data sets such as set5 or mini, YAML descriptions, or folders of pictures.")],
    model: Annotated[
        list[str],
        typer.Option(help="A name from `restore models list`, a checkpoint, or a classical method (see --task). Repeatable."),
    ],
    task: Annotated[
        Task | None,
        typer.Option(
            help="What is scored; by itself the first task of the first set. Classical methods: bicubic | blurred, wiener, "
            "richardson-lucy | noisy, bilateral, tv-chambolle, wavelet, nl-means, bm3d | jpeg, shifted-jpeg."
        ),
    ] = None,
    scale: Annotated[int | None, typer.Option(help="Enlargement of super-resolution; 4 by itself.")] = None,
    sigma: Annotated[
        list[float] | None, typer.Option(help="Strength of the noise to be removed, in 1/255. Repeatable; those of each set.")
    ] = None,
    quality: Annotated[list[int] | None, typer.Option(help="JPEG quality, 1 to 100. Repeatable; those of each set.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder that holds the folders of the data sets.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for tables, pictures and plots.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    precision: Annotated[
        Literal["auto", "float32", "bf16", "fp16"], typer.Option(help="What networks compute in; the papers in float32.")
    ] = "float32",
    threads: Threads = None,
    engine: Engine = "local",
    workers: Workers = None,
    address: Address = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not tell how far it is.")] = False,
) -> None:
    """Score models on benchmark pictures by the papers' protocol, beside the published numbers."""
    from hybrid.console import counted, messages
    from hybrid.devices import choose_device, set_threads
    from hybrid.errors import RequestError
    from restore.cli.bench_faces import bench_faces, telling_what_stays
    from restore.evaluation.engine import run_benchmark
    from restore.evaluation.report import write_report

    chosen = task or _task_of(sets[0], scale, sigma, quality)
    _check_levels(chosen, scale, sigma, quality)
    choose_device(device)  # one that is not there is an error, and no reason to skip every row
    asked = BatchOptions(engine, workers, address, threads)
    set_threads(threads)
    if chosen == "face":
        if engine != "local":
            raise RequestError("Benchmarks of faces run on this machine alone.", hint="Leave --engine out.")
        raise typer.Exit(bench_faces(sets, model, data, output, device, precision, quiet))
    if chosen == "super-resolution":
        make = partial(enlargement_plan, sets, model, scale or 4, data, device, precision)
    else:
        make = partial(same_size_plan, chosen, sets, model, [*(sigma or ()), *(quality or ())], data, device, precision)
    plan = make()
    with telling_what_stays(output), counted(messages(quiet=quiet), "pictures", plan.runs) as on_progress:
        on_ray = _on_ray(make, output, asked, device)
        result = run_benchmark(plan, output=output, on_progress=on_progress, engine=on_ray)
    _show(result)
    if output is not None:
        for path in write_report(result, output):
            typer.echo(str(path))
    raise typer.Exit(result.exit_code)


def _on_ray(make: Callable[[], BenchmarkPlan], output: Path | None, asked: BatchOptions, device: str) -> OnRay | None:
    """Where pictures are run, if not here."""
    if asked.engine == "local":
        return None
    import torch

    from hybrid.batch.cluster import OnRay
    from restore.evaluation.engine import BenchmarkRecipe

    threads = torch.get_num_threads()
    return OnRay(BenchmarkRecipe(make, output, threads), asked, threads=threads, device=device)


def _task_of(name: str, scale: int | None, sigma: list[float] | None, quality: list[int] | None) -> Task:
    """The task that is meant: the one whose option is given, else the first of the set."""
    from data_specs import DataSpec, load_spec
    from hybrid.errors import RequestError

    if scale is not None:
        return "super-resolution"
    if sigma or quality:
        return "denoising" if sigma else "jpeg"
    if Path(name).is_dir():
        return "super-resolution"
    task = load_spec(name, DataSpec).task
    if task not in get_args(Task):
        raise RequestError(f"{name} is a data set for {task} and cannot be used here.", hint="See `medical evaluate`.")
    return cast(Task, task)


def _check_levels(task: Task, scale: int | None, sigma: list[float] | None, quality: list[int] | None) -> None:
    from hybrid.errors import RequestError

    given = {"--scale": scale, "--sigma": sigma, "--quality": quality}
    fits = {"super-resolution": "--scale", "denoising": "--sigma", "jpeg": "--quality"}
    for flag, value in given.items():
        if value and fits.get(task) != flag:
            right = next(each for each, own in fits.items() if own == flag)
            raise RequestError(f"{flag} is for {right}, not for {task}.", hint="Leave it out, or give another --task.")
    if any(each <= 0 for each in sigma or ()) or any(not 1 <= each <= 100 for each in quality or ()):
        raise RequestError("--sigma must be above 0, and --quality from 1 to 100.")


def enlargement_plan(
    sets: list[str], model: list[str], scale: int, data: Path | None, device: str, precision: str
) -> BenchmarkPlan:
    """The plan of a benchmark of super-resolution, from names of sets and of models or classical methods."""
    from data_specs import folder_spec, load_spec
    from restore.evaluation.sr import plan_super_resolution

    methods = [method for name in model for method in _enlargers(name, scale, device, precision)]
    specs = [folder_spec(name) if Path(name).is_dir() else load_spec(name) for name in sets]
    return plan_super_resolution(specs, methods, scale=scale, data_dir=data)


def same_size_plan(
    task: Literal["deblurring", "denoising", "jpeg"],
    sets: list[str],
    model: list[str],
    levels: list[float],
    data: Path | None,
    device: str,
    precision: str,
) -> BenchmarkPlan:
    """The plan of a benchmark at the picture's own size; no `levels`: those of each set."""
    from data_specs import RestorationSpec, folder_restoration_spec, load_spec
    from restore.evaluation.baselines import baseline
    from restore.evaluation.networks import network_method
    from restore.evaluation.restoration import plan_restoration

    specs = [
        folder_restoration_spec(name, task) if Path(name).is_dir() else load_spec(name, RestorationSpec, task) for name in sets
    ]
    methods = [baseline(name, task) or network_method(name, device, precision) for name in model]
    return plan_restoration(specs, methods, levels=levels, data_dir=data)


def _enlargers(name: str, scale: int, device: str, precision: str) -> list[Method]:
    """The rows that one --model asks for. Absent weights make a skipped row: nothing stands in for a model in a table."""
    from hybrid.errors import RequestError, ResourceError, WeightsError
    from restore.evaluation.engine import Method
    from restore.evaluation.sr import bicubic, bicubic_8bit
    from restore.loading import catalogue, load_model

    if name == "bicubic":
        return [bicubic(scale), bicubic_8bit(scale)]
    known = name.lower() in catalogue()
    title = name.lower() if known else Path(name).stem
    try:
        network = load_model(name, scale=scale, device=device, precision=precision)
    except (WeightsError, ResourceError) as error:
        return [Method(title, skipped=str(error), published=title)]
    except RequestError as error:
        if known:  # the model is known, but not at this scale
            return [Method(title, skipped=str(error), published=title)]
        raise

    def run(low: Picture) -> Picture:
        from restore.images import Picture as WholePicture
        from restore.restoration.run import restore_picture

        return restore_picture(network, WholePicture(low)).colour

    assert network.source is not None
    facts = {
        "weights": network.source.file,
        "sha256": network.source.sha256,
        "device": str(next(network.parameters()).device),
        "precision": network.precision,
    }
    parameters = sum(p.numel() for p in network.parameters())
    return [Method(title, run, parameters=parameters, published=title, facts=facts)]


def _show(result: Benchmark) -> None:
    from rich.console import Console
    from rich.table import Table

    from restore.evaluation.report import table

    header, rows = table(result)
    shown = Table(*header)
    for cells in rows:
        shown.add_row(*cells)
    Console(soft_wrap=False, width=None if Console().is_terminal else 160).print(shown)
    for row in result.rows:
        if row.method.skipped:
            typer.echo(f"{row.method.name}: skipped: {row.method.skipped}")
        for failure in row.failures:
            typer.echo(f"{row.method.name} on {failure.image}: {failure.error}", err=True)
