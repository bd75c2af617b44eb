"""Measurements that README.md beside this file explains: `python -m benchmarks.model`."""
