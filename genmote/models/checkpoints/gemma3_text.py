"""Gemma 3 that reads text only."""

from __future__ import annotations

from genmote.models.checkpoints._described import ATTENTION, GATED, HEAD_NORMS, Described, Names, Sizes
from genmote.models.checkpoints._hparams import Hparams
from genmote.models.checkpoints._standard import rope, rope_type, standard
from genmote.models.families.gemma3 import LAYERS_OF_27B

GLOBAL_EACH = 6  # one block of six sees the whole text

NORMS: Names = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
# Published configs leave out what is the family's usual (the 4B model's).
USUAL = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
}


def describe(config: Hparams) -> Described:
    config = Hparams(config.path, USUAL | config.values)
    config.must_be("hidden_activation", "gelu_pytorch_tanh", "gelu_pytorch_tanh", "gemma3 models have it")
    config.must_be("attn_logit_softcapping", None, None, "scores that are capped are not supported")
    config.must_be("use_bidirectional_attention", False, False, "text that sees what comes after it is not supported")
    sizes = Sizes.of(config)
    _check_pattern(config, sizes)
    _check_scale(config, sizes)
    settings = rope(config)
    nested = settings.has("full_attention")
    local = settings.inner("sliding_attention", {}) if nested else Hparams(config.path, {})
    if nested:
        settings = settings.inner("full_attention")
    if rope_type(local) != "default":
        raise config.fail(f"rope_type {rope_type(local)!r:.40} of local layers is not supported; use another model")
    metadata = standard(config, sizes, rope_base=1e6, settings=settings)
    metadata["attention.sliding_window"] = config.integer("sliding_window", high=1 << 30)
    swa = local.number("rope_theta", config.number("rope_local_base_freq", 10000.0, low=2.0), low=2.0)
    metadata["rope.freq_base_swa"] = swa
    if config.has("final_logit_softcapping"):
        metadata["final_logit_softcapping"] = config.number("final_logit_softcapping")
    return Described(
        "gemma3",
        sizes,
        metadata,
        {**ATTENTION, **HEAD_NORMS, **GATED, **NORMS},
        tied=config.flag("tie_word_embeddings", True),
        norm_gain=1.0,  # the published code computes with 1 + weight
    )


def _check_pattern(config: Hparams, sizes: Sizes) -> None:
    """Files have no list of the layers that see all: it must be the published one."""
    each = GLOBAL_EACH
    usual = ["sliding_attention" if (layer + 1) % each else "full_attention" for layer in range(sizes.layers)]
    for name in ("sliding_window_pattern", "_sliding_window_pattern"):
        config.must_be(name, each, each, f"wanted every {each}th block to see the whole text")
    config.must_be("layer_types", usual, usual, f"wanted every {each}th block to see the whole text")


def _check_scale(config: Hparams, sizes: Sizes) -> None:
    """Files have no key for the scale of scores either: the size of the model decides."""
    wanted = sizes.width / sizes.heads if sizes.layers == LAYERS_OF_27B else sizes.head_dim
    scalar = config.number("query_pre_attn_scalar", low=1e-3)
    if scalar != wanted:
        raise config.fail(f"query_pre_attn_scalar = {scalar:g}: wanted {wanted:g} in a model of this size")
