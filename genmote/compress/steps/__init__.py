"""Steps of a recipe: one file each, found by its name; see `_base.py`."""
