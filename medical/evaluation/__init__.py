"""Segmentations against references: metrics, cases, tables, comparisons."""
