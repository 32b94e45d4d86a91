"""What choosing the rows to keep takes: within what is planned for it, and never over a budget."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from genmote import Engine
from genmote.errors import OpsError
from genmote.models import make_model
from genmote.ops.layer import LayerSpec
from genmote.runtime import eviction
from genmote.runtime.evict import _layers

native = pytest.importorskip("genmote.ops.native_ops", reason="no native kernels here", exc_type=OpsError)

LAYERS = 3
SHAPE = """
architecture = "llama"
source = "made for this test: weights that do not fit beside many rows"
vocab_size = 512
context_length = 2048
width = 512
layers = 4
ffn_width = 8192
heads = 16
kv_heads = 8
"""
RUN = """
import json, os, sys
os.environ["OPENBLAS_NUM_THREADS"] = "1"
from genmote import Engine
from genmote.errors import BudgetError
model, kv, share, memory = sys.argv[1:]
try:
    engine = Engine.load(
        model, memory=int(memory), context=2048, kv=kv, kv_tokens=float(share), evict="expected+pyramid", threads=2
    )
except BudgetError as error:
    print(json.dumps({"least": error.least_bytes}))
    sys.exit()
result = engine.generate([(7919 * i + 11) % 500 for i in range(1900)], max_tokens=16, ignore_eos=True)
told = {"peak": engine.peak_rss_bytes, "evicted": result.evicted, "streamed": engine.streaming.streamed_bytes}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    (folder / "wide.toml").write_text(SHAPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_model, "SHAPES", folder)
        make_model.make_model("wide", "Q4_0", folder / "wide.gguf")
        patch.setenv("GENMOTE_HOME", os.fspath(folder / "home"))
        Engine.load(folder / "wide.gguf", ops="native").close()  # a first load takes more: it makes its files
    return folder / "wide.gguf"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read where Linux tells it")
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("f16", 0.5),
        ("int4", 0.5),
        pytest.param("f16", 0.25, marks=pytest.mark.slow),
        pytest.param("int4", 0.25, marks=pytest.mark.slow),
    ],
)
def test_a_budget_holds_while_rows_are_evicted(model: Path, kind: str, share: float) -> None:
    """At the least budget that the refusal names, and where weights have taken what is left of a larger one."""

    def run(memory: int) -> dict[str, int]:
        command = [sys.executable, "-c", RUN, os.fspath(model), kind, str(share), str(memory)]
        environment = os.environ | {"GENMOTE_HOME": os.fspath(model.parent / "home")}
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
        found: dict[str, int] = json.loads(done.stdout)
        return found

    budget, took = 5_000_000, run(5_000_000)
    while "least" in took:  # a process is a few pages larger or smaller than the one that was told
        budget = took["least"]
        took = run(budget)
    for more, found in ((0, took), (8_000_000, run(budget + 8_000_000))):
        assert found["evicted"] > 800 and found["streamed"] > 0
        assert found["peak"] <= budget + more, (found["peak"] - budget - more, budget, more)


def full(kind: str, setting: eviction.Eviction, heads: int, kv_heads: int, dim: int) -> Any:
    """A cache of which every layer is to be cut."""
    cache = native.create(threads=1).cache(LAYERS, kv_heads, dim, setting.rows, kind=kind, **queries(setting, heads))
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 15, (setting.rows, kv_heads, dim * (2 if kind == "f16" else 1)), np.uint8)
    scales = np.ones((setting.rows, kv_heads), np.float16).view(np.uint16)
    for layer in range(LAYERS):
        cache.write(layer, 0, codes, codes, scales, scales)
    cache.place([setting.rows] * LAYERS, setting.rows, 0)
    for layer in range(LAYERS) if setting.queries else ():
        asked = rng.standard_normal((setting.queries, heads, dim)).astype(np.float16)
        cache.write_queries(layer, asked.view(np.uint16))
    return cache


def queries(setting: eviction.Eviction, heads: int) -> dict[str, int]:
    return {"queries": setting.queries, "n_heads": heads} if setting.queries else {}


@pytest.mark.parametrize(
    ("heads", "kv_heads", "dim", "context"),
    [
        (9, 3, 64, 2048),
        (16, 16, 128, 1024),
        (4, 1, 256, 2048),
        pytest.param(32, 1, 32, 32768, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("kind", ["f16", "int4"])
@pytest.mark.parametrize("name", eviction.names())
def test_choosing_takes_no_more_than_planned(
    name: str, kind: str, heads: int, kv_heads: int, dim: int, context: int
) -> None:
    setting = eviction.eviction(name, 0.5, context)
    assert setting is not None
    cap = 50.0 if dim == 256 else 0.0
    layers = [LayerSpec(i, heads, kv_heads, dim, 0.1, score_cap=cap) for i in range(LAYERS)]
    config: Any = SimpleNamespace(
        head_dim=dim, heads=(heads,) * LAYERS, kv_heads=(kv_heads,) * LAYERS, layers=layers, n_layers=LAYERS
    )
    decoder: Any = SimpleNamespace(
        config=config, weights=SimpleNamespace(layers=[SimpleNamespace(spec=spec) for spec in layers])
    )
    evictor = eviction.Evictor(setting, decoder, setting.kept(decoder))
    evictor.done = setting.rows - setting.block
    cache = full(kind, setting, heads, kv_heads, dim)
    evictor.choose(cache)  # what is imported now is not counted
    tracemalloc.start()
    try:
        cut = evictor.choose(cache)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(cut.rows) == LAYERS
    assert peak <= evictor.scratch_bytes, peak / evictor.scratch_bytes
    if kv_heads == 16 or name == "window":
        assert peak < 4 * setting.rows * kv_heads * dim  # a layer's keys as floats


@pytest.mark.parametrize("layers", _layers.KINDS)
def test_no_layer_holds_more_than_the_longest(layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the layers turn out to look back."""
    rng = np.random.default_rng(1)
    decoder: Any = SimpleNamespace(
        config=SimpleNamespace(n_layers=9),
        weights=SimpleNamespace(layers=[SimpleNamespace(spec=LayerSpec(i, 2, 1, 8, 0.1)) for i in range(9)]),
    )
    for share in (0.1, 0.25, 0.5, 0.9):
        setting = eviction.eviction(f"expected+{layers}", share, 2048)
        assert setting is not None
        for most in (1, 2, 9):
            looked = rng.random(9) * (np.arange(9) < most)
            monkeypatch.setattr(_layers, "look_back", lambda decoder, looked=looked: looked)
            assert min(2048, max(setting.kept(decoder)) + setting.block) <= setting.longest(9)
