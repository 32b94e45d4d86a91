"""Make a model file of a known shape with random weights, to measure speed and memory with.

    genmote make-model llama-3.2-1b model.gguf
    genmote make-model tiny-llama model.gguf --type q8_0 --seed 7

The file costs what the real model costs and says nothing. An unknown shape's message lists the known ones.
"""

from __future__ import annotations

from pathlib import Path

from genmote.cli._output import Bar, Output, size
from genmote.spec import dataclass, setting


@dataclass(frozen=True)
class Settings:
    shape: str = setting("a shape's name, such as llama-3.2-1b or tiny-llama", positional=True)
    path: Path = setting("the GGUF file to write", positional=True)
    type: str = setting("tensor type of the matrices", default="q4_0")
    embedding_type: str | None = setting(
        "tensor type of the embedding and output matrices (default: --type, and at least 6 bits for the output)",
        default=None,
    )
    seed: int = setting("number that fixes the weights", default=0)


def run(settings: Settings, out: Output) -> None:
    from genmote.models.make_model import make_model

    with Bar() as bar:
        make_model(
            settings.shape,
            settings.type,
            settings.path,
            settings.seed,
            embedding_type=settings.embedding_type,
            progress=bar,
        )
    count = settings.path.stat().st_size
    values = {"path": settings.path, "shape": settings.shape, "seed": settings.seed, "size_bytes": count}
    out.result(values, f"{settings.path} ({size(count)})")
