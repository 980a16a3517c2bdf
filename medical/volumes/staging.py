"""Files that appear together or not at all: written to a hidden folder first, then moved to their places."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from hybrid.errors import OutputError
from hybrid.locks import lock


@contextmanager
def staged(outputs: Sequence[Path], *, overwrite: bool, orphans: Sequence[Path] = ()) -> Iterator[Path]:
    """A hidden folder beside the outputs; when the block ends well, what it holds takes their places, in their order.

    Runs into one folder take turns at that, so that their files are never mixed. If it fails or is interrupted, what was
    there is there again.

    Args:
        outputs: Files of one folder, which exists; the block writes each under its name.
        overwrite: Whether files that are there may be replaced.
        orphans: Files of an earlier run there that must not outlive what they were written with.

    Raises:
        OutputError: The folder does not take the files, or another run has written them meanwhile.
    """
    parent = outputs[0].parent
    with _written_to(parent):
        staging = tempfile.TemporaryDirectory(dir=parent, prefix=".part-")
    with staging as folder:
        yield Path(folder)
        with _written_to(parent), _alone(parent):
            if not overwrite:
                check_absent(outputs)
            _take_places(Path(folder), outputs, orphans)


def check_absent(outputs: Sequence[Path]) -> None:
    """Refuse outputs that are there.

    Raises:
        OutputError: One is.
    """
    there = next((path for path in outputs if os.path.lexists(path)), None)  # a link that leads nowhere is there too
    if there is not None:
        raise OutputError(f"{there} is there already.", hint="Pass --overwrite or choose another --output.")


def _take_places(folder: Path, outputs: Sequence[Path], orphans: Sequence[Path]) -> None:
    """Move files to their places, and back if that fails; where each is tells how far it went, whatever stopped it."""
    earlier = folder / "earlier"
    earlier.mkdir()
    try:
        for path in (*outputs, *orphans):
            if os.path.lexists(path) and not path.is_dir():
                os.replace(path, earlier / path.name)
        for path in outputs:
            os.replace(folder / path.name, path)
    except BaseException:
        for path in outputs:
            if not os.path.lexists(folder / path.name):
                path.unlink(missing_ok=True)
        for path in (*outputs, *orphans):
            if os.path.lexists(earlier / path.name):
                os.replace(earlier / path.name, path)
        raise


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other runs from a folder meanwhile."""
    descriptor = None
    with suppress(OSError):  # Windows opens no folders
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            lock(descriptor)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def _written_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The results could not be written to {folder}: {error.strerror}.", hint="Choose another --output."
        ) from error
