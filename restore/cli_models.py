"""The commands `restore models ...`: what can be had, and getting it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

models = typer.Typer(help="List models, and get their weights.", no_args_is_help=True)


@models.command("list")
def list_models() -> None:
    """Every model with its scales, where its weights are, and their licence."""
    from rich.console import Console
    from rich.table import Table

    from hybrid.weights import Store
    from restore.loading import catalogue, weights_state

    store = Store.from_environment()
    table = Table("model", "scales", "weights", "licence of weights", "what it is for")
    for entry in catalogue():
        scales = ", ".join(f"x{scale}" for scale in entry.files)
        table.add_row(entry.name, scales, weights_state(entry, store), entry.weights_licence, entry.summary)
    Console(width=None if Console().is_terminal else 160).print(table)


@models.command()
def pull(
    name: Annotated[str, typer.Argument(help="A name from `restore models list`.")],
    scale: Annotated[int | None, typer.Option(help="Scale, where the model has several.")] = None,
) -> None:
    """Download weights into the cache, and check them."""
    from rich.progress import DownloadColumn, Progress

    from hybrid.weights import Store
    from restore.loading import catalogue

    entry = catalogue().entry(name)
    chosen, file = entry.file(scale)
    if file.shipped:
        typer.echo(f"{entry.name} x{chosen} comes with the package.")
        return
    with Progress(*Progress.get_default_columns(), DownloadColumn(), transient=True) as progress:
        task = progress.add_task(file.name, total=None)
        path = Store.from_environment().fetch(
            entry, chosen, lambda done, total: progress.update(task, completed=done, total=total or None)
        )
    typer.echo(str(path))


@models.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="A published checkpoint that was downloaded by hand.")],
    name: Annotated[str | None, typer.Option("--as", help="Model name, where the file name does not tell it.")] = None,
    scale: Annotated[int | None, typer.Option(help="Scale, likewise.")] = None,
) -> None:
    """Check a downloaded file, and copy it into the cache."""
    from hybrid.errors import RequestError
    from hybrid.weights import Store
    from restore.loading import catalogue

    known = catalogue()
    told = known.whose_file(file.name)
    if name is not None:
        entry = known.entry(name)
        chosen, _ = entry.file(scale)
    elif told is not None:
        entry, chosen = told
    else:
        raise RequestError(f"The name {file.name} does not tell which model it is.", hint="Say it with --as NAME --scale N.")
    _check_fits(file, entry.name, chosen, entry.family)
    typer.echo(str(Store.from_environment().import_file(file, entry, chosen)))


def _check_fits(file: Path, name: str, scale: int, family: str) -> None:
    """A file is imported only if it loads as what it is to be."""
    from hybrid.errors import WeightsError
    from restore.loading import load_model

    network = load_model(file, scale=scale, device="cpu")
    if network.card.family != family:
        raise WeightsError(f"{file.name} holds {network.card.title}, not {name}.", hint="Check --as.")


@models.command()
def info(
    file: Annotated[str, typer.Argument(help="A checkpoint file, or a name from `restore models list`.")],
    scale: Annotated[int | None, typer.Option(help="Scale, where a name has several.")] = None,
) -> None:
    """What a checkpoint is: family, configuration, scale, parameters, wrapper, hash."""
    from hybrid.checkpoints import read_checkpoint, recognise
    from restore.loading import find_weights
    from restore.models import MODULES, family

    found, _ = find_weights(file, scale)
    checkpoint = read_checkpoint(found.path)
    kind = family(recognise(checkpoint.state, {name: family(name) for name in MODULES}))
    network = kind.build(checkpoint.state)
    card = network.card
    typer.echo(f"family      {card.title} ({card.paper})")
    typer.echo(f"scale       x{card.scale}, {card.channels} channels")
    typer.echo(f"parameters  {sum(p.numel() for p in network.parameters()):,}")
    typer.echo(f"wrapper     {checkpoint.wrapper or 'none'}{f', prefix {checkpoint.prefix}' if checkpoint.prefix else ''}")
    typer.echo(f"sha256      {checkpoint.sha256}")
    typer.echo(f"licence     of the reference code {card.code_licence}; of these weights unknown unless the catalogue names it")
    typer.echo(f"not told    by a file: {', '.join(kind.options)}")
