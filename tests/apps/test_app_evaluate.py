"""The tab "Evaluate": the numbers are those of `restore bench`."""

from __future__ import annotations

import csv
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from apps.evaluate.run import Asked, evaluate, methods_for, read_levels, sets_for
from hybrid.errors import RequestError
from tests.command import restore


def scores(path: Path) -> list[tuple[str, ...]]:
    """All of a table of scores but the times."""
    with path.open(newline="") as stream:
        return [tuple(value for key, value in row.items() if key != "seconds") for row in csv.DictReader(stream)]


def test_a_run_in_the_browser_gives_the_scores_of_the_command(page: Any, tmp_path: Path) -> None:
    page.get_by_role("tab", name="Evaluate").click()
    for name in ("hat-compact", "cfsr-compact"):
        page.locator("#evaluate-methods").get_by_label(name).uncheck()
    page.locator("#evaluate-run").click()
    page.locator("#evaluate-plots img").first.wait_for()
    loaded = "all => all.every(each => each.complete && each.naturalWidth > 0)"
    page.wait_for_function(f"({loaded})([...document.querySelectorAll('#evaluate-plots img')])")
    table = page.locator("#evaluate-table").inner_text()
    assert "espcn-compact" in table and "bicubic" in table

    asked = ("mini", "--model", "espcn-compact", "--model", "bicubic", "--scale", "4")
    assert restore("bench", *asked, "-o", tmp_path / "command", "-q").code == 0
    with page.expect_download() as started:
        page.locator("#evaluate-links a", has_text="Everything").click()
    started.value.save_as(tmp_path / "all.zip")
    with zipfile.ZipFile(tmp_path / "all.zip") as archive:
        archive.extractall(tmp_path / "page")
    assert scores(tmp_path / "page" / "scores.csv") == scores(tmp_path / "command" / "scores.csv")
    names = {str(path.relative_to(tmp_path / "command")) for path in (tmp_path / "command").rglob("*") if path.is_file()}
    assert {str(path.relative_to(tmp_path / "page")) for path in (tmp_path / "page").rglob("*") if path.is_file()} == names


def test_levels_and_classical_methods(tmp_path: Path) -> None:
    asked = Asked("jpeg", ("mini",), ("jpeg",), levels=read_levels("10 40", "jpeg"))
    found = evaluate(asked, tmp_path, lambda done, total: None)
    report = json.loads(found.json.read_text())
    assert [each["level"] for each in report["sets"]] == [10, 40]
    first, second = (each["methods"][0]["psnr"] for each in report["sets"])
    assert second > first + 1


def test_only_what_is_here_is_offered_and_taken(tmp_path: Path) -> None:
    assert [name for _, name in sets_for("denoising", None)] == ["mini"]
    offered = {name for _, name in methods_for("super-resolution", 4)}
    assert {"bicubic", "hat-compact", "espcn-compact"} <= offered and "hat" not in offered
    for sets, methods in ((("set5",), ("bicubic",)), (("mini",), ("/etc/passwd",)), ((), ("bicubic",))):
        with pytest.raises(RequestError):
            evaluate(Asked("super-resolution", sets, methods), tmp_path, lambda done, total: None)


@pytest.mark.parametrize("text", ["a", "0", "101", "-5"])
def test_levels_that_cannot_be_meant(text: str) -> None:
    with pytest.raises(RequestError):
        read_levels(text, "jpeg")
