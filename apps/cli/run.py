"""What the command `app` does: keeps the file of accounts, or serves."""

from __future__ import annotations

import sys
import webbrowser
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import typer

from apps.serving.accounts import Accounts, add_user
from hybrid.console import messages
from hybrid.devices import choose_device
from hybrid.errors import InputError, RequestError
from hybrid.memory import parse_size


@dataclass(frozen=True)
class Options:
    """The command line, as given.

    Attributes:
        https: Certificate and key.
        limits: Hours that files are kept, and the size of an upload.
    """

    first: Literal["scan", "picture"]
    host: str
    port: int
    auth: Path | None
    new_user: str | None
    root_path: str
    https: tuple[Path | None, Path | None]
    limits: tuple[float, str]
    device: str
    data: Path | None
    audit: Path | None
    open_browser: bool


def run(options: Options) -> None:
    """Add a user, or serve until a signal comes.

    Raises:
        HybridError: The options make no sense, or the address is taken.
    """
    if options.new_user is not None:
        _add_user(options)
        return
    from apps.server import Settings
    from apps.server import run as serve
    from apps.serving.workspace import Limits

    choose_device(options.device)  # one that is not there is an error now, and not at the first run
    certificate, key = options.https
    for path in filter(None, (certificate, key)):
        if not path.is_file():
            raise InputError(f"There is no file {path}.", hint="Check the path.")
    if options.data is not None and not options.data.is_dir():
        raise InputError(f"There is no folder {options.data}.", hint="Name the folder that holds your data sets.")
    hours, upload = options.limits
    size = parse_size(upload)
    limits = replace(Limits(), keep=hours * 3600, upload=size, stored=max(Limits().stored, 4 * size))
    accounts = Accounts.read(options.auth) if options.auth is not None else None
    settings = Settings(
        first=options.first,
        host=options.host,
        port=options.port,
        accounts=accounts,
        prefix=options.root_path.rstrip("/"),
        certificate=certificate,
        key=key,
        limits=limits,
        device=options.device,
        data=options.data,
        audit=options.audit or (options.auth and options.auth.with_name(f"{options.auth.name}.audit.jsonl")),
    )
    settings.check()
    talk = messages(quiet=False)
    if not settings.loopback and certificate is None:
        talk.print(
            "Passwords and files travel unencrypted: give --certificate and --key, or serve behind an HTTPS proxy.",
            style="yellow",
        )

    def on_start(url: str) -> None:
        talk.print(f"The app is at {url} - Ctrl-C ends it. Research use, not a medical device.")
        if options.open_browser:
            webbrowser.open(url)

    talk.print("Starting ...", style="dim")
    serve(settings, on_start)


def _add_user(options: Options) -> None:
    if options.auth is None or options.new_user is None:
        raise RequestError("--add-user needs the file of accounts.", hint="Give --auth FILE too.")
    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    new = add_user(options.auth, options.new_user, password)
    messages(quiet=False).print(
        f"{options.new_user} {'can' if new else 'has a new password and can'} sign in; see {options.auth}."
    )
