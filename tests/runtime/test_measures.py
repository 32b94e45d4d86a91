"""Scores, vectors and perplexity against their definitions, computed one token at a time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from genmote.errors import ContextError, ModelFileError, SpecError
from genmote.runtime import measures
from genmote.runtime.engine import Engine
from genmote.runtime.fake import fake_engine

TEXT = "the cat sat on the mat and the cat sat on the dog " * 8


def slow_logprobs(engine: Engine, tokens: list[int]) -> list[float]:
    """Log-probability of tokens[1:], from a fresh session, one step each."""
    session = engine.session()
    found = []
    for token, following in pairwise(tokens):
        logits = session.step(token).astype(np.float64)
        found.append(float(logits[following] - logits.max() - np.log(np.exp(logits - logits.max()).sum())))
    return found


def defined_perplexity(
    engine: Engine, tokens: list[int], context: int, chunks: int, bos: int | None
) -> tuple[float, float]:
    """llama.cpp's tools/perplexity, read aloud: windows of `context`; the first token becomes BOS; the logits at
    positions first .. context - 2 are scored, first = context // 2; the error is that of the mean."""
    nll = nll2 = 0.0
    count = 0
    for i in range(min(chunks, len(tokens) // context)):
        window = tokens[i * context : (i + 1) * context]
        if bos is not None:
            window = [bos, *window[1:]]
        for position, logprob in enumerate(slow_logprobs(engine, window)):
            if position >= context // 2:
                nll -= logprob
                nll2 += logprob**2
                count += 1
    nll, nll2 = nll / count, nll2 / count
    return math.exp(nll), math.exp(nll) * math.sqrt((nll2 - nll * nll) / (count - 1))


@pytest.mark.parametrize("context", [4, 17, 64, 100])
@pytest.mark.parametrize("bos", [True, False])
def test_perplexity_is_its_definition(context: int, bos: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "_LOGITS_BYTES", 258 * 4 * 5)  # five rows of logits at once: seams in every window
    engine = fake_engine(sure=2.0)
    engine.tokenizer.add_bos = bos
    tokens = engine.tokenizer.encode(TEXT)
    seen: list[tuple[int, int]] = []
    found = engine.perplexity(TEXT, context=context, chunks=3, progress=lambda done, of: seen.append((done, of)))
    value, error = defined_perplexity(fake_engine(sure=2.0), tokens, context, 3, 256 if bos else None)
    assert found.value == pytest.approx(value, rel=1e-6)
    assert found.stderr == pytest.approx(error, rel=1e-4)
    assert found.tokens == 3 * (context - 1 - context // 2)
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert engine.perplexity(tokens, context=context, chunks=3) == found


def test_all_windows_and_windows_longer_than_a_chunk() -> None:
    engine = fake_engine(sure=2.0)
    tokens = engine.tokenizer.encode(TEXT * 5)
    found = engine.perplexity(tokens, context=700)
    assert found.windows == len(tokens) // 700 == 2
    assert found.value == pytest.approx(defined_perplexity(fake_engine(sure=2.0), tokens, 700, 9, 256)[0], rel=1e-6)


def test_scores() -> None:
    engine = fake_engine(sure=2.0)
    score = engine.score("ab ab", " abx")
    np.testing.assert_allclose(score.logprobs, slow_logprobs(engine, [256, *b"ab ab abx"])[5:], rtol=1e-5)
    assert score.tokens == list(b" abx")
    assert score.total == pytest.approx(score.logprobs.sum())
    whole = engine.score("ab ab")
    np.testing.assert_allclose(whole.logprobs, slow_logprobs(engine, [256, *b"ab ab"]), rtol=1e-5)
    assert len(engine.score("").logprobs) == 0
    assert engine.score(list(b"ab"), list(b"c")).tokens == [99]


def test_vectors() -> None:
    engine = fake_engine()
    mean, last = engine.embed("ab" * 400), engine.embed("ab" * 400, "last")
    assert mean.shape == last.shape == (4,) and mean.dtype == np.float32
    assert np.linalg.norm(mean) == pytest.approx(1) and np.linalg.norm(last) == pytest.approx(1)
    session = engine.session()
    rows = engine.rows("ab" * 400)
    span: Any = SimpleNamespace(cache=session.ready(801), start=0, count=801)
    states = engine.decoder.run(np.array(rows.ids), [span])
    sums = (states[:, :1] + np.arange(4)).sum(0)
    np.testing.assert_allclose(mean, sums / np.linalg.norm(sums), rtol=1e-5)
    with pytest.raises(SpecError, match="pooling='max': use 'mean' or 'last'"):
        engine.embed("a", "max")  # type: ignore[arg-type]


def test_an_embedding_tells_how_far_it_is_and_can_be_ended() -> None:
    engine = fake_engine()
    told: list[tuple[int, int]] = []
    engine.embed("ab" * 400, progress=lambda *how_far: told.append(how_far))
    assert told[0] == (measures.BESIDE, 801) and told[-1] == (801, 801) and told == sorted(told)

    def enough(done: int, count: int) -> None:
        raise KeyboardInterrupt

    steps = engine.decoder.steps  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        engine.embed("ab" * 400, progress=enough)
    assert engine.decoder.steps == steps + 1  # type: ignore[attr-defined]


def test_what_cannot_be_measured_is_told() -> None:
    engine = fake_engine(context=64)
    with pytest.raises(ContextError, match="context=65: use a window of 4 to 64 tokens"):
        engine.perplexity(TEXT, context=65)
    with pytest.raises(ContextError, match="context=3: use a window of at least 4 tokens"):
        engine.perplexity(TEXT, context=3)
    with pytest.raises(SpecError, match="the text has 6 tokens, one window takes 64: give a longer text or a smaller"):
        engine.perplexity("short", context=64)
    with pytest.raises(SpecError, match="chunks=0: use at least 1"):
        engine.perplexity(TEXT, context=64, chunks=0)
    with pytest.raises(SpecError, match="token 999: this model's tokens"):
        engine.perplexity([999] * 64, context=64)
    wrong: Any
    for wrong in (None, 1.5, "64", True):
        with pytest.raises(ContextError, match=f"context={wrong!r}: use a window of at least 4 tokens"):
            engine.perplexity(TEXT, context=wrong)
    for wrong in (1.5, "2", True):
        with pytest.raises(SpecError, match=f"chunks={wrong!r}: use at least 1"):
            engine.perplexity(TEXT, context=64, chunks=wrong)
    with pytest.raises(SpecError, match="got int for a list of token ids"):
        engine.perplexity(3)  # type: ignore[arg-type]
    vectors: Any = [np.ones((2, 4), np.float32)]
    for work in (engine.score, engine.embed, lambda given: engine.score(given, "b")):
        with pytest.raises(SpecError, match="embeddings cannot be measured, they are no tokens: give text or token"):
            work(vectors)
    with pytest.raises(SpecError, match="got int for a list of token ids"):
        engine.score("a", 3)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("error")
def test_a_model_that_computes_no_numbers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = fake_engine()
    head, hidden = engine.decoder.head, engine.decoder.hidden
    monkeypatch.setattr(engine.decoder, "head", lambda x: head(x) * np.float32(np.nan))
    monkeypatch.setattr(engine.decoder, "hidden", lambda *given: hidden(*given) * np.nan)
    for work in (engine.score, engine.generate, lambda text: engine.perplexity(text, context=4)):
        with pytest.raises(ModelFileError, match="logits are not numbers, .*: the model file, its adapter or"):
            work("a text")
    with pytest.raises(ModelFileError, match="the model's states are not numbers: the model file, its adapter or"):
        engine.embed("a text")


@pytest.mark.parametrize(
    "work",
    [lambda engine: engine.embed(TEXT * 5), lambda engine: engine.score(TEXT * 5)],
    ids=["embed", "score"],
)
def test_a_long_text_lets_others_have_the_engine(
    work: Callable[[Engine], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = fake_engine()
    monkeypatch.setattr(engine, "chunk", measures.BESIDE)
    run = engine.decoder.run
    slices = 0

    def slow(*args: Any, **named: Any) -> Any:
        nonlocal slices
        slices += 1
        time.sleep(0.01)
        return run(*args, **named)

    monkeypatch.setattr(engine.decoder, "run", slow)
    thread = threading.Thread(target=work, args=(engine,))
    thread.start()
    turns = 0
    while thread.is_alive():
        with engine.lock:
            turns += 1
        time.sleep(0.001)
    thread.join()
    assert slices >= 30
    assert turns >= slices // 4  # turns about, but for a busy machine
