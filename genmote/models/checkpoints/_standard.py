"""What most families' config.json has in common: the usual metadata, and rotary positions with their scaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genmote.models.checkpoints._described import Sizes
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.rope import llama3_factors as rope_factors


def standard(
    config: Hparams, sizes: Sizes, *, eps: float = 1e-6, rope_base: float = 10000.0, settings: Hparams | None = None
) -> dict[str, Any]:
    """The metadata that every family with rotary positions has; `eps` and `rope_base` where the config has none.

    `settings`: of rotary positions, where they do not lie in the usual place.
    """
    made: dict[str, Any] = {
        "block_count": sizes.layers,
        "context_length": sizes.context,
        "embedding_length": sizes.width,
        "feed_forward_length": config.integer("intermediate_size"),
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps", eps, high=1.0),
    }
    if config.has("head_dim") or sizes.heads * sizes.head_dim != sizes.width:
        made |= {"attention.key_length": sizes.head_dim, "attention.value_length": sizes.head_dim}
    if sizes.experts:
        made |= {
            "expert_count": sizes.experts,
            "expert_used_count": config.integer("num_experts_per_tok", high=sizes.experts),
        }
    return made | _rotary(config, settings or rope(config), sizes, rope_base)


def experts(config: Hparams) -> int:
    """How many experts there are; both spellings of the key are in use."""
    name = "num_experts" if config.has("num_experts") else "num_local_experts"
    return config.integer(name, high=1 << 16)


def rope(config: Hparams) -> Hparams:
    """The settings of rotary positions: one object now, a number and an object before."""
    name = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    return config.inner(name, {})


def _rotary(config: Hparams, settings: Hparams, sizes: Sizes, base: float) -> dict[str, Any]:
    """Metadata of rotary positions with `settings`; Llama 3's scaling becomes a tensor, see `llama3_factors`."""
    base = config.number("rope_theta", base, low=2.0)
    made: dict[str, Any] = {"rope.freq_base": settings.number("rope_theta", base, low=2.0)}
    settings.must_be("partial_rotary_factor", 1.0, 1.0, "heads that turn in part are not supported")
    kind = rope_type(settings)
    if kind in ("linear", "yarn"):
        made |= {"rope.scaling.type": kind, "rope.scaling.factor": settings.number("factor", low=1.0)}
    if kind == "yarn":
        made |= _yarn(settings, made["rope.scaling.factor"], sizes)
    if kind not in ("default", "linear", "yarn", "llama3"):
        raise settings.fail(
            f"rope_type {kind!r:.40} is not supported: there are default, linear, yarn, llama3; use another model"
        )
    return made


def rope_type(settings: Hparams) -> str:
    return settings.text("rope_type", settings.text("type", "default"))


def _yarn(settings: Hparams, factor: float, sizes: Sizes) -> dict[str, Any]:
    """Peng et al. 2023 (arXiv 2309.00071). Attention's temperature is kept as a multiple of the paper's."""
    settings.must_be("truncate", True, True, "bounds that are not rounded are not supported")
    made: dict[str, Any] = {
        "rope.scaling.original_context_length": settings.integer(
            "original_max_position_embeddings", sizes.context, high=1 << 30
        )
    }
    for theirs, ours in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
        if settings.has(theirs):
            made[f"rope.scaling.{ours}"] = settings.number(theirs, low=1e-3)

    def temperature(weight: float = 1.0) -> float:
        return 1.0 + 0.1 * weight * math.log(factor)

    wanted = temperature()
    if settings.has("attention_factor"):
        wanted = settings.number("attention_factor", low=1e-3)
    elif settings.has("mscale") and settings.has("mscale_all_dim"):
        wanted = temperature(settings.number("mscale")) / temperature(settings.number("mscale_all_dim"))
    if not math.isclose(wanted, temperature()):
        made["rope.scaling.attn_factor"] = wanted / temperature()
    return made


def llama3_factors(config: Hparams, sizes: Sizes) -> NDArray[np.float32] | None:
    """By how much Llama 3.1 and later slow down each pair of dimensions; None for other scalings. (head_dim / 2,)"""
    settings = rope(config)
    if rope_type(settings) != "llama3":
        return None
    low = settings.number("low_freq_factor", low=1e-3)
    return rope_factors(
        sizes.head_dim,
        settings.number("rope_theta", config.number("rope_theta", 10000.0, low=2.0), low=2.0),
        settings.number("factor", low=1.0),
        low,
        settings.number("high_freq_factor", low=low + 1e-3),
        settings.integer("original_max_position_embeddings", high=1 << 30),
    )


def windowed(config: Hparams, used: bool) -> tuple[str, ...]:
    """What to tell of a sliding window, which the files of these families have no key for."""
    window = config.integer("sliding_window", 0, low=0, high=1 << 30) if used else 0
    if not 0 < window < config.integer("max_position_embeddings", high=1 << 30):
        return ()
    return (f"its sliding window of {window} tokens is left out: a longer text attends to all of itself",)
