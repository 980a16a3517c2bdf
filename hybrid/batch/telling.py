"""What the commands tell of a batch, whatever it is made of: what failed, what was there already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from rich.console import Console

from hybrid.console import messages, printable, results
from hybrid.errors import HybridError


class _Job(Protocol):
    @property
    def source(self) -> Path: ...


Failure = tuple[_Job, HybridError]
"""An input that failed, and why."""


def tell_failure(failure: Failure, talk: Console, *, several: bool, as_json: bool = False) -> None:
    """Say at once why one of several inputs failed, quiet or not; of a single one the command's own error tells."""
    job, error = failure
    if as_json:
        facts = {"input": str(job.source), "error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        results().out(json.dumps(facts, ensure_ascii=False))
    if several:
        (messages(quiet=False) if talk.quiet else talk).print(f"failed: {printable(job.source)}: {error}", style="red")


def tell_skipped(source: Path, target: Path, what: str, talk: Console, as_json: bool) -> None:
    """Tell of a result that was there; `what` is the kind of input, ``picture`` or ``scan``."""
    if as_json:
        results().out(json.dumps({"input": str(source), "skipped": str(target)}, ensure_ascii=False))
    else:
        talk.print(f"{target}  is there already, of the same {what}, network and settings: skipped")


def raise_failures(failures: Sequence[Failure], count: int, what: str, journal: Path | None = None) -> None:
    """End a command of which inputs failed.

    Args:
        failures: They.
        count: How many inputs there were.
        what: The kind of input, ``picture`` or ``scan``.
        journal: Where the reasons stand, if anywhere.

    Raises:
        HybridError: The input's own error if there was one only, else a list of those that failed.
    """
    if failures and count == 1:
        raise failures[0][1]
    if failures:
        names = "; ".join(printable(job.source) for job, _ in failures[:10]) + (" and more" if len(failures) > 10 else "")
        where = f" and in {journal}; add --retry-failed to try these again" if journal is not None else ""
        raise HybridError(f"{len(failures)} of {count} {what}s failed: {names}.", hint=f"The reasons stand above{where}.")
