"""From what a user names (files, folders, globs) to pairs of an input and its output."""

from __future__ import annotations

import os
from dataclasses import dataclass
from glob import glob, has_magic
from pathlib import Path

from hybrid.batch.names import check_distinct
from hybrid.console import printable
from hybrid.errors import InputError, RequestError
from restore.images import format_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".tif", ".tiff", ".webp", ".avif")
FORMAT_SUFFIX = {"png": ".png", "jpeg": ".jpg", "tiff": ".tif", "webp": ".webp", "avif": ".avif"}


@dataclass(frozen=True)
class Job:
    """One picture to read and the file to write.

    Attributes:
        source, target: The two.
        map: Where a map that goes with the result is written, if one is asked for.
    """

    source: Path
    target: Path
    map: Path | None = None


def plan_jobs(inputs: list[str], output: Path | None, *, tag: str, format: str | None = None) -> list[Job]:
    """Pair inputs with outputs.

    One file goes to `output` if that names a file, else beside itself or into the folder `output`, under its name and
    `tag`. A folder is searched recursively and mirrored into `output` (or a folder beside it, named with `tag`), its
    files keeping their names; so are several files or a glob, flat, when `output` is given. What lies
    in an `output` inside the folder is no input.

    Args:
        inputs: Files, folders or glob patterns.
        output: File or folder, or None.
        tag: Put behind names of outputs that lie beside their input, such as ``_x4``.
        format: Output format; None keeps each input's.

    Raises:
        InputError: An input is missing, or a folder or pattern holds no picture.
        RequestError: Two inputs would have one output, or several are to go into one file.
    """
    found = [pair for text in inputs for pair in _expand(text, output)]
    several = len(found) > 1 or any(root is not None for _, root in found)
    if several and output is not None and output.suffix.lower() in SUFFIXES and not output.is_dir():
        raise RequestError(f"{output} names a file, but there are {len(found)} inputs.", hint="Give --output a folder.")
    jobs = [Job(path, _target(path, root, output, several, tag, format)) for path, root in found]
    check_distinct((job.source, job.target) for job in jobs)
    return jobs


def keep_inputs(jobs: list[Job]) -> None:
    """Make sure that no output takes the place of an input, be it another picture's.

    Raises:
        RequestError: One would.
    """
    sources = {os.path.realpath(job.source): job.source for job in jobs}
    for job in jobs:
        if (source := sources.get(os.path.realpath(job.target))) is not None:
            raise RequestError(
                f"The output {job.target} is the input {source}.", hint="Inputs are never changed: choose another --output."
            )


def check_format(output: Path | None, format: str | None) -> None:
    """Refuse an output file whose suffix says another format than the one asked for.

    Raises:
        RequestError: It does.
    """
    if output is None or format is None or output.is_dir() or output.suffix.lower() not in SUFFIXES:
        return
    if format_of(output) != format:
        raise RequestError(f"{output} is not named like a {format} file.", hint=f"Name it {output.stem}{FORMAT_SUFFIX[format]}.")


def check_name(job: Job) -> None:
    """Refuse names of bytes that are no UTF-8: neither the libraries nor a record can hold them.

    Raises:
        InputError: The input's or the output's is such a name.
    """
    for path in (job.source, job.target):
        if str(path) != printable(path):
            raise InputError(f"The name {printable(path)} is not valid UTF-8.", hint="Rename the file or folder.")


def _expand(text: str, output: Path | None) -> list[tuple[Path, Path | None]]:
    """Files that one argument means, each with the folder that was searched (None for a file named by itself)."""
    path = Path(text)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file() and not _hidden(p, path))
        if output is not None and path.resolve() in output.resolve().parents:
            files = [p for p in files if output.resolve() not in p.resolve().parents]
        if not files:
            raise InputError(f"The folder {path} holds no picture.", hint=f"Known suffixes: {', '.join(SUFFIXES)}.")
        return [(p, path) for p in files]
    if not path.exists() and has_magic(text):
        files = sorted(p for p in map(Path, glob(text, recursive=True)) if p.is_file())
        if not files:
            raise InputError(f"Nothing fits the pattern {text}.", hint="Check it, or name the files.")
        return [(p, None) for p in files]
    if not path.exists():
        raise InputError(f"There is no file {path}.", hint="Check the path.")
    return [(path, None)]


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _target(path: Path, root: Path | None, output: Path | None, several: bool, tag: str, format: str | None) -> Path:
    suffix = FORMAT_SUFFIX[format] if format else path.suffix
    if root is not None:
        base = output if output is not None else _beside(root, tag)
        return (base / path.relative_to(root)).with_suffix(suffix)
    if output is None:
        return path.with_name(path.stem + tag + suffix)
    if several or output.is_dir() or not output.suffix:
        return output / (path.stem + suffix)
    return output


def _beside(folder: Path, tag: str) -> Path:
    folder = folder.resolve()
    if not folder.name:
        raise RequestError(f"There is no place beside {folder} for the results.", hint="Say where with --output.")
    return folder.with_name(folder.name + tag)
