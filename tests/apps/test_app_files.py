"""Files of the app: closed to others, bounded, deleted; and what comes from outside as hostile as it can be."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from apps.server import Settings
from apps.serving.workspace import Limits, Workspace, Workspaces, new_root, serve
from hybrid.errors import InputError, ResourceError
from tests.apps.served import Served, Visitor, example, served

PNG = b"\x89PNG\r\n\x1a\n"


def visitors(app: Served) -> tuple[Visitor, Visitor]:
    first, second = app.visitor(), app.visitor()
    for visitor in (first, second):
        assert visitor.enter().status_code == 200
    return first, second


def test_a_second_user_cannot_fetch_the_first_ones_upload(app: Served) -> None:
    first, second = visitors(app)
    (path,) = first.send("holiday.png", example().read_bytes()).json()
    assert first.http.get(f"/gradio_api/file={path}").content == example().read_bytes()
    for visitor in (second, app.visitor()):
        assert visitor.http.get(f"/gradio_api/file={path}").status_code in (401, 404)


def test_a_second_user_cannot_fetch_the_first_ones_result(app: Served) -> None:
    first, second = visitors(app)
    (path,) = first.send("a.png", PNG).json()
    workspace = next(w for w in app.context.workspaces._of.values() if w.holds(Path(path)))
    result = workspace.new_folder("result") / "mask.png"
    result.write_bytes(PNG)
    address = serve(workspace, result)
    assert first.http.get(address).content == PNG
    answer = second.http.get(address)
    assert answer.status_code == 404 and PNG not in answer.content
    # Not through the name of the folder either, nor out of one's own.
    for way in (f"/files/../{workspace.folder.name}/{result.parent.name}/mask.png", f"/files/%2e%2e/{workspace.folder.name}/x"):
        assert second.http.get(way).status_code == 404


def test_a_second_user_cannot_work_on_the_first_ones_file(app: Served) -> None:
    first, second = visitors(app)
    (path,) = first.send("a.png", example().read_bytes()).json()
    event = second.event("picture-run")
    given = {event["inputs"][0]: [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
    told = "".join(str(message) for message in second.run(event, given))
    assert "not here any more" in told and "download" not in told


@pytest.mark.parametrize(
    "way",
    [
        "/gradio_api/file=/etc/hosts",
        "/gradio_api/file=../../../etc/hosts",
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/proxy=https://example.hf.space/x",
        "/files/..%2f..%2fetc%2fhosts",
        "/files//etc/hosts",
        "/gradio_api/runs",
        "/monitoring",
        "/gradio_api/vibe-code/",
        "/docs",
        "/openapi.json",
    ],
)
def test_other_ways_lead_nowhere(app: Served, way: str) -> None:
    visitor, _ = visitors(app)
    answer = visitor.http.get(way)
    assert answer.status_code == 404 and b"localhost" not in answer.content


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    workspace = Workspaces(tmp_path / "root").of("ann")
    secret = tmp_path / "secret"
    secret.write_text("x")
    link = workspace.new_folder("a") / "link.png"
    link.symlink_to(secret)
    assert not workspace.holds(link)
    with pytest.raises(InputError, match="not here"):
        workspace.own(link)


def test_a_name_with_folders_in_it_stays_inside(app: Served) -> None:
    visitor, _ = visitors(app)
    for name in ("../../escape.png", "..\\..\\escape.png", "/etc/escape.png", "a\0b.png"):
        answer = visitor.send(name, PNG)
        if answer.status_code == 200:
            (path,) = answer.json()
            assert Path(path).resolve().is_relative_to(app.context.workspaces.root)
    assert not list(app.context.workspaces.root.parent.glob("escape*"))


def test_what_is_too_large_is_refused_and_the_app_lives_on() -> None:
    limits = Limits(upload=2**20, stored=5 * 2**19)
    with served(Settings(limits=limits)) as app:
        visitor, other = visitors(app)
        answer = visitor.send("large.png", bytes(3 * 2**20))
        assert answer.status_code == 413 and "Too large" in answer.text and "1.0 MB" in answer.text
        answer = visitor.send("large.png", bytes(2**20 + 1000))  # within the form's own margin, and yet too large
        assert answer.status_code == 413 and "Too large" in answer.text
        for number in range(2):
            assert visitor.send(f"{number}.png", bytes([number]) * (2**20 - 1000)).status_code == 200
        assert "Delete my files" in visitor.send("3.png", bytes([3]) * (2**20 - 1000)).text
        assert other.send("a.png", PNG).status_code == 200


def test_a_request_without_length_is_refused(app: Served) -> None:
    visitor, _ = visitors(app)
    assert visitor.http.post("/gradio_api/upload", content=iter([b"x"])).status_code == 411


def test_another_name_of_the_host_is_not_answered(app: Served) -> None:
    """A foreign page whose name leads to this computer (DNS rebinding) gets nothing."""
    visitor = app.visitor()
    assert visitor.http.get("/", headers={"host": "evil.example:7860"}).status_code == 421
    assert "set-cookie" not in visitor.http.get("/health", headers={"host": "evil.example"}).headers


def test_answers_are_kept_by_no_cache_and_framed_by_nobody(app: Served) -> None:
    visitor, _ = visitors(app)
    (path,) = visitor.send("page.html", b"<script>alert(1)</script>").json()
    for way in ("/", "/config", f"/gradio_api/file={path}"):
        headers = visitor.http.get(way).headers
        assert headers["cache-control"] == "no-store" and headers["x-frame-options"] == "DENY"
        assert headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in visitor.http.get(f"/gradio_api/file={path}").headers["content-security-policy"]
    assert "default-src 'self'" in visitor.http.get("/").headers["content-security-policy"]


def test_files_are_deleted_on_the_clock(tmp_path: Path) -> None:
    workspaces = Workspaces(tmp_path / "root", Limits(keep=3600))
    workspace = workspaces.of("ann")
    old, new, sent = workspace.new_folder("old"), workspace.new_folder("new"), workspace.folder / "uploads" / "a"
    sent.mkdir(parents=True)
    hours_ago = time.time() - 7200
    for folder in (old, sent):
        (folder / "file").write_text("x")
        for path in (folder / "file", folder):
            os.utime(path, (hours_ago, hours_ago))
    assert workspaces.delete_old() == 2
    assert not old.exists() and not sent.exists() and new.exists()


def test_a_user_deletes_all_and_only_the_own_files(tmp_path: Path) -> None:
    workspaces = Workspaces(tmp_path / "root")
    mine, other = workspaces.of("ann"), workspaces.of("ben")
    for workspace in (mine, other):
        (workspace.new_folder("a") / "file").write_text("x")
    mine.delete_all()
    assert mine.used() == 0 and other.used() == 1


def test_a_full_workspace_takes_no_more(tmp_path: Path) -> None:
    workspace = Workspace("ann", tmp_path, "/files", Limits(stored=10))
    (tmp_path / "file").write_bytes(bytes(11))
    with pytest.raises(ResourceError, match="Your files here take"):
        workspace.new_folder("a")


def test_everything_goes_when_the_app_ends() -> None:
    with served() as app:
        visitor, _ = visitors(app)
        visitor.send("a.png", PNG)
        root = app.context.workspaces.root
        assert any(root.rglob("a.png"))
    assert not root.exists()


def test_what_a_killed_server_left_is_deleted_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True)
    left, living, other = (
        tmp_path / name for name in (f"hybrid-app-{ended.stdout.strip()}-x", f"hybrid-app-{os.getpid()}-x", "a")
    )
    for folder in (left, living, other):
        folder.mkdir()
    made = new_root()
    assert not left.exists() and living.exists() and other.exists() and made.stat().st_mode & 0o777 == 0o700
