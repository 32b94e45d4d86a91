"""Recipes: short programs over the whole of genmote, to run and to read."""
