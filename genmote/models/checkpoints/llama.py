"""Llama 2 and 3, SmolLM2, and whatever else says that it is a `llama`."""

from __future__ import annotations

from genmote.models.checkpoints._described import ATTENTION, GATED, Described, Sizes
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._standard import llama3_factors, standard


def describe(config: Hparams) -> Described:
    config.must_be("hidden_act", "silu", "silu", "llama models have silu")
    sizes = Sizes.of(config)
    metadata = standard(config, sizes)
    return Described(
        "llama",
        sizes,
        {**metadata, "vocab_size": sizes.vocab, "rope.dimension_count": sizes.head_dim},
        {**ATTENTION, **GATED},
        tied=config.flag("tie_word_embeddings", False),
        interleaved=True,
        rope_factors=llama3_factors(config, sizes),
    )
