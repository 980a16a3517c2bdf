"""The viewer as a component of the page: markup, style and script of our own, and the calls that it makes.

The script draws nothing by itself but crosshair, scale bar and surfaces: slices are pictures from the server. Calls go through
Gradio's own address for components, behind the same sign-in as all else, and name the session by its token; a token works for
its owner alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from apps.scans import calls as scan_calls
from apps.scans.calls import Answer, answered
from apps.scans.session import Session, Sessions
from apps.serving.workspace import workspace_of

STATIC = Path(__file__).parents[1] / "static"
_SCRIPTS = ("scan_surface.js", "scan_panel.js", "scan_viewer.js")


def scan_viewer(sessions: Sessions) -> gr.HTML:
    """The component. Its value is ``token|revision``; a new one makes it ask for all anew. Its event is ``corrected``."""
    return gr.HTML(
        value="",
        html_template=_text("scan_viewer.html"),
        css_template=_text("scan_viewer.css"),
        js_on_load="\n".join(_text(name) for name in _SCRIPTS),
        server_functions=calls(sessions),
        elem_id="scan-viewer",
        apply_default_css=False,
        padding=False,
    )


def calls(sessions: Sessions) -> list[Callable[..., Answer]]:
    """What the script may call, by the names ``scan_open``, ``scan_view`` and so on."""

    def answer(data: Any, request: gr.Request, work: Callable[[Session, Mapping[str, Any]], Answer]) -> Answer:
        token = data.get("token") if isinstance(data, dict) else None
        asked = data.get("asked") if isinstance(data, dict) else None
        return answered(lambda: work(sessions.get(str(token), workspace_of(request).owner), asked or {}))

    def scan_open(data: Any, request: gr.Request) -> Answer:
        return answer(data, request, lambda session, _: scan_calls.opened(session))

    def scan_view(data: Any, request: gr.Request) -> Answer:
        return answer(data, request, scan_calls.view)

    def scan_stroke(data: Any, request: gr.Request) -> Answer:
        return answer(data, request, scan_calls.stroke)

    def scan_undo(data: Any, request: gr.Request) -> Answer:
        return answer(data, request, lambda session, _: scan_calls.undo(session))

    def scan_goto(data: Any, request: gr.Request) -> Answer:
        return answer(data, request, scan_calls.goto)

    def scan_surface(data: Any, request: gr.Request) -> Answer:
        return answer(data, request, lambda session, _: scan_calls.surface(session))

    return [scan_open, scan_view, scan_stroke, scan_undo, scan_goto, scan_surface]


def _text(name: str) -> str:
    return (STATIC / name).read_text(encoding="utf-8")
