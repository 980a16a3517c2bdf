"""The Python in the documents runs: every block of a page in turn, in a folder of its own, on what ships with the package."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = (ROOT / "README.md", ROOT / "docs/python.md")
SHIPPED = ("examples", "data_specs/mini", "medical/examples")
"""What blocks read, at the places that they have in a clone."""


def blocks_of(page: Path) -> list[tuple[int, str]]:
    """The first line and the text of each block of Python."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text.count("\n", 0, block.start(1)), block[1]) for block in found]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_block_of_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place in SHIPPED:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).symlink_to(ROOT / place)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESTORE_OFFLINE", "1")
    names: dict[str, object] = {"__name__": "documented"}
    blocks = blocks_of(page)
    assert len(blocks) >= 2
    for line, source in blocks:
        code = compile("\n" * line + source, str(page), "exec", dont_inherit=True)  # errors tell the page's own line
        exec(code, names)
