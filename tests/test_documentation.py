"""The documents say what is true of this tree: no placeholder, no dead link, no option that a command lacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.command import restore

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_placeholder_and_no_dead_link(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|TEXT|ROWS)\b|\bTODO\b", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of a code block that begins with `restore` names a command and options that its help knows."""
    monkeypatch.setenv("COLUMNS", "200")  # help is not cut short
    for line in re.findall(r"^    (restore .*)$", document.read_text(encoding="utf-8"), re.MULTILINE):
        words = line.split("  #")[0].split()[1:]
        command = words[:2] if words[0] == "models" else words[:1]
        said = restore(*command, "--help")
        assert said.code == 0, line
        for option in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", " ".join(words)):
            assert option in said.out, f"{line}: {option}"
