"""Scans: segmentation of volumes with published networks. Research use, not a medical device.

    import medical
    network = medical.load_model("hippocampus")         # or the path of any published checkpoint
    scan = medical.read_scan("scan.nii.gz")             # NIfTI, a DICOM folder or zip, a picture
    found = medical.segment(scan, network)
    medical.write_labels("labels.nii.gz", found.labels, scan, found.structures)

Importing the package imports no torch; the functions do when they are called.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from medical.loading import load_model

if TYPE_CHECKING:
    from medical.files.inputs import read_scan
    from medical.results.statistics import structure_statistics
    from medical.segmentation.run import segment
    from medical.volumes.label_maps import read_labels, write_labels

__all__ = ["load_model", "read_labels", "read_scan", "segment", "structure_statistics", "write_labels"]

_HOMES = {
    "read_scan": "medical.files.inputs",
    "structure_statistics": "medical.results.statistics",
    "segment": "medical.segmentation.run",
    "read_labels": "medical.volumes.label_maps",
    "write_labels": "medical.volumes.label_maps",
}


def __getattr__(name: str) -> Any:
    """Functions whose modules import torch or MONAI come when they are asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'medical' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
