"""Llama 2 and 3, SmolLM2, Mistral, and Mixtral (experts). Llama 2: Touvron et al. 2023, arXiv 2307.09288.

The converter to GGUF permutes query and key rows, so that rotary pairs are neighbours.
"""

from __future__ import annotations

from dataclasses import replace

from genmote.models.config import Config, Keys, common
from genmote.models.weights import Tensors, standard_layer
from genmote.ops.layer import Layer


def config(keys: Keys, vocab_size: int) -> Config:
    return replace(common(keys, vocab_size, interleaved=True), normalise_experts=True)


def layer(tensors: Tensors, config: Config, index: int) -> Layer:
    return standard_layer(tensors, config, index)
