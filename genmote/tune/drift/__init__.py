"""Drift detectors: one file each, found by its name; see `_base.py`."""
