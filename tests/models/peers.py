"""Small models of transformers with random weights, saved as the folders that the converter takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

BASE = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
TRAINED_SHORT = {"original_max_position_embeddings": 16, "rope_theta": 10000.0, "factor": 4.0}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0, **TRAINED_SHORT}
YARN = {"rope_type": "yarn", **TRAINED_SHORT}
LOCAL = {"rope_type": "default", "rope_theta": 10000.0}
GEMMA = {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 7, "query_pre_attn_scalar": 16}

# a case: (family, class in transformers, what differs from BASE)
CASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("llama", "Llama", {}),
    "llama-tied": ("llama", "Llama", {"tie_word_embeddings": True}),
    "llama-biased": ("llama", "Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("llama", "Llama", {"head_dim": 16}),
    "llama-linear": ("llama", "Llama", {"rope_parameters": {**TRAINED_SHORT, "rope_type": "linear"}}),
    "llama-llama3": ("llama", "Llama", {"rope_parameters": LLAMA3}),
    "llama-yarn": ("llama", "Llama", {"rope_parameters": YARN}),
    "llama-yarn-cooler": ("llama", "Llama", {"rope_parameters": {**YARN, "attention_factor": 0.9, "beta_fast": 16.0}}),
    "llama-yarn-mscale": ("llama", "Llama", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3}}),
    "mistral": ("llama", "Mistral", {"sliding_window": None}),
    "mixtral": ("llama", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2": ("qwen2", "Qwen2", {"use_sliding_window": False}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 16}),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3Moe",
        {"head_dim": 16, "moe_intermediate_size": 24, "norm_topk_prob": True, **EXPERTS},
    ),
    "olmoe": ("olmoe", "Olmoe", {"norm_topk_prob": False, "eos_token_id": 1, **EXPERTS}),
    "gemma3": ("gemma3", "Gemma3", GEMMA),
    "gemma3-linear": (
        "gemma3",
        "Gemma3",
        {
            **GEMMA,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": LOCAL,
            },
        },
    ),
    "opt": ("opt", "OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}


def random_peer(case: str) -> Any:
    """A small transformers model whose weights are large enough that attention and routing are not uniform."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    _, name, options = CASES[case]
    text = "Text" if name == "Gemma3" else ""
    config = getattr(transformers, f"{name}{text}Config")(**{**BASE, **options}, attn_implementation="eager")
    torch.manual_seed(7)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.ndim > 1:
                value.normal_(0.0, 1.5 * value.shape[-1] ** -0.5)
            elif key.endswith("bias"):
                value.normal_(0.0, 0.3)
            else:
                value.normal_(0.0 if name == "Gemma3" else 1.0, 0.3)
    return model


def save(model: Any, folder: Path, **options: Any) -> Path:
    """The model as a folder, with a tokenizer."""
    model.save_pretrained(folder, **options)
    (folder / "tokenizer.json").write_text(byte_level().to_str(), encoding="utf-8")
    return folder


def logits_of(model: Any, tokens: np.ndarray) -> np.ndarray:
    """What transformers makes of some tokens. (T,) -> (T, V)"""
    import torch

    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(tokens[None]), use_cache=False).logits[0].float().numpy()
    return logits


TEXT = (
    "The sensor in room 1 reads 23.5 degrees; it's 40% humid. Don't open the 2nd window! Where's the sensor's battery?"
)


def byte_level(pre_tokenizer: Any = None, *, size: int = 390, specials: tuple[str, ...] = ("<s>", "</s>")) -> Any:
    """A byte-level BPE of the `tokenizers` library, trained on a few sentences; GPT-2's way to cut unless given."""
    tokenizers = pytest.importorskip("tokenizers")
    library = tokenizers.Tokenizer(tokenizers.models.BPE())
    level = tokenizers.pre_tokenizers.ByteLevel
    library.pre_tokenizer = pre_tokenizer or level(add_prefix_space=False)
    library.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=level.alphabet(), special_tokens=list(specials)
    )
    library.train_from_iterator([TEXT, TEXT.upper(), "12 345 6789 \n\n  x\t y "] * 3, trainer)
    return library


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def edit_json(path: Path, **changes: Any) -> None:
    """Change some values of a JSON file; None takes a key out."""
    values = json.loads(path.read_text(encoding="utf-8"))
    values = {key: value for key, value in {**values, **changes}.items() if value is not None}
    write_json(path, values)
