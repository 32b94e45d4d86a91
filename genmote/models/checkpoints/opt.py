"""OPT; the metadata's form is stated in docs/formats.md."""

from __future__ import annotations

from genmote.models.checkpoints._described import Described, Names, Sizes
from genmote.models.checkpoints._hparams import Hparams

BLOCK: Names = {
    "attn_norm": "self_attn_layer_norm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.out_proj",
    "ffn_norm": "final_layer_norm",
    "ffn_up": "fc1",
    "ffn_down": "fc2",
}


def describe(config: Hparams) -> Described:
    config.must_be("activation_function", "relu", "relu", "OPT models have relu")
    for name in ("do_layer_norm_before", "enable_bias", "layer_norm_elementwise_affine"):
        config.must_be(name, True, True, "OPT's other forms (OPT-350M) are not supported")
    config.must_be("_remove_final_layer_norm", False, False, "OPT without a last norm is not supported")
    sizes = Sizes.of(config, ffn=config.integer("ffn_dim"), kv_heads=config.integer("num_attention_heads"))
    width = config.integer("word_embed_proj_dim", sizes.width)
    if width != sizes.width:
        raise config.fail(f"word_embed_proj_dim = {width}: embeddings of another width are not supported")
    return Described(
        "opt",
        sizes,
        {
            "block_count": sizes.layers,
            "context_length": sizes.context,
            "embedding_length": sizes.width,
            "feed_forward_length": sizes.ffn,
            "attention.head_count": sizes.heads,
            "attention.head_count_kv": sizes.heads,
            "attention.layer_norm_epsilon": 1e-5,  # PyTorch's, which the published code does not change
        },
        BLOCK,
        tied=config.flag("tie_word_embeddings", True),
        norm_biases=True,
        biased=tuple(part for part in BLOCK if not part.endswith("_norm")),
        output_norm="final_layer_norm",
        positions=2,  # the published table's first two rows are not used
    )
