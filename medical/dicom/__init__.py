"""DICOM series to volumes, and segmentations to DICOM SEG."""
