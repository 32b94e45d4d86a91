"""A real model in a real control group smaller than itself, from a cold page cache, with 2,000 tokens of context."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from genmote.device import jail
from genmote.device.cgroup import Limits
from genmote.device.sizes import parse_bytes
from genmote.errors import UserError
from genmote.models import store

pytest.importorskip("genmote.ops._native", exc_type=ImportError)

TEXT = """
import json, sys
from genmote import Engine
model, memory, kv = sys.argv[1:]
engine = Engine.load(model, memory=memory or None, kv=kv, context=2000, threads=2)
prompt = [1000 + (i * 7919) % 30000 for i in range(1970)]
result = engine.generate(prompt, max_tokens=24, ignore_eos=True)
told = {"tokens": result.tokens, "prompt": result.prompt_tokens, "peak": engine.peak_rss_bytes}
print(json.dumps(told | {"read": engine.streaming.reader.bytes_read if engine.streaming else 0}))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("memory", "kv"), [("96MB", "f16"), ("64MB", "int4")])
def test_smollm2_answers_in_less_than_its_size(memory: str, kv: str, tmp_path: Path) -> None:
    model = store.find("smollm2-135m")
    if model is None:
        pytest.skip("SmolLM2 is not here")
    command = [sys.executable, "-c", TEXT, os.fspath(model)]
    free = subprocess.run([*command, "", kv], capture_output=True, text=True, check=True, timeout=300)
    with open(tmp_path / "out", "w") as out:
        try:
            report = jail.run(
                [*command, memory, kv], Limits(memory_bytes=parse_bytes(memory)), drop=[model], stdout=out
            )
        except UserError as error:
            pytest.skip(f"no jail here: {error}")
    assert report.status == 0 and not report.oom_killed
    found, wanted = (json.loads(text) for text in ((tmp_path / "out").read_text(), free.stdout))
    assert found["tokens"] == wanted["tokens"] and found["prompt"] == 1970
    assert found["peak"] <= parse_bytes(memory) and found["read"] > 10 * parse_bytes(memory)
