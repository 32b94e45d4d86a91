"""Tell what a KV cache with fewer rows or fewer bits costs and gains.

    genmote eval kv smollm2-135m --text wiki.test.raw
    genmote eval kv smollm2-135m --text wiki.test.raw --policies window,expected+retrieval --budgets 0.25,0.5
    genmote eval kv smollm2-135m --text wiki.test.raw --quick --kv f16,int8 --svg kv.svg

For each eviction policy, share of rows kept and kind of storage: perplexity, as a multiple of the full cache's; words
found in a long text; sums copied from a long list; speeds with a full context. Finding and copying count only where
the full cache gets 80% right. The text should be long: wiki.test.raw of WikiText-2 is what papers report.
It takes long on a small board: --quick takes a tenth of the time, and Ctrl-C prints what was measured until then.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._model import EngineFlags, ModelFlags, load, read_text
from genmote.cli._output import Bar, Output, check_place, columns, note, save, size
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.runtime.eval_kv import Measured


@dataclass(frozen=True, kw_only=True)
class Settings(EngineFlags):
    text: Path = setting("a long text, UTF-8 (- for standard input)")
    policies: str | None = setting("eviction policies, NAME[+even|pyramid|retrieval] (default: all)", default=None)
    budgets: str | None = setting("shares of the context that a layer holds (default 0.1,0.25,0.5)", default=None)
    kv: str | None = setting("how keys and values are stored, such as f16,int8,int4 (default f16)", default=None)
    context: int | None = setting("tokens of a text", default=2048)
    windows: int | None = setting("texts whose perplexity is measured (default 3)", default=None)
    quick: bool = setting("one text, a quarter of the rows, the cheapest and the best policy", default=False)
    seed: int = setting("number that fixes what is to be found and copied", default=0)
    svg: Path | None = setting("a picture of the result", default=None)

    def faults(self) -> Iterable[str]:
        for budget in (self.budgets or "").split(",") if self.budgets else ():
            if not _share(budget):
                yield (
                    f"budgets={budget.strip()!r}: wanted shares of the context's rows, above 0 and below 1, such as "
                    "--budgets 0.25,0.5"
                )
                return


def run(settings: Settings, out: Output) -> int:
    from genmote.cli import INTERRUPTED
    from genmote.runtime import eval_kv, eval_picture, eviction

    if settings.svg is not None:
        check_place(settings.svg, "--svg")
    text = read_text(settings.text)
    policies, budgets, windows = _wanted(settings)
    for policy in policies:
        eviction.policy(policy)  # a name that is none is told before the work
    kinds = [kind.strip() for kind in (settings.kv or "f16").split(",")]
    wanted = eval_kv.cases(policies, budgets, kinds)
    flags = ModelFlags(**{field.name: getattr(settings, field.name) for field in fields(EngineFlags)})
    found: list[Measured] = []
    interrupted = False
    with load(flags) as engine:
        tokens = engine.tokenizer.encode(text, special=False)
        eval_kv.check(wanted, engine.context, len(tokens))
        windows = _announced(settings, engine.context, len(tokens), len(wanted), windows)
        bar = Bar(unit_bytes=False)
        rows = eval_kv.evaluate(engine, tokens, wanted, windows=windows, seed=settings.seed, progress=bar)
        try:
            with bar:
                found.extend(rows)
        except KeyboardInterrupt:
            if not found:
                raise
            interrupted = True
        values = {
            "context": engine.context,
            "windows": windows,
            "interrupted": interrupted,
            "rows": [row.values() for row in found],
            "peak_rss_bytes": engine.peak_rss_bytes,
            "ops": engine.ops_name,
            "threads": engine.threads,
            "model": engine.model_path,
            "picture": settings.svg,
        }
    if settings.svg is not None:
        title = f"{settings.model}: a smaller KV cache, context {values['context']}"
        below = "rows evicted by each policy, over the share of rows kept"
        save(settings.svg, eval_picture.svg(title, below, found), "--svg")
    out.result(values, table(found) + (f"\n\npicture: {settings.svg}" if settings.svg is not None else ""))
    if interrupted:
        note(f"genmote eval kv: interrupted: {len(found)} of {len(wanted)} settings were measured")
    return INTERRUPTED if interrupted else 0


def _announced(settings: Settings, context: int, tokens: int, count: int, windows: int) -> int:
    """Tell what is going to be done; how many windows there are for it."""
    from genmote.runtime.eval_kv import TASKS

    if 0 < tokens // context < windows:
        note(
            f"the text has {tokens} tokens: perplexity is measured over {tokens // context} texts of {context}, "
            f"not {windows}; give a longer text, or a smaller --context"
        )
    windows = min(windows, max(1, tokens // context))
    quick = "" if settings.quick else "; --quick measures 3"
    note(f"{count} settings, each with {windows + TASKS} texts of {context} tokens{quick}, Ctrl-C prints what there is")
    return windows


def _wanted(settings: Settings) -> tuple[list[str], list[float], int]:
    """Policies, budgets and windows."""
    from genmote.runtime import eviction

    everything = [*eviction.names(), eviction.DEFAULT, "snapkv+retrieval", "window+retrieval", "snapkv+pyramid"]
    policies = ["window", eviction.DEFAULT] if settings.quick else everything
    if settings.policies is not None:
        policies = [name.strip() for name in settings.policies.split(",")]
    budgets = [0.25] if settings.quick else [0.1, 0.25, 0.5]
    if settings.budgets is not None:
        budgets = [float(budget) for budget in settings.budgets.split(",")]
    return policies, budgets, settings.windows or (1 if settings.quick else 3)


def table(rows: Sequence[Measured]) -> str:
    """The result in columns."""
    heads = ["policy", "rows", "stored", "perplexity", "times", "found", "copied", "reads/s", "writes/s", "cache"]
    return columns([heads, *([*_line(row)] for row in rows)])


def _line(row: Measured) -> Iterable[str]:
    yield row.policy
    yield f"{row.rows} ({100 * row.budget:g}%)"
    yield row.kv
    yield f"{row.perplexity:.3f}"
    yield f"{row.ratio:.3f}"
    yield from ("-" if share is None else f"{100 * share:.0f}%" for share in (row.needle, row.copy))
    yield f"{row.prefill_tokens_per_s:.0f}"
    yield f"{row.decode_tokens_per_s:.1f}"
    yield size(row.kv_bytes)


def _share(text: str) -> Any:
    try:
        return 0 < float(text) < 1
    except ValueError:
        return False
