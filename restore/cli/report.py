"""What the commands for pictures say of results, and of pictures that failed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict

from rich.console import Console

from hybrid.console import results
from restore.restoration.run import Outcome


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
