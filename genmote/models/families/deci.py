"""Llama's block under the one name with which llama.cpp lets its widths differ from layer to layer (DeciLM, Nvidia's
Llama-Nemotron). Source: Bercovich et al. 2024, "Puzzle", arXiv 2411.19146.

Their layers without attention or without a feed-forward part are not supported: 0 heads or a width of 0 is refused.
"""

from __future__ import annotations

from genmote.models.config import Config, Keys, common
from genmote.models.families import llama

layer = llama.layer


def config(keys: Keys, vocab_size: int) -> Config:
    return common(keys, vocab_size, interleaved=True)
