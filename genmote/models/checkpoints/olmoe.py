"""OLMoE."""

from __future__ import annotations

from genmote.models.checkpoints._described import ATTENTION, EXPERTS, HEAD_NORMS, Described, Sizes
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._standard import experts, standard


def describe(config: Hparams) -> Described:
    config.must_be("hidden_act", "silu", "silu", "olmoe models have silu")
    config.must_be("norm_topk_prob", False, False, "experts whose weights are scaled to sum to one are not supported")
    config.must_be("clip_qkv", None, None, "queries, keys and values that are clipped are not supported")
    sizes = Sizes.of(config, experts=experts(config))
    return Described(
        "olmoe",
        sizes,
        standard(config, sizes, eps=1e-5),
        {**ATTENTION, **HEAD_NORMS, **EXPERTS},
        tied=config.flag("tie_word_embeddings", False),
        # One norm over all heads together.
        shapes={"attn_q_norm": (sizes.heads * sizes.head_dim,), "attn_k_norm": (sizes.kv_heads * sizes.head_dim,)},
    )
