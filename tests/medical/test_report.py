"""The report: complete, self-contained, and safe against what names may hold."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hybrid.errors import InputError, OutputError
from medical.notice import RESEARCH_USE
from medical.protocol import Protocol, Window
from medical.results.report import ModelFacts, RunFacts, ScanFacts, write_report
from medical.results.statistics import StructureFigures, structure_statistics
from medical.structures import Structure
from medical.volumes.geometry import Grid

EVIL = '<script>alert("1")</script><img src="https://example.org/x.png" onerror=\'x()\'>&amp;'
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"] and data.strip():
            self.words.append(data.strip())


def png() -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (4, 3), (9, 8, 7)).save(data, format="png")
    return data.getvalue()


def rows() -> list[StructureFigures]:
    labels = np.zeros((12, 12, 12), np.uint8)
    labels[2:7, 3:6, 4:9], labels[0, 0, 0], labels[11, 5:7, 5] = 1, 1, 7
    names = [Structure(value=1, name=EVIL), Structure(value=3, name="absent")]
    return structure_statistics(labels, Grid((12, 12, 12), np.diag([1, 1, 2.0, 1])), np.full((12, 12, 12), 1.6e6), names)


def report(tmp_path: Path, scan: ScanFacts | None = None, facts: RunFacts | None = None) -> tuple[str, Page]:
    chosen = scan or ScanFacts("case", Grid((12, 12, 12), np.diag([1, 1, 2.0, 1])))
    path = write_report(tmp_path / "r.html", scan=chosen, figures=rows(), preview=png(), facts=facts or RunFacts())
    assert [each.name for each in tmp_path.iterdir()] == ["r.html"]
    text = path.read_text(encoding="utf-8")
    return text, Page(text)


def test_page_needs_nothing_from_outside_and_runs_nothing(tmp_path: Path) -> None:
    protocol = Protocol(
        modality=EVIL, channels=(EVIL,), orientation="RAS", overlap=0.5,
        intensity=Window(low=-175, high=250), patch=(96, 96, 96), structures=(Structure(value=1, name="a"),),
    )  # fmt: skip
    model = ModelFacts(EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, EVIL, protocol)
    scan = ScanFacts(EVIL, Grid((3, 3, 3), np.eye(4)), 2, EVIL, (EVIL,))
    text, page = report(tmp_path, scan, RunFacts(model, {EVIL: EVIL}, (EVIL,), versions={EVIL: EVIL}))
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "form", "a", "base", "svg"})
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 1
    source = images[0]["src"] or ""
    assert source.startswith("data:image/png;base64,") and base64.b64decode(source.partition(",")[2]) == png()
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("href", "action") for name in attributes)
    assert "url(" not in text and "@import" not in text
    policy = next(attributes["content"] for _, attributes in page.tags if attributes.get("http-equiv"))
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_page_begins_with_the_notice_and_tells_the_figures_and_flags_in_words(tmp_path: Path) -> None:
    _, page = report(tmp_path)
    title = page.words.index("case: segmentation report")
    assert page.words[title + 1 : title + 3] == [RESEARCH_USE, "case"]
    words = "\n".join(page.words)
    assert EVIL in words and "2 of 3 structures found." in words
    assert "0.152" in words and "1,600,000" in words  # 76 voxels of 2 mm3; intensities are not rounded to 1.6e+06
    assert "Reaches the left, posterior and inferior border of the scan" in words
    assert "In 2 pieces; the largest holds 98.7 % of its voxels." in words
    assert "Not found: no voxel bears its value." in words and "The label map does not say what value 7 is." in words
    assert "nan" not in words.lower() and "None" not in words


def test_page_tells_scan_model_settings_and_run(tmp_path: Path) -> None:
    protocol = Protocol(
        modality="CT", channels=("CT",), orientation="LPS", overlap=0.5, spacing=(1.5, 1.5, 2.0),
        intensity=Window(low=-175, high=250), patch=(96, 96, 64), structures=(Structure(value=1, name="liver"),),
    )  # fmt: skip
    model = ModelFacts("btcv", "Swin UNETR", "a paper", "swin.pt", "ab" * 32, training_data="BTCV", protocol=protocol)
    scan = ScanFacts("case", Grid((5, 6, 7), np.diag([-1, -1, 2.5, 1])), warnings=("slice 3 is missing",))
    facts = RunFacts(model, {"overlap": 0.5, "scan": "/home/ann/case.nii"}, ("a note",), "2026-01-02T03:04:05+00:00", 12.34)
    words = "\n".join(report(tmp_path, scan, facts)[1].words)
    for told in (
        "5 x 6 x 7 voxels", "1 x 1 x 2.5 mm, 2.5 mm³ a voxel", "LPS, the nearest", "slice 3 is missing", "btcv", "Swin UNETR",
        "a paper", "ab" * 32, "unknown", "BTCV", "1.5 x 1.5 x 2 mm", "-175 to 250 to [0, 1]", "a note",
        "96 x 96 x 64 voxels, overlap 0.5",
        "2026-01-02T03:04:05+00:00", "12.3 s", "hybrid-imaging", "numpy",
    ):  # fmt: skip
        assert told in words, told
    assert "ann" not in words.split()  # folders carry names of people
    assert "case.nii" in words and "/home" not in words


def test_an_empty_label_map_is_said_to_be_empty(tmp_path: Path) -> None:
    figures = [row for row in rows() if row.voxels == 0]
    scan = ScanFacts("case", Grid((12, 12, 12), np.eye(4)))
    (tmp_path / "p.png").write_bytes(png())
    path = write_report(tmp_path / "r.html", scan=scan, figures=figures, preview=tmp_path / "p.png", facts=RunFacts())
    assert "Nothing found: the label map is empty" in path.read_text()


def test_many_absent_structures_share_one_line_with_all_their_names(tmp_path: Path) -> None:
    names = [Structure(value=value, name=f"part <{value}>") for value in range(1, 31)]
    labels = np.eye(4, dtype=np.uint8)[None] * 30
    grid = Grid((1, 4, 4), np.eye(4))
    figures = structure_statistics(labels, grid, None, names)
    path = write_report(tmp_path / "r.html", scan=ScanFacts("a", grid), figures=figures, preview=png(), facts=RunFacts())
    page = Page(path.read_text())
    assert "1 of 30 structures found." in "\n".join(page.words)
    assert [tag for tag, attributes in page.tags if attributes.get("scope") == "row"] == ["th"]
    line = next(words for words in page.words if words.startswith("Not found, no voxel bears their value (29)"))
    assert all(f"part <{value}>" in line for value in range(1, 30)) and "part <30>" not in line


def test_what_is_no_picture_and_a_bad_place_are_told_and_nothing_is_left(tmp_path: Path) -> None:
    scan = ScanFacts("case", Grid((12, 12, 12), np.eye(4)))
    with pytest.raises(InputError, match="is no PNG"):
        write_report(tmp_path / "r.html", scan=scan, figures=rows(), preview=b"GIF89a", facts=RunFacts())
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "file" / "r.html", scan=scan, figures=rows(), preview=png(), facts=RunFacts())
