"""Lines that tests run, package by package, from a report of coverage.py.

make coverage
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path


def main() -> None:
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for name, file in json.loads(Path(sys.argv[1]).read_text())["files"].items():
        parts = Path(name).parts
        for table, key in ((totals, parts[0]), (rooms, "/".join(parts[:2]))):
            table[key][0] += file["summary"]["covered_lines"]
            table[key][1] += file["summary"]["num_statements"]
    print("| package | lines | run by tests |\n|---|---|---|")
    for key, (run, lines) in sorted(totals.items()):
        print(f"| `{key}` | {lines:,} | {run / lines:.1%} |")
    least = sorted((run / lines, key) for key, (run, lines) in rooms.items() if lines >= 50)[:8]
    print("\nLeast: " + ", ".join(f"`{key}` {share:.1%}" for share, key in least))


if __name__ == "__main__":
    main()
