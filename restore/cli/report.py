"""What the commands for pictures say of results, and of pictures that failed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from hybrid.console import messages, results
from hybrid.errors import HybridError
from restore.restoration.inputs import Job, shown
from restore.restoration.run import Outcome

Failure = tuple[Job, HybridError]


def report(outcome: Outcome, notes: tuple[str, ...], talk: Console, as_json: bool) -> None:
    """Tell of a result."""
    if as_json:
        facts = asdict(outcome) | {"input": str(outcome.input), "output": str(outcome.output), "notes": notes + outcome.notes}
        results().out(json.dumps({key: value for key, value in facts.items() if key != "figures" or value}, ensure_ascii=False))
        return
    width, height = outcome.size
    talk.print(f"{outcome.output}  {width} x {height}, {outcome.seconds:.1f} s")
    for line in (*_several(outcome), *(f"note: {note}" for note in outcome.notes)):
        talk.print(f"  {line}", style="dim")


def report_skipped(job: Job, talk: Console, as_json: bool) -> None:
    """Tell of a result that was there."""
    if as_json:
        results().out(json.dumps({"input": str(job.source), "skipped": str(job.target)}, ensure_ascii=False))
    else:
        talk.print(f"{job.target}  is there already, of the same picture, network and settings: skipped")


def tell(failure: Failure, talk: Console, *, many: bool) -> None:
    """Say at once why one of several pictures failed, quiet or not; of a single one the command's own error tells."""
    job, error = failure
    if many:
        (messages(quiet=False) if talk.quiet else talk).print(f"failed: {shown(job.source)}: {error}", style="red")


def raise_failures(failures: Sequence[Failure], count: int, journal: Path | None = None) -> None:
    """End a command of which pictures failed.

    Args:
        failures: They.
        count: How many pictures there were.
        journal: Where the reasons stand, if anywhere.

    Raises:
        HybridError: The picture's own error if there was only one, else a list of those that failed.
    """
    if failures and count == 1:
        raise failures[0][1]
    if failures:
        names = "; ".join(shown(job.source) for job, _ in failures[:10]) + (" and more" if len(failures) > 10 else "")
        where = f" and in {journal}; add --retry-failed to try these again" if journal is not None else ""
        raise HybridError(f"{len(failures)} of {count} pictures failed: {names}.", hint=f"The reasons stand above{where}.")


def _several(outcome: Outcome) -> Iterator[str]:
    """What is to be said of several outputs."""
    figures = outcome.figures
    if not figures:
        return
    main, criterion = figures["main"], figures.get("criterion")
    by = f", the best by {criterion}" if figures.get("selected") == "best" else ""
    yield f"the mean of {figures['outputs']} outputs" if main == "mean" else f"output {main} of {figures['outputs']}{by}"
    if isinstance(candidates := figures.get("candidates"), dict):
        yield f"candidates: {', '.join(candidates)}"
    if isinstance(scale := figures.get("uncertainty"), dict):
        yield f"{scale['file']}: white is a standard deviation of {scale['white']:.2g} of the range, the mean {scale['mean']:.2g}"
