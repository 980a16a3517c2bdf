"""Benchmarks by the protocols of the papers: methods, test sets, figures, tables."""
