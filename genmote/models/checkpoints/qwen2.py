"""Qwen2 and Qwen2.5."""

from __future__ import annotations

from genmote.models.checkpoints._described import ATTENTION, GATED, Described, Sizes
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._standard import standard, windowed


def describe(config: Hparams) -> Described:
    config.must_be("hidden_act", "silu", "silu", "qwen2 models have silu")
    sizes = Sizes.of(config)
    return Described(
        "qwen2",
        sizes,
        standard(config, sizes),
        {**ATTENTION, **GATED},
        tied=config.flag("tie_word_embeddings", False),
        biased=("attn_q", "attn_k", "attn_v"),
        notes=windowed(config, used=config.flag("use_sliding_window", False)),
    )
