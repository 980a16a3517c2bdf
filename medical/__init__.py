"""Scans: segmentation of volumes with published networks. Research use, not a medical device."""

from __future__ import annotations

from medical.loading import load_model

__all__ = ["load_model"]
