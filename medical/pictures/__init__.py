"""Pictures as scans of one slice: read, segmented, written, measured."""
