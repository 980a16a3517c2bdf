"""Everything public in hybrid, restore and medical says what it is, of which shape its arrays are, and which errors it raises.

Left out: the commands (`restore.cli`, `medical.cli`), whose help is their docstring; names with an underscore; functions inside
functions; `__init__`, which belongs to its class; units, ranges and sources, which no pattern tells.
"""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import get_origin

import numpy as np
import pytest

import hybrid
import medical
import restore
from hybrid import errors

PACKAGES = (hybrid, restore, medical)
NAMES = tuple(package.__name__ for package in PACKAGES)
ERRORS = {name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, errors.HybridError)}
ARRAY = re.compile(r"\b(?:ndarray|NDArray|Tensor)\b")
STATE = re.compile(r"\b(?:Mapping|dict)\[str, Tensor\]")
"""Weights by name have all kinds of shapes."""
_IN_PARENTHESES = re.compile(r"\(([^()]*,[^()]*)\)")
_AXIS = re.compile(r"[\[*]*(?:\.\.\.|[\w'^]+(?: ?[*/+-]? ?[\w'^]+){0,3})\]?")
_WORDS = "rows|columns|channels|classes|outputs|tokens|slices|colours|cases|samples"
_SURE = re.compile(rf"[A-Za-z]['\d]?|\d+\w?|\*.*|\.\.\.|.*[*/^+].*|\d+ \w+|{_WORDS}")


@dataclass(frozen=True)
class Public:
    """A public function, method, property or class, with all docstrings that speak for it.

    Attributes:
        place: File and line.
        name: Within the module.
        node: Its syntax.
        own: Its docstring, or that of what it overrides in a class of ours.
        around: Docstrings of its class and module.
        arrays: Whether it takes or gives arrays, by its annotations.
    """

    place: str
    name: str
    node: ast.AST
    own: str
    around: str
    arrays: bool

    def __str__(self) -> str:
        return f"{self.place} {self.name}"


def states_shape(text: str) -> bool:
    """Whether a docstring says a shape: the word, or axes in parentheses, such as (B, C, H, W); one must surely be an axis."""
    if re.search(r"\b(?:shape|scalar)s?\b", text, re.IGNORECASE):
        return True
    for inside in _IN_PARENTHESES.findall(text):
        axes = [each.strip() for each in inside.split(",") if each.strip()]
        if all(map(_AXIS.fullmatch, axes)) and any(map(_SURE.fullmatch, axes)):
            return True
    return False


@pytest.mark.parametrize(
    "text", ["(B, C, H, W)", "(h, w, 3) uint8", "(B, *spatial, C)", "(..., i, j, k)", "(N,)", "(2 B, 8 * C)", "any shape"]
)
def test_a_shape_is_seen(text: str) -> None:
    assert states_shape(f"Takes {text} and gives the same.")


@pytest.mark.parametrize("text", ["a loss (paper, equation)", "(see B)", "what (left, right) is", "an array"])
def test_what_is_no_shape_is_not(text: str) -> None:
    assert not states_shape(text)


@cache
def modules() -> tuple[ModuleType, ...]:
    """All public modules but those of the commands."""
    names = [*NAMES]
    for package in PACKAGES:
        names += [found.name for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    shown = (name for name in names if not any(part == "cli" or part.startswith("_") for part in name.split(".")))
    return tuple(importlib.import_module(name) for name in shown)


@cache
def everything() -> tuple[Public, ...]:
    """All that is public, in the order of files."""
    return tuple(each for module in modules() for each in _of_module(module))


def _of_module(module: ModuleType) -> Iterator[Public]:
    tree, file = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8")), module.__name__
    around = module.__doc__ or ""
    for node in tree.body:
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_") or _declares(node):
            continue
        own = ast.get_docstring(node) or ""
        yield Public(f"{file}:{node.lineno}", node.name, node, own, around, _has_arrays(module, node))
        if isinstance(node, ast.ClassDef):
            kind = vars(module)[node.name]
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_") and not _declares(inner):
                    said = ast.get_docstring(inner) or _inherited(module, kind, inner.name)
                    name, near = f"{node.name}.{inner.name}", f"{own}\n{around}"
                    yield Public(f"{file}:{inner.lineno}", name, inner, said, near, _has_arrays(module, inner))


def _declares(node: ast.ClassDef | ast.FunctionDef) -> bool:
    """Whether it is no definition of its own: an overload, a setter."""
    return any(ast.unparse(each).endswith(("overload", ".setter")) for each in node.decorator_list)


def _inherited(module: ModuleType, kind: type, name: str) -> str:
    """The docstring of the method of ours that it overrides, or that a protocol known to its module asks for."""
    ours = [base for base in kind.__mro__[1:] if base.__module__.split(".")[0] in NAMES]
    asked = [each for each in vars(module).values() if getattr(each, "_is_protocol", False)]
    return next((doc for base in (*ours, *asked) if (doc := getattr(vars(base).get(name), "__doc__", None))), "")


def _has_arrays(module: ModuleType, node: ast.AST) -> bool:
    """Whether an annotation names numpy's array type or torch's, or a name that its module gives such a type."""
    if not isinstance(node, ast.FunctionDef):
        return False
    given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    text = " ".join(ast.unparse(each) for each in (*(arg.annotation for arg in given), node.returns) if each is not None)
    text = STATE.sub("", text)
    kinds = (vars(module).get(name) for name in re.findall(r"(?<!\.)\b[A-Z]\w*", text))
    return bool(ARRAY.search(text)) or any(get_origin(kind) is np.ndarray for kind in kinds)


def _raised(node: ast.AST) -> set[str]:
    """Errors of the project that a function raises itself; a class those of its `__init__`."""
    if isinstance(node, ast.ClassDef):
        node = next((each for each in node.body if getattr(each, "name", "") == "__init__"), ast.Pass())
    found = (each.exc for each in ast.walk(node) if isinstance(each, ast.Raise))
    return {ast.unparse(each.func) for each in found if isinstance(each, ast.Call)} & ERRORS


def _is_forward(each: Public) -> bool:
    """`forward` of a layer, for which the docstring of its class may speak."""
    return each.name.endswith(".forward") and states_shape(each.around)


def test_everything_public_says_what_it_is() -> None:
    assert [module.__name__ for module in modules() if not module.__doc__] == []
    assert len(everything()) > 1500
    assert [str(each) for each in everything() if not each.own and not _is_forward(each)] == []


def test_what_takes_arrays_says_their_shape() -> None:
    taking = [each for each in everything() if each.arrays]
    assert len(taking) > 400
    assert [str(each) for each in taking if not states_shape(f"{each.own}\n{each.around}")] == []


def test_what_raises_says_so() -> None:
    raising = [each for each in everything() if _raised(each.node)]
    assert len(raising) > 100
    assert [f"{each}: {', '.join(sorted(_raised(each.node)))}" for each in raising if "Raises" not in each.own] == []
