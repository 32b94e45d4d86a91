"""Traces of routing: what is recorded is what the routers chose, and a replay makes another model choose so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.errors import SpecError
from genmote.models import packed
from genmote.models.gguf import ModelFile
from genmote.models.make_model import make_model
from genmote.ops.protocol import Span
from genmote.runtime.expert_trace import Replay, Trace, record
from genmote.runtime.experts import open_experts

native_ops = pytest.importorskip("genmote.ops.native_ops", exc_type=ImportError)

TOKENS = np.random.default_rng(5).integers(0, 280, 50).tolist()


@pytest.fixture(scope="module")
def found(tmp_path_factory: Any) -> packed.Packed:
    path = tmp_path_factory.mktemp("trace") / "model.gguf"
    make_model("tiny-olmoe", "q8_0", path, seed=3)
    return packed.pack(ModelFile.open(path), native_ops.create(threads=1), Path(path).with_suffix(".packed"))


def chosen_by(found: packed.Packed, replay: Replay | None, rows: int, **settings: Any) -> Any:
    """What each layer's `take` was asked for, token after token (L, T, used), and the logits."""
    decoder, cache = open_experts(found, 1 << 30, **settings)
    asked: list[list[Any]] = [[] for _ in decoder.weights.layers]
    take = cache.take
    cache.take = lambda layer, chosen: (asked[layer].append(chosen.copy()), take(layer, chosen))[1]  # type: ignore[method-assign]
    if replay is not None:
        replay.attach(decoder.weights.layers, cache)
    session, logits = decoder.cache(64), []
    for at in range(0, 24, rows):
        logits.append(decoder.forward(TOKENS[at : at + rows], [Span(session, 0, rows)], logits="all").copy())
    return np.stack([np.concatenate(layer) for layer in asked]), np.concatenate(logits)


def test_a_replay_of_a_models_own_trace_is_the_model(found: packed.Packed) -> None:
    """Recorded in one pass of 24 rows, replayed token by token and in fours: the same experts, the same bits."""
    trace = record(found, TOKENS, window=24)
    layers, tokens, experts = trace.shares.shape
    assert trace.tokens == tokens == 48 and (trace.early[0] == 0).all()
    wanted, logits = chosen_by(found, None, 1)
    top = np.argsort(-trace.shares[:, :24], axis=-1, kind="stable")[..., : trace.used]
    np.testing.assert_array_equal(wanted, top)
    for part in (trace.early[1:], trace.late, trace.shares):
        np.testing.assert_allclose(part.sum(-1), 1, rtol=1e-5)
    for rows in (1, 4):
        got, same = chosen_by(found, Replay(trace, layers, experts), rows)
        np.testing.assert_array_equal(got, wanted)
        np.testing.assert_array_equal(same, logits)


def test_a_smaller_routers_trace_is_stretched(found: packed.Packed) -> None:
    """One layer of half the experts: each stands for two, and the layers beyond are further in the text."""
    rng = np.random.default_rng(1)
    config = open_experts(found, 1)[0].config
    small = rng.dirichlet(np.ones(config.n_experts // 2), (1, 100)).astype(np.float32)
    trace = Trace(small, small, small, used=1)
    replay = Replay(trace, config.n_layers, config.n_experts)
    assert replay.used == 2 == config.n_experts_used
    got, _ = chosen_by(found, replay, 1)
    for layer in range(config.n_layers):
        best = np.argmax(small[0, layer * (100 // config.n_layers) :][:24], axis=-1)
        np.testing.assert_array_equal(np.sort(got[layer], axis=-1), np.stack([2 * best, 2 * best + 1], axis=-1))
    assert f"1 of {config.n_experts // 2} experts, replayed as 2 of {config.n_experts}" in replay.describe()


def test_guesses_are_replayed_in_their_order() -> None:
    parts = [np.full((2, 10, 4), value, np.float32) for value in (0.1, 0.2, 0.3)]
    replay = Replay(Trace(*parts, used=2), 2, 4)  # type: ignore[misc]
    h = np.zeros((1, 8), np.float32)
    for _ in range(3):
        assert replay.guess(0, h)[0, 0] == parts[2][0, 0, 0]
        assert replay.guess(1, h)[0, 0] == parts[1][0, 0, 0]  # as layer 0's experts begin
        assert replay.guess(1, h)[0, 0] == parts[2][0, 0, 0]
        for layer in range(2):
            assert replay._routing(layer)(h[:, :4])[0, 0] == parts[0][0, 0, 0]
    assert replay.at == 3


def test_what_cannot_be_replayed_is_told(found: packed.Packed) -> None:
    with pytest.raises(SpecError, match="a trace of 5 tokens: wanted at least 24"):
        record(found, TOKENS[:5], window=24)
    with pytest.raises(SpecError, match="6 experts: wanted a multiple of the trace's 4"):
        Replay(Trace(*(np.zeros((1, 2, 4), np.float32),) * 3, used=2), 2, 6)
