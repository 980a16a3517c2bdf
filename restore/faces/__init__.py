"""Faces in photographs: found, aligned, restored, pasted back; their training and their figures."""
