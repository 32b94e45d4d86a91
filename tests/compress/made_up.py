"""Reports as a run would leave them, made up."""

from __future__ import annotations

from typing import Any

from genmote.records import Record

KINDS = {"attn_q": "Q4_0", "attn_k": "Q5_0", "attn_v": "Q8_0", "attn_output": "Q4_0", "ffn_down": "Q3_K"}


def side(name: str, size: int, perplexity: float, **more: Any) -> dict[str, Any]:
    blocks = {f"blk.{number}.{kind}.weight": stored for kind, stored in KINDS.items() for number in range(6)}
    return {
        "name": name,
        "sha256": 64 * "a",
        "size_bytes": size,
        "parts_bytes": {
            "embedding": size // 4,
            "attention": size // 4,
            "feed-forward": size * 4 // 10,
            "norms": size // 400,
        },
        "bits_per_weight": size / 16.8e6,
        "types": {**blocks, "token_embd.weight": "Q8_0"},
        "perplexity": perplexity,
        "bits_per_byte": 0.21 * perplexity**0.5,
        "tokens": 2048,
        "decode_tokens_per_s": 2.1e10 / size,
        "prefill_tokens_per_s": 1200.0,
        "peak_rss_bytes": size + 60_000_000,
        "load_ms": 120.0,
        "prompt_tokens": 256,
        "decode_tokens": 64,
        **more,
    }


def report(name: str = "small.gguf", size: int = 60_000_000, perplexity: float = 24.5, **values: Any) -> Record:
    figures = {
        f"blk.{number}.{kind}.weight": {"type": stored, "error": 0.002 * (1 + number) * (1 + len(kind) % 3)}
        for kind, stored in KINDS.items()
        for number in range(6)
    }
    steps = [
        {
            "use": "gptq",
            "settings": {"type": "keep", "types": ["a=Q4_0"], "damp": 0.01},
            "seconds": 93.0,
            "figures": figures,
        }
    ]
    rounds = [
        {
            "expected": 0.11,
            "bound": 0.109,
            "measured": 0.15,
            "size_bytes": size,
            "scales": {"ffn_down": 1.4, "head": 0.9},
            "of": "types",
        },
        {"expected": 0.14, "bound": 0.139, "measured": 0.141, "size_bytes": size - 1000, "scales": {}, "of": "types"},
    ]
    found = {
        "original": side("smollm2-135m.gguf", 98_362_432, 21.4),
        "compressed": side(name, size, perplexity),
        "perplexity_ratio": perplexity / 21.4,
        "kl_nats_per_token": 0.141,
        "agreement": 0.83,
        "scores": {"arrhythmia, right answers": {"original": 0.71, "compressed": 0.68}},
        "text": "text that smollm2-135m wrote with seed 1",
        "windows": 8,
        "context": 512,
        "recipe": {"calibration": {"windows": 64, "seed": 0}, "step": [{"use": "gptq", "type": "keep"}]},
        "steps": steps,
        "search": {"goal": "at most 60.0 MB", "missed": None, "rounds": rounds},
    }
    return Record("compress", {**found, **values}, model_sha256=64 * "b", threads=2)
