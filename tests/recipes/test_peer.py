"""The peer in a process of its own: what it says is taken, and what goes wrong with it is one line."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from genmote.errors import GenmoteError
from genmote.recipes import peer

PEER = peer.Peer("llama.cpp", 1.0, 2.0, 3.0, 4.0, 5, ("a", "b"))


def stub(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let this Python program be the peer."""
    run = subprocess.run

    def other(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[1:] == ["-m", "genmote.recipes.peer"]
        return run([sys.executable, "-c", script], **options)

    monkeypatch.setattr(peer.subprocess, "run", other)


def test_it_is_given_the_work_and_its_last_line_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {"model": "m.gguf", "prompts": [[1, 2]], "tokens": [3], "threads": 2, "context": 64}
    answer = json.dumps(asdict(PEER))
    stub(monkeypatch, f"import sys, json; assert json.load(sys.stdin) == {asked}; print('noise'); print({answer!r})")
    assert peer.run(Path("m.gguf"), [[1, 2]], [3], 2, 64) == PEER


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("import sys; print('no room', file=sys.stderr); sys.exit(3)", "ended with status 3 and said: no room"),
        ("print('what?')", "ended with status 0 and said: nothing"),
        ("print('{}')", "ended with status 0 and said: nothing"),
        ("import os; os.kill(os.getpid(), 9)", "ended with status -9 and said: nothing"),
        ("import time; time.sleep(60)", "took longer than 1 s"),
    ],
)
def test_a_peer_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    monkeypatch.setattr(peer, "LONGEST_S", 1.0)
    stub(monkeypatch, script)
    with pytest.raises(GenmoteError, match=f"llama.cpp {message}"):
        peer.run(Path("m.gguf"), [[1]], [1], 1, 64)


@pytest.mark.parametrize(
    ("told", "isa"),
    [
        ("CPU : AVX2 = 1 | AVX512 = 1 |", ", AVX-512"),
        ("AVX = 1 | AVX2 = 1", ", AVX2"),
        ("NEON = 1", ", NEON"),
        ("", ""),
    ],
)
def test_its_instruction_set(told: str, isa: str) -> None:
    assert peer._isa(told) == isa


def test_the_real_peer(smollm2: Path) -> None:
    if not peer.here():
        pytest.skip("xllamacpp is not installed")
    from genmote.models.gguf import ModelFile
    from genmote.models.tokenizer import load_tokenizer

    prompt = load_tokenizer(ModelFile.open(smollm2)).encode("The capital of France is")
    ran = peer.run(smollm2, [prompt, prompt], [6, 6], 1, 128)
    assert ran.texts[0] == ran.texts[1] and ran.texts[0].startswith(" Paris")
    assert ran.name.startswith("llama.cpp (xllamacpp 20") and ran.peak_rss_bytes > smollm2.stat().st_size / 2
    assert min(ran.load_ms, ran.first_token_ms, ran.prefill_tokens_per_s, ran.decode_tokens_per_s) > 0
