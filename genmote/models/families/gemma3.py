"""Gemma 3 (text): norms before and after each half, five local layers to one global. Source: arXiv 2503.19786.

The converter to GGUF has added one to every norm weight.
"""

from __future__ import annotations

import math
from dataclasses import replace

from genmote.models.config import Config, Keys, common
from genmote.models.rope import RopeTable, frequencies
from genmote.models.weights import Tensors, standard_layer
from genmote.ops.layer import Layer, LayerSpec

GLOBAL, LOCAL = 0, 1  # rotary tables: the file's, and the local layers' (base 10 000, never scaled)
LAYERS_OF_27B = 62  # the one size whose score scale is not head_dim**-0.5 but (width / heads)**-0.5


def config(keys: Keys, vocab_size: int) -> Config:
    base = common(keys, vocab_size, activation="gelu")
    window = keys.integer("attention.sliding_window", 0, low=0)
    local_layers = keys.flags("attention.sliding_window_pattern", base.n_layers)
    if local_layers is None:  # one number: every so many layers one is global
        pattern = keys.integer("attention.sliding_window_pattern", 6)
        local_layers = tuple((index + 1) % pattern != 0 for index in range(base.n_layers))
    local_rope = RopeTable(frequencies(keys.number("rope.freq_base_swa", 10000.0, low=2.0), base.ropes[0].dims))
    scale = base.layers[0].scale
    if base.n_layers == LAYERS_OF_27B and not keys.has("attention.scale"):
        scale = (base.width / base.heads[0]) ** -0.5

    def spec(plain: LayerSpec) -> LayerSpec:
        local = local_layers[plain.index]
        return replace(plain, scale=scale, window=window if local else 0, rope=LOCAL if local else GLOBAL)

    return replace(
        base,
        layers=tuple(spec(plain) for plain in base.layers),
        ropes=(base.ropes[0], local_rope),
        embedding_scale=math.sqrt(base.width),
    )


def layer(tensors: Tensors, config: Config, index: int) -> Layer:
    head_dim = config.layers[index].head_dim
    return replace(
        standard_layer(tensors, config, index),
        q_norm=tensors.norm(f"blk.{index}.attn_q_norm", head_dim, config.eps),
        k_norm=tensors.norm(f"blk.{index}.attn_k_norm", head_dim, config.eps),
        post_attn_norm=tensors.norm(f"blk.{index}.post_attention_norm", config.width, config.eps),
        post_ffn_norm=tensors.norm(f"blk.{index}.post_ffw_norm", config.width, config.eps),
    )
