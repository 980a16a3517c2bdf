"""The commands `... models`: what can be had, and getting it. One implementation, for pictures and for scans."""

from __future__ import annotations

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from hybrid.families import Family, Network
    from hybrid.weights.catalogue import Catalogue, Entry
    from hybrid.weights.checkpoints import Checkpoint
    from hybrid.weights.find import Resolved, Store

Name = Annotated[str, typer.Argument(help="A name from `models list`.")]
Scale = Annotated[int | None, typer.Option(help="Scale, where the model has several.")]


class ModelsOf(ABC):
    """What the commands must know of a package.

    Methods import what they need when they are called, so that `--help` answers at once.

    Attributes:
        command: What a user types: ``restore`` or ``medical``.
        scales: Whether a model may have several files, one a scale.
    """

    command: str
    scales: bool

    @abstractmethod
    def catalogue(self) -> Catalogue:
        """The models that have names."""

    @abstractmethod
    def find(self, source: str, scale: int | None) -> Resolved:
        """The file of a name or path; downloaded if need be and allowed."""

    @abstractmethod
    def build(self, found: Resolved) -> Network:
        """The network of a file, on the CPU; its card has at least family, title, paper and code_licence."""

    @abstractmethod
    def family(self, name: str) -> Family[Any]:
        """A family of the registry."""

    @abstractmethod
    def facts(self, network: Any, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Lines of `info` that the package adds, each a heading and a text; `told` is what `told` gives."""

    def told(self, checkpoint: Checkpoint) -> Mapping[str, Any]:
        """Options of the family that the file itself states."""
        return {}

    def store(self) -> Store:
        """The cache."""
        from hybrid.weights.find import Store

        return Store.from_environment(command=self.command)

    def check_fits(self, file: Path, entry: Entry, scale: int) -> None:
        """A file is imported only if it loads as what it is to be.

        Raises:
            WeightsError: It holds something else.
        """
        from hybrid.errors import WeightsError
        from hybrid.weights.catalogue import in_print
        from hybrid.weights.find import Resolved

        network: Any = self.build(Resolved(file, None, scale, "file"))
        if network.card.family != entry.family:
            raise WeightsError(f"{file.name} holds {network.card.title}, not {entry.name}.", hint="Check --as.")
        parameters, expected = sum(p.numel() for p in network.parameters()), entry.files[scale].parameters
        if expected not in (None, parameters):
            name = in_print(entry.name, scale)
            raise WeightsError(
                f"{file.name} has {parameters:,} parameters, and {name} has {expected:,}: it is another network.",
                hint="Check --as, or run it with --weights.",
            )


def models_app(package: ModelsOf) -> typer.Typer:
    """The commands of a package, to be mounted as `models`."""
    commands = _Commands(package)
    app = typer.Typer(help="List models, and get their weights.", no_args_is_help=True)
    named: dict[str, Callable[..., None]] = {
        "list": commands.list_models,
        "info": commands.info,
        "pull": commands.pull,
        "path": commands.path,
        "verify": commands.verify,
        "pack": commands.pack,
        "import": commands.import_file,
    }
    for name, command in named.items():
        app.command(name)(command if package.scales else _without("scale", command))
    return app


class _Commands:
    """A method a command."""

    def __init__(self, package: ModelsOf) -> None:
        self.package = package

    def list_models(
        self,
        here: Annotated[bool, typer.Option("--here", help="Only those whose weights are on this machine.")] = False,
    ) -> None:
        """Every model with where its weights are, and their licence; those that are here first."""
        from rich.console import Console
        from rich.table import Table

        from hybrid.weights.find import is_here, weights_state

        store, known, scales = self.package.store(), self.package.catalogue(), self.package.scales
        tasks = any(entry.task for entry in known)
        table = Table("model", *["task"] * tasks, *["scales"] * scales, "weights", "licence of weights", "what it is for")
        states = {entry.name: weights_state(entry, store, known) for entry in known}
        for entry in sorted(known, key=lambda entry: not is_here(states[entry.name])):
            if here and not is_here(states[entry.name]):
                continue
            listed = [entry.task or ""] * tasks + [", ".join(f"x{scale}" for scale in entry.files)] * scales
            table.add_row(entry.name, *listed, states[entry.name], entry.weights_licence, entry.summary)
        Console(width=None if Console().is_terminal else 160).print(table)

    def pull(self, name: Name, scale: Scale = None) -> None:
        """Download weights into the cache, and check them."""
        from hybrid.weights.catalogue import in_print

        entry = self.package.catalogue().entry(name)
        chosen, file = entry.file(scale)
        if file.shipped:
            typer.echo(f"{in_print(entry.name, chosen)} comes with the package.")
            return
        with _progress(file.name) as on_progress:
            path = self.package.store().fetch(entry, chosen, on_progress)
        typer.echo(str(path))

    def path(
        self,
        name: Annotated[str | None, typer.Argument(help="A name from `models list`; none for the cache folder.")] = None,
        scale: Scale = None,
    ) -> None:
        """Print the folder of the cache, or the file of a model that is here."""
        from hybrid.errors import RequestError
        from hybrid.weights.find import resolve

        store, known = self.package.store(), self.package.catalogue()
        if name is not None:
            typer.echo(str(resolve(known.entry(name).name, scale, known, store, allow_download=False).path))
        elif scale is None:
            typer.echo(str(store.folder))
        else:
            command = self.package.command
            raise RequestError("A scale alone names no file.", hint=f"Type: {command} models path NAME --scale N")

    def verify(
        self,
        names: Annotated[list[str] | None, typer.Argument(help="Names from `models list`; none for all.")] = None,
    ) -> None:
        """Hash the files that are here against what they should be, and read them."""
        from hybrid.errors import WeightsError

        known, store = self.package.catalogue(), self.package.store()
        asked = [known.entry(name) for name in names or ()]
        faults = 0
        for entry in asked or known:
            here = [found for scale in entry.files if (found := _verdict(entry, scale, known, store)) is not None]
            for sound, line in here:
                typer.echo(f"{'ok' if sound else 'DAMAGED':8} {line}")
            if asked and not here:
                typer.echo(f"{'absent':8} {entry.name}")
            faults += sum(not sound for sound, _ in here) + bool(asked and not here)
        if faults:
            how = f"{self.package.command} models path NAME" + " --scale N" * self.package.scales
            raise WeightsError(f"Damaged or absent: {faults}.", hint=f"`{how}` tells how to get one.")

    def pack(
        self,
        archive: Annotated[Path, typer.Argument(help="The archive to write, such as weights.zip.")],
        names: Annotated[list[str], typer.Argument(help="Names from `models list`.")],
        scale: Annotated[int | None, typer.Option(help="Only this scale; otherwise every scale that is here.")] = None,
        overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an archive that is there.")] = False,
    ) -> None:
        """Pack weights that are here into one archive, for a place with no network."""
        from hybrid.weights.archive import gather, pack
        from hybrid.weights.catalogue import in_print

        found = gather(names, scale, self.package.catalogue(), self.package.store())
        with _progress(archive.name) as on_progress:
            manifest = pack(archive, found, overwrite=overwrite, on_progress=on_progress)
        for packed in manifest.files:
            name = in_print(packed.model, packed.scale)
            typer.echo(f"{name}  {packed.file}  licence of weights: {packed.weights_licence}")
        typer.echo(str(archive))

    def import_file(
        self,
        file: Annotated[Path, typer.Argument(help="An archive of `models pack`, or a checkpoint downloaded by hand.")],
        name: Annotated[str | None, typer.Option("--as", help="Model name, where the file name does not tell it.")] = None,
        scale: Annotated[int | None, typer.Option(help="Scale, likewise.")] = None,
    ) -> None:
        """Check a packed archive or a downloaded file, and copy it into the cache."""
        if file.suffix.lower() == ".zip" and name is None:
            self._import_archive(file)
        else:
            self._import_checkpoint(file, name, scale)

    def _import_archive(self, archive: Path) -> None:
        from hybrid.weights.archive import unpack
        from hybrid.weights.catalogue import in_print

        package = self.package
        with _progress(archive.name) as on_progress:
            done = unpack(archive, package.catalogue(), package.store(), check=package.check_fits, on_progress=on_progress)
        for each in done:
            typer.echo(f"{in_print(each.packed.model, each.packed.scale)}  {each.state}: {each.path}")

    def _import_checkpoint(self, file: Path, name: str | None, scale: int | None) -> None:
        from hybrid.errors import RequestError

        known = self.package.catalogue()
        told = known.whose_file(file.name)
        if name is not None:
            entry = known.entry(name)
            chosen, _ = entry.file(scale)
        elif told is not None:
            entry, chosen = told
        else:
            how = "--as NAME" + " --scale N" * self.package.scales
            raise RequestError(f"The name {file.name} does not tell which model it is.", hint=f"Say it with {how}.")
        self.package.check_fits(file, entry, chosen)
        typer.echo(str(self.package.store().import_file(file, entry, chosen)))

    def info(
        self,
        file: Annotated[str, typer.Argument(help="A checkpoint file, or a name from `models list`.")],
        scale: Annotated[int | None, typer.Option(help="Scale, where a name has several.")] = None,
    ) -> None:
        """What a checkpoint is: family, configuration, parameters, wrapper, hash, licence, and what it does not tell."""
        from hybrid.weights.checkpoints import read_checkpoint

        package = self.package
        found = package.find(file, scale)
        by_name = package.catalogue().whose_file(found.path.name) if found.entry is None else None
        entry = by_name[0] if by_name else found.entry
        network: Any = package.build(found)
        checkpoint = read_checkpoint(found.path)
        told = package.told(checkpoint)
        lines = [("family", f"{network.card.title} ({network.card.paper})"), *package.facts(network, told)]
        lines.append(("parameters", f"{sum(p.numel() for p in network.parameters()):,}"))
        prefix = f", prefix {checkpoint.prefix}" if checkpoint.prefix else ""
        lines += [("wrapper", f"{checkpoint.wrapper or 'none'}{prefix}"), ("sha256", checkpoint.sha256)]
        licence = "unknown" if entry is None else entry.weights_licence
        guessed = " (by the name of the file)" if by_name else ""
        lines.append(("licence", f"of the reference code {network.card.code_licence}; of these weights {licence}{guessed}"))
        if entry is not None:
            lines += [("trained on", entry.training_data), *([("notice", entry.notice)] if entry.notice else [])]
        untold = [option for option in package.family(network.card.family).options if option not in told]
        lines.append(("not told", f"by {'a' if not told else 'the'} file: {', '.join(untold) or 'nothing is left open'}"))
        for heading, text in lines:
            typer.echo(f"{heading:<11} {text}")


def _without(name: str, command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter of that name is left to its default, and not shown."""

    @functools.wraps(command)
    def shorter(**given: Any) -> None:
        command(**given)

    whole = inspect.signature(command, eval_str=True)  # typer reads annotations, not their text
    kept = [parameter for parameter in whole.parameters.values() if parameter.name != name]
    vars(shorter)["__signature__"] = whole.replace(parameters=kept)
    return shorter


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


def _verdict(entry: Entry, scale: int, known: Catalogue, store: Store) -> tuple[bool, str] | None:
    """Whether the file of a model is sound, and a line that says why and what to do; None where it is not here."""
    from hybrid.errors import WeightsError
    from hybrid.weights.catalogue import in_print
    from hybrid.weights.checkpoints import read_checkpoint
    from hybrid.weights.find import resolve

    file = entry.files[scale]
    cached = store.path(file)
    title = f"{in_print(entry.name, scale)}  {file.name}"
    if not file.shipped and not cached.is_file():
        return None
    recorded = Path(f"{cached}.sha256").is_file()  # asked first, since looking a file up records its hash
    try:
        place = resolve(entry.name, scale, known, store, allow_download=False).path
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
    why = "as published" if file.sha256 else "as recorded" if recorded else "first seen, no other to compare with"
    return True, f"{title}  sha256 {found} ({why})"


def _sha256_after_training(shipped: Path) -> str | None:
    """The hash in the training record beside shipped weights; None where the installation has no such record."""
    import json

    try:
        found: str = json.loads(shipped.with_suffix(".json").read_text(encoding="utf-8"))["weights_sha256"]
        return found
    except (OSError, ValueError, KeyError, TypeError):
        return None
