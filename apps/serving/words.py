"""Small pieces of HTML that the tabs share. Whatever comes from a file or a user is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from apps.serving.jobs import Progress
from apps.serving.workspace import Workspace, serve
from hybrid.console import format_duration
from hybrid.errors import HybridError
from hybrid.memory import format_size
from hybrid.records import without_folders


def said(text: str, kind: str = "") -> str:
    """A message; one that failed is read out at once, another when there is time.

    Args:
        text: Plain text.
        kind: ``failed``, ``good`` or nothing.
    """
    role = "alert" if kind == "failed" else "status"
    return f'<div class="said {kind}" role="{role}">{escape(text)}</div>'


def progress_bar(progress: Progress, what: str) -> str:
    """How far a job is, as text and as a bar; or its place in the line for the device."""
    if progress.before:
        return said(f"Waiting for the device: {progress.before} before you.")
    left = f", about {format_duration(progress.seconds_left)} left" if progress.seconds_left is not None else ""
    share = round(100 * progress.share)
    return (
        f'<div class="said" role="status">{escape(what)}{left}<div class="bar" role="progressbar" aria-label="Progress" '
        f'aria-valuemin="0" aria-valuemax="100" aria-valuenow="{share}"><span style="width:{share}%"></span></div></div>'
    )


def complaint(error: HybridError) -> str:
    """An error in words for the page: without the server's folders, and without flags of a command line."""
    hint = error.hint if error.hint and "--" not in error.hint and "`" not in error.hint else None
    return without_folders(f"{error.message} {hint}" if hint else error.message)


def plain_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[int] = ()) -> str:
    """A table; columns of `numbers` stand to the right. Cells are text."""
    right = frozenset(numbers)

    def cells(tag: str, row: Sequence[str]) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        return "".join(
            f"<{tag}{scope}{' class=number' if place in right else ''}>{escape(cell)}</{tag}>" for place, cell in enumerate(row)
        )

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    head = f"<thead><tr>{cells('th', header)}</tr></thead>"
    return f'<div class="scroll"><table class="plain">{head}<tbody>{body}</tbody></table></div>'


def download_links(workspace: Workspace, files: Iterable[tuple[str, str]]) -> str:
    """Links that save files of a workspace: path and title of each, the first the one that matters most."""
    items = []
    for place, (path, title) in enumerate(files):
        size = format_size(Path(path).stat().st_size)
        kind = ' class="main"' if place == 0 else ""
        address = escape(serve(workspace, Path(path)) + "?download", quote=True)
        items.append(
            f'<li><a{kind} href="{address}" download="{escape(Path(path).name, quote=True)}">{escape(title)} '
            f"<small>({escape(Path(path).name)}, {size})</small></a></li>"
        )
    return f'<ul class="links" aria-label="Downloads">{"".join(items)}</ul>' if items else ""
