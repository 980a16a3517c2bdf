"""The commands `restore models ...`: what can be had, and getting it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hybrid.catalogue import Entry

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
    from hybrid.weights import Store
    from restore.loading import catalogue

    entry = catalogue().entry(name)
    chosen, file = entry.file(scale)
    if file.shipped:
        typer.echo(f"{entry.name} x{chosen} comes with the package.")
        return
    with _progress(file.name) as on_progress:
        path = Store.from_environment().fetch(entry, chosen, on_progress)
    typer.echo(str(path))


@contextmanager
def _progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar of bytes on stderr, so that stdout holds results alone; gone when the work is done."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress

    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total or None)


@models.command()
def path(
    name: Annotated[str | None, typer.Argument(help="A name from `restore models list`; none for the cache folder.")] = None,
    scale: Annotated[int | None, typer.Option(help="Scale, where the model has several.")] = None,
) -> None:
    """Print the folder of the cache, or the file of a model that is here."""
    from hybrid.errors import RequestError
    from hybrid.weights import Store, resolve
    from restore.loading import catalogue

    store, known = Store.from_environment(), catalogue()
    if name is not None:
        typer.echo(str(resolve(known.entry(name).name, scale, known, store, allow_download=False).path))
    elif scale is None:
        typer.echo(str(store.folder))
    else:
        raise RequestError("A scale alone names no file.", hint="Type: restore models path NAME --scale N")


@models.command()
def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Names from `restore models list`; none for all.")] = None,
) -> None:
    """Hash the files that are here against what they should be, and read them."""
    from hybrid.errors import WeightsError
    from restore.loading import catalogue

    known = catalogue()
    asked = [known.entry(name) for name in names or ()]
    faults = 0
    for entry in asked or known:
        here = [verdict for scale in entry.files if (verdict := _verdict(entry, scale)) is not None]
        for sound, line in here:
            typer.echo(f"{'ok' if sound else 'DAMAGED':8} {line}")
        if asked and not here:
            typer.echo(f"{'absent':8} {entry.name}")
        faults += sum(not sound for sound, _ in here) + bool(asked and not here)
    if faults:
        raise WeightsError(f"Damaged or absent: {faults}.", hint="`restore models path NAME --scale N` tells how to get one.")


def _verdict(entry: Entry, scale: int) -> tuple[bool, str] | None:
    """Whether the file of a model is sound, and a line that says why and what to do; None where it is not here."""
    from hybrid.checkpoints import read_checkpoint
    from hybrid.errors import WeightsError
    from hybrid.weights import Store, resolve
    from restore.loading import catalogue

    store, file = Store.from_environment(), entry.files[scale]
    cached = store.path(file)
    title = f"{entry.name} x{scale}  {file.name}"
    if not file.shipped and not cached.is_file():
        return None
    recorded = Path(f"{cached}.sha256").is_file()  # asked first, since looking a file up records its hash
    try:
        place = resolve(entry.name, scale, catalogue(), store, allow_download=False).path
    except WeightsError as error:
        return False, f"{title}: {error}"
    again = f"Delete {cached} and {cached}.sha256, and get it again: {store.how_to_get(entry, scale)}"
    try:
        found = read_checkpoint(place).sha256
    except WeightsError as error:
        return False, f"{title}: {error.message} {'Install the package again.' if file.shipped else again}"
    if file.shipped and (expected := _sha256_after_training(place)) is not None:
        if found != expected:
            return False, f"{title}: it is not what its training record names. Install the package again."
        recorded = True
    known = "as published" if file.sha256 else "as recorded" if recorded else "first seen, no other to compare with"
    return True, f"{title}  sha256 {found} ({known})"


def _sha256_after_training(shipped: Path) -> str | None:
    """The hash in the training record beside shipped weights; None where the installation has no such record."""
    import json

    try:
        return json.loads(shipped.with_suffix(".json").read_text(encoding="utf-8"))["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


@models.command()
def pack(
    archive: Annotated[Path, typer.Argument(help="The archive to write, such as weights.zip.")],
    names: Annotated[list[str], typer.Argument(help="Names from `restore models list`.")],
    scale: Annotated[int | None, typer.Option(help="Only this scale; otherwise every scale that is here.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an archive that is there.")] = False,
) -> None:
    """Pack weights that are here into one archive, for a place with no network."""
    from hybrid.weights import Store
    from hybrid.weights_archive import gather
    from hybrid.weights_archive import pack as write_archive
    from restore.loading import catalogue

    found = gather(names, scale, catalogue(), Store.from_environment())
    with _progress(archive.name) as on_progress:
        manifest = write_archive(archive, found, overwrite=overwrite, on_progress=on_progress)
    for packed in manifest.files:
        typer.echo(f"{packed.model} x{packed.scale}  {packed.file}  licence of weights: {packed.weights_licence}")
    typer.echo(str(archive))


@models.command("import")
def import_file(
    file: Annotated[Path, typer.Argument(help="An archive of `restore models pack`, or a checkpoint downloaded by hand.")],
    name: Annotated[str | None, typer.Option("--as", help="Model name, where the file name does not tell it.")] = None,
    scale: Annotated[int | None, typer.Option(help="Scale, likewise.")] = None,
) -> None:
    """Check a packed archive or a downloaded file, and copy it into the cache."""
    if file.suffix.lower() == ".zip" and name is None:
        _import_archive(file)
    else:
        _import_checkpoint(file, name, scale)


def _import_archive(archive: Path) -> None:
    from hybrid.weights import Store
    from hybrid.weights_archive import unpack
    from restore.loading import catalogue

    with _progress(archive.name) as on_progress:
        done = unpack(archive, catalogue(), Store.from_environment(), check=_check_fits, on_progress=on_progress)
    for each in done:
        typer.echo(f"{each.packed.model} x{each.packed.scale}  {each.state}: {each.path}")


def _import_checkpoint(file: Path, name: str | None, scale: int | None) -> None:
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
    _check_fits(file, entry, chosen)
    typer.echo(str(Store.from_environment().import_file(file, entry, chosen)))


def _check_fits(file: Path, entry: Entry, scale: int) -> None:
    """A file is imported only if it loads as what it is to be."""
    from hybrid.errors import WeightsError
    from restore.loading import load_model

    network = load_model(file, scale=scale, device="cpu")
    if network.card.family != entry.family:
        raise WeightsError(f"{file.name} holds {network.card.title}, not {entry.name}.", hint="Check --as.")
    parameters, expected = sum(p.numel() for p in network.parameters()), entry.files[scale].parameters
    if expected not in (None, parameters):
        raise WeightsError(
            f"{file.name} has {parameters:,} parameters, and {entry.name} x{scale} has {expected:,}: it is another network.",
            hint="Check --as, or run it with --weights.",
        )


@models.command()
def info(
    file: Annotated[str, typer.Argument(help="A checkpoint file, or a name from `restore models list`.")],
    scale: Annotated[int | None, typer.Option(help="Scale, where a name has several.")] = None,
) -> None:
    """What a checkpoint is: family, configuration, scale, parameters, wrapper, hash."""
    from hybrid.checkpoints import read_checkpoint, recognise
    from restore.loading import catalogue, find_weights
    from restore.models import MODULES, family

    found, _ = find_weights(file, scale)
    told = catalogue().whose_file(found.path.name)
    entry = found.entry or (told[0] if told else None)
    checkpoint = read_checkpoint(found.path)
    kind = family(recognise(checkpoint.state, {name: family(name) for name in MODULES}))
    network = kind.build(checkpoint.state)
    card = network.card
    typer.echo(f"family      {card.title} ({card.paper})")
    typer.echo(f"scale       x{card.scale}, {card.channels} channels")
    typer.echo(f"parameters  {sum(p.numel() for p in network.parameters()):,}")
    typer.echo(f"wrapper     {checkpoint.wrapper or 'none'}{f', prefix {checkpoint.prefix}' if checkpoint.prefix else ''}")
    typer.echo(f"sha256      {checkpoint.sha256}")
    licence = "unknown" if entry is None else entry.weights_licence
    by_name = "" if entry is None or found.entry is not None else " (by the name of the file)"
    typer.echo(f"licence     of the reference code {card.code_licence}; of these weights {licence}{by_name}")
    if entry is not None:
        typer.echo(f"trained on  {entry.training_data}")
    if entry is not None and entry.notice:
        typer.echo(f"notice      {entry.notice}")
    typer.echo(f"not told    by a file: {', '.join(kind.options)}")
