"""Model families: `NAME.py` is found by a file's `general.architecture` and has two functions.

config(keys, vocab_size) -> Config        what the model computes with, from the file's metadata
layer(tensors, config, index) -> Layer    the weights of one block
"""
