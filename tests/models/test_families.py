"""Every family against an independent implementation of it, and every way in which a file can be wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import registry
from genmote.errors import ModelFileError
from genmote.models.config import FAMILIES, read_config
from genmote.models.convert import convert
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model, shape_names
from genmote.models.weights import GgufWeights
from genmote.ops.numpy_ops import NumpyCache, NumpyOps
from genmote.ops.protocol import Span
from tests.models.peers import BASE, CASES, logits_of, random_peer, save


class WideCache(NumpyCache):
    def stored(self, k: Any, v: Any) -> Any:
        return {"k": k, "v": v}


class WideCacheOps(NumpyOps):
    """The reference without the cache's rounding to float16, to compare with implementations that have none."""

    def cache(self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, **settings: Any) -> NumpyCache:
        cache = WideCache(n_layers, n_kv_heads, head_dim, capacity)
        cache.parts = [{name: np.zeros(x.shape, np.float32) for name, x in layer.items()} for layer in cache.parts]
        return cache


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", CASES)
def test_same_logits_as_transformers(case: str, tmp_path: Path) -> None:
    peer = random_peer(case)
    convert(save(peer, tmp_path / "folder"), tmp_path / "tiny.gguf")
    assert like_transformers(ModelFile.open(tmp_path / "tiny.gguf"), peer) == CASES[case][0]


def like_transformers(file: ModelFile, peer: Any) -> str:
    """Compare the logits; the file's architecture."""
    weights = GgufWeights(file, WideCacheOps())
    decoder = Decoder(weights.config, weights, WideCacheOps())
    tokens = np.random.default_rng(3).integers(0, BASE["vocab_size"], 40)
    wanted = logits_of(peer, tokens)
    got = decoder.forward(tokens, [Span(decoder.cache(40), 0, 40)], logits="all")
    assert wanted.std() > 0.3
    np.testing.assert_allclose(got, wanted, atol=2e-4 * wanted.std())
    return weights.config.architecture


@pytest.mark.filterwarnings("ignore")
def test_deci_is_llama_by_another_name(tmp_path: Path) -> None:
    peer = random_peer("llama")
    convert(save(peer, tmp_path / "folder"), tmp_path / "llama.gguf")
    llama = ModelFile.open(tmp_path / "llama.gguf")
    metadata = {key.replace("llama.", "deci.", 1): value for key, value in llama.typed_metadata().items()}
    tensors = [(name, info.type, info.shape, llama.raw(name)) for name, info in llama.tensors.items()]
    write_gguf(tmp_path / "deci.gguf", metadata | {"general.architecture": "deci"}, tensors)
    assert like_transformers(ModelFile.open(tmp_path / "deci.gguf"), peer) == "deci"


def test_every_family_is_compared() -> None:
    assert {family for family, *_ in CASES.values()} | {"deci"} == set(registry.names(FAMILIES))


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
