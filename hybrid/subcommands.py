"""A command that has a command of its own: `restore train RECIPE` beside `restore train compare`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand


def with_subcommand(name: str, callback: Callable[..., Any]) -> type[TyperCommand]:
    """What to give as `cls` to `app.command` so that its first argument `name` leads to another command.

    Args:
        name: The word that leads there; it can then be no value of the first argument.
        callback: A function as for `app.command`.
    """

    class Command(TyperCommand):
        def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
            if args[:1] != [name]:
                return super().make_context(info_name, args, parent, **extra)
            inner = typer.Typer(add_completion=False)
            inner.command(name)(callback)
            return typer.main.get_command(inner).make_context(f"{info_name} {name}", args[1:], parent, **extra)

    return Command
