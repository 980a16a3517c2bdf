"""The documents say what is true of this tree: no placeholder, no dead link, no option that a command lacks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from data_specs import SegmentationSpec, available, load_spec
from medical.protocol import Protocol, Region
from tests.command import medical, restore

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_placeholder_and_no_dead_link(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|TEXT|ROWS)\b|\bTODO\b", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


COMMANDS = {"restore": restore, "medical": medical}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_their_options_exist(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of a code block that begins with a command names a sub-command and options that its help knows."""
    monkeypatch.setenv("COLUMNS", "200")  # help is not cut short
    for line in re.findall(r"^    ((?:restore|medical) .*)$", document.read_text(encoding="utf-8"), re.MULTILINE):
        name, *words = line.split("  #")[0].split()
        command = words[:2] if words[0] == "models" else words[:1]
        said = COMMANDS[name](*command, "--help")
        assert said.code == 0, line
        for option in re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", " ".join(words)):
            assert option in said.out, f"{line}: {option}"


def test_options_in_the_tables_about_scans_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every option that docs/medical.md writes in its text belongs to one of the commands that it is about."""
    monkeypatch.setenv("COLUMNS", "200")
    known = "".join(medical(command, "--help").out for command in ("segment", "stats", "evaluate", "train"))
    known += medical("models", "import", "--help").out
    written = set(re.findall(r"`[^`\n]*?(--[a-z][a-z-]+)", (ROOT / "docs/medical.md").read_text(encoding="utf-8")))
    assert len(written) > 20 and sorted(option for option in written if option not in known) == []


def test_protocols_in_the_documents_are_protocols() -> None:
    text = (ROOT / "docs/medical.md").read_text(encoding="utf-8")
    whole, regions = (yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL))
    assert set(whole) == set(Protocol.model_fields) - {"regions"}, "the example shows every field"
    assert Protocol.model_validate(whole).outputs == 3
    assert [Region.model_validate(region) for region in regions["regions"]]


def test_every_described_set_of_scans_is_in_the_table() -> None:
    """With its number of structures and what counts for empty masks."""
    rows = [
        [cell.strip(" `") for cell in row.strip("|").split("|")]
        for row in (ROOT / "docs/medical.md").read_text(encoding="utf-8").splitlines()
        if re.match(r"\| `[a-z]", row) and row.count("|") == 7
    ]
    found = {name: (int(structures), empty) for name, _, structures, _, empty, _ in rows}
    described = {name: load_spec(name, SegmentationSpec) for name in available(SegmentationSpec)}
    assert found == {name: (len(spec.structures), spec.scoring.empty) for name, spec in described.items()}
