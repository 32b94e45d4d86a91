"""Make a model file of a known shape with random weights, to measure speed and memory with.

    genmote make-model --shape llama-3.2-1b --type q4_0 -o model.gguf
    genmote make-model tiny-llama model.gguf --type q8_0 --seed 7

The file costs what the real model costs and says nothing. Shape and file may be given without --shape and -o, in this
order. An unknown shape's message lists the known ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from genmote.cli._output import Bar, Output, size
from genmote.spec import dataclass, setting

INTERMIXED = True  # options may stand between the shape and the file


@dataclass(frozen=True, kw_only=True)
class Settings:
    names: tuple[str, ...] = setting(
        "a shape and a file, where --shape and -o are not given", default=(), positional=True
    )
    shape: str | None = setting("a shape's name, such as llama-3.2-1b or tiny-llama", default=None)
    output: Path | None = setting("the GGUF file to write (default: SHAPE-TYPE.gguf)", default=None, short="-o")
    type: str = setting("tensor type of the matrices", default="q4_0")
    embedding_type: str | None = setting(
        "tensor type of the embedding and output matrices (default: --type, and at least 6 bits for the output)",
        default=None,
    )
    seed: int = setting("number that fixes the weights", default=0)

    def faults(self) -> Iterable[str]:
        free = [name for name, given in (("a shape", self.shape), ("a file", self.output)) if given is None]
        if len(self.names) > len(free):
            yield f"{self.names[len(free)]!r} is one name too many: wanted {' and '.join(free) or 'no more names'}"
        elif self.shape is None and not self.names:
            yield "no shape: give --shape NAME, such as llama-3.2-1b"

    def made(self) -> tuple[str, Path]:
        """The shape and the file."""
        names = [*self.names]
        shape = self.shape if self.shape is not None else names.pop(0)
        return shape, self.output or Path(names[0] if names else f"{shape}-{self.type.lower()}.gguf")


def run(settings: Settings, out: Output) -> None:
    from genmote.models.make_model import make_model

    shape, path = settings.made()
    with Bar() as bar:
        make_model(
            shape,
            settings.type,
            path,
            settings.seed,
            embedding_type=settings.embedding_type,
            progress=bar,
        )
    count = path.stat().st_size
    out.result({"path": path, "shape": shape, "seed": settings.seed, "size_bytes": count}, f"{path} ({size(count)})")
