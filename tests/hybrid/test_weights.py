"""The cache of weights, and downloads from a server that misbehaves."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from hybrid.errors import RequestError, ResourceError, WeightsError
from hybrid.weights.catalogue import Catalogue, Entry
from hybrid.weights.downloads import ATTEMPTS, Timeouts
from hybrid.weights.find import Store, resolve

BODY = safetensors.torch.save({"a": torch.randn(50_000, generator=torch.Generator().manual_seed(0))})
OTHER = safetensors.torch.save({"a": torch.zeros(50_000)})
SHA256 = hashlib.sha256(BODY).hexdigest()
HALF = 1 << 16  # bytes before a break; whole network chunks, since a chunk cut short is not kept
Play = Callable[[BaseHTTPRequestHandler], None]


@dataclass
class Server:
    """A server on this machine whose every path plays a role of its own; `requests` keeps what was asked."""

    address: str
    plays: dict[str, Play] = field(default_factory=dict)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, play: Play, path: str = "/w.safetensors") -> str:
        self.plays[path] = play
        return self.address + path


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server() -> Iterator[Server]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            state.requests.append((self.path, self.headers["Range"]))
            state.plays.get(self.path, status(404))(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state = Server(f"http://127.0.0.1:{http.server_address[1]}")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield state
        state.closing.set()
        http.shutdown()
        thread.join()


def head(request: BaseHTTPRequestHandler, code: int, length: int, **headers: str) -> None:
    request.send_response(code)
    for name, value in ({"Content_Length": str(length)} | headers).items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()


def whole(body: bytes = BODY, **headers: str) -> Play:
    def play(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, len(body), **headers)
        request.wfile.write(body)

    return play


def status(code: int, text: str = "", kind: str = "text/html; charset=utf-8") -> Play:
    def play(request: BaseHTTPRequestHandler) -> None:
        head(request, code, len(text.encode()), Content_Type=kind)
        request.wfile.write(text.encode())

    return play


def dropping(*, resumable: bool, body: bytes = BODY, tag: Callable[[], str] = lambda: '"v1"') -> Play:
    """Sends half of what is asked for and hangs up; when resumable, a later request gets the rest."""

    def play(request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers["Range"]
        if resumable and wanted and request.headers["If-Range"] == tag():
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            head(request, 206, len(body) - start, Content_Range=f"bytes {start}-{len(body) - 1}/{len(body)}", ETag=tag())
            request.wfile.write(body[start:])
            return
        head(request, 200, len(body), **({"ETag": tag()} if resumable else {}))
        request.wfile.write(body[:HALF])
        request.wfile.flush()
        request.close_connection = True

    return play


def stalling(server: Server) -> Play:
    def play(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, len(BODY))
        request.wfile.write(BODY[:HALF])
        request.wfile.flush()
        server.closing.wait(60)
        request.close_connection = True

    return play


def make_entry(*urls: str, sha256: str | None = None, page: str | None = "https://example.org/page", **changes: Any) -> Entry:
    file = {"name": "w.safetensors", "urls": urls, "sha256": sha256, "page": page}
    facts: dict[str, Any] = {
        "name": "net",
        "family": "hat",
        "title": "Net",
        "summary": "A net.",
        "code_licence": "MIT",
        "weights_licence": "unknown",
        "training_data": "unknown",
        "files": {4: file},
    }
    return Entry.model_validate(facts | changes)


def make_store(tmp_path: Path, **changes: Any) -> Store:
    return Store(tmp_path / "cache", **({"timeouts": Timeouts(20.0, 20.0)} | changes))


def cached(tmp_path: Path) -> set[str]:
    folder = tmp_path / "cache"
    return set(os.listdir(folder)) - {".lock"} if folder.exists() else set()


# Downloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sha256", [None, SHA256])
def test_download_lands_in_the_cache_and_is_not_repeated(tmp_path: Path, server: Server, sha256: str | None) -> None:
    entry, store, seen = make_entry(server.url(whole()), sha256=sha256), make_store(tmp_path), []
    assert store.find(entry, 4) is None
    path = store.fetch(entry, 4, lambda done, total: seen.append((done, total)))
    assert path.read_bytes() == BODY and seen[-1] == (len(BODY), len(BODY)) and seen == sorted(seen)
    assert cached(tmp_path) == {"w.safetensors", "w.safetensors.sha256"}
    assert (path.parent / "w.safetensors.sha256").read_text() == f"{SHA256}  w.safetensors\n"
    assert store.find(entry, 4) == store.fetch(entry, 4) == path
    assert len(server.requests) == 1


def test_dropped_connection_is_resumed_in_place(tmp_path: Path, server: Server) -> None:
    entry = make_entry(server.url(dropping(resumable=True)), sha256=SHA256)
    assert make_store(tmp_path).fetch(entry, 4).read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, f"bytes={HALF}-"]


def test_a_later_run_resumes_what_an_earlier_one_left(tmp_path: Path, server: Server) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    url = server.url(whole(ETag='"v1"'))
    entry, store = make_entry(url, sha256=SHA256), make_store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.fetch(entry, 4, interrupted)
    assert store.find(entry, 4) is None
    begun = (tmp_path / "cache" / "w.safetensors.part").stat().st_size
    assert 0 < begun < len(BODY)
    server.url(dropping(resumable=True))
    assert store.fetch(entry, 4).read_bytes() == BODY
    assert server.requests[-1] == ("/w.safetensors", f"bytes={begun}-")
    assert cached(tmp_path) == {"w.safetensors", "w.safetensors.sha256"}


def test_what_cannot_be_resumed_is_not_kept(tmp_path: Path, server: Server) -> None:
    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_store(tmp_path).fetch(make_entry(server.url(whole())), 4, interrupted)
    assert cached(tmp_path) == set()


def test_a_file_that_changed_meanwhile_is_fetched_anew(tmp_path: Path, server: Server) -> None:
    tags = iter(['"v1"', '"v2"', '"v2"', '"v2"', '"v2"', '"v2"'])
    url = server.url(dropping(resumable=True, tag=lambda: next(tags)))
    make_store(tmp_path).fetch(make_entry(url, sha256=SHA256), 4)
    assert [asked for _, asked in server.requests] == [None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_a_weak_tag_is_no_reason_to_resume(tmp_path: Path, server: Server) -> None:
    url = server.url(dropping(resumable=True, tag=lambda: 'W/"v1"'))
    with pytest.raises(WeightsError, match="dropped the connection"):
        make_store(tmp_path).fetch(make_entry(url), 4)
    assert [asked for _, asked in server.requests] == [None] * ATTEMPTS


def test_a_range_that_was_not_asked_for_is_not_joined(tmp_path: Path, server: Server) -> None:
    def play(request: BaseHTTPRequestHandler) -> None:
        if request.headers["Range"]:
            head(request, 206, 10, Content_Range=f"bytes 0-9/{len(BODY)}")
            request.wfile.write(BODY[:10])
        else:
            (dropping(resumable=True) if len(server.requests) == 1 else whole())(request)

    assert make_store(tmp_path).fetch(make_entry(server.url(play), sha256=SHA256), 4).read_bytes() == BODY
    assert [asked for _, asked in server.requests] == [None, f"bytes={HALF}-", None]


QUOTA = "<html><title>Google Drive - Quota exceeded</title>Too many users have viewed this file recently.</html>"


@pytest.mark.parametrize(
    ("play", "message"),
    [
        (dropping(resumable=False), f"dropped the connection after {HALF:,} of {len(BODY):,} bytes"),
        (status(404), r"does not have the file \(HTTP 404"),
        (status(403, QUOTA), r"refuses the file \(HTTP 403: its download quota is used up\)"),
        (status(403, "no", "text/plain"), r"refuses the file \(HTTP 403\)"),
        (status(401, "<html>Please sign in</html>"), r"asks for a login"),
        (status(503, "busy", "text/plain"), r"is too busy \(HTTP 503\)"),
        (status(200, QUOTA), r"sent a web page instead of the file \(its download quota is used up\)"),
        (status(200, "<html><title>Sign in</title></html>"), r"a web page instead of the file \(it asks for a login\)"),
        (status(200, "<html><title>Our\n move</title></html>"), r'a web page instead of the file \(titled "Our move"\)'),
        (status(200, "<!doctype html><p>hello", "application/octet-stream"), "sent a wrong file: w.safetensors is a web page"),
        (status(200, "gone", "application/octet-stream"), "sent a wrong file: w.safetensors is no checkpoint"),
        (status(200, "", "application/octet-stream"), "sent a wrong file: w.safetensors is empty"),
        (whole(BODY[:HALF]), "sent a wrong file: w.safetensors is a damaged safetensors file"),
    ],
)
def test_each_failure_is_named_with_the_next_step(tmp_path: Path, server: Server, play: Play, message: str) -> None:
    entry = make_entry(server.url(play))
    with pytest.raises(WeightsError, match=message) as caught:
        make_store(tmp_path).fetch(entry, 4)
    assert "\n" not in str(caught.value) and ".part" not in str(caught.value)
    assert caught.value.message.startswith("w.safetensors could not be downloaded: 127.0.0.1")
    assert caught.value.hint == (
        "Open https://example.org/page in a browser and save w.safetensors, then type: restore models import w.safetensors"
    )
    assert cached(tmp_path) == set()


def test_a_silent_server_is_given_up(tmp_path: Path, server: Server) -> None:
    # On a machine under load even the first bytes may take longer than so short a wait.
    store = make_store(tmp_path, timeouts=Timeouts(20.0, 0.4))
    with pytest.raises(WeightsError, match=r"(sent nothing for 0\.4 s after 65,536 of 200,072|did not answer within 0\.4 s)"):
        store.fetch(make_entry(server.url(stalling(server))), 4)
    assert 1 <= len(server.requests) <= ATTEMPTS


@pytest.mark.skipif(os.name == "nt", reason="the cache has no lock on Windows")
def test_two_who_want_the_same_file_download_it_once(tmp_path: Path, server: Server) -> None:
    second = threading.Event()

    def play(request: BaseHTTPRequestHandler) -> None:
        if len(server.requests) > 1:
            second.set()
        second.wait(0.3)  # time for the other one to come in, if nothing holds it back
        whole()(request)

    entry, store, paths = make_entry(server.url(play)), make_store(tmp_path), []
    threads = [threading.Thread(target=lambda: paths.append(store.fetch(entry, 4))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1 and paths == [store.path(entry.files[4])] * 2 and paths[0].read_bytes() == BODY


def test_no_network_is_named(tmp_path: Path) -> None:
    entry = make_entry("http://127.0.0.1:9/w.safetensors")
    with pytest.raises(WeightsError, match=r"127\.0\.0\.1:9 cannot be reached from here"):
        make_store(tmp_path).fetch(entry, 4)


def test_a_wrong_file_is_not_kept(tmp_path: Path, server: Server) -> None:
    entry = make_entry(server.url(whole(OTHER, ETag='"v1"')), sha256=SHA256)
    with pytest.raises(WeightsError, match=rf"sent a wrong file: w\.safetensors is not the published.*expected {SHA256[:12]}"):
        make_store(tmp_path).fetch(entry, 4)
    assert cached(tmp_path) == set()


def test_the_next_address_is_tried(tmp_path: Path, server: Server) -> None:
    urls = [server.url(status(404), "/1"), server.url(whole(OTHER), "/2"), server.url(dropping(resumable=False), "/3")]
    entry = make_entry(*urls, server.url(whole(), "/4"), sha256=SHA256)
    assert make_store(tmp_path).fetch(entry, 4).read_bytes() == BODY
    assert list(dict.fromkeys(path for path, _ in server.requests)) == ["/1", "/2", "/3", "/4"]


def test_the_mirror_comes_first_and_offline_uses_none(tmp_path: Path, server: Server) -> None:
    server.url(whole(), "/inside/w.safetensors")
    entry = make_entry(server.url(status(404), "/outside"))
    with pytest.raises(WeightsError, match="RESTORE_OFFLINE forbids the download"):
        make_store(tmp_path, mirror=server.address + "/inside", offline=True).fetch(entry, 4)
    assert server.requests == []
    make_store(tmp_path, mirror=server.address + "/inside/").fetch(entry, 4)
    assert server.requests == [("/inside/w.safetensors", None)]
    assert make_store(tmp_path, offline=True).fetch(entry, 4).read_bytes() == BODY


def test_no_direct_address_leads_to_the_page(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no direct address\. Open https://example\.org/page .* models import"):
        make_store(tmp_path).fetch(make_entry(), 4)


def test_a_full_disk_is_said_before_the_transfer(tmp_path: Path, server: Server) -> None:
    def play(request: BaseHTTPRequestHandler) -> None:
        head(request, 200, 10**17)
        request.close_connection = True

    with pytest.raises(ResourceError, match=r"The disk has .* bytes free; w\.safetensors\.part needs 100,000,"):
        make_store(tmp_path).fetch(make_entry(server.url(play)), 4)


def test_a_cache_that_is_no_folder(tmp_path: Path, server: Server) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(ResourceError, match=r"cannot be used.*Set HYBRID_CACHE"):
        make_store(tmp_path).fetch(make_entry(server.url(whole())), 4)


# The cache ---------------------------------------------------------------------------------------------------------


def test_the_first_hash_holds_ever_after(tmp_path: Path, server: Server) -> None:
    entry, store = make_entry(server.url(whole())), make_store(tmp_path)
    path = store.fetch(entry, 4)
    path.write_bytes(OTHER)
    with pytest.raises(WeightsError, match=r"not what it was when it came.*Delete .*w\.safetensors.*models pull net --scale 4"):
        store.find(entry, 4)
    path.unlink()
    server.url(whole(OTHER))
    with pytest.raises(WeightsError, match="is not the first recorded"):
        store.fetch(entry, 4)
    assert cached(tmp_path) == {"w.safetensors.sha256"}


def test_a_known_hash_is_held_against_the_cache(tmp_path: Path) -> None:
    entry, store = make_entry(sha256=SHA256), make_store(tmp_path)
    store.folder.mkdir()
    store.path(entry.files[4]).write_bytes(OTHER)
    with pytest.raises(WeightsError, match="is not the published one"):
        store.find(entry, 4)


def test_a_file_put_there_by_hand_is_found_and_recorded(tmp_path: Path) -> None:
    entry, store = make_entry(), make_store(tmp_path)
    store.folder.mkdir()
    store.path(entry.files[4]).write_bytes(BODY)
    assert store.find(entry, 4) == store.path(entry.files[4])
    assert (store.folder / "w.safetensors.sha256").read_text().startswith(SHA256)


def test_import_checks_and_copies(tmp_path: Path) -> None:
    entry, store = make_entry(sha256=SHA256), make_store(tmp_path)
    (tmp_path / "good").write_bytes(BODY)
    (tmp_path / "bad").write_bytes(OTHER)
    (tmp_path / "page").write_text("<html>")
    with pytest.raises(WeightsError, match=r"bad is not the published w\.safetensors"):
        store.import_file(tmp_path / "bad", entry, 4)
    with pytest.raises(WeightsError, match="page is a web page"):
        store.import_file(tmp_path / "page", make_entry(), 4)
    with pytest.raises(WeightsError, match="There is no file"):
        store.import_file(tmp_path / "absent", entry, 4)
    assert cached(tmp_path) == set()
    assert store.import_file(tmp_path / "good", entry, 4).read_bytes() == BODY
    assert store.find(entry, 4) is not None and (tmp_path / "good").exists()
    assert cached(tmp_path) == {"w.safetensors", "w.safetensors.sha256"}


def test_store_follows_the_environment(tmp_path: Path) -> None:
    store = Store.from_environment({"HYBRID_CACHE": str(tmp_path), "RESTORE_OFFLINE": "1", "RESTORE_MIRROR": "http://inside/w"})
    assert (store.folder, store.offline, store.mirror) == (tmp_path, True, "http://inside/w")
    plain = Store.from_environment({"RESTORE_OFFLINE": "0"})
    assert not plain.offline and plain.mirror is None and "hybrid-imaging" in str(plain.folder)
    for bad in ({"RESTORE_OFFLINE": "maybe"}, {"RESTORE_MIRROR": "inside/w"}):
        with pytest.raises(RequestError, match=next(iter(bad))):
            Store.from_environment(bad)


def test_resolve_downloads_if_allowed(tmp_path: Path, server: Server) -> None:
    catalogue, store = Catalogue({"net": make_entry(server.url(whole()))}, tmp_path), make_store(tmp_path)
    with pytest.raises(WeightsError, match="not in the cache"):
        resolve("net", 4, catalogue, store, allow_download=False)
    found = resolve("net", None, catalogue, store, allow_download=True)
    assert (found.origin, found.scale) == ("download", 4) and found.path.read_bytes() == BODY
    assert resolve("net", 4, catalogue, store, allow_download=True).origin == "cache"
    assert len(server.requests) == 1
