"""The tab "Restore a picture" in a real browser: from upload to a file that equals the command's."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.apps.conftest import Watched
from tests.apps.served import Served, Visitor, example
from tests.command import restore

MODEL = "espcn-compact"
NAMES = ("photo.png", "alpha.png", "deep.png")


@pytest.fixture
def small(tmp_path: Path) -> dict[str, Path]:
    """Small pictures: of 8 bits, with alpha, of 16 bits."""
    colour = np.asarray(Image.open(example()))[60:108, 80:140]
    files = {name: tmp_path / name for name in NAMES}
    Image.fromarray(colour).save(files["photo.png"])
    alpha = np.full(colour.shape[:2], 128, np.uint8)
    alpha[:, :20] = 0
    Image.fromarray(np.dstack((colour, alpha))).save(files["alpha.png"])
    Image.fromarray(colour[..., 0].astype(np.uint16) * 257).save(files["deep.png"])
    return files


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that stands: the one thing in a file that two runs do not share is when they began."""
    for module in ("restore.restoration.run", "restore.restoration.gigapixel"):
        monkeypatch.setattr(f"{module}.timestamp", lambda: "2026-01-01T00:00:00+00:00")


def choose(page: Any, field: str, title: str) -> None:
    """Choose from a list by its title."""
    page.locator(f"#{field} input").click()
    page.get_by_role("option", name=title).click()


def send(page: Any, *paths: Path) -> None:
    """Upload pictures and wait until they are looked at."""
    page.locator("#pictures input[type=file]").set_input_files([str(path) for path in paths])
    page.locator("#picture-about li").first.wait_for()


def save(page: Any, link: str, folder: Path) -> Path:
    """Follow a link that saves a file."""
    with page.expect_download() as started:
        page.locator("#picture-links a", has_text=link).first.click()
    path = folder / str(started.value.suggested_filename)
    started.value.save_as(path)
    return path


def status(page: Any, text: str) -> None:
    """Wait for words of the status line."""
    page.locator("#picture-status", has_text=text).wait_for()


@pytest.mark.usefixtures("still")
def test_from_upload_to_the_file_that_the_command_writes(page: Any, small: dict[str, Path], tmp_path: Path) -> None:
    send(page, small["photo.png"])
    assert "60 x 48, PNG, RGB, 8 bits" in page.locator("#picture-about").inner_text()
    choose(page, "picture-model", MODEL)
    page.locator("#picture-run").click()
    page.locator("#picture-pair .pair").wait_for()
    status(page, "Done in")
    pair = page.locator("#picture-pair .pair")
    sizes = pair.locator("img").evaluate_all("all => all.map(each => [each.naturalWidth, each.naturalHeight])")
    assert sizes == [[240, 192], [240, 192]]
    edge = pair.locator("input[type=range]")
    edge.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert edge.input_value() == "60" and "60%" in (pair.get_attribute("style") or "")

    assert restore("sr", small["photo.png"], "--model", MODEL, "-o", tmp_path / "by_command" / "photo_x4.png").code == 0
    saved = save(page, "Result", tmp_path / "saved")
    assert saved.name == "photo_x4.png"
    assert saved.read_bytes() == (tmp_path / "by_command" / "photo_x4.png").read_bytes()
    assert MODEL in save(page, "Record", tmp_path / "saved").read_text()


def test_a_part_is_tried_first_and_the_whole_estimated(page: Any) -> None:
    page.locator("#picture-example").click()
    page.locator("#picture-about li").first.wait_for()
    choose(page, "picture-model", MODEL)
    page.locator("#picture-place img").click(position={"x": 20, "y": 20})
    page.locator("#picture-try").click()
    status(page, "The whole picture takes about")
    assert "160 x 160 pixels took" in page.locator("#picture-status").inner_text()
    assert page.locator("#picture-pair .pair img").first.evaluate("each => each.naturalWidth") == 520  # 640, made to fit


def test_what_is_shown_is_the_result_without_loss(page: Any, small: dict[str, Path], tmp_path: Path) -> None:
    """At 1:1 the view's pixels are the file's, in 8 bits; alpha stays alpha."""
    for name in ("alpha.png", "deep.png"):
        send(page, small[name])
        page.locator("#picture-about li", has_text=name).wait_for()
        choose(page, "picture-model", MODEL)
        page.locator("#picture-run").click()
        page.locator("#picture-links a", has_text=name.replace(".png", "_x4.png")).first.wait_for()
        page.get_by_label("1:1", exact=True).check()
        page.locator("#picture-pair .under", has_text="240 x 192 pixels").wait_for()
        source = page.locator("#picture-pair img.after-picture").get_attribute("src")
        view = tmp_path / "view.png"
        view.write_bytes(page.request.get(page.url.rstrip("/") + source).body())
        shown, saved = (np.asarray(Image.open(path)) for path in (view, save(page, "Result", tmp_path / "saved")))
        if name == "deep.png":
            assert saved.max() > 255
            saved = np.round(saved / 257)
        else:
            assert shown.shape[2] == 4
        np.testing.assert_array_equal(shown, saved)
        page.locator("#pictures button[aria-label='Clear']").click()
        page.get_by_label("Whole", exact=True).check()


