"""The server of the app: Gradio's page inside FastAPI, with sign-in, private files, limits and a health address."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fastapi
from starlette.concurrency import run_in_threadpool
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response

from apps.serving.accounts import Accounts, Sessions
from apps.serving.audit import Audit
from apps.serving.guard import COOKIE, Door, Guard
from apps.serving.jobs import Jobs
from apps.serving.login_page import login_page
from apps.serving.workspace import UPLOADS, Limits, Workspace, Workspaces, new_root, workspace_of
from hybrid.errors import HybridError, InputError, RequestError
from hybrid.memory import format_size
from hybrid.records import DISTRIBUTION

if TYPE_CHECKING:
    from apps.serving.context import AppContext, First

SWEEP = 60.0
"""Seconds between two looks for files that are old enough to be deleted."""
SHOWN = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".html": "text/html; charset=utf-8"}
"""What a browser may show; everything else it saves."""
SANDBOX = "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; sandbox"


@dataclass(frozen=True)
class Settings:
    """How the app is served.

    Attributes:
        first: Which tab comes first.
        host, port: Address.
        accounts: Who may sign in; None for everybody, which is allowed on this computer alone.
        prefix: Path under which a proxy shows the app; empty for none.
        certificate, key: Files for HTTPS.
        limits: What users may send and keep.
        device: Device of the networks.
        data: Folder of benchmark data.
        audit: File of the audit log; None for none.
    """

    first: First = "picture"
    host: str = "127.0.0.1"
    port: int = 7860
    accounts: Accounts | None = None
    prefix: str = ""
    certificate: Path | None = None
    key: Path | None = None
    limits: Limits = field(default_factory=Limits)
    device: str = "auto"
    data: Path | None = None
    audit: Path | None = None

    @property
    def loopback(self) -> bool:
        """Whether only this computer reaches the address."""
        return self.host in ("localhost", "127.0.0.1", "::1")

    @property
    def url(self) -> str:
        """Where a browser on this computer finds the app."""
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "::1": "[::1]"}.get(self.host, self.host)
        return f"http{'s' if self.certificate else ''}://{host}:{self.port}{self.prefix or ''}/"

    def check(self) -> None:
        """Refuse what would open the app to strangers.

        Raises:
            RequestError: It would.
            InputError: The certificate and the key do not serve.
        """
        if self.accounts is None and not (self.loopback and not self.prefix):
            raise RequestError(
                f"Without accounts the app serves this computer alone, not {self.prefix or self.host}.",
                hint="Make accounts with --add-user NAME --auth FILE, then start with --auth FILE.",
            )
        if (self.certificate is None) != (self.key is None):
            raise RequestError("HTTPS needs a certificate and its key.", hint="Give both --certificate and --key.")
        if self.certificate is not None and self.key is not None:
            _check_certificate(self.certificate, self.key)
        if self.prefix and (not self.prefix.startswith("/") or self.prefix.endswith("/")):
            raise RequestError(f"--root-path {self.prefix} is no path.", hint="Give one such as /imaging.")


def make_app(settings: Settings) -> fastapi.FastAPI:
    """The whole app, ready for a server. Its private files lie in a temporary folder, which goes when it ends.

    Raises:
        HybridError: The settings make no sense.
    """
    settings.check()
    root = new_root()
    os.environ["GRADIO_TEMP_DIR"] = str(root)  # Gradio takes files only from there
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = os.environ["RESTORE_OFFLINE"] = "1"  # nothing that a user does leaves this computer
    import gradio as gr

    from apps.app import build
    from apps.serving.context import AppContext
    from apps.style import CSS, HEAD, theme

    workspaces = Workspaces(root, settings.limits, f"{settings.prefix}/files")
    context = AppContext(
        workspaces, settings.limits, settings.device, Jobs(), Audit(settings.audit), settings.data, settings.prefix
    )
    page = build(context, settings.first)
    page.queue(max_size=100, api_open=False, default_concurrency_limit=16)
    sessions = Sessions(idle=max(settings.limits.keep, 3600.0))
    door = Door(settings.accounts is not None, settings.loopback, settings.prefix, settings.certificate is not None)
    app = fastapi.FastAPI(lifespan=_lifespan(context), docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(app, context, sessions, settings.accounts, door)
    gr.mount_gradio_app(
        app,
        page,
        path="/",
        auth_dependency=lambda request: request.scope["hybrid.session"].owner if "hybrid.session" in request.scope else None,
        root_path=settings.prefix or None,
        footer_links=[],
        run_history=False,
        max_file_size=settings.limits.upload,
        show_error=False,  # faults of ours may name folders
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        theme=theme(),
        css=CSS,
        head=HEAD,
    )
    app.add_middleware(Guard, door=door, sessions=sessions, workspaces=workspaces)
    app.state.context = context
    return app


def run(settings: Settings, on_start: Callable[[str], None] | None = None) -> None:
    """Serve until a signal comes.

    Args:
        settings: How.
        on_start: Called with the address once it answers.

    Raises:
        HybridError: The settings make no sense, or the address is taken.
    """
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started and on_start is not None:
                on_start(settings.url)

    settings.check()
    _check_address(settings)
    app = make_app(settings)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
        ssl_certfile=settings.certificate,
        ssl_keyfile=settings.key,
    )
    try:
        Server(config).run()
    finally:
        app.state.context.workspaces.close()


def _check_certificate(certificate: Path, key: Path) -> None:
    """Told before anybody is answered in the clear or not at all."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise InputError(
            f"{certificate.name} and {key.name} are no certificate and its key in PEM form, or the key asks for a password.",
            hint="Check the files: a key begins with a line such as -----BEGIN PRIVATE KEY-----, and has no password.",
        ) from error


