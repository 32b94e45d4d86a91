"""Ways to choose which examples to learn from: one file each, found by its name; see `_base.py`."""
