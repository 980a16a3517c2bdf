"""The command `medical`."""

from __future__ import annotations

import typer

app = typer.Typer(
    name="medical",
    help="Segment scans with published networks. Research use, not a medical device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main() -> None:
    """Segment scans with published networks. Research use, not a medical device."""


@app.command()
def segment() -> None:
    """Not in this version."""
    from hybrid.errors import RequestError

    raise RequestError("This version has no segmentation networks.", hint="For pictures use the command `restore`.")
