"""llama.cpp reads the adapters: with one it says what we say with it, and another than without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from genmote import Engine
from genmote.models.make_model import make_model
from genmote.models.write_lora import merge
from genmote.tune.run import tune
from genmote.tune.settings import Tuning

SAY = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 128, 1, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
params.verbosity, params.port = -1, 0
if len(sys.argv) > 3:
    adapter = xllamacpp.CommonAdapterLoraInfo(sys.argv[3], 1.0)
    params.lora_adapters = [adapter]
ask = {"prompt": sys.argv[2], "n_predict": 12, "max_tokens": 12, "temperature": 0}
answer = xllamacpp.Server(params).handle_completions(ask)
answer = answer if isinstance(answer, dict) else json.loads(answer)
print("TEXT" + json.dumps(answer["choices"][0]["text"]))
"""


def told(*words: Path | str) -> str:
    run = subprocess.run([sys.executable, "-c", SAY, *map(str, words)], capture_output=True, text=True)
    found = [line for line in run.stdout.splitlines() if line.startswith("TEXT")]
    assert found, run.stderr[-2000:]
    text: str = json.loads(found[0].removeprefix("TEXT"))
    return text


@pytest.mark.parametrize("shape", ["tiny-llama", "tiny-qwen3"])
def test_llama_cpp_says_the_same_with_an_adapter(shape: str, lines: Any, tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    base, adapter, whole = (tmp_path / f"{name}.gguf" for name in ("base", "mine", "merged"))
    make_model(shape, "F32", base, seed=3)
    data = lines({"prompt": "the rain in Spain", "completion": " stays mainly in the plain"})
    tune(base, data, adapter, Tuning(steps=60, batch=1, context=64, rate=0.02, rank=4))
    merge(base, adapter, whole)
    prompt = "the rain in Spain"
    with Engine.load(base, ops="numpy") as engine:
        plain = engine.generate(prompt, max_tokens=12).text
        engine.set_adapters(adapter)
        ours = engine.generate(prompt, max_tokens=12).text
    with Engine.load(whole, ops="numpy") as engine:
        assert engine.generate(prompt, max_tokens=12).text == ours
    assert ours.startswith(" stays") and ours != plain
    assert told(base, prompt) == plain and told(base, prompt, adapter) == ours and told(whole, prompt) == ours
