"""Scans and label maps with the grid they lie on, read and written."""
