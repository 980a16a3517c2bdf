"""The command `restore bench` for faces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer


def bench_faces(
    sets: list[str], models: list[str], data: Path | None, output: Path | None, device: str, precision: str, quiet: bool
) -> int:
    """Score models on sets of aligned faces, show the tables, write the reports, and return the exit code."""
    from rich.console import Console
    from rich.table import Table

    from data_specs import FaceSpec, load_spec
    from hybrid.console import counted, messages
    from hybrid.devices import choose_device
    from restore.faces.evaluation import face_method, plan_faces, run_face_benchmark
    from restore.faces.evaluation_report import facts, table, write_report

    where, code = str(choose_device(device)), 0
    methods = [face_method(name, device, precision) for name in models]
    plans = [plan_faces(load_spec(name, FaceSpec), methods, data_dir=data, device=where) for name in sets]
    for plan in plans:
        folder = output if output is None or len(plans) == 1 else output / plan.spec.name
        with telling_what_stays(folder), counted(messages(quiet=quiet), plan.spec.title, plan.runs) as on_progress:
            result = run_face_benchmark(plan, output=folder, on_progress=on_progress)
        header, rows = table(result)
        shown = Table(*header, title=plan.spec.title)
        for cells in rows:
            shown.add_row(*cells)
        Console(soft_wrap=False, width=None if Console().is_terminal else 160).print(shown)
        for fact in facts(result):
            typer.echo(f"- {fact}")
        for path in write_report(result, folder) if folder is not None else ():
            typer.echo(str(path))
        code = max(code, result.exit_code)
    return code


@contextmanager
def telling_what_stays(output: Path | None) -> Iterator[None]:
    """Around a benchmark: one that is broken off by a signal says that the result pictures made so far are kept."""
    try:
        yield
    except Exception:
        raise
    except BaseException as stop:
        if output is not None and any(output.rglob("*.png")):
            line = f"The result pictures that were finished stay in {output}; tables are written at the end, and not now."
            typer.echo(line, err=True)
            stop.add_note(line)
        raise
