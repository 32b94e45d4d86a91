"""The command line as a user runs it, on the real SmolLM2."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

GENMOTE = [sys.executable, "-m", "genmote.cli"]


def run(*words: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([*GENMOTE, *words], input=stdin, capture_output=True, text=True, check=False)


def test_generate(smollm2: Path) -> None:
    words = ("generate", "smollm2-135m", "--prompt", "The capital of France is", "--max-tokens", "8")
    ran = run(*words, "--temperature", "0", "--threads", "1", "--json")
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told["text"].startswith(" Paris") and told["prompt_tokens"] == 5 and told["decode_tokens"] == 8
    for rate in ("prefill_tokens_per_s", "decode_tokens_per_s", "first_token_ms", "load_ms", "peak_rss_bytes"):
        assert told[rate] > 0
    assert run(*words).stdout == told["text"] + "\n", "a path, a stream or JSON: the same text"


def test_chat_uses_the_models_own_format(smollm2: Path) -> None:
    ran = run("chat", "smollm2-135m", "--json", "-n", "12", stdin="What is 2+2?\nAnd 3+3?\n")
    first, second = (json.loads(line) for line in ran.stdout.splitlines())
    assert ran.returncode == 0 and first["content"] and "<|im_" not in first["content"] + second["content"]
    assert second["prompt_tokens"] > first["prompt_tokens"] + first["decode_tokens"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_text(smollm2: Path, number: signal.Signals) -> None:
    words = ["generate", "smollm2-135m", "-p", "Once upon a time", "-n", "5000", "--repetition-penalty", "1.2"]
    process = subprocess.Popen([*GENMOTE, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.read(10)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    if number == signal.SIGINT:
        assert (process.returncode, err) == (130, "genmote generate: interrupted\n")
    else:
        assert (process.returncode, err) == (143, "")


def test_serve_from_ready_to_ctrl_c(smollm2: Path) -> None:
    pytest.importorskip("uvicorn")
    command = [*GENMOTE, "serve", "smollm2-135m", "--port", "0", "--json", "--name", "tiny"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["model"] == "tiny"
    with urllib.request.urlopen(ready["url"] + "/v1/models", timeout=10) as answer:
        assert json.load(answer)["data"][0]["id"] == "tiny"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130 and err.endswith("genmote serve: interrupted\n")
