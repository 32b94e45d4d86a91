"""Models whose heads and widths differ from layer to layer, as structured pruning leaves them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote import ops as op_sets
from genmote.errors import ModelFileError, OpsError
from genmote.models.config import read_config
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.gguf_write import write_gguf
from genmote.models.make_model import make_model
from genmote.models.weights import GgufWeights
from genmote.ops.numpy_ops import NumpyOps
from genmote.ops.protocol import Span

IDS = [int(i) for i in np.random.default_rng(8).integers(5, 300, 40)]


def logits(model: ModelFile, ops: Any) -> np.ndarray:
    weights = GgufWeights(model, ops)
    decoder = Decoder(weights.config, weights, ops)
    found = decoder.forward(IDS, [Span(decoder.cache(len(IDS)), 0, len(IDS))], logits="all")
    assert found is not None
    return found


def parts_of(path: Path, shape: str, kind: str = "F32") -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    make_model(shape, kind, path, seed=2)
    model = ModelFile.open(path)
    return model.typed_metadata(), {name: model.tensor(name) for name in model.tensors}


def written(path: Path, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> ModelFile:
    write_gguf(path, metadata, [(n, "F32", x.shape, np.ascontiguousarray(x, np.float32)) for n, x in tensors.items()])
    return ModelFile.open(path)


@pytest.mark.parametrize("name", ["numpy", "native", "torch"])
def test_what_is_cut_out_is_as_if_its_weights_were_zero(name: str, tmp_path: Path) -> None:
    """Heads whose output weights are zero, and channels whose down weights are, do nothing; without them the model is
    the same. A key-value head goes with its query heads; each layer keeps others."""
    try:
        ops = op_sets.load(name)
    except OpsError as error:
        pytest.skip(str(error))
    metadata, tensors = parts_of(tmp_path / "m.gguf", "tiny-llama")
    dim, kept_kv, inner = 16, ([1], [0, 1]), (96, 131)  # of two layers with two key-value heads for four
    zeroed, cut = dict(tensors), dict(tensors)
    for layer, (kv, channels) in enumerate(zip(kept_kv, inner, strict=True)):
        heads = [2 * h + i for h in kv for i in range(2)]
        rows = {"q": heads, "k": kv, "v": kv}
        at = {n: np.concatenate([np.arange(h * dim, (h + 1) * dim) for h in some]) for n, some in rows.items()}
        for part, some in at.items():
            cut[f"blk.{layer}.attn_{part}.weight"] = tensors[f"blk.{layer}.attn_{part}.weight"][some]
        for part in ("gate", "up"):
            cut[f"blk.{layer}.ffn_{part}.weight"] = tensors[f"blk.{layer}.ffn_{part}.weight"][:channels]
        for part, some in (("attn_output", at["q"]), ("ffn_down", np.arange(channels))):
            whole = tensors[f"blk.{layer}.{part}.weight"]
            cut[f"blk.{layer}.{part}.weight"] = whole[:, some]
            zeroed[f"blk.{layer}.{part}.weight"] = np.where(np.isin(np.arange(whole.shape[1]), some), whole, 0)
    keys = {"attention.head_count": [2, 4], "attention.head_count_kv": [1, 2], "feed_forward_length": list(inner)}
    keys |= {"attention.key_length": dim, "attention.value_length": dim}
    smaller = written(tmp_path / "cut.gguf", metadata | {f"llama.{k}": v for k, v in keys.items()}, cut)
    config = read_config(smaller)
    assert (config.heads, config.kv_heads, config.ffn_widths) == ((2, 4), (1, 2), inner)
    wanted = logits(written(tmp_path / "zero.gguf", metadata, zeroed), ops)
    np.testing.assert_allclose(logits(smaller, ops), wanted, atol=1e-4 * wanted.std())


def test_deci_is_llama_by_another_name(tmp_path: Path) -> None:
    metadata, tensors = parts_of(tmp_path / "m.gguf", "tiny-llama")
    other = {key.replace("llama.", "deci."): value for key, value in metadata.items()}
    renamed = written(tmp_path / "d.gguf", other | {"general.architecture": "deci"}, tensors)
    assert np.array_equal(logits(renamed, NumpyOps()), logits(ModelFile.open(tmp_path / "m.gguf"), NumpyOps()))


# -- Gemma's local layers ---------------------------------------------------------------------------------------------


def gemma(path: Path, layers: list[int], **keys: Any) -> ModelFile:
    """Some layers of a tiny Gemma of seven, of which the sixth alone is global."""
    metadata, tensors = parts_of(path, "tiny-gemma3")
    left = {name: x for name, x in tensors.items() if not name.startswith("blk.")}
    for new, old in enumerate(layers):
        left |= {n.replace(f"blk.{old}.", f"blk.{new}."): x for n, x in tensors.items() if n.startswith(f"blk.{old}.")}
    metadata |= {"gemma3.block_count": np.uint32(len(layers))}
    return written(path, metadata | {f"gemma3.{key}": value for key, value in keys.items()}, left)


def test_layers_that_are_left_stay_local_or_global(tmp_path: Path) -> None:
    whole = read_config(gemma(tmp_path / "a.gguf", list(range(7))))
    kept = [0, 2, 5, 6]
    pattern = {"attention.sliding_window_pattern": np.array([True, True, False, True])}
    model = gemma(tmp_path / "b.gguf", kept, **pattern)
    left = read_config(model)
    assert [layer.window for layer in left.layers] == [whole.layers[i].window for i in kept] == [16, 16, 0, 16]
    assert left.layers == tuple(replace(whole.layers[old], index=new) for new, old in enumerate(kept))
    assert read_config(gemma(tmp_path / "c.gguf", kept)).layers[2].window == 16  # without the key it would be another
    assert np.isfinite(logits(model, NumpyOps())).all()


def test_the_scale_of_scores_can_be_told(tmp_path: Path) -> None:
    """For a model of which the number of layers no longer tells it."""
    told = {"attention.scale": 0.25, "attention.sliding_window_pattern": 2}
    config = read_config(gemma(tmp_path / "a.gguf", [0, 1, 2], **told))
    assert {layer.scale for layer in config.layers} == {0.25}
    assert [layer.window for layer in config.layers] == [16, 0, 16]


@pytest.mark.parametrize("wrong", [[True, False], [2, 0, 1], ["a", "b", "c"]])
def test_a_wrong_pattern_is_named(wrong: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"sliding_window_pattern is an array of \d: wanted 3 times yes or no"):
        read_config(gemma(tmp_path / "a.gguf", [0, 1, 2], **{"attention.sliding_window_pattern": wrong}))
