"""The real SmolLM2 behind the real server: what an app would do with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from genmote.runtime.engine import Engine

pytestmark = pytest.mark.slow

READING = {
    "type": "object",
    "properties": {
        "sensor": {"enum": ["temperature", "humidity", "motion"]},
        "value": {"type": "number", "minimum": -40, "maximum": 125, "multipleOf": 0.1},  # else digits may never end
        "ok": {"type": "boolean"},
        "note": {"type": "string", "maxLength": 40},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 12}, "maxItems": 3},
    },
    "required": ["sensor", "value", "ok", "note", "tags"],
    "additionalProperties": False,
}
LAMP = {
    "type": "function",
    "function": {
        "name": "set_lamp",
        "description": "Switch a lamp",
        "parameters": {
            "type": "object",
            "properties": {"room": {"enum": ["hall", "attic"]}, "on": {"type": "boolean"}},
            "required": ["room", "on"],
            "additionalProperties": False,
        },
    },
}


class Process:
    """`genmote serve` as a user starts it, on a free port."""

    def __init__(self, path: Path) -> None:
        self.child = subprocess.Popen(
            [sys.executable, "-m", "genmote.cli", "serve", str(path), "--port", "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line.startswith("genmote serves "), line
        self.url = line.split(" at ")[1].split(" ")[0]
        self.model = line.split()[2]

    def memory_mb(self, key: str = "VmHWM") -> float:
        status = Path(f"/proc/{self.child.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith(key)).split()[1]) / 1024

    def end(self) -> tuple[int, str]:
        self.child.terminate()
        _, err = self.child.communicate(timeout=30)
        return self.child.returncode, err


@pytest.fixture(scope="module")
def served(smollm2: Path) -> Iterator[Process]:
    process = Process(smollm2)
    yield process
    status, err = process.end()
    assert status == 0 and "Traceback" not in err


@pytest.fixture(scope="module")
def api(served: Process) -> Iterator[Any]:
    openai = pytest.importorskip("openai", reason="the official client is not installed: pip install openai")
    client = openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=300)
    yield client
    client.close()


def test_every_output_satisfies_the_schema(api: Any, served: Process) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "reading", "schema": READING, "strict": True}}
    for seed in range(12):
        answer = api.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": "Make up a reading of a temperature sensor, as JSON."}],
            response_format=form,
            temperature=1.0,
            seed=seed,
            max_tokens=400,
        )
        assert answer.choices[0].finish_reason == "stop"
        value = json.loads(answer.choices[0].message.content)
        assert set(value) == set(READING["properties"])  # type: ignore[arg-type]
        assert value["sensor"] in ("temperature", "humidity", "motion") and type(value["ok"]) is bool
        assert -40 <= value["value"] <= 125 and value["value"] == round(value["value"], 1) and len(value["note"]) <= 40
        assert len(value["tags"]) <= 3 and all(len(tag) <= 12 for tag in value["tags"])


def test_required_tool_call(api: Any, served: Process) -> None:
    for seed in range(4):
        answer = api.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": "Switch on the lamp in the hall."}],
            tools=[LAMP],
            tool_choice="required",
            seed=seed,
        )
        call = answer.choices[0].message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "set_lamp" and answer.choices[0].finish_reason == "tool_calls"
        assert arguments["room"] in ("hall", "attic") and type(arguments["on"]) is bool


def test_answer_is_the_engine_s_own(api: Any, served: Process, smollm2: Path) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    answer = api.chat.completions.create(model=served.model, messages=messages, temperature=0, max_tokens=24)
    with Engine.load(smollm2) as engine:
        own = engine.chat(messages, max_tokens=24)
        vector = engine.embed("the attic is cold")
    assert answer.choices[0].message.content == own.text
    assert answer.usage.prompt_tokens == own.prompt_tokens
    served_vector = api.embeddings.create(model=served.model, input="the attic is cold").data[0].embedding
    assert served_vector == pytest.approx(list(vector), abs=1e-6)


def test_eight_clients_get_what_each_gets_alone(api: Any, served: Process) -> None:
    def ask(i: int) -> str:
        chunks = api.chat.completions.create(
            model=served.model,
            messages=[{"role": "user", "content": f"Tell me a fact about the number {i}. {'Be brief. ' * i}"}],
            temperature=0.8,
            seed=i,
            max_tokens=40,
            stream=True,
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in chunks)

    alone = [ask(i) for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(8))) == alone


def test_a_system_prompt_is_read_once(api: Any, served: Process) -> None:
    system = {"role": "system", "content": "You watch the sensors of a greenhouse. " * 30}

    def cached(question: str) -> tuple[int, int]:
        answer = api.chat.completions.create(
            model=served.model, messages=[system, {"role": "user", "content": question}], max_tokens=1
        )
        return answer.usage.prompt_tokens_details.cached_tokens, answer.usage.prompt_tokens

    cached("Is it warm?")
    found, total = cached("And is it humid?")
    assert found > 200 and total - found < 30


def test_memory_of_serving(smollm2: Path) -> None:
    """Peak resident memory beyond what the engine alone takes: the caches of four texts, and the HTTP server."""
    openai = pytest.importorskip("openai", reason="the official client is not installed: pip install openai")
    script = "import sys, genmote; e = genmote.Engine.load(sys.argv[1]); e.generate('x', max_tokens=9)"
    alone = [sys.executable, "-c", script + "; print(e.peak_rss_bytes)", str(smollm2)]
    alone_mb = int(subprocess.run(alone, check=True, capture_output=True).stdout) / 2**20
    process = Process(smollm2)
    try:
        with openai.OpenAI(base_url=process.url, api_key="none", max_retries=0, timeout=300) as client:

            def ask(i: int) -> Any:
                messages = [{"role": "user", "content": f"Count to {i}"}]
                return client.chat.completions.create(model=process.model, messages=messages, max_tokens=64)

            idle_mb = process.memory_mb("VmRSS")
            began = time.monotonic()
            with ThreadPoolExecutor(4) as pool:
                made = sum(answer.usage.completion_tokens for answer in pool.map(ask, range(4)))
            seconds = time.monotonic() - began
        peak_mb = process.memory_mb()
    finally:
        status, _ = process.end()
    print(
        f"\nMB: engine {alone_mb:.0f}, serving {idle_mb:.0f}, four texts {peak_mb:.0f}; {made / seconds:.0f} tokens/s"
    )
    assert status == 0
    cache_mb = 4 * 256 * 30 * 2 * 3 * 64 * 2 / 2**20  # 4 sessions of 256 rows, 30 layers, k and v, 3 heads of 64, half
    assert peak_mb - alone_mb < cache_mb + 40
