"""A run as a tab shows it: words for its status line, then its result; cancelled from a button, and audited."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TypeVar

from apps.serving.context import AppContext
from apps.serving.jobs import Cancelled, Done, Progress, Report, watch_job
from apps.serving.words import complaint, progress_bar, said
from apps.serving.workspace import Workspace
from hybrid.errors import HybridError

T = TypeVar("T")


async def run_told(
    context: AppContext,
    workspace: Workspace,
    action: str,
    work: Callable[[Report], T],
    what: str,
    facts: Mapping[str, str | int],
) -> AsyncIterator[str | Done[T]]:
    """Run work on the device.

    Args:
        context: The app.
        workspace: Of whoever asks.
        action: Word for the audit log.
        work: As of `apps.serving.jobs.watch_job`.
        what: Words for the status line, such as ``Restoring``.
        facts: For the audit log: model, sizes; no names of files.

    Yields:
        HTML for the status line, and at the end the result, unless the run fails or is cancelled: then the last HTML says so.
    """
    cancel, clock, outcome = context.jobs.start(workspace), time.monotonic(), "failed"
    try:
        async for step in watch_job(work, cancel):
            if isinstance(step, Progress):
                yield progress_bar(step, what)
            else:
                outcome = "done"
                yield step
    except Cancelled:
        outcome = "cancelled"
        yield said("Cancelled.")
    except HybridError as error:
        yield said(complaint(error), "failed")
    except (GeneratorExit, asyncio.CancelledError):
        outcome = outcome if outcome == "done" else "cancelled"
        raise
    finally:
        context.jobs.end(workspace, cancel)
        context.audit.note(workspace.owner, action, **facts, seconds=round(time.monotonic() - clock, 1), outcome=outcome)
