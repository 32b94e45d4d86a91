"""Work an adapter into a model's weights: one file, and no cost beside the model's.

    genmote merge smollm2-135m mine.gguf -o mine-merged.gguf
    genmote merge smollm2-135m mine.gguf -o mine-merged.gguf --type Q8_0

The matrices that change are stored in their own types again, or as --type. A type of few bits rounds small changes
away: what is left of the adapter tells genmote perplexity, or compress --report.
"""

from __future__ import annotations

from pathlib import Path

from genmote.cli._model import find
from genmote.cli._output import Bar, Output, check_place, size
from genmote.spec import dataclass, setting


@dataclass(frozen=True, kw_only=True)
class Settings:
    model: str = setting("a model's name (fetched if it is not here) or path", positional=True)
    adapter: Path = setting("the adapter's file", positional=True)
    output: Path = setting("the GGUF file to write", short="-o")
    scale: float = setting("how much the adapter counts", default=1.0)
    type: str | None = setting("tensor type of the matrices that change (default: their own)", default=None)


def run(settings: Settings, out: Output) -> None:
    from genmote.models.write_lora import merge

    check_place(settings.output, "--output")
    with Bar() as bar:
        changed = merge(
            find(settings.model),
            settings.adapter,
            settings.output,
            scale=settings.scale,
            type=settings.type,
            progress=bar,
        )
    count, types = settings.output.stat().st_size, sorted(set(changed.values()))
    values = {"path": settings.output, "size_bytes": count, "matrices": len(changed), "types": types}
    stored = f"{len(changed)} matrices changed{', stored as ' + ', '.join(types) if types else ''}"
    out.result(values, f"{settings.output} ({size(count)}), {stored}")
