"""The command lines of the documents: what stands in their code blocks, found, cut into words and parsed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from apps.cli.app import mount
from medical.cli.app import app as medical
from restore.cli.app import app as restore

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"^(?: {4}|\t)+(.*)$", re.MULTILINE)
_BEFORE = ("do", "then", "nohup", "time")
"""Words of the shell after which a command begins."""


def lines(text: str) -> Iterator[str]:
    """The lines of Markdown's code blocks, without those of another language; a backslash at the end joins the next."""
    fenced = [block for language, block in fences(text) if language in ("", "sh", "bash", "console")]
    for block in (*fenced, "\n".join(_INDENTED.findall(_FENCED.sub("", text)))):
        yield from re.sub(r"\\\n\s*", " ", block).splitlines()


def fences(text: str) -> list[tuple[str, str]]:
    """Language and text of each fenced block."""
    return _FENCED.findall(text)


def words(line: str) -> list[str]:
    """A line as a shell cuts it; none where it is no line of shell."""
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # a quotation mark of prose or of another language
        return []


def commands(*programs: str) -> dict[str, str]:
    """Each documented command of these programs, its words joined anew, with the first document that has it.

    Of `torchrun ... restore train ...` and of a loop's body the command of ours counts.
    """
    found: dict[str, str] = {}
    for document in DOCUMENTS:
        for line in lines(document.read_text(encoding="utf-8")):
            given = words(line)
            while given and (given[0] in _BEFORE or re.fullmatch(r"[A-Z_]+=\S*", given[0])):
                given = given[1:]
            if given[:1] == ["torchrun"]:
                given = given[next((at for at, word in enumerate(given) if word in programs), len(given)) :]
            if given and given[0] in programs:
                found.setdefault(shlex.join(given), document.name)
    return found


def parse(command: str) -> dict[str, Any]:
    """Parse a command as running it would, without running it; its parameters.

    Raises:
        Exception: There is no such command, or it does not take these arguments: what the parser says.
    """
    name, *rest = shlex.split(command)
    app = {"restore": (restore, "picture"), "medical": (medical, "scan")}[name]
    context = typer.main.get_command(mount(*app)).make_context(name, rest)  # type: ignore[arg-type]
    while hasattr(context.command, "resolve_command"):  # a group: the first word that it left names the next
        left = [*context._protected_args, *context.args]
        name, inner, rest = context.command.resolve_command(context, left)
        context = inner.make_context(name, rest, parent=context)
    return dict(context.params)
