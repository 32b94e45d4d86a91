"""Signals: what a sensor recorded, the files it lies in, and what can be measured on it."""
