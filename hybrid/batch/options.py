"""What the commands that take many inputs ask about the batch, as typer reads it. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import typer

from hybrid.errors import RequestError

EngineName = Literal["local", "ray"]

Engine = Annotated[EngineName, typer.Option(help="Where many inputs run: one after another here, or on Ray.")]
Workers = Annotated[int | None, typer.Option(min=1, help="With --engine ray: how many workers. Default: all that find room.")]
Address = Annotated[str | None, typer.Option(help="With --engine ray: of a cluster, such as auto. Default: this machine.")]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads to compute with; with --engine ray, of each worker.")]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Only what failed, or was broken off, the last time, as run.jsonl says.")
]


@dataclass(frozen=True)
class BatchOptions:
    """How many inputs are run.

    Attributes:
        engine: ``local`` runs them in this process in their order, ``ray`` on the workers of a cluster as they come free.
        workers: Most workers of a cluster; None for as many as find room.
        address: Of the cluster; None starts Ray on this machine, unless RAY_ADDRESS names one.
        threads: CPU threads of each worker; None for the cores of this machine.
        retry_failed: Only run what failed, or was broken off, the last time.

    Raises:
        RequestError: Options of Ray without it.
    """

    engine: EngineName = "local"
    workers: int | None = None
    address: str | None = None
    threads: int | None = None
    retry_failed: bool = False

    def __post_init__(self) -> None:
        if self.engine == "local" and (self.workers is not None or self.address is not None):
            raise RequestError("--workers and --address are for Ray.", hint="Add --engine ray, or leave them out.")
