""" "Segment a scan" in a real browser: from a file to a checked, corrected, downloaded label map."""

from __future__ import annotations

import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest

from apps.scans.actions import EXAMPLE, example
from tests.apps.served import Served
from tests.command import medical
from tests.medical.dicom_stubs import save, slices_of

VIEWER = ".scan-viewer"


@pytest.fixture
def scans(page: Any) -> Any:
    """The page with the tab of scans open."""
    page.get_by_role("tab", name="Segment a scan").click()
    page.locator(VIEWER).wait_for()
    return page


def send(page: Any, *files: Path) -> None:
    page.locator("#scan-files input[type=file]").set_input_files([str(file) for file in files])


def opened(page: Any) -> None:
    page.locator(f"{VIEWER}[data-state=open][data-drawn]").wait_for()


def segmented(page: Any) -> None:
    page.locator("#scan-segment").click()
    page.locator(f"{VIEWER}[data-state=segmented]").wait_for()
    page.locator("#scan-volumes table").wait_for()


def picture(page: Any, plane: str) -> str:
    return str(page.locator(f'[data-plane="{plane}"] img').get_attribute("src"))


def caption(page: Any, plane: str) -> str:
    return str(page.locator(f'[data-plane="{plane}"] .scan-where').inner_text())


def changes(page: Any, plane: str, before: str) -> None:
    """Wait until a slice is drawn anew."""
    page.wait_for_function("([at, was]) => document.querySelector(at).src !== was", arg=[f'[data-plane="{plane}"] img', before])


def downloaded(page: Any, name: str, folder: Path) -> Path:
    page.get_by_role("tab", name="Downloads").click()
    with page.expect_download() as waiting:
        page.locator("#scan-results a", has_text=name).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_from_upload_to_the_commands_file(scans: Any, tmp_path: Path) -> None:
    source = Path(shutil.copy(example(EXAMPLE), tmp_path))
    send(scans, source)
    opened(scans)
    assert "33 x 44 x 42" in scans.locator("#scan-facts").inner_text()
    segmented(scans)
    assert scans.locator('[data-plane="axial"] .scan-letter').all_inner_texts() == ["R", "L", "A", "P"]
    assert "Research use, not a medical device" in scans.locator(VIEWER).inner_text()

    before, was = picture(scans, "axial"), caption(scans, "axial")
    scans.locator('[data-plane="axial"] .scan-stage').hover()
    scans.mouse.wheel(0, 120)
    changes(scans, "axial", before)
    assert caption(scans, "axial") != was, "the wheel scrolls"
    before, was = picture(scans, "coronal"), caption(scans, "coronal")
    scans.locator('[data-plane="coronal"] .scan-stage').press("ArrowDown")
    changes(scans, "coronal", before)
    assert caption(scans, "coronal") != was, "keys scroll"
    was = caption(scans, "sagittal")
    scans.locator('[data-plane="axial"] .scan-picture').click(position={"x": 5, "y": 100})
    scans.wait_for_function("was => document.querySelector('[data-plane=sagittal] .scan-where').textContent !== was", arg=was)
    assert caption(scans, "sagittal").startswith("sagittal 1 of 33"), "a click at the picture's left is at the patient's right"

    scans.locator('[data-scan="convention"]').select_option("neurological")
    scans.wait_for_function("document.querySelector('[data-plane=axial] .scan-letter.l').textContent === 'L'")
    scans.locator('.scan-goto, [data-plane="axial"] input').first.focus()
    scans.locator('[data-plane="sagittal"] input').fill("20")
    scans.wait_for_function("document.querySelector('[data-plane=sagittal] .scan-where').textContent.startsWith('sagittal 21')")
    before = picture(scans, "sagittal")
    scans.get_by_label("Posterior hippocampus").uncheck()
    changes(scans, "sagittal", before)

    assert medical("segment", source, "--device", "auto").code == 0
    made = tmp_path / "hippocampus_141_seg.nii.gz"
    (tmp_path / "got").mkdir()
    assert downloaded(scans, "hippocampus_141_seg.nii.gz,", tmp_path / "got").read_bytes() == made.read_bytes()


