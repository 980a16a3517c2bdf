"""What a folder of inputs holds besides pictures, so that no file is left out without a word."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from hybrid.batch.journal import JOURNAL
from hybrid.console import printable
from restore.restoration.inputs import SUFFIXES

NAMED = 5


def passed_over(inputs: Iterable[str], output: Path | None) -> str | None:
    """One line on the files in folders of inputs that are no pictures by their names; None where there are none.

    Hidden files, records of pictures, journals of batches, unfinished results and what lies in the output folder do not count.
    """
    names = [name for text in inputs if Path(text).is_dir() for name in _others(Path(text), output)]
    if not names:
        return None
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    files = "1 file was" if len(names) == 1 else f"{len(names)} files were"
    return f"{files} passed over (no pictures): {', '.join(names[:NAMED])}{more}."


def _others(folder: Path, output: Path | None) -> list[str]:
    inside = output.resolve() if output is not None else None
    names = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        own = any(part.startswith(".") for part in parts) or any(part.endswith(".part") for part in parts[:-1])
        record = path.suffix.lower() == ".json" and Path(path.stem).suffix.lower() in SUFFIXES
        if own or record or path.name == JOURNAL or path.suffix.lower() in SUFFIXES or not path.is_file():
            continue
        if inside is None or inside == folder.resolve() or inside not in path.resolve().parents:
            names.append(printable(Path(*parts)))
    return names
