"""Faults of the program in the app: told by place and kind, since what they say may quote a header, and so a patient's name.

Gradio prints what a handler raises, with all its words, into the log of whoever runs the server.
"""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, contextmanager
from functools import wraps
from typing import Any

import gradio as gr

from apps.crash import SHOW, without_words

log = logging.getLogger(__name__)
SORRY = "A fault of this program. What it was is in the log of the server; try again, or with another file."


def contain(page: gr.Blocks) -> None:
    """Keep what unforeseen errors say out of the log, for every handler of a page; `HYBRID_SHOW_ERRORS=1` lets it through."""
    for event in page.fns.values():
        if event.fn is not None:
            event.fn = contained(event.fn)


def contained(handler: Callable[..., Any]) -> Callable[..., Any]:
    """A handler of the same kind and parameters, whose unforeseen errors are told by their place."""
    if inspect.isasyncgenfunction(handler):

        @wraps(handler)
        async def steps(*values: Any, **named: Any) -> AsyncIterator[Any]:
            with _faults():
                async with aclosing(handler(*values, **named)) as running:
                    async for step in running:
                        yield step

        return steps
    if inspect.iscoroutinefunction(handler):

        @wraps(handler)
        async def later(*values: Any, **named: Any) -> Any:
            with _faults():
                return await handler(*values, **named)

        return later

    @wraps(handler)
    def now(*values: Any, **named: Any) -> Any:
        with _faults():
            return handler(*values, **named)

    return now


@contextmanager
def _faults() -> Iterator[None]:
    try:
        yield
    except gr.Error:
        raise
    except Exception as error:
        if os.environ.get(SHOW):
            raise
        log.error("%s", without_words(error))
        raise gr.Error(SORRY, print_exception=False) from None
