"""Make a GGUF file of a Hugging Face model folder, or store a GGUF file's matrices as another type.

    genmote convert SmolLM2-135M/ -o smollm2.gguf
    genmote convert SmolLM2-135M/ -o smollm2-q8.gguf --type q8_0
    genmote convert hf:HuggingFaceTB/SmolLM2-135M -o smollm2.gguf
    genmote convert smollm2.gguf -o smollm2-q4.gguf --type q4_0
    genmote convert mixture-16x -o fewer.gguf --expert-type q4_0 --expert-share 0.5 --text notes.txt

A folder holds config.json, the weights as safetensors (in one file or many) and the tokenizer; one from the hub is kept
among the models, below hf/. Without --type its own number type is kept. What does not come along is told on standard
error.

With --expert-type a mixture's experts get fewer bits, those that matter least on --text: less is read where experts are
loaded by need (generate --memory), and the text changes; genmote perplexity says how much.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from genmote.cli._output import Bar, Output, note, size
from genmote.spec import dataclass, setting


@dataclass(frozen=True)
class Settings:
    source: str = setting("a Hugging Face folder, hf:ORG/REPO, or a GGUF file's path or name", positional=True)
    out: Path = setting("the GGUF file to write", short="-o")
    type: str | None = setting("tensor type of the matrices, such as f16, bf16, q8_0", default=None)
    embedding_type: str | None = setting(
        "tensor type of the embedding and output matrices (default: --type, and at least 6 bits for the output)",
        default=None,
    )
    expert_type: str | None = setting("tensor type of the experts that matter less, such as q4_0", default=None)
    expert_share: float | None = setting("share of the experts that get it (default 0.5)", default=None)
    text: Path | None = setting("text of the kind that the model is for, to see which experts matter", default=None)

    def faults(self) -> Iterable[str]:
        if self.expert_type is None:
            for name in ("expert_share", "text"):
                if getattr(self, name) is not None:
                    yield f"{name}: only with --expert-type"
            return
        if self.text is None:
            yield "text: name one of some thousand words with --text, to see which experts matter less"
        for name in ("type", "embedding_type"):
            if getattr(self, name) is not None:
                yield f"{name}: not together with --expert-type; do one after the other"


def run(settings: Settings, out: Output) -> None:
    from genmote.models.convert import convert

    if settings.expert_type is not None and settings.text is not None:
        return fewer_bits(settings, settings.expert_type, settings.text, out)
    with Bar() as bar:
        made = convert(
            settings.source, settings.out, settings.type, embedding_type=settings.embedding_type, progress=bar
        )
    for line in made.notes:
        note(line)
    count = settings.out.stat().st_size
    values = {
        "path": settings.out,
        "source": settings.source,
        "architecture": made.architecture,
        "type": made.type,
        "tensors": made.tensors,
        "size_bytes": count,
        "notes": made.notes,
    }
    out.result(values, f"{settings.out}: {made.architecture}, {made.type}, {made.tensors} tensors ({size(count)})")


def fewer_bits(settings: Settings, type: str, text: Path, out: Output) -> None:
    """Experts in fewer bits, by what they change on a text."""
    from genmote.cli._model import find, read_text
    from genmote.runtime import expert_bits
    from genmote.runtime.loading import choose_ops
    from genmote.runtime.threads import default_threads

    source, read = find(settings.source), read_text(text)
    share = 0.5 if settings.expert_share is None else settings.expert_share
    ops = choose_ops(None, None, default_threads())
    with Bar(unit_bytes=False) as bar:
        made = expert_bits.convert(source, settings.out, type, share, read, ops, progress=bar)
    which = f"{made.lowered} of {made.experts} experts"
    if made.lowered:
        note(f"the text may change: {which}, those that change least on {text}, are stored as {made.type}")
    count, before = settings.out.stat().st_size, source.stat().st_size
    values = {
        "path": settings.out,
        "source": source,
        "type": made.type,
        "experts": made.experts,
        "experts_in_fewer_bits": made.lowered,
        "tokens": made.tokens,
        "size_bytes": count,
        "source_bytes": before,
    }
    out.result(
        values,
        f"{settings.out}: {which} as {made.type} by {made.tokens} tokens of {text} ({size(count)} of {size(before)})",
    )
