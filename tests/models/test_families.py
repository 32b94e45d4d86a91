"""Every family against an independent implementation of it, and every way in which a file can be wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import registry
from genmote.errors import ModelFileError
from genmote.models.config import FAMILIES, read_config
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model, shape_names
from genmote.models.weights import GgufWeights
from genmote.ops.numpy_ops import NumpyCache, NumpyOps
from genmote.ops.protocol import Span

BASE = {
    "vocab_size": 96,
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

# a case: (family, class in transformers, what differs from BASE, metadata that the differences become)
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama": ("llama", "Llama", {}, {}),
    "llama-linear": (
        "llama",
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
    ),
    "llama-llama3": ("llama", "Llama", {"rope_parameters": LLAMA3}, {}),
    "llama-yarn": (
        "llama",
        "Llama",
        {"rope_parameters": {"rope_type": "yarn", **TRAINED_SHORT}},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 16},
    ),
    "deci": ("deci", "Llama", {}, {}),
    "mixtral": ("llama", "Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, {}),
    "qwen2": ("qwen2", "Qwen2", {"use_sliding_window": False}, {}),
    "qwen3": ("qwen3", "Qwen3", {"head_dim": 16}, {}),
    "qwen3moe": (
        "qwen3moe",
        "Qwen3Moe",
        {"head_dim": 16, "moe_intermediate_size": 24, "norm_topk_prob": True, **EXPERTS},
        {},
    ),
    "olmoe": ("olmoe", "Olmoe", {"norm_topk_prob": False, "eos_token_id": 1, **EXPERTS}, {}),
    "gemma3": (
        "gemma3",
        "Gemma3",
        {"head_dim": 16, "sliding_window": 8, "num_hidden_layers": 7, "query_pre_attn_scalar": 16},
        {"attention.sliding_window": 8, "rope.freq_base": 1e6},
    ),
    "opt": ("opt", "OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}, {}),
}

NAMES = {  # tensors of one block: transformers' names → GGUF's
    "input_layernorm": "attn_norm",
    "self_attn_layer_norm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.out_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "final_layer_norm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "fc1": "ffn_up",
    "fc2": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.down_proj": "ffn_down_exps",
}
GEMMA = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
OUTSIDE = {
    "embed_tokens": "token_embd",
    "embed_positions": "position_embd",
    "norm": "output_norm",
    "final_layer_norm": "output_norm",
    "lm_head": "output",
}


class WideCache(NumpyCache):
    def stored(self, k: Any, v: Any) -> Any:
        return {"k": k, "v": v}


class WideCacheOps(NumpyOps):
    """The reference without the cache's rounding to float16, to compare with implementations that have none."""

    def cache(self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, **settings: Any) -> NumpyCache:
        cache = WideCache(n_layers, n_kv_heads, head_dim, capacity)
        cache.parts = [{name: np.zeros(x.shape, np.float32) for name, x in layer.items()} for layer in cache.parts]
        return cache


