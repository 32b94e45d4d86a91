"""Qwen3 mixture of experts: Qwen3's attention, experts whose weights are scaled to sum to one.

Source: arXiv 2505.09388.
"""

from __future__ import annotations

from dataclasses import replace

from genmote.models.config import Config, Keys, common
from genmote.models.families import qwen3

layer = qwen3.layer


def config(keys: Keys, vocab_size: int) -> Config:
    return replace(common(keys, vocab_size, ffn="expert_feed_forward_length"), normalise_experts=True)
