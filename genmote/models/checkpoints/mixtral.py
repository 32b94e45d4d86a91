"""Mixtral: a `llama` with experts (arXiv 2401.04088)."""

from __future__ import annotations

from genmote.models.checkpoints._described import ATTENTION, Described, Names, Sizes
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._standard import experts, standard, windowed

EXPERTS: Names = {
    "ffn_gate_inp": ("block_sparse_moe.gate", "mlp.gate"),
    "ffn_gate_exps": ("block_sparse_moe.experts.{}.w1", "mlp.experts.gate_up_proj"),
    "ffn_up_exps": ("block_sparse_moe.experts.{}.w3", "mlp.experts.gate_up_proj"),
    "ffn_down_exps": ("block_sparse_moe.experts.{}.w2", "mlp.experts.down_proj"),
}


def describe(config: Hparams) -> Described:
    config.must_be("hidden_act", "silu", "silu", "mixtral models have silu")
    sizes = Sizes.of(config, experts=experts(config))
    metadata = standard(config, sizes, eps=1e-5, rope_base=1e6)
    return Described(
        "llama",
        sizes,
        {**metadata, "vocab_size": sizes.vocab, "rope.dimension_count": sizes.head_dim},
        {**ATTENTION, **EXPERTS},
        tied=config.flag("tie_word_embeddings", False),
        interleaved=True,
        notes=windowed(config, used=True),
    )
