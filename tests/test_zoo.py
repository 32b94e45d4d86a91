"""The models that come with the package: there, named, carded, and as good as their cards say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genmote.describe import file as parts_of
from genmote.describe.checking import numbers
from genmote.models import packed, store
from genmote.models.gguf import ModelFile
from genmote.models.store import ZOO
from genmote.models.tokenizer import load_tokenizer
from genmote.signals.kinds import Series

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


@pytest.mark.parametrize("name", parts_of.names())
def test_each_describing_model_has_its_parts_and_a_card(name: str) -> None:
    found = parts_of.find(name) if store.find("smollm2-135m") else None
    parts = parts_of.read(parts_of.place(name))
    card = (ZOO / name / "card.md").read_text(encoding="utf-8")
    assert parts.adapter is not None and parts.encoder.sha256 in card and parts.adapter.sha256 in card
    assert parts.licence in card and parts.licence != "not stated" and "python tools/make_describers.py" in card
    assert parts.channels and (found is None or found.encoder.sha256() == parts.encoder.sha256)
    assert (ZOO / name / parts.encoder.file).resolve() == ZOO / "sensors" / "sensors-encoder.gguf"  # one for all


def test_describing_models_are_small() -> None:
    files = {(ZOO / name / part.file).resolve() for name in parts_of.names() for part in _parts(name)}
    assert len(files) == len(parts_of.names()) + bool(files) and sum(path.stat().st_size for path in files) <= 14e6
    assert sum(path.stat().st_size for path in ZOO.rglob("*.gguf")) <= 40e6


def _parts(name: str) -> list[parts_of.Part]:
    parts = parts_of.read(parts_of.place(name))
    return [part for part in (parts.encoder, parts.adapter) if part is not None]


def test_an_ecg_is_described_by_the_model_of_ecgs() -> None:
    """A drawn heart: which model, its rate, and that it is no diagnosis."""
    if "ecg" not in parts_of.names():
        pytest.skip("no model of ECGs comes with the package yet")
    if store.find("smollm2-135m") is None:
        pytest.skip("smollm2-135m is not here: make models")
    from genmote.describe.model import Describer

    t = np.arange(1000) / 100
    beat = np.exp(-0.5 * (((t * 1.25) % 1 - 0.3) / 0.02) ** 2)
    leads = ("I", "II", "III", "aVR", "aVL", "aVF", "V1", "V2", "V3", "V4", "V5", "V6")
    values = np.outer(beat, np.linspace(-0.5, 1.5, 12)) + 0.01 * np.random.default_rng(0).standard_normal((1000, 12))
    heart = Series("drawn", values.astype(np.float32), 100.0, leads, ("mV",) * 12)
    assert parts_of.meant_for(heart) == "ecg"
    with Describer.load("ecg", threads=1) as model:
        assert model.parts.health
        assert abs(numbers(model.ask([heart], "What is the heart rate?", max_tokens=16))[0] - 75) <= 5
        found = model.classify([heart], model.task(None)).probabilities
        assert set(found) >= {"normal ECG", "myocardial infarction"} and sum(found.values()) == pytest.approx(1)
