"""Qwen3."""

from __future__ import annotations

from genmote.models.checkpoints._described import ATTENTION, GATED, HEAD_NORMS, Described, Names, Sizes
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._standard import standard, windowed

HEAD_DIM = 128  # where the config has none


def describe(config: Hparams) -> Described:
    return with_head_norms("qwen3", config, Sizes.of(config, head_dim=head_dim(config)), GATED)


def with_head_norms(architecture: str, config: Hparams, sizes: Sizes, feed_forward: Names) -> Described:
    """Qwen3's block with either feed-forward part."""
    config.must_be("hidden_act", "silu", "silu", f"{architecture} models have silu")
    return Described(
        architecture,
        sizes,
        standard(config, sizes),
        {**ATTENTION, **HEAD_NORMS, **feed_forward},
        tied=config.flag("tie_word_embeddings", False),
        notes=windowed(config, used=config.flag("use_sliding_window", False)),
    )


def head_dim(config: Hparams) -> int:
    return config.integer("head_dim", HEAD_DIM, high=4096)
