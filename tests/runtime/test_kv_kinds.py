"""What fewer bits for keys and values cost a real model, and that they do not feel slicing and company."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from genmote.errors import OpsError, SpecError
from genmote.models.make_model import make_model
from genmote.models.requantise import convert_type
from genmote.runtime.engine import Engine
from genmote.runtime.fake import fake_engine

TOKENS = 8 * 1024
BOUNDS = {"int8": 1.002, "int4": 1.03}


@pytest.mark.slow
def test_perplexity_stays_within_the_bounds(smollm2: Path, shared_data: Path, tmp_path: Path) -> None:
    """F16 weights: what quantised ones round inputs to moves perplexity by as much as int8 keys and values do."""
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    text = (shared_data / "wikitext2_raw/wikitext-test.txt").read_text(encoding="utf-8")
    convert_type(smollm2, tmp_path / "m.gguf", "F16")
    found = {}
    for kind in ("f16", *BOUNDS):
        with Engine.load(tmp_path / "m.gguf", ops="native", kv=kind) as engine:
            tokens = engine.tokenizer.encode(text[: 8 * TOKENS], bos=False)[:TOKENS]
            found[kind] = engine.perplexity(tokens, context=1024).value
    print(found, {kind: found[kind] / found["f16"] for kind in BOUNDS})
    for kind, bound in BOUNDS.items():
        assert found[kind] <= bound * found["f16"]


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-deci"])
@pytest.mark.parametrize("kind", BOUNDS)
def test_a_text_does_not_feel_slicing_or_kind_of_company(kind: str, shape: str, tmp_path: Path) -> None:
    pytest.importorskip("genmote.ops._native", exc_type=ImportError)
    make_model(shape, "Q8_0", tmp_path / "m.gguf", seed=1)
    ids = [int(i) for i in np.random.default_rng(0).integers(5, 300, 70)]
    logits = {}
    for ops in ("numpy", "native"):
        with Engine.load(tmp_path / "m.gguf", ops=ops, kv=kind) as engine:
            session = engine.session()
            logits[ops] = session.prefill(ids)
            again = engine.session()
            again.prefill(ids[:23])
            for token in ids[23:]:
                last = again.step(token)
            assert np.array_equal(last, logits[ops])
            path = tmp_path / f"{ops}.prefix"
            session.save(path)
            fresh = engine.session()
            fresh.restore(path)
            assert np.array_equal(fresh.step(9), session.step(9))
    assert np.array_equal(logits["numpy"], logits["native"])


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-deci"])
def test_cold_rows_on_disk_give_the_same_text(shape: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native = pytest.importorskip("genmote.ops.native_ops", exc_type=ImportError)
    monkeypatch.setitem(native.NativeCache.__init__.__kwdefaults__, "resident_rows", 32)  # the text is short
    make_model(shape, "Q8_0", tmp_path / "m.gguf", seed=1)
    said, spilled = [], []
    for folder in (None, tmp_path):
        with Engine.load(tmp_path / "m.gguf", ops="native", kv_spill=folder) as engine:
            said.append(engine.generate("a b c " * 60, max_tokens=20, ignore_eos=True).text)
            spilled.append(engine.pool._idle[0]._cache.spilled)
    assert said[0] == said[1]
    assert spilled[0] == (0, 0) and min(spilled[1]) > 0
    with pytest.raises(OpsError, match="kv_spill with the numpy op set: only the native one"):
        Engine.load(tmp_path / "m.gguf", ops="numpy", kv_spill=tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kv_spill": "/no/spill"}, "kv_spill='/no/spill' is no folder: make it first, or give another one"),
        ({"kv": "int5"}, "kv='int5': keys and values are kept as"),
        ({"evict": "wind"}, "no eviction policy is called 'wind'"),
        (
            {"evict": "window:sinks=999", "kv_tokens": 64},
            "always keeps the first 999 rows, and 56 are all that a layer",
        ),
        ({"evict": "window:sinks=56", "kv_tokens": 64}, "'window:sinks=56' always keeps the first 56 rows, and 56 are"),
    ],
)
def test_what_no_model_can_have_is_told_before_one_is_loaded(options, said, monkeypatch):
    pytest.importorskip("genmote.ops.native_ops", exc_type=ImportError)
    monkeypatch.setattr("genmote.models.store.resolve", lambda *a, **k: pytest.fail("looked for the model"))
    with pytest.raises(SpecError, match=re.escape(said)):
        Engine.load("m", ops="native", **options)


def test_a_spill_folder_that_takes_no_files_is_told(tmp_path, monkeypatch):
    pytest.importorskip("genmote.ops.native_ops", exc_type=ImportError)
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(SpecError, match="takes no new files: give another one"):
        Engine.load("m", ops="native", kv_spill=tmp_path)


def test_sinks_that_leave_no_place_are_refused_where_rows_are_a_share():
    engine = fake_engine(context=256)
    with pytest.raises(SpecError, match="always keeps the first 60 rows, and 56 are all that a layer of 64 keeps"):
        engine.set_cache(evict="window:sinks=60", kv_tokens=0.25)
    engine.set_cache(evict="window:sinks=50", kv_tokens=0.25)


def test_a_kind_that_there_is_not_is_refused_at_once(tmp_path):
    """Before anything is told of what it would change."""
    path = tmp_path / "m.gguf"
    make_model("tiny-llama", "q8_0", path, seed=1)
    with pytest.raises(SpecError, match="kv='int3': keys and values are kept as f16, int8, int4, or auto"):
        Engine.load(path, kv="int3")
