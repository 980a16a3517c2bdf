"""Lesions found against lesions that are there."""
