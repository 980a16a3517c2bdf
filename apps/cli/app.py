"""The command `app` of both console scripts. Gradio is imported when it runs, not here, so that `--help` answers at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

_HELP = """Serve the app: pictures and scans in a browser, over the same functions as the commands.

Without accounts it serves this computer alone. For others make accounts, one at a time, with --add-user NAME --auth FILE,
then start with --auth FILE, and with HTTPS: --certificate and --key, or a proxy in front and --root-path.

Research use, not a medical device."""


def mount(app: typer.Typer, first: Literal["scan", "picture"]) -> typer.Typer:
    """Add the command to a package's commands, once.

    Args:
        app: The commands of `restore` or `medical`.
        first: The tab that comes first.
    """
    if all(command.name != "app" for command in app.registered_commands):
        app.command("app", help=_HELP)(_command(first))
    return app


def _command(first: Literal["scan", "picture"]) -> Callable[..., None]:
    def serve(
        host: Annotated[str, typer.Option(help="Address to serve. Another than this computer's own needs --auth.")] = "127.0.0.1",
        port: Annotated[int, typer.Option(min=1, max=65535, help="Port.")] = 7860,
        auth: Annotated[Path | None, typer.Option(help="File of accounts, with hashed passwords.")] = None,
        add_user: Annotated[
            str | None, typer.Option(metavar="NAME", help="Add an account to --auth, or give it a new password, and end.")
        ] = None,
        root_path: Annotated[str, typer.Option(help="Path under which a proxy shows the app, such as /imaging.")] = "",
        certificate: Annotated[Path | None, typer.Option(help="Certificate for HTTPS, PEM.")] = None,
        key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
        keep_hours: Annotated[float, typer.Option(min=0.1, max=8760, help="Hours after which files are deleted.")] = 8,
        max_upload: Annotated[str, typer.Option(help="Largest file that may be sent, such as 500MB.")] = "2GB",
        device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
        data: Annotated[Path | None, typer.Option(help="Folder that holds the folders of benchmark data sets.")] = None,
        audit: Annotated[
            Path | None, typer.Option(help="Audit log, JSON lines. Default: beside --auth, NAME.audit.jsonl; none without it.")
        ] = None,
        open_browser: Annotated[bool, typer.Option("--open/--no-browser", help="Open a browser on this computer.")] = False,
    ) -> None:
        from apps.cli.run import Options, run

        limits = keep_hours, max_upload
        run(Options(first, host, port, auth, add_user, root_path, (certificate, key), limits, device, data, audit, open_browser))

    return serve