def test_a_zip_of_dicom_gives_a_seg(scans: Any, tmp_path: Path) -> None:
    image = nib.load(example(EXAMPLE))
    stored = np.asarray(image.dataobj).astype(np.int64)[::-1, ::-1].transpose(2, 1, 0)[10:34]
    folder = save(tmp_path / "study", slices_of(stored, spacing=(1.0, 1.0), step=(0, 0, 1.0)))
    send(scans, Path(shutil.make_archive(str(tmp_path / "study"), "zip", folder)))
    opened(scans)
    assert "MR" in scans.locator("#scan-facts").inner_text() and "Quixote" not in scans.content()
    segmented(scans)
    seg = pydicom.dcmread(downloaded(scans, "DICOM SEG", tmp_path))
    assert seg.Modality == "SEG" and len(seg.SegmentSequence) == 2 and seg.pixel_array.any()


def test_cancel_frees_the_device_and_leaves_nothing(scans: Any, app: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, ended, folders = threading.Event(), threading.Event(), []

    def endless(session: object, model: str, folder: Path, *, report: Any, **settings: object) -> None:
        folders.append(folder)
        begun.set()
        try:
            while not ended.wait(0.01):
                report(1, 2)
        finally:
            ended.set()

    scans.locator("#scan-example").click()
    opened(scans)
    monkeypatch.setattr("apps.scans.actions.scan_run.run", endless)
    scans.locator("#scan-segment").click()
    assert begun.wait(60)
    scans.locator("#scan-cancel:not([disabled])").click()
    scans.locator("#scan-told", has_text="Cancelled").wait_for()
    assert ended.wait(60)
    monkeypatch.undo()
    segmented(scans)
    assert not folders[0].exists()


def test_hostile_files_get_a_message_and_the_app_lives_on(scans: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
        archive.writestr("../../evil", bytes(128) + b"DICM")
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("I1", "w") as member:
        for _ in range(8):
            member.write(bytes(1 << 20))
    data = bytearray((tmp_path / "bomb.zip").read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (0xFFFFFFF0).to_bytes(4, "little")  # it claims 4 GB
    (tmp_path / "bomb.zip").write_bytes(bytes(data))
    (tmp_path / "page.nii").write_text("<html><script>alert(1)</script></html>")
    told = scans.locator("#scan-told [role=alert]")
    for name, words in (("out.zip", "lead out"), ("bomb.zip", "bomb.zip"), ("page.nii", "page.nii")):
        send(scans, tmp_path / name)
        told.filter(has_text=words).wait_for()
    nib.save(
        nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (9, 8, 7, 3)).astype(np.int16), np.eye(4)), tmp_path / "four.nii"
    )
    send(scans, tmp_path / "four.nii")
    scans.locator("#scan-told", has_text="four.nii holds several scans").wait_for()
    scans.locator("#scan-choice input").click()
    scans.get_by_role("option", name="volume 1 of 0 to 2").click()
    opened(scans)
    scans.locator("#scan-example").click()
    scans.locator("#scan-facts", has_text="hippocampus_141").wait_for()
    segmented(scans)


def test_a_brush_corrects_and_undo_brings_back(scans: Any) -> None:
    scans.locator("#scan-example").click()
    opened(scans)
    segmented(scans)
    table = scans.locator("#scan-volumes table")
    before = table.inner_text()
    scans.get_by_role("button", name="Paint").click()
    edge = scans.locator('[data-plane="axial"] .scan-picture').bounding_box()
    scans.mouse.move(edge["x"] + 30, edge["y"] + 30)
    scans.mouse.down()
    scans.mouse.move(edge["x"] + 80, edge["y"] + 60, steps=4)
    scans.mouse.up()
    scans.locator("#scan-volumes", has_text="corrected by hand").wait_for()
    assert table.inner_text() != before
    scans.get_by_role("tab", name="Corrections").click()
    scans.locator("#scan-write").click()
    scans.locator("#scan-corrected a", has_text="_corrected.nii.gz,").wait_for()
    scans.get_by_role("button", name="Undo").click()
    scans.get_by_role("tab", name="Volumes").click()
    scans.locator("#scan-volumes", has_text="of the network").wait_for()
    assert table.inner_text() == before


def test_no_other_user_sees_a_scan(scans: Any, app: Served) -> None:
    scans.locator("#scan-example").click()
    opened(scans)
    with scans.expect_request(lambda request: "component_server" in request.url) as waiting:
        scans.locator('[data-plane="axial"] .scan-stage').press("ArrowDown")
    body = waiting.value.post_data_json
    other = app.visitor()
    other.enter()
    answer = other.http.post("/gradio_api/component_server", json=body)
    assert "not open any more" in answer.text and "image/png" not in answer.text
    assert app.visitor().http.post("/gradio_api/component_server", json=body).status_code == 401
