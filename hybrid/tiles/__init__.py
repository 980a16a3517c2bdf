"""Overlapping tiles within a memory budget: planned as data, run, blended, streamed."""
