"""Whose scan it is the app tells nobody: page, log, audit, files; a DICOM study with every tag unmistakable judges."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
import pytest
from pydicom.dataset import Dataset

from apps.server import Settings
from apps.serving.faults import contain, contained
from tests.apps.served import Visitor, served
from tests.medical.dicom_stubs import pixels, save, slices_of
from tests.medical.test_privacy import leaks, named, told_of


def archive(folder: Path, name: str, change: Any = named) -> bytes:
    """A study, packed."""
    save(folder / name, slices_of(pixels(12, 30, 26), change=change))
    return Path(shutil.make_archive(str(folder / name), "zip", folder / name)).read_bytes()


def event(visitor: Visitor, component: str, kind: str) -> dict[str, Any]:
    config = visitor.config()
    number = next(each["id"] for each in config["components"] if each["props"].get("elem_id") == component)
    return next(each for each in config["dependencies"] if [number, kind] in [list(t) for t in each["targets"]])


def sent(visitor: Visitor, name: str, data: bytes) -> str:
    """What the page shows after an upload."""
    (path,) = visitor.send(name, data).json()
    upload = event(visitor, "scan-files", "upload")
    file = {"path": path, "orig_name": name, "meta": {"_type": "gradio.FileData"}}
    return repr(visitor.run(upload, {upload["inputs"][0]: [file]}))


def segmented(visitor: Visitor) -> str:
    return repr(visitor.run(event(visitor, "scan-segment", "click"), {}))


def test_the_app_tells_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A study, one that is damaged, and a fault of the program that quotes a header while a scan is read and while it runs."""

    def broken(k: int, one: Dataset) -> None:
        named(k, one)
        one.Rows, one.PatientBirthDate = 19, "zyxqborn"

    def fall(*arguments: Any, **options: Any) -> None:
        header = arguments[0].origin.frames[0].header
        raise RuntimeError(f"no such value: {header.PatientName} {header}")

    with pytest.warns(UserWarning):
        cut = archive(tmp_path / "made", "cut", broken)
    study = archive(tmp_path / "made", "case")
    audit = tmp_path / "log" / "audit.jsonl"
    with served(Settings(audit=audit, first="scan", device="cpu")) as app:
        visitor = app.visitor()
        visitor.enter()
        said = [sent(visitor, "case.zip", study), segmented(visitor), sent(visitor, "cut.zip", cut)]
        assert "The scan is open" in said[0] and "Segmented in" in said[1] and "process_completed" in said[2]
        results = list(app.context.workspaces.root.rglob("segmented-*/*"))
        assert any(path.suffix == ".dcm" for path in results) and len(results) > 6
        (tmp_path / "out").mkdir()
        for path in results:
            if path.suffix != ".dcm":  # which names its patient, as the standard demands
                shutil.copy(path, tmp_path / "out")
        monkeypatch.setattr("medical.files.segment.segment", fall)
        said += [sent(visitor, "case.zip", study), segmented(visitor)]
        monkeypatch.setattr("apps.scans.tab.scan_html", lambda scan: fall(scan.volume))
        said.append(sent(visitor, "case.zip", study))
    log = "".join(capfd.readouterr()) + caplog.text
    assert log.count("RuntimeError") >= 2 and "in fall" in log, log
    assert not told_of(log + audit.read_text() + "".join(said)) and not leaks(tmp_path / "out")


def test_faults_are_told_by_their_place_whatever_the_handler_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def plain(value: int) -> int:
        return value + 1 // (value - 2)

    async def later(value: int) -> int:
        return plain(value)

    closed = []

    async def steps(value: int) -> AsyncIterator[int]:
        try:
            yield 1
            yield plain(value)
        finally:
            closed.append(value)

    async def all_of(value: int) -> list[int]:
        return [step async for step in contained(steps)(value)]

    assert contained(plain)(4) == 4 and asyncio.run(contained(later)(4)) == 4 and asyncio.run(all_of(4)) == [1, 4]
    for run in (lambda: contained(plain)(2), lambda: asyncio.run(contained(later)(2)), lambda: asyncio.run(all_of(2))):
        caplog.clear()
        with pytest.raises(gr.Error) as fault:
            run()
        assert not fault.value.print_exception and fault.value.__cause__ is None
        assert "in plain" in caplog.text and "ZeroDivisionError" in caplog.text and "modulo" not in caplog.text
    assert closed == [4, 2]
    monkeypatch.setenv("HYBRID_SHOW_ERRORS", "1")
    with pytest.raises(ZeroDivisionError):
        contained(plain)(2)


def test_every_handler_of_the_page_is_contained() -> None:
    with gr.Blocks() as page:
        box = gr.Textbox()
        box.change(lambda text: text, box, box)
        box.change(None, js="() => 1")
    contain(page)
    assert [event.fn.__wrapped__.__name__ for event in page.fns.values() if event.fn is not None] == ["<lambda>"]
