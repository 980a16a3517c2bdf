"""The road of a segmentation: preparation, windows, label map, files."""
