"""The shape of the code: imports run downhill, libraries do not print, nothing is evaluated, files stay readable."""

from __future__ import annotations

import ast
import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "hybrid": set(),
    "data_specs": {"hybrid"},
    "restore": {"hybrid", "data_specs"},
    "medical": {"hybrid", "data_specs", "restore"},
    "apps": {"hybrid", "data_specs", "restore", "medical"},
}
MODULES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
LONGEST = 400


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Top-level names of everything that is imported, at the top of a file or inside a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield package if node.level else (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and name_of(node.func) == "import_module" and isinstance(node.args[0], ast.Constant):
            yield str(node.args[0].value).split(".")[0]


def name_of(function: ast.expr) -> str:
    """`f` of both `f(...)` and `module.f(...)`."""
    return getattr(function, "attr", getattr(function, "id", ""))


def uphill(source: str, package: str) -> set[str]:
    """Packages of the project, and its tests, that code of `package` imports and may not."""
    found = set(imported(ast.parse(source), package))
    return found & ({*MAY_IMPORT, "tests", "benchmarks", "examples"} - MAY_IMPORT[package] - {package})


def calls(source: str) -> set[str]:
    """Names of the plain functions that code calls."""
    return {
        node.func.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }


def test_every_package_is_looked_at() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in MODULES} == set(MAY_IMPORT)
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"} <= set(MAY_IMPORT)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_code_is_as_agreed(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert uphill(source, path.relative_to(ROOT).parts[0]) == set()
    assert calls(source) & {"print", "eval", "exec", "compile", "__import__"} == set()
    assert source.count("\n") <= LONGEST


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import restore.models.hat", "hybrid", {"restore"}),
        ("def f():\n    from apps.commands import restore", "restore", {"apps"}),
        ("if TYPE_CHECKING:\n    from medical import load_model", "restore", {"medical"}),
        ("import_module('restore.cli.app')", "data_specs", {"restore"}),
        ("importlib.import_module('medical')", "hybrid", {"medical"}),
        ("import tests.command", "restore", {"tests"}),
        ("from . import base\nfrom hybrid import cards\nimport restored, numpy", "restore", set()),
        ("from restore.images import probe", "medical", set()),
    ],
)
def test_imports_that_run_uphill_are_seen(source: str, package: str, found: set[str]) -> None:
    assert uphill(source, package) == found


def test_calls_are_seen() -> None:
    assert calls("def f(x):\n    return [print(eval('1')) for _ in x] and console.print(re.compile(x))") == {"print", "eval"}


@pytest.fixture(scope="module")
def house() -> ModuleType:
    """The script that draws docs/architecture.md."""
    spec = importlib.util.spec_from_file_location("import_graph", ROOT / "docs" / "import_graph.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_two_rooms_import_each_other(house: ModuleType) -> None:
    graph = house.import_graph()
    assert {"hybrid.blocks", "restore.models", "medical.dicom", "apps.scans"} <= set(graph)
    assert graph["restore.models"]["hybrid.blocks"] > 10
    assert house.circles(graph) == set()


def test_circles_are_seen(house: ModuleType) -> None:
    graph = {
        "medical.a": Counter({"medical.b": 1}),
        "medical.b": Counter({"medical.c": 1}),
        "medical.c": Counter({"medical.a": 2}),
    }
    assert house.circles(graph) == {"medical.a", "medical.b", "medical.c"}
    seen = house.imported_rooms(ast.parse("def f():\n    from medical.dicom import seg\nfrom restore import images, load_model"))
    assert sorted(seen) == ["medical.dicom", "restore", "restore.images"]
    unseen = house.imported_rooms(ast.parse("if TYPE_CHECKING:\n    import medical.dicom.seg\nimport numpy"))
    assert list(unseen) == []


def test_rooms_hold_no_code_of_their_own() -> None:
    """What lies in an `__init__.py` runs whenever anything of the room is imported."""
    may = {"restore.images", "restore.models", "medical.models"}
    for path in MODULES:
        room = ".".join(path.relative_to(ROOT).parts[:-1])
        if path.name == "__init__.py" and room.count(".") and room not in may:
            assert len([node for node in ast.parse(path.read_text()).body if not isinstance(node, ast.Expr)]) == 0, room
