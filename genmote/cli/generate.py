"""Continue a text, as a stream or (with --json) as one object with its figures.

    genmote generate smollm2-135m --prompt "The capital of France is" --max-tokens 20
    genmote generate smollm2-135m --file report.txt --schema answer.json --json
    genmote generate smollm2-135m --adapter style.gguf:0.5 --speculate < report.txt

The prompt is taken as it is. For a conversation in the model's own format use genmote chat.
"""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genmote.cli._model import ModelFlags, PrefixFlags, SamplingFlags, budget_figures, load, read_text, reading
from genmote.cli._output import Bar, Output, note, size
from genmote.errors import UserError
from genmote.spec import dataclass, setting

if TYPE_CHECKING:
    from genmote.device.meter import Meter, Reading
    from genmote.runtime.engine import Engine
    from genmote.runtime.generation import Result


@dataclass(frozen=True, kw_only=True)
class Settings(PrefixFlags, SamplingFlags, ModelFlags):
    prompt: str | None = setting("the text to continue (default: standard input)", default=None, short="-p")
    file: Path | None = setting("a file with the text to continue (- for standard input)", default=None)
    stats: bool = setting("tell speed, memory, disk and energy afterwards, on standard error", default=False)


def run(settings: Settings, out: Output) -> None:
    settings.check_prefix()
    prompt = prompt_of(settings)
    options = settings.options()
    told: list[str] = []
    with metered(settings.stats or out.json) as meter, load(settings) as engine:
        session = settings.session(engine) if settings.prefix or settings.save_prefix else None
        bar = Bar(unit_bytes=False, late=True)
        stream = engine.stream(prompt, session=session, progress=reading(bar), **options)
        try:
            with bar:
                for piece in stream:
                    out.say(piece.text, end="")
        except KeyboardInterrupt:
            out.say("")  # what is told next begins on a line of its own
            raise
        out.say("")
        if not out.json and cut_short(stream.result, options):
            note(f"genmote generate: the text was cut short and is not whole: raise --max-tokens {settings.max_tokens}")
        values = figures(engine, stream.result)
        if session is not None and settings.save_prefix is not None:
            session.truncate(stream.result.prompt_tokens)
            session.save(settings.save_prefix)
        if engine.tiers is not None:
            told.append(str(engine.tiers))
        if engine.experts is not None:
            told.append(str(engine.experts.counts))
        if meter is not None:
            meter.tokens = stream.result.decode_tokens
    if meter is not None:
        values["meter"] = meter.reading.values()
        told = [stats(values), *told, taken(meter.reading)]
    if settings.stats and not out.json:
        note("\n".join(told))
    out.result(values, "")


def metered(wanted: bool) -> AbstractContextManager[Meter | None]:
    """Measures the block, where that is wanted: it takes a MB of memory."""
    if not wanted:
        return nullcontext()
    from genmote.device.meter import Meter

    return Meter()


def taken(reading: Reading) -> str:
    """What all of it took, from loading on."""
    read, written = (
        "unknown" if count is None else size(count) for count in (reading.read_bytes, reading.written_bytes)
    )
    return f"in all {reading.wall_s:.2f} s, disk read {read}, written {written}, {reading.energy}"


def cut_short(result: Result, options: dict[str, Any]) -> bool:
    """Whether a text that must fit a schema or grammar ended before it did."""
    constrained = options["json_schema"] is not None or options["grammar"] is not None
    return constrained and result.finish_reason in ("length", "context")


def prompt_of(settings: Settings) -> str:
    if settings.prompt is not None and settings.file is not None:
        raise UserError("--prompt and --file are both given: wanted one text to continue")
    if settings.prompt is not None:
        return settings.prompt
    if settings.file is not None:
        return read_text(settings.file)
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError("no text to continue: give --prompt TEXT or --file FILE, or pipe it in")
    return read_text(Path("-"))


def figures(engine: Engine, result: Result) -> dict[str, Any]:
    """What one generation was and took."""
    governed = {} if engine.governor is None else {"governor": [step.values() for step in engine.governor.decisions]}
    tiers = {} if engine.tiers is None else {"tiers": engine.tiers.values()}
    experts = {} if engine.experts is None else {"experts": engine.experts.counts.values()}
    return {
        "text": result.text,
        "finish_reason": result.finish_reason,
        "prompt_tokens": result.prompt_tokens,
        "cached_tokens": result.cached_tokens,
        "prefill_tokens_per_s": round(result.prefill_tokens_per_s, 2),
        "decode_tokens": result.decode_tokens,
        "decode_tokens_per_s": round(result.decode_tokens_per_s, 2),
        "first_token_ms": round(result.first_token_ms, 2),
        "load_ms": round(engine.load_ms, 2),
        "peak_rss_bytes": engine.peak_rss_bytes,
        "seed": result.seed,
        "ops": engine.ops_name,
        "threads": engine.threads,
        "model": engine.model_path,
        **governed,
        **tiers,
        **experts,
        **budget_figures(engine),
    }


def stats(values: dict[str, Any], whence: str = "from the prefix") -> str:
    """The figures in a line; `whence` tells where the part of the prompt is from that was not read."""
    budget = ""
    if "plan" in values:
        told = size(values["budget_bytes"]), size(values["plan"]["predicted_bytes"]), size(values["weights_read_bytes"])
        budget = f" of {told[0]} ({told[1]} planned), {told[2]} of weights read"
    prompt, kept = values["prompt_tokens"], values["cached_tokens"]
    read = f"prompt {prompt} tokens" + (f", {kept} of them {whence}, {prompt - kept} read" if kept else "")
    return (
        f"{read} at {values['prefill_tokens_per_s']:.1f}/s, "
        f"text {values['decode_tokens']} tokens at {values['decode_tokens_per_s']:.1f}/s, "
        f"first after {values['first_token_ms']:.0f} ms, loaded in {values['load_ms']:.0f} ms, "
        f"peak memory {size(values['peak_rss_bytes'])}{budget}, {values['ops']} on {values['threads']} threads"
    )
