"""Hugging Face model folders: `NAME.py` is found by config.json's `model_type` and has one function.

describe(config) -> Described    the GGUF family, its metadata, and which tensors of the folder become which of its

A family that has no file here cannot be converted; a new file here is all that it takes.
"""
