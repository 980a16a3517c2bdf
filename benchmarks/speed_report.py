"""Table and plots of what `benchmarks.speed` measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HEAD = (
    "network",
    "input",
    "precision",
    "s",
    "peer, s",
    "ratio (range)",
    "of the roof",
    "largest difference",
    "memory, ours / peer, MiB",
)


def write_report(facts: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `speed.md`, `speed.png` and, where times by size or threads are there, `scaling.png`; returns them."""
    rows, machine = facts["rows"], facts["machine"]
    lines = ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
    lines += ["| " + " | ".join(_cells(row, facts["roof_gflops"])) + " |" for row in rows]
    roofs = ", ".join(f"{roof:.0f} GFLOP/s in {precision}" for precision, roof in facts["roof_gflops"].items())
    said = (
        f"{machine['cpu']}, {facts['threads']} threads, torch {machine['torch']}; the peer computes in float32, "
        "with the allocator as the system sets it. Medians; roof: "
        f"the better of a matrix product and a convolution on this machine ({roofs}), against the operations of the peer's "
        "formula."
    )
    table = folder / "speed.md"
    table.write_text("\n".join([said, "", *lines, ""]))
    written = [table]
    if rows:
        written.append(_draw_ratios(rows, folder / "speed.png"))
    if any(row["by_size"] or row["by_threads"] for row in rows):
        written.append(_draw_scaling(rows, folder / "scaling.png"))
    return written


def _cells(row: Mapping[str, Any], roofs: Mapping[str, float]) -> list[str]:
    ratios = row["ratios"]
    edge = f"{row['size']}³" if row["name"].startswith("swin_unetr") else f"{row['size']}²"
    share = row["gflop"] / row["seconds"] / roofs[row["precision"]]
    return [
        row["title"], edge, row["precision"], f"{row['seconds']:.3f}", f"{row['peer_seconds']:.3f}",
        f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", f"{share:.0%}",
        f"{row['difference']:.0e} of {row['peer_range']:.2g}", f"{row['memory']:.0f} / {row['peer_memory']:.0f}",
    ]  # fmt: skip


def _draw_ratios(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    from matplotlib import pyplot as plt

    names = list(dict.fromkeys(row["title"] for row in rows))
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    figure, (speed, memory) = plt.subplots(1, 2, figsize=(11, 0.6 * len(names) + 1.6), sharey=True, layout="constrained")
    height = 0.8 / len(precisions)
    for number, precision in enumerate(precisions):
        own = {row["title"]: row for row in rows if row["precision"] == precision}
        there = [name for name in names if name in own]
        places = [names.index(name) + (number - (len(precisions) - 1) / 2) * height for name in there]
        ratios = [statistics.median(own[name]["ratios"]) for name in there]
        bars = speed.barh(places, ratios, 0.9 * height, label=precision)
        speed.bar_label(bars, [f"{ratio:.1f}" for ratio in ratios], padding=3)
        shares = [own[name]["memory"] / own[name]["peer_memory"] for name in there]
        bars = memory.barh(places, shares, 0.9 * height, label=precision)
        memory.bar_label(bars, [f"{share:.2f}" for share in shares], padding=3)
    speed.set_yticks(range(len(names)), names)
    speed.invert_yaxis()
    for axes, title in ((speed, "times as fast as the peer in float32"), (memory, "memory, in parts of the peer's")):
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_xlabel(title)
        axes.margins(x=0.12)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*speed.get_legend_handles_labels(), loc="outside upper right", ncols=len(precisions), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw_scaling(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    from matplotlib import pyplot as plt

    figure, (size, threads) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for row in rows:
        if row["precision"] != "float32":
            continue
        dims = 3 if row["name"].startswith("swin_unetr") else 2
        by_size = {int(edge): seconds for edge, seconds in row["by_size"].items()}
        size.plot(
            [edge**dims for edge in by_size], [1e6 * s / edge**dims for edge, s in by_size.items()], "o-", label=row["title"]
        )
        by_threads = {int(count): seconds for count, seconds in row["by_threads"].items()}
        first = by_threads.get(1)
        if first is not None:
            threads.plot(list(by_threads), [first / seconds for seconds in by_threads.values()], "o-", label=row["title"])
    size.set(xscale="log", yscale="log", xlabel="pixels or voxels of the input", ylabel="microseconds for each")
    threads.set(xlabel="threads", ylabel="times as fast as with one")
    threads.xaxis.get_major_locator().set_params(integer=True)
    threads.set_ylim(0, None)
    for axes in (size, threads):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    figure.legend(*size.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4, loc="outside upper center")
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path
