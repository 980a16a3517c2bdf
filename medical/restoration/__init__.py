"""Denoising of scans: slices, protocol, files, training, figures."""
