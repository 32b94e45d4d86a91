"""Qwen3 with experts."""

from __future__ import annotations

from dataclasses import replace

from genmote.models.checkpoints._described import EXPERTS, Described, Sizes
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._standard import experts
from genmote.models.checkpoints.qwen3 import head_dim, with_head_norms


def describe(config: Hparams) -> Described:
    config.must_be("norm_topk_prob", True, False, "experts whose weights do not sum to one are not supported")
    config.must_be("decoder_sparse_step", 1, 1, "blocks without experts are not supported")
    config.must_be("mlp_only_layers", [], [], "blocks without experts are not supported")
    inner = config.integer("moe_intermediate_size")
    sizes = Sizes.of(config, head_dim=head_dim(config), experts=experts(config), ffn=inner)
    described = with_head_norms("qwen3moe", config, sizes, EXPERTS)
    return replace(described, metadata={**described.metadata, "expert_feed_forward_length": inner})
