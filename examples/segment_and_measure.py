"""Outline the hippocampus in an MR scan, and measure it. Research use, not a medical device.

    python examples/segment_and_measure.py [SCAN] [OUTPUT]

Without arguments the scan that ships is segmented into `hippocampus/`: labels on the scan's own grid, the figures of each
structure as CSV and JSON, and a preview. A scan of yours may be NIfTI or a DICOM folder, in any orientation, cut around one
hippocampus as those were on which the network was trained.
The command for the same: `medical segment SCAN -o OUTPUT`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import medical
from medical.results.preview import write_preview
from medical.results.statistics import write_statistics

SCAN = Path(__file__).resolve().parent.parent / "medical" / "examples" / "hippocampus_141.nii.gz"


def main(path: Path = SCAN, output: Path = Path("hippocampus")) -> None:
    """Write labels, figures and preview into `output`."""
    network = medical.load_model("hippocampus")
    scan = medical.read_scan(path)
    found = medical.segment(scan, network)
    output.mkdir(parents=True, exist_ok=True)
    medical.write_labels(output / "labels.nii.gz", found.labels, scan, found.structures)
    figures = medical.structure_statistics(found.labels, scan.grid, scan.values[0], found.structures)
    write_statistics(output, figures)
    write_preview(output / "preview.png", scan.values[0], found.labels, scan.grid, found.structures)
    for each in figures:
        print(f"{each.name}: {each.amount}", *each.remarks)
    for note in found.notes:
        print(note)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
