"""Codecs between signals and tokens: one file each, found by its name; see `../coding.py`."""
