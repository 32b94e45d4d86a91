"""What an adapter may change, by GGUF's names: plain words, for settings that load no NumPy."""

from __future__ import annotations

PARTS = {  # the field of `Layer` that each of a block's tensors fills
    "attn_q": "q",
    "attn_k": "k",
    "attn_v": "v",
    "attn_output": "o",
    "ffn_gate": "gate",
    "ffn_up": "up",
    "ffn_down": "down",
}
HEAD = "output.weight"
NORMS = {  # and each of its norms
    "attn_norm": "attn_norm",
    "attn_q_norm": "q_norm",
    "attn_k_norm": "k_norm",
    "post_attention_norm": "post_attn_norm",
    "ffn_norm": "ffn_norm",
    "post_ffw_norm": "post_ffn_norm",
}
OUTPUT_NORM = "output_norm"
