"""The models that come with the package: there, named, carded, and as good as their cards say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.models import packed, store
from genmote.models.gguf import ModelFile
from genmote.models.store import ZOO
from genmote.models.tokenizer import load_tokenizer

MIXTURE = ZOO / "mixture-16x"


@pytest.mark.parametrize("name", store.zoo())
def test_each_has_a_name_and_a_card(name: str) -> None:
    assert store.find(name) == ZOO / name / f"{name}.gguf"
    assert store.describe(ZOO / name / f"{name}.gguf", name).licence
    card = (ZOO / name / "card.md").read_text(encoding="utf-8")
    figures = json.loads((ZOO / name / "card.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256((ZOO / name / f"{name}.gguf").read_bytes()).hexdigest()
    assert figures["sha256"] == digest and digest in card
    assert all(word in card for word in ("licence", "Made again by", "python tools/"))
    assert "Perplexity" in card or "held out" in card


def measured(tmp_path: Path, shared_data: Path, count: int) -> tuple[Any, packed.Packed, list[int]]:
    native_ops = pytest.importorskip("genmote.ops.native_ops", exc_type=ImportError)
    file = ModelFile.open(MIXTURE / "mixture-16x.gguf")
    found = packed.pack(file, native_ops.create(threads=2), tmp_path / "model.packed")
    lines = (shared_data / "wikitext2_raw/wikitext-test.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    text = "".join(lines[round(len(lines) * 0.95) :])  # what the model was not trained on
    return json.loads((MIXTURE / "card.json").read_text()), found, load_tokenizer(file).encode(text)[:count]


def test_the_mixtures_routers_choose_as_its_card_says(tmp_path: Path, shared_data: Path) -> None:
    """On part of the text: steady choices, good guesses, and nine of ten experts there with half of them cached."""
    from genmote.ops.protocol import Span
    from genmote.runtime.expert_trace import record
    from genmote.runtime.experts import open_experts

    figures, found, tokens = measured(tmp_path, shared_data, 1024)
    trace = record(found, tokens)
    top, late = (np.argsort(-part, axis=-1, kind="stable")[..., : trace.used] for part in (trace.shares, trace.late))
    kept = (top[:, 1:, :, None] == top[:, :-1, None, :]).any(-1).mean()
    guessed = (top[1:, :, :, None] == late[1:, :, None, :]).any(-1).mean()
    assert abs(kept - figures["kept_by_the_next_token"]) < 0.05
    assert abs(guessed - figures["guessed_before_attention"]) < 0.05
    decoder, cache = open_experts(found, 1 << 60)
    room = cache.slots // 2 * cache.slot_bytes
    decoder, cache = open_experts(found, room, predict=False)
    session, before = decoder.cache(1024), cache.counts.copy()
    for number, token in enumerate(tokens):
        if number % 256 == 0:
            session = decoder.cache(256)
        if number == 256:
            before = cache.counts.copy()
        decoder.forward([token], [Span(session, 0, 1)], logits=None)
    assert abs(cache.counts.since(before).hit_rate - figures["half_cached_without_guesses"]["hit_rate"]) < 0.03


def test_the_mixtures_card_is_drawn_from_its_figures() -> None:
    figures = json.loads((MIXTURE / "card.json").read_text())
    template = Path(__file__).parents[1] / "tools/mixture_card.md"
    assert (MIXTURE / "card.md").read_text() == template.read_text().format(**figures)
    half = figures["half_cached"]
    assert (half["in_memory"], half["asked_for"]) == (
        half["cached"] / half["needed"],
        1 - half["missed"] / half["needed"],
    )
    assert half["in_memory"] < half["hit_rate"] < half["asked_for"]


@pytest.mark.slow
def test_the_mixtures_perplexity_is_its_cards(tmp_path: Path, shared_data: Path) -> None:
    from genmote.models.decoder import Decoder
    from genmote.models.weights import GgufWeights
    from genmote.ops.protocol import Span

    figures, found, tokens = measured(tmp_path, shared_data, 1 << 20)
    assert len(tokens) == figures["held_out_tokens"]
    weights = GgufWeights(found.model, found.ops, found)
    decoder, total, count = Decoder(weights.config, weights, found.ops), 0.0, 0
    for at in range(0, len(tokens) - 256, 256):
        logits = decoder.forward(tokens[at : at + 256], [Span(decoder.cache(256), 0, 256)], logits="all")
        assert logits is not None
        top = logits.max(axis=1, keepdims=True).astype(np.float64)
        log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
        total += float((log_sum - logits[np.arange(256), tokens[at + 1 : at + 257]]).sum())
        count += 256
    assert np.exp(total / count) == pytest.approx(figures["perplexity"], rel=1e-4)
    assert figures["perplexity"] < 0.75 * figures["bigram"] < figures["unigram"]