def test_a_batch_goes_on_after_a_picture_that_fails(page: Any, small: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "page.png"
    broken.write_text("<html><script>alert(1)</script></html>")
    cut = tmp_path / "cut.png"
    cut.write_bytes(example().read_bytes()[:2000])
    send(page, small["photo.png"], broken, cut, small["alpha.png"])
    status(page, "page.png is not a picture")
    choose(page, "picture-model", MODEL)
    page.locator("#picture-run").click()
    status(page, "2 of 4 pictures restored")
    table = page.locator("#picture-table").inner_text()
    assert "cut.png" in table and "damaged" in table and "/" not in table.split("page.png", 1)[1].split("\n")[0]
    with zipfile.ZipFile(save(page, "Everything", tmp_path)) as archive:
        assert sorted(archive.namelist()) == [
            "alpha_x4.png", "alpha_x4.png.json", "photo_x4.png", "photo_x4.png.json",
        ]  # fmt: skip


def test_a_picture_that_would_unpack_to_gigabytes_is_refused(page: Any, tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b""))
    page.locator("#pictures input[type=file]").set_input_files(str(bomb))
    status(page, "more than the limit")
    page.locator("#picture-run").click()
    status(page, "more than the limit of 200000000")
    assert "--max-pixels" not in page.locator("#picture-status").inner_text()


def test_cancel_frees_the_device(page: Any, app: Served, monkeypatch: pytest.MonkeyPatch, small: dict[str, Path]) -> None:
    begun, ended = threading.Event(), threading.Event()

    def endless(wish: object, sources: object, folder: object, report: Any) -> None:
        begun.set()
        try:
            while not ended.wait(0.01):
                report(1, 2)
        finally:
            ended.set()

    send(page, small["photo.png"])
    choose(page, "picture-model", MODEL)
    monkeypatch.setattr("apps.pictures.tab.restore_all", endless)
    page.locator("#picture-run").click()
    assert begun.wait(60)
    page.locator("#picture-cancel").click()
    status(page, "Cancelled")
    assert ended.wait(60)
    monkeypatch.undo()
    page.locator("#picture-run").click()
    status(page, "Done in")


def test_ten_users_queue_and_all_finish(app: Served, small: dict[str, Path]) -> None:
    visitors = [app.visitor() for _ in range(10)]
    results: dict[int, list[dict[str, Any]]] = {}

    def use(number: int, visitor: Visitor) -> None:
        visitor.enter()
        (path,) = visitor.send("photo.png", small["photo.png"].read_bytes()).json()
        event = visitor.event("picture-run")
        config = {each["id"]: each["props"].get("elem_id") for each in visitor.config()["components"]}
        model = next(each for each in event["inputs"] if config[each] == "picture-model")
        given = {event["inputs"][0]: [{"path": path, "meta": {"_type": "gradio.FileData"}}], model: MODEL}
        results[number] = visitor.run(event, given)

    threads = [threading.Thread(target=use, args=pair) for pair in enumerate(visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert len(results) == 10
    addresses = set()
    for told in results.values():
        assert told[-1]["success"] and "Done in" in str(told)
        addresses.add(hashlib.sha256(str(told[-1]).encode()).hexdigest())
    assert any("Waiting for the device: 1 before you" in str(told) for told in results.values())
    assert len(addresses) == 10


def test_files_can_be_deleted_from_the_page(page: Any, app: Served, small: dict[str, Path]) -> None:
    send(page, small["photo.png"].rename(small["photo.png"].with_name("private.png")))
    root = app.context.workspaces.root
    assert any(root.rglob("private.png"))
    page.on("dialog", lambda dialog: dialog.accept())
    with page.expect_navigation():
        page.locator("#delete-files").click()
    page.locator("#picture-run").wait_for()
    assert not any(root.rglob("private.png"))


@pytest.fixture(scope="module")
def one_page(chromium: Any, app: Served) -> Iterator[Any]:
    """A page for tests that leave it usable."""
    watched = Watched(chromium)
    page = watched.open(app.url)
    page.locator("#picture-run").wait_for()
    yield page
    watched.close()


def test_other_files_are_not_taken(one_page: Any, tmp_path: Path) -> None:
    other = tmp_path / "tool.exe"
    other.write_bytes(b"MZ")
    one_page.locator("#pictures input[type=file]").set_input_files(str(other))
    one_page.get_by_text("Invalid file type").first.wait_for()


def test_tasks_show_their_models_and_what_is_missing(one_page: Any) -> None:
    one_page.get_by_label("Remove noise", exact=True).first.check()
    one_page.locator("#picture-model input").wait_for()
    one_page.wait_for_function("document.querySelector('#picture-model input').value.includes('denoise-compact')")
    one_page.locator("#picture-scale").wait_for(state="hidden")


def test_the_notice_is_in_view_and_controls_have_names(one_page: Any) -> None:
    notice = one_page.get_by_text("Research use, not a medical device").first
    assert notice.is_visible()
    for kind in ("button", "slider", "textbox", "radio", "checkbox", "combobox", "listbox"):
        for control in one_page.get_by_role(kind).all():
            name = control.evaluate(
                "e => e.ariaLabel || e.innerText || e.title || (e.labels && e.labels.length && e.labels[0].innerText) || ''"
            )
            assert name.strip(), control.evaluate("e => e.outerHTML.slice(0, 200)")


@pytest.mark.parametrize("width", [1280, 820])
def test_nothing_is_wider_than_the_window(one_page: Any, width: int) -> None:
    one_page.set_viewport_size({"width": width, "height": 800})
    assert one_page.evaluate("document.documentElement.scrollWidth") <= width
    assert one_page.locator("#picture-run").is_visible()