def _check_address(settings: Settings) -> None:
    """Told before the page is made, which takes seconds."""
    try:
        with socket.create_server((settings.host, settings.port), family=_family(settings.host)):
            pass
    except OSError as error:
        raise RequestError(
            f"The app cannot be served at {settings.host}:{settings.port}: {error.strerror or error}.",
            hint="Choose another --port or --host.",
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _lifespan(context: AppContext) -> Callable[[fastapi.FastAPI], Any]:
    @asynccontextmanager
    async def lifespan(_: fastapi.FastAPI) -> AsyncIterator[None]:
        async def sweep() -> None:
            while True:
                await asyncio.sleep(SWEEP)
                await run_in_threadpool(context.workspaces.delete_old)

        sweeper = asyncio.create_task(sweep())
        try:
            yield
        finally:
            sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await sweeper
            context.jobs.cancel_all()
            context.workspaces.close()

    return lifespan


def _add_routes(app: fastapi.FastAPI, context: AppContext, sessions: Sessions, accounts: Accounts | None, door: Door) -> None:
    """Addresses of our own; they stand before Gradio's of the same name."""
    guard = Guard(app, door=door, sessions=sessions, workspaces=context.workspaces)
    home = f"{door.prefix}/"

    @app.get("/health")
    def health() -> dict[str, str]:
        from hybrid.records import versions

        return {"status": "ok", "version": versions()[DISTRIBUTION]}

    @app.get("/login")
    def show_login() -> Response:
        return RedirectResponse(home, HTTPStatus.SEE_OTHER) if accounts is None else HTMLResponse(login_page(door.prefix))

    @app.post("/login")
    async def sign_in(request: fastapi.Request) -> Response:
        form = await request.form()
        name, password = str(form.get("name", "")).strip()[:64], str(form.get("password", ""))[:1024]
        if accounts is None:
            return RedirectResponse(home, HTTPStatus.SEE_OTHER)
        try:
            fits = await run_in_threadpool(accounts.verify, name, password)
            message, status = "Name or password is wrong.", HTTPStatus.UNAUTHORIZED
        except RequestError as error:
            fits, message, status = False, str(error), HTTPStatus.TOO_MANY_REQUESTS
        known = name if name in accounts.hashes else ""  # what is typed there by mistake may be a password
        context.audit.note(known, "sign-in", outcome="done" if fits else "refused")
        if not fits:
            return HTMLResponse(login_page(door.prefix, message), status)
        response = RedirectResponse(home, HTTPStatus.SEE_OTHER)
        response.headers.append("Set-Cookie", guard.cookie(sessions.begin(name), request.scope))
        return response

    @app.get("/logout")
    def sign_out(request: fastapi.Request) -> Response:
        sessions.end(request.cookies.get(COOKIE))
        response = RedirectResponse(home, HTTPStatus.SEE_OTHER)
        response.headers.append("Set-Cookie", guard.cookie("", request.scope))
        return response

    @app.post("/gradio_api/upload")
    async def upload(request: fastapi.Request, upload_id: str | None = None) -> Response:
        return await _upload(request, upload_id, context)

    @app.get("/gradio_api/file={path:path}")
    def gradio_file(request: fastapi.Request, path: str) -> Response:
        return _file(workspace_of(request), Path(path), download="download" in request.query_params)

    @app.get("/files/{path:path}")
    def file(request: fastapi.Request, path: str) -> Response:
        workspace = workspace_of(request)
        return _file(workspace, workspace.folder / path, download="download" in request.query_params)


async def _upload(request: fastapi.Request, upload_id: str | None, context: AppContext) -> Response:
    """Take files into the private folder of whoever sends them, in the way and with the answer of Gradio's own route."""
    from gradio.route_utils import MultiPartException, upload_fn
    from gradio.routes import file_upload_statuses

    workspace, limit = workspace_of(request), context.limits.upload
    folder = workspace.folder / UPLOADS / secrets.token_urlsafe(8)
    try:
        await run_in_threadpool(workspace.check_room, int(request.headers["content-length"]))
        folder.mkdir(mode=0o700, parents=True)
        progress = file_upload_statuses if upload_id else None
        paths, *_ = await upload_fn(request, str(folder), limit, upload_id, force_move=True, upload_progress=progress)
    except HybridError as error:
        return PlainTextResponse(str(error), HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)  # what came of it so far
        if not isinstance(error, MultiPartException):
            raise
        large = "maximum allowed size" in error.message
        text = f"Too large: a file may have {format_size(limit)}." if large else "The upload is damaged."
        return PlainTextResponse(text, HTTPStatus.REQUEST_ENTITY_TOO_LARGE if large else HTTPStatus.BAD_REQUEST)
    context.audit.note(workspace.owner, "upload", files=len(paths), bytes=sum(os.path.getsize(path) for path in paths))
    return JSONResponse(paths)


def _file(workspace: Workspace, path: Path, *, download: bool) -> Response:
    """A file to its owner. Whether it is another's or not there at all, the answer is the same."""
    if not workspace.holds(path):
        return PlainTextResponse("There is nothing here.", HTTPStatus.NOT_FOUND)
    shown = SHOWN.get(path.suffix.lower()) if not download else None
    return FileResponse(
        path,
        media_type=shown or "application/octet-stream",
        filename=path.name,
        content_disposition_type="inline" if shown else "attachment",
        headers={"Content-Security-Policy": SANDBOX, "Cache-Control": "no-store"},
    )
