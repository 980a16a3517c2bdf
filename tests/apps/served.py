"""The app on a free port of this computer, in a thread; and what a test asks of it without a browser."""

from __future__ import annotations

import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from apps.server import Settings, make_app
from apps.serving.context import AppContext

PATIENCE = 60.0


@dataclass(frozen=True)
class Served:
    """A server that answers.

    Attributes:
        url: Its address, with a slash at the end.
        context: What its tabs share.
        certificate: Of HTTPS.
    """

    url: str
    context: AppContext
    certificate: Path | None = None

    def visitor(self) -> Visitor:
        """A browser session of its own, without a browser."""
        return Visitor(self.url, self.certificate)


class Visitor:
    """What a browser sends, sent by hand."""

    def __init__(self, url: str, certificate: Path | None = None) -> None:
        trusted = ssl.create_default_context(cafile=certificate) if certificate else True
        self.http = httpx.Client(base_url=url, timeout=PATIENCE, trust_env=False, verify=trusted)
        self.session = f"test{id(self)}"

    def enter(self) -> httpx.Response:
        """Open the page, which begins a session where there are no accounts."""
        return self.http.get("/")

    def sign_in(self, name: str, password: str) -> httpx.Response:
        """Fill in the form."""
        return self.http.post("/login", data={"name": name, "password": password})

    def send(self, name: str, data: bytes) -> httpx.Response:
        """Upload a file."""
        return self.http.post("/gradio_api/upload", files={"files": (name, data)})

    def config(self) -> dict[str, Any]:
        """Gradio's description of the page."""
        return self.http.get("/config").json()

    def event(self, button: str) -> dict[str, Any]:
        """The event of a click on the component of that `elem_id`."""
        config = self.config()
        number = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == button)
        return next(each for each in config["dependencies"] if [number, "click"] in [list(t) for t in each["targets"]])

    def join(self, event: dict[str, Any], values: dict[int, Any]) -> str:
        """Queue an event, its inputs as the page has them but for `values`; returns its id."""
        config = self.config()
        held = {each["id"]: each["props"].get("value") for each in config["components"]}
        data = [values.get(number, held.get(number)) for number in event["inputs"]]
        body = {"data": data, "fn_index": event["id"], "session_hash": self.session, "event_data": None, "trigger_id": None}
        answer = self.http.post("/gradio_api/queue/join", json=body)
        answer.raise_for_status()
        return str(answer.json()["event_id"])

    def messages(self) -> Iterator[dict[str, Any]]:
        """What the queue tells this session, until it has told all."""
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    message = json.loads(line[5:])
                    yield message
                    if message["msg"] == "close_stream":
                        return

    def run(self, event: dict[str, Any], values: dict[int, Any]) -> list[dict[str, Any]]:
        """Queue an event and wait for its end."""
        number, told = self.join(event, values), []
        for message in self.messages():
            told.append(message)
            if message["msg"] == "process_completed" and message.get("event_id") == number:
                break
        return told


@contextmanager
def served(settings: Settings | None = None) -> Iterator[Served]:
    """Serve as long as the block lasts."""
    settings = replace(settings or Settings(), port=_free_port())
    before = dict(os.environ)  # the folder for files is the process's, and another app may be waiting
    app = make_app(settings)
    for name in ("RESTORE_OFFLINE", "HF_HUB_OFFLINE"):  # other tests, which set them as they need, may run meanwhile
        _restore(name, before)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            log_level="error",
            timeout_graceful_shutdown=1,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
        )
    )
    thread = threading.Thread(target=server.run, name="app", daemon=True)
    thread.start()
    deadline = time.monotonic() + PATIENCE
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the app did not start"
        thread.join(0.05)
    try:
        yield Served(settings.url, app.state.context, settings.certificate)
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        _restore("GRADIO_TEMP_DIR", before)


def _restore(name: str, before: dict[str, str]) -> None:
    """Set a variable of the environment as it was."""
    os.environ.pop(name, None)
    os.environ |= {name: before[name]} if name in before else {}


def example(name: str = "osprey") -> Path:
    """A picture that ships with the package."""
    from data_specs import FOLDER

    return FOLDER / "mini" / f"{name}.png"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
