"""What the commands that work on many scans say of those that failed, and of time."""

from __future__ import annotations

import json
from collections.abc import Sequence

from rich.console import Console

from hybrid.console import messages, results
from hybrid.errors import HybridError
from medical.inputs import Job

Failure = tuple[Job, HybridError]


def tell_failure(failure: Failure, talk: Console, several: bool, as_json: bool) -> None:
    """Say at once why one of several scans failed, quiet or not; of a single one the command's own error tells."""
    job, error = failure
    if as_json:
        facts = {"input": str(job.source), "error": error.message, "hint": error.hint, "exit_code": error.exit_code}
        results().out(json.dumps(facts, ensure_ascii=False))
    if several:
        (messages(quiet=False) if talk.quiet else talk).print(f"failed: {job.source}: {error}", style="red")


def raise_failures(failures: Sequence[Failure], count: int) -> None:
    """End a command of which scans failed.

    Raises:
        HybridError: The scan's own error if there was one scan only, else a list of those that failed.
    """
    if failures and count == 1:
        raise failures[0][1]
    if failures:
        names = "; ".join(str(job.source) for job, _ in failures[:10]) + (" and more" if len(failures) > 10 else "")
        raise HybridError(f"{len(failures)} of {count} scans failed: {names}.", hint="The reasons stand above.")


def format_duration(seconds: float) -> str:
    """A time for people.

    >>> format_duration(93), format_duration(1200), format_duration(30000)
    ('93 s', '20 min', '8.3 h')
    """
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
