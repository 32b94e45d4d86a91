"""OPT: layer norms, biases, ReLU, learned positions. Source: arXiv 2205.01068.

GGUF has no convention for it; `docs/formats.md` states ours. Row p of position_embd.weight is position p: the two
unused leading rows of the published table are left out. OPT-350M (norms after the residual) is another model.
"""

from __future__ import annotations

from genmote.models.config import Config, Keys, common
from genmote.models.weights import Tensors, standard_layer
from genmote.ops.layer import Layer

BIASED = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_up", "ffn_down")


def config(keys: Keys, vocab_size: int) -> Config:
    return common(keys, vocab_size, activation="relu", rotary=False, eps="attention.layer_norm_epsilon")


def layer(tensors: Tensors, config: Config, index: int) -> Layer:
    return standard_layer(tensors, config, index, biased=BIASED, centre=True)
