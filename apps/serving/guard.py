"""What stands before the page: who may ask, for what, and what every answer says to the browser.

Gradio hands every file in its cache to whoever knows its address; it can fetch other hosts for a visitor, and has pages for
developers. Here an address is let through only if the page needs it, and files go to their owner alone (`apps.server`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from apps.serving.accounts import Session, Sessions
from apps.serving.workspace import SCOPE_KEY, Workspaces
from hybrid.memory import format_size

COOKIE = "hybrid-session"
LARGEST_BODY = 64 * 2**20
"""Bytes of a request that is no upload: values of controls, a drawn correction."""
ENVELOPE = 2**20
"""Bytes that the form around an uploaded file may take."""

OPEN = re.compile(r"/(health|login|logout)")
STATIC = re.compile(r"/(assets/.+|static/.+|svelte/.+|theme\.css|favicon\.ico|robots\.txt|gradio_api/theme\.css)")
NEEDED = re.compile(
    r"/|/config/?|/files/.+|/manifest\.json|/gradio_api/(info/?|app_id/?|startup-events|login_check/?|user/?|queue/(join|data|status)"
    r"|(call|run)/.+|cancel|reset/?|heartbeat/.+|upload|upload_progress|file=.+|component_server/?)"
)
"""Addresses below which the page works; everything else of Gradio is closed."""

LOOPBACK = frozenset(("localhost", "127.0.0.1", "::1", "[::1]"))

HEADERS: Mapping[str, str] = {
    # Gradio writes its settings into the page as a script, and makes functions of templates.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' "
    "'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; media-src 'self' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}


@dataclass(frozen=True)
class Door:
    """How the app can be reached.

    Attributes:
        accounts: Whether users sign in.
        loopback: Whether the address of this computer alone is served: then no other name of a host is answered, so
            that a foreign page cannot come in under a name of its own that leads here.
        prefix: Path under which a proxy shows the app, such as ``/imaging``; empty for none.
        https: Whether certificates were given.
    """

    accounts: bool
    loopback: bool
    prefix: str = ""
    https: bool = False


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, *, door: Door, sessions: Sessions, workspaces: Workspaces) -> None:
        self.app, self.door, self.sessions, self.workspaces = app, door, sessions, workspaces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, refuse, or pass on a request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # the page opens no sockets
        path = self._path(scope)
        scope = dict(scope, path=path, raw_path=quote(path, safe="/%=").encode())
        headers, cookie = Headers(scope=scope), Request(scope).cookies.get(COOKIE)
        session, begun = self.sessions.find(cookie), None
        if session is None and path == "/" and not self.door.accounts and scope["method"] in ("GET", "HEAD"):
            begun = self.sessions.begin(None)
            session = self.sessions.find(begun)
        refusal = self._refusal(scope, path, headers, session)
        if session is not None:
            scope[SCOPE_KEY] = self.workspaces.of(session.owner)
            scope["hybrid.session"] = session

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                fields = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    fields.setdefault(name, value)
                if not STATIC.fullmatch(path):
                    fields["Cache-Control"] = "no-store"
                if self.door.https:
                    fields["Strict-Transport-Security"] = "max-age=31536000"
                if begun is not None:
                    fields.append("Set-Cookie", self.cookie(begun, scope))
            await send(message)

        await (refusal or self.app)(scope, receive, answer)

    def cookie(self, token: str, scope: Scope) -> str:
        """The header that gives a browser its session; an empty token takes it away."""
        secure = "; Secure" if scope["scheme"] == "https" else ""
        gone = "" if token else "; Max-Age=0"
        return f"{COOKIE}={token}; Path={self.door.prefix or '/'}; HttpOnly; SameSite=Lax{secure}{gone}"

    def _path(self, scope: Scope) -> str:
        """The path below the prefix, whether or not the proxy has cut that off."""
        path, prefix = scope["path"], self.door.prefix
        return (path[len(prefix) :] or "/") if prefix and (path == prefix or path.startswith(prefix + "/")) else path

    def _refusal(self, scope: Scope, path: str, headers: Headers, session: Session | None) -> Response | None:
        host = headers.get("host", "")
        if self.door.loopback and re.sub(r":\d+$", "", host).lower() not in LOOPBACK and not self.door.prefix:
            return _refuse(HTTPStatus.MISDIRECTED_REQUEST, "This app answers to the name localhost alone.")
        if ".." in path.split("/"):
            return _refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")
        if scope["method"] == "POST" and (too_long := self._too_long(path, headers)):
            return too_long
        if OPEN.fullmatch(path) or STATIC.fullmatch(path):
            return None
        if not NEEDED.fullmatch(path):
            return _refuse(HTTPStatus.NOT_FOUND, "There is nothing here.")
        if session is not None:
            return None
        if path == "/":
            return RedirectResponse(f"{self.door.prefix}/login", status_code=HTTPStatus.SEE_OTHER)
        return _refuse(HTTPStatus.UNAUTHORIZED, "You are not signed in any more. Load the page again.")

    def _too_long(self, path: str, headers: Headers) -> Response | None:
        length = headers.get("content-length", "")
        if not length.isdigit():
            return _refuse(HTTPStatus.LENGTH_REQUIRED, "A request must say how long it is.")
        upload, limit = path == "/gradio_api/upload", self.workspaces.limits.upload
        if int(length) <= (limit + ENVELOPE if upload else LARGEST_BODY):
            return None
        text = f"Too large: {format_size(int(length))} were sent at once, and {format_size(limit)} are allowed."
        return _refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text if upload else "The request is too large.")


def _refuse(status: HTTPStatus, text: str) -> Response:
    return PlainTextResponse(text, status_code=status)
