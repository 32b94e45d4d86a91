"""Qwen3: Llama's block with each head's query and key normalised. Source: arXiv 2505.09388."""

from __future__ import annotations

from dataclasses import replace

from genmote.models.config import Config, Keys, common
from genmote.models.weights import Tensors, standard_layer
from genmote.ops.layer import Layer


def config(keys: Keys, vocab_size: int) -> Config:
    return common(keys, vocab_size)


def layer(tensors: Tensors, config: Config, index: int) -> Layer:
    head_dim = config.layers[index].head_dim
    return replace(
        standard_layer(tensors, config, index),
        q_norm=tensors.norm(f"blk.{index}.attn_q_norm", head_dim, config.eps),
        k_norm=tensors.norm(f"blk.{index}.attn_k_norm", head_dim, config.eps),
    )
