"""A planned run, for real: a process of its own loads the model, fills the context, writes some tokens, and tells what
it took.

    python -m genmote.runtime.trial '{"model": "smollm2-135m", "context": 512, "tokens": 16}'

What a plan predicts can so be compared with what the system measured, unmixed with what this process holds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.errors import GenmoteError, SpecError

if TYPE_CHECKING:
    from genmote.runtime.plan import Plan


def command(settings: dict[str, Any]) -> list[str]:
    """The child's command line. `settings`: `model`, `context`, `tokens` to write, `prompt_tokens`, and what else
    `Engine.load` takes; what is None is left out."""
    given = {key: value for key, value in settings.items() if value is not None}
    return [sys.executable, "-m", "genmote.runtime.trial", json.dumps(given)]


def figures(printed: bytes) -> dict[str, Any]:
    """What the child printed; GenmoteError where it ended without."""
    lines = printed.decode(errors="replace").strip().splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise GenmoteError("the trial ended without figures: see what it said above") from None
    if "error" in found:
        raise GenmoteError(f"the trial failed: {found['error']}")
    return dict(found)


def measured(
    path: Path,
    made: Plan,
    *,
    tokens: int = 16,
    adapter: Sequence[tuple[str, float]] = (),
    progress: Callable[..., None] | None = None,
) -> dict[str, Any]:
    """Run what was planned, the context full, in a control group of the budget where one can be made.

    What a model's first load makes for all later ones is made before, outside of the group: there the pages that it
    writes would count. `progress` is told of that.

    Figures of `run`, bytes read from and written to a disk, energy and how it was had, `group_peak_bytes` where there
    is a group, and `how` all was measured, in words. Raises
    GenmoteError where the run fails, UserError where there are groups but not with this limit.
    """
    import subprocess  # not where the child would load them too
    import tempfile

    from genmote.device import jail
    from genmote.device.cgroup import Limits
    from genmote.device.meter import Meter
    from genmote.errors import NoJailError
    from genmote.models import store

    settings = {"model": os.fspath(path), "context": made.context, "threads": made.threads, **load_settings(made)}
    words = command(settings | {"tokens": min(tokens, made.context - 1), "adapter": list(adapter) or None})
    make_ready(path, made.threads, progress)
    drop = [*store.files(path), *(Path(each) for each, _ in adapter)]
    with tempfile.TemporaryFile() as out:
        try:
            report = jail.run(words, Limits(memory_bytes=made.budget_bytes), drop=drop, stdout=out)
        except NoJailError as fault:
            with Meter() as meter:
                ran = subprocess.run(words, stdout=out, check=False)
            reading = meter.reading
            out.seek(0)
            return figures(out.read()) | {
                "read_bytes": reading.read_bytes,
                "written_bytes": reading.written_bytes,
                **reading.energy.values(),
                "how": f"measured without a control group ({fault})",
                "status": ran.returncode,
            }
        out.seek(0)
        if report.oom_killed:
            raise GenmoteError(f"killed: it wanted more than the {made.budget_bytes} bytes of the control group")
        found = figures(out.read())
    inside = "in a control group" + (f" of {made.budget_bytes} bytes" if made.budget_bytes is not None else "")
    return found | {
        "group_peak_bytes": report.usage.peak_bytes,
        "read_bytes": report.usage.read_bytes,
        "written_bytes": report.usage.written_bytes,
        **report.energy.values(),
        "how": f"measured {inside}, {found['prompt_tokens']} tokens read, {found['decode_tokens']} written",
    }


def make_ready(path: Path, threads: int, progress: Callable[..., None] | None = None) -> None:
    """Make the files that a model's first load makes: its token table and its re-laid weights."""
    from genmote.models import packed
    from genmote.models.gguf import ModelFile
    from genmote.models.tokenizer import load_tokenizer
    from genmote.runtime.loading import choose_ops

    model = ModelFile.open(path)
    load_tokenizer(model)
    packed.loader(model, choose_ops(None, None, threads), progress=progress)


def load_settings(made: Plan) -> dict[str, Any]:
    """What `Engine.load` is told so that it plans the same."""
    settings: dict[str, Any] = {"memory": made.budget_bytes, "evict": made.evict, "kv_tokens": made.kv_tokens}
    settings["kv_spill"] = made.kv_spill
    return {key: value for key, value in settings.items() if value is not None} | (
        {} if made.kv == "f16" else {"kv": made.kv}
    )


def run(model: str, *, context: int, tokens: int, prompt_tokens: int | None = None, **load: Any) -> dict[str, Any]:
    """Load, read a prompt that leaves room for `tokens`, write those; figures of all that."""
    from genmote import Engine

    adapter = [tuple(pair) for pair in load.pop("adapter", ())]  # JSON has no tuples
    with Engine.load(model, context=context, adapter=adapter or None, **load) as engine:
        prompt = context - tokens if prompt_tokens is None else min(prompt_tokens, context - tokens)
        if prompt < 1:
            raise SpecError(f"a context of {context} tokens leaves no prompt beside {tokens} tokens of text")
        # Tokens from all over the vocabulary, so that the embedding is touched as a real text touches it.
        ids = [(7919 * number + 11) % engine.config.vocab_size for number in range(prompt)]
        result = engine.generate(ids, max_tokens=tokens, ignore_eos=True)
        planned = getattr(engine, "plan", None)
        return {
            "peak_rss_bytes": engine.peak_rss_bytes,
            "load_ms": round(engine.load_ms, 1),
            "prompt_tokens": result.prompt_tokens,
            "prefill_tokens_per_s": round(result.prefill_tokens_per_s, 3),
            "first_token_s": round(result.first_token_ms / 1e3, 4),
            "decode_tokens": result.decode_tokens,
            "decode_tokens_per_s": round(result.decode_tokens_per_s, 3),
            "planned_bytes": None if planned is None else planned.predicted_bytes,
        }


def main() -> None:
    try:
        found = run(**json.loads(sys.argv[1]))
    except GenmoteError as error:
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")
    sys.stdout.flush()
    os._exit(0)  # nothing here is worth the time of an orderly end


if __name__ == "__main__":
    main()
