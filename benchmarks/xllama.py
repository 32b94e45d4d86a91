"""One sample of `xllamacpp`: prefill and decode speed of a model file, as its server times them.

    python -m benchmarks.xllama MODEL --threads T --prefill N --decode N --seed S

Prints one JSON object. Prompts are token numbers, so that no tokenizer is timed; sampling is greedy.
"""

from __future__ import annotations

import argparse
import json
import random
from typing import Any


def main() -> None:
    """Load, warm up, time the prompt, time the decode, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.xllama")
    parser.add_argument("model")
    for name in ("threads", "prefill", "decode", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    chosen = parser.parse_args()

    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = chosen.model
    params.n_ctx = max(chosen.prefill, chosen.decode) + 64
    params.n_parallel = 1
    params.cpuparams.n_threads = chosen.threads
    params.cpuparams_batch.n_threads = chosen.threads
    params.warmup = True
    server = xllamacpp.Server(params)
    draw = random.Random(chosen.seed)

    def complete(prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        # Token numbers past the first few hundred are ordinary text in every vocabulary here.
        request = {
            "prompt": [draw.randrange(500, 30000) for _ in range(prompt_tokens)],
            "n_predict": new_tokens,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        answer = server.handle_completions(request)
        if "timings" not in answer:
            raise SystemExit(f"xllamacpp answered without timings: {str(answer)[:200]}")
        return dict(answer["timings"])

    complete(8, 2)
    speeds: dict[str, float | None] = {"prefill_tokens_per_s": None, "decode_tokens_per_s": None}
    if chosen.prefill:
        timings = complete(chosen.prefill, 1)
        speeds["prefill_tokens_per_s"] = timings["prompt_n"] / timings["prompt_ms"] * 1e3
    if chosen.decode:
        timings = complete(1, chosen.decode + 1)
        # The first new token comes out of the prompt's own step, and the clock starts after it.
        speeds["decode_tokens_per_s"] = (timings["predicted_n"] - 1) / timings["predicted_ms"] * 1e3
    print(json.dumps(speeds))


if __name__ == "__main__":
    main()
