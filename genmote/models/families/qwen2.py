"""Qwen2 and Qwen2.5: Llama's block with biases on query, key and value. Source: arXiv 2407.10671."""

from __future__ import annotations

from genmote.models.config import Config, Keys, common
from genmote.models.weights import Tensors, standard_layer
from genmote.ops.layer import Layer


def config(keys: Keys, vocab_size: int) -> Config:
    return common(keys, vocab_size)


def layer(tensors: Tensors, config: Config, index: int) -> Layer:
    return standard_layer(tensors, config, index, biased=("attn_q", "attn_k", "attn_v"))
