"""Readers of signal files, one a file: see `../reading.py` for what each has."""