def random_peer(name: str, options: dict[str, Any]) -> Any:
    """A small transformers model whose weights are large enough that attention and routing are not uniform."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    transformers.logging.set_verbosity_error()
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


def to_gguf(model: Any, path: Path, family: str, extra: dict[str, Any]) -> None:
    """What a converter does, for the families above."""
    config = model.config
    tensors: dict[str, np.ndarray] = {}
    for key, value in model.state_dict().items():
        array = value.float().numpy()
        stem, _, end = key.rpartition(".")
        end = end if end in ("weight", "bias") else "weight"
        stem = stem if key.endswith((".weight", ".bias")) else key
        if family == "gemma3" and "norm" in key:
            array = array + 1.0
        if key.endswith("embed_positions.weight"):
            array = array[2:]
        if block := re.search(r"layers\.(\d+)\.(.+)", stem):
            prefix, part = f"blk.{block[1]}", block[2]
            if part.endswith("gate_up_proj"):
                gate, up = np.split(array, 2, axis=1)
                tensors |= {f"{prefix}.ffn_gate_exps.weight": gate, f"{prefix}.ffn_up_exps.weight": up}
                continue
            if family in ("llama", "deci") and part in ("self_attn.q_proj", "self_attn.k_proj"):
                heads = config.num_attention_heads if "q_proj" in part else config.num_key_value_heads
                array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
            names = {**NAMES, **(GEMMA if family == "gemma3" else {})}
            tensors[f"{prefix}.{names[part]}.{end}"] = array
        else:
            tensors[f"{OUTSIDE[stem.split('.')[-1]]}.{end}"] = array
    if config.tie_word_embeddings:
        del tensors["output.weight"]
    if family == "llama" and config.rope_parameters["rope_type"] == "llama3":
        plain = 10000.0 ** -(np.arange(0, 8, 2) / 8)
        tensors["rope_freqs.weight"] = (plain / model.model.rotary_emb.inv_freq.numpy()).astype(np.float32)

    metadata: dict[str, Any] = {
        "block_count": config.num_hidden_layers,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "feed_forward_length": getattr(config, "intermediate_size", 48),
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_attention_heads if family == "opt" else config.num_key_value_heads,
    }
    if family == "opt":
        metadata["attention.layer_norm_epsilon"] = 1e-5
    else:
        metadata["attention.layer_norm_rms_epsilon"] = config.rms_norm_eps
        metadata["rope.freq_base"] = (getattr(config, "rope_parameters", {}) or {}).get("rope_theta", 10000.0)
    if getattr(config, "head_dim", None):
        metadata |= {"attention.key_length": config.head_dim, "attention.value_length": config.head_dim}
    if experts := getattr(config, "num_local_experts", getattr(config, "num_experts", 0)):
        metadata |= {"expert_count": experts, "expert_used_count": config.num_experts_per_tok}
    if family == "qwen3moe":
        metadata["expert_feed_forward_length"] = config.moe_intermediate_size
    keys = {f"{family}.{key}": value for key, value in (metadata | extra).items()}
    write_gguf(
        path,
        {"general.architecture": family, **keys},
        [(name, "F32", array.shape, np.ascontiguousarray(array)) for name, array in tensors.items()],
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_same_logits_as_transformers(case: str, tmp_path: Path) -> None:
    family, name, options, extra = CASES[case]
    torch = pytest.importorskip("torch")
    peer = random_peer(name, options)
    to_gguf(peer, tmp_path / "tiny.gguf", family, extra)
    weights = GgufWeights(ModelFile.open(tmp_path / "tiny.gguf"), WideCacheOps())
    decoder = Decoder(weights.config, weights, WideCacheOps())

    tokens = np.random.default_rng(3).integers(0, BASE["vocab_size"], 40)
    with torch.no_grad():
        wanted = peer(torch.tensor(tokens[None]), use_cache=False).logits[0].numpy()
    got = decoder.forward(tokens, [Span(decoder.cache(40), 0, 40)], logits="all")
    assert wanted.std() > 0.3
    np.testing.assert_allclose(got, wanted, atol=2e-4 * wanted.std())


def test_every_family_is_compared() -> None:
    assert {family for family, *_ in CASES.values()} == set(registry.names(FAMILIES))


@pytest.mark.parametrize("shape", [name for name in shape_names() if name.startswith("tiny-")])
def test_made_models_run(shape: str, tmp_path: Path) -> None:
    make_model(shape, "Q8_0", tmp_path / "m.gguf")
    weights = GgufWeights(ModelFile.open(tmp_path / "m.gguf"), ops := NumpyOps())
    decoder = Decoder(weights.config, weights, ops)
    logits = decoder.forward([1, 2, 3], [Span(decoder.cache(8), 0, 3)])
    assert logits.shape == (1, weights.config.vocab_size) and np.isfinite(logits).all() and logits.std() > 0.01


# -- wrong files ----------------------------------------------------------------------------------------------------

Edit = Callable[[dict[str, Any], dict[str, Any]], None]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """Metadata and tensors of a sound file, to be spoilt."""
    path = tmp_path_factory.mktemp("sound") / "m.gguf"
    make_model("tiny-llama", "Q8_0", path)
    model = ModelFile.open(path)
    metadata = {key: value for key, value in model.typed_metadata().items() if not key.startswith("tokenizer.")}
    return metadata, {name: (info.type, info.shape, model.raw(name)) for name, info in model.tensors.items()}


def rewritten(parts: tuple[dict[str, Any], dict[str, Any]], path: Path, edit: Edit) -> ModelFile:
    metadata, tensors = dict(parts[0]), dict(parts[1])
    edit(metadata, tensors)
    write_gguf(path, metadata, [(name, *tensor) for name, tensor in tensors.items()])
    return ModelFile.open(path)


def without(key: str) -> Edit:
    def edit(metadata: dict[str, Any], tensors: dict[str, Any]) -> None:
        (tensors if key in tensors else metadata).pop(key)

    return edit


def with_key(key: str, value: Any) -> Edit:
    return lambda metadata, tensors: metadata.update({key: value})


def with_tensor(name: str, shape: tuple[int, ...], type_name: str = "F32") -> Edit:
    zeros = np.zeros(shape, np.float32 if type_name == "F32" else np.int32)
    return lambda metadata, tensors: tensors.update({name: (type_name, shape, zeros)})


WRONG: dict[str, tuple[Edit, str]] = {
    "no architecture": (without("general.architecture"), "no general.architecture in the metadata"),
    "unknown family": (
        with_key("general.architecture", "lama"),
        "no model family is called 'lama', did you mean llama",
    ),
    "missing key": (without("llama.block_count"), "llama.block_count is missing"),
    "zero layers": (with_key("llama.block_count", 0), "llama.block_count = 0: wanted a whole number from 1 to 4096"),
    "absurd layers": (with_key("llama.block_count", 1 << 30), "llama.block_count = 1073741824: wanted"),
    "text for number": (
        with_key("llama.embedding_length", "64"),
        "llama.embedding_length = '64': wanted a whole number",
    ),
    "nan": (with_key("llama.rope.freq_base", float("nan")), "llama.rope.freq_base = nan: wanted a number"),
    "kv heads": (with_key("llama.attention.head_count_kv", 3), r"query heads over 3 key/value heads: they must divide"),
    "width": (with_key("llama.attention.head_count", 7), r"over 7 heads: they must divide|they must divide"),
    "array length": (with_key("llama.attention.head_count", [4, 4, 4, 4, 4]), "is an array of 5: wanted"),
    "heads differ": (
        with_key("llama.attention.head_count", [4, 8]),
        "width 64 over 4 or 8 heads, without attention.key_length: they must divide",
    ),
    "a layer without heads": (with_key("llama.attention.head_count", [4, 0]), "is an array of 2: wanted 2 positive"),
    "value width": (with_key("llama.attention.value_length", 8), "values of another width are not supported"),
    "odd rotation": (with_key("llama.rope.dimension_count", 3), "rope.dimension_count = 3: wanted an even number"),
    "rope kind": (with_key("llama.rope.scaling.type", "longrope"), "rope scaling 'longrope' is not supported"),
    "rope kind number": (with_key("llama.rope.scaling.type", 5), "llama.rope.scaling.type = 5: wanted text"),
    "rope factor": (with_key("llama.rope.scaling.factor", 0.25), "rope scaling factor 0.25: wanted at least 1"),
    "rope factors": (with_tensor("rope_freqs.weight", (3,)), r"rope_freqs.weight: wanted \d+ positive factors"),
    "experts": (
        lambda metadata, tensors: metadata.update({"llama.expert_count": 4, "llama.expert_used_count": 5}),
        "llama.expert_used_count = 5: wanted a whole number from 1 to 4",
    ),
    "no embedding": (without("token_embd.weight"), "has no token_embd.weight table"),
    "missing tensor": (without("blk.1.ffn_up.weight"), "has no tensor blk.1.ffn_up.weight, which a llama model needs"),
    "shape": (
        with_tensor("blk.0.attn_q.weight", (8, 8)),
        r"blk.0.attn_q.weight has shape \(8, 8\): the metadata asks for",
    ),
    "norm shape": (with_tensor("output_norm.weight", (5,)), r"output_norm.weight has shape \(5,\)"),
    "left over": (
        with_tensor("blk.0.attn_q_norm.weight", (8,)),
        r"has 1 tensors that a llama model does not use \(blk.0",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files_are_named(case: str, parts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    edit, message = WRONG[case]
    model = rewritten(parts, tmp_path / "wrong.gguf", edit)
    with pytest.raises(ModelFileError, match=message) as caught:
        GgufWeights(model, NumpyOps())
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_integers_are_no_weights(parts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    shape = parts[1]["blk.0.attn_q.weight"][1]
    model = rewritten(parts, tmp_path / "wrong.gguf", with_tensor("blk.0.attn_q.weight", shape, "I32"))
    with pytest.raises(ModelFileError, match=r"blk.0.attn_q.weight is stored as I32: wanted a type that holds weights"):
        GgufWeights(model, NumpyOps())


def test_partial_rotation_is_read(parts: tuple[dict[str, Any], dict[str, Any]], tmp_path: Path) -> None:
    model = rewritten(parts, tmp_path / "partial.gguf", with_key("llama.rope.dimension_count", 4))
    config = read_config(model)
    assert config.ropes[0].dims == 4 < config.head_dim


def test_matrices_come_from_the_loader(tmp_path: Path) -> None:
    make_model("tiny-mixtral", "Q8_0", tmp_path / "m.gguf")
    ops, asked = NumpyOps(), []

    def loader(name: str, info: Any) -> Any:
        asked.append((name, info.shape))
        return name

    weights = GgufWeights(ModelFile.open(tmp_path / "m.gguf"), ops, loader)
    experts = weights.layers[1].experts
    assert experts is not None and experts.up[2] == "blk.1.ffn_up_exps.weight[2]"
    assert weights.layers[0].q.matrix == "blk.0.attn_q.weight"
    assert len(asked) == len(set(asked))
