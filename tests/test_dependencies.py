"""The page of dependencies says what pyproject.toml asks for and constraints.txt pins."""

from __future__ import annotations

import re

from benchmarks.dependencies import CLASSIFIERS, PAGE, WHY, direct, licence, pinned

REPAIR = "run `python -m benchmarks.dependencies`, after naming new packages in its WHY"


class Told:
    """A distribution that says this much of itself."""

    def __init__(self, **told: str | list[str]) -> None:
        self.metadata = self
        self.told = told

    def get(self, name: str) -> str | list[str] | None:
        return self.told.get(name.replace("-", "_"))

    get_all = get


def test_the_page_is_in_step() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w.-]+) \| (\S+) \| (.+?) \| (.+?) \|$", text, re.M)
    asked = [(name, pinned(name)) for title, names in direct().items() if title != "dev" for name in names]
    assert [(name, version) for name, version, _, _ in rows if name != "package"] == asked, REPAIR
    assert {name for name, _ in asked} <= WHY.keys(), REPAIR
    assert [name for name, version in asked if version == "not pinned"] == []
    assert not re.search("not told|not installed", text), REPAIR
    assert all(f"{name} {pinned(name)}" in text for name in direct()["dev"]), REPAIR


def test_no_dependency_of_the_product_is_under_the_gpl() -> None:
    licences = [row for row in PAGE.read_text(encoding="utf-8").splitlines() if row.startswith("| ")]
    assert [row for row in licences if re.search(r"(?<!L)GPL", row)] == []


def test_licences_are_read_as_they_are_told() -> None:
    bsd, mit = (next(text for text, short in CLASSIFIERS.items() if short == name) for name in ("BSD", "MIT"))
    assert licence(Told(License_Expression="MIT AND Zlib", License="something")) == "MIT AND Zlib"  # type: ignore[arg-type]
    assert licence(Told(License="Apache License, Version 2.0\n\nmore", Classifier=[bsd])) == "Apache-2.0"  # type: ignore[arg-type]
    assert licence(Told(License="Files: *", Classifier=[bsd, mit])) == "BSD and MIT"  # type: ignore[arg-type]
    assert licence(Told(License="Copyright 2015", Classifier=[])) == "as in its text"  # type: ignore[arg-type]
    assert licence(Told()) == "not told"  # type: ignore[arg-type]
