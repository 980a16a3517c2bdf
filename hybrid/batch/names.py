"""Outputs that would be one file: two of one name, or of names that a file system takes for one.

Some file systems do not tell names apart that differ in case alone (those of Windows and macOS, network disks of either, USB
sticks), or in how Unicode composes a letter (macOS). Which do is found out by asking, since no table says it of all of them.
"""

from __future__ import annotations

import secrets
import shutil
import unicodedata
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path

from hybrid.errors import RequestError


def check_distinct(pairs: Iterable[tuple[Path, Path]]) -> None:
    """Make sure that inputs have outputs of their own; nothing is asked of the disk where names leave no doubt.

    Args:
        pairs: Inputs and their outputs, whose folders need not be there.

    Raises:
        RequestError: Two inputs would have one output.
    """
    sources: dict[Path, Path] = {}
    alike: dict[str, list[Path]] = {}
    for source, output in pairs:
        if output in sources:
            raise RequestError(f"{sources[output]} and {source} would both be written to {output}.", hint="Run them separately.")
        sources[output] = source
        alike.setdefault(_folded(output), []).append(output)
    for outputs in alike.values():
        for one, other in combinations(outputs, 2):
            if are_one(one, other):
                raise RequestError(
                    f"{sources[one]} and {sources[other]} would both be written to {one}: there, {other.name} is the same file.",
                    hint="Rename one of them, or run them separately.",
                )


def are_one(one: Path, other: Path) -> bool:
    """Whether paths whose names differ in case or composition lead to one file where they lie, or will lie.

    A hidden folder is made there for a moment. Where none can be made, no output can be written either: False.
    """
    if len(one.parts) != len(other.parts):
        return False
    pairs = list(zip(one.parts, other.parts, strict=True))
    same = next(place for place, (a, b) in enumerate(pairs) if a != b)
    common = Path(*one.parts[:same])
    there = next(folder for folder in (common, *common.parents) if folder.is_dir())
    return all(_is_one_name(there, a, b) for a, b in pairs[same:] if a != b)


def _is_one_name(folder: Path, one: str, other: str) -> bool:
    probe = folder / f".{secrets.token_hex(6)}"  # as `hybrid.leftovers` knows them
    try:
        probe.mkdir(mode=0o700)
        (probe / one).touch()
        return (probe / other).exists()
    except OSError:
        return False
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def _folded(path: Path) -> str:
    """The same for paths that some file system takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(path)).casefold())
