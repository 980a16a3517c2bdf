"""What the tests of the commands and of the app share: a cache of their own, no network, a served app, a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.command import smooth

if TYPE_CHECKING:
    from tests.apps.served import Served

CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
WITHOUT = "the app's tests in a browser need `pip install playwright` and Debian's chromium (`apt-get install chromium`)"
HERE = {"localhost", "127.0.0.1"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("HYBRID_CACHE", str(folder))
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    monkeypatch.delenv("RESTORE_MIRROR", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A small RGB picture, alone in its folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    path = folder / "photo.png"
    Image.fromarray(np.round(smooth() * 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture(scope="session")
def app() -> Iterator[Served]:
    """The app without accounts, as `restore app` serves it, for all tests that leave its settings alone."""
    from tests.apps.served import served

    with served() as it:
        yield it


@pytest.fixture(scope="module")  # as long as it is there, its event loop runs in the tests' own thread
def chromium() -> Iterator[Any]:
    """A browser; tests that need it are skipped, and say so, where it is not installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason=WITHOUT)
    path = next((path for path in CHROMIUM if os.access(path, os.X_OK)), None)
    if path is None:
        pytest.skip(WITHOUT)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox"])
        yield browser
        browser.close()


class Watched:
    """Pages of one user. Afterwards nothing may have been asked of another host, and no script may have failed.

    Attributes:
        context: The user's cookies and downloads.
        asked: Every address that was asked for.
        faults: What scripts complained of.
    """

    def __init__(self, chromium: Any, **options: Any) -> None:
        self.context = chromium.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True, **options)
        self.context.set_default_timeout(120_000)
        self.asked: list[str] = []
        self.faults: list[str] = []

    def open(self, url: str) -> Any:
        """A page, loaded."""
        page = self.context.new_page()
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.goto(url)
        return page

    def close(self) -> None:
        """End the session and look at its log."""
        self.context.close()
        foreign = [
            url for url in self.asked if urlsplit(url).scheme not in ("data", "blob") and urlsplit(url).hostname not in HERE
        ]
        assert not foreign, f"the page asked other hosts: {foreign}"
        assert not self.faults, f"scripts of the page failed: {self.faults}"


@pytest.fixture
def user(chromium: Any) -> Iterator[Watched]:
    """A user with a browser."""
    watched = Watched(chromium)
    yield watched
    watched.close()


@pytest.fixture
def page(user: Watched, app: Served) -> Any:
    """The app in the browser."""
    page = user.open(app.url)
    page.get_by_role("tab").first.wait_for()
    return page
