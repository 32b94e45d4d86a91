"""Make a GGUF file of a Hugging Face model folder, or store a GGUF file's matrices as another type.

    genmote convert SmolLM2-135M/ -o smollm2.gguf
    genmote convert SmolLM2-135M/ -o smollm2-q8.gguf --type q8_0
    genmote convert hf:HuggingFaceTB/SmolLM2-135M -o smollm2.gguf
    genmote convert smollm2.gguf -o smollm2-q4.gguf --type q4_0

A folder holds config.json, the weights as safetensors (in one file or many) and the tokenizer; one from the hub is kept
among the models, below hf/. Without --type its own number type is kept. What does not come along is told on standard
error.
"""

from __future__ import annotations

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


def run(settings: Settings, out: Output) -> None:
    from genmote.models.convert import convert

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
