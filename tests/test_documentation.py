"""The documents say what is true of this tree: no placeholder, no dead link, tables as the tree has it."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from data_specs import SegmentationSpec, available, load_spec
from medical.loading import catalogue as scan_models
from medical.models import MODULES as SCAN_FAMILIES
from medical.protocol import Protocol, Region
from restore.loading import catalogue as picture_models
from restore.models import MODULES as PICTURE_FAMILIES
from tests.command import medical
from tests.documented import DOCUMENTS, ROOT


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_no_placeholder_and_no_dead_link(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert not re.findall(r"\b[A-Z]+_(?:TABLE|TEXT|ROWS)\b|\bTODO\b", text)
    links = [link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link]
    assert [link for link in links if not (document.parent / link).exists()] == []


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


def test_every_page_is_reached_from_the_front_page() -> None:
    """Through links, and each page of docs/ from its index in one step."""

    def linked(page: Path) -> set[Path]:
        found = {
            page.parent / link for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")) if "://" not in link
        }
        return {path.resolve() for path in found if path.suffix == ".md"}

    pages, index = {*ROOT.glob("docs/*.md")}, ROOT / "docs" / "README.md"
    assert linked(index) >= pages - {index}
    reached, left = set[Path](), {ROOT / "README.md"}
    while left:
        reached |= left
        left = set[Path]().union(*map(linked, left)) - reached
    assert reached >= pages


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_rows_of_a_table_have_as_many_cells_as_its_head(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        cells = [re.sub(r"\\\||`[^`]*`", "", row).count("|") for row in table.splitlines()]
        assert set(cells) == {cells[0]} and re.fullmatch(r"[| :-]+", table.splitlines()[1]), table.splitlines()[0]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_into_pages_name_a_heading(document: Path) -> None:
    for page, place in re.findall(r"\]\(([^):#]*)#([^)]+)\)", document.read_text(encoding="utf-8")):
        target = document.parent / page if page else document
        headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
        named = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
        assert place in named, f"{page}#{place}"


@pytest.fixture(scope="module")
def model_table() -> ModuleType:
    """The script that makes the tables of docs/models.md."""
    spec = importlib.util.spec_from_file_location("model_table", ROOT / "docs" / "model_table.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_models_are_what_the_catalogues_give(model_table: ModuleType) -> None:
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert f"{model_table.BEGIN}\n\n{model_table.tables()}\n\n{model_table.END}" in page, "run python docs/model_table.py"
    assert [entry.name for entry in (*picture_models(), *scan_models()) if f"| `{entry.name}` |" not in page] == []
    named = {entry.family for entry in (*picture_models(), *scan_models())}
    assert [name for name in (*PICTURE_FAMILIES, *SCAN_FAMILIES) if name not in named and f"`{name}`" not in page] == []


def test_measured_figures_stand_in_the_tables_that_they_are_from(model_table: ModuleType) -> None:
    """In a row that names the model, or, of the hippocampus, in the row of the mean."""
    for name, (figure, place) in model_table.MEASURED.items():
        rows = (ROOT / "docs" / place.partition("#")[0]).read_text(encoding="utf-8").splitlines()
        numbers = re.findall(r"\d+\.\d+", figure)[:2]
        assert any((name in row or "| mean |" in row) and all(number in row for number in numbers) for row in rows), name
