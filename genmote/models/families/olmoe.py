"""OLMoE: query and key normalised over all heads together; expert weights as the softmax gave them.

Source: arXiv 2409.02060.
"""

from __future__ import annotations

from dataclasses import replace

from genmote.models.config import Config, Keys, common
from genmote.models.weights import Tensors, standard_layer
from genmote.ops.layer import Layer


def config(keys: Keys, vocab_size: int) -> Config:
    return common(keys, vocab_size)


def layer(tensors: Tensors, config: Config, index: int) -> Layer:
    spec = config.layers[index]
    return replace(
        standard_layer(tensors, config, index),
        q_norm=tensors.norm(f"blk.{index}.attn_q_norm", spec.n_heads * spec.head_dim, config.eps),
        k_norm=tensors.norm(f"blk.{index}.attn_k_norm", spec.n_kv_heads * spec.head_dim, config.eps),
    )
