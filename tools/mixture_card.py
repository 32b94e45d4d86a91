"""Measure a mixture that `make_mixture.py` trained, and write its card: `python tools/mixture_card.py FOLDER TEXT ...`

TEXT is what it was trained on; what was held out of it is what is measured. FOLDER has `FOLDER.gguf` and
`weights.gguf`; it gets `card.json` with all figures and `card.md`, which is drawn from them.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from make_mixture import read

from genmote import ops
from genmote.models import packed
from genmote.models.decoder import Decoder
from genmote.models.gguf import ModelFile
from genmote.models.tokenizer import load_tokenizer
from genmote.models.weights import GgufWeights
from genmote.ops.protocol import Span
from genmote.runtime.expert_bits import changes, store_fewer
from genmote.runtime.expert_trace import record
from genmote.runtime.experts import open_experts

WINDOW = 256
LOW = "Q4_0"


def perplexity(path: Path, tokens: list[int]) -> float:
    """Over windows of 256 tokens, each read from an empty context, of every token but a window's first."""
    file, opset = ModelFile.open(path), ops.load("native", threads=1)
    weights = GgufWeights(file, opset)
    decoder, total, count = Decoder(weights.config, weights, opset), 0.0, 0
    for at in range(0, len(tokens) - WINDOW, WINDOW):
        row = tokens[at : at + WINDOW + 1]
        logits = decoder.forward(row[:-1], [Span(decoder.cache(WINDOW), 0, WINDOW)], logits="all")
        assert logits is not None
        wide = logits.astype(np.float64)
        wide -= wide.max(axis=1, keepdims=True)
        total += float((np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(WINDOW), row[1:]]).sum())
        count += WINDOW
    return math.exp(total / count)


def counted(train: list[int], tokens: list[int], size: int) -> dict[str, float]:
    """Perplexity of counting alone: single tokens (add one), and pairs backed by them (Witten and Bell 1991)."""
    single, pairs = Counter(train), Counter(pairwise(train))
    followers: Counter[int] = Counter(first for first, _ in pairs)
    alone = [(single[t] + 1) / (len(train) + size) for t in range(size)]
    both = 0.0
    for first, second in pairwise(tokens):
        seen, kinds = single[first], followers[first]
        both -= math.log((pairs[first, second] + kinds * alone[second]) / (seen + kinds) if kinds else alone[second])
    ones = -sum(math.log(alone[t]) for t in tokens[1:])
    return {"unigram": math.exp(ones / (len(tokens) - 1)), "bigram": math.exp(both / (len(tokens) - 1))}


def routing(found: packed.Packed, tokens: list[int]) -> dict[str, Any]:
    """How evenly experts are chosen, how often the next token keeps one, and how good the guesses are."""
    trace = record(found, tokens)
    top, early, late = (
        np.argsort(-part, axis=-1, kind="stable")[..., : trace.used] for part in (trace.shares, trace.early, trace.late)
    )
    layers, _, experts = trace.shares.shape

    def hit(guess: Any, layers: slice) -> float:
        return float((top[layers][..., None] == guess[layers][..., None, :]).any(-1).mean())

    use = np.stack([np.bincount(layer.reshape(-1), minlength=experts) for layer in top]) / top[0].size
    return {
        "busiest_expert_share": float(use.max(axis=1).mean()),
        "effective_experts": float(np.exp(-(use * np.log(use + 1e-12)).sum(axis=1)).mean()),
        "kept_by_the_next_token": hit(np.roll(top, 1, axis=1), slice(0, layers)),
        "guessed_before_attention": hit(late, slice(1, layers)),
        "guessed_a_layer_early": hit(early, slice(1, layers)),
    }


def cached(found: packed.Packed, tokens: list[int], share: float, **settings: Any) -> dict[str, Any]:
    """Hits over the text, token by token, after a first window that fills the cache."""
    everything = open_experts(found, 1 << 60)[1]
    decoder, cache = open_experts(found, round(share * everything.slots) * everything.slot_bytes, **settings)
    before = cache.counts.copy()
    for number, token in enumerate(tokens):
        if number % WINDOW == 0:
            session = decoder.cache(WINDOW)
        if number == WINDOW:
            before = cache.counts.copy()
        decoder.forward([token], [Span(session, 0, 1)], logits=None)
    return shares(cache.counts.since(before).values())


def shares(counts: dict[str, Any]) -> dict[str, Any]:
    """Counts of a cache of experts, and with them the bounds of what nobody waits for, which no disk changes."""
    needed = counts["needed"]
    return counts | {"in_memory": counts["cached"] / needed, "asked_for": 1 - counts["missed"] / needed}


def fewer(model: Path, calibration: list[int], tokens: list[int]) -> dict[str, float]:
    """Perplexity with half of the experts in four bits: those that matter less, those that matter more, and all."""
    file = ModelFile.open(model)
    change = changes(file, ops.load("native", threads=1), calibration, LOW)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, order, share in (("least", change, 0.5), ("most", -change, 0.5), ("all", change, 1.0)):
            store_fewer(file, Path(folder) / "fewer.gguf", order, LOW, share)
            found[name] = perplexity(Path(folder) / "fewer.gguf", tokens)
    return found


def main(folder: Path, texts: list[Path]) -> None:
    train, choose, held_out = read(texts)
    model = folder / f"{folder.resolve().name}.gguf"
    file = ModelFile.open(model)
    tokenizer = load_tokenizer(file)
    tokens = tokenizer.encode(held_out)
    found = packed.loader(file, ops.load("native", threads=1))
    assert isinstance(found, packed.Packed)
    figures: dict[str, Any] = {
        "sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "size_bytes": file.nbytes,
        "parameters": sum(math.prod(info.shape) for info in file.tensors.values()),
        "held_out_tokens": len(tokens),
        "perplexity": perplexity(model, tokens),
        "perplexity_f16": perplexity(folder / "weights.gguf", tokens),
        **counted(tokenizer.encode(train), tokens, file.tensors["token_embd.weight"].shape[0]),
        **routing(found, tokens[:8192]),
        "half_cached": cached(found, tokens[:4096], 0.5),
        "half_cached_without_guesses": cached(found, tokens[:4096], 0.5, predict=False),
        "fewer_bits": fewer(model, tokenizer.encode(choose)[:8192], tokens),
    }
    (folder / "card.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    template = (Path(__file__).parent / "mixture_card.md").read_text(encoding="utf-8")
    (folder / "card.md").write_text(template.format(**figures), encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
