"""Measurements, explained in README.md in this folder: `python -m benchmarks.model`."""
