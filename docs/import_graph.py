"""Which room of the house imports which: the picture and the tables of docs/architecture.md, from the code.

    python docs/import_graph.py        # draws docs/import_graph.webp and writes the tables anew

A room is a sub-package, or a module that lies in a package by itself. Imports under TYPE_CHECKING say nothing of what runs.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("apps", "medical", "restore", "data_specs", "hybrid")
"""From the top of the hill to its foot."""
PAGE, PICTURE = ROOT / "docs" / "architecture.md", ROOT / "docs" / "import_graph.webp"
BEGIN, END = "<!-- made by import_graph.py -->", "<!-- end -->"

Graph = Mapping[str, Counter[str]]
"""For each room the rooms that it imports, and how many times."""


def modules() -> Iterator[Path]:
    """The files of the packages."""
    for package in PACKAGES:
        yield from sorted((ROOT / package).rglob("*.py"))


def room_of(module: str) -> str:
    """The room of a dotted name.

    >>> room_of("hybrid.blocks.attention"), room_of("hybrid.errors"), room_of("data_specs")
    ('hybrid.blocks', 'hybrid.errors', 'data_specs')
    """
    return ".".join(module.split(".")[:2])


def import_graph() -> Graph:
    """The imports between rooms, also those inside functions."""
    graph: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path in modules():
        parts = path.relative_to(ROOT).with_suffix("").parts
        own = room_of(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
        graph[own].update(room for room in imported_rooms(ast.parse(path.read_text())) if room != own)
    return graph


def imported_rooms(tree: ast.AST) -> Iterator[str]:
    """Rooms of this house that code imports."""
    for node in running(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            within = "." not in node.module  # from a package: what is named may be a room
            names = [f"{node.module}.{alias.name}" if within else node.module for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package in PACKAGES:
                there = rest and any((ROOT / package / rest.split(".")[0]).with_suffix(end).exists() for end in ("", ".py"))
                yield room_of(name) if there else package


def running(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker sees."""
    left = [tree]
    while left:
        node = left.pop()
        if not (isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"):
            yield node
            left.extend(ast.iter_child_nodes(node))


def downhill(graph: Graph) -> list[str]:
    """The rooms so that each stands above all that it imports, packages in their order; as many as can be had without a cycle."""
    above: list[str] = []
    left = set(graph) | {room for found in graph.values() for room in found}
    while left:
        free = [room for room in left if not any(graph[other][room] for other in left if other in graph and other != room)]
        if not free:
            break
        above.append(min(free, key=lambda room: (PACKAGES.index(room.split(".")[0]), room)))
        left.remove(above[-1])
    return above


def circles(graph: Graph) -> set[str]:
    """Rooms that import each other in a circle, or stand below such a one."""
    return ({*graph} | {room for found in graph.values() for room in found}) - {*downhill(graph)}


def lines_of(path: Path) -> int:
    return path.read_text().count("\n")


def tables() -> str:
    """Lines of each package and the longest files, in Markdown."""
    files, lines, rooms = Counter[str](), Counter[str](), defaultdict(set)
    for path in modules():
        package = path.relative_to(ROOT).parts[0]
        files[package] += 1
        lines[package] += lines_of(path)
        rooms[package].add(room_of(".".join(path.relative_to(ROOT).with_suffix("").parts)))
    rows = [f"| `{name}` | {len(rooms[name])} | {files[name]} | {lines[name]:,} |" for name in PACKAGES]
    longest = sorted(modules(), key=lines_of, reverse=True)[:10]
    table = ["| package | rooms | files | lines |", "|---|---|---|---|", *rows, "", "| longest files | lines |", "|---|---|"]
    return "\n".join([*table, *(f"| `{path.relative_to(ROOT)}` | {lines_of(path)} |" for path in longest)])


def draw(graph: Graph, path: Path) -> None:
    """The rooms as a matrix: a mark where the room of a row imports that of a column. Downhill is above the diagonal."""
    from matplotlib import pyplot as plt
    from matplotlib.patches import Rectangle

    order = [room for room in downhill(graph) if "." in room]
    place = {room: number for number, room in enumerate(order)}
    figure, axes = plt.subplots(figsize=(13, 13), layout="constrained")
    for row in order:
        for column, count in graph[row].items():
            if column in place:
                axes.scatter(place[column], place[row], s=12 + 9 * min(count, 12), color="#1f5f8b", zorder=3)
    for package in PACKAGES:
        own = [place[room] for room in order if room.split(".")[0] == package]
        if own:
            corner, edge = min(own) - 0.5, max(own) - min(own) + 1
            axes.add_patch(Rectangle((corner, corner), edge, edge, facecolor="#f0e6d2", edgecolor="#b09050"))
    axes.plot([-0.5, len(order) - 0.5], [-0.5, len(order) - 0.5], color="#888888", linewidth=0.6)
    axes.set_xticks(range(len(order)), order, rotation=90, fontsize=7)
    axes.set_yticks(range(len(order)), order, fontsize=7)
    axes.set(xlim=(-0.5, len(order) - 0.5), ylim=(len(order) - 0.5, -0.5), xlabel="is imported", ylabel="imports")
    axes.set_title(
        "Who imports whom: larger marks, more imports. All lie above the line: no room imports one that stands above it."
    )
    axes.set_aspect("equal")
    figure.savefig(path, dpi=90, pil_kwargs={"lossless": True})
    plt.close(figure)


def main() -> None:
    graph = import_graph()
    draw(graph, PICTURE)
    page = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n\n{tables()}\n\n{END}", page, flags=re.S))


if __name__ == "__main__":
    main()
