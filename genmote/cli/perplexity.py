"""Tell how surprised a model is by a text: perplexity by llama.cpp's definition.

    genmote perplexity smollm2-135m wiki.test.raw --context 512 --chunks 20

The text is cut into windows of --context tokens, and the second half of each is scored.
"""

from __future__ import annotations

import time
from pathlib import Path

from genmote.cli._model import ModelFlags, budget_figures, load, read_text
from genmote.cli._output import Bar, Output
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings(ModelFlags):
    file: Path = setting("the text, UTF-8 (- for standard input)", positional=True)
    context: int | None = setting("tokens of a window", default=512)
    chunks: int | None = setting("windows to score (default: all)", default=None)


def run(settings: Settings, out: Output) -> None:
    text = read_text(settings.file)
    with load(settings) as engine, Bar(unit_bytes=False) as bar:
        started = time.perf_counter()
        found = engine.perplexity(
            text,
            context=settings.context or engine.context,
            chunks=settings.chunks,
            progress=lambda done, total: bar("windows scored", done, total),
        )
        seconds = time.perf_counter() - started
        values = {
            "perplexity": found.value,
            "stderr": found.stderr,
            "tokens_scored": found.tokens,
            "chunks": found.windows,
            "context": found.context,
            "tokens_per_s": round(found.windows * found.context / seconds, 2),
            "peak_rss_bytes": engine.peak_rss_bytes,
            "ops": engine.ops_name,
            "threads": engine.threads,
            "model": engine.model_path,
            **budget_figures(engine),
        }
    text = f"perplexity {found.value:.4f} ± {found.stderr:.4f} over {found.windows} windows of {found.context} tokens"
    out.result(values, text)
